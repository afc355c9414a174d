#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1800
# takes: 80
# A daemon that serves a guest over vhost-user is killed and started again: the guest goes on
# without an error and without a lost write (V21), on rings of both kinds; and after a clean end. So
# does one whose memory a balloon takes away: no page of it is pinned. The long suite kills twenty
# times in a row, with raw and qcow2 disks.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 cpio fio python3

export BYRE
if [ "${SUITE:-}" = long ]; then
	for format in raw qcow2; do
		for packed in off on; do
			"$top/tools/guest/restart.sh" -n 20 -f $format \
				-p packed=$packed,num-queues=2
		done
	done
fi
"$top/tools/guest/restart.sh" -n 4 -k KILL,KILL,TERM -b
"$top/tools/guest/restart.sh" -n 2 -p packed=on,num-queues=2
