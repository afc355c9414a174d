#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 300
# byre writes qcow2 images of every kind: with a data file, raw or not, and what it holds is there
# for QEMU, too, which goes on writing.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/qcow2-lib.sh"
need qemu-img qemu-io
cd "$W"
size=$((24 << 20))
truncate -s $size empty.raw
random_file noise.raw $size
seed=100

# turns WHAT CLUSTER OPTIONS...: disk.qcow2, whose content is model.raw's, is written by byre, by
# QEMU, by byre.
turns()
{
	local what=$1 cluster=$2 n=100
	shift 2
	for turn in 1 2 3; do
		seed=$((seed + 1))
		python3 "$here/qcow2-write.py" $seed $size "$cluster" $n >commands
		if [ $turn = 2 ]; then
			io_all disk.qcow2 qcow2 commands
			io_all model.raw raw commands
		else
			write_byre disk.qcow2 commands --loops $((1 + seed % 2)) "$@"
		fi
		whole disk.qcow2 "$what, turn $turn"
		same_as_model disk.qcow2 "$what, turn $turn"
	done
}

# ---- data files ----

for cluster in 4096 65536 2097152; do
	for cache in writeback writethrough; do
		rm -f disk.qcow2 data.raw
		qemu-img create -q -f qcow2 -o cluster_size=$cluster,data_file=data.raw \
			disk.qcow2 $size
		cp empty.raw model.raw
		turns "a data file, $cluster, $cache" $cluster --cache $cache --discard on
		rm -f disk.qcow2 data.raw
		qemu-img create -q -f qcow2 -o cluster_size=$cluster \
			-o data_file=data.raw,data_file_raw=on disk.qcow2 $size
		cp empty.raw model.raw
		turns "a raw data file, $cluster, $cache" $cluster --cache $cache
		cmp model.raw data.raw || fail "a raw data file, $cluster: not what the guest sees"
		qemu-img info disk.qcow2 >info.log
		grep -q 'data file raw: true' info.log || fail "a raw data file is none any more"
	done
done
rm -f disk.qcow2 data.raw
qemu-img create -q -f qcow2 -o data_file=data.raw -b noise.raw -F raw disk.qcow2
cp noise.raw model.raw
turns "a data file over a backing file" 65536

# A disk that ends within a cluster: its data file ends with the disk.
rm -f disk.qcow2 data.raw
qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 1000448
start_byre end disk.qcow2
qemu-io -f raw -c 'write -P 7 999424 1024' -c 'write -z 990000 5000' "$(uri end)" >io.log
stop_byre end
[ "$(stat -c %s data.raw)" = 1000448 ] || fail "the data file goes on behind the end of the disk"
whole disk.qcow2 "a disk that ends within a cluster"
