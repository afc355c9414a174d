#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long asan tsan-long
# limit: 600
# takes: 20
# byre without io_uring: by --backend posix, and by itself where the system forbids io_uring.
# What the other scripts ask of byre holds there too.
. "$(dirname "$0")/lib.sh"
need python3 nbdcopy

random_file "$W/source" $((4 << 20))
qemu-img convert -f raw -O qcow2 "$W/source" "$W/disk.qcow2"

has_ring()
{
	[ -n "$(find "/proc/$1/fd" -lname '*io_uring*')" ]
}

# Which is used: asked for, or found to be forbidden.
start_byre posix --backend posix --read-only "$W/disk.qcow2"
! has_ring "${byres[posix]}" || fail "--backend posix uses io_uring"
same_content "$W/source" raw "$(uri posix)"
stop_byre posix
if python3 -c 'import os, ctypes, sys; p = ctypes.create_string_buffer(120)
sys.exit(ctypes.CDLL(None).syscall(425, 4, p) < 0)'; then
	start_byre uring --read-only "$W/disk.qcow2"
	has_ring "${byres[uring]}" || fail "io_uring is there, and byre does not use it"
	same_content "$W/source" raw "$(uri uring)"
	stop_byre uring
else
	echo "this system has no io_uring: that byre uses it cannot be seen here"
fi
real=$BYRE
for why in EPERM ENOSYS; do
	printf '#!/bin/sh\nexec "%s" %s "%s" "$@"\n' "$here/no-uring.py" $why "$real" \
		>"$W/forbidden"
	chmod +x "$W/forbidden"
	BYRE=$W/forbidden
	start_byre $why --read-only "$W/disk.qcow2"
	! has_ring "${byres[$why]}" || fail "the filter does not work"
	same_content "$W/source" raw "$(uri $why)"
	stop_byre $why
	byre_refuses "io_uring" --backend uring "$W/disk.qcow2"
done

# And all the rest.
export BYRE=$real BYRE_SERVE_OPTIONS="--backend posix"
scripts="nbd-peers raw-write images"
[ "${SUITE:-}" != long ] || scripts="$scripts hostile matrix"
for script in $scripts; do
	echo "--- $script"
	SUITE=quick "$here/$script.sh" || fail "$script under --backend posix"
done
