# SPDX-License-Identifier: MIT
"""Images that name a few tables very often: what bounds time and memory."""
import os
import random
import struct

from image import COPIED


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
