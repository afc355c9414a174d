#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan
# limit: 600
# A guest with a raw disk whose format was guessed cannot turn it into an image of another format,
# by which it could have the host open files of its choice; with -f raw it can write what it likes.
. "$(dirname "$0")/lib.sh"
need python3 qemu-img

cat >"$W/attack.py" <<'END'
import errno, sys, nbd
c = nbd.Nbd(sys.argv[1])
allowed = sys.argv[2] == "allowed"
heads = {"qcow2": b"QFI\xfb\0\0\0\3", "vmdk": b"KDMV", "qed": b"QED\0", "luks": b"LUKS\xba\xbe\0\1",
         "vhdx": b"vhdxfile", "vpc": b"conectix",
         "vdi": bytes(64) + b"\x7f\x10\xda\xbe"}
def write(off, data):
    try:
        c.write(off, data)
        return True
    except nbd.NbdError as e:
        assert e.errno in (errno.EPERM, errno.EIO), e
        return False
for name, head in heads.items():
    assert write(0, head.ljust(512, b"\0")) == allowed, f"{name}: whole sector"
    c.zero(0, 4096)
    assert write(0, head) == allowed, f"{name}: only the magic"
    c.zero(0, 4096)
    parts = [write(i, head[i:i + 1]) for i in range(len(head))]
    assert all(parts) == allowed, f"{name}: byte by byte"
    c.zero(0, 4096)
    assert write(0, head.ljust(65536, b"\1")) == allowed, f"{name}: the head of a large write"
    c.zero(0, 65536)
assert write(0, b"a boot sector".ljust(512, b"\0")), "other data has to get through"
assert write(512, b"QFI\xfb"), "beyond the first sector anything goes"
END

truncate -s 1M "$W/disk"
start_byre guessed "$W/disk"
PYTHONPATH=$here python3 "$W/attack.py" "$(uri guessed)" refused
stop_byre guessed
grep -qe "-f raw" "$W/guessed.log" || fail "the log does not say that -f raw is the way"
[ "$(qemu-img info --output=json "$W/disk" | grep -c '"format": "raw"')" -ge 1 ] ||
	fail "the image is no longer probed as raw"

truncate -s 0 "$W/disk"
truncate -s 1M "$W/disk"
start_byre told -f raw "$W/disk"
PYTHONPATH=$here python3 "$W/attack.py" "$(uri told)" allowed
stop_byre told

# And -f raw of a qcow2 file serves the file itself.
qemu-img create -q -f qcow2 "$W/image.qcow2" 1M
start_byre itself -f raw --read-only "$W/image.qcow2"
nbdcopy "$(uri itself)" "$W/copy"
cmp -n "$(stat -c %s "$W/image.qcow2")" "$W/copy" "$W/image.qcow2" ||
	fail "-f raw does not serve the file as it is"
