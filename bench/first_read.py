#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Starts a server and reads one sector from the middle of its disk as soon as that is possible.

usage: first_read.py SOCKET NAME PROGRAM [ARGUMENTS...]      prints NAME MILLISECONDS PEAK_RSS_MIB
"""
import re
import subprocess
import sys
import time

import nbd


def main(sock, name, argv):
    start = time.monotonic()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as p:
        while True:
            try:
                c = nbd.Nbd(f"nbd+unix:///?socket={sock}")
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if p.poll() is not None or time.monotonic() - start > 60:
                    sys.exit(f"{name} does not serve")
                time.sleep(0.0002)
        c.read(c.size // 2, 512)
        took = time.monotonic() - start
        with open(f"/proc/{p.pid}/status", encoding="ascii") as f:
            peak = int(re.search(r"VmHWM:\s+(\d+)", f.read())[1])
        c.close()
        p.terminate()
    print(name, round(took * 1000, 2), round(peak / 1024, 2))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
