#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long asan
# limit: 600
# takes: 40
# Damaged qcow2 images, and good ones with a long past: byre refuses them or reads what QEMU reads;
# it neither dies nor hangs nor takes memory without end. tests/fuzz-images.py says more.
#
#	SEED=7 FUZZ_SECONDS=3600 FUZZ_KEEP=DIR tests/fuzz-images.sh
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io qemu-nbd python3

"$here/fuzz-images.py" --byre "$BYRE" --dir "$W" --seed "${SEED:-1}" \
	--seconds "${FUZZ_SECONDS:-40}" ${FUZZ_KEEP:+--keep "$FUZZ_KEEP"}
