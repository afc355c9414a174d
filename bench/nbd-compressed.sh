#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How fast are random reads from a compressed qcow2 (zlib, 64 KiB clusters), for four clients at
# once? Most reads hit a cluster that nobody has just read: decompression is the work. BLOCK=64k
# in the environment reads whole clusters instead of 4 KiB.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

image=$W/disk.qcow2
# What disks hold: programs, libraries, texts.
tar -cf - -C / usr/lib usr/bin usr/share 2>/dev/null | head -c 512M >"$W/raw" || true
truncate -s 512M "$W/raw"
qemu-img convert -c -f raw -O qcow2 "$W/raw" "$image"
rm "$W/raw"
cat "$image" >/dev/null
for run in $(seq "$runs"); do
	for peer in "${peers[@]}"; do
		start "$peer" "$image"
		measure_fio "$peer" "nbd+unix:///?socket=$sock" \
			--rw=randread --bs="${BLOCK:-4k}" --iodepth=8 --numjobs=4
		stop
	done
	[ -n "$json" ] || echo "run $run of $runs done" >&2
done
table "reads 1/s more" "cpu us/read less"
