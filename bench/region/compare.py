#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/region/compare.py - a region beside power-of-two slabs, the C library's malloc and others.

usage: compare.py [-b BUILD] [-n RUNS] [-q] [--json] [DIRECTORY...]

Objects are replaced at random at a fixed number alive (replace.c): sizes of the 4 KiB pages of
the files below the directories (/usr/bin /usr/lib /usr/share) compressed with lz4 and with zstd,
and any size from 2 to 4 KiB. Measured are bytes held for each byte alive, the share of empty pages
that go back to the system after 70 % of the objects were freed, and CPU time of a call. Empty are
all pages without an object: also those that hold the region's own records, which cannot go. Each
piece of memory has two of them, so the goal is for pieces of 128 KiB and more.
Other mallocs (jemalloc, gperftools, mimalloc) take part where they are installed. For `malloc kept'
the C library's is told to keep its memory, so that it asks the kernel for nothing meanwhile.

Subjects take turns within each run, so that a slow minute falls on all; the least CPU time of
a subject's runs counts. -q is a short run. The exit status is 1 where a goal is missed.
"""
import argparse
import ctypes.util
import json
import os
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REGIONS = [64 << 10, 128 << 10, 256 << 10, 1 << 20]
PRELOADED = ["jemalloc", "tcmalloc_minimal", "mimalloc"]
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
FEW = 15000
HELD_MAX = {"lz4": 1.04, "zstd": 1.04, "uniform": 1.08}
SLAB_MORE, BACK_MIN, BACK_REGION = 1.35, 90, 128 << 10


def parse():
    p = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    p.add_argument("-b", dest="build", default=os.path.join(TOP, "build"))
    p.add_argument("-n", dest="runs", type=int, default=5)
    p.add_argument("-q", dest="quick", action="store_true")
    p.add_argument("--json", action="store_true")
    p.add_argument("directories", nargs="*", default=["/usr/bin", "/usr/lib", "/usr/share"])
    return p.parse_args()


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.tools = os.path.join(args.build, "bench", "region")
        self.size = ["--replace", "20000", "--alive", "3000"] if args.quick else []
        self.traces = {"uniform": ["--uniform", "2048:4096"]}
        for method in "lz4", "zstd":
            path = os.path.join(folder, method)
            count = "8000" if args.quick else "100000"
            with open(path, "w", encoding="ascii") as out:
                subprocess.run([os.path.join(self.tools, "page-sizes"), "--count", count, method,
                                *args.directories], stdout=out, check=True)
            self.traces[method] = ["--sizes", path]
        self.results = []

    def run(self, trace, label, mode, region=REGIONS[0], env=(), few=False):
        size = self.size or (["--alive", str(FEW), "--replace", str(20 * FEW)] if few else [])
        subject = label if label in ("region", "slab", "none") else "malloc"
        command = [os.path.join(self.tools, "replace"), *size, *self.traces[trace],
                   "--region", str(region), subject, mode]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True,
                             env=os.environ | dict(env))
        result = json.loads(out.stdout) | {"trace": trace, "label": label, "mode": mode,
                                           "few": few}
        self.results.append(result)
        return result


def mallocs():
    """Label and environment of each malloc there is."""
    found = {"malloc": {}, "malloc kept": KEEP}
    for name in PRELOADED:
        library = ctypes.util.find_library(name)
        if library:
            found[name] = {"LD_PRELOAD": library}
    return found


def table(title, rows):
    print(f"\n{title}")
    for row in rows:
        print("  " + "".join(f"{cell:<27}" if i == 0 else f"{cell:>10}"
                             for i, cell in enumerate(row)).rstrip())


def compare_held(b, traces, missed):
    rows = [["", *traces]]
    held = {}
    for region in REGIONS:
        held[region] = [b.run(t, "region", "held", region)["held"] for t in traces]
        rows.append([f"region, {region >> 10} KiB", *(f"{h:.3f}" for h in held[region])])
    few = [b.run(t, "region", "held", few=True)["held"] for t in traces]
    rows.append([f"region, 64 KiB, {FEW} alive", *(f"{h:.3f}" for h in few)])
    slab = [b.run(t, "slab", "held")["held"] for t in traces]
    rows.append(["slabs", *(f"{h:.3f}" for h in slab)])
    for label, env in mallocs().items():
        if label != "malloc kept":
            rows.append([label, *(f"{b.run(t, label, 'held', env=env)['held']:.3f}"
                                  for t in traces)])
    for region, got in held.items():
        for t, h, s in zip(traces, got, slab):
            if h > HELD_MAX[t]:
                missed.append(f"{t}, {region >> 10} KiB: holds {h:.3f}, not {HELD_MAX[t]}")
            if t != "uniform" and s < SLAB_MORE * h:
                missed.append(f"{t}, {region >> 10} KiB: slabs hold {s / h:.3f} times as much")
    table("bytes held for each byte alive (mean)", rows)


def compare_freed(b, traces, missed):
    rows = [["", *traces]]
    for region in REGIONS:
        back = [b.run(t, "region", "freed", region)["percent"] for t in traces]
        rows.append([f"region, {region >> 10} KiB", *(f"{p:.1f}" for p in back)])
        if region >= BACK_REGION:
            missed += [f"{t}, {region >> 10} KiB: {p} % of the empty pages back"
                       for t, p in zip(traces, back) if p < BACK_MIN]
    for label, env in mallocs().items():
        if label != "malloc kept":
            rows.append([label, *(f"{b.run(t, label, 'freed', env=env)['percent']:.1f}"
                                  for t in traces)])
    table("empty pages given back after 70 % were freed (%)", rows)


def compare_cpu(b, traces, missed):
    rows = [["", *traces]]
    subjects = {"none": {}, "region": {}, "slab": {}} | mallocs()
    least = {}
    for _ in range(b.args.runs):
        for t in traces:
            for label, env in subjects.items():
                ns = b.run(t, label, "cpu", env=env)["ns"]
                least[label, t] = min(ns, least.get((label, t), ns))
    for label in subjects:
        if label != "none":
            rows.append([label, *(f"{least[label, t] - least['none', t]:.1f}" for t in traces)])
    for t in traces:
        if least["region", t] > least["malloc kept", t]:
            missed.append(f"{t}: a call costs {least['region', t]} ns, with the C library "
                          f"{least['malloc kept', t]}")
    table(f"CPU time of a call (ns, least of {b.args.runs} runs, without the harness)", rows)


def main():
    args = parse()
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        b = Bench(args, folder)
        traces = ["lz4", "zstd", "uniform"]
        stdout = sys.stdout
        if args.json:
            sys.stdout = sys.stderr
        compare_held(b, traces, missed)
        compare_freed(b, traces, missed)
        compare_cpu(b, traces, missed)
        sys.stdout = stdout
        if args.json:
            for r in b.results:
                print(json.dumps(r))
    for m in missed:
        print(f"missed: {m}", file=sys.stderr)
    sys.exit(bool(missed) and not args.quick)


main()
