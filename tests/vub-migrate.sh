#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long
# limit: 2400
# A guest that writes and verifies is migrated live from one QEMU to another, which share a device
# of byre's (V24) and its dirty log (V23): by QEMU as it is installed, and by QEMU 10 where
# tools/qemu10 has unpacked it.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-img cpio fio python3
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"

export BYRE
"$top/tools/guest/migrate.sh"
"$top/tools/guest/migrate.sh" -p packed=on,num-queues=2 -f raw
[ -x "$CACHE/qemu10/usr/bin/qemu-system-x86_64" ] || exit 0
export QEMU="$CACHE/qemu10/run qemu-system-x86_64"
"$top/tools/guest/migrate.sh" -n 2
"$top/tools/guest/migrate.sh" -p packed=on,num-queues=2
