#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How long does it take to compare two images of 1 GiB that are the same and in the page cache: raw
# with raw, qcow2 with raw, qcow2 with a fragmented qcow2? byre compare beside qemu-img compare.
# Seconds of time and of processor time, the least of all runs.
#	-n RUNS     (default 10)
set -eu -o pipefail
bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$bench")
[ ! -e "$top/tools/cache.sh" ] || . "$top/tools/cache.sh"
BYRE=${BYRE:-$top/build/src/cmd/byre}
runs=10
if [ "${1:-}" = -n ]; then
	runs=$2
fi
W=$(mktemp -d "${TMPDIR:-/tmp}/byre-bench.XXXXXX")
trap 'rm -rf "$W"' EXIT
peers=("byre:$BYRE" "qemu-img:qemu-img")
qemu10=${CACHE:-$top/.cache}/qemu10/run
[ ! -x "$qemu10" ] || peers+=("qemu10-img:$qemu10 qemu-img")

head -c 16M /dev/urandom >"$W/piece"
for _ in $(seq 64); do cat "$W/piece"; done >"$W/a.raw"
cp "$W/a.raw" "$W/b.raw"
qemu-img convert -O qcow2 "$W/a.raw" "$W/a.qcow2"
qemu-img convert -W -m 16 -O qcow2 -o cluster_size=4k "$W/a.raw" "$W/b.qcow2"
for pair in "a.raw b.raw" "a.qcow2 b.raw" "a.qcow2 b.qcow2"; do
	read -r one two <<<"$pair"
	"$bench/least.py" "$runs" "compare $W/$one $W/$two" "${peers[@]}"
done
