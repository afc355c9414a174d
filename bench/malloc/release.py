#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/malloc/release.py - memory that goes back when a malloc is asked to give what is free.

usage: release.py [-b BUILD] [-n ROUNDS] [-a NAME=PATH]... [-o CASE]... [--json]

The cases are those of release.c, each with the call that the allocator has for it. Printed are the
share of free pages that the kernel has back (the least of the rounds), the CPU time of the call
beside that of a bare madvise of as much (medians), and the longest that another thread's malloc
took meanwhile (the most of the rounds). The exit status is 1 where a target is missed.
"""
import json
import statistics
import sys

import allocators

CASES = ["own", "idle", "scattered", "passed", "large"]
BACK_LEAST, STALL_MOST_MS, OVER_BARE_MOST = 99, 1, 1.3


def over_bare(rounds):
    """0 where nothing went, and a bare madvise costs nothing."""
    return statistics.median(r["cpu_ms"] / r["bare_ms"] if r["bare_ms"] else 0 for r in rounds)


def main():
    args = allocators.options(__doc__).parse_args()
    found = allocators.find(args)
    cases = allocators.chosen(args, CASES)
    runs = allocators.results_of(args, found, "release", cases)
    results = {key: [run[0] for run in of] for key, of in runs.items()}
    if args.json:
        for (case, name), rounds in results.items():
            print(json.dumps({"case": case, "allocator": name, "rounds": rounds}))
        return
    columns = {
        "free pages given back (%, least)": lambda r: f"{min(x['back_percent'] for x in r):.2f}",
        "CPU time of the call (ms)": lambda r: f"{statistics.median(x['cpu_ms'] for x in r):.1f}",
        "the same, of a bare madvise's": lambda r: f"{over_bare(r):.2f}",
        "longest call of another thread (ms)": lambda r: f"{max(x['stall_ms'] for x in r):.2f}",
    }
    print(f"{args.rounds} rounds")
    for title, form in columns.items():
        allocators.table(title, [["", *found]] + [[c, *(form(results[c, n]) for n in found)]
                                                  for c in cases])
    t = allocators.Targets()
    for case in cases if "byre" in found else []:
        rounds = results[case, "byre"]
        t.at_least(f"given back, {case}", min(r["back_percent"] for r in rounds), BACK_LEAST, " %")
        t.at_most(f"stall of another thread, {case}", max(r["stall_ms"] for r in rounds),
                  STALL_MOST_MS, " ms")
        t.at_most(f"CPU of the call, {case}, of a bare madvise's", over_bare(rounds),
                  OVER_BARE_MOST)
    t.print()
    sys.exit(bool(t.missed))


main()
