#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench/malloc/programs.py - real programs with byre's malloc, the C library's and others.

usage: programs.py [-b BUILD] [-n ROUNDS] [-a NAME=PATH]... [-o PROGRAM]... [--json]

Each program runs with the allocator preloaded, and must do what it does with the C library's: its
output is compared. Allocators take turns; medians of CPU time and of the peak of resident memory.
A program that is not installed is left out (tools/deps programs). The exit status is 1 where a
target is missed or a result is wrong.
"""
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import allocators
from allocators import TOP

LOADS = os.path.join(TOP, "bench", "malloc", "loads")
# What a guest says whose QEMU got no processor for a while: tried again.
STARVED, GUEST_TRIES = "IO-APIC + timer doesn't work", 4
CPU_MOST, SMALL_MORE_KIB = 1.03, 1024


class Failed(Exception):
    """A program did not do what it should."""


def printed(b, library, command, **more):
    """Cost, and a digest of what it prints."""
    cost, out = allocators.measure(b.args, library, command, stdout=subprocess.PIPE, **more)
    return cost, hashlib.sha256(out).hexdigest()


def run_true(b, library):
    return printed(b, library, ["true"])


def run_ls(b, library):
    return printed(b, library, ["ls", "-l", "/usr/bin"])


def run_gcc(b, library):
    """Several files; the assembler text is the result. gcc waits for its compiler."""
    sources = [os.path.join("src", f) for f in ("fmt/qcow2/check_walk.c", "fmt/qcow2/commit.c",
                                                "export/nbd/receive.c", "loop/loop_uring.c")]
    script = "for f; do gcc -std=gnu17 -D_GNU_SOURCE -O2 -Isrc -S -o - $f || exit 1; done"
    return printed(b, library, ["sh", "-c", script, "sh", *sources], cwd=TOP)


def run_python(b, library):
    return printed(b, library, ["/usr/bin/python3", os.path.join(LOADS, "objects.py")],
                   env=os.environ | {"PYTHONMALLOC": "malloc", "PYTHONHASHSEED": "0"})


def run_lua(b, library):
    return printed(b, library, ["lua5.4", os.path.join(LOADS, "table.lua")])


def run_sqlite(b, library):
    path = os.path.join(b.folder, "rows.db")
    if os.path.exists(path):
        os.unlink(path)
    with open(os.path.join(LOADS, "rows.sql"), encoding="ascii") as script:
        cost, out = allocators.measure(b.args, library, ["sqlite3", "-bail", path], stdin=script,
                                       stdout=subprocess.PIPE)
    if out.splitlines()[-1] != b"ok":
        raise Failed(f"integrity_check says {out.splitlines()[-1]}")
    return cost, hashlib.sha256(out).hexdigest()


def raw_image(b):
    """64 MiB, of which a part is text and a part noise."""
    path = os.path.join(b.folder, "disk.raw")
    if not os.path.exists(path):
        with open(path, "wb") as f:
            for i in range(500000):
                f.write(f"line {i} of a disk of virtual machines, {i * 7919 % 65537}\n".encode())
            f.write(hashlib.shake_256(b"noise").digest(8 << 20))
            f.truncate(64 << 20)
    return path


def run_convert(b, library):
    """To a compressed image and back."""
    raw = raw_image(b)
    packed, back = raw + ".qcow2", raw + ".back"
    script = 'qemu-img convert -c -f raw -O qcow2 "$1" "$2" && qemu-img convert -O raw "$2" "$3"'
    cost, _ = allocators.measure(b.args, library, ["sh", "-c", script, "sh", raw, packed, back])
    with open(back, "rb") as f:
        digest = hashlib.file_digest(f, "sha256") if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(f.read())
    return cost, digest.hexdigest()


def run_guest(b, library):
    """A small Linux boots from a disk and tells what it reads there (tools/guest)."""
    folder = os.path.join(b.folder, "guest")
    os.makedirs(os.path.join(folder, "job"), exist_ok=True)
    out, qemu = os.path.join(b.folder, "guest.cost"), shutil.which("qemu-system-x86_64")
    with open(os.path.join(folder, "qemu-system-x86_64"), "w", encoding="utf-8") as f:
        command = allocators.cost_command(b.args, library, out) + [qemu]
        f.write("#!/bin/sh\nexec " + " ".join(f"'{c}'" for c in command) + ' "$@"\n')
        os.fchmod(f.fileno(), 0o755)
    with open(os.path.join(folder, "job", "run.sh"), "w", encoding="ascii") as f:
        f.write("#!/bin/sh\nsha256sum </dev/vda\n")
        os.fchmod(f.fileno(), 0o755)
    for _ in range(GUEST_TRIES):
        ran = subprocess.run([os.path.join(TOP, "tools", "guest", "boot.sh"), "-t", "400", "-j",
                              os.path.join(folder, "job"), raw_image(b)], capture_output=True,
                             env=os.environ | {"PATH": folder + ":" + os.environ["PATH"]},
                             check=False, text=True)
        if not ran.returncode:
            return allocators.read_cost(out), ran.stdout.strip()
        if STARVED not in ran.stderr:
            break
    raise Failed(f"the guest ended with {ran.returncode}: {ran.stderr}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def redis_send(port, *commands):
    """The last answer's first line."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        answers = s.makefile("rb")
        for words in commands:
            parts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
            s.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p)
                                                       for p in parts))
            answer = answers.readline()
            if answer.startswith(b"-"):
                raise Failed(f"redis: {answer}")
        return answer


