#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Damaged qcow2 images: a table of every kind of damage, each done to a copy of a good image.

usage: damage list                   the kinds, a line each
       damage make FOLDER [KIND]...  makes FOLDER/KIND.qcow2 (all kinds without a name)
       damage random FOLDER SEED N   N images with random damage to their tables
       damage hostile FOLDER         images that name a few tables very often

(python3 tests/damage ...) Offsets stand in an image where the specification has them; a kind is a
function that changes a few of them.

    image.py                a qcow2 file in memory
    good.py                 the good images
    kinds.py                the table; these fill it:
    tables.py clusters.py snapshots.py bitmaps.py header.py together.py
    hostile.py              images that name a few tables very often
"""
import os
import random
import sys

import bitmaps as _bitmaps              # noqa: F401  these register their kinds
import clusters as _clusters            # noqa: F401
import header as _header                # noqa: F401
import snapshots as _snapshots          # noqa: F401
import tables as _tables                # noqa: F401
import together as _together            # noqa: F401
from good import GOOD
from hostile import hostile_images
from image import COMPRESSED, COPIED, HUGE, Image
from kinds import KINDS


def good_image(folder, name):
    """The path of the good image @name, which is made once."""
    path = f"{folder}/{name}.good"
    if not os.path.exists(path):
        GOOD[name](path)
    return path


def make(folder, names):
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    for name in names:
        good, damage = KINDS[name]
        path = good_image(folder, good)
        i = Image(path)
        damage(i)
        if i.remove:
            # The name in the image, of the same length, leads nowhere.
            old = f"{path}{i.remove}".encode()
            i.b = i.b.replace(old, b"/" + b"x" * (len(old) - 1))
        i.write(f"{folder}/{name}.qcow2")


def damage_at_random(i, r):
    """Changes one word of a table, or a refcount."""
    tables = [i.reftable, i.l1] + [i.l2_table(t) for t in range(i.l1_size) if t < 100]
    tables += [i.ref_block(0)] + [i.snapshots] * bool(i.nb_snapshots)
    table = r.choice([t for t in tables if t])
    at = table + 8 * min(int(2 ** r.uniform(0, 9)), i.cluster // 8 - 1)
    at = at if at + 8 <= len(i.b) else 40
    offsets = [r.randrange(len(i.b)) & ~(i.cluster - 1), r.randrange(len(i.b)), i.end(),
               r.choice(tables), HUGE, 0]
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


def make_random(folder, seed, n):
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    r = random.Random(seed)
    for k in range(n):
        good = r.choice(sorted(GOOD))
        i = Image(good_image(folder, good))
        for _ in range(r.randrange(1, 6)):
            damage_at_random(i, r)
        i.write(f"{folder}/random-{seed}-{k}-{good}.qcow2")


def main(args):
    if args == ["list"]:
        print("\n".join(KINDS))
    elif len(args) >= 2 and args[0] == "make":
        make(args[1], args[2:] or list(KINDS))
    elif len(args) == 2 and args[0] == "hostile":
        hostile_images(args[1])
    elif len(args) == 4 and args[0] == "random":
        make_random(args[1], int(args[2]), int(args[3]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
