#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 5400
# takes: 190
# Power cuts while qcow2 images are written, over a simulated disk: 23,000, or 1,000,000 in the long
# suite; while clusters are compressed; while damaged ones are repaired; and while new ones are
# filled, at every step. A failure prints the seed of its case, and how to see it in detail.
#
#	BYRE_SIM_SEED=4000 tests/sim.sh         # other traces than always
. "$(dirname "$0")/lib.sh"

programs=$(dirname "$BYRE")/../../sim
[ -x "$programs/qcow2_crash_test" ] || fail "there is no $programs/qcow2_crash_test: build first"
export BYRE_SIM_IMAGES=59
traces=400 packs=100 repairs=700 copies=90
if [ "${SUITE:-}" = long ]; then
	export BYRE_SIM_IMAGES=123
	traces=8192 packs=4000 repairs=30000 copies=3000
fi
status=0
export CMOCKA_MESSAGE_OUTPUT=TAP
BYRE_SIM_TRACES=$traces "$programs/qcow2_crash_test" >"$W/cases" 2>"$W/log" || status=$?
BYRE_SIM_TRACES=$packs BYRE_SIM_IMAGES=16 "$programs/pack_crash_test" \
	>>"$W/cases" 2>>"$W/log" || status=$?
BYRE_SIM_TRACES=$repairs "$programs/repair_crash_test" >>"$W/cases" 2>>"$W/log" || status=$?
BYRE_SIM_TRACES=$copies BYRE_SIM_IMAGES=3 "$programs/convert_crash_test" \
	>>"$W/cases" 2>>"$W/log" || status=$?
cat "$W/cases" "$W/log"
[ -z "${COUNTS:-}" ] || echo "$(grep -c '^ok' "$W/cases" || true)" \
	"$(grep -c '^not ok' "$W/cases" || true)" 0 >"$COUNTS"
exit "$status"
