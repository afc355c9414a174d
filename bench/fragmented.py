#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/fragmented.py - a qcow2 image of 1 TiB in which every other cluster is allocated.

usage: bench/fragmented.py FILE

Only the L2 tables are written (128 MiB); the clusters that they name lie behind the file's end. The
refcounts are not kept: good for being mapped, not for being checked or read."""
import array
import struct
import sys

CLUSTER = 65536
SIZE = 1 << 40
PER_TABLE = CLUSTER // 8
COPIED = 1 << 63


def main(path):
    tables = SIZE // CLUSTER // PER_TABLE
    l1_at, l2_at = 3 * CLUSTER, 4 * CLUSTER
    data_at = l2_at + tables * CLUSTER
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, SIZE, 0, tables, l1_at,
                         CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104)
    with open(path, "wb") as f:
        f.write(header)
        f.seek(CLUSTER)
        f.write(struct.pack(">Q", 2 * CLUSTER))
        f.seek(l1_at)
        for i in range(tables):
            f.write(struct.pack(">Q", l2_at + i * CLUSTER | COPIED))
        for i in range(tables):
            start = data_at + i * (PER_TABLE // 2) * CLUSTER
            table = array.array("Q", [0]) * PER_TABLE
            table[::2] = array.array("Q", [start + k * CLUSTER | COPIED
                                           for k in range(PER_TABLE // 2)])
            table.byteswap()
            f.seek(l2_at + i * CLUSTER)
            f.write(table.tobytes())


if len(sys.argv) != 2:
    sys.exit(__doc__)
main(sys.argv[1])
