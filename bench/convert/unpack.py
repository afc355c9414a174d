#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compressed images to raw: how much processor time does that take, beside qemu-img convert, and
how long is it until the copy is on stable storage?

usage: unpack.py [--byre PROGRAM] [--qemu10 RUNNER] [-n RUNS] [--folder FOLDER] RAW...

Each RAW file is compressed by qemu-img, as it does that by default, with deflate and with zstd, and
by byre; all with clusters of 64 KiB. Tools take turns; each has its own threads. The sources are
cached. A line each shows the medians: processor time of the tool and of the sync, how many times
less that is than qemu-img's, seconds until the copy was synced. In the first round each copy is
compared with the file that it came from.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from plain import TOP, find_tools, measure  # noqa: E402


def make_images(args, raw, folder):
    made = []
    for name, tool, options in [("qemu-img, deflate", "qemu-img", "compression_type=zlib"),
                                ("qemu-img, zstd", "qemu-img", "compression_type=zstd"),
                                ("byre, deflate", args.byre, "compression_type=zlib"),
                                ("byre, zstd", args.byre, "compression_type=zstd")]:
        path = os.path.join(folder, f"packed{len(made)}.qcow2")
        subprocess.run([tool, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw,
                        path], check=True)
        made.append((name, path))
    return made


def bench_image(args, tools, raw, name, path):
    target = path + ".raw"
    results = {t: [] for t in tools}
    for run in range(args.runs):
        for tool, command in tools.items():
            results[tool].append(measure([*command, "convert", "-f", "qcow2", "-O", "raw", path,
                                          target], path, target, False))
            if run == 0:
                subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", raw,
                                target], check=True)
    os.unlink(target)
    print(f"{os.path.basename(raw)}, compressed by {name}")
    base = statistics.median(row[2] for row in results["qemu-img"])
    for tool, rows in results.items():
        m = [statistics.median(column) for column in zip(*rows)]
        print(f"  {tool:10} {m[2]:7.2f}s {base / m[2]:7.2f} {m[0]:7.2f}s", flush=True)


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--byre", default=os.path.join(TOP, "build/src/cmd/byre"))
    p.add_argument("--qemu10", default=os.path.join(TOP, ".cache/qemu10/run"))
    p.add_argument("--folder", help="where images and copies lie; a temporary one")
    p.add_argument("-n", type=int, default=5, dest="runs")
    p.add_argument("raw", nargs="+")
    args = p.parse_args()
    print(f"{'':12} {'CPU':>8} {'x':>7} {'synced':>8}")
    for raw in args.raw:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for name, path in make_images(args, raw, folder):
                bench_image(args, find_tools(args), raw, name, path)


if __name__ == "__main__":
    main()
