#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long tsan-long
# limit: 600
# byre convert --bitmaps copies persistent bitmaps as qemu-img does: which ones, their bits, what is
# said of those that cannot be copied.
. "$(dirname "$0")/lib.sh"
. "$here/reference.bash"
cd "$W"

cat >bitmaps.py <<'END_PYTHON'
import struct, sys
with open(sys.argv[1], "rb") as f:
    d = f.read()
u32 = lambda at: struct.unpack(">I", d[at:at + 4])[0]
u64 = lambda at: struct.unpack(">Q", d[at:at + 8])[0]
cluster, at = 1 << u32(20), u32(100)
print("autoclear", u64(88) & 1)
while u32(at):
    if u32(at) == 0x23852875:
        n, size, off = u32(at + 8), u64(at + 16), u64(at + 24)
        for _ in range(n):
            table, entries, flags, kind, bits, name, extra = struct.unpack(">QIIBBHI",
                                                                           d[off:off + 24])
            data = b""
            for i in range(entries):
                e = u64(table + 8 * i)
                host = e & 0xfffffffffffe00
                data += d[host:host + cluster] if host else bytes([0, 255][e & 1]) * cluster
            print(d[off + 24:off + 24 + name], flags, kind, bits, extra,
                  [(i, b) for i, b in enumerate(data) if b])
            off += (24 + name + 7) & ~7
    at += 8 + ((u32(at + 4) + 7) & ~7)
END_PYTHON

bitmap()
{
	"$qemu10" qemu-img bitmap "$@"
}

q create -f qcow2 base.qcow2 5M
q create -f qcow2 source.qcow2 5M
bitmap --add source.qcow2 early
bitmap --add -g 512 source.qcow2 fine
bitmap --add -g 32k source.qcow2 "the one that is not enabled"
bitmap --disable source.qcow2 "the one that is not enabled"
io source.qcow2 'write 1M 64k' 'write 4M 3k' 'write 5242368 512'
bitmap --disable source.qcow2 fine
bitmap --add source.qcow2 late
q create -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=4k top.qcow2
bitmap --add -g 512 top.qcow2 whole
io top.qcow2 'write 0 5M'
q create -f qcow2 -o cluster_size=512 odd.qcow2 700000
bitmap --add -g 512 odd.qcow2 all
io odd.qcow2 'write 0 699904'
cp source.qcow2 broken.qcow2
python3 - <<'END_PYTHON'
with open("broken.qcow2", "r+b") as f:
    d = f.read()
    at = d.index(b"fine") - 24
    assert d[at + 16] == 1
    f.seek(at + 12)
    f.write((1).to_bytes(4, "big"))
END_PYTHON
q create -f qcow2 -o compat=0.10 old.qcow2 5M

# convert ARGUMENTS...
convert()
{
	compared=$((compared + 1))
	rm -f new
	outcome want "$qemu10" qemu-img convert --bitmaps "$@"
	[ ! -e new ] || python3 bitmaps.py new >want.bitmaps 2>&1
	rm -f new
	outcome got bin/qemu-img convert --bitmaps "$@"
	diff want got >diff || is_known_of_older convert "$@" ||
		{ cat diff >&2; fail "convert --bitmaps $* (< QEMU, > byre)"; }
	grep -q 'status 0' got || return 0
	python3 bitmaps.py new >got.bitmaps
	diff want.bitmaps got.bitmaps >&2 || fail "convert $*: other bitmaps (< QEMU, > byre)"
	qemu-img check -q new || fail "convert $*: check"
	"$qemu10" qemu-img compare -q -f qcow2 "${@: -2:1}" new || fail "convert $*: content"
}

for image in base source top odd; do
	convert -O qcow2 $image.qcow2 new
	convert -O qcow2 -o cluster_size=512 $image.qcow2 new
	convert -O qcow2 -o cluster_size=2M,lazy_refcounts=on $image.qcow2 new
	convert -O qcow2 -o data_file=data.raw $image.qcow2 new
	convert -O qcow2 -o preallocation=metadata,extended_l2=on -S 0 $image.qcow2 new
done
convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 new
convert -O qcow2 broken.qcow2 new
convert --skip-broken-bitmaps -O qcow2 broken.qcow2 new
convert -q --skip-broken-bitmaps -O qcow2 broken.qcow2 new
convert -O qcow2 old.qcow2 new
convert -O qcow2 -o compat=0.10 source.qcow2 new
convert -O raw source.qcow2 new
q create -f qcow2 there.qcow2 5M
"$BYRE" convert --bitmaps -n -O qcow2 source.qcow2 there.qcow2 || fail "-n"
python3 bitmaps.py there.qcow2 >got.bitmaps
"$qemu10" qemu-img convert --bitmaps -O qcow2 source.qcow2 new
python3 bitmaps.py new >new.bitmaps
diff new.bitmaps got.bitmaps || fail "-n: other bitmaps"
cp there.qcow2 copy.qcow2
same convert --bitmaps -n -O qcow2 source.qcow2 there.qcow2
q create -f qcow2 larger.qcow2 6M
"$BYRE" convert --bitmaps -n -O qcow2 source.qcow2 larger.qcow2 2>log &&
	fail "bitmaps into a larger disk"
grep -q "of different sizes" log || fail "a larger disk is not told"

# Into an export, whose server serves it as the bytes that they are.
truncate -s 64M export.raw
start_byre export -f raw --name exp export.raw
"$BYRE" convert --bitmaps -O qcow2 source.qcow2 "$(uri export exp)" || fail "into an export"
stop_byre export
python3 bitmaps.py export.raw | diff new.bitmaps - || fail "into an export: other bitmaps"
qemu-img check -q export.raw || fail "into an export: check"

# QEMU goes on with them.
io there.qcow2 'write 2M 64k'
[[ $("$qemu10" qemu-img info there.qcow2) == *"name: late"* ]] || fail "QEMU has lost them"
qemu-img check -q there.qcow2 || fail "check after QEMU"
echo "$compared compared"
