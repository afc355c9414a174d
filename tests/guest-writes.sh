#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 2400
# takes: 90
# A real Linux writes to qcow2 disks that byre serves, over NBD and over vhost-user; what it wrote
# is there, for it and for QEMU.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 cpio debugfs e2fsck fio

export BYRE
"$top/tools/guest/writes.sh"
