#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long
# limit: 900
# The benchmarks run, and print a line for every peer. Their numbers are not looked at here.
. "$(dirname "$0")/lib.sh"
need fio qemu-nbd qemu-storage-daemon python3

export BYRE
for bench in nbd-read nbd-compressed open-1tib; do
	"$top/bench/$bench.sh" -n 1 -s 1 --json >"$W/$bench.json" || fail "bench/$bench.sh"
	for peer in byre qemu-nbd qemu-storage-daemon; do
		grep -q "\"peer\": \"$peer\"" "$W/$bench.json" ||
			fail "bench/$bench.sh says nothing of $peer"
	done
done

"$top/bench/vub.sh" -n 1 -s 1 --json >"$W/vub.json" || fail "bench/vub.sh"
for peer in byre byre-2-queues qemu-storage-daemon bare-ring; do
	grep -q "\"peer\": \"$peer\"" "$W/vub.json" || fail "bench/vub.sh says nothing of $peer"
done

build=$(dirname "$(dirname "$(dirname "$BYRE")")")
if [ -x "$build/bench/malloc/patterns" ]; then
	# A pattern, a program and a case; all others are run in the same way.
	for what in "compare.py -s 5 -o n-to-m" "programs.py -o sqlite" \
		"release.py -o scattered"; do
		# shellcheck disable=SC2086  # a command and its options
		"$top"/bench/malloc/$what -n 1 -b "$build" --json >"$W/malloc.json" 2>"$W/log" ||
			fail "bench/malloc/$what: $(cat "$W/log")"
		grep -q '"allocator": "glibc"' "$W/malloc.json" ||
			grep -q ^skipped: "$W/log" || fail "bench/malloc/$what says nothing"
	done
fi
if [ -x "$build/bench/region/replace" ]; then
	"$top/bench/region/compare.py" -q -n 1 -b "$build" --json "$top/src" >"$W/region.json" \
		2>/dev/null || fail "bench/region/compare.py"
	for label in region slab malloc; do
		grep -q "\"label\": \"$label\"" "$W/region.json" ||
			fail "bench/region/compare.py says nothing of $label"
	done
fi
