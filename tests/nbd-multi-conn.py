#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tests/nbd-multi-conn.py write URI MODEL SEED | check RAW MODEL - flushes of many connections.

write: some connections write 4 KiB blocks, and any of them flushes: what was answered on any
connection before a flush began is then durable, says CAN_MULTI_CONN. Ends after a flush and some
writes more, with all connections open, and says so; whoever started it kills the server then. MODEL
gets a line a block: what a flush has made durable, and what was written later.
check: the blocks of RAW, the disk as it was left, hold one of these."""
import random
import sys

import nbd

BLOCK, BLOCKS, CONNECTIONS, ROUNDS = 4096, 1024, 6, 40


def content(number):
    return number.to_bytes(8, "little") * (BLOCK // 8)


def write(uri, model, seed):
    r = random.Random(seed)
    conns = [nbd.Nbd(uri) for _ in range(CONNECTIONS)]
    durable, later = {}, {}
    number = 0
    for i in range(ROUNDS + 1):
        taken = r.sample(range(BLOCKS), r.randrange(1, 40))
        for block in taken:
            number += 1
            later.setdefault(block, []).append(number)
            r.choice(conns).send(nbd.WRITE, block * BLOCK, BLOCK, content(number))
        for c in conns:
            while c.waiting:
                c.wait()
        if i == ROUNDS or r.random() < 0.3:
            continue
        before = {block: numbers[-1] for block, numbers in later.items()}
        r.choice(conns).flush()
        durable.update(before)
        later.clear()
    with open(model, "w") as f:
        for block in range(BLOCKS):
            print(block, durable.get(block, 0), *later.get(block, []), file=f)
    print("written", flush=True)
    sys.stdin.read()


def check(raw, model):
    with open(raw, "rb") as disk, open(model) as f:
        for line in f:
            block, *numbers = map(int, line.split())
            disk.seek(block * BLOCK)
            found = disk.read(BLOCK)
            if found not in [content(n) for n in numbers]:
                sys.exit(f"block {block} should hold one of {numbers}, and holds "
                         f"{int.from_bytes(found[:8], 'little')}")


if sys.argv[1] == "write":
    write(sys.argv[2], sys.argv[3], int(sys.argv[4]))
else:
    check(sys.argv[2], sys.argv[3])
