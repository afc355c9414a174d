#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/malloc/bursts.py - what stays resident after bursts of work, as time goes by.

usage: bursts.py [-b BUILD] [-n ROUNDS] [-a NAME=PATH]... [-o MODE]... [--json]

The program is bursts.c: ten bursts of 512 MiB, and 1.2 s between them. Modes: "busy", a few small
requests a millisecond come in between; "background", nothing does, and an allocator that has a
thread for giving back is told to use it; "quiet", nothing does. Printed is the most of all
bursts, without the first. The exit status is 1 where a target is missed: a second after a burst no
more than a tenth beyond what is live.
"""
import json
import sys

import allocators

MODES = ["busy", "background", "quiet"]
OVER_LIVE_MOST, DECAY_SAMPLE = 1.1, 9           # a second


def main():
    args = allocators.options(__doc__, rounds=1).parse_args()
    found = allocators.find(args)
    modes = allocators.chosen(args, MODES)
    runs = allocators.results_of(args, found, "bursts", modes,
                                 lambda mode: [mode] if mode != "busy" else [])
    results = {key: [burst for run in of for burst in run[1:]] for key, of in runs.items()}
    if args.json:
        for (mode, name), bursts in results.items():
            print(json.dumps({"mode": mode, "allocator": name, "bursts": bursts}))
        return
    t = allocators.Targets()
    for mode in modes:
        rows = [["", "live", "at the end"] + [f"{ms} ms" for ms in range(100, 1300, 200)]]
        for name in found:
            bursts = results[mode, name]
            rows.append([name, f"{max(b['live_mib'] for b in bursts):.0f}",
                         f"{max(b['end_mib'] for b in bursts):.0f}"] +
                        [f"{max(b['after_mib'][i] for b in bursts):.0f}"
                         for i in range(0, 12, 2)])
        allocators.table(f"{mode}: resident (MiB, the most of the bursts)", rows)
        if "byre" in found and mode != "quiet":
            t.at_most(f"resident a second after a burst, of what is live, {mode}",
                      max(b["after_mib"][DECAY_SAMPLE] / b["live_mib"]
                          for b in results[mode, "byre"]), OVER_LIVE_MOST)
    t.print()
    sys.exit(bool(t.missed))


main()
