#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long
# limit: 1800
# The hand-over and the inbox searched again with all that the machine can reorder: some eight
# million states.
. "$(dirname "$0")/lib.sh"

program=$(dirname "$BYRE")/../../model/protocol_test
[ -x "$program" ] || fail "there is no $program: build first"
BYRE_MODEL_LONG=1 BYRE_MODEL_SHOW=1 "$program"
