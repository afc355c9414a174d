#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan tsan
# limit: 600
# Writes to raw disks, of any alignment, in every cache mode, by one client and by several at once
# whose ranges meet inside a sector: read back over NBD and from the file, both equal a model.
. "$(dirname "$0")/lib.sh"
need python3

seed=${SEED:-$RANDOM}
operations=300
[ "${SUITE:-}" = quick ] || operations=1500
# Direct I/O needs a file system that has it; the temporary folder's may not.
direct=
dd if=/dev/zero of="$W/probe" bs=4096 count=1 oflag=direct status=none 2>/dev/null &&
	direct="none directsync"
[ -n "$direct" ] || echo "no direct I/O in $W: cache modes none and directsync left out"

for mode in writeback writethrough unsafe $direct; do
	for size in 1048576 $((1048576 + 512 * 3)); do
		rm -f "$W/disk"
		truncate -s $size "$W/disk"
		start_byre "$mode" --loops 2 --cache "$mode" --discard unmap -f raw "$W/disk"
		"$here/raw-write.py" "$(uri "$mode")" "$W/disk" "$seed" $((operations / 5)) 1 ||
			fail "$mode, one client, seed $seed"
		"$here/raw-write.py" "$(uri "$mode")" "$W/disk" "$seed" $((operations / 5)) 5 ||
			fail "$mode, five clients, seed $seed"
		stop_byre "$mode"
		[ "$(stat -c %s "$W/disk")" = $size ] || fail "$mode: the file changed its size"
	done
done

# A discard gives the space back where that is asked for, and does nothing where it is not.
blocks()
{
	stat -c %b "$1"
}
for discard in unmap ignore; do
	random_file "$W/d" 4194304
	sync "$W/d"
	before=$(blocks "$W/d")
	start_byre $discard --discard $discard -f raw "$W/d"
	PYTHONPATH=$here python3 - "$(uri $discard)" <<-'END'
	import sys, nbd
	c = nbd.Nbd(sys.argv[1])
	c.trim(0, 2 << 20)
	c.flush()
	END
	stop_byre $discard
	after=$(blocks "$W/d")
	case $discard in
	unmap) [ "$after" -lt "$before" ] || fail "discard gives nothing back ($before, $after)" ;;
	ignore) [ "$after" = "$before" ] || fail "--discard ignore: blocks $before, then $after" ;;
	esac
done

# --read-only, and a file that cannot be written to.
start_byre ro --read-only -f raw "$W/d"
PYTHONPATH=$here python3 - "$(uri ro)" <<-'END'
import errno, sys, nbd
c = nbd.Nbd(sys.argv[1])
assert c.flags & nbd.READ_ONLY
for attempt in (lambda: c.write(0, b"x"), lambda: c.zero(0, 1), lambda: c.trim(0, 1)):
    try:
        attempt()
        sys.exit("a read-only disk was written to")
    except nbd.NbdError as e:
        assert e.errno == errno.EPERM, e
END
