#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 5400
# Power cuts while qcow2 images are written, over a simulated disk: 30,000, or 1,000,000 in the long
# suite. A failure prints the seed of its case, and how to see it in detail.
#
#	BYRE_SIM_SEED=4000 tests/sim.sh         # other traces than always
. "$(dirname "$0")/lib.sh"

program=$(dirname "$BYRE")/../../sim/qcow2_crash_test
[ -x "$program" ] || fail "there is no $program: build first"
export BYRE_SIM_TRACES=512 BYRE_SIM_IMAGES=59
if [ "${SUITE:-}" = long ]; then
	export BYRE_SIM_TRACES=8192 BYRE_SIM_IMAGES=123
fi
status=0
CMOCKA_MESSAGE_OUTPUT=TAP "$program" >"$W/cases" 2>"$W/log" || status=$?
cat "$W/cases" "$W/log"
[ -z "${COUNTS:-}" ] || echo "$(grep -c '^ok' "$W/cases" || true)" \
	"$(grep -c '^not ok' "$W/cases" || true)" 0 >"$COUNTS"
exit "$status"
