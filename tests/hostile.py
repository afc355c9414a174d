#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Clients that break the NBD protocol in every way that comes to mind.

usage: hostile.py URI SEED ROUNDS      ends with 0 however the server reacts: it is to live, no more
"""
import random
import socket
import struct
import sys

import nbd

OPTION = struct.Struct(">8sII")
REQUEST = struct.Struct(">IHHQQI")
MAGIC = 0x25609513


def greeted(uri):
    s, _ = nbd.connect(uri, 5)
    nbd.receive(s, 18)
    s.sendall(struct.pack(">I", 3))
    return s


def option(opt, data=b"", length=None):
    return OPTION.pack(b"IHAVEOPT", opt, len(data) if length is None else length) + data


def garbage(uri, r):
    s, _ = nbd.connect(uri, 5)
    s.sendall(r.randbytes(r.randrange(1, 5000)))
    return s


def bad_options(uri, r):
    s = greeted(uri)
    for _ in range(r.randrange(1, 20)):
        s.sendall(option(r.choice([1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 77, r.getrandbits(32)]),
                         r.randbytes(int(2 ** r.uniform(0, 10)))))
    return s


def long_option(uri, r):
    s = greeted(uri)
    s.sendall(option(7, b"", 0xffffffff))
    for _ in range(200):
        s.sendall(bytes(65536))
    return s


def many_options(uri, r):
    s = greeted(uri)
    s.sendall(option(3) * 5000)
    return s


def cut_short(uri, r):
    s = greeted(uri)
    s.sendall(option(7, r.randbytes(30))[:r.randrange(1, 40)])
    return s


def bad_names(uri, r):
    s = greeted(uri)
    for declared in (0xffffffff, 5000, 4, 0):
        s.sendall(option(7, struct.pack(">I", declared) + b"abc" + struct.pack(">H", 65535)))
        s.sendall(option(10, struct.pack(">I", declared) + b"abc" + struct.pack(">I", 0xffffffff)))
    return s


def requests(uri, r):
    c = nbd.Nbd(uri, structured=r.random() < 0.5)
    for _ in range(r.randrange(1, 50)):
        command = r.choice([0, 1, 3, 4, 5, 6, 7, 8, 99])
        off = r.choice([0, c.size - 1, c.size, 2 ** 63, 2 ** 64 - 1, r.randrange(c.size)])
        length = r.choice([0, 1, 511, 4096, 2 ** 20, 2 ** 32 - 1])
        c.s.sendall(REQUEST.pack(MAGIC, r.getrandbits(16), command, r.getrandbits(64), off, length))
    return c.s


def bad_magic(uri, r):
    c = nbd.Nbd(uri)
    c.s.sendall(REQUEST.pack(MAGIC ^ 1, 0, 0, 1, 0, 512) + r.randbytes(100))
    return c.s


def never_reads(uri, r):
    c = nbd.Nbd(uri)
    c.s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    c.s.settimeout(0.2)
    for i in range(2000):
        c.s.sendall(REQUEST.pack(MAGIC, 0, 0, i, 0, 1 << 20))
    return c.s


def write_without_data(uri, r):
    c = nbd.Nbd(uri)
    c.s.sendall(REQUEST.pack(MAGIC, 0, 1, 1, 0, 65536) + bytes(r.randrange(65536)))
    return c.s


def gone_at_once(uri, r):
    c = nbd.Nbd(uri)
    for i in range(64):
        c.send(nbd.READ, r.randrange(c.size - 65536), 65536)
    return c.s


WAYS = [garbage, bad_options, long_option, many_options, cut_short, bad_names, requests, bad_magic,
        never_reads, write_without_data, gone_at_once]


def main(uri, seed, rounds):
    r = random.Random(int(seed))
    held = []
    for i in range(int(rounds)):
        way = WAYS[i % len(WAYS)]
        try:
            s = way(uri, r)
            if r.random() < 0.3:
                s.shutdown(socket.SHUT_WR)
            if r.random() < 0.5:
                s.settimeout(0.05)
                s.recv(1 << 16)
            held.append(s)                      # some stay open and silent for a while
        except (OSError, nbd.ProtocolError):
            pass
        if len(held) > 20:
            held.pop(r.randrange(20)).close()
    for s in held:
        s.close()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
