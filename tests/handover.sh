#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long asan-long tsan-long
# limit: 1800
# Heaps that are taken over and magazines that travel, among threads that are held up at every step;
# then malloc() among threads that end, fork, and lose their heaps: two minutes of each.
. "$(dirname "$0")/lib.sh"

programs=$(dirname "$BYRE")/../mem
export BYRE_MEM_STRESS=120 BYRE_MEM_SEED=${BYRE_MEM_SEED:-$RANDOM}
echo "BYRE_MEM_SEED=$BYRE_MEM_SEED"
for program in handover_stress_test heap_stress_test; do
	[ -x "$programs/$program" ] || fail "there is no $program: build first"
	"$programs/$program"
done
