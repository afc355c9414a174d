#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A 1 TiB qcow2 image of 64 KiB clusters, all mapped, in a sparse file of about 160 MiB.

usage: tib_image.py ordered|fragmented|leaky FILE

 ordered     guest clusters lie one after the other
 fragmented  in pieces of 2 MiB whose order is drawn at random
 leaky       as ordered, but all refcounts are 2
"""
import array
import random
import struct
import sys

CLUSTER = 1 << 16
DATA = 1 << 24                          # clusters
PER_L2 = CLUSTER // 8
PER_BLOCK = CLUSTER // 2
TABLES = DATA // PER_L2
PIECE = 32
COPIED = 1 << 63


def main(kind, path):
    blocks = -(-(DATA + TABLES + 600 + 3) // PER_BLOCK)
    l2_at = 3 + blocks
    data_at = l2_at + TABLES
    end = data_at + DATA
    order = array.array("Q", range(data_at, end))
    if kind == "fragmented":
        starts = list(range(data_at, end, PIECE))
        random.Random(1).shuffle(starts)
        order = array.array("Q", (c for s in starts for c in range(s, s + PIECE)))
    with open(path, "wb") as f:
        f.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, DATA * CLUSTER, 0,
                            TABLES, CLUSTER, 2 * CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104))
        f.seek(CLUSTER)
        f.write(struct.pack(f">{TABLES}Q",
                            *(COPIED | (l2_at + i) * CLUSTER for i in range(TABLES))))
        f.seek(2 * CLUSTER)
        f.write(struct.pack(f">{blocks}Q", *((3 + i) * CLUSTER for i in range(blocks))))
        for i in range(blocks):
            used = max(0, min(PER_BLOCK, end - i * PER_BLOCK))
            f.seek((3 + i) * CLUSTER)
            f.write((b"\0\2" if kind == "leaky" else b"\0\1") * used)
        for i in range(TABLES):
            f.seek((l2_at + i) * CLUSTER)
            table = array.array("Q", (COPIED | c << 16
                                      for c in order[i * PER_L2:(i + 1) * PER_L2]))
            table.byteswap()
            table.tofile(f)
        f.truncate(end * CLUSTER)


if len(sys.argv) != 3 or sys.argv[1] not in ("ordered", "fragmented", "leaky"):
    sys.exit(__doc__)
main(*sys.argv[1:])
