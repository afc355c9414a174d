#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Images of every kind: what byre serves against what QEMU reads from the same file.

usage: matrix.py --byre PROGRAM --dir DIR [--cover pairs|all|product] [--seed N] [--only KEY=VALUE]

pairs: a set in which every possible pair of two features' values occurs. all: every combination
of what the read path depends on (READ_PATH), the other features drawn by the seed. product: every
combination there is (tens of thousands). Each image is filled by a seeded sequence of writes,
zeroes, discards and compressed writes, with sectors and clusters cut at any place.

Of each image and of its snapshot: all bytes in one pass of odd-sized reads, then reads anywhere
down to single bytes, equal those of `qemu-img convert`. The map (base:allocation) has no zeroes
where there is data, and equals qemu-storage-daemon's. And all that byre's image tools say of the
image is what qemu-img says (tests/reference.py).
"""
import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import nbd
import reference

FEATURES = {
    "cluster": [512, 4096, 16384, 65536, 2097152],
    "compat": ["1.1", "0.10"],
    "subclusters": [False, True],
    "data_file": [None, "file", "raw"],
    "compressed": [None, "zlib", "zstd"],
    "backing": [None, "raw", "qcow2", "deep", "short"],
    "snapshot": [False, True],
    "refcount_bits": [16, 1, 2, 4, 8, 32, 64],
    "bitmap": [False, True],
    "preallocation": ["off", "metadata", "falloc", "full"],
}
READ_PATH = ["cluster", "compat", "subclusters", "data_file", "compressed", "backing", "snapshot"]
IMAGES_A_PROCESS = 12
DEEP = 6                                # files in a deep chain


def is_valid(i):
    """What qemu-img can make; anything it then fails at is a failure of the test."""
    if i["compat"] == "0.10" and (i["subclusters"] or i["data_file"] or i["bitmap"]
                                  or i["refcount_bits"] != 16 or i["compressed"] == "zstd"):
        return False
    if i["subclusters"] and i["cluster"] < 16384:
        return False
    if i["data_file"] and (i["compressed"] or i["snapshot"]):
        return False
    if i["data_file"] == "raw" and i["backing"]:
        return False
    if i["preallocation"] != "off" and i["backing"] and not i["subclusters"]:
        return False
    if i["snapshot"] and i["refcount_bits"] < (8 if i["compressed"] else 2):
        return False            # compressed clusters share a host cluster, whose count doubles
    return True


def disk_size(i, r):
    """About a hundred clusters, and something to see in any of them; never whole clusters."""
    size = min(max(i["cluster"] * 100, 1 << 20), 12 << 20)
    return size + 512 * r.randrange(1, 2000)


def every(names):
    keys = list(names)
    return [dict(zip(keys, values)) for values in itertools.product(*(FEATURES[k] for k in keys))]


def pairs_of(image):
    return set(itertools.combinations(image.items(), 2))


def pairs(r):
    """Greedy: each image takes in as many pairs that were not yet seen as a few tries find."""
    images = [i for i in every(FEATURES) if is_valid(i)]
    missing = set().union(*map(pairs_of, images))
    chosen = []
    while missing:
        some = r.sample(images, 400)
        best = max(some, key=lambda i: len(missing & pairs_of(i)))
        got = missing & pairs_of(best)
        if not got:                     # the rare ones: look for what is left
            want = next(iter(missing))
            best = next(i for i in images if want[0] in i.items() and want[1] in i.items())
            got = missing & pairs_of(best)
        missing -= got
        chosen.append(best)
    return chosen


def read_path(r):
    """All of READ_PATH's combinations, each with other features that it can have."""
    chosen = []
    for base in every(READ_PATH):
        rest = [k for k in FEATURES if k not in READ_PATH]
        fits = [base | o for o in every(rest) if is_valid(base | o)]
        if fits:
            chosen.append(r.choice(fits))
    return chosen


def run(*args):
    p = subprocess.run(args, capture_output=True, text=True, check=False)
    if p.returncode:
        raise RuntimeError(f"{' '.join(args)[:2000]}\n{p.stdout[-2000:]}{p.stderr[-2000:]}")
    return p.stdout


