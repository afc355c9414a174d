#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""byre check -r, called as qemu-img, beside QEMU's, over a folder of damaged images.

usage: repair.py --byre PROGRAM [--json] FOLDER

Each *.qcow2 in FOLDER is copied twice for each of -r leaks and -r all. Both programs repair their
copy, and print, say and end with the same (with --json the same for --output=json). Then QEMU's
check finds the same in both copies, and its compare no difference between them, as far as they can
be read; and what could be read of the image before reads the same in byre's copy, unless in none.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

from reference import Pair, plain, SECONDS_MAX

# What is not the same, by image and mode (doc/COMPATIBILITY.md): SAID, what they print; LEFT, what
# a check finds afterwards; READ, the content.
SAID, LEFT, READ = "said", "left", "read"
OTHERWISE = [
    # QEMU reads bitmaps when it opens, and writes them again when it closes, wherever they were.
    (r"^(bitmap-.*|random-.*-bitmap) ", {LEFT}),
    (r"^bitmap-(bitmap-(entry|table)-beyond-eof|bitmap-refcounts-zero|order-of-metadata) ",
     {SAID, LEFT}),
    # Not read: encrypted images, version 1.
    (r"^plain-(encryption-aes|version-one) ", {SAID, LEFT}),
    # Where QEMU finds that it must not write, it forgets the refcounts that it had mended.
    (r"^plain-(l1-longer|l1-table-is-l1) all$", {LEFT}),
    (r"^snap-snapshot-l1-(is-active|too-long) all$", {LEFT}),
    # QEMU has changed something before it finds that.
    (r"^snap-snapshot-(most|too-many) all$", {LEFT}),
    # Tables that lie where none can: QEMU writes there.
    (r"^(plain-l1-unaligned-other|snap-l1-unaligned) all$", {SAID, LEFT, READ}),
    # The old snapshot table lies on the header, or outside: QEMU frees that.
    (r"^snap-snapshot-table-(beyond-eof|header|huge) all$", {SAID, LEFT, READ}),
    # The same, over guest data that lies there.
    (r"^bitmap-(bitmap-entry-is-data|l2-data-is-bitmap-directory) ", {READ}),
]


def allowed(name, mode):
    key = f"{name[:-len('.qcow2')]} {mode}"
    return set().union(*[what for pattern, what in OTHERWISE if re.search(pattern, key)])


def run(program, args, cwd):
    p = subprocess.run([*program, *args], cwd=cwd, stdin=subprocess.DEVNULL,
                       capture_output=True, timeout=SECONDS_MAX, check=False)
    return (p.stdout.decode(errors="replace"), plain("check", p.stderr.decode(errors="replace")),
            p.returncode)


class Repair:
    """Repairs copies of the images of @folder in a folder of its own."""

    def __init__(self, byre, folder, work):
        self.folder, self.work = folder, work
        self.pair = Pair(byre, work)
        self.found = []
        self.compared = 0

    def copies(self, name):
        for who in ("theirs", "ours"):
            os.makedirs(f"{self.work}/{who}", exist_ok=True)
            subprocess.run(["cp", "--sparse=always", f"{self.folder}/{name}",
                            f"{self.work}/{who}/{name}"], check=True)

    def differ(self, name, mode, what, want, got):
        self.compared += 1
        if want == got or what in allowed(name, mode):
            return
        lines = [f"{name} -r {mode}: {what} otherwise:"]
        for w, g in zip(want, got):
            w, g = (str(x).split("\n") for x in (w, g))
            n = next((i for i in range(min(len(w), len(g))) if w[i] != g[i]), None)
            if w != g:
                n = min(len(w), len(g)) if n is None else n
                lines += [f"    line {n}: - {' / '.join(w[n:n + 3])[:200]}",
                          f"    line {n}: + {' / '.join(g[n:n + 3])[:200]}"]
        self.found.append("\n".join(lines))

    def qemu(self, args, cwd, again=lambda: None):
        """A run of QEMU's; one that does not end says nothing of byre, and is tried again."""
        try:
            return run(self.pair.theirs, args, cwd)
        except subprocess.TimeoutExpired:
            print("tried again, for it did not end:", *args)
            again()
            return run(self.pair.theirs, args, cwd)

    def repair(self, name, mode, options):
        self.copies(name)
        args = ["check", "-r", mode, *options, name]
        theirs = self.qemu(args, f"{self.work}/theirs", lambda: self.copies(name))
        self.differ(name, mode, SAID, theirs, run(self.pair.ours, args, f"{self.work}/ours"))

    def judge(self, name, mode):
        """What is left, with QEMU's eyes."""
        both = [self.qemu(["check", name], f"{self.work}/{who}") for who in ("theirs", "ours")]
        self.differ(name, mode, LEFT, *both)
        before = f"{self.folder}/{name}"
        theirs, ours = (f"{self.work}/{who}/{name}" for who in ("theirs", "ours"))
        differs = self.content_differs(theirs, ours)
        # Guest data that is a table as well changes with that, in both.
        if differs or (self.content_differs(before, ours) and
                       not self.content_differs(before, theirs)):
            self.differ(name, mode, READ, ("the same",), (differs or "not as before",))

    def content_differs(self, one, other):
        """Where; or None. What cannot be read, as it could not before, is no difference."""
        out = self.qemu(["compare", "-U", one, other], self.work)
        return out[0] if out[2] == 1 else None

    def all(self, name, with_json):
        for mode in ("leaks", "all"):
            self.repair(name, mode, [])
            self.judge(name, mode)
            if with_json:
                self.repair(name, mode, ["--output=json"])
        for who in ("theirs", "ours"):
            shutil.rmtree(f"{self.work}/{who}")


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--byre", required=True)
    p.add_argument("--json", action="store_true")
    p.add_argument("folder")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as work:
        r = Repair(args.byre, os.path.abspath(args.folder), work)
        names = [n for n in sorted(os.listdir(args.folder)) if n.endswith(".qcow2")]
        for name in names:
            r.all(name, args.json)
    print("(- QEMU, + byre)", *r.found, sep="\n")
    print(f"{len(names)} images, {r.compared} comparisons, {len(r.found)} differences")
    sys.exit(1 if r.found or not names else 0)


if __name__ == "__main__":
    main()
