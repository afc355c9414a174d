#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Seeds of the fuzz targets: valid images and sessions, small.

usage: fuzz/seeds.py make DIR           all targets' seeds, in DIR/TARGET (needs qemu-img, qemu-io)
       fuzz/seeds.py pack IMAGE FILE    an image as the qcow2_* targets read it (fuzz/image.h)
       fuzz/seeds.py unpack FILE IMAGE  such a file, a crash perhaps, as an image for other tools

fuzz/corpus has what `make` made, and inputs that once failed, named after what was wrong.
"""
import os
import struct
import subprocess
import sys
import tempfile
import zlib

GAP = 24                        # zero bytes that end a piece; its head takes 12
PIECE_MAX = 16 << 10            # more of one is left out: encrypted keys
SEED = 1
# Name, options of qemu-img create, size, what else is done.
IMAGES = [
    ("v3-512", "cluster_size=512", "160k", "write compress snapshot"),
    ("v2-512", "cluster_size=512,compat=0.10", "100k", "write backing snapshot"),
    ("v3-4k-1bit", "cluster_size=4k,refcount_bits=1", "1M", "write backing"),
    ("v3-4k-64bit", "cluster_size=4k,refcount_bits=64", "1M", "write snapshot snapshot"),
    ("v3-64k", "lazy_refcounts=on", "3M", "write compress bitmap"),
    ("v3-2m", "cluster_size=2M", "9M", "write"),
    ("sub-16k", "cluster_size=16k,extended_l2=on", "1M", "write backing compress snapshot"),
    ("zstd-4k", "cluster_size=4k,compression_type=zstd", "256k", "write compress"),
    ("data", "data_file=%s/data.raw", "1M", "write"),
    ("data-raw", "data_file=%s/data.raw,data_file_raw=on,cluster_size=4k", "1M", "write"),
    ("bitmaps", "cluster_size=4k", "1M", "write bitmap bitmap bitmap snapshot"),
    ("luks", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200,cluster_size=4k",
     "256k", ""),
    ("huge", "cluster_size=512", "12G", "write"),
]
HEADERS = ["v3-512", "v2-512", "v3-64k", "data-raw", "luks", "bitmaps", "zstd-4k"]
OF_TARGET = {
    "qcow2_l2": ["v3-512", "v2-512", "v3-4k-1bit", "v3-64k", "v3-2m", "sub-16k", "zstd-4k", "data",
                 "data-raw", "huge"],
    "qcow2_refcount": ["v3-512", "v2-512", "v3-4k-1bit", "v3-4k-64bit", "sub-16k", "bitmaps",
                       "data", "huge", "luks"],
    "qcow2_snapshot": ["v3-512", "v2-512", "v3-4k-64bit", "sub-16k"],
    "qcow2_bitmap": ["v3-64k", "bitmaps", "luks"],
}
TEXTS = [
    "0512", "010k", "01.5G", "00x10000", "09223372036854775807", "0 1b", "01e3",
    "1disk.qcow2", "1json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a\"}}",
    "1json:{\"driver\":\"raw\",\"offset\":512,\"size\":\"1M\",\"file\":{\"filename\":\"a b\"}}",
    "1json:{\"file.filename\":\"x\",\"backing\":{\"driver\":\"qcow2\",\"file.filename\":\"y\"}}",
    "1json:{\"driver\":\"qcow2\",\"backing\":null,\"file\":\"node\"}", "1nbd://host/x", "1file:a:b",
    "2driver=qcow2,file.filename=a,,b,file.locking=off", "2driver=raw,offset=512,file.driver=file,"
    "file.filename=x,size=1k", "2file.filename=x,cache.direct=on,backing.driver=raw,"
    "backing.file.filename=y,read-only=on,force-share=off,discard=unmap,l2-cache-size=1M",
    "3qcow2,size=1k,noa,b=on,c",
    "4{\"a\":[1,2.5,true,null,{}],\"b\":{\"c\":\"\\u00e9\\ud83d\\ude00\"}}",
    "5cluster_size=4k,extended_l2=off,refcount_bits=8", "5preallocation=full,compat=0.10,size=1G",
    "6size=10k", "7qcow2", "8formt", "9json:", "9vmdk",
]
# Kinds of fuzz/nbd.c's records.
OPTION, GOOD, REQUEST, RAW, PUMP, SHUT = range(6)
GO, STRUCTURED, SET_META, INFO, LIST_META, LIST, NAME, TLS, ABORT = range(9)


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def pack(image):
    out = bytearray(struct.pack(">QQ", len(image), SEED))
    at = 0
    while at < len(image):
        if not image[at]:
            rest = image[at:at + (1 << 20)].lstrip(b"\0")
            at += min(len(image) - at, 1 << 20) - len(rest)
            continue
        end = image.find(bytes(GAP), at)
        end = len(image) if end < 0 else end
        kept = min(end - at, PIECE_MAX)
        out += struct.pack(">QI", at, kept) + image[at:at + kept]
        at = end
    return bytes(out)


def unpack(data, path):
    size = struct.unpack_from(">Q", data)[0]
    at = 16
    with open(path, "wb") as f:
        while at + 12 < len(data):
            off, n = struct.unpack_from(">QI", data, at)
            f.seek(off)
            f.write(data[at + 12:at + 12 + n])
            at += 12 + n
        f.truncate(size)


def make_image(folder, name, options, size, also):
    path = os.path.join(folder, name)
    args = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if "luks" in options:
        args += ["--object", "secret,id=s,data=123"]
    if "%s" in options:
        options %= folder
    if "backing" in also:
        base = os.path.join(folder, "base.raw")
        run("qemu-img", "create", "-q", "-f", "raw", base, size)
        args += ["-b", base, "-F", "raw"]
    run(*args, "-o", options, path, size)
    cluster = int(subprocess.run(["qemu-img", "info", "--output=json", path], check=True,
                                 capture_output=True, text=True).stdout
                  .split('"cluster-size":')[1].split(",")[0])
    for i, word in enumerate(also.split()):
        if word == "write":
            run("qemu-io", "-f", "qcow2", "-c", "write -P 97 1k 512", "-c", "write -P 98 9k 2k",
                "-c", f"write -z {cluster} {cluster}", "-c", "write -P 99 70k 512", path)
        elif word == "compress" and cluster <= 65536:
            run("qemu-io", "-f", "qcow2", "-c", f"write -c -P 100 {cluster * 5} {cluster}",
                "-c", f"write -c -P 101 {cluster * 6} {cluster}", path)
        elif word == "snapshot":
            run("qemu-img", "snapshot", "-c", f"snap{i}", path)
            run("qemu-io", "-f", "qcow2", "-c", "write -P 102 2k 512", path)
        elif word == "bitmap":
            run("qemu-img", "bitmap", "--add", "-g", str(512 << i), path, f"bitmap{i}")
    with open(path, "rb") as f:
        return f.read()


def request(kind, off=0, length=0, flags=0):
    return bytes([REQUEST, kind, flags]) + struct.pack(">QI", off, length)


def sessions():
    """Name and bytes of what clients of the NBD server say."""
    pump = bytes([PUMP])
    commands = (request(0, 0, 4096) + request(1, 8192, 512) + pump + request(3) +
                request(4, 4096, 4096, 1) + request(6, 0, 65536, 2) + request(7, 0, 262144) +
                request(7, 512, 9000, 8) + request(5, 0, 512) + request(0, 67584, 512) +
                request(0, 262144, 1) + pump + request(2))
    setup = bytes([GOOD, STRUCTURED, 0, GOOD, SET_META, 4])
    yield "simple", b"\3" + bytes([GOOD, GO, 0]) + commands
    yield "structured", b"\3" + setup + bytes([GOOD, GO, 0x30]) + pump + commands
    yield "read-only", b"\1" + setup + bytes([GOOD, GO, 2]) + commands
    yield "export-name", b"\1" + bytes([GOOD, NAME, 0]) + commands
    yield "options", b"\3" + bytes([GOOD, LIST, 0, GOOD, INFO, 0x3c, GOOD, LIST_META, 12, PUMP,
                                    GOOD, TLS, 0, OPTION, 77, 0, 2, 1, 2, GOOD, GO, 3]) + \
        bytes([GOOD, ABORT, 0]) + pump * 16
    yield "shut", b"\3" + bytes([GOOD, GO, 0]) + request(0, 0, 65536) * 8 + \
        bytes([SHUT]) + pump * 16


def streams():
    data = b"".join(bytes([i & 7]) * 37 for i in range(200))[:4096]
    for level, name in ((0, "stored"), (1, "fixed"), (9, "best")):
        c = zlib.compressobj(level, zlib.DEFLATED, -12)
        yield "deflate-" + name, b"\0\3" + c.compress(data) + c.flush()
    c = zlib.compressobj(6, zlib.DEFLATED, -12)
    yield "deflate-64k", b"\0\7" + c.compress(data * 16) + c.flush()
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "z")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
            "cluster_size=4k,compression_type=zstd", path, "64k")
        run("qemu-io", "-f", "qcow2", "-c", "write -c -P 1 0 4k", path)
        with open(path, "rb") as f:
            image = f.read()
    at = image.index(b"\x28\xb5\x2f\xfd")
    yield "zstd-4k", b"\1\3" + image[at:at + 512]


def make(top):
    def save(target, name, data):
        os.makedirs(os.path.join(top, target), exist_ok=True)
        with open(os.path.join(top, target, name), "wb") as f:
            f.write(data)

    images = {}
    for name, options, size, also in IMAGES:
        with tempfile.TemporaryDirectory() as tmp:
            images[name] = make_image(tmp, name, options, size, also)
    for target, names in OF_TARGET.items():
        for name in names:
            save(target, name, pack(images[name]))
    for name in HEADERS:
        save("qcow2_header", name, images[name][:1024].rstrip(b"\0") + bytes(8))
    at = images["luks"].index(b"LUKS\xba\xbe")
    save("qcow2_header", "luks-itself", images["luks"][at:at + 592])
    for name, data in sessions():
        save("nbd", name, data)
    for name, data in streams():
        save("codec", name, data)
    for i, text in enumerate(TEXTS):
        save("sizes", f"text-{i:02}", text.encode())


def main(args):
    if len(args) == 2 and args[0] == "make":
        make(args[1])
    elif len(args) == 3 and args[0] in ("pack", "unpack"):
        with open(args[1], "rb") as f:
            data = f.read()
        if args[0] == "unpack":
            unpack(data, args[2])
        else:
            with open(args[2], "wb") as f:
                f.write(pack(data))
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
