#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the unit tests of a build folder and counts their cases.

usage: tests/units.py BUILD_DIR [WITHOUT...]

WITHOUT: suites of meson.build to leave out. Those that show nothing more are left out anyway: what
is "once" with BYRE_LOOP=posix, and in a build for ThreadSanitizer what is "alone" (with SUITE=long
only "sim", which would take it hours).

A program that runs out of time, its own (SIGALRM) or meson's, is run once more, by itself: the
machine may have been too busy. What it said first is printed last. A wrong answer is never asked
for twice.

$COUNTS: a file that gets "passed failed skipped".
"""
import json
import os
import re
import signal
import subprocess
import sys

CASE = re.compile(r"^(not )?ok\b\s*\d*\s*(?:- )?([^#\n]*)(#\s*skip)?", re.IGNORECASE)
AGAIN = 3                               # programs; more than that is no accident
TAIL = 40                               # lines of what a failed program said


def cases(stdout):
    """(passed, failed names, skipped) of a TAP stream."""
    passed, failed, skipped = 0, [], 0
    for line in stdout.splitlines():
        m = CASE.match(line)
        if not m:
            continue
        if m[3]:
            skipped += 1
        elif m[1]:
            failed.append(m[2].strip())
        else:
            passed += 1
    return passed, failed, skipped


def left_out(build, without):
    with open(os.path.join(build, "meson-info", "intro-buildoptions.json"), encoding="utf-8") as f:
        options = {o["name"]: o["value"] for o in json.load(f)}
    if os.environ.get("BYRE_LOOP") == "posix":
        without.append("once")
    if options["b_sanitize"] == "thread":
        without.append("sim" if os.environ.get("SUITE") == "long" else "alone")
    return without


class Result:
    """What one program of unit tests came to."""

    def __init__(self, test):
        self.test = test
        self.passed, self.failed, self.skipped = cases(test.get("stdout") or "")
        self.ran_out_of_time = not self.failed and (test["result"] == "TIMEOUT" or
                                                    test["returncode"] == -signal.SIGALRM)
        # cmocka says "not ok # SKIP", which meson takes for failed
        self.is_excused = (test["result"] == "FAIL" and test["returncode"] == 0 and
                           self.skipped > 0 and not self.failed)
        if test["result"] == "SKIP":
            self.skipped += not self.skipped
        elif (test["result"] not in ("OK", "EXPECTEDFAIL") and not self.failed and
              not self.is_excused):
            self.failed = [f"the program itself ({test['result']}, {test['returncode']})"]
        elif self.passed + self.skipped == 0 and not self.failed:
            self.passed = 1             # a program that counts no cases

    def said(self):
        return [line for stream in ("stdout", "stderr")
                for line in (self.test.get(stream) or "").splitlines()]

    def show(self, word):
        """Last of all, where who looks at the end of a log finds it."""
        print(f"\n==== {self.test['name']}")
        print(*self.said()[-TAIL:], sep="\n")
        for name in self.failed:
            print(f"{word}: {self.test['name']}: {name}")


def run(build, base, selection):
    """(by name, what of them meson alone takes for failed) of the programs of @selection."""
    log = os.path.join(build, "meson-logs", base + ".json")
    if os.path.exists(log):
        os.unlink(log)
    # A program's time is there to end one that hangs, on however busy a machine.
    status = subprocess.run(["meson", "test", *selection, "-C", build, "--no-rebuild",
                             "--suite", "unit", "--logbase", base,
                             "--num-processes", os.environ.get("UNITS_AT_A_TIME", "1"),
                             "--timeout-multiplier", "20"]).returncode
    if not os.path.exists(log):
        sys.exit("meson test left no log")
    with open(log, encoding="utf-8") as f:
        results = {r.test["name"]: r for r in map(Result, map(json.loads, f))}
    return results, status - sum(r.is_excused for r in results.values())


def main(build, without):
    base = "units-" + os.environ.get("BYRE_LOOP", "any")
    results, status = run(build, base,
                          [a for suite in left_out(build, without) for a in ("--no-suite", suite)])
    first = {name: r for name, r in results.items() if r.ran_out_of_time}
    if 0 < len(first) <= AGAIN:
        # meson's log has "project:suites / name".
        again, _ = run(build, base + "-again", [name.split(" / ")[-1] for name in first])
        results |= again
    for name, r in results.items():
        print(f"{name}: {r.passed} passed, {len(r.failed)} failed, {r.skipped} skipped,"
              f" {r.test['duration']:.2f} s")
    for name, r in first.items():
        if not results[name].failed:
            r.show("OUT OF TIME AT FIRST")
    failures = [r for r in results.values() if r.failed]
    for r in failures:
        r.show("FAILED")
    total = [sum(r.passed for r in results.values()), sum(len(r.failed) for r in failures),
             sum(r.skipped for r in results.values())]
    if status > 0 and not failures and not first:
        print(f"FAILED: meson test itself ({status})")
        total[1] += 1
    with open(os.environ.get("COUNTS", os.devnull), "w", encoding="utf-8") as f:
        print(*total, file=f)
    sys.exit(1 if total[1] else 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
