#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Does a second loop on one image double what it gives? Each reads all of a qcow2 in the page cache
# in 4 KiB, 32 under way, on its own thread. Two loops need two processors that nobody else uses;
# what a read costs tells on a busy machine, too, whether they get in each other's way.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

ops=$((seconds * 200000))
head -c 512M /dev/urandom >"$W/raw"
qemu-img convert -f raw -O qcow2 "$W/raw" "$W/disk.qcow2"
rm "$W/raw"
cat "$W/disk.qcow2" >/dev/null
for run in $(seq "$runs"); do
	for loops in 1 2; do
		peer=byre
		[ $loops = 1 ] || peer=byre-$loops-loops
		"$programs/two-loops" --loops $loops --count $ops "$W/disk.qcow2" |
			python3 -c 'import json, sys
r = json.load(sys.stdin)
print(sys.argv[1], r["ops_per_s"], r["ops_per_cpu"])' $peer >>"$W/results"
	done
	[ -n "$json" ] || echo "run $run of $runs done" >&2
done
table "reads 1/s more" "reads_per_cpu 1/cpu-s more"
