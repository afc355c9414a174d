#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the unit tests of a build folder and counts their cases.

usage: tests/units.py BUILD_DIR [WITHOUT...]

WITHOUT: suites of meson.build to leave out. Those that show nothing more are left out anyway: what
is "once" with BYRE_LOOP=posix, and in a build for ThreadSanitizer what is "alone" (with SUITE=long
only "sim", which would take it hours).

$COUNTS: a file that gets "passed failed skipped".
"""
import json
import os
import re
import subprocess
import sys

CASE = re.compile(r"^(not )?ok\b\s*\d*\s*(?:- )?([^#\n]*)(#\s*skip)?", re.IGNORECASE)
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


def report(failures):
    """Last of all, where who looks at the end of a log finds it: what failed, and what it said."""
    for test, failed in failures:
        print(f"\n==== {test['name']}")
        for stream in "stdout", "stderr":
            lines = (test.get(stream) or "").splitlines()
            print(*lines[-TAIL:], sep="\n")
        for name in failed:
            print(f"FAILED: {test['name']}: {name}")


def main(build, without):
    base = "units-" + os.environ.get("BYRE_LOOP", "any")
    log = os.path.join(build, "meson-logs", base + ".json")
    if os.path.exists(log):
        os.unlink(log)
    # A program's time is there to end one that hangs, on however busy a machine.
    command = ["meson", "test", "-C", build, "--no-rebuild", "--suite", "unit",
               "--num-processes", os.environ.get("UNITS_AT_A_TIME", "1"),
               "--timeout-multiplier", "20", "--logbase", base]
    for suite in left_out(build, without):
        command += ["--no-suite", suite]
    run = subprocess.run(command)
    if not os.path.exists(log):
        sys.exit("meson test left no log")
    total = [0, 0, 0]
    excused = 0
    failures = []
    with open(log, encoding="utf-8") as f:
        for test in map(json.loads, f):
            passed, failed, skipped = cases(test.get("stdout") or "")
            if test["result"] == "SKIP":
                skipped += not skipped
            elif test["result"] == "FAIL" and test["returncode"] == 0 and skipped and not failed:
                excused += 1            # cmocka says "not ok # SKIP", which meson takes for failed
            elif test["result"] not in ("OK", "EXPECTEDFAIL") and not failed:
                failed = [f"the program itself ({test['result']}, {test['returncode']})"]
            elif passed + skipped == 0 and not failed:
                passed = 1              # a program that counts no cases
            print(f"{test['name']}: {passed} passed, {len(failed)} failed, {skipped} skipped,"
                  f" {test['duration']:.2f} s")
            if failed:
                failures.append((test, failed))
            total = [total[0] + passed, total[1] + len(failed), total[2] + skipped]
    report(failures)
    # meson returns how many failed.
    if run.returncode > excused and not failures:
        print(f"FAILED: meson test itself ({run.returncode})")
        total[1] += 1
    with open(os.environ.get("COUNTS", os.devnull), "w", encoding="utf-8") as f:
        print(*total, file=f)
    sys.exit(1 if total[1] else 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
