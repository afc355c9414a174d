#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Damaged and oddly made qcow2 images: what byre makes of them beside what QEMU does.

usage: fuzz-images.py --byre PROGRAM --dir DIR [--seed N] [--seconds N] [--cases A-B] [--keep DIR]

A case is known by seed and number; `--cases 17-17` does that one again. Two kinds take turns:

damage  an image out of BASES gets a few fields of its header, extensions, tables or compressed data
        changed. byre refuses it with a message or serves it: it does not crash, hang, or take
        memory without end; and what both byre and QEMU read without an error is the same.
life    an image is written, resized, snapshotted, rebased, committed and amended at random. It is
        good, so all of it must read as in QEMU, at any offset and length, with the same map.

A failure prints its seed and number, and copies the image to --keep. What only one of the two
refuses to open, or to read, is counted and shown with --verbose: damage may be judged either way.
"""
import argparse
import collections
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

import matrix
import nbd

MIB = 1 << 20
# Name, options of qemu-img create, disk size, and what else is done to it.
BASES = [
    ("v3-64k", "", 3 * MIB, ""),
    ("v2-64k", "compat=0.10", 3 * MIB, ""),
    ("v3-512", "cluster_size=512", MIB, "snapshot"),
    ("v2-512", "cluster_size=512,compat=0.10", MIB, "backing snapshot"),
    ("v3-4k", "cluster_size=4096,refcount_bits=1", 2 * MIB, "backing"),
    ("v3-2m", "cluster_size=2M", 9 * MIB, ""),
    ("sub-16k", "cluster_size=16k,extended_l2=on", 2 * MIB, "backing"),
    ("sub-64k", "extended_l2=on", 3 * MIB, "snapshot compress"),
    ("zlib-64k", "", 2 * MIB, "compress backing"),
    ("zlib-4k", "cluster_size=4096", MIB, "compress backing"),
    ("zlib-2m", "cluster_size=2M", 9 * MIB, "compress"),
    ("zstd-64k", "compression_type=zstd", 2 * MIB, "compress"),
    ("zstd-4k", "cluster_size=4k,compression_type=zstd", MIB, "compress snapshot"),
    ("zstd-512", "cluster_size=512,compression_type=zstd", MIB, "compress snapshot"),
    ("snap-64k", "", 2 * MIB, "snapshot"),
    ("snap-v2", "compat=0.10,cluster_size=4k", 2 * MIB, "snapshot"),
    ("data", "data_file=%s/data.raw", 2 * MIB, ""),
    ("data-raw", "data_file=%s/data.raw,data_file_raw=on,cluster_size=4k", MIB, ""),
    ("bitmap", "lazy_refcounts=on", 2 * MIB, "bitmap backing"),
    ("huge", "cluster_size=512", 12 << 30, ""),
    ("huge-2m", "cluster_size=2M", 60 << 40, ""),
]
HEADER = [(4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4),
          (60, 4), (64, 8), (72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1)]
SNAPSHOT = [(0, 8), (8, 4), (12, 2), (14, 2), (32, 4), (36, 4), (40, 8)] + 3 * [(48, 8)]
HOST_OFFSET = 0x00fffffffffffe00
READ_MAX = 10 * MIB             # of a larger disk only parts are read
MEMORY_MAX = 300 << 10          # KiB
WAIT = 120                      # seconds; what takes longer hangs


class Finding(Exception):
    """byre did what it must not do."""


def run(*args):
    try:
        p = subprocess.run(args, capture_output=True, text=True, errors="replace", check=False,
                           timeout=WAIT)
    except subprocess.TimeoutExpired as e:
        raise RuntimeError(str(e)) from None
    if p.returncode:
        raise RuntimeError(f"{' '.join(args)[:2000]}\n{p.stdout[-1000:]}{p.stderr[-1000:]}")


def qemu_io(path, commands):
    for i in range(0, len(commands), 50):
        args = [a for c in commands[i:i + 50] for a in ("-c", c)]
        run("qemu-io", "-t", "unsafe", "-f", "qcow2", path, *args)


# ---- servers ----


class Server:
    """A program that serves one image; self.p is None where it refused."""

    def __init__(self, argv, sock, log):
        self.sock, self.log = sock, log
        if os.path.exists(sock):
            os.unlink(sock)
        with open(log, "wb") as f:
            self.p = subprocess.Popen(argv, stdout=f, stderr=f, stdin=subprocess.DEVNULL)
        self.status = None
        end = time.monotonic() + WAIT
        while True:
            try:
                self.client(structured=False).close()   # QEMU listens before it opens
                return
            except (OSError, nbd.ProtocolError):
                pass
            self.status = self.p.poll()
            if self.status is not None:
                self.p = None
                return
            if time.monotonic() > end:
                self.p.kill()
                self.p.wait()
                raise Finding(f"{argv[0]} neither serves nor ends: {self.text()}")
            time.sleep(0.004)

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()[-6000:]

    def client(self, structured=True):
        return nbd.Nbd(f"nbd+unix:///?socket={self.sock}", structured, timeout=WAIT)

    def memory(self):
        """The most that was resident, in KiB."""
        try:
            with open(f"/proc/{self.p.pid}/status", encoding="ascii") as f:
                return next((int(s.split()[1]) for s in f if s.startswith("VmHWM")), 0)
        except OSError:
            return 0

    def stop(self):
        if not self.p:
            return
        self.p.send_signal(signal.SIGTERM)
        try:
            self.status = self.p.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.status = self.p.wait()
            raise Finding(f"SIGTERM does not end it: {self.text()}") from None


def start_byre(args, path, snapshot):
    argv = [args.byre, "serve", "--nbd", f"unix:{args.dir}/byre.sock", "-f", "qcow2",
            "--read-only"]
    argv += os.environ.get("BYRE_SERVE_OPTIONS", "").split()
    argv += (["--snapshot", snapshot] if snapshot else []) + [path]
    return Server(argv, f"{args.dir}/byre.sock", f"{args.dir}/byre.log")


def start_qemu(args, path, snapshot):
    argv = ["qemu-nbd", "-r", "-t", "-e", "4", "-f", "qcow2", "-k", f"{args.dir}/qemu.sock"]
    argv += (["-l", f"snapshot.name={snapshot}"] if snapshot else []) + [path]
    return Server(argv, f"{args.dir}/qemu.sock", f"{args.dir}/qemu.log")


def read_all(c, ranges):
    """{offset: bytes, or an errno}; several requests under way."""
    got, where = {}, {}

    def take():
        before = set(c.waiting)
        try:
            cookie, data = c.wait()
        except nbd.NbdError as e:
            cookie, data = (before - set(c.waiting)).pop(), e.errno
        got[where.pop(cookie)] = data

    for off, length in ranges:
        if len(where) >= 16:
            take()
        where[c.send(nbd.READ, off, length)] = off
    while where:
        take()
    return got


def end_byre(server, is_sanitized):
    """Stops it; a Finding unless all went as it should."""
    memory = server.memory() if server.p else 0
    is_served = server.p is not None
    server.stop()
    text = server.text()
    if "Sanitizer" in text or "runtime error:" in text:
        raise Finding(f"a sanitizer's report:\n{text}")
    if is_served and server.status:
        raise Finding(f"byre ended with status {server.status}:\n{text}")
    if not is_served and server.status != 1:
        raise Finding(f"byre refused with status {server.status}:\n{text}")
    if not is_served and not text.startswith("byre: "):
        raise Finding(f"byre refused without a message:\n{text}")
    if memory > MEMORY_MAX * (2 if is_sanitized else 1):
        raise Finding(f"byre took {memory} KiB")


# ---- images to damage ----


def noise(r, n):
    """Data that compresses to about a half."""
    return bytes(r.choices(b"abcdefgh\0\0\0\0\0", k=n))


def fill(path, size, cluster, r, extra, pattern):
    ops = []
    for _ in range(14):
        off = r.randrange(0, min(size, 4 * MIB), 512)
        length = min(512 * r.randrange(1, 200), size - off, 100 << 10)
        ops.append(r.choice([f"write -s {pattern} {off} {length}"] * 3 +
                            [f"write -z {off} {length}", f"write -z -u {off} {length}"]))
    if size > 1 << 32:
        ops += [f"write -P {i + 1} {size - 4096 - size * i // 9 // 512 * 512} 4096"
                for i in range(9)]
    done = []
    if "compress" in extra:
        n = min(size // cluster, 60)
        done = [f"write -c -s {pattern} {k * cluster} {min(cluster, size - k * cluster)}"
                for k in sorted(r.sample(range(size // cluster), n)) if k % 3]
    qemu_io(path, done)
    if done:
        ops = ops[:4]
    if "snapshot" in extra:
        qemu_io(path, ops[:7])
        run("qemu-img", "snapshot", "-c", "first", path)
        run("qemu-img", "snapshot", "-c", "second", path)
    qemu_io(path, ops)
    if "bitmap" in extra:
        run("qemu-img", "bitmap", "--add", path, "b0")


class Base:
    """A good image, and a working copy that is damaged and made good again."""

    def __init__(self, n, folder, seed):
        self.name, options, self.size, self.extra = BASES[n]
        r = random.Random(f"{seed}/base/{n}")
        self.dir = os.path.join(folder, "base-" + self.name)
        os.mkdir(self.dir)
        self.path = os.path.join(self.dir, "image.qcow2")
        pattern = os.path.join(folder, "pattern")
        options = options.replace("%s", self.dir)
        args = ["-o", options] if options else []
        if "backing" in self.extra:
            run("qemu-img", "create", "-q", "-f", "qcow2", f"{self.dir}/base.qcow2",
                str(self.size - 66 * 512))
            qemu_io(f"{self.dir}/base.qcow2", [f"write -s {pattern} 0 {MIB // 2}",
                                               f"write -P 99 {self.size - 100000 & -512} 64k"])
            args += ["-b", "base.qcow2", "-F", "qcow2"]
        run("qemu-img", "create", "-q", "-f", "qcow2", *args, self.path, str(self.size))
        with open(self.path, "rb") as f:
            self.cluster = 1 << struct.unpack(">I", f.read(24)[20:])[0]
        fill(self.path, self.size, self.cluster, r, self.extra, pattern)
        self.look()

    def read(self, off, n):
        with open(self.path, "rb") as f:
            f.seek(off)
            return f.read(n)

    def table(self, off, entries, most):
        data = self.read(off, 8 * min(entries, most))
        return [(off + 8 * i, v) for i, (v,) in enumerate(struct.iter_unpack(">Q", data))]

    def look(self):
        """Finds what there is to damage: [(offset, width)] by its kind."""
        h = self.read(0, 112)
        version, l1_entries, l1_off, reftable = (
            struct.unpack(f, h[a:b])[0] for f, a, b in
            ((">I", 4, 8), (">I", 36, 40), (">Q", 40, 48), (">Q", 48, 56)))
        self.file_size = os.path.getsize(self.path)
        header_end = 72 if version == 2 else struct.unpack(">I", h[100:104])[0]
        self.extension_at = header_end
        f = {"header": [x for x in HEADER if x[0] + x[1] <= header_end]}
        f["extension"] = [(a, 4) for a in range(header_end, header_end + 96, 4)]
        f["extension"] += [(a, 1) for a in range(header_end, header_end + 96)]
        l1 = [x for x in self.table(l1_off, l1_entries, 1 << 22) if x[1]]
        f["l1"] = [(a, 8) for a, _ in l1] + [(l1_off, 8)]
        f["l2"], f["compressed"] = [], []
        is_extended = version == 3 and h[79] & 16
        for _, entry in l1[:12]:
            l2 = self.table(entry & HOST_OFFSET, self.cluster // 8, 4096)
            f["l2"] += [(a, 8) for a, v in l2 if v] + [(l2[0][0], 8)]
            for _, v in l2[::2 if is_extended else 1]:
                if v >> 62 & 1:
                    bits = 62 - (self.cluster.bit_length() - 9)
                    off = v & (1 << bits) - 1
                    f["compressed"] += [(off + k, 1) for k in (0, 1, 2, 3, 4, 5, 6, 9, 17, 40, 300)]
        f["refcounts"] = [(reftable, 8)]
        count, at = struct.unpack(">IQ", h[60:72])
        f["snapshot"] = [(at + o, w) for o, w in SNAPSHOT] if count else []
        self.fields = {k: [x for x in v if sum(x) <= self.file_size] for k, v in f.items()}
        self.fields = {k: v for k, v in self.fields.items() if v}


def value(r, base, old, width):
    top = 1 << 8 * width
    c = base.cluster
    v = r.choice([
        lambda: old ^ 1 << r.randrange(8 * width),
        lambda: old ^ 1 << r.randrange(8 * width) ^ 1 << r.randrange(8 * width),
        lambda: r.choice([0, 1, 2, 3, 7, 8, 9, 21, 22, 63, 64, 104, 112, 255, 256, 511, 512,
                          1023, 1024, 65535, 65536]),
        lambda: top - r.choice([1, 2, 8, 512, c]),
        lambda: top >> 1,
        lambda: (top >> 1) - r.choice([1, 512, c]),
        lambda: old + r.choice([-1, 1, 512, -512, c, -c, 8, -8]),
        lambda: base.file_size + r.choice([0, -1, -512, -c, c, 1 << 40]) & -r.choice([1, 512, c]),
        lambda: (old & ~HOST_OFFSET) | r.randrange(0, base.file_size, min(c, base.file_size)),
        lambda: old ^ 1 << r.choice([62, 63, 0, 9]),
        lambda: old | (1 << r.randrange(40, 56)),
        lambda: r.getrandbits(8 * width),
        lambda: 1 << r.randrange(8 * width),
        lambda: r.getrandbits(8 * width) >> r.randrange(8 * width),
    ])()
    return v % top


def damages(base, r, is_snapshot):
    """[(offset, bytes)] to write, and a length to cut the file to or None."""
    writes = []
    for i in range(r.choice([1, 1, 1, 2, 2, 3, 5, 12])):
        kind = "snapshot" if is_snapshot and not i else r.choice(list(base.fields))
        off, width = r.choice(base.fields[kind])
        old = int.from_bytes(base.read(off, width), "big")
        if kind in ("l1", "l2") and r.random() < 0.3:      # as another entry has it
            new = int.from_bytes(base.read(r.choice(base.fields[r.choice(["l1", "l2"])])[0], 8),
                                 "big")
        else:
            new = value(r, base, old, width)
        writes.append((off, new.to_bytes(width, "big")))
        if kind == "compressed" and r.random() < 0.3:
            writes.append((off, r.randbytes(r.randrange(1, 200))))
    if r.random() < 0.1:                                    # everything after the header moves
        at, n = base.extension_at, r.choice([1, 4, 8, 16])
        old = base.read(at, 512)
        ext = struct.pack(">II", r.choice([0x44415441, 0xe2792aca, 0x6803f857, 0x23852875,
                                           0x0537be77, r.getrandbits(32)]),
                          r.choice([0, 8, 1023, 1024, 1 << 31, 0xffffffff, r.randrange(600)]))
        writes.append((at, ext + old[n:]))
    cut = r.randrange(base.file_size + 1) if r.random() < 0.05 else None
    return writes, cut


class Damage:
    """The working copy, damaged inside the with block."""

    def __init__(self, base, r, is_snapshot):
        self.base = base
        self.writes, self.cut = damages(base, r, is_snapshot)
        self.undo = []

    def __enter__(self):
        b = self.base
        with open(b.path, "r+b") as f:
            for off, data in self.writes:
                f.seek(off)
                self.undo.append((off, f.read(len(data))))
                f.seek(off)
                f.write(data)
            f.flush()
            if self.cut is not None:
                f.seek(self.cut)
                self.undo.append((self.cut, f.read()))
                f.truncate(self.cut)
        return self

    def __exit__(self, *_):
        with open(self.base.path, "r+b") as f:
            for off, data in reversed(self.undo):
                f.seek(off)
                f.write(data)
            f.truncate(self.base.file_size)

    def text(self):
        return " ".join(f"{off:#x}={data.hex()[:40]}" for off, data in self.writes) + \
            (f" cut={self.cut}" if self.cut is not None else "")


def some_ranges(size, base, r):
    """What to read of a disk: all of it in pieces, or parts of a large one."""
    if not size:
        return []
    step = min(max(base.cluster, 4096), 65536)
    if size <= READ_MAX:
        return [(off, min(step, size - off)) for off in range(0, size, step)]
    places = {0, size - min(size, step), size // 2}
    places |= {k * step for k in range(32)} | {r.randrange(size) for _ in range(8)}
    places |= {(1 << r.randrange(9, size.bit_length())) % size for _ in range(8)}
    coverage = base.cluster * (base.cluster // 8)
    places |= {k * coverage for k in range(16)}
    return [(p, min(step, size - p)) for p in sorted(places) if p < size]


def compare(got, truth, counts):
    """Both are what read_all() returns."""
    for off, data in got.items():
        other = truth.get(off)
        if isinstance(data, int) or isinstance(other, int):
            if isinstance(data, int) != isinstance(other, int):
                counts["reads that fail only in " + ("byre" if isinstance(data, int)
                                                     else "QEMU")] += 1
        elif other is not None and data != other:
            at = next((k for k, (a, b) in enumerate(zip(data, other)) if a != b), len(other))
            raise Finding(f"byte {off + at} differs from what QEMU reads "
                          f"({data[at:at + 8].hex()}, {other[at:at + 8].hex()})")


def map_some(c):
    """Asks for the map, of a large disk for parts: errors are fine, silence is not."""
    off = 0
    for i in range(100):
        if off >= c.size:
            return
        try:
            off += sum(n for n, _ in c.status(off, min(c.size - off, 64 * MIB << min(i // 8, 5))))
        except nbd.NbdError:
            off += 65536


def serve_damaged(args, base, snapshot, r, counts, note):
    byre = start_byre(args, base.path, snapshot)
    qemu = None
    try:
        if not byre.p:
            why = byre.text().splitlines()[:1]
            end_byre(byre, args.is_sanitized)
            counts["byre refuses"] += 1
            if args.verbose:
                qemu = start_qemu(args, base.path, snapshot)
                if qemu.p:
                    note("only byre refuses", f"{why}")
            return
        qemu = start_qemu(args, base.path, snapshot)
        counts["byre serves"] += 1
        c = byre.client()
        ranges = some_ranges(c.size, base, r)
        if not qemu.p:
            note("only QEMU refuses", qemu.text().splitlines()[:1])
        else:
            q = qemu.client(structured=False)   # else QEMU hangs up after an error
            if c.size != q.size:
                note("sizes", f"{c.size} {q.size}")
                ranges = [x for x in ranges if sum(x) <= q.size]
            truth = read_all(q, ranges)
        got = read_all(c, ranges)
        map_some(c)
        c.close()
        if qemu.p:
            q.close()
            one = collections.Counter()
            compare(got, truth, one)
            for k in one:
                note(k, (byre.text().splitlines()[-1:], qemu.text().splitlines()[-1:]))
        end_byre(byre, args.is_sanitized)
    except (TimeoutError, nbd.ProtocolError, ConnectionError) as e:
        time.sleep(0.3)
        is_alive = byre.p and byre.p.poll() is None
        raise Finding(f"{e!r}; byre {'lives' if is_alive else 'died'}:\n{byre.text()}\n"
                      f"{qemu.text() if qemu else ''}") from None
    finally:
        for s in (byre, qemu):
            if s and s.p:
                s.p.kill()
                s.p.wait()


def damage_case(args, bases, r, counts):
    n = r.randrange(len(BASES))
    base = bases.get(n)
    if not base:
        base = bases[n] = Base(n, args.dir, args.seed)
    snapshot = "first" if "snapshot" in base.extra and r.random() < 0.5 else None
    with Damage(base, r, snapshot and r.random() < 0.5) as d:
        what = f"{base.name}{' (snapshot)' if snapshot else ''}: {d.text()}"

        def note(kind, text):
            counts[kind] += 1
            if args.verbose:
                print(f"  {args.number}: {kind}: {text} [{what[:200]}]", flush=True)
        try:
            serve_damaged(args, base, snapshot, r, counts, note)
        except Finding as e:
            if args.keep:
                shutil.copytree(base.dir, f"{args.keep}/{args.seed}-{args.number}",
                                dirs_exist_ok=True)
            raise Finding(f"{what}\n{e}") from None


# ---- lives ----


class Life:
    """A good image with a past."""

    def __init__(self, folder, r):
        self.r, self.dir = r, folder
        self.pattern = os.path.join(os.path.dirname(folder), "pattern")
        self.path = f"{folder}/top.qcow2"
        self.done, self.snapshots = [], []
        self.cluster = r.choice([512, 1024, 4096, 16384, 65536, 65536, 262144, 2 * MIB])
        sizes = [512 * r.randrange(1, 6000)] * 6
        self.size = r.choice(sizes + [r.randrange(1 << 30, 1 << 35)] * (self.cluster >= 65536))
        self.size &= -512
        self.has_backing = False
        self.options = [f"cluster_size={self.cluster}"]
        self.is_v2 = r.random() < 0.2
        if self.is_v2:
            self.options.append("compat=0.10")
        else:
            self.options += r.sample(["lazy_refcounts=on", "refcount_bits=64",
                                      "compression_type=zstd"], r.randrange(3))
            if self.cluster >= 16384 and r.random() < 0.4:
                self.options.append("extended_l2=on")

    def step(self, *args):
        self.done.append(" ".join(args))
        run(*args)

    def backing(self, name):
        r = self.r
        size = max(512, int(self.size * r.choice([0.3, 0.9, 1, 1.3])) & -512)
        fmt = r.choice(["raw", "qcow2", "qcow2"])
        path = f"{self.dir}/{name}"
        self.step("qemu-img", "create", "-q", "-f", fmt, path, str(size))
        ops = [f"write -P {r.randrange(1, 255)} {o} {min(512 * r.randrange(1, 300), size - o)}"
               for o in (r.randrange(0, min(size, 8 * MIB), 512) for _ in range(6))]
        self.step("qemu-io", "-t", "unsafe", "-f", fmt, path, *sum((["-c", o] for o in ops), []))
        return name, fmt

    def make(self):
        args = []
        if self.r.random() < 0.5:
            name, fmt = self.backing("base0")
            args = ["-b", name, "-F", fmt]
            self.has_backing = True
        self.step("qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(self.options), *args,
                  self.path, str(self.size))

    def write(self):
        r, ops = self.r, []
        for _ in range(r.randrange(1, 12)):
            high = self.size if r.random() < 0.3 else min(self.size, 4 * MIB)
            off = r.randrange(0, high, 512)
            length = min(512 * r.randrange(1, int(2 ** r.uniform(1, 10)) + 1), self.size - off)
            ops.append(r.choice([f"write -P {r.randrange(1, 255)} {off} {length}",
                                 f"write -s {self.pattern} {off} {length}",
                                 f"write -z {off} {length}", f"write -z -u {off} {length}",
                                 f"discard {off} {length}"]))
        self.step("qemu-io", "-t", "unsafe", "-f", "qcow2", self.path,
                  *sum((["-c", o] for o in ops), []))

    def resize(self):
        if self.is_v2 and self.snapshots:
            return
        size = max(512, int(self.size * self.r.choice([0.4, 0.9, 1.1, 2])) & -512)
        try:
            self.step("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", self.path, str(size))
            self.size = size
        except RuntimeError:            # some images cannot be resized
            pass

    def snapshot(self):
        name = f"s{len(self.snapshots)}"
        self.step("qemu-img", "snapshot", "-c", name, self.path)
        self.snapshots.append(name)

    def change(self):
        r = self.r
        what = r.choice(["rebase", "unsafe", "commit", "amend", "convert", "apply", "delete"])
        try:
            if what in ("rebase", "unsafe"):
                name, fmt = self.backing(f"base{r.randrange(1, 99)}")
                self.step("qemu-img", "rebase", *(["-u"] if what == "unsafe" else []), "-f",
                          "qcow2", "-b", name, "-F", fmt, self.path)
                self.has_backing = True
            elif what == "commit" and self.has_backing:
                self.step("qemu-img", "commit", "-q", "-f", "qcow2", self.path)
            elif what == "amend":
                self.step("qemu-img", "amend", "-f", "qcow2", "-o",
                          r.choice(["compat=0.10", "compat=1.1", "lazy_refcounts=on",
                                    "refcount_bits=8"]), self.path)
            elif what == "convert" and not self.snapshots and self.size < 64 * MIB:
                self.step("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o",
                          ",".join(self.options), self.path, f"{self.dir}/new")
                os.rename(f"{self.dir}/new", self.path)
                self.has_backing = False
            elif what == "apply" and self.snapshots:
                self.step("qemu-img", "snapshot", "-a", r.choice(self.snapshots), self.path)
            elif what == "delete" and self.snapshots:
                self.step("qemu-img", "snapshot", "-d", self.snapshots[0], self.path)
                self.snapshots.pop(0)
        except RuntimeError:            # what QEMU does not do is none of our business
            pass
        self.learn_size()

    def learn_size(self):
        with open(self.path, "rb") as f:
            self.size = struct.unpack(">Q", f.read(32)[24:])[0]

    def live(self):
        self.make()
        for _ in range(self.r.randrange(3, 9)):
            try:
                self.r.choice([self.write, self.write, self.resize, self.snapshot,
                               self.change])()
            except RuntimeError as e:
                self.done.append(f"(failed: {str(e)[-200:]})")


def reads_of(size, r):
    if not size:
        return []
    ranges = [(off, min(65536, size - off)) for off in range(0, min(size, 6 * MIB), 65536)]
    if size > 6 * MIB:
        ranges += [(off, min(MIB, size - off)) for off in
                   (r.randrange(size) for _ in range(10))]
    for _ in range(60):
        off = r.randrange(min(size, 8 * MIB) if r.random() < 0.7 else size)
        ranges.append((off, min(size - off, int(2 ** r.uniform(0, 18)))))
    off = r.randrange(size)
    ranges += [(0, min(size, 32 * MIB)), (off, min(size - off, 9 * MIB + 77))]
    return ranges


def compare_maps(c, q):
    """Holes are the same. What of the rest is zero the two may find out from the holes of the host
    file, or may not care to: where byre says so it has to be true."""
    for off, length, mine, qemus in matrix.pieces(c.map(), q.map()):
        if (mine ^ qemus) & ~nbd.IS_ZERO:
            raise Finding(f"map at {off}+{length}: {mine}, and QEMU says {qemus}")
        if mine & ~qemus & nbd.IS_ZERO and any(c.read(off, min(length, MIB))):
            raise Finding(f"map at {off}+{length}: {mine}, where there is data")


def compare_good(args, life, snapshot, r):
    byre = start_byre(args, life.path, snapshot)
    qemu = start_qemu(args, life.path, snapshot)
    try:
        if not byre.p or not qemu.p:
            raise Finding(f"a good image is refused: {byre.text()} {qemu.text()}")
        c, q = byre.client(), qemu.client()
        size = min(c.size, q.size)
        if c.size != q.size and not snapshot:
            raise Finding(f"the size is {c.size}, QEMU says {q.size}")
        for off, length in reads_of(size, r):
            if c.read(off, length) != q.read(off, length):
                raise Finding(f"a read of {length} at {off} differs")
        if not snapshot and size:
            compare_maps(c, q)
        c.close()
        q.close()
        end_byre(byre, args.is_sanitized)
    except (OSError, nbd.ProtocolError) as e:
        raise Finding(f"{e!r}: {byre.text()}") from None
    finally:
        for s in (byre, qemu):
            if s.p and s.p.poll() is None:
                s.p.kill()
                s.p.wait()


def life_case(args, r, counts):
    folder = f"{args.dir}/life"
    os.mkdir(folder)
    try:
        life = Life(folder, r)
        life.live()
        counts["lives"] += 1
        try:
            for snapshot in [None] + life.snapshots[-2:]:
                compare_good(args, life, snapshot, r)
        except Finding as e:
            if args.keep:
                shutil.copytree(folder, f"{args.keep}/{args.seed}-{args.number}",
                                dirs_exist_ok=True)
            raise Finding("\n".join(life.done) + f"\nsnapshot {snapshot}: {e}") from None
    finally:
        shutil.rmtree(folder)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--byre", required=True)
    p.add_argument("--dir", required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--seconds", type=float, default=45)
    p.add_argument("--cases", default="0-1000000000")
    p.add_argument("--only", choices=["damage", "life"])
    p.add_argument("--keep")
    p.add_argument("--verbose", action="store_true")
    args = p.parse_args()
    args.dir = os.path.abspath(args.dir)
    with open(args.byre, "rb") as f:
        args.is_sanitized = b"__asan_init" in f.read()
    with open(f"{args.dir}/pattern", "wb") as f:
        f.write(noise(random.Random(args.seed), 100003))
    first, last = map(int, args.cases.split("-"))
    end, bases, findings = time.monotonic() + args.seconds, {}, 0
    counts = collections.Counter()
    for args.number in range(first, last + 1):
        if time.monotonic() > end or findings >= 20:
            break
        r = random.Random(f"{args.seed}/{args.number}")
        kind = "life" if args.number % 8 == 7 else "damage"
        if args.only and args.only != kind:
            continue
        counts["cases"] += 1
        try:
            if kind == "life":
                life_case(args, r, counts)
            else:
                damage_case(args, bases, r, counts)
        except Finding as e:
            findings += 1
            print(f"FAILED: --seed {args.seed} --cases {args.number}-{args.number}: {e}\n",
                  flush=True)
    print(f"seed {args.seed}:", ", ".join(f"{v} {k}" for k, v in sorted(counts.items())))
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
