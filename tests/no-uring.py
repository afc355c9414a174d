#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs a program for which io_uring is forbidden, as container runtimes do it: a seccomp filter.

usage: no-uring.py ERRNO PROGRAM [ARGUMENTS...]      ERRNO: EPERM, ENOSYS or EACCES
"""
import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
LOAD_NR = (0x20, 0, 0, 0)               # the system call's number
RETURN, ALLOW, RETURN_ERRNO = 0x06, 0x7fff0000, 0x00050000
JUMP_GE, JUMP_GT = 0x35, 0x25
URING_FIRST, URING_LAST = 425, 427      # io_uring_setup, _enter, _register


def forbid(code):
    rules = [LOAD_NR,
             (JUMP_GE, 0, 2, URING_FIRST),
             (JUMP_GT, 1, 0, URING_LAST),
             (RETURN, 0, 0, RETURN_ERRNO | code),
             (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *r) for r in rules))
    program = ctypes.create_string_buffer(
        struct.pack("H6xQ", len(rules), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or \
            libc.prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0):
        sys.exit(f"no-uring.py: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    forbid(getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
