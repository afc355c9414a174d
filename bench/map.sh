#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How long does it take to map a fragmented 1 TiB qcow2 (64 KiB clusters, every other one allocated:
# 16 million stretches)? byre map beside qemu-img map, plain and as JSON (where QEMU 7.2 prints
# less of each). Seconds of time and of processor time, the least of all runs.
#	-n RUNS     (default 3)
set -eu -o pipefail
bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$bench")
[ ! -e "$top/tools/cache.sh" ] || . "$top/tools/cache.sh"
BYRE=${BYRE:-$top/build/src/cmd/byre}
runs=3
if [ "${1:-}" = -n ]; then
	runs=$2
fi
W=$(mktemp -d "${TMPDIR:-/tmp}/byre-bench.XXXXXX")
trap 'rm -rf "$W"' EXIT
peers=("byre:$BYRE" "qemu-img:qemu-img")
qemu10=${CACHE:-$top/.cache}/qemu10/run
[ ! -x "$qemu10" ] || peers+=("qemu10-img:$qemu10 qemu-img")

"$bench/fragmented.py" "$W/disk.qcow2"
for output in human json; do
	"$bench/least.py" "$runs" "map --output=$output $W/disk.qcow2" "${peers[@]}"
done
