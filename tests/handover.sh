#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long asan-long tsan-long
# limit: 900
# Heaps that are taken over and magazines that travel, for two minutes, among threads that are held
# up at every step.
. "$(dirname "$0")/lib.sh"

program=$(dirname "$BYRE")/../mem/handover_stress_test
[ -x "$program" ] || fail "there is no $program: build first"
export BYRE_MEM_STRESS=120 BYRE_MEM_SEED=${BYRE_MEM_SEED:-$RANDOM}
echo "BYRE_MEM_SEED=$BYRE_MEM_SEED"
"$program"
