#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 3000
# takes: 55
# qcow2 images that byre writes hold what was written and nothing is wrong with them: clusters and
# refcounts of all sizes, both versions, with and without backing files, random writes, zeroes and
# discards; then QEMU writes them, then byre again. A byre that was killed leaves leaks at most,
# what was flushed is there, and the next one takes the leaks away.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/qcow2-lib.sh"
need qemu-img qemu-io fio
cd "$W"
size=$((24 << 20))

# back_and_forth SEED WHAT CLUSTER CREATE_OPTIONS...: byre, QEMU, byre.
back_and_forth()
{
	local seed=$1 what=$2 cluster=$3 n=120 loops
	shift 3
	[ "$cluster" -gt 4096 ] || n=60
	rm -f disk.qcow2
	qemu-img create -q -f qcow2 "$@" disk.qcow2 $size
	if [ $((seed % 2)) = 0 ]; then cp noise.raw model.raw; else cp empty.raw model.raw; fi
	loops=$((1 + seed % 3 / 2))
	take_turns good "$what" "$seed" "$cluster" $n --loops $loops \
		--cache "${modes[seed % ${#modes[@]}]}"
	qemu-img info disk.qcow2 >info.log
	! grep -q 'dirty\|corrupt: true' info.log || { cat info.log >&2; fail "$what: marked"; }
}

truncate -s $size empty.raw
random_file noise.raw $size
qemu-img convert -f raw -O qcow2 noise.raw noise.qcow2
modes=(writeback none unsafe writethrough directsync)

seed=1
for cluster in 512 4096 65536 2097152; do
	for options in compat=1.1 compat=0.10 refcount_bits=1 refcount_bits=64; do
		case $options in
		refcount*) [ "${SUITE:-}" = long ] || [ "$cluster" = 65536 ] ||
				[ "$cluster" = 512 ] || continue ;;
		esac
		for backing in '' '-b noise.raw -F raw' '' '-b noise.qcow2 -F qcow2'; do
			seed=$((seed + 1))
			# Even seeds have a backing file.
			case $((seed % 2))$backing in
			0 | 1-*) seed=$((seed + 1)) ;;
			esac
			[ "${SUITE:-}" = long ] || [ "$options" = compat=1.1 ] ||
				[ -n "$backing" ] || continue
			# shellcheck disable=SC2086  # words
			back_and_forth $seed "$cluster $options $backing" $cluster \
				-o cluster_size=$cluster,$options $backing
		done
	done
done

# ---- what qemu-img made of other things: compressed clusters, snapshots, preallocation ----

# after WHAT: two turns over disk.qcow2, whose content is noise.raw's.
after()
{
	cp noise.raw model.raw
	for turn in 1 2; do
		python3 "$here/qcow2-write.py" $((seed++)) $size 65536 100 >commands
		write_byre disk.qcow2 commands
		good disk.qcow2 "$1, turn $turn"
	done
}

qemu-img convert -c -f raw -O qcow2 noise.raw disk.qcow2
after "compressed clusters"
qemu-img convert -f raw -O qcow2 noise.raw disk.qcow2
qemu-img snapshot -c before disk.qcow2
after "a snapshot"
qemu-img snapshot -a before disk.qcow2
qemu-img compare -q disk.qcow2 noise.raw || fail "a snapshot was written to"
qemu-img convert -f raw -O qcow2 -o preallocation=metadata noise.raw disk.qcow2
after "preallocation"

# ---- what was reserved and not used is given back, and the file ends with what is in use ----

for cluster in 512 65536; do
	qemu-img create -q -f qcow2 -o cluster_size=$cluster disk.qcow2 64M
	start_byre end disk.qcow2
	for i in $(seq 0 90); do
		echo "write -P 1 $((i * 700))k 4k"
	done >commands
	io_all "$(uri end)" raw commands
	stop_byre end
	whole disk.qcow2 "the end"
	end=$(qemu-img check --output=json disk.qcow2 |
		python3 -c 'import json, sys; print(json.load(sys.stdin)["image-end-offset"])')
	[ "$(stat -c %s disk.qcow2)" = "$end" ] ||
		fail "clusters of $cluster: $(stat -c %s disk.qcow2) bytes, and the end is at $end"
done

# ---- zeros are found ----

qemu-img create -q -f qcow2 disk.qcow2 64M
start_byre zeroes --detect-zeroes unmap disk.qcow2
qemu-io -f raw -c 'write -P 0 0 32M' -c 'write -P 5 40M 64k' -c 'write -P 0 40M 64k' \
	-c 'read -P 0 0 64M' "$(uri zeroes)" >io.log
stop_byre zeroes
! grep -q failed io.log || { cat io.log >&2; fail "--detect-zeroes: content"; }
whole disk.qcow2 "--detect-zeroes"
[ "$(stat -c %b disk.qcow2)" -lt 4000 ] || fail "--detect-zeroes unmap wrote zeros"

# ---- fio ----

verify()
{
	fio --name=verify --ioengine=nbd --uri="$1" --rw=randrw --bsrange=512-64k --bs_unaligned=0 \
		--size=96M --io_size=48M --iodepth=16 --verify=crc32c --verify_backlog=64 \
		--fsync=32 --randseed=5 --group_reporting "${@:2}" >fio.log 2>&1 ||
		{ cat fio.log >&2; fail "fio"; }
}

qemu-img create -q -f qcow2 -b noise.qcow2 -F qcow2 disk.qcow2 256M
start_byre fio --loops 2 disk.qcow2
verify "$(uri fio)"
verify "$(uri fio)" --offset=128M --numjobs=2 --offset_increment=32M --size=24M --io_size=16M
stop_byre fio
whole disk.qcow2 fio

# ---- killed ----

for cluster in 4096 65536; do
	for backing in '' '-b noise.raw -F raw'; do
		rm -f disk.qcow2
		# shellcheck disable=SC2086  # words
		qemu-img create -q -f qcow2 -o cluster_size=$cluster $backing disk.qcow2 $size
		start_byre victim disk.qcow2
		for i in $(seq 1 40); do
			echo "write -P $i $((i * 300000)) 5000"
		done >commands
		echo flush >>commands
		for i in $(seq 41 60); do
			echo "write -P $i $((i * 300000)) 5000"
		done >>commands
		io_all "$(uri victim)" raw commands
		kill_byre victim disk.qcow2
		status=0
		qemu-img check disk.qcow2 >check.log 2>&1 || status=$?
		case $status in
		0 | 3) ;;
		*) cat check.log >&2; fail "killed, $cluster $backing: check ends with $status" ;;
		esac
		for i in $(seq 1 40); do
			echo "read -P $i $((i * 300000)) 5000"
		done >commands
		qemu-io -r -f qcow2 disk.qcow2 <commands >io.log 2>&1
		! grep -q 'failed\|error' io.log ||
			{ cat io.log >&2; fail "killed, $cluster $backing: flushed data is gone"; }
		start_byre next disk.qcow2
		qemu-io -f raw -c 'write -P 77 20M 64k' "$(uri next)" >io.log
		stop_byre next
		whole disk.qcow2 "killed and written again, $cluster $backing"
	done
done
