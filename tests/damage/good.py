# SPDX-License-Identifier: MIT
"""The good images, made by the qemu-img and qemu-io of the PATH; damage is done to copies."""
import os
import random
import subprocess


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def qemu_io(path, *commands):
    args = [a for c in commands for a in ("-c", c)]
    run("qemu-io", "-f", "qcow2", *args, path)


WRITES = ("write -P 1 0 256k", "write -P 2 1M 100k", "write -P 3 3200k 64k", "write -z 2M 64k",
          "write -P 4 2200k 4k")


def create(path, options, size="8M"):
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size)


def good_plain(path):
    create(path, "cluster_size=4k")
    qemu_io(path, *WRITES)


def good_v2(path):
    create(path, "compat=0.10")
    qemu_io(path, *(w for w in WRITES if "-z" not in w))


def good_small(path):
    """Many refcount blocks: 512-byte clusters."""
    create(path, "cluster_size=512,preallocation=metadata", "512k")


def good_snap(path):
    create(path, "cluster_size=4k")
    qemu_io(path, *WRITES)
    run("qemu-img", "snapshot", "-c", "one", path)
    qemu_io(path, "write -P 7 64k 64k")
    run("qemu-img", "snapshot", "-c", "two", path)
    qemu_io(path, "write -P 8 4M 64k", "write -P 9 0 4k")


def good_comp(path):
    raw = path + ".raw"
    r = random.Random(1)
    with open(raw, "wb") as f:
        for i in range(40):
            half = r.randbytes(r.randrange(1, 40) * 1024)
            f.write((half + bytes([i]) * 65536)[:65536])
    run("qemu-img", "convert", "-q", "-c", "-O", "qcow2", raw, path)
    os.unlink(raw)
    qemu_io(path, "write -P 5 1M 128k")


def good_zstd(path):
    good_comp(path)
    run("qemu-img", "convert", "-q", "-c", "-O", "qcow2", "-o",
        "compression_type=zstd,cluster_size=4k", path, path + ".z")
    os.replace(path + ".z", path)


def good_ext(path):
    create(path, "extended_l2=on,cluster_size=16k")
    qemu_io(path, *WRITES, "write -P 6 5M 512", "write -z 5120k 512", "write -z 6M 16k")


def good_data(path):
    create(path, f"data_file={path}.data,cluster_size=64k")
    qemu_io(path, *WRITES)


def good_bitmap(path):
    create(path, "cluster_size=4k", "64M")
    run("qemu-img", "bitmap", "--add", "-g", "512", path, "first")
    run("qemu-img", "bitmap", "--add", path, "second")
    qemu_io(path, *WRITES)
    run("qemu-img", "bitmap", "--disable", path, "second")


def good_rc(bits):
    def good(path):
        create(path, f"cluster_size=4k,refcount_bits={bits}")
        qemu_io(path, *WRITES)
    return good


def good_lazy(path):
    create(path, "cluster_size=4k,lazy_refcounts=on")
    qemu_io(path, *WRITES)


def good_back(path):
    run("qemu-img", "create", "-q", "-f", "raw", path + ".base", "8M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", path + ".base", path)
    qemu_io(path, *WRITES)


def good_empty(path):
    create(path, "cluster_size=64k", "0")


GOOD = {
    "plain": good_plain, "v2": good_v2, "small": good_small, "snap": good_snap, "comp": good_comp,
    "zstd": good_zstd, "ext": good_ext, "data": good_data, "bitmap": good_bitmap,
    "rc1": good_rc(1), "rc2": good_rc(2), "rc8": good_rc(8), "rc32": good_rc(32),
    "rc64": good_rc(64), "lazy": good_lazy, "back": good_back, "empty": good_empty,
}
