#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A small NBD client for the tests: fixed newstyle, structured replies, base:allocation.

It knows nothing of byre's code and checks the protocol as it goes: a reply that the specification
does not allow is a ProtocolError. Requests have any alignment; several may be under way.

usage: nbd.py size|read|map URI [OFFSET LENGTH]      read: the bytes go to standard output
"""
import errno
import os
import socket
import struct
import sys
import urllib.parse

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST = 1, 2, 4, 8, 16
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1, 2, 4, 8
ROTATIONAL, SEND_TRIM, SEND_ZERO, SEND_DF = 16, 32, 64, 128
CAN_MULTI_CONN, SEND_RESIZE, SEND_CACHE, SEND_FAST_ZERO = 256, 512, 1024, 2048
HOLE, IS_ZERO = 1, 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST = 1, 2, 3
OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = 6, 7, 8, 9, 10
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
REP_ERR = 1 << 31


class NbdError(OSError):
    """The server answered a request with an error."""


class ProtocolError(Exception):
    """The server broke the protocol, or the connection ended."""


def connect(uri, timeout=120):
    """A connected socket and the export's name for an nbd:// or nbd+unix:// URI."""
    u = urllib.parse.urlparse(uri)
    name = urllib.parse.unquote(u.path[1:])
    if u.scheme == "nbd+unix":
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(timeout)
        s.connect(urllib.parse.parse_qs(u.query)["socket"][0])
    else:
        s = socket.create_connection((u.hostname, u.port or 10809), timeout)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s, name


def receive(s, n):
    buf = bytearray(n)
    view = memoryview(buf)
    while n:
        got = s.recv_into(view[-n:], n)
        if not got:
            raise ProtocolError("the connection ended")
        n -= got
    return buf


class Request:
    """One that is under way. Chunks of several may come mixed."""

    def __init__(self, command, off, length):
        self.command, self.off, self.length = command, off, length
        self.got = bytearray(length) if command == READ else []
        self.covered = self.error = 0


