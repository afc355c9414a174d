#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long asan
# limit: 600
# takes: 40
# A real Linux on disks that byre serves reads what the host put there, and what it writes arrives;
# one byte changed in an image makes the same check fail.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 cpio debugfs

export BYRE
# That it would notice is shown once: not again with each sanitizer.
case $BYRE in
*san/*) "$top/tools/guest/check.sh"; exit ;;
esac
"$top/tools/guest/check.sh" --flip=chain
if [ "${SUITE:-}" = long ]; then
	for disk in compressed subclusters raw; do
		"$top/tools/guest/check.sh" --flip=$disk
	done
fi
