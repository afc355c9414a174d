#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1800
# takes: 25
# Images with extended L2 entries that byre writes hold what was written, nothing is wrong with
# them, and they have the subclusters that QEMU's would: random writes, zeroes and discards, byre
# and QEMU in turns; over compressed clusters and a snapshot; small writes, subcluster by
# subcluster; a byre that was killed.
. "$(dirname "$0")/lib.sh"
. "$here/qcow2-lib.sh"
need qemu-img qemu-io
cd "$W"
size=$((24 << 20))

# turns SEED CLUSTER WHAT
turns()
{
	take_turns good "$3" "$1" "$2" 70 --loops $((1 + $1 % 2)) \
		--cache "${modes[$1 % ${#modes[@]}]}"
}

truncate -s $size empty.raw
random_file noise.raw $size
qemu-img convert -f raw -O qcow2 -o extended_l2=on noise.raw noise.qcow2
modes=(writeback none unsafe writethrough directsync)
seed=700
for cluster in 16384 65536 2097152; do
	for backing in '' '-b noise.raw -F raw' '-b noise.qcow2 -F qcow2'; do
		seed=$((seed + 1))
		# shellcheck disable=SC2086  # words
		qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=$cluster $backing \
			disk.qcow2 $size
		if [ -n "$backing" ]; then cp noise.raw model.raw; else cp empty.raw model.raw; fi
		turns $seed $cluster "$cluster $backing"
		rm disk.qcow2
	done
done

qemu-img convert -c -f raw -O qcow2 -o extended_l2=on noise.raw disk.qcow2
cp noise.raw model.raw
turns 801 65536 "compressed clusters"
qemu-img convert -f raw -O qcow2 -o extended_l2=on noise.raw disk.qcow2
qemu-img snapshot -c before disk.qcow2
cp noise.raw model.raw
turns 802 65536 "a snapshot"
qemu-img snapshot -a before disk.qcow2
qemu-img compare -q disk.qcow2 noise.raw || fail "a snapshot was written to"

# ---- no more is allocated than by QEMU, nor copied ----

# of IMAGE: which bytes are data, zeros or nowhere in it.
of()
{
	qemu-img map --output=json "$1" | python3 -c '
import json, sys
runs = []
for e in json.load(sys.stdin):
    kind = (e["depth"], e["zero"], e["data"])
    if runs and runs[-1][0] == kind:
        runs[-1][1] += e["length"]
    else:
        runs.append([kind, e["length"]])
print(*runs, sep="\n")'
}

python3 - >commands <<'END'
import random
r = random.Random(9)
for i in range(300):
    off = r.randrange(24 << 20)
    kind = r.random()
    if kind < 0.6:
        print(f"write -P {r.randrange(1, 255)} {off // 4096 * 4096} 4096")
    elif kind < 0.8:
        n = min(r.randrange(1, 9000), (24 << 20) - off)
        print(f"write -P {r.randrange(1, 255)} {off} {n}")
    elif kind < 0.9:
        off = min(off, 23 << 20)
        print(f"write -z {r.choice([off, off // 4096 * 4096])} {r.choice([8192, 900, 2500])}")
    else:
        print("flush")
END
for cluster in 65536 131072; do
	for backing in '' '-b noise.raw -F raw'; do
		for who in qemu byre; do
			rm -f $who.qcow2
			# shellcheck disable=SC2086  # words
			qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=$cluster \
				$backing $who.qcow2 $size
		done
		io_all qemu.qcow2 qcow2 commands
		write_byre byre.qcow2 commands
		qemu-img compare -q qemu.qcow2 byre.qcow2 || fail "$cluster $backing: content"
		of qemu.qcow2 >qemu.map
		of byre.qcow2 >byre.map
		diff qemu.map byre.map >&2 || fail "$cluster $backing: not QEMU's subclusters"
		# In blocks of 512 bytes: what is reserved is not taken.
		taken=$(stat -c %b byre.qcow2) theirs=$(stat -c %b qemu.qcow2)
		[ "$taken" -le $((theirs + 2048)) ] ||
			fail "$cluster $backing: $taken blocks, QEMU has $theirs"
	done
done

# ---- zeros are found ----

qemu-img create -q -f qcow2 -o extended_l2=on disk.qcow2 64M
start_byre zeroes --detect-zeroes unmap disk.qcow2
qemu-io -f raw -c 'write -P 5 0 64k' -c 'write -P 0 8k 8k' -c 'write -P 0 1M 32M' \
	-c 'read -P 0 8k 8k' -c 'read -P 5 16k 48k' "$(uri zeroes)" >io.log
stop_byre zeroes
! grep -q failed io.log || { cat io.log >&2; fail "--detect-zeroes: content"; }
[ "$(stat -c %b disk.qcow2)" -lt 4000 ] || fail "--detect-zeroes unmap wrote zeros"

# ---- killed ----

qemu-img create -q -f qcow2 -o extended_l2=on -b noise.raw -F raw disk.qcow2
start_byre victim disk.qcow2
for i in $(seq 1 60); do
	echo "write -P $i $((i * 300000)) 5000"
	[ "$i" != 40 ] || echo flush
done >commands
io_all "$(uri victim)" raw commands
kill_byre victim disk.qcow2
status=0
qemu-img check disk.qcow2 >check.log 2>&1 || status=$?
case $status in
0 | 3) ;;
*) cat check.log >&2; fail "killed: check ends with $status" ;;
esac
grep -o '^write.*' commands | head -n 40 | sed s/^write/read/ >reads
qemu-io -r -f qcow2 disk.qcow2 <reads >io.log 2>&1
! grep -q 'failed\|error' io.log || { cat io.log >&2; fail "killed: flushed data is gone"; }
start_byre next disk.qcow2
qemu-io -f raw -c 'write -P 77 20M 64k' "$(uri next)" >io.log
stop_byre next
qemu-img check disk.qcow2 >check.log 2>&1 || { cat check.log >&2; fail "killed and written again"; }
