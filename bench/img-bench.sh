#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does a read cost through the image tools' `bench`? 4 KiB in order, 32 under way, io_uring, of
# a fully allocated qcow2: through the page cache, and past it (cache=none). byre-raw is byre on the
# same content as raw. floor is a bare ring that does the same reads of the raw file, and
# floor-batched the same, waiting for 8 completions at a time.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

cached_ops=$((seconds * 200000))
direct_ops=$((seconds * 20000))
head -c 512M /dev/urandom >"$W/disk.raw"
qemu-img convert -f raw -O qcow2 "$W/disk.raw" "$W/disk.qcow2"
sync "$W/disk.raw" "$W/disk.qcow2"

# reads PEER OPS CACHE
reads()
{
	local argv image=(-f qcow2 "$W/disk.qcow2") direct=()
	[ "$3" != none ] || direct=(--direct)
	case $1 in
	floor*)
		[ "$1" = floor ] || direct+=(--wait 8)
		measure_cpu "$2" "$programs/floor" "${direct[@]}" --count "$2" "$W/disk.raw"
		return ;;
	byre-raw) image=(-f raw "$W/disk.raw") ;;
	esac
	mapfile -t argv < <(img_command "$1")
	measure_cpu "$2" "${argv[@]}" bench -i io_uring -d 32 -t "$3" -c "$2" "${image[@]}"
}

for run in $(seq "$runs"); do
	for peer in byre byre-raw "${qemu_imgs[@]}" floor floor-batched; do
		cat "$W/disk.raw" "$W/disk.qcow2" >/dev/null
		read -r _ cached < <(reads "$peer" $cached_ops writeback)
		read -r rate direct < <(reads "$peer" $direct_ops none)
		echo "$peer $cached $direct $rate" >>"$W/results"
	done
	[ -n "$json" ] || echo "run $run of $runs done" >&2
done
table "cached 1/cpu-s more" "direct 1/cpu-s more" "direct_rate 1/s more"
