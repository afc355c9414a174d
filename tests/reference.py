#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""byre, called as qemu-img, beside the QEMU that it is to be like, over folders of images.

usage: reference.py images --byre PROGRAM FOLDER [COMMAND]...
       reference.py older WANT GOT COMMAND

images: each *.qcow2 in FOLDER goes through info, map, check (all as text and as JSON), measure, and
compare with a good image, with both programs; what they print, say and end with is the same.
COMMANDs take the place of these: "check", "check --output=json".
older: are the outcomes in the files WANT and GOT (reference.bash) of COMMAND the same but for what
the installed QEMU does otherwise than QEMU 10? tests/matrix.py uses the functions.

The reference is QEMU 10 where tools/qemu10 has unpacked it, else the one installed; $QEMU10 names
another program that runs it.
"""
import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMANDS = ["info", "info --output=json", "map", "map --output=json", "check",
            "check --output=json", "measure -O qcow2"]
SECONDS_MAX = 120

# What both say on standard error, without the programs' own paths, and without the line in which
# each describes damage in its own words (doc/COMPATIBILITY.md).
PATHS = [(re.compile(r"^[^ \n]*/qemu-img( [a-z]+)?: ", re.M), r"qemu-img\1: "),
         (re.compile(r"'[^ '\n]*/qemu-img( [a-z]+)? --help'"), r"'qemu-img\1 --help'")]
DAMAGE = re.compile(r"^(qcow2: Image is corrupt: |byre: error: .* is damaged: ).*\n", re.M)
SAID_OF_DAMAGE = 440                    # bytes of a line that count: byre cuts long ones

# What is not the same, and why (doc/COMPATIBILITY.md): the commands.
OTHERWISE = {
    # Not read: encrypted images, version 1.
    "plain-encryption-aes.qcow2": ("map", "check", "measure", "compare"),
    "plain-version-one.qcow2": "",
    # What a damaged compressed cluster begins with is not taken for its content.
    "comp-truncated-half.qcow2": "compare",
}


def qemu10():
    """How to run a program of QEMU 10, or of the QEMU that is there; and whether it is older."""
    cache = os.environ.get("XDG_CACHE_HOME")
    cache = os.path.join(cache, "byre") if cache else os.path.join(TOP, ".cache")
    runner = os.environ.get("QEMU10", os.path.join(cache, "qemu10", "run"))
    if os.access(runner, os.X_OK):
        return [runner], False
    return [], True


def plain(command, text):
    for pattern, to in PATHS:
        text = pattern.sub(to, text)
    if not command.startswith("check"):
        text = DAMAGE.sub("", text)
    # A name in a damaged image is anything: byre shows what a terminal might obey as "?".
    text = re.sub(r"[^\n -~]", "?", text)
    return "\n".join(line[:SAID_OF_DAMAGE] for line in text.split("\n"))


# ---- what the installed QEMU does otherwise than QEMU 10: doc/COMPATIBILITY.md ----

CHILDREN = re.compile(r'^( *)"children": \[\n(?:\1 .*\n)*\1\],\n', re.M)


NEWER = [(re.compile(r'^ *("detached-header"|detached header): false,?\n', re.M), ""),
         (re.compile(r"VM (SIZE|CLOCK)"), r"VM_\1"), (re.compile(r" +"), " "),
         (re.compile(r" 00(\d\d:\d\d:\d\d\.\d)"), r" \1"),
         (re.compile(r"( --)? *$", re.M), "")]
UNKNOWN = re.compile(r"^qemu-img: unrecognized option", re.M)
DIED_DIVIDING = 128 + 8                 # by the size of an empty disk
INVALID = re.compile(r"^qemu-img: Invalid .* specified", re.M)
USAGE = re.compile(r"--help' for more info$", re.M)


def without_child_nodes(text):
    """The text of info without its "Child node" blocks."""
    kept, is_inside = [], False
    for line in text.split("\n"):
        if line.startswith("Child node '"):
            is_inside = True
        elif not line.startswith("    "):
            is_inside = False
        if not is_inside:
            kept.append(line)
    return "\n".join(kept)


def as_older(command, stdout):
    """@stdout of QEMU 10's @command as the installed QEMU has it."""
    word = command.split()[0] if command.split() else ""
    if word == "map":
        return re.sub(r', "compressed": (true|false)', "", stdout)
    if word == "info":
        stdout = CHILDREN.sub("", stdout)
        stdout = without_child_nodes(stdout)
        for pattern, to in NEWER:
            stdout = pattern.sub(to, stdout)
    return stdout


