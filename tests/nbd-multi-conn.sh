#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long asan tsan
# limit: 600
# Several connections, served by two loops, write a qcow2 image; one flush of any makes durable what
# all had been answered. So it is there when byre is killed, metadata and all: in images of every
# kind.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/qcow2-lib.sh"
need python3 qemu-img
cd "$W"
seed=${SEED:-$RANDOM}

for options in cluster_size=65536 cluster_size=512 extended_l2=on lazy_refcounts=on \
	data_file=data.raw data_file=data.raw,data_file_raw=on; do
	rm -f disk.qcow2 data.raw disk.raw
	qemu-img create -q -f qcow2 -o "$options" disk.qcow2 4M
	[ "$options" != cluster_size=65536 ] || qemu-img bitmap --add disk.qcow2 bitmap
	start_byre server --loops 2 disk.qcow2
	coproc client { "$here/nbd-multi-conn.py" write "$(uri server)" model "$seed"; }
	pid=$client_PID                 # which the shell forgets when the client has ended
	others+=("$pid")
	read -r -t 300 said <&"${client[0]}" || fail "$options, seed $seed: no answer"
	[ "$said" = written ] || fail "$options, seed $seed: '$said'"
	kill_byre server
	eval "exec ${client[1]}>&-"
	wait "$pid" || true
	qemu-img convert -U -f qcow2 -O raw disk.qcow2 disk.raw
	"$here/nbd-multi-conn.py" check disk.raw model || fail "$options, seed $seed"
done
