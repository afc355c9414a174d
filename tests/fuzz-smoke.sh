#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 2400
# takes: 85
# Every fuzz target runs for some seconds under ASan and UBSan, and finds nothing.
#
#	FUZZ_SECONDS=3600 tests/fuzz-smoke.sh
. "$(dirname "$0")/lib.sh"

seconds=2
[ "${SUITE:-}" != long ] || seconds=20
"$top/fuzz/run" all "${FUZZ_SECONDS:-$seconds}"
