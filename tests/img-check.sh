#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 1800
# takes: 40
# byre check and qemu-img check say the same, word for word, of a kind of damage to each kind of
# image: text, JSON, messages and exit codes; the options; and a hostile image ends the check in
# bounded time and memory. tests/img-damage.sh has all kinds.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3

# The good images, some damage that each can have, and some of each table.
pattern='-(good|refcount-zero|refcount-high|copied-missing|unaligned|cross-linked|beyond-eof)$'
mapfile -t kinds < <(python3 "$here/damage" list | grep -E -- "$pattern")
python3 "$here/damage" make "$W/kinds" "${kinds[@]}" plain-magic
"$here/reference.py" images --byre "$BYRE" "$W/kinds" check "check --output=json"

# Options.
cd "$W/kinds"
grep -q '^byre: This image format' <("$BYRE" check plain-magic.qcow2 2>&1) || fail "raw"
[ -z "$("$BYRE" check -q plain-good.qcow2 2>&1)" ] || fail "-q"
"$BYRE" check -f qcow2 -T none -U plain-good.qcow2 >"$W/out" || fail "-f -T -U"
"$BYRE" check --image-opts driver=qcow2,file.filename=plain-good.qcow2 |
	diff "$W/out" - || fail "--image-opts"
mkdir "$W/elsewhere"
cp back-good.qcow2 "$W/elsewhere"
"$BYRE" check "$W/elsewhere/back-good.qcow2" >"$W/out" || fail "a backing file elsewhere"
"$BYRE" check --untrusted "$W/elsewhere/back-good.qcow2" 2>"$W/err" && fail "--untrusted"

[ "${SUITE:-}" != quick ] || exit 0

# Hostile images: all L1 entries and 65536 snapshots share one L2 table; L1 points all over.
python3 "$here/damage" hostile "$W/hostile"
cd "$W/hostile"
for image in *.qcow2; do
	status=0
	# Some seconds of a processor are enough, whatever else that has to do.
	timeout 1200 prlimit --as=$((2 << 30)) --cpu=60 "$BYRE" check "$image" >"$W/out" \
		2>"$W/err" || status=$?
	case $status in
	0 | 1 | 2 | 3) ;;
	*) tail -n 3 "$W/err" >&2; fail "$image: status $status" ;;
	esac
done
