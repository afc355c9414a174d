# SPDX-License-Identifier: MIT
"""A qcow2 file in memory, by the fields of its tables."""
import struct

COPIED = 1 << 63
COMPRESSED = 1 << 62
OFFSET = 0x00fffffffffffe00
HUGE = 1 << 55


class Image:
    """A qcow2 file in memory."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.b = bytearray(f.read())
        self.remove = None      # the end of the name of a file that shall not be found
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

    def write(self, path):
        with open(path, "wb") as f:
            f.write(self.b)

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
