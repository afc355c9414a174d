#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan tsan
# limit: 600
# What Cloud Hypervisor and crosvm say, in their order, is understood: byre answers each message as
# they expect it, and their guests read what they wrote, through pauses, resets, migration and
# reconnection.
. "$(dirname "$0")/lib.sh"
need qemu-img
replay=$(dirname "$BYRE")/../../tests/vub/replay
[ -x "$replay" ] || skip "there is no $replay"

truncate -s 1M "$W/nbd"
truncate -s 16M "$W/disk.raw"
qemu-img create -q -f qcow2 "$W/disk.qcow2" 16M
for format in raw qcow2; do
	start_byre disk --loops 2 --vhost-user "$W/disk.vu" --queues 2 -f $format \
		"$W/disk.$format" -f raw "$W/nbd"
	"$replay" "$W/disk.vu" || fail "$format"
	# Once more: nothing is left of the one before.
	"$replay" "$W/disk.vu" || fail "$format, again"
	! grep -q "warning" "$W/disk.log" || { cat "$W/disk.log" >&2; fail "byre complains"; }
	stop_byre disk
done
qemu-img check -q "$W/disk.qcow2" || fail "the image is damaged"
