#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long
# limit: 2400
# Debian with its root on byre, over vhost-user-blk, by QEMU as it is installed and by QEMU 10 where
# tools/qemu10 has unpacked it: fio verifies blocks of random sizes in files and on a bare disk,
# what is trimmed is given back, and the images and file systems are right afterwards.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-img debootstrap cpio fio debugfs e2fsck
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"

status=0
"$top/tools/guest/debian.sh" >"$W/made" || status=$?
[ $status != 77 ] || skip "cannot make the disk here"
[ $status = 0 ] || fail "the Debian disk was not made"
export BYRE
"$top/tools/guest/system.sh"
[ -x "$CACHE/qemu10/usr/bin/qemu-system-x86_64" ] || exit 0
export QEMU="$CACHE/qemu10/run qemu-system-x86_64"
"$top/tools/guest/system.sh" -p packed=on,num-queues=2
