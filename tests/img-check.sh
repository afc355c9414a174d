#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 300
# byre check and qemu-img check say the same, word for word, of every kind of damage in damage.py
# and of images with random damage: text, JSON, messages and exit codes. A good image is found
# to be good, and a hostile one ends the check in bounded time and memory.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3

reference=qemu-img
qemu10=${CACHE:-$top/.cache}/qemu10/run
if [ -x "$qemu10" ]; then
	reference="$qemu10 qemu-img"
fi
ln -s "$(realpath "$BYRE")" "$W/qemu-img"

# What is not the same, on purpose: encrypted images and qcow version 1 are not read.
is_other()
{
	case $1 in
	plain-encryption-aes | plain-version-one) return 0 ;;
	esac
	return 1
}

# said_by NAME COMMAND...: what it says of the image NAME, in $W/NAME.*
said_by()
{
	local name=$1 image=$2 status=0
	shift 2
	timeout 60 "$@" check "$image" >"$W/$name.out" 2>"$W/$name.raw" || status=$?
	echo "$status" >>"$W/$name.out"
	# Random damage makes random names: byre shows what a terminal might obey as "?", and
	# cuts long lines.
	LC_ALL=C tr '\000-\010\013-\037\177' '?' <"$W/$name.raw" | LC_ALL=C cut -b 1-440 \
		>"$W/$name.err"
	status=0
	timeout 60 "$@" check --output=json "$image" >"$W/$name.json" 2>"$W/$name.json.err" ||
		status=$?
	echo "$status" >>"$W/$name.json"
}

compare_folder()
{
	local image what bad=0 n=0
	cd "$1"
	for image in *.qcow2; do
		is_other "${image%.qcow2}" && continue
		n=$((n + 1))
		# shellcheck disable=SC2086  # a command with words
		said_by theirs "$image" $reference
		said_by ours "$image" "$W/qemu-img"
		for what in out err json json.err; do
			diff "$W/theirs.$what" "$W/ours.$what" >"$W/diff" && continue
			echo "$image ($what): < $reference, > byre" >&2
			head -n 6 "$W/diff" >&2
			bad=$((bad + 1))
		done
	done
	cd "$top"
	[ "$n" -gt 0 ] || fail "no images in $1"
	echo "$n images, $bad differences"
	[ "$bad" = 0 ] || fail "$bad differences"
}

python3 "$here/damage.py" make "$W/kinds"
compare_folder "$W/kinds"
python3 "$here/damage.py" random "$W/random" "${BYRE_SEED:-1}" 60
compare_folder "$W/random"

# Options.
cd "$W/kinds"
grep -q '^byre: This image format' <("$BYRE" check plain-magic.qcow2 2>&1) || fail "raw"
[ -z "$("$BYRE" check -q plain-good.qcow2 2>&1)" ] || fail "-q"
"$BYRE" check -r all plain-good.qcow2 2>"$W/err" && fail "-r all"
grep -q 'repairs none' "$W/err" || fail "what -r says"
"$BYRE" check -f qcow2 -T none -U plain-good.qcow2 >"$W/out" || fail "-f -T -U"
"$BYRE" check --image-opts driver=qcow2,file.filename=plain-good.qcow2 |
	diff "$W/out" - || fail "--image-opts"
mkdir "$W/elsewhere"
cp back-good.qcow2 "$W/elsewhere"
"$BYRE" check "$W/elsewhere/back-good.qcow2" >"$W/out" || fail "a backing file elsewhere"
"$BYRE" check --untrusted "$W/elsewhere/back-good.qcow2" 2>"$W/err" && fail "--untrusted"

# Hostile images: all L1 entries and 65536 snapshots share one L2 table; L1 points all over.
python3 "$here/damage.py" hostile "$W/hostile"
cd "$W/hostile"
for image in *.qcow2; do
	status=0
	timeout 120 prlimit --as=$((2 << 30)) "$BYRE" check "$image" >"$W/out" 2>"$W/err" ||
		status=$?
	case $status in
	0 | 1 | 2 | 3) ;;
	*) tail -n 3 "$W/err" >&2; fail "$image: status $status" ;;
	esac
done
