#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1200
# What the kernel is asked to write by a compressed conversion past the page cache: data in whole
# blocks and 64 KiB or more at a time but for the last, each block once, and none of it is read; no
# write that only makes the file longer. Of an image with small clusters that is not so, and seen.
. "$(dirname "$0")/lib.sh"
need qemu-img python3 strace
cd "$W"

mixed_file source.raw $((24 << 20)) 11 noise text text text

cat >look.py <<'END'
# look.py TRACE IMAGE: what the system calls in TRACE did to IMAGE; says nothing where all is well.
import re, struct, sys

image = open(sys.argv[2], "rb").read()
cluster = 1 << struct.unpack_from(">I", image, 20)[0]
l1_entries, l1 = struct.unpack_from(">IQ", image, 36)
table, table_clusters = struct.unpack_from(">QI", image, 48)

def names(off, n):
    return [e & 0x00fffffffffffe00 for e in struct.unpack_from(f">{n}Q", image, off)]

metadata = {0}
for off, n in ((l1, l1_entries), (table, table_clusters * cluster // 8)):
    metadata.update(range(off // cluster, (off + n * 8 + cluster - 1) // cluster))
    metadata.update(e // cluster for e in names(off, n) if e)

def calls():
    """What the trace has; in two lines where another thread's call ended meanwhile."""
    begun = {}
    for line in open(sys.argv[1]):
        pid, text = line.rstrip().split(None, 1)
        if text.endswith("<unfinished ...>"):
            begun[pid] = text[:-len("<unfinished ...>")]
            continue
        m = re.match(r"<\.\.\. \w+ resumed>", text)
        yield begun.pop(pid).rstrip() + text[m.end():] if m else text

writes, reads = [], []
for call in calls():
    m = re.search(r"(pwrite|pread)(\w*)\((.*)\) += (\d+)$", call)
    off = m and int(m[3].split(", ")[-2 if m[2] == "v2" else -1])
    if m and off // cluster not in metadata:
        (writes if m[1] == "pwrite" else reads).append((off, int(m[4])))
if not writes:
    sys.exit("no data was written")
if reads:
    print("read", reads)
seen = set()
# One, what is packed last: but nobody knows in which order the threads write.
small = [(off, n) for off, n in writes if n < 65536]
if len(small) > 1:
    print("small", small)
for off, n in writes:
    if (off | n) % 4096:
        print("unaligned", off, n)
    blocks = range(off // 4096, (off + n + 4095) // 4096)
    if seen.intersection(blocks):
        print("again", off, n)
    seen.update(blocks)
END

# look OPTION...: converts with these, and says what is amiss.
look()
{
	local calls=openat,pread64,preadv,preadv2,pwrite64,pwritev,pwritev2

	rm -f target
	BYRE_LOOP=posix strace -f -o trace -P "$W/target" -s 0 -e "trace=$calls" \
		"$BYRE" convert -c -t none -O qcow2 "$@" source.raw "$W/target" ||
		fail "convert $*"
	grep -q 'openat.*O_DIRECT' trace || skip "no O_DIRECT here"
	python3 look.py trace target
}

strace -o /dev/null true 2>/dev/null || skip "strace may not trace here"
wrong=$(look)
[ -z "$wrong" ] || fail "$wrong"
wrong=$(look -o compression_type=zstd,cluster_size=256k)
[ -z "$wrong" ] || fail "zstd, 256 KiB: $wrong"
wrong=$(look -o cluster_size=1k)
[[ $wrong == *small* ]] || fail "small writes are not seen"
qemu-img compare -f raw -F qcow2 source.raw target >/dev/null || fail "other content"
