#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# byre check and qemu-img check on 1 TiB of 64 KiB clusters, cached: in order, and in pieces of 2
# MiB in random order. Seconds (user + system, and by the clock) and peak memory.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

# measure PEER IMAGE: appends "PEER CPU CLOCK MiB".
measure()
{
	local argv
	mapfile -t argv < <(img_command "$1")
	/usr/bin/time -o "$W/time" -f '%U %S %e %M' "${argv[@]}" check -f qcow2 "$2" >/dev/null
	awk -v who="$1" '{ print who, $1 + $2, $3, $4 / 1024 }' "$W/time" >>"$W/results"
}

for kind in ordered fragmented; do
	rm -f "$W/results"
	python3 "$bench/tib_image.py" "$kind" "$W/$kind"
	for _ in $(seq "$runs"); do
		for peer in byre "${qemu_imgs[@]}"; do
			measure "$peer" "$W/$kind"
		done
	done
	rm "$W/$kind"
	[ -n "$json" ] || echo "--- $kind"
	table "cpu s less" "clock s less" "peak MiB less"
done
