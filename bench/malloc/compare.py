#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/malloc/compare.py - byre's malloc beside the C library's and others, by patterns of use.

usage: compare.py [-b BUILD] [-n ROUNDS] [-a NAME=PATH]... [-o PATTERN]... [-s PERCENT] [--json]

Each pattern (`patterns --list') is a process of its own with the allocator preloaded. Allocators
take turns, so that a slow minute of the machine falls on all. The medians of the rounds count:
CPU time, user and system, of the whole process, and its peak of resident memory. Targets are
printed beside what was reached. `Best peer' is the best of all but byre: for a mean the one with
the best mean, for a pattern the best there.

-s makes runs longer or shorter. -a adds an allocator. Exit status 1: a target is missed.
"""
import json
import os
import statistics
import subprocess
import sys

import allocators
from allocators import geometric_mean

WORST, WORST_OF = 1.15, {"fifo-64": 1.35}
STEPS = {"lifo malloc": 20, "lifo free": 26}


def parse():
    p = allocators.options(__doc__)
    p.add_argument("-s", dest="percent", type=int, default=100)
    return p.parse_args()


def patterns_of(args):
    """Name and group of each."""
    program = os.path.join(args.build, "bench", "malloc", "patterns")
    if not os.path.exists(program):
        sys.exit(f"there is no {program}: build first, without sanitizers")
    out = subprocess.run([program, "--list"], stdout=subprocess.PIPE, check=True, text=True).stdout
    groups = dict(line.split()[:2] for line in out.splitlines())
    unknown = set(args.only) - set(groups)
    if unknown:
        sys.exit(f"unknown: {' '.join(unknown)}")
    return program, {p: groups[p] for p in allocators.chosen(args, groups)}


def run_all(args, found, program, groups):
    """Results by (pattern, allocator), each a list of costs."""
    results = {}
    allocators.until_interrupted(lambda: run_rounds(args, found, program, groups, results))
    for pattern in list(groups):
        if any((pattern, name) not in results for name in found):
            print(f"left out, not measured with all: {pattern}", file=sys.stderr)
            del groups[pattern]
    if not groups:
        sys.exit("nothing was measured")
    return results


def run_rounds(args, found, program, groups, results):
    for pattern, name in allocators.turns(args, found, groups):
        cost, _ = allocators.measure(args, found[name], [program, pattern, str(args.percent)])
        results.setdefault((pattern, name), []).append(cost)


def medians(results, key):
    return {k: statistics.median(c[key] for c in costs) for k, costs in results.items()}


def print_table(title, values, found, groups, digits):
    peers = [n for n in found if n != "byre"]
    ours = "byre" in found
    rows = [["", *found, *(["/ best peer"] if ours else [])]]
    for pattern in groups:
        row = [pattern, *(f"{values[pattern, n]:.{digits}f}" for n in found)]
        if ours:
            best = min(peers, key=lambda n: values[pattern, n])
            row.append(f"{values[pattern, 'byre'] / values[pattern, best]:.2f} {best:8}")
        rows.append(row)
    means = {n: geometric_mean([values[p, n] for p in groups]) for n in found}
    rows.append(["geometric mean", *(f"{means[n]:.{digits}f}" for n in found),
                 *([""] if ours else [])])
    allocators.table(title, rows)


def judge_cpu(t, cpu, found, groups):
    peers = [n for n in found if n != "byre"]

    def ratio(names, peer):
        return geometric_mean([cpu[p, "byre"] / cpu[p, peer] for p in names])

    def of_group(group):
        return [p for p, g in groups.items() if g == group]

    t.at_most("CPU, geometric mean, of the best peer's",
              max(ratio(groups, n) for n in peers), 0.95)
    t.at_most("CPU, geometric mean, of glibc's", ratio(groups, "glibc"), 0.65)
    for peer, limit in ("tcmalloc", 0.5), ("mimalloc", 0.7):
        if peer in peers and of_group("cross"):
            t.at_most(f"CPU, freed by another thread, of {peer}'s", ratio(of_group("cross"), peer),
                      limit)
    for pattern in of_group("io"):
        t.at_most(f"CPU, {pattern}, of the best peer's", max(ratio([pattern], n) for n in peers), 1)
    for pattern in groups:
        t.at_most(f"CPU, {pattern}, of the best peer's", max(ratio([pattern], n) for n in peers),
                  WORST_OF.get(pattern, WORST))


def compare_steps(args, found, t):
    """Instructions of a call, single-stepped."""
    program = os.path.join(args.build, "bench", "malloc", "steps")
    counted = {}
    for name, library in found.items():
        ran = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=False,
                             env=os.environ | {"LD_PRELOAD": library})
        if ran.returncode == 77:
            print(ran.stdout.strip(), file=sys.stderr)
            return {}
        if ran.returncode:
            raise RuntimeError(f"{name}: {program} ended with {ran.returncode}")
        counted[name] = json.loads(ran.stdout)
    rows = [["", *counted]]
    for call in next(iter(counted.values())):
        rows.append([call, *(f"{c[call]['median']}, {c[call]['mean']:.0f}"
                             for c in counted.values())])
    allocators.table("instructions of a call, 64 bytes (median, mean)", rows)
    if "byre" in counted:
        for call, limit in STEPS.items():
            t.at_most(f"instructions, {call}", counted["byre"][call]["median"], limit)
    return counted


def main():
    args = parse()
    found = allocators.find(args)
    program, groups = patterns_of(args)
    results = run_all(args, found, program, groups)
    cpu, rss = medians(results, "cpu_ms"), medians(results, "rss_kib")
    t = allocators.Targets()
    if args.json:
        for (pattern, name), costs in results.items():
            print(json.dumps({"pattern": pattern, "allocator": name, "rounds": costs}))
        return
    print(f"medians of {min(map(len, results.values()))} rounds")
    print_table("CPU time (ms)", cpu, found, groups, 0)
    print_table("peak of resident memory (MiB)", {k: v / 1024 for k, v in rss.items()}, found,
                groups, 1)
    if "byre" in found:
        judge_cpu(t, cpu, found, groups)
        t.at_most("peak of resident memory, geometric mean, of glibc's",
                  geometric_mean([rss[p, "byre"] / rss[p, "glibc"] for p in groups]), 1.2)
    if not args.only:
        compare_steps(args, found, t)
    t.print()
    sys.exit(bool(t.missed))


main()
