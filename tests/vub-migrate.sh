#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long
# limit: 2400
# A guest that writes and verifies is migrated live from one QEMU to another, which share a device
# of byre's (V24) and its dirty log (V23): by QEMU as it is installed, if that can do it without
# harm, and by QEMU 10 where tools/qemu10 has unpacked it.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-img cpio fio python3
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"

export BYRE
tried=0

# migrate OPTIONS...: with $QEMU, or the one installed.
migrate()
{
	local status=0
	"$top/tools/guest/migrate.sh" "$@" || status=$?
	[ $status = 0 ] || [ $status = 77 ] || fail "migrate.sh $*: status $status"
	[ $status = 77 ] || tried=$((tried + 1))
}

migrate
migrate -p packed=on,num-queues=2 -f raw
if [ -x "$CACHE/qemu10/usr/bin/qemu-system-x86_64" ]; then
	export QEMU="$CACHE/qemu10/run qemu-system-x86_64"
	migrate -n 2
	migrate -p packed=on,num-queues=2
	migrate -p packed=on,num-queues=2 -f raw
fi
[ $tried -gt 0 ] || skip "no QEMU here migrates guests without harm"