def qemu_io(path, fmt, commands):
    args = [a for c in commands for a in ("-c", c)]
    out = run("qemu-io", "-t", "unsafe", "-f", fmt, path, *args)
    if "failed" in out or "rror" in out:
        raise RuntimeError(f"qemu-io {path}: {out[-2000:]}")


class Image:
    def __init__(self, number, features, folder, seed, pattern):
        self.f, self.number, self.pattern = features, number, pattern
        self.r = random.Random(f"{seed}/{number}")
        self.dir = os.path.join(folder, f"{number}")
        os.mkdir(self.dir)
        self.path = os.path.join(self.dir, "image.qcow2")
        self.size = disk_size(features, self.r)

    def name(self):
        return " ".join(f"{k}={v}" for k, v in self.f.items())

    def _cut(self, unit):
        """A place and a length, often at a cluster's edge or across it."""
        r, c = self.r, self.f["cluster"]
        off = r.randrange(self.size // unit) * unit
        length = unit * r.randrange(1, max(2, int(2 ** r.uniform(0, 5)) * c // unit))
        if r.random() < 0.4:
            off -= off % max(c, unit)
        if r.random() < 0.3:
            length += -length % max(c, unit)
        return off, min(length, self.size - off, 3 << 20)

    def _write(self, off, length):
        if self.r.random() < 0.5:
            return f"write -s {self.pattern} {off} {length}"
        return f"write -P {self.r.randrange(1, 256)} {off} {length}"

    def _compressed_write(self):
        """Whole clusters, on even ones only: a compressed write cannot replace what is there."""
        c = self.f["cluster"]
        k = self.r.randrange(max(1, self.size // c // 2)) * 2
        length = min(c, self.size - k * c)
        if k in self.taken or length <= 0:
            return None
        self.taken.add(k)
        return f"write -c -s {self.pattern} {k * c} {length}" if self.r.random() < 0.3 else \
            f"write -c -P {self.r.randrange(1, 256)} {k * c} {length}"

    def _operations(self, n):
        ops = []
        for _ in range(n):
            off, length = self._cut(512)
            what = self.r.random()
            if what < 0.6:
                ops.append(self._write(off, length))
            elif what < 0.75:
                ops.append(f"write -z {off} {length}")
            elif what < 0.85:
                ops.append(f"write -z -u {off} {length}")
            else:
                ops.append(f"discard {off} {length}")
        return ops

    def _backing(self):
        """Makes the files below; returns their top one and its format."""
        kind = self.f["backing"]
        if kind is None:
            return None, None
        size = self.size if kind != "short" else max(512, self.size // 3 // 512 * 512)
        base = os.path.join(self.dir, "base.raw" if kind == "raw" else "base0.qcow2")
        fmt = "raw" if kind == "raw" else "qcow2"
        run("qemu-img", "create", "-q", "-f", fmt, base, str(size))
        fill = [f"write -s {self.pattern} 0 {min(size, 2 << 20)}"]
        fill += [f"write -P {self.r.randrange(1, 256)} {o} {min(n, size - o)}"
                 for o, n in (self._cut(512) for _ in range(6)) if o < size]
        qemu_io(base, fmt, fill)
        for level in range(1, DEEP if kind == "deep" else 1):
            top = os.path.join(self.dir, f"base{level}.qcow2")
            cluster = self.r.choice([4096, 65536, self.f["cluster"]])
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b",
                os.path.basename(base), "-F", fmt, top)
            qemu_io(top, "qcow2", [o for o in self._operations(4)])
            base, fmt = top, "qcow2"
        return os.path.basename(base), fmt

    def make(self):
        f = self.f
        options = [f"cluster_size={f['cluster']}", f"compat={f['compat']}",
                   f"preallocation={f['preallocation']}"]
        if f["compat"] == "1.1":
            options += [f"refcount_bits={f['refcount_bits']}"]
        if f["subclusters"]:
            options.append("extended_l2=on")
        if f["compressed"] == "zstd":
            options.append("compression_type=zstd")
        if f["data_file"]:
            options.append(f"data_file={os.path.join(self.dir, 'data.raw')}")
        if f["data_file"] == "raw":
            options.append("data_file_raw=on")
        backing, fmt = self._backing()
        args = ["-b", backing, "-F", fmt] if backing else []
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(options), *args, self.path,
            str(self.size))
        self.fill()

    def fill(self):
        f, self.taken = self.f, set()
        if f["compressed"] and f["preallocation"] == "off":
            ops = filter(None, (self._compressed_write() for _ in range(40)))
            qemu_io(self.path, "qcow2", list(ops))
        if f["snapshot"]:
            qemu_io(self.path, "qcow2", self._operations(8))
            run("qemu-img", "snapshot", "-c", "first", self.path)
        if f["bitmap"]:
            run("qemu-img", "bitmap", "--add", self.path, "b0")
        qemu_io(self.path, "qcow2", self._operations(16))

    def truth(self, snapshot):
        """The disk's bytes, as QEMU reads them."""
        out = os.path.join(self.dir, "truth.raw")
        args = ["-l", "snapshot.name=first"] if snapshot else []
        run("qemu-img", "convert", "-U", "-t", "unsafe", "-f", "qcow2", "-O", "raw", *args,
            self.path, out)
        with open(out, "rb") as f:
            return f.read()


class Server:
    """A program that serves a list of (export name, image path, snapshot) on a unix socket."""

    def __init__(self, argv, sock, log):
        self.sock, self.log = sock, log
        with open(log, "w", encoding="utf-8") as f:
            self.p = subprocess.Popen(argv, stdout=f, stderr=f, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while True:
            try:
                nbd.connect(f"nbd+unix:///?socket={sock}")[0].close()
                return
            except OSError:
                if self.p.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{argv[0]} does not serve: {self.text()}") from None
                time.sleep(0.01)

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()[-4000:]

    def client(self, name):
        return nbd.Nbd(f"nbd+unix:///{name}?socket={self.sock}", timeout=120)

    def stop(self):
        self.p.send_signal(signal.SIGTERM)
        status = self.p.wait(60)
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        return status


def start_byre(byre, folder, disks):
    argv, sock = [byre, "serve"], os.path.join(folder, "byre.sock")
    argv += os.environ.get("BYRE_SERVE_OPTIONS", "").split()
    for name, path, snapshot in disks:
        argv += ["--read-only", "--name", name]
        argv += (["--snapshot", "first"] if snapshot else []) + [path]
    return Server(argv + ["--nbd", f"unix:{sock}"], sock, os.path.join(folder, "byre.log"))


def start_qemu(folder, disks):
    sock = os.path.join(folder, "qemu.sock")
    argv = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={sock}"]
    for name, path, _ in disks:
        node = {"driver": "qcow2", "node-name": name, "read-only": True,
                "file": {"driver": "file", "filename": path, "read-only": True}}
        argv += ["--blockdev", json.dumps(node),
                 "--export", f"type=nbd,id=e-{name},node-name={name},name={name}"]
    return Server(argv, sock, os.path.join(folder, "qemu.log"))


def compare_content(c, truth, r):
    if c.size != len(truth):
        raise AssertionError(f"the size is {c.size}, not {len(truth)}")

    def whole():
        off = 0
        while off < c.size:
            n = min(r.choice([512, 4096, 65536, 65537, 130000, 1 << 20]), c.size - off)
            yield off, n
            off += n

    def anywhere(n):
        for _ in range(n):
            off = r.randrange(c.size)
            yield off, min(int(2 ** r.uniform(0, 18)), c.size - off)

    for off, data in c.read_many(itertools.chain(whole(), anywhere(60))):
        if data != truth[off:off + len(data)]:
            at = next(k for k, b in enumerate(data) if b != truth[off + k])
            raise AssertionError(f"byte {off + at} is {data[at]:#x},"
                                 f" QEMU reads {truth[off + at]:#x}"
                                 f" (in a read of {len(data)} at {off})")


def check_map_sound(runs, truth):
    for off, length, flags in runs:
        if flags & nbd.IS_ZERO and any(truth[off:off + length]):
            raise AssertionError(f"the map has zeroes at {off}+{length}, where there is data")


def pieces(ours, theirs):
    """(offset, length, our flags, their flags) of every run in which neither map changes."""
    cuts = sorted({off for off, _, _ in ours + theirs} | {ours[-1][0] + ours[-1][1]})
    a = b = 0
    for off, end in zip(cuts, cuts[1:]):
        while ours[a][0] + ours[a][1] <= off:
            a += 1
        while theirs[b][0] + theirs[b][1] <= off:
            b += 1
        yield off, end - off, ours[a][2], theirs[b][2]


def compare_maps(ours, theirs):
    """The maps are equal."""
    if ours[-1][0] + ours[-1][1] != theirs[-1][0] + theirs[-1][1]:
        raise AssertionError("the maps differ in length")
    for off, length, mine, qemus in pieces(ours, theirs):
        if mine != qemus:
            raise AssertionError(f"map at {off}+{length}: {mine}, and QEMU says {qemus}")


def check_disk(byre, qemu, image, name, snapshot):
    truth = image.truth(snapshot)
    c = byre.client(name)
    try:
        compare_content(c, truth, image.r)
        ours = c.map()
        check_map_sound(ours, truth)
        if not snapshot:
            q = qemu.client(name)
            compare_maps(ours, q.map())
            q.close()
    finally:
        c.close()


def check_tools(pair, image):
    """Of an image that nobody has open. Returns the failures as text."""
    image.truth(False)
    reference.settle(image.dir)
    return [f"image {image.number}: {image.name()}\n    {d}"
            for d in pair.differences(os.path.basename(image.path), image.dir, "truth.raw")]


def check_group(args, folder, images):
    """Returns the failures as text."""
    disks = [(f"i{i.number}", i.path, False) for i in images]
    disks += [(f"s{i.number}", i.path, True) for i in images if i.f["snapshot"]]
    byre = start_byre(args.byre, folder, disks)
    qemu = start_qemu(folder, [d for d in disks if not d[2]])
    failures = []
    for image in images:
        for snapshot in [False, True][:1 + image.f["snapshot"]]:
            try:
                check_disk(byre, qemu, image, "is"[snapshot] + str(image.number), snapshot)
            except (AssertionError, OSError, nbd.ProtocolError) as e:
                what = " (the snapshot)" if snapshot else ""
                failures.append(f"image {image.number}{what}: {image.name()}\n    {e}")
    qemu.stop()
    status = byre.stop()
    if status or "Sanitizer" in byre.text() or "runtime error" in byre.text():
        failures.append(f"byre ended with status {status}:\n{byre.text()}")
    return failures


def choose(args):
    r = random.Random(args.seed)
    if args.cover == "pairs":
        chosen = pairs(r)
    elif args.cover == "all":
        chosen = read_path(r)
    else:
        chosen = [i for i in every(FEATURES) if is_valid(i)]
    for wish in args.only:
        key, _, value = wish.partition("=")
        chosen = [i for i in chosen if str(i[key]) == value]
    return chosen


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--byre", required=True)
    p.add_argument("--dir", required=True)
    p.add_argument("--cover", choices=["pairs", "all", "product"], default="pairs")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--only", action="append", default=[])
    args = p.parse_args()
    pattern = os.path.join(args.dir, "pattern")
    with open(pattern, "wb") as f:
        f.write(random.Random(args.seed).randbytes(100003))
    chosen = choose(args)
    print(f"{len(chosen)} images, seed {args.seed}", flush=True)
    pair = reference.Pair(args.byre, args.dir)
    failures = []
    for start in range(0, len(chosen), IMAGES_A_PROCESS):
        group = [Image(start + k, features, args.dir, args.seed, pattern)
                 for k, features in enumerate(chosen[start:start + IMAGES_A_PROCESS])]
        for image in group:
            image.make()
            failures += check_tools(pair, image)
        failures += check_group(args, args.dir, group)
        for image in group:
            subprocess.run(["rm", "-rf", image.dir], check=True)
    for text in failures:
        print(f"FAILED {text}")
    print(f"{len(chosen)} images, {pair.compared} outcomes of tools, {len(failures)} failures")
    sys.exit(1 if failures or not chosen else 0)


if __name__ == "__main__":
    main()
