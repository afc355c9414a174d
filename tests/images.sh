#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan
# limit: 600
# Images at the edges: odd sizes, none, 64 TiB; and those that byre must refuse, naming the reason.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3

# Sizes that are no multiple of a cluster, of 4 KiB, of anything but 512.
sizes="512 1024 65024 65536 66048 1049088 3000320"
n=0
args=()
for size in $sizes; do
	for cluster in 512 65536 2097152; do
		n=$((n + 1))
		random_file "$W/src.$n" "$size" $n
		qemu-img convert -f raw -O qcow2 -o cluster_size=$cluster "$W/src.$n" "$W/i.$n"
		args+=(--read-only --name "q$n" "$W/i.$n")
	done
	args+=(--name "r$size" -f raw --read-only "$W/src.$n")
done
start_byre odd "${args[@]}"
for i in $(seq $n); do
	same_content "$W/src.$i" raw "$(uri odd "q$i")"
done
for size in $sizes; do
	[ "$(nbdinfo --size "$(uri odd "r$size")")" = "$size" ] || fail "the size of r$size"
done
stop_byre odd

# A raw file whose size is no multiple of 512 is rounded up as QEMU does, and ends in zeroes.
random_file "$W/ragged" 5000
start_byre ragged -f raw --read-only "$W/ragged"
[ "$(nbdinfo --size "$(uri ragged)")" = 5120 ] || fail "the size of a file of 5000 bytes"
nbdcopy "$(uri ragged)" - | cmp - <(cat "$W/ragged"; head -c 120 /dev/zero) || fail "the ragged end"
stop_byre ragged

# Nothing, and very much.
qemu-img create -q -f qcow2 "$W/none.qcow2" 0
qemu-img create -q -f qcow2 "$W/huge.qcow2" 64T
qemu-io -f qcow2 -c "write -P 0x77 35184372088832 64k" -c "write -P 0x78 70368744112128 64k" \
	"$W/huge.qcow2" >"$W/log"
truncate -s 7T "$W/huge.raw"
start_byre extremes --read-only --name none "$W/none.qcow2" \
	--read-only --name huge "$W/huge.qcow2" --name raw -f raw --read-only "$W/huge.raw"
[ "$(nbdinfo --size "$(uri extremes none)")" = 0 ] || fail "an image of no bytes"
[ "$(nbdinfo --size "$(uri extremes huge)")" = 70368744177664 ] || fail "64 TiB"
qemu-io -r -f raw "$(uri extremes huge)" -c "read -P 0x77 35184372088832 64k" \
	-c "read -P 0x78 70368744112128 64k" -c "read -P 0 1T 64k" >"$W/log" 2>&1 ||
	{ cat "$W/log" >&2; fail "reads far out in 64 TiB"; }
stop_byre extremes

# changed NAME OFFSET HEX: a copy of a good image with a few bytes changed.
changed()
{
	cp "$W/i.20" "$W/$1.qcow2"
	poke "$W/$1.qcow2" "$2" "$3"
}

# What byre must not guess about is refused with the feature's name.
changed bit9 72 0000000000000200
byre_refuses "bit 9|unknown|unsupported" "$W/bit9.qcow2"
changed bit63 72 8000000000000000
byre_refuses "bit 63|unknown|unsupported" "$W/bit63.qcow2"
changed corrupt 72 0000000000000002
start_byre corrupt --read-only "$W/corrupt.qcow2"       # marked corrupt: reading is allowed
same_content "$W/src.20" raw "$(uri corrupt)"
stop_byre corrupt
changed dirty 72 0000000000000001
start_byre dirty --read-only "$W/dirty.qcow2"           # lazy refcounts: nothing to a reader
same_content "$W/src.20" raw "$(uri dirty)"
stop_byre dirty
changed version 4 00000004
byre_refuses "version" "$W/version.qcow2"
changed bits8 20 00000008
byre_refuses "cluster" "$W/bits8.qcow2"
changed bits22 20 00000016
byre_refuses "cluster" "$W/bits22.qcow2"
changed l1far 40 7ffffffffffff000
byre_refuses "L1" "$W/l1far.qcow2"
changed l1odd 40 0000000000030001
byre_refuses "L1" "$W/l1odd.qcow2"
changed l1size 36 00000000
byre_refuses "L1|size" "$W/l1size.qcow2"
changed size 24 7fffffffffffffff
byre_refuses "size|large|L1" "$W/size.qcow2"
changed headerlen 100 00020000
byre_refuses "header" "$W/headerlen.qcow2"
head -c 50 "$W/i.20" >"$W/short.qcow2"
byre_refuses "short|header|end" "$W/short.qcow2"
# encrypted OPTIONS...: QEMU times its key derivation, which may fail on a busy machine.
encrypted()
{
	qemu-img create -q --object "secret,id=s,data=x" "$@" 1M
}
wait_for 60 encrypted -f qcow2 \
	-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 "$W/luks.qcow2"
byre_refuses "luks|encrypt" "$W/luks.qcow2"
wait_for 60 encrypted -f luks -o key-secret=s,iter-time=10 "$W/plain.luks"
byre_refuses "luks" "$W/plain.luks"
for format in vmdk vdi vhdx qed; do
	qemu-img create -q -f $format "$W/foreign.$format" 1M
	byre_refuses "$format" "$W/foreign.$format"
done
byre_refuses "directory" "$W"
mkfifo "$W/pipe"
byre_refuses "pipe|regular|FIFO" "$W/pipe"
byre_refuses "no-such-snapshot" --snapshot no-such-snapshot "$W/i.20"

# Damage inside is an error where it is read, and only there.
cp "$W/i.20" "$W/damaged.qcow2"                         # 64 KiB clusters: L1, L2, then data
python3 - "$W/damaged.qcow2" <<-'END'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(40)
    l1 = struct.unpack(">Q", f.read(8))[0]
    f.seek(l1)
    l2 = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
    f.seek(l2 + 8 * 3)
    f.write(struct.pack(">Q", 1 << 63 | 0x7ffffffff0000))
END
start_byre damaged --read-only "$W/damaged.qcow2"
PYTHONPATH=$here python3 - "$(uri damaged)" "$W/src.20" <<-'END'
import errno, sys, nbd
c = nbd.Nbd(sys.argv[1])
want = open(sys.argv[2], "rb").read()
assert c.read(0, 3 << 16) == want[:3 << 16]
try:
    got = c.read(3 << 16, 65536)
    assert not any(got), "a cluster beyond the file's end read as something"
except nbd.NbdError as e:
    assert e.errno in (errno.EIO, errno.EINVAL), e
assert c.read(4 << 16, 65536) == want[4 << 16:5 << 16]
END
