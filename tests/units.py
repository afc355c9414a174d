#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the unit tests of a build folder and counts their cases.

usage: tests/units.py BUILD_DIR      $COUNTS: a file that gets "passed failed skipped"
"""
import json
import os
import re
import subprocess
import sys

CASE = re.compile(r"^(not )?ok\b\s*\d*\s*(?:- )?([^#\n]*)(#\s*skip)?", re.IGNORECASE)


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


def main(build):
    base = "units-" + os.environ.get("BYRE_LOOP", "any")
    log = os.path.join(build, "meson-logs", base + ".json")
    if os.path.exists(log):
        os.unlink(log)
    command = ["meson", "test", "-C", build, "--no-rebuild", "--suite", "unit",
               "--num-processes", "1", "--timeout-multiplier", "5",
               "--print-errorlogs", "--logbase", base]
    # What has no loop of the machine's runs in one of the two passes.
    if os.environ.get("BYRE_LOOP") == "posix":
        command += ["--no-suite", "once"]
    run = subprocess.run(command)
    if not os.path.exists(log):
        sys.exit("meson test left no log")
    total = [0, 0, 0]
    excused = 0
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
            for name in failed:
                print(f"  FAILED: {name}")
            total = [total[0] + passed, total[1] + len(failed), total[2] + skipped]
    with open(os.environ.get("COUNTS", os.devnull), "w", encoding="utf-8") as f:
        print(*total, file=f)
    # meson returns how many failed.
    sys.exit(1 if total[1] or run.returncode > excused else 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
