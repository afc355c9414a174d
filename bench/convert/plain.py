#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""byre convert beside qemu-img convert and cp: how long until a copy is on stable storage, and how
much processor time it takes, for copies without compression.

usage: plain.py [--byre PROGRAM] [--qemu10 RUNNER] [--tree FOLDER] [--mib N] [-n RUNS] [--cold]
                [--options OPTIONS] [FOLDER]

The source is a real file system: an ext4 image of N MiB (1536) with what is in FOLDER (/usr/share),
made once in the working FOLDER (a temporary one), which also takes the copies. Second, a file that
is all data. Tools take turns; a line each shows the medians: seconds until the copy is synced, of
these until the tool ended, processor time of the tool and of the sync, and MiB of the copy and the
source that are in the page cache then. The sources are cached before each run, or with --cold not
at all. Copies are compared with the source once.

Then the same on a file system that can share blocks, where one can be mounted (root, mkfs.xfs): a
new XFS in a file of the working FOLDER. There qemu-img runs with -C as well, which shares, and byre
with -S 4k, which does not. A last column has the MiB of space that the copy takes.
"""
import argparse
import contextlib
import os
import shutil
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MIB = 1 << 20


def find_tools(args):
    tools = {"byre": [args.byre], "qemu-img": ["qemu-img"]}
    if os.access(args.qemu10, os.X_OK):
        tools["qemu-img 10"] = [args.qemu10, "qemu-img"]
    return tools


def make_file_system(image, tree, mib):
    """An ext4 image of mib MiB that holds tree; it is there when it is whole."""
    with open(image + ".part", "wb") as f:
        f.truncate(mib * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", tree, image + ".part"], check=True,
                   stdout=subprocess.DEVNULL)
    os.rename(image + ".part", image)


def make_sources(args, folder):
    fs, data = os.path.join(folder, "fs.raw"), os.path.join(folder, "data.raw")
    if not os.path.exists(fs):
        make_file_system(fs, args.tree, args.mib)
    if not os.path.exists(data):
        piece = os.urandom(16 * MIB)
        with open(data, "wb") as f:
            for _ in range(args.mib // 32):
                f.write(piece)
    packed = os.path.join(folder, "fs.qcow2")
    if not os.path.exists(packed):
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", fs, packed], check=True)
    os.sync()
    return fs, data, packed


def cases_of(folder):
    fs, data, packed = (os.path.join(folder, name) for name in ("fs.raw", "data.raw", "fs.qcow2"))
    return [("file system, raw to qcow2", "raw", "qcow2", fs),
            ("file system, qcow2 to raw", "qcow2", "raw", packed),
            ("file system, raw to raw", "raw", "raw", fs),
            ("all data, raw to raw", "raw", "raw", data),
            ("all data, raw to qcow2", "raw", "qcow2", data)]


def set_cached(path, is_cached):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while is_cached and os.read(fd, 4 * MIB):
        pass
    os.close(fd)


def cached_mib(path):
    out = subprocess.run(["fincore", "--bytes", "--noheadings", "-o", "RES", path],
                         capture_output=True, text=True, check=False).stdout
    return int(out) / MIB if out.strip() else float("nan")


def peak_watch(pid, peak):
    """Keeps the most memory that was resident in @peak[0]: what wait4() says of a child counts the
    memory of this program as well, up to the exec."""
    while True:
        try:
            with open(f"/proc/{pid}/status", encoding="ascii") as f:
                found = [line for line in f if line.startswith("VmHWM:")]
        except OSError:
            return
        if not found:
            return
        peak[0] = int(found[0].split()[1]) * 1024
        time.sleep(0.02)


def measure(command, source, target, is_cold):
    set_cached(source, not is_cold)
    if os.path.exists(target):
        os.unlink(target)
    os.sync()
    free = used_bytes(target)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0]
    watch = threading.Thread(target=peak_watch, args=(process.pid, peak))
    watch.start()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: status {process.returncode}")
    ended = time.monotonic()
    fd = os.open(target, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    synced, after = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    watch.join()
    cpu = used.ru_utime + used.ru_stime + after.ru_stime - before.ru_stime
    return (synced - start, ended - start, cpu, cached_mib(target), cached_mib(source),
            peak[0], (used_bytes(target) - free) / MIB)


def used_bytes(path):
    fs = os.statvfs(os.path.dirname(path))
    return (fs.f_blocks - fs.f_bfree) * fs.f_frsize


@contextlib.contextmanager
def sharing_folder(folder, sources):
    """A folder on a new XFS with copies of the sources; None where there can be none."""
    image, mounted = os.path.join(folder, "xfs.img"), os.path.join(folder, "xfs")
    size = 512 * MIB + 3 * sum(os.path.getsize(s) for s in sources)
    if os.geteuid() or not shutil.which("mkfs.xfs"):
        yield None
        return
    with open(image, "wb") as f:
        f.truncate(size)
    os.makedirs(mounted, exist_ok=True)
    try:
        if subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=False).returncode or \
           subprocess.run(["mount", "-o", "loop", image, mounted], check=False).returncode:
            yield None
            return
        try:
            for source in sources:
                subprocess.run(["cp", source, mounted], check=True)
            yield mounted
        finally:
            subprocess.run(["umount", mounted], check=True)
    finally:
        os.unlink(image)


def compare_tools(args, cases, target, tools):
    """@tools: name -> command and options of its convert."""
    for name, source_format, target_format, source in cases:
        commands = {t: [*c, "convert", "-f", source_format, "-O", target_format,
                        *args.options.split(), *options, source, target]
                    for t, (c, options) in tools.items()}
        if source_format == target_format:
            commands["cp"] = ["cp", "--sparse=auto", source, target]
        results = {t: [] for t in commands}
        for run in range(args.runs):
            for tool, command in commands.items():
                results[tool].append(measure(command, source, target, args.cold))
                if run == 0 and tool != "cp":
                    subprocess.run(["qemu-img", "compare", "-q", "-f", source_format, "-F",
                                    target_format, source, target], check=True)
        print(name)
        for tool, rows in results.items():
            m = [statistics.median(column) for column in zip(*rows)]
            print(f"  {tool:14} {m[0]:7.2f}s {m[1]:7.2f}s {m[2]:7.2f}s "
                  f"{m[3]:15.0f} {m[4]:7.0f} {m[6]:7.0f}")
    if os.path.exists(target):
        os.unlink(target)


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--byre", default=os.path.join(TOP, "build/src/cmd/byre"))
    p.add_argument("--qemu10", default=os.path.join(TOP, ".cache/qemu10/run"))
    p.add_argument("--tree", default="/usr/share")
    p.add_argument("--mib", type=int, default=1536)
    p.add_argument("-n", type=int, default=5, dest="runs")
    p.add_argument("--cold", action="store_true")
    p.add_argument("--options", default="", help="more options of convert, for all")
    p.add_argument("folder", nargs="?")
    args = p.parse_args()
    tools = find_tools(args)
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or made
        sources = make_sources(args, folder)
        print(f"{'':16} {'synced':>8} {'ended':>8} {'CPU':>8} {'cached: target':>15}"
              f" {'source':>7} {'space':>7}")
        compare_tools(args, cases_of(folder), os.path.join(folder, "copy"),
                      {t: (c, []) for t, c in tools.items()})
        with sharing_folder(folder, sources) as xfs:
            if not xfs:
                print("no file system that shares blocks can be mounted")
                return
            both = {t: (c, []) for t, c in tools.items()}
            both["byre -S 4k"] = ([args.byre], ["-S", "4k"])
            both["qemu-img -C"] = (["qemu-img"], ["-C"])
            print("on XFS")
            compare_tools(args, cases_of(xfs), os.path.join(xfs, "copy"), both)


if __name__ == "__main__":
    main()
