#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How long from starting the server on a fully mapped 1 TiB qcow2 (64 KiB clusters, 128 MiB of L2
# tables) to the first sector read over NBD, and how much memory does it take by then (VmHWM)?
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

image=$W/disk.qcow2
qemu-img create -q -f qcow2 -o preallocation=metadata "$image" 1T
for _ in $(seq $((runs * 4))); do
	for peer in "${peers[@]}"; do
		rm -f "$sock"
		mapfile -t argv < <(command_of "$peer" "$image")
		"$bench/first_read.py" "$sock" "$peer" "${argv[@]}" >>"$W/results"
	done
done
table "first_read ms less" "peak_rss MiB less"
