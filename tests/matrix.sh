#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long asan
# limit: 900
# takes: 30
# Every kind of qcow2 image that qemu-img makes, filled at random, reads through byre as it does
# through QEMU, byte for byte, with the same map, and the image tools say of it what qemu-img says.
# Pairs of features, under ASan; in the long suite also all combinations of what the read path
# depends on. tests/matrix.py has the features.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io qemu-storage-daemon python3

cover=pairs
case ${SUITE:-}-$BYRE in
long-*/build/*) cover=all ;;
esac
"$here/matrix.py" --byre "$BYRE" --dir "$W" --cover "${COVER:-$cover}" --seed "${SEED:-1}"
