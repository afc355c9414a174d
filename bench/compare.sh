#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How long does it take to compare two images of 1 GiB that are the same and in the page cache: raw
# with raw, qcow2 with raw, qcow2 with a fragmented qcow2? byre compare beside qemu-img compare.
# Seconds of time and of processor time, the least of all runs.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

mapfile -t tools < <(img_peers)
head -c 16M /dev/urandom >"$W/piece"
for _ in $(seq 64); do cat "$W/piece"; done >"$W/a.raw"
cp "$W/a.raw" "$W/b.raw"
qemu-img convert -O qcow2 "$W/a.raw" "$W/a.qcow2"
qemu-img convert -W -m 16 -O qcow2 -o cluster_size=4k "$W/a.raw" "$W/b.qcow2"
for pair in "a.raw b.raw" "a.qcow2 b.raw" "a.qcow2 b.qcow2"; do
	read -r one two <<<"$pair"
	"$bench/least.py" "$runs" "compare $W/$one $W/$two" "${tools[@]}"
done
