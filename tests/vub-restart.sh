#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 900
# takes: 130
# A daemon that serves a guest over vhost-user is killed and started again: the guest goes on
# without an error and without a lost write (V21), on rings of both kinds; and after a clean end. So
# does one whose memory a balloon takes away: no page of it is pinned.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 cpio fio python3

export BYRE
"$top/tools/guest/restart.sh" -n 3
"$top/tools/guest/restart.sh" -n 2 -p packed=on,num-queues=2
"$top/tools/guest/restart.sh" -n 1 -k TERM
"$top/tools/guest/restart.sh" -n 1 -b
