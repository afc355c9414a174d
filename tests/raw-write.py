#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random writes, zeroes and discards of any alignment against a model of the disk.

usage: raw-write.py URI FILE SEED OPERATIONS [CONNECTIONS]

Several connections work at once on ranges of their own that lie side by side, down to the byte.
At the end the disk is read back over a new connection and from FILE, and compared with the model.
"""
import random
import sys
import threading

import nbd


def offset_and_length(r, low, high):
    length = min(high - low, int(2 ** r.uniform(0, 17)))
    if r.random() < 0.3:
        length = max(512, length & ~511)
    off = r.randrange(low, high - min(length, high - low) + 1)
    if r.random() < 0.3:
        off &= ~511
    off = max(off, low)
    return off, min(length, high - off)


def operation(c, r, model, low, high):
    off, length = offset_and_length(r, low, high)
    fua = nbd.FUA if r.random() < 0.1 else 0
    what = r.random()
    if what < 0.5:
        data = r.randbytes(length)
        c.write(off, data, fua)
        model[off:off + length] = data
    elif what < 0.6:
        c.zero(off, length, fua | (nbd.NO_HOLE if r.random() < 0.5 else 0))
        model[off:off + length] = bytes(length)
    elif what < 0.65:
        c.trim(off, length, fua)
        got = c.read(off, length)               # a discard leaves what it likes, but the same
        if any(a != b and a for a, b in zip(got, model[off:off + length])):
            raise AssertionError(f"after a discard: neither zeroes nor the old data at {off}")
        model[off:off + length] = got
    elif what < 0.68:
        c.flush()
    elif c.read(off, length) != model[off:off + length]:
        raise AssertionError(f"read of {length} at {off} differs")


def worker(uri, seed, operations, model, low, high, failures):
    try:
        c = nbd.Nbd(uri)
        r = random.Random(seed)
        for _ in range(operations):
            operation(c, r, model, low, high)
        c.flush()
        c.close()
    except (OSError, AssertionError, nbd.ProtocolError) as e:
        failures.append(f"[{low}, {high}): {e!r}")


def compare(where, got, model):
    if got != model:
        first = next(i for i, (a, b) in enumerate(zip(got, model)) if a != b)
        sys.exit(f"{where}: byte {first} is {got[first]}, not {model[first]}")


def main(uri, path, seed, operations, connections="1"):
    c = nbd.Nbd(uri)
    model, failures = bytearray(c.read(0, c.size)), []
    r = random.Random(int(seed))
    print(f"seed {seed}")
    n = int(connections)
    cuts = [0] + sorted(r.randrange(1, c.size) for _ in range(n - 1)) + [c.size]
    threads = [threading.Thread(target=worker, args=(uri, r.random(), int(operations), model,
                                                     cuts[i], cuts[i + 1], failures))
               for i in range(n) if cuts[i] < cuts[i + 1]]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures:
        sys.exit("\n".join(failures))
    compare("over NBD", c.read(0, c.size), model)
    c.flush()
    with open(path, "rb") as f:
        compare("in the file", f.read(), model[:c.size])
    c.close()


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:])