def redis_load(port):
    """Random requests, then a known content, whose digest is the result."""
    subprocess.run(["redis-benchmark", "-p", str(port), "-q", "-n", "100000", "-r", "50000",
                    "-d", "120", "-P", "16", "-t", "set,get,incr,lpush,lpop,sadd,hset,zadd"],
                   stdout=subprocess.DEVNULL, check=True)
    commands = [("FLUSHALL",)]
    for i in range(20000):
        commands.append(("SET", f"key {i % 7000}", b"v" * (i * 31 % 2000)))
        commands.append(("RPUSH", f"list {i % 100}", i))
        commands.append(("HSET", f"hash {i % 50}", f"field {i % 900}", i))
    commands.append(("DEBUG", "DIGEST"))
    return redis_send(port, *commands).decode().strip()


def run_redis(b, library):
    port, out = free_port(), os.path.join(b.folder, "redis.cost")
    # Debian's server is the same file as this, which looks at the name it is called by.
    server = os.path.join(b.folder, "redis-server")
    if not os.path.exists(server):
        os.symlink(shutil.which("redis-server") or shutil.which("redis-check-rdb"), server)
    command = allocators.cost_command(b.args, library, out) + [
        server, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", b.folder,
        "--bind", "127.0.0.1", "--enable-debug-command", "yes"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as p:
        try:
            for _ in range(600):
                try:
                    redis_send(port, ("PING",))
                    break
                except OSError:
                    time.sleep(0.05)
            digest = redis_load(port)
        finally:
            p.terminate()
        p.wait()
    return allocators.read_cost(out), digest


# Name: what must be installed, how it is run, and whether CPU time has a target.
PROGRAMS = {
    "true": ([], run_true, False),
    "ls": ([], run_ls, False),
    "gcc": (["gcc"], run_gcc, True),
    "python": (["/usr/bin/python3"], run_python, True),
    "lua": (["lua5.4"], run_lua, True),
    "sqlite": (["sqlite3"], run_sqlite, True),
    "redis": (["redis-benchmark", "redis-check-rdb"], run_redis, True),
    "convert": (["qemu-img"], run_convert, True),
    "guest": (["qemu-system-x86_64", "cpio"], run_guest, True),
}


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.costs = {}
        self.results = {}
        self.wrong = 0

    def run(self, program, name, library):
        try:
            cost, result = PROGRAMS[program][1](self, library)
        except (Failed, RuntimeError, OSError) as e:
            print(f"WRONG: {program} with {name}: {e}", file=sys.stderr)
            self.wrong += 1
            return
        self.costs.setdefault((program, name), []).append(cost)
        if self.results.setdefault(program, result) != result:
            print(f"WRONG: {program} with {name}: another result", file=sys.stderr)
            self.wrong += 1

    def run_all(self, found, programs):
        # The C library's is first: its results are right.
        for program, name in allocators.turns(self.args, found, programs):
            self.run(program, name, found[name])

    def medians(self, key):
        return {k: statistics.median(c[key] for c in costs) for k, costs in self.costs.items()}


def there(args):
    names = []
    for name, (needed, _, _) in PROGRAMS.items():
        missing = [n for n in needed if not shutil.which(n)]
        if missing:
            print(f"skipped: {name}: {missing[0]} is not installed (tools/deps programs)",
                  file=sys.stderr)
        elif not args.only or name in args.only:
            names.append(name)
    return names


def print_table(title, values, found, programs, form):
    rows = [["", *found]]
    for p in programs:
        rows.append([p, *(form.format(values[p, n]) if (p, n) in values else "-"
                          for n in found)])
    allocators.table(title, rows)


def judge(t, b, found, programs):
    cpu, rss = b.medians("cpu_ms"), b.medians("rss_kib")
    for p in programs:
        peers = [n for n in found if n != "byre" and (p, n) in cpu]
        if (p, "byre") not in cpu or not peers:
            continue
        if PROGRAMS[p][2]:
            best = min(peers, key=lambda n, program=p: cpu[program, n])
            t.at_most(f"CPU, {p}, of the best peer's ({best})", cpu[p, "byre"] / cpu[p, best],
                      CPU_MOST)
        else:
            t.at_most(f"peak of resident memory, {p}, more than with glibc",
                      rss[p, "byre"] - rss[p, "glibc"], SMALL_MORE_KIB, " KiB")


def main():
    args = allocators.options(__doc__).parse_args()
    found, programs = allocators.find(args), there(args)
    t = allocators.Targets()
    with tempfile.TemporaryDirectory(prefix="byre-bench.") as folder:
        b = Bench(args, folder)
        allocators.until_interrupted(lambda: b.run_all(found, programs))
    if args.json:
        for (program, name), costs in b.costs.items():
            print(json.dumps({"program": program, "allocator": name, "rounds": costs}))
        sys.exit(bool(b.wrong))
    print(f"medians of {args.rounds} rounds; {b.wrong} wrong results")
    print_table("CPU time (ms)", b.medians("cpu_ms"), found, programs, "{:.0f}")
    print_table("peak of resident memory (MiB)",
                {k: v / 1024 for k, v in b.medians("rss_kib").items()}, found, programs, "{:.1f}")
    if "byre" in found:
        judge(t, b, found, programs)
    t.print()
    sys.exit(bool(t.missed or b.wrong))


main()
