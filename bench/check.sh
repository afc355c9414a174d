#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# bench/check.sh [-n RUNS] - byre check and qemu-img check on 1 TiB of 64 KiB clusters, cached: in
# order, and in pieces of 2 MiB in random order; and check -r all (rebuild) of the one in order with
# a refcount block lost and another used twice. Seconds (user + system, and by the clock) and peak
# memory; the medians of 5 runs, taken in turns.
set -eu -o pipefail
bench=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$bench")
BYRE=${BYRE:-$top/build/src/cmd/byre}
qemu10=${CACHE:-$top/.cache}/qemu10/run
runs=5
[ "${1:-}" != -n ] || runs=$2

W=$(mktemp -d "${TMPDIR:-/tmp}/byre-bench.XXXXXX")
trap 'rm -rf "$W"' EXIT
peers=(byre qemu-img)
[ ! -x "$qemu10" ] || peers+=(qemu10-img)

check()
{
	case $1 in
	byre) shift; "$BYRE" check "$@" ;;
	qemu-img) shift; qemu-img check "$@" ;;
	qemu10-img) shift; "$qemu10" qemu-img check "$@" ;;
	esac
}

# measure PEER IMAGE [OPTION]...: appends "PEER IMAGE CPU CLOCK KiB".
measure()
{
	export -f check
	export BYRE qemu10
	/usr/bin/time -o "$W/time" -f '%U %S %e %M' bash -c 'check "$@"' - "$@" >/dev/null 2>&1
	awk -v who="$1 $(basename "$2")" '{ print who, $1 + $2, $3, $4 }' "$W/time" >>"$W/results"
}

# Copies image $1 to $2, without block 100, and with block 5 as block 300, too.
damage()
{
	cp --sparse=always "$1" "$2"
	python3 - "$2" <<-'END'
		import struct
		import sys
		with open(sys.argv[1], "r+b") as f:
		    f.seek(48)
		    table = struct.unpack(">Q", f.read(8))[0]
		    f.seek(table + 8 * 5)
		    block = f.read(8)
		    for i, entry in ((100, bytes(8)), (300, block)):
		        f.seek(table + 8 * i)
		        f.write(entry)
	END
}

python3 "$bench/tib_image.py" ordered "$W/good"
for _ in $(seq "$runs"); do
	for peer in "${peers[@]}"; do
		damage "$W/good" "$W/rebuild"
		measure "$peer" "$W/rebuild" -r all
	done
done
rm "$W/good" "$W/rebuild"
for kind in ordered fragmented; do
	python3 "$bench/tib_image.py" "$kind" "$W/$kind"
	for _ in $(seq "$runs"); do
		for peer in "${peers[@]}"; do
			measure "$peer" "$W/$kind"
		done
	done
	rm "$W/$kind"
done
printf '%-12s %-12s %8s %8s %8s\n' peer image cpu_s clock_s peak_MiB
for kind in ordered fragmented rebuild; do
	for peer in "${peers[@]}"; do
		for field in 3 4 5; do
			awk -v p="$peer" -v k="$kind" -v f="$field" \
				'$1 == p && $2 == k { print $f }' "$W/results" | sort -n |
				awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
		done | paste -s -d ' ' | awk -v p="$peer" -v k="$kind" \
			'{ printf "%-12s %-12s %8.2f %8.2f %8.1f\n", p, k, $1, $2, $3 / 1024 }'
	done
done
