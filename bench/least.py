#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/least.py - the least time that each of several programs takes for the same arguments.

usage: bench/least.py RUNS "ARGUMENTS" NAME:PROGRAM...

The programs take turns. A line each: name, seconds, seconds of processor time, how many times as
long as the first one's, and whether it printed something else than the first."""
import hashlib
import os
import resource
import subprocess
import sys
import time


def run(command):
    """(seconds, processor seconds, hash of the output)"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as p:
        digest = hashlib.blake2b()
        while data := os.read(p.stdout.fileno(), 1 << 20):
            digest.update(data)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if p.returncode:
        sys.exit(f"{command} ended with {p.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, digest.hexdigest()


def main(runs, arguments, *peers):
    least = {}
    printed = {}
    for _ in range(int(runs)):
        for peer in peers:
            name, program = peer.split(":", 1)
            seconds, cpu, digest = run(program.split() + arguments.split())
            printed[name] = digest
            s, c = least.get(name, (seconds, cpu))
            least[name] = min(s, seconds), min(c, cpu)
    words = [os.path.basename(w) for w in arguments.split()]
    print(" ".join(words))
    first = next(iter(least.values()))
    for name, (seconds, cpu) in least.items():
        print(f"  {name:12} {seconds:8.3f} s {cpu:8.3f} cpu  x {seconds / first[0]:.2f} time"
              f"  x {cpu / max(first[1], 0.001):.2f} cpu"
              f"{'' if printed[name] == next(iter(printed.values())) else '  (other output)'}")


if len(sys.argv) < 4:
    sys.exit(__doc__)
main(*sys.argv[1:])
