#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 1800
# takes: 20
# byre check -r mends what qemu-img check -r mends, and says so in its words: text, JSON, exit
# codes; what is left is the same, and the content is (tests/repair.py). Some of each kind of
# damage; all kinds, and random damage, in the long suite. And the repair of a full TiB takes little
# memory.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3

pattern='^(plain|snap|rc1|ext|data|lazy|v2|bitmap)-(good|dirty|corrupt.*|.*beyond-eof|'
pattern+='refcount-(zero|high|low|block-.*)|l1-copied.*|l2-(copied|zero-unaligned|cross-linked).*|'
pattern+='snapshot-(incomplete|extra.*)|bitmap-autoclear-missing)$'
kinds=()
if [ "${SUITE:-}" != long ]; then
	mapfile -t kinds < <(python3 "$here/damage" list | grep -E -- "$pattern")
	[ "${SUITE:-}" != quick ] || kinds=("${kinds[@]:0:30}")
fi
python3 "$here/damage" make "$W/kinds" "${kinds[@]}"
"$here/repair.py" --byre "$BYRE" "$W/kinds"
if [ "${SUITE:-}" = long ]; then
	python3 "$here/damage" random "$W/random" "${SEED:-1}" 200
	"$here/repair.py" --json --byre "$BYRE" "$W/random"
fi

# The options.
cd "$W/kinds"
cp plain-good.qcow2 x.qcow2
"$BYRE" check -r some x.qcow2 2>"$W/err" && fail "-r some"
grep -q "expects 'leaks' or 'all' not 'some'" "$W/err" || fail "what -r some says"
[ -z "$("$BYRE" check -q -r all x.qcow2 2>&1)" ] || fail "-q"
"$BYRE" check -U -r all x.qcow2 2>"$W/err" && fail "-U with -r"
cmp plain-good.qcow2 x.qcow2 || fail "a good image was changed"

[ "${SUITE:-}" != quick ] || exit 0

# A TiB, every cluster of it in use: refcounts too high and too low, flags, and a lost block.
"$BYRE" create -q -f qcow2 -o preallocation=metadata "$W/tib.qcow2" 1T
python3 - "$BYRE" "$W/tib.qcow2" <<'END'
import os
import struct
import subprocess
import sys

KIB_MAX = 64 << 10
byre, path = sys.argv[1:]
with open(path, "r+b") as f:
    def table(at, n):
        f.seek(at)
        return struct.unpack(f">{n}Q", f.read(8 * n))

    def put(at, data):
        f.seek(at)
        f.write(data)
    l1, reftable = table(40, 2)
    blocks = table(reftable, 512)
    for i in range(3, 512, 7):
        put(blocks[i] + 2000, struct.pack(">100H", *[3] * 100))
    for l2 in table(l1, 2048)[::50]:
        put((l2 & (1 << 56) - 512) + 800, bytes(1))
    put(reftable + 8 * 100, bytes(8))
p = subprocess.Popen([byre, "check", "-q", "-r", "all", path], stderr=subprocess.DEVNULL)
status, used = os.wait4(p.pid, 0)[1:]
print(f"1 TiB: {used.ru_maxrss} KiB, {used.ru_utime + used.ru_stime:.1f} s")
sys.exit(status != 0 or used.ru_maxrss > KIB_MAX)
END
