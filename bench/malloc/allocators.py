# SPDX-License-Identifier: MIT
"""bench/malloc/allocators.py - which allocators are there, and what a program costs with each."""
import argparse
import ctypes.util
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PEERS = {"tcmalloc": "tcmalloc_minimal", "jemalloc": "jemalloc", "mimalloc": "mimalloc"}


def options(doc, **defaults):
    """A parser of those that all have; how they are used stands in the head of the program."""
    parser = argparse.ArgumentParser(usage=doc.split("usage: ")[1].split("\n")[0])
    parser.add_argument("-b", dest="build", default=os.path.join(TOP, "build"),
                        help="build folder (build)")
    parser.add_argument("-n", dest="rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("-a", dest="more", action="append", default=[], metavar="NAME=PATH",
                        help="one more allocator, a library to preload")
    parser.add_argument("-o", dest="only", action="append", default=[], metavar="NAME",
                        help="only this pattern, program or case (again for more)")
    parser.add_argument("--json", action="store_true", help="a JSON line a result")
    parser.set_defaults(**defaults)
    return parser


def find(args):
    """Name and library of each, the C library's and byre's first. Debian links redis with
    jemalloc, so that the C library's malloc must be preloaded, too."""
    found = {"glibc": "libc.so.6"}
    ours = glob.glob(os.path.join(args.build, "src", "mem", "libbyre_malloc.so"))
    if ours:
        found["byre"] = os.path.abspath(ours[0])
    for name, library in PEERS.items():
        path = ctypes.util.find_library(library)
        if path:
            found[name] = path
    for pair in args.more:
        name, _, path = pair.partition("=")
        if not os.path.exists(path):
            sys.exit(f"-a {pair}: there is no such file")
        found[name] = os.path.abspath(path)
    for name in ["byre", *PEERS]:
        if name not in found:
            print(f"{name}: not there, left out", file=sys.stderr)
    return found


def chosen(args, names):
    """Those of the names that -o names, or all."""
    return [name for name in names if not args.only or name in args.only]


def turns(args, found, cases):
    """Round by round each case with each allocator: (case, name). Who is first changes with each
    round; in the first it is the C library's."""
    for n in range(args.rounds):
        names = list(found)
        names = names[n % len(names):] + names[:n % len(names)]
        for case in cases:
            for name in names:
                yield case, name


def results_of(args, found, program, cases, words=lambda case: [case]):
    """What a program of this folder prints, objects of JSON, in each turn: lists by (case, name).
    Its arguments are words(case)."""
    results = {}
    path = os.path.join(args.build, "bench", "malloc", program)
    for case, name in turns(args, found, cases):
        ran = subprocess.run([path, *words(case)], stdout=subprocess.PIPE, check=True,
                             env=os.environ | {"LD_PRELOAD": found[name]})
        results.setdefault((case, name), []).append([json.loads(line)
                                                     for line in ran.stdout.splitlines()])
    return results


def cost_command(args, library, out):
    """What comes before a command to have its cost in the file @out."""
    return [os.path.join(args.build, "bench", "malloc", "cost"), "-o", out, "-p", library]


def read_cost(path):
    with open(path, encoding="ascii") as f:
        cost = json.load(f)
    cost["cpu_ms"] = (cost["user_us"] + cost["sys_us"]) / 1000
    return cost


def measure(args, library, command, **more):
    """Runs the command to its end. Returns its cost and, with stdout=PIPE, what it printed."""
    more.setdefault("stdout", subprocess.DEVNULL)
    with tempfile.NamedTemporaryFile() as out:
        ran = subprocess.run(cost_command(args, library, out.name) + command, check=False, **more)
        if ran.returncode:
            raise RuntimeError(f"{library}: {' '.join(command)} ended with {ran.returncode}")
        return read_cost(out.name), ran.stdout


def until_interrupted(run):
    """Calls run(); SIGTERM and SIGINT end it early, and what it has measured until then counts."""
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        run()
    except KeyboardInterrupt:
        print("interrupted: not all rounds", file=sys.stderr)


def geometric_mean(values):
    product = 1.0
    for v in values:
        product *= v
    return product ** (1 / len(values))


def table(title, rows):
    """The first row is the head; numbers to the right."""
    print(f"\n{title}")
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                             for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


class Targets:
    """What is to be reached, and what is."""

    def __init__(self):
        self.lines = []
        self.missed = 0

    def note(self, what, met, value, limit):
        self.missed += not met
        self.lines.append(f"  {'met' if met else 'MISSED':8}{value:>10} of {limit:16} {what}")

    def at_most(self, what, value, limit, unit=""):
        self.note(what, value <= limit, f"{value:.2f}{unit}", f"at most {limit:g}{unit}")

    def at_least(self, what, value, limit, unit=""):
        self.note(what, value >= limit, f"{value:.2f}{unit}", f"at least {limit:g}{unit}")

    def print(self):
        if self.lines:
            print("\ntargets")
            print("\n".join(self.lines))