def is_same_older(command, want, got):
    """@want and @got are (stdout, stderr, status); the messages of errors have other words, some
    options are not there, and some wrong command lines show the help and end well."""
    if command.startswith("bench") and (INVALID.search(got[1]) or want[2] == DIED_DIVIDING):
        return True                     # it takes 0, waits for ever without a depth, and divides
    if got[2] == 1 and USAGE.search(got[1]) or UNKNOWN.search(want[1]):
        return True
    return (want[2] == got[2] and as_older(command, want[0]) == as_older(command, got[0]) and
            (want[1] == got[1] or want[2] != 0))


# ---- running both ----

class Pair:
    """The reference and byre, which is called by a link named qemu-img in @folder."""

    def __init__(self, byre, folder):
        runner, self.is_older = qemu10()
        self.theirs = [*runner, "qemu-img"]
        link = os.path.join(folder, "bin", "qemu-img")
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.lexists(link):
            os.symlink(os.path.realpath(byre), link)
        self.ours = [link]
        self.compared = 0

    def _start(self, program, args, cwd):
        return subprocess.Popen([*program, *args], cwd=cwd, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def difference(self, command, args, cwd):
        """Runs `qemu-img @command @args` with both; None, or what is not the same."""
        argv = [*command.split(), *args]
        programs = (self.theirs, self.ours)
        both = [self._start(program, argv, cwd) for program in programs]
        outcomes = []
        for program, p in zip(programs, both):
            try:
                out, err = p.communicate(timeout=SECONDS_MAX)
            except subprocess.TimeoutExpired:
                p.kill()
                out, err = p.communicate()
                if program is self.theirs:      # says nothing of byre: reference.bash
                    print("tried again, for it did not end:", *argv)
                    p = self._start(program, argv, cwd)
                    out, err = p.communicate(timeout=SECONDS_MAX)
            outcomes.append((out.decode(errors="replace"),
                             plain(command, err.decode(errors="replace")), p.returncode))
        self.compared += 1
        want, got = outcomes
        if want == got or (self.is_older and is_same_older(command, want, got)):
            return None
        lines = [f"{o[0]}--- errors\n{o[1]}--- status {o[2]}".split("\n") for o in outcomes]
        diff = list(difflib.unified_diff(*lines, "QEMU", "byre", lineterm="", n=0))
        return "\n    ".join([f"{command} {' '.join(args)}:", *(d[:300] for d in diff[2:12])])

    def differences(self, image, cwd, other=None, commands=None):
        """All of COMMANDS with @image, and compare with @other. Returns texts."""
        todo = [(c, [image]) for c in commands or COMMANDS]
        if other:
            todo.append(("compare", [image, other]))
        otherwise = OTHERWISE.get(image)
        found = [self.difference(c, args, cwd) for c, args in todo
                 if otherwise is None or not c.startswith(otherwise)]
        return [f for f in found if f]


def settle(folder):
    """What a file takes on the disk changes when it is written there; then no more."""
    for entry in os.scandir(folder):
        if entry.is_file():
            fd = os.open(entry.path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def good_one(name):
    """Of a damaged image's name, that of the image it was (tests/damage)."""
    if name.startswith("random-"):
        return name[:-len(".qcow2")].split("-")[-1] + ".good"
    return name.split("-")[0] + ".good"


def compare_images(args):
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(args.byre, folder)
        names = [n for n in sorted(os.listdir(args.folder)) if n.endswith(".qcow2")]
        found = []
        settle(args.folder)
        for name in names:
            other = None if args.commands else good_one(name)
            found += pair.differences(name, args.folder, other, args.commands)
    for text in found:
        print(f"(- QEMU, + byre) {text}")
    print(f"{len(names)} images, {pair.compared} outcomes compared, {len(found)} differences")
    return 1 if found or not names else 0


def compare_older(args):
    outcomes = []
    for path in (args.want, args.got):
        with open(path, encoding="utf-8", errors="replace") as f:
            stdout, _, rest = f.read().rpartition("--- errors\n")
        stderr, _, status = rest.rpartition("--- status ")
        outcomes.append((stdout, stderr, int(status)))
    return 0 if is_same_older(args.command, *outcomes) else 1


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    sub = p.add_subparsers(required=True)
    images = sub.add_parser("images")
    images.add_argument("--byre", required=True)
    images.add_argument("folder")
    images.add_argument("commands", nargs="*")
    images.set_defaults(run=compare_images)
    older = sub.add_parser("older")
    older.add_argument("want")
    older.add_argument("got")
    older.add_argument("command")
    older.set_defaults(run=compare_older)
    args = p.parse_args()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
