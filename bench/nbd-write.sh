#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How many random 4 KiB writes a second does one server process take, and what does each cost it? An
# allocated qcow2 in the page cache; fio's nbd engine, 4 jobs with a connection each, 32 requests
# under way on each. CPU is the server's own, user and system, per write.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

image=$W/disk.qcow2
# shellcheck disable=SC2034  # lib.sh
writable=1
head -c 512M /dev/urandom >"$W/raw"
qemu-img convert -f raw -O qcow2 "$W/raw" "$image"
rm "$W/raw"
for run in $(seq "$runs"); do
	for peer in "${peers[@]}"; do
		start "$peer" "$image"
		measure_fio "$peer" "nbd+unix:///?socket=$sock" \
			--rw=randwrite --bs=4k --iodepth=32 --numjobs=4
		stop
	done
	[ -n "$json" ] || echo "run $run of $runs done" >&2
done
qemu-img check -q "$image"
table "writes 1/s more" "cpu us/write less"