class Nbd:
    def __init__(self, uri, structured=True, timeout=120):
        self.s, self.export = connect(uri, timeout)
        self.structured = self.context = None
        self.waiting = {}               # cookie: Request
        self.cookie = 0
        self.sizes = (1, 4096, 32 << 20)
        self._greet()
        if structured:
            self._structured()
        self._go()

    # ---- negotiation ----

    def _greet(self):
        magic, opt, flags = struct.unpack(">8s8sH", receive(self.s, 18))
        if magic != b"NBDMAGIC" or opt != b"IHAVEOPT" or not flags & 1:
            raise ProtocolError("not a fixed newstyle server")
        self.s.sendall(struct.pack(">I", flags & 3))

    def option(self, opt, data=b""):
        """Sends an option; returns its replies [(type, data)] up to the last one."""
        self.s.sendall(struct.pack(">8sII", b"IHAVEOPT", opt, len(data)) + data)
        replies = []
        while True:
            magic, got, typ, n = struct.unpack(">QIII", receive(self.s, 20))
            if magic != 0x3e889045565a9 or got != opt:
                raise ProtocolError("bad option reply")
            replies.append((typ, bytes(receive(self.s, n))))
            if typ == REP_ACK or typ & REP_ERR:
                return replies

    def _structured(self):
        self.structured = self.option(OPT_STRUCTURED)[-1][0] == REP_ACK
        if not self.structured:
            return
        name, query = self.export.encode(), b"base:allocation"
        data = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(query)) + query
        for typ, body in self.option(OPT_SET_META, data):
            if typ == REP_META:
                self.context = struct.unpack(">I", body[:4])[0]

    def _go(self):
        name = self.export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, 3)
        replies = self.option(OPT_GO, data)
        if replies[-1][0] != REP_ACK:
            raise NbdError(errno.ENOENT, f"export refused: {replies[-1]}")
        for typ, body in replies:
            if typ != REP_INFO:
                continue
            info = struct.unpack(">H", body[:2])[0]
            if info == 0:
                self.size, self.flags = struct.unpack(">QH", body[2:])
            elif info == 3:
                self.sizes = struct.unpack(">III", body[2:])

    # ---- requests ----

    def send(self, command, off=0, length=0, data=b"", flags=0):
        """Starts a request; returns its cookie for wait()."""
        self.cookie += 1
        self.waiting[self.cookie] = Request(command, off, length)
        self.s.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, self.cookie, off, length)
                       + data)
        return self.cookie

    def wait(self):
        """Takes one complete answer: (cookie, what was read or None). Raises NbdError."""
        while True:
            magic = struct.unpack(">I", receive(self.s, 4))[0]
            if magic == 0x67446698:
                return self._simple()
            if magic != 0x668e33ef or not self.structured:
                raise ProtocolError(f"bad reply magic {magic:#x}")
            flags, typ, cookie, n = struct.unpack(">HHQI", receive(self.s, 16))
            if cookie not in self.waiting:
                raise ProtocolError("answer to a request that was not made")
            self._chunk(typ, self.waiting[cookie], receive(self.s, n))
            if flags & 1:
                break
        req = self.waiting.pop(cookie)
        if req.error:
            raise NbdError(req.error, os.strerror(req.error))
        if req.command == READ and req.covered != req.length:
            raise ProtocolError(f"a read of {req.length} was answered with {req.covered} bytes")
        return cookie, (req.got if req.command in (READ, STATUS) else None)

    def _simple(self):
        error, cookie = struct.unpack(">IQ", receive(self.s, 12))
        if cookie not in self.waiting:
            raise ProtocolError("answer to a request that was not made")
        req = self.waiting.pop(cookie)
        if self.structured and req.command == READ and not error:
            raise ProtocolError("a simple reply to a read after structured replies were agreed")
        if error:
            raise NbdError(error, os.strerror(error))
        return cookie, (receive(self.s, req.length) if req.command == READ else None)

    def _chunk(self, typ, req, body):
        if typ & 0x8000:
            error = struct.unpack(">I", body[:4])[0]
            if not error:
                raise ProtocolError("an error chunk without an error")
            req.error = req.error or error
        elif req.command == READ and typ in (1, 2):
            at = struct.unpack(">Q", body[:8])[0] - req.off
            n = len(body) - 8 if typ == 1 else struct.unpack(">I", body[8:])[0]
            if n == 0 or at < 0 or at + n > req.length:
                raise ProtocolError("a chunk outside of its request")
            if typ == 1:
                req.got[at:at + n] = body[8:]
            req.covered += n
        elif req.command == STATUS and typ == 5:
            if struct.unpack(">I", body[:4])[0] != self.context:
                raise ProtocolError("status of a context that was not asked for")
            req.got += list(struct.iter_unpack(">II", body[4:]))
        elif typ != 0:
            raise ProtocolError(f"chunk type {typ} does not fit command {req.command}")

    def call(self, *args, **kwargs):
        cookie = self.send(*args, **kwargs)
        got, result = self.wait()
        if got != cookie:
            raise ProtocolError("another request was answered")
        return result

    def read(self, off, length):
        return self.call(READ, off, length)

    def read_many(self, ranges, depth=16):
        """Reads all (offset, length) of @ranges, @depth at a time; yields (offset, data)."""
        where = {}
        for off, length in ranges:
            if len(where) >= depth:
                cookie, data = self.wait()
                yield where.pop(cookie), data
            where[self.send(READ, off, length)] = off
        while where:
            cookie, data = self.wait()
            yield where.pop(cookie), data

    def write(self, off, data, flags=0):
        self.call(WRITE, off, len(data), bytes(data), flags)

    def flush(self):
        self.call(FLUSH)

    def trim(self, off, length, flags=0):
        self.call(TRIM, off, length, flags=flags)

    def zero(self, off, length, flags=0):
        self.call(ZERO, off, length, flags=flags)

    def status(self, off, length, flags=0):
        """[(length, flags)] for a prefix of the range, or all of it and more."""
        got = self.call(STATUS, off, length, flags=flags)
        if not got or any(n == 0 for n, _ in got):
            raise ProtocolError("an empty block status")
        if sum(n for n, _ in got[:-1]) >= length:
            raise ProtocolError("block status goes on behind its request")
        return got

    def map(self, step=1 << 31):
        """The whole disk as [(offset, length, flags)], neighbours with equal flags merged."""
        runs, off = [], 0
        while off < self.size:
            for n, flags in self.status(off, min(step, self.size - off) & 0xffffffff):
                n = min(n, self.size - off)
                if runs and runs[-1][2] == flags:
                    runs[-1] = (runs[-1][0], runs[-1][1] + n, flags)
                elif n:
                    runs.append((off, n, flags))
                off += n
        return runs

    def close(self):
        try:
            self.s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISC, 0, 0, 0))
        except OSError:
            pass
        self.s.close()


def main(args):
    if len(args) not in (2, 4):
        sys.exit(__doc__)
    nbd = Nbd(args[1])
    if args[0] == "size":
        print(nbd.size)
    elif args[0] == "map":
        for off, length, flags in nbd.map():
            print(off, length, flags)
    elif args[0] == "read":
        sys.stdout.buffer.write(nbd.read(int(args[2]), int(args[3])))
    else:
        sys.exit(__doc__)
    nbd.close()


if __name__ == "__main__":
    main(sys.argv[1:])
