#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How long does it take to map a fragmented 1 TiB qcow2 (64 KiB clusters, every other one allocated:
# 16 million stretches)? byre map beside qemu-img map, plain and as JSON (where QEMU 7.2 prints
# less of each). Seconds of time and of processor time, the least of all runs.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

mapfile -t tools < <(img_peers)
"$bench/fragmented.py" "$W/disk.qcow2"
for output in human json; do
	"$bench/least.py" "$runs" "map --output=$output $W/disk.qcow2" "${tools[@]}"
done
