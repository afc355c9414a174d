# SPDX-License-Identifier: MIT
"""bench/syncs.py FILE COMMAND... - runs the command; prints what the kernel saw of FILE meanwhile.

One line: seconds, syncs, bytes written. They are counted at ext4's tracepoints, so io_uring's and a
server's count as all others do: ext4_sync_file_enter is each fsync, fdatasync and O_DSYNC write, and
the page cache is told of each write's bytes (what is written past it, by O_DIRECT, is not counted).
tracefs is mounted in a mount namespace of this process alone, and the events go to a buffer of their
own. Needs root and ext4; status 77 where that is not given."""
import ctypes
import os
import re
import subprocess
import sys
import tempfile
import time

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
libc = ctypes.CDLL(None, use_errno=True)


def skip(why):
    print(f"syncs.py: {why}", file=sys.stderr)
    sys.exit(77)


def mount(source, target, kind, flags=0):
    if libc.mount(source, target, kind, flags, None) < 0:
        skip(f"mount: {os.strerror(ctypes.get_errno())}")


class Trace:
    """An instance of the kernel's tracer, for one inode."""
    EVENTS = "ext4_sync_file_enter", "ext4_write_end", "ext4_da_write_end"

    def __init__(self, root, inode):
        self.dir = f"{root}/instances/byre-{os.getpid()}"
        os.mkdir(self.dir)
        self.put("buffer_size_kb", "16384")
        self.put("options/overwrite", "0")
        for event in self.EVENTS:
            self.put(f"events/ext4/{event}/filter", f"ino == {inode}")
            self.put(f"events/ext4/{event}/enable", "1")

    def put(self, name, value):
        with open(f"{self.dir}/{name}", "w") as f:
            f.write(value)

    def lost(self):
        for cpu in os.listdir(f"{self.dir}/per_cpu"):
            with open(f"{self.dir}/per_cpu/{cpu}/stats") as f:
                if not re.search(r"dropped events: 0\b", f.read()):
                    return True
        return False

    def result(self):
        syncs = written = 0
        self.put("tracing_on", "0")
        with open(f"{self.dir}/trace") as f:
            for line in f:
                if "ext4_sync_file_enter:" in line:
                    syncs += 1
                elif "_write_end:" in line:
                    written += int(re.search(r" copied (\d+)", line).group(1))
        if self.lost():
            sys.exit("syncs.py: events were lost")
        return syncs, written

    def end(self):
        for event in self.EVENTS:
            self.put(f"events/ext4/{event}/enable", "0")
        os.rmdir(self.dir)


def main():
    if os.geteuid():
        skip("only root may look at tracepoints")
    inode = os.stat(sys.argv[1]).st_ino
    if libc.unshare(CLONE_NEWNS) < 0:
        skip("no mount namespace")
    mount(None, b"/", None, MS_REC | MS_PRIVATE)
    with tempfile.TemporaryDirectory() as root:
        mount(b"tracefs", root.encode(), b"tracefs")
        if not os.path.isdir(f"{root}/events/ext4"):
            libc.umount2(root.encode(), 0)
            skip("no ext4 tracepoints")
        trace = Trace(root, inode)
        try:
            start = time.monotonic()
            subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, check=True)
            seconds = time.monotonic() - start
            print(f"{seconds:.3f}", *trace.result())
        finally:
            trace.end()
            libc.umount2(root.encode(), 0)


main()
