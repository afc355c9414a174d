# SPDX-License-Identifier: MIT
"""tests/qcow2-write.py SEED SIZE CLUSTER OPERATIONS - commands for qemu-io: a disk written at random.

Writes, also unaligned ones, writes of zeros, discards and flushes. Some writes are under way
together; these do not overlap. What is discarded is written or zeroed again, for its content is
nobody's."""
import random
import sys

seed, size, cluster, operations = (int(a) for a in sys.argv[1:])
r = random.Random(seed)
# Some places again and again, so that clusters meet several writes.
places = [r.randrange(size) for _ in range(40)]


def extent():
    length = r.choice([512, 4096, r.randrange(1, 9000), cluster, r.randrange(1, 4 * cluster)])
    off = r.choice(places) if r.random() < 0.5 else r.randrange(size)
    off = r.choice([off, off & ~511, off & ~4095, off // cluster * cluster])
    length = min(length, 3 << 20)
    return off, min(length, size - off)


def parallel():
    taken = []
    for _ in range(r.randrange(2, 16)):
        off, length = extent()
        if all(off + length <= o or o + n <= off for o, n in taken):
            taken.append((off, length))
            print(f"aio_write -P {r.randrange(1, 256)} {off} {length}")
    print("aio_flush")


def stream():
    """A sequence of small writes, as a file system's log has it."""
    off, length = extent()
    for _ in range(r.randrange(4, 40)):
        n = min(4096, size - off)
        if n <= 0:
            break
        print(f"write -P {r.randrange(1, 256)} {off} {n}")
        off += n


for i in range(operations):
    off, length = extent()
    kind = r.random()
    if kind < 0.3:
        print(f"write {r.choice(['', '-f '])}-P {r.randrange(1, 256)} {off} {length}")
    elif kind < 0.45:
        print(f"write -z {r.choice(['', '-u '])}{off} {length}")
    elif kind < 0.55:
        print(f"discard {off} {length}")
        print(f"write {r.choice(['-z', '-P 9'])} {off} {length}")
    elif kind < 0.65:
        print("flush")
    elif kind < 0.72:
        stream()
    elif kind < 0.82:
        print(f"read {off} {length}")
    else:
        parallel()
