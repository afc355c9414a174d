#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Damaged qcow2 images: a table of every kind of damage, each done to a copy of a good image.

usage: damage.py list                   the kinds, a line each
       damage.py make FOLDER [KIND]...  makes FOLDER/KIND.qcow2 (all kinds without a name)
       damage.py random FOLDER SEED N   N images with random damage to their tables
       damage.py hostile FOLDER         images that name a few tables very often

The good images are made by qemu-img and qemu-io of the PATH. Offsets stand in an image where the
specification has them; a kind is a function that changes a few of them.
"""
import os
import random
import shutil
import struct
import subprocess
import sys

COPIED = 1 << 63
COMPRESSED = 1 << 62
OFFSET = 0x00fffffffffffe00
HUGE = 1 << 55


class Image:
    """A qcow2 file in memory."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.b = bytearray(f.read())
        self.version = self.u32(4)
        self.cluster_bits = self.u32(20)
        self.cluster = 1 << self.cluster_bits
        self.l1_size = self.u32(36)
        self.l1 = self.u64(40)
        self.reftable = self.u64(48)
        self.reftable_clusters = self.u32(56)
        self.nb_snapshots = self.u32(60)
        self.snapshots = self.u64(64)
        self.order = self.u32(96) if self.version == 3 else 4
        self.extended = self.version == 3 and bool(self.u64(72) & 16)
        self.words = 2 if self.extended else 1
        self.per_l2 = self.cluster // 8 // self.words
        self.per_block = self.cluster * 8 >> self.order

    def get(self, fmt, at):
        return struct.unpack_from(fmt, self.b, at)[0]

    def u16(self, at):
        return self.get(">H", at)

    def u32(self, at):
        return self.get(">I", at)

    def u64(self, at):
        return self.get(">Q", at)

    def put16(self, at, v):
        struct.pack_into(">H", self.b, at, v)

    def put32(self, at, v):
        struct.pack_into(">I", self.b, at, v)

    def put64(self, at, v):
        struct.pack_into(">Q", self.b, at, v)

    def xor64(self, at, v):
        self.put64(at, self.u64(at) ^ v)

    def l1_at(self, i):
        return self.l1 + 8 * i

    def l2_table(self, i, l1=None):
        return self.u64((self.l1 if l1 is None else l1) + 8 * i) & OFFSET

    def l2_at(self, guest, l1=None):
        """Where the L2 entry of guest cluster @guest stands."""
        table = self.l2_table(guest // self.per_l2, l1)
        assert table, f"no L2 table for cluster {guest}"
        return table + 8 * self.words * (guest % self.per_l2)

    def l2(self, guest):
        return self.u64(self.l2_at(guest))

    def data(self, n=0):
        """The guest number of the n-th standard data cluster."""
        return self.find(n, lambda e: e & OFFSET and not e & COMPRESSED and not e & 1)

    def compressed(self, n=0):
        return self.find(n, lambda e: e & COMPRESSED)

    def hole(self, n=0):
        return self.find(n, lambda e: not e)

    def find(self, n, is_wanted):
        for i in range(self.l1_size):
            if not self.l2_table(i):
                continue
            for g in range(i * self.per_l2, (i + 1) * self.per_l2):
                if is_wanted(self.l2(g)):
                    if not n:
                        return g
                    n -= 1
        raise ValueError("no such cluster")

    def host(self, guest):
        return self.l2(guest) & OFFSET

    def ref_block(self, cluster):
        return self.u64(self.reftable + 8 * (cluster // self.per_block)) & ~0x1ff

    def ref(self, cluster):
        block, i = self.ref_block(cluster), cluster % self.per_block
        bits = 1 << self.order
        if bits >= 8:
            at = block + i * bits // 8
            return int.from_bytes(self.b[at:at + bits // 8], "big")
        per = 8 // bits
        return self.b[block + i // per] >> (i % per * bits) & ((1 << bits) - 1)

    def set_ref(self, cluster, v):
        block, i = self.ref_block(cluster), cluster % self.per_block
        bits = 1 << self.order
        if bits >= 8:
            at = block + i * bits // 8
            self.b[at:at + bits // 8] = v.to_bytes(bits // 8, "big")
            return
        per = 8 // bits
        at, shift = block + i // per, i % per * bits
        self.b[at] = self.b[at] & ~(((1 << bits) - 1) << shift) & 0xff | v << shift

    def append(self, data=b"", ref=1):
        """A new cluster at the end. Returns its offset."""
        self.b += bytes(-len(self.b) % self.cluster)
        at = len(self.b)
        self.b += data + bytes(self.cluster - len(data))
        if ref:
            self.set_ref(at >> self.cluster_bits, ref)
        return at

    def end(self):
        """A cluster's offset far behind the end of the file, with a refcount block."""
        return (len(self.b) + 20 * self.cluster) & ~(self.cluster - 1)

    def extension(self, wanted):
        at = self.u32(100) if self.version == 3 else 72
        while self.u32(at):
            if self.u32(at) == wanted:
                return at + 8
            at += 8 + (self.u32(at + 4) + 7 & ~7)
        raise ValueError("no such extension")

    def bitmap(self, n=0):
        """Where the n-th entry of the bitmap directory stands."""
        at = self.u64(self.extension(0x23852875) + 16)
        for _ in range(n):
            at += 24 + self.u32(at + 20) + self.u16(at + 18) + 7 & ~7
        return at

    def snapshot(self, n=0):
        at = self.snapshots
        for _ in range(n):
            at += 40 + self.u32(at + 36) + self.u16(at + 12) + self.u16(at + 14) + 7 & ~7
        return at


# ---- good images ----

def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def qemu_io(path, *commands):
    args = [a for c in commands for a in ("-c", c)]
    run("qemu-io", "-f", "qcow2", *args, path)


WRITES = ("write -P 1 0 256k", "write -P 2 1M 100k", "write -P 3 3200k 64k", "write -z 2M 64k",
          "write -P 4 2200k 4k")


def create(path, options, size="8M"):
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size)


def good_plain(path):
    create(path, "cluster_size=4k")
    qemu_io(path, *WRITES)


def good_v2(path):
    create(path, "compat=0.10")
    qemu_io(path, *(w for w in WRITES if "-z" not in w))


def good_small(path):
    """Many refcount blocks: 512-byte clusters."""
    create(path, "cluster_size=512,preallocation=metadata", "512k")


def good_snap(path):
    create(path, "cluster_size=4k")
    qemu_io(path, *WRITES)
    run("qemu-img", "snapshot", "-c", "one", path)
    qemu_io(path, "write -P 7 64k 64k")
    run("qemu-img", "snapshot", "-c", "two", path)
    qemu_io(path, "write -P 8 4M 64k", "write -P 9 0 4k")


def good_comp(path):
    raw = path + ".raw"
    r = random.Random(1)
    with open(raw, "wb") as f:
        for i in range(40):
            half = r.randbytes(r.randrange(1, 40) * 1024)
            f.write((half + bytes([i]) * 65536)[:65536])
    run("qemu-img", "convert", "-q", "-c", "-O", "qcow2", raw, path)
    os.unlink(raw)
    qemu_io(path, "write -P 5 1M 128k")


def good_zstd(path):
    good_comp(path)
    run("qemu-img", "convert", "-q", "-c", "-O", "qcow2", "-o",
        "compression_type=zstd,cluster_size=4k", path, path + ".z")
    os.replace(path + ".z", path)


def good_ext(path):
    create(path, "extended_l2=on,cluster_size=16k")
    qemu_io(path, *WRITES, "write -P 6 5M 512", "write -z 5120k 512", "write -z 6M 16k")


def good_data(path):
    create(path, f"data_file={path}.data,cluster_size=64k")
    qemu_io(path, *WRITES)


def good_bitmap(path):
    create(path, "cluster_size=4k", "64M")
    run("qemu-img", "bitmap", "--add", "-g", "512", path, "first")
    run("qemu-img", "bitmap", "--add", path, "second")
    qemu_io(path, *WRITES)
    run("qemu-img", "bitmap", "--disable", path, "second")


def good_rc(bits):
    def good(path):
        create(path, f"cluster_size=4k,refcount_bits={bits}")
        qemu_io(path, *WRITES)
    return good


def good_lazy(path):
    create(path, "cluster_size=4k,lazy_refcounts=on")
    qemu_io(path, *WRITES)


def good_back(path):
    run("qemu-img", "create", "-q", "-f", "raw", path + ".base", "8M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", path + ".base", path)
    qemu_io(path, *WRITES)


def good_empty(path):
    create(path, "cluster_size=64k", "0")


GOOD = {
    "plain": good_plain, "v2": good_v2, "small": good_small, "snap": good_snap, "comp": good_comp,
    "zstd": good_zstd, "ext": good_ext, "data": good_data, "bitmap": good_bitmap,
    "rc1": good_rc(1), "rc2": good_rc(2), "rc8": good_rc(8), "rc32": good_rc(32),
    "rc64": good_rc(64), "lazy": good_lazy, "back": good_back, "empty": good_empty,
}

# ---- kinds of damage ----

KINDS = {}      # name -> (good image, function)


def kind(*goods):
    """Registers a function for each of @goods: GOOD-function."""
    def add(f):
        for good in goods:
            KINDS[f"{good}-{f.__name__.replace('_', '-')}"] = (good, f)
        return f
    return add


@kind(*GOOD)
def good(i):
    pass


# refcounts

@kind("plain", "v2", "rc1", "rc2", "rc8", "rc32", "rc64", "ext")
def refcount_zero(i):
    i.set_ref(i.host(i.data()) >> i.cluster_bits, 0)


@kind("plain", "v2", "rc2", "rc8", "rc32", "rc64", "snap")
def refcount_high(i):
    i.set_ref(i.host(i.data(3)) >> i.cluster_bits, 3)


@kind("rc32", "rc64", "plain")
def refcount_max(i):
    i.set_ref(i.host(i.data(3)) >> i.cluster_bits, (1 << (1 << i.order)) - 1)


@kind("rc64")
def refcount_top_bit(i):
    i.set_ref(i.host(i.data(3)) >> i.cluster_bits, 1 << 63)


@kind("snap")
def refcount_low(i):
    i.set_ref(i.host(i.data(2)) >> i.cluster_bits, 1)


@kind("snap")
def refcount_one_less_everywhere(i):
    for c in range(len(i.b) >> i.cluster_bits):
        if i.ref(c):
            i.set_ref(c, i.ref(c) - 1)


@kind("plain", "snap", "comp", "data", "rc1", "small")
def refcounts_all_zero(i):
    for c in range(len(i.b) >> i.cluster_bits):
        i.set_ref(c, 0)


@kind("plain", "rc1", "rc64")
def leak_one(i):
    i.append(b"leak")


@kind("plain")
def leak_without_data(i):
    i.set_ref(len(i.b) // i.cluster + 3, 2)


@kind("plain")
def leak_last_of_block(i):
    i.set_ref(i.per_block - 1, 1)


@kind("plain", "snap", "comp")
def metadata_refcounts_zero(i):
    for off in (0, i.l1, i.reftable, i.ref_block(0), i.l2_table(0)):
        i.set_ref(off >> i.cluster_bits, 0)


@kind("plain", "small", "comp")
def refcount_block_missing(i):
    i.put64(i.reftable, 0)


@kind("small")
def refcount_block_missing_in_the_middle(i):
    i.put64(i.reftable + 8, 0)


@kind("plain", "small", "comp")
def refcount_block_unaligned(i):
    i.xor64(i.reftable, 512)


@kind("small")
def refcount_block_half_unaligned(i):
    i.put64(i.reftable + 16, i.u64(i.reftable + 16) + 256)


@kind("plain", "small")
def refcount_block_reserved_bits(i):
    i.xor64(i.reftable, 0x1fe)


@kind("small")
def refcount_block_reserved_bit_second(i):
    i.xor64(i.reftable + 8, 1)


@kind("plain", "small")
def refcount_block_beyond_eof(i):
    i.put64(i.reftable + 8, i.end())


@kind("small")
def refcount_block_replaced_beyond_eof(i):
    i.put64(i.reftable + 16, len(i.b) + 512 * 100)


@kind("plain", "small")
def refcount_block_huge(i):
    i.put64(i.reftable + 8, HUGE)


@kind("plain", "small")
def refcount_block_top_bits(i):
    i.put64(i.reftable + 8, 0xff << 56)


@kind("small", "plain")
def refcount_block_twice(i):
    i.put64(i.reftable + 8, i.u64(i.reftable))


@kind("small")
def refcount_block_thrice(i):
    for n in (1, 2, 3):
        i.put64(i.reftable + 8 * n, i.u64(i.reftable + 32))


@kind("plain")
def refcount_block_is_data(i):
    i.put64(i.reftable + 8, i.host(i.data()))


@kind("plain")
def refcount_block_is_header(i):
    i.put64(i.reftable + 8, 0)
    i.put64(i.reftable, i.l1)


@kind("plain")
def refcount_block_is_table(i):
    i.put64(i.reftable + 8, i.reftable)


@kind("small", "rc64")
def refcount_block_added(i):
    i.put64(i.reftable + 24, i.append())


@kind("plain")
def reftable_beyond_eof(i):
    i.put64(48, i.end())


@kind("plain")
def reftable_at_eof(i):
    i.b += bytes(-len(i.b) % i.cluster)
    i.put64(48, len(i.b))


@kind("plain")
def reftable_unaligned(i):
    i.put64(48, i.reftable + 512)


@kind("plain")
def reftable_is_l1(i):
    i.put64(48, i.l1)


@kind("plain")
def reftable_is_header(i):
    i.put64(48, 0)


@kind("plain")
def reftable_longer(i):
    i.put32(56, 3)


@kind("plain")
def reftable_far_longer(i):
    i.put32(56, 2048)


@kind("plain")
def reftable_too_long(i):
    i.put32(56, 2049)


@kind("plain")
def reftable_none(i):
    i.put32(56, 0)


@kind("plain")
def reftable_huge(i):
    i.put64(48, 1 << 62)


# L1

@kind("plain", "v2", "snap", "data", "ext")
def l1_unaligned(i):
    i.xor64(i.l1_at(0), 512)


@kind("plain")
def l1_unaligned_other(i):
    i.xor64(i.l1_at(2), 2048)


@kind("plain", "data")
def l1_entry_beyond_eof(i):
    i.put64(i.l1_at(3), i.end() | COPIED)


@kind("plain")
def l1_entry_replaced_beyond_eof(i):
    i.put64(i.l1_at(1), i.end() | COPIED)


@kind("plain")
def l1_entry_at_eof(i):
    i.b += bytes(-len(i.b) % i.cluster)
    i.put64(i.l1_at(3), len(i.b) | COPIED)


@kind("plain", "data")
def l1_entry_huge(i):
    i.put64(i.l1_at(3), HUGE | COPIED)


@kind("plain")
def l1_entry_last_possible(i):
    i.put64(i.l1_at(3), (OFFSET & ~(i.cluster - 1)) | COPIED)


@kind("plain", "v2", "data", "snap", "ext", "rc1")
def l1_copied_missing(i):
    i.xor64(i.l1_at(0), COPIED)


@kind("snap")
def l1_copied_too_much(i):
    for n in range(i.l1_size):
        if i.l2_table(n):
            i.put64(i.l1_at(n), i.u64(i.l1_at(n)) | COPIED)


@kind("plain")
def l1_copied_without_table(i):
    i.put64(i.l1_at(3), COPIED)


@kind("plain", "v2", "ext")
def l1_reserved_low(i):
    i.xor64(i.l1_at(0), 0x1ff)


@kind("plain", "v2")
def l1_reserved_high(i):
    i.xor64(i.l1_at(0), 1 << 60)


@kind("plain")
def l1_reserved_without_table(i):
    i.put64(i.l1_at(3), 1 << 56)


@kind("plain", "snap")
def l1_same_table_twice(i):
    i.put64(i.l1_at(3), i.u64(i.l1_at(0)))


@kind("plain")
def l1_table_is_data(i):
    i.put64(i.l1_at(3), i.host(i.data()) | COPIED)


@kind("plain")
def l1_table_is_header(i):
    """Offset 0 is no table: the nearest is the reftable."""
    i.put64(i.l1_at(3), i.reftable | COPIED)


@kind("plain")
def l1_table_is_refcount_block(i):
    i.put64(i.l1_at(3), i.ref_block(0) | COPIED)


@kind("plain")
def l1_table_is_l1(i):
    i.put64(i.l1_at(3), i.l1 | COPIED)


@kind("plain")
def l1_all_garbage(i):
    r = random.Random(3)
    for n in range(i.l1_size):
        i.put64(i.l1_at(n), r.getrandbits(64))


@kind("plain")
def l1_position_beyond_eof(i):
    i.put64(40, i.end())


@kind("plain")
def l1_position_unaligned(i):
    i.put64(40, i.l1 + 8)


@kind("plain")
def l1_position_huge(i):
    i.put64(40, 1 << 62)


@kind("plain")
def l1_position_header(i):
    i.put64(40, 0)


@kind("plain")
def l1_position_is_data(i):
    i.put64(40, i.host(i.data()))


@kind("plain")
def l1_too_small(i):
    i.put32(36, 1)


@kind("plain")
def l1_longer(i):
    i.put32(36, 2000)


@kind("plain")
def l1_far_longer(i):
    i.put32(36, (32 << 20) // 8)


@kind("plain")
def l1_too_long(i):
    i.put32(36, (32 << 20) // 8 + 1)


@kind("plain", "empty")
def l1_in_the_middle(i):
    at = i.append(bytes(i.b[i.l1:i.l1 + 8 * i.l1_size]))
    i.append(b"x", 0)
    i.set_ref(i.l1 >> i.cluster_bits, 0)
    i.put64(40, at)


# L2

@kind("plain", "v2", "snap", "ext", "data")
def l2_unaligned(i):
    i.xor64(i.l2_at(i.data(2)), 512)


@kind("plain", "v2", "ext")
def l2_unaligned_without_copied(i):
    i.xor64(i.l2_at(i.data(2)), 512 | COPIED)


@kind("plain", "v2", "data", "ext", "snap", "rc1")
def l2_copied_missing(i):
    i.xor64(i.l2_at(i.data(1)), COPIED)


@kind("plain", "snap")
def l2_copied_missing_many(i):
    for n in range(20):
        at = i.l2_at(i.data(n))
        i.put64(at, i.u64(at) & ~COPIED)


@kind("snap")
def l2_copied_too_much(i):
    for n in range(10):
        at = i.l2_at(i.data(n))
        i.put64(at, i.u64(at) | COPIED)


@kind("plain", "v2", "data", "ext")
def l2_copied_of_nothing(i):
    i.put64(i.l2_at(i.hole()), COPIED)


@kind("plain", "v2", "snap", "ext")
def l2_beyond_eof(i):
    i.put64(i.l2_at(i.hole()), i.end() | COPIED)


@kind("plain")
def l2_at_eof(i):
    i.b += bytes(-len(i.b) % i.cluster)
    i.put64(i.l2_at(i.hole()), len(i.b) | COPIED)


@kind("plain")
def l2_beyond_eof_with_refcount(i):
    i.set_ref(i.end() >> i.cluster_bits, 1)
    i.put64(i.l2_at(i.hole()), i.end() | COPIED)


@kind("plain", "v2", "data")
def l2_huge(i):
    i.put64(i.l2_at(i.hole()), HUGE | COPIED)


@kind("plain")
def l2_last_possible(i):
    i.put64(i.l2_at(i.hole()), (OFFSET & ~(i.cluster - 1)) | COPIED)


@kind("plain", "v2", "ext", "data")
def l2_reserved_low(i):
    i.xor64(i.l2_at(i.data()), 0x1fe)


@kind("plain", "v2", "ext", "data")
def l2_reserved_high(i):
    i.xor64(i.l2_at(i.data()), 1 << 57)


@kind("plain", "v2", "ext")
def l2_reserved_of_nothing(i):
    i.put64(i.l2_at(i.hole()), 1 << 57)


@kind("plain")
def l2_reserved_of_zero(i):
    i.put64(i.l2_at(i.hole()), 1 << 57 | 1)


@kind("v2", "ext", "data")
def l2_zero_flag(i):
    i.put64(i.l2_at(i.data(1)), i.l2(i.data(1)) | 1)


@kind("v2", "ext", "plain", "data")
def l2_zero_flag_of_nothing(i):
    i.put64(i.l2_at(i.hole()), 1)


@kind("plain")
def l2_zero_unaligned(i):
    at = i.l2_at(i.data(1))
    i.put64(at, (i.u64(at) ^ 512) | 1)


@kind("plain")
def l2_zero_copied_missing(i):
    at = i.l2_at(i.data(1))
    i.put64(at, (i.u64(at) ^ COPIED) | 1)


@kind("plain")
def l2_zero_copied_of_nothing(i):
    i.put64(i.l2_at(i.hole()), COPIED | 1)


@kind("plain")
def l2_zero_beyond_eof(i):
    i.put64(i.l2_at(i.hole()), i.end() | COPIED | 1)


@kind("plain", "v2", "ext", "rc1", "snap")
def l2_cross_linked(i):
    i.put64(i.l2_at(i.data(1)), i.l2(i.data(7)))


@kind("plain")
def l2_cross_linked_counted(i):
    one, other = i.data(1), i.data(7)
    i.set_ref(i.host(one) >> i.cluster_bits, 0)
    i.set_ref(i.host(other) >> i.cluster_bits, 2)
    i.put64(i.l2_at(one), i.l2(other))


@kind("plain", "rc1", "rc8")
def l2_cross_linked_often(i):
    for n in range(1, 30):
        i.put64(i.l2_at(i.data(n)), i.l2(i.data(0)))


@kind("plain", "snap")
def l2_data_is_header(i):
    i.put64(i.l2_at(i.data()), COPIED)


@kind("plain")
def l2_data_is_l1(i):
    i.put64(i.l2_at(i.data()), i.l1 | COPIED)


@kind("plain")
def l2_data_is_l2(i):
    i.put64(i.l2_at(i.data()), i.l2_table(0) | COPIED)


@kind("plain")
def l2_data_is_refcount_block(i):
    i.put64(i.l2_at(i.data()), i.ref_block(0) | COPIED)


@kind("plain")
def l2_data_is_reftable(i):
    i.put64(i.l2_at(i.data()), i.reftable | COPIED)


@kind("snap")
def l2_data_is_snapshot_table(i):
    i.put64(i.l2_at(i.data()), i.snapshots | COPIED)


@kind("bitmap")
def l2_data_is_bitmap_directory(i):
    i.put64(i.l2_at(i.data()), i.bitmap() & ~(i.cluster - 1) | COPIED)


@kind("plain", "ext")
def l2_garbage(i):
    r = random.Random(4)
    for n in range(60):
        i.put64(i.l2_table(0) + 8 * n, r.getrandbits(64))


@kind("ext", "data")
def l2_half_a_table(i):
    """An odd entry of a table filled with data."""
    for n in range(5):
        i.put64(i.l2_table(0) + 8 * 100 + 8 * n, 0x10000 * n | COPIED)


# compressed clusters

def csize_shift(i):
    return 62 - (i.cluster_bits - 8)


@kind("comp", "zstd")
def compressed_beyond_eof(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, (i.u64(at) & ~((1 << csize_shift(i)) - 1)) | (i.end() + 777))


@kind("comp")
def compressed_huge(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, i.u64(at) | 1 << (csize_shift(i) - 1))


@kind("comp", "zstd")
def compressed_size_max(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, i.u64(at) | ((1 << 62) - (1 << csize_shift(i))))


@kind("comp")
def compressed_size_past_eof(i):
    n = sum(1 for g in range(40) if i.l2(g) & COMPRESSED)
    last = max((i.compressed(k) for k in range(n)),
               key=lambda g: i.l2(g) & ((1 << csize_shift(i)) - 1))
    at = i.l2_at(last)
    i.put64(at, i.u64(at) | ((1 << 62) - (1 << csize_shift(i))))


@kind("comp", "zstd")
def compressed_size_zero(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, i.u64(at) & ~((1 << 62) - (1 << csize_shift(i))))


@kind("comp", "zstd")
def compressed_copied(i):
    i.xor64(i.l2_at(i.compressed(2)), COPIED)


@kind("comp")
def compressed_copied_many(i):
    for n in range(5):
        i.xor64(i.l2_at(i.compressed(n)), COPIED)


@kind("comp")
def compressed_offset_zero(i):
    i.put64(i.l2_at(i.compressed(2)), COMPRESSED)


@kind("comp")
def compressed_into_metadata(i):
    i.put64(i.l2_at(i.compressed(2)), COMPRESSED | (i.l1 + 100))


@kind("comp")
def compressed_refcount_low(i):
    i.set_ref((i.l2(i.compressed(2)) & ((1 << csize_shift(i)) - 1)) >> i.cluster_bits, 1)


@kind("comp")
def compressed_refcount_high(i):
    i.set_ref((i.l2(i.compressed(2)) & ((1 << csize_shift(i)) - 1)) >> i.cluster_bits, 30)


@kind("comp", "zstd")
def compressed_data_broken(i):
    at = i.l2(i.compressed(1)) & ((1 << csize_shift(i)) - 1)
    i.b[at:at + 400] = bytes(400)


@kind("data", "ext", "v2", "plain")
def compressed_where_it_cannot_be(i):
    i.put64(i.l2_at(i.data()), COMPRESSED | (i.host(i.data()) + 5))


@kind("ext")
def compressed_with_bitmap(i):
    at = i.l2_at(i.data())
    i.put64(at, COMPRESSED | (i.host(i.data()) + 5))
    i.put64(at + 8, 0xffff)


# extended L2

@kind("ext")
def bitmap_both(i):
    i.put64(i.l2_at(i.data()) + 8, 0x0000000100000001)


@kind("ext")
def bitmap_all_both(i):
    i.put64(i.l2_at(i.data()) + 8, 0xffffffffffffffff)


@kind("ext")
def bitmap_of_nothing(i):
    i.put64(i.l2_at(i.hole()) + 8, 0x3)


@kind("ext")
def bitmap_zeros_of_nothing(i):
    i.put64(i.l2_at(i.hole()) + 8, 0x3 << 32)


@kind("ext")
def bitmap_empty(i):
    i.put64(i.l2_at(i.data()) + 8, 0)


@kind("ext")
def bitmap_both_many(i):
    for n in range(8):
        i.put64(i.l2_at(i.data(n)) + 8, 0x0000000300000003)


@kind("ext")
def l2_zero_unaligned_too(i):
    l2_zero_unaligned_other(i)


@kind("ext")
def l2_unaligned_without_bitmap(i):
    at = i.l2_at(i.data(1))
    i.xor64(at, 512)
    i.put64(at + 8, 0)


@kind("ext")
def l2_unaligned_with_zeros(i):
    at = i.l2_at(i.data(1))
    i.xor64(at, 512)
    i.put64(at + 8, 7 << 32)


@kind("ext")
def bitmap_of_zero(i):
    at = i.l2_at(i.hole())
    i.put64(at, 1)
    i.put64(at + 8, 3)


@kind("ext")
def bitmap_of_zero_copied(i):
    at = i.l2_at(i.hole())
    i.put64(at, COPIED | 1)
    i.put64(at + 8, 3 << 32 | 2)


# data files

@kind("data")
def data_offset_differs(i):
    i.put64(i.l2_at(i.data(1)), i.host(i.data(3)) | COPIED)


@kind("data")
def data_offset_differs_without_copied(i):
    i.put64(i.l2_at(i.data(1)), i.host(i.data(3)))


@kind("data")
def data_offset_zero(i):
    i.put64(i.l2_at(i.data(1)), COPIED)


@kind("data")
def data_beyond_eof(i):
    i.put64(i.l2_at(i.hole()), (100 << 20) | COPIED)


@kind("data")
def data_snapshots(i):
    i.put32(60, 1)
    at = i.append()
    i.put64(64, at)


@kind("data")
def data_file_missing(i):
    i.remove = ".data"


@kind("back")
def backing_file_missing(i):
    i.remove = ".base"


@kind("data")
def data_flag_missing(i):
    i.xor64(72, 4)


@kind("plain")
def data_flag_without_name(i):
    i.xor64(72, 4)


# snapshots

@kind("snap")
def snapshot_l1_unaligned(i):
    i.xor64(i.snapshot(0), 512)


@kind("snap")
def snapshot_l1_both_unaligned(i):
    i.xor64(i.snapshot(0), 512)
    i.xor64(i.snapshot(1), 512)


@kind("snap")
def snapshot_l1_beyond_eof(i):
    i.put64(i.snapshot(0), i.end())


@kind("snap")
def snapshot_l1_huge(i):
    i.put64(i.snapshot(0), 1 << 62)


@kind("snap")
def snapshot_l1_past_2_63(i):
    i.put64(i.snapshot(0), 1 << 63)


@kind("snap")
def snapshot_l1_zero(i):
    i.put64(i.snapshot(0), 0)


@kind("snap")
def snapshot_l1_none(i):
    i.put32(i.snapshot(0) + 8, 0)


@kind("snap")
def snapshot_l1_longer(i):
    i.put32(i.snapshot(1) + 8, 4096)


@kind("snap")
def snapshot_l1_too_long(i):
    i.put32(i.snapshot(1) + 8, (32 << 20) // 8 + 1)


@kind("snap")
def snapshot_l1_longest(i):
    i.put32(i.snapshot(1) + 8, (32 << 20) // 8)


@kind("snap")
def snapshot_l1_is_active(i):
    i.put64(i.snapshot(0), i.l1)


@kind("snap")
def snapshot_l1_entry_unaligned(i):
    i.xor64(i.u64(i.snapshot(0)), 512)


@kind("snap")
def snapshot_l1_entry_reserved(i):
    i.xor64(i.u64(i.snapshot(0)), 1 << 57 | 2)


@kind("snap")
def snapshot_l1_entry_beyond_eof(i):
    i.put64(i.u64(i.snapshot(0)) + 24, i.end())


@kind("snap")
def snapshot_l1_entry_huge(i):
    i.put64(i.u64(i.snapshot(0)) + 24, HUGE)


@kind("snap")
def snapshot_l1_entry_copied(i):
    i.xor64(i.u64(i.snapshot(0)), COPIED)


@kind("snap")
def snapshot_l2_unaligned(i):
    at = i.l2_at(100, i.u64(i.snapshot(0)))
    i.put64(at, i.u64(at) ^ 512 if i.u64(at) else 0x12200)


@kind("snap")
def snapshot_l2_reserved(i):
    i.xor64(i.l2_at(1, i.u64(i.snapshot(1))), 1 << 57)


@kind("snap")
def snapshot_table_beyond_eof(i):
    i.put64(64, i.end())


@kind("snap")
def snapshot_table_unaligned(i):
    i.put64(64, i.snapshots + 8)


@kind("snap")
def snapshot_table_huge(i):
    i.put64(64, 1 << 62)


@kind("snap")
def snapshot_table_is_l1(i):
    i.put64(64, i.l1)


@kind("snap")
def snapshot_table_header(i):
    i.put64(64, 0)


@kind("snap")
def snapshot_one_more(i):
    i.put32(60, 3)


@kind("snap")
def snapshot_one_less(i):
    i.put32(60, 1)


@kind("snap")
def snapshot_none(i):
    i.put32(60, 0)


@kind("snap", "plain")
def snapshot_most(i):
    i.put32(60, 65536)


@kind("snap", "plain")
def snapshot_too_many(i):
    i.put32(60, 65537)


@kind("plain")
def snapshot_table_without_snapshots(i):
    i.put64(64, 512)


@kind("snap")
def snapshot_extra_large(i):
    i.put32(i.snapshot(0) + 36, 2000)


@kind("snap")
def snapshot_extra_max(i):
    i.put32(i.snapshot(1) + 36, 1024)


@kind("snap")
def snapshot_extra_over(i):
    i.put32(i.snapshot(1) + 36, 1025)


@kind("snap")
def snapshot_extra_huge(i):
    i.put32(i.snapshot(0) + 36, 0xffffffff)


@kind("snap")
def snapshot_extra_missing(i):
    i.put32(i.snapshot(0) + 36, 0)


@kind("snap")
def snapshot_extra_short(i):
    i.put32(i.snapshot(1) + 36, 8)


@kind("snap")
def snapshot_id_long(i):
    i.put16(i.snapshot(1) + 12, 65535)


@kind("snap")
def snapshot_same_id(i):
    at = i.snapshot(1)
    i.b[at + 40 + i.u32(at + 36)] = ord("1")


@kind("snap")
def snapshot_disk_size_zero(i):
    i.put64(i.snapshot(0) + 48, 0)


@kind("snap")
def snapshot_disk_size_odd(i):
    i.put64(i.snapshot(0) + 48, 12345)


@kind("snap")
def snapshot_disk_size_huge(i):
    i.put64(i.snapshot(0) + 48, 1 << 63)


@kind("snap")
def snapshot_disk_size_large(i):
    i.put64(i.snapshot(0) + 48, 1 << 50)


# bitmaps

@kind("bitmap")
def bitmap_in_use(i):
    i.put32(i.bitmap() + 12, i.u32(i.bitmap() + 12) | 1)


@kind("bitmap")
def bitmap_reserved_flags(i):
    i.put32(i.bitmap() + 12, i.u32(i.bitmap() + 12) | 16)


@kind("bitmap")
def bitmap_type_unknown(i):
    i.b[i.bitmap() + 16] = 2


@kind("bitmap")
def bitmap_granularity_small(i):
    i.b[i.bitmap() + 17] = 8


@kind("bitmap")
def bitmap_granularity_large(i):
    i.b[i.bitmap() + 17] = 40


@kind("bitmap")
def bitmap_granularity_other(i):
    i.b[i.bitmap() + 17] = 12


@kind("bitmap")
def bitmap_name_empty(i):
    i.put16(i.bitmap(1) + 18, 0)


@kind("bitmap")
def bitmap_name_long(i):
    i.put16(i.bitmap(1) + 18, 1024)


@kind("bitmap")
def bitmap_name_twice(i):
    at = i.bitmap(1)
    i.b[at + 24:at + 29] = b"first"
    i.put16(at + 18, 5)
    i.b[at + 29] = 0


@kind("bitmap")
def bitmap_extra(i):
    i.put32(i.bitmap(1) + 20, 8)


@kind("bitmap")
def bitmap_extra_huge(i):
    i.put32(i.bitmap(1) + 20, 0xffffffff)


@kind("bitmap")
def bitmap_table_unaligned(i):
    i.xor64(i.bitmap(), 512)


@kind("bitmap")
def bitmap_table_beyond_eof(i):
    i.put64(i.bitmap(), i.end())


@kind("bitmap")
def bitmap_table_zero(i):
    i.put64(i.bitmap(), 0)


@kind("bitmap")
def bitmap_table_huge(i):
    i.put64(i.bitmap(), 1 << 62)


@kind("bitmap")
def bitmap_table_of_other(i):
    i.put64(i.bitmap(), i.u64(i.bitmap(1)))


@kind("bitmap")
def bitmap_table_is_l1(i):
    i.put64(i.bitmap(), i.l1)


@kind("bitmap")
def bitmap_table_too_small(i):
    i.put32(i.bitmap() + 8, 1)


@kind("bitmap")
def bitmap_table_none(i):
    i.put32(i.bitmap() + 8, 0)


@kind("bitmap")
def bitmap_table_too_large(i):
    i.put32(i.bitmap() + 8, 1000)


@kind("bitmap")
def bitmap_table_huge_size(i):
    i.put32(i.bitmap() + 8, 0xffffffff)


@kind("bitmap")
def bitmap_entry_unaligned(i):
    i.put64(i.u64(i.bitmap()), i.host(i.data()) + 512)


@kind("bitmap")
def bitmap_entry_reserved(i):
    i.put64(i.u64(i.bitmap()) + 8, 2)


@kind("bitmap")
def bitmap_entry_reserved_high(i):
    i.put64(i.u64(i.bitmap()) + 8, 1 << 60)


@kind("bitmap")
def bitmap_entry_one_with_offset(i):
    i.put64(i.u64(i.bitmap()), i.u64(i.u64(i.bitmap())) | 1)


@kind("bitmap")
def bitmap_entry_ones(i):
    i.put64(i.u64(i.bitmap()) + 8, 1)


@kind("bitmap")
def bitmap_entry_beyond_eof(i):
    i.put64(i.u64(i.bitmap()) + 8, i.end())


@kind("bitmap")
def bitmap_entry_is_data(i):
    i.put64(i.u64(i.bitmap()) + 8, i.host(i.data()))


@kind("bitmap")
def bitmap_autoclear_missing(i):
    i.put64(88, 0)


@kind("plain")
def bitmap_autoclear_without_extension(i):
    i.put64(88, 1)


@kind("bitmap")
def bitmap_directory_unaligned(i):
    i.xor64(i.extension(0x23852875) + 16, 512)


@kind("bitmap")
def bitmap_directory_beyond_eof(i):
    i.put64(i.extension(0x23852875) + 16, i.end())


@kind("bitmap")
def bitmap_directory_zero(i):
    i.put64(i.extension(0x23852875) + 16, 0)


@kind("bitmap")
def bitmap_directory_size_less(i):
    i.put64(i.extension(0x23852875) + 8, 40)


@kind("bitmap")
def bitmap_directory_size_more(i):
    i.put64(i.extension(0x23852875) + 8, 96)


@kind("bitmap")
def bitmap_directory_size_zero(i):
    i.put64(i.extension(0x23852875) + 8, 0)


@kind("bitmap")
def bitmap_directory_size_huge(i):
    i.put64(i.extension(0x23852875) + 8, 1 << 62)


@kind("bitmap")
def bitmap_directory_size_max(i):
    i.put64(i.extension(0x23852875) + 8, 65535 * 1024)


@kind("bitmap")
def bitmap_count_less(i):
    i.put32(i.extension(0x23852875), 1)


@kind("bitmap")
def bitmap_count_more(i):
    i.put32(i.extension(0x23852875), 3)


@kind("bitmap")
def bitmap_count_zero(i):
    i.put32(i.extension(0x23852875), 0)


@kind("bitmap")
def bitmap_count_huge(i):
    i.put32(i.extension(0x23852875), 65536)


@kind("bitmap")
def bitmap_extension_reserved(i):
    i.put32(i.extension(0x23852875) + 4, 1)


@kind("bitmap")
def bitmap_extension_short(i):
    i.put32(i.extension(0x23852875) - 4, 16)


@kind("bitmap")
def bitmap_refcounts_zero(i):
    i.set_ref(i.bitmap() >> i.cluster_bits, 0)
    i.set_ref(i.u64(i.bitmap()) >> i.cluster_bits, 0)


@kind("bitmap")
def bitmap_in_use_entry_unaligned(i):
    bitmap_in_use(i)
    bitmap_entry_unaligned(i)


@kind("bitmap")
def bitmap_in_use_entry_reserved(i):
    bitmap_in_use(i)
    bitmap_entry_reserved(i)


@kind("bitmap")
def bitmap_in_use_entry_one_with_offset(i):
    bitmap_in_use(i)
    bitmap_entry_one_with_offset(i)


@kind("bitmap")
def bitmap_in_use_entries(i):
    bitmap_in_use(i)
    at = i.u64(i.bitmap())
    for n, v in enumerate((HUGE, 2 << 56, i.host(i.data()), i.end() + 512)):
        i.put64(at + 8 * n, v)


@kind("bitmap")
def bitmap_in_use_table_too_small(i):
    bitmap_in_use(i)
    i.put32(i.bitmap() + 8, 1)


@kind("bitmap")
def bitmap_in_use_table_too_large(i):
    bitmap_in_use(i)
    i.put32(i.bitmap() + 8, 1000)


@kind("bitmap")
def bitmap_in_use_table_huge(i):
    bitmap_in_use(i)
    i.put64(i.bitmap(), 1 << 62)


@kind("bitmap")
def bitmap_in_use_table_top(i):
    bitmap_in_use(i)
    i.put64(i.bitmap(), 1 << 63)


@kind("bitmap")
def bitmap_in_use_name_twice(i):
    bitmap_in_use(i)
    bitmap_name_twice(i)


@kind("bitmap")
def bitmap_in_use_granularity_small(i):
    bitmap_in_use(i)
    bitmap_granularity_small(i)


@kind("bitmap")
def bitmap_extra_compatible(i):
    i.put32(i.bitmap() + 12, i.u32(i.bitmap() + 12) | 4)


@kind("bitmap")
def bitmap_name_empty_only(i):
    i.put32(i.extension(0x23852875), 1)
    i.put64(i.extension(0x23852875) + 8, 24)
    i.put16(i.bitmap() + 18, 0)


@kind("bitmap")
def bitmap_name_longest(i):
    i.put64(i.extension(0x23852875) + 8, 32 + 1056)
    i.put16(i.bitmap(1) + 18, 1023)


@kind("bitmap")
def bitmap_name_too_long(i):
    i.put64(i.extension(0x23852875) + 8, 32 + 1048)
    i.put16(i.bitmap(1) + 18, 1024)


@kind("bitmap")
def bitmap_extra_fits(i):
    i.put64(i.extension(0x23852875) + 8, 32 + 40)
    i.put32(i.bitmap(1) + 20, 8)


@kind("bitmap")
def bitmap_table_larger_than_needed(i):
    i.put64(i.bitmap(1), i.append())
    i.put32(i.bitmap(1) + 8, 3)


@kind("bitmap")
def bitmap_without_autoclear_and_broken(i):
    i.put64(88, 0)
    i.put32(i.extension(0x23852875) + 4, 1)


@kind("bitmap")
def bitmap_without_autoclear_and_short(i):
    i.put64(88, 0)
    i.put32(i.extension(0x23852875) - 4, 16)


@kind("bitmap")
def bitmap_corrupt_image(i):
    i.xor64(72, 2)
    bitmap_type_unknown(i)


# several things at once: the order of messages

@kind("bitmap")
def order_of_metadata(i):
    i.put64(i.bitmap(), i.end())
    i.put64(i.reftable + 8, i.end())
    i.put64(48, i.reftable)
    i.put64(i.l1_at(3), i.end())


@kind("snap")
def order_of_tables(i):
    i.put64(i.snapshot(0), i.end())
    i.put64(i.l1_at(3), i.end())
    i.put64(i.u64(i.snapshot(1)) + 24, i.end())
    i.put64(i.reftable + 8, i.end())
    i.b[i.snapshots + 3000:i.snapshots + 3000] = b""
    i.put32(60, 3)


@kind("data")
def order_with_snapshots(i):
    data_snapshots(i)
    i.put64(i.l2_at(i.data(1)), 1 << 57 | 512)


@kind("snap")
def snapshot_l1_unaligned_and_long(i):
    i.xor64(i.snapshot(0), 512)
    i.put32(i.snapshot(0) + 8, (32 << 20) // 8 + 1)


@kind("data")
def compressed_copied_in_data(i):
    i.put64(i.l2_at(i.data()), COPIED | COMPRESSED | (i.host(i.data()) + 5))


@kind("ext")
def compressed_copied_with_bitmap(i):
    at = i.l2_at(i.data())
    i.put64(at, COPIED | COMPRESSED | (i.host(i.data()) + 5))
    i.put64(at + 8, 0xffff)


@kind("ext")
def compressed_copied_without_bitmap(i):
    at = i.l2_at(i.data())
    i.put64(at, COPIED | COMPRESSED | (i.host(i.data()) + 5))
    i.put64(at + 8, 0)


@kind("ext")
def compressed_in_second_table(i):
    i.put64(i.l1_at(0), i.l2_table(0) | COPIED)
    for n in range(3):
        at = i.l2_table(0) + 16 * (100 + n)
        i.put64(at, COMPRESSED | (i.host(i.data()) + 5))
        i.put64(at + 8, 1)


@kind("v2", "data")
def l2_zero_unaligned_other(i):
    at = i.l2_at(i.data(1))
    i.put64(at, (i.u64(at) ^ 512) | 1)


@kind("data")
def l2_zero_copied_at_zero(i):
    i.put64(i.l2_at(i.hole()), COPIED | 1)


@kind("v2")
def snapshot_in_v2(i):
    """An entry without extra data, which version 2 allows."""
    l1 = i.append(bytes(8 * i.l1_size))
    at = i.append(struct.pack(">QIHHIIQII", l1, i.l1_size, 1, 1, 0, 0, 0, 0, 0) + b"1n")
    i.put32(60, 1)
    i.put64(64, at)


@kind("plain")
def snapshot_in_v3_without_extra(i):
    l1 = i.append(bytes(8 * i.l1_size))
    at = i.append(struct.pack(">QIHHIIQII", l1, i.l1_size, 1, 1, 0, 0, 0, 0, 0) + b"1n")
    i.put32(60, 1)
    i.put64(64, at)


@kind("snap")
def snapshot_table_past_2_63(i):
    i.put64(64, 1 << 63)


@kind("snap")
def snapshot_table_near_2_63(i):
    i.put64(64, (1 << 63) - i.cluster)


@kind("small")
def copied_where_refcounts_cannot_be_read(i):
    i.put64(i.reftable + 8, 0xff << 56)
    for n in (0, 1, 300, 600):
        i.xor64(i.l2_at(n), COPIED)


@kind("small")
def copied_where_tables_cannot_be_counted(i):
    i.put64(i.reftable, i.u64(i.reftable) + 0x200)
    i.put64(i.reftable + 16, 0xff << 56)
    for n in range(0, 1000, 100):
        i.xor64(i.l2_at(n), COPIED)
        i.xor64(i.l1_at(n // 64), COPIED)


@kind("plain")
def refcount_blocks_unaligned(i):
    i.put64(i.reftable, i.ref_block(0) + 0x200)
    i.put64(i.reftable + 8, i.ref_block(0) + 0x400)
    for n in range(3):
        i.xor64(i.l2_at(i.data(n)), COPIED)


@kind("small")
def refcount_blocks_unreadable_and_too_high(i):
    i.put64(i.reftable, 0xff << 56)
    for c in range(256, 300):
        i.set_ref(c, 2)


@kind("snap")
def snapshots_cross_linked(i):
    """Tables with damage, visited by the active state and two snapshots."""
    for n in (1, 2):
        table = i.l2_table(n, i.u64(i.snapshot(0))) if n < 2 else i.l2_table(1)
        i.put64(table + 8 * 300, 1 << 57)
        i.put64(table + 8 * 301, i.end())
    i.put64(i.l1_at(3), i.u64(i.l1_at(1)))


@kind("rc1", "rc2")
def overflow_of_metadata(i):
    for n in range(5):
        i.put64(i.l2_at(i.data(n)), i.l1 | COPIED)
    i.put64(i.reftable + 8, i.u64(i.reftable))


@kind("plain", "small")
def longer_file_with_part(i):
    """The last cluster is not whole, and used."""
    guest = i.hole() if i.cluster > 512 else 5
    i.put64(i.l2_at(guest), (len(i.b) // i.cluster + 1) * i.cluster)
    i.b += bytes(i.cluster + 100)


@kind("plain", "v2")
def table_over_the_end(i):
    """Unaligned, so that its second cluster lies behind the end."""
    i.put64(i.l2_at(i.data(2)), (len(i.b) // i.cluster - 1) * i.cluster + 512 | COPIED)


# the header

@kind("plain", "snap", "data")
def corrupt_bit(i):
    i.xor64(72, 2)


@kind("plain", "lazy")
def dirty_bit(i):
    i.xor64(72, 1)


@kind("lazy")
def dirty_bit_and_refcounts(i):
    i.xor64(72, 1)
    for n in range(5):
        i.set_ref(i.host(i.data(n)) >> i.cluster_bits, 0)


@kind("plain")
def incompatible_unknown(i):
    i.xor64(72, 1 << 40)


@kind("plain")
def compatible_unknown(i):
    i.xor64(80, 1 << 40)


@kind("plain")
def autoclear_unknown(i):
    i.xor64(88, 1 << 40)


@kind("plain")
def magic(i):
    i.b[0] = 0


@kind("plain")
def version_one(i):
    i.put32(4, 1)


@kind("plain")
def version_four(i):
    i.put32(4, 4)


@kind("plain")
def cluster_bits_small(i):
    i.put32(20, 8)


@kind("plain")
def cluster_bits_large(i):
    i.put32(20, 22)


@kind("plain")
def cluster_bits_other(i):
    i.put32(20, 16)


@kind("plain")
def size_huge(i):
    i.put64(24, 1 << 63)


@kind("plain")
def size_largest(i):
    i.put64(24, (1 << 63) - 512)


@kind("plain")
def size_less(i):
    i.put64(24, 100000)


@kind("plain")
def size_more(i):
    i.put64(24, 1 << 40)


@kind("plain")
def encryption_unknown(i):
    i.put32(32, 3)


@kind("plain")
def encryption_aes(i):
    i.put32(32, 1)


@kind("plain")
def refcount_order_large(i):
    i.put32(96, 7)


@kind("plain")
def refcount_order_other(i):
    i.put32(96, 3)


@kind("plain")
def header_length_small(i):
    i.put32(100, 96)


@kind("plain")
def header_length_large(i):
    i.put32(100, 1 << 20)


@kind("plain")
def extension_long(i):
    i.put32(i.u32(100) + 4, 1 << 20)


@kind("plain")
def compression_type_without_bit(i):
    i.b[104] = 1


@kind("plain")
def compression_type_unknown(i):
    i.b[104] = 9
    i.xor64(72, 8)


@kind("plain")
def extended_bit(i):
    i.xor64(72, 16)


@kind("back")
def backing_offset_large(i):
    i.put64(8, 1 << 30)


@kind("back")
def backing_length(i):
    i.put32(16, 1024)


# the file

@kind("plain", "snap", "comp")
def truncated_half(i):
    del i.b[len(i.b) // 2:]


@kind("plain", "comp", "ext")
def truncated_a_little(i):
    del i.b[-700:]


@kind("plain")
def truncated_to_header(i):
    del i.b[i.cluster:]


@kind("plain")
def truncated_in_header(i):
    del i.b[90:]


@kind("plain")
def truncated_to_nothing(i):
    del i.b[:]


@kind("plain")
def longer_file(i):
    i.b += bytes(5 * i.cluster + 100)


def make(folder, names):
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    for good in sorted({KINDS[n][0] for n in names}):
        path = f"{folder}/{good}.good"
        if not os.path.exists(path):
            GOOD[good](path)
    for name in names:
        good, f = KINDS[name]
        i = Image(f"{folder}/{good}.good")
        i.remove = None
        f(i)
        if i.remove:
            # The name in the image, of the same length, leads nowhere.
            old = f"{folder}/{good}.good{i.remove}".encode()
            i.b = i.b.replace(old, b"/" + b"x" * (len(old) - 1))
        with open(f"{folder}/{name}.qcow2", "wb") as out:
            out.write(i.b)


def random_images(folder, seed, n):
    folder = os.path.abspath(folder)
    r = random.Random(seed)
    os.makedirs(folder, exist_ok=True)
    for k in range(n):
        good = r.choice(sorted(GOOD))
        path = f"{folder}/{good}.good"
        if not os.path.exists(path):
            GOOD[good](path)
        i = Image(path)
        for _ in range(r.randrange(1, 6)):
            tables = [i.reftable, i.l1] + [i.l2_table(t) for t in range(i.l1_size) if t < 100]
            tables += [i.ref_block(0)] + [i.snapshots] * bool(i.nb_snapshots)
            table = r.choice([t for t in tables if t])
            at = table + 8 * min(int(2 ** r.uniform(0, 9)), i.cluster // 8 - 1)
            at = at if at + 8 <= len(i.b) else 40
            offsets = [r.randrange(len(i.b)) & ~(i.cluster - 1), r.randrange(len(i.b)),
                       i.end(), r.choice(tables), HUGE, 0]
            change = r.randrange(4)
            if change == 0:
                i.xor64(at, 1 << r.randrange(64))
            elif change == 1:
                i.put64(at, r.choice(offsets) | r.choice([0, COPIED, COMPRESSED, 1]))
            elif change == 2:
                i.put64(at, r.getrandbits(64))
            else:
                c = r.randrange(len(i.b) >> i.cluster_bits)
                if c < i.per_block and i.ref_block(c) < len(i.b) - i.cluster:
                    i.set_ref(c, r.randrange(min(5, 1 << (1 << i.order))))
        with open(f"{folder}/random-{seed}-{k}-{good}.qcow2", "wb") as out:
            out.write(i.b)


def hostile(path, l1_entries, nb_snapshots, entry_of, size=1 << 40, cluster_bits=16):
    """A sparse image whose L1 entry number n is entry_of(n), its L2 table at 1 GiB."""
    cluster = 1 << cluster_bits
    l1, table, snapshots = 1 << 26, 1 << 30, 1 << 27
    with open(path, "wb") as f:
        f.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, cluster_bits, 1 << 20, 0,
                            l1_entries, l1, cluster, 1, nb_snapshots, snapshots, 0, 0, 0, 4, 104))
        f.seek(cluster)
        f.write(struct.pack(">Q", 2 * cluster))
        f.seek(l1)
        f.write(b"".join(struct.pack(">Q", entry_of(n)) for n in range(l1_entries)))
        f.seek(snapshots)
        f.write((struct.pack(">QIHHIIQII", l1, l1_entries, 0, 0, 0, 0, 0, 0, 16) + bytes(16)) *
                nb_snapshots)
        f.seek(table)
        f.write(b"".join(struct.pack(">Q", COPIED | r) for r in
                         range(2 * table, 2 * table + cluster // 8 * cluster, cluster)))
        f.truncate(size)


def hostile_images(folder):
    r = random.Random(5)
    os.makedirs(folder, exist_ok=True)
    most = (32 << 20) // 8
    hostile(f"{folder}/one-table.qcow2", most, 0, lambda n: 1 << 30)
    hostile(f"{folder}/snapshots.qcow2", 4096, 65536, lambda n: 1 << 30)
    hostile(f"{folder}/all-over.qcow2", most, 0, lambda n: r.randrange(1 << 24) << 16)
    hostile(f"{folder}/anything.qcow2", most // 16, 0, lambda n: r.getrandbits(64))
    hostile(f"{folder}/small-clusters.qcow2", most // 16, 0, lambda n: r.randrange(1 << 31) << 9,
            (1 << 40) - 512, 9)
    hostile(f"{folder}/large-file.qcow2", 1, 0, lambda n: 1 << 30, 1 << 43)


def main(args):
    if args == ["list"]:
        print("\n".join(KINDS))
    elif len(args) >= 2 and args[0] == "make":
        make(args[1], args[2:] or list(KINDS))
    elif len(args) == 2 and args[0] == "hostile":
        hostile_images(args[1])
    elif len(args) == 4 and args[0] == "random":
        random_images(args[1], int(args[2]), int(args[3]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
