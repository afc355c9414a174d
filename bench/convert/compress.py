#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""byre convert -c beside qemu-img convert -c: what does it cost to compress an image, and how large
does it become?

usage: compress.py [--byre PROGRAM] [--qemu10 RUNNER] [-n RUNS] [--folder FOLDER] [--mib N]
                   [--types TYPES] [--options OPTIONS] [RAW...]

Without RAW files an ext4 image of N MiB (1536) is made of programs, libraries and texts below /usr.
Tools take turns, each as it comes, with deflate and zstd (TYPES: "zlib,zstd"); byre also through
the page cache. The sources are cached. A line each shows the medians: processor time of the tool
and of the sync, seconds until the image was synced, its size and that of the tool's memory at most;
then processor time, time and size beside qemu-img's, and the least and the most of the first. In
the first round images are checked, and compared with what they came from. At the end perf tells,
where it may, what the kernel saw of byre's writes past the page cache.
"""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from plain import MIB, TOP, find_tools, make_file_system, measure  # noqa: E402

PARTS = ["bin", "include", "share/doc", "share/man", "lib/python3", "lib/gcc"]
DATA_MIN, BLOCK = 64 << 10, 4096


def make_image(folder, mib):
    root, image = os.path.join(folder, "root"), os.path.join(folder, "usr.raw")
    os.mkdir(root)
    for part in PARTS:
        if os.path.isdir(f"/usr/{part}"):
            subprocess.run(["cp", "-a", "--parents", f"/usr/{part}", root], check=False,
                           stderr=subprocess.DEVNULL)
    make_file_system(image, root, mib)
    subprocess.run(["rm", "-rf", root], check=True)
    return image


def command_of(args, tool, kind, raw, target):
    options = f"compression_type={kind}" + (f",{args.options}" if args.options else "")
    return [*tool, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, target]


def check_copy(raw, target):
    subprocess.run(["qemu-img", "check", "-q", target], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, target],
                   check=True)


def bench_image(args, tools, raw, kind, target):
    results = {t: [] for t in tools}
    for run in range(args.runs):
        for name, tool in tools.items():
            command = command_of(args, tool[0], kind, raw, target)
            row = measure(command[:-2] + tool[1] + command[-2:], raw, target, False)
            results[name].append((row[2], row[0], os.path.getsize(target), row[5]))
            if run == 0:
                check_copy(raw, target)
    print(f"{os.path.basename(raw)}, {kind}")
    base = [statistics.median(column) for column in zip(*results["qemu-img"])]
    for name, rows in results.items():
        m = [statistics.median(column) for column in zip(*rows)]
        cpus = [row[0] for row in rows]
        print(f"  {name:13} {m[0]:7.2f}s {m[1]:7.2f}s {m[2] / MIB:8.2f} {m[3] / MIB:6.0f}   "
              f"{m[0] / base[0]:5.3f} {m[1] / base[1]:5.3f} {m[2] / base[2]:6.4f}"
              f"   {min(cpus):.2f} .. {max(cpus):.2f}", flush=True)
    pairs = list(zip(results["byre"], results["byre, cached"]))
    cpu, synced = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
    print(f"  byre past the page cache, in parts of through it and synced: CPU {cpu:.3f}, time "
          f"{synced:.3f}", flush=True)


def kernel_view(args, raw, kind, target, folder):
    """What the kernel was asked to write past the page cache, of the image file alone."""
    trace = os.path.join(folder, "perf.data")
    if os.path.exists(target):
        os.unlink(target)
    perf = ["perf", "record", "-q", "-a", "-e", "iomap:iomap_dio_rw_begin", "-o", trace, "--"]
    try:
        subprocess.run(perf + command_of(args, [args.byre], kind, raw, target), check=True,
                       stderr=subprocess.DEVNULL)
        lines = subprocess.run(["perf", "script", "-i", trace], check=True, text=True,
                               capture_output=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        print("perf cannot tell what the kernel saw")
        return
    inode = hex(os.stat(target).st_ino)
    data = small = odd = again = 0
    seen, tried = set(), set()
    for line in lines:
        m = re.search(r" ino (\S+) .*offset (\w+) length (\w+) .*[^_]flags (\S+)", line)
        if not m or m[1] != inode or "WRITE" not in m[4]:
            continue
        off, n = int(m[2], 16), int(m[3], 16)
        # What could not be begun without waiting comes again from another thread.
        if "NOWAIT" in m[4]:
            tried.add((off, n))
        elif (off, n) in tried:
            tried.remove((off, n))
            continue
        if n < DATA_MIN:
            small += 1
            continue
        data += 1
        odd += (off | n) % BLOCK != 0
        blocks = range(off // BLOCK, (off + n) // BLOCK)
        again += sum(b in seen for b in blocks)
        seen.update(blocks)
    print(f"{os.path.basename(raw)}, {kind}, past the page cache, seen by the kernel: {data} "
          f"writes of 64 KiB and more, {odd} unaligned, {again} blocks written twice; {small} "
          "smaller ones: metadata, and the end")


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--byre", default=os.path.join(TOP, "build/src/cmd/byre"))
    p.add_argument("--qemu10", default=os.path.join(TOP, ".cache/qemu10/run"))
    p.add_argument("--folder", help="where images lie; a temporary one")
    p.add_argument("--mib", type=int, default=1536)
    p.add_argument("--types", default="zlib,zstd")
    p.add_argument("--options", default="", help="more of -o, for all")
    p.add_argument("-n", type=int, default=5, dest="runs")
    p.add_argument("raw", nargs="*")
    args = p.parse_args()
    tools = {}
    for name, tool in find_tools(args).items():
        tools[name] = (tool, [])
        if name == "byre":
            tools["byre, cached"] = (tool, ["-t", "writeback"])
    kinds = args.types.split(",")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        target = os.path.join(folder, "target.qcow2")
        raws = args.raw or [make_image(folder, args.mib)]
        print(f"{'':15} {'CPU':>8} {'synced':>8} {'MiB':>8} {'memory':>6}   to qemu-img: CPU, time,"
              " size   CPU (s)")
        for raw in raws:
            for kind in kinds:
                bench_image(args, tools, raw, kind, target)
        kernel_view(args, raws[0], kinds[0], target, folder)


if __name__ == "__main__":
    main()
