#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1800
# takes: 80
# A real Debian boots from a disk that byre serves, gets to its multi-user target under systemd,
# and finds every program and library there as the packages have it.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-img debootstrap cpio

status=0
"$top/tools/guest/debian.sh" >"$W/made" || status=$?
[ $status != 77 ] || skip "cannot make the disk here"
[ $status = 0 ] || fail "the Debian disk was not made"
disk=$(tail -n 1 "$W/made")

# What the guest boots from is an empty overlay on it.
cp "$disk" "$W/base.qcow2"
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$W/debian.qcow2"
start_byre debian "$W/debian.qcow2"
"$top/tools/guest/boot.sh" -r /dev/vda -w ARRIVED -t 600 -m 768 -l "$W/console" "$(uri debian)" ||
	{ tail -n 30 "$W/console" >&2; fail "Debian does not boot"; }
grep -a "ARRIVED" "$W/console"
! grep -aE "ARRIVED WRONG|I/O error|EXT4-fs error" "$W/console" || fail "Debian reads wrong data"
