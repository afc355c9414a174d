#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does a read cost at the bottom of a backing chain? 4 KiB in order, 32 under way, all in the
# page cache: of one qcow2; of 32 where the upper 31 are empty; and of 32 where each of the upper
# ones has a cluster in every 32 MiB. QEMU's tools on the same images.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

layers=32 disk=512
ops=$((seconds * 200000))
head -c ${disk}M /dev/urandom >"$W/raw"
qemu-img convert -f raw -O qcow2 "$W/raw" "$W/empty-1.qcow2"
rm "$W/raw"
ln "$W/empty-1.qcow2" "$W/scattered-1.qcow2"
for n in $(seq 2 $layers); do
	writes=()
	for at in $(seq 0 32 $((disk - 1))); do
		writes+=(-c "write -q -P $n $((at * 1024 + n * 960))k 64k")
	done
	for kind in empty scattered; do
		qemu-img create -q -f qcow2 -b "$kind-$((n - 1)).qcow2" -F qcow2 "$W/$kind-$n.qcow2"
	done
	qemu-io -f qcow2 "${writes[@]}" "$W/scattered-$n.qcow2"
done
cat "$W"/*.qcow2 >/dev/null
for run in $(seq "$runs"); do
	for tool in byre "${qemu_imgs[@]}"; do
		mapfile -t argv < <(img_command "$tool")
		for image in empty-1 empty-$layers scattered-$layers; do
			peer=$tool-$image n=$ops
			[ "$image" != empty-1 ] || peer=$tool
			[ "$tool" = byre ] || n=$((ops / 5))
			echo "$peer $(measure_cpu $n "${argv[@]}" bench -i io_uring -d 32 -c $n \
				-f qcow2 "$W/$image.qcow2")" >>"$W/results"
		done
	done
	[ -n "$json" ] || echo "run $run of $runs done" >&2
done
table "rate 1/s more" "reads 1/cpu-s more"
