# SPDX-License-Identifier: MIT
"""Damage to the snapshot table and to what it names."""
import struct

from image import COPIED, HUGE
from kinds import kind


@kind("snap")
def snapshot_l1_unaligned(i):
    i.xor64(i.snapshot(0), 512)


@kind("snap")
def snapshot_l1_both_unaligned(i):
    i.xor64(i.snapshot(0), 512)
    i.xor64(i.snapshot(1), 512)


@kind("snap")
def snapshot_l1_beyond_eof(i):
    i.put64(i.snapshot(0), i.end())


@kind("snap")
def snapshot_l1_huge(i):
    i.put64(i.snapshot(0), 1 << 62)


@kind("snap")
def snapshot_l1_past_2_63(i):
    i.put64(i.snapshot(0), 1 << 63)


@kind("snap")
def snapshot_l1_zero(i):
    i.put64(i.snapshot(0), 0)


@kind("snap")
def snapshot_l1_none(i):
    i.put32(i.snapshot(0) + 8, 0)


@kind("snap")
def snapshot_l1_longer(i):
    i.put32(i.snapshot(1) + 8, 4096)


@kind("snap")
def snapshot_l1_too_long(i):
    i.put32(i.snapshot(1) + 8, (32 << 20) // 8 + 1)


@kind("snap")
def snapshot_l1_longest(i):
    i.put32(i.snapshot(1) + 8, (32 << 20) // 8)


@kind("snap")
def snapshot_l1_is_active(i):
    i.put64(i.snapshot(0), i.l1)


@kind("snap")
def snapshot_l1_entry_unaligned(i):
    i.xor64(i.u64(i.snapshot(0)), 512)


@kind("snap")
def snapshot_l1_entry_reserved(i):
    i.xor64(i.u64(i.snapshot(0)), 1 << 57 | 2)


@kind("snap")
def snapshot_l1_entry_beyond_eof(i):
    i.put64(i.u64(i.snapshot(0)) + 24, i.end())


@kind("snap")
def snapshot_l1_entry_huge(i):
    i.put64(i.u64(i.snapshot(0)) + 24, HUGE)


@kind("snap")
def snapshot_l1_entry_copied(i):
    i.xor64(i.u64(i.snapshot(0)), COPIED)


@kind("snap")
def snapshot_l2_unaligned(i):
    at = i.l2_at(100, i.u64(i.snapshot(0)))
    i.put64(at, i.u64(at) ^ 512 if i.u64(at) else 0x12200)


@kind("snap")
def snapshot_l2_reserved(i):
    i.xor64(i.l2_at(1, i.u64(i.snapshot(1))), 1 << 57)


@kind("snap")
def snapshot_table_beyond_eof(i):
    i.put64(64, i.end())


@kind("snap")
def snapshot_table_unaligned(i):
    i.put64(64, i.snapshots + 8)


@kind("snap")
def snapshot_table_huge(i):
    i.put64(64, 1 << 62)


@kind("snap")
def snapshot_table_is_l1(i):
    i.put64(64, i.l1)


@kind("snap")
def snapshot_table_header(i):
    i.put64(64, 0)


@kind("snap")
def snapshot_one_more(i):
    i.put32(60, 3)


@kind("snap")
def snapshot_one_less(i):
    i.put32(60, 1)


@kind("snap")
def snapshot_none(i):
    i.put32(60, 0)


@kind("snap", "plain")
def snapshot_most(i):
    i.put32(60, 65536)


@kind("snap", "plain")
def snapshot_too_many(i):
    i.put32(60, 65537)


@kind("plain")
def snapshot_table_without_snapshots(i):
    i.put64(64, 512)


@kind("snap")
def snapshot_extra_large(i):
    i.put32(i.snapshot(0) + 36, 2000)


@kind("snap")
def snapshot_extra_max(i):
    i.put32(i.snapshot(1) + 36, 1024)


@kind("snap")
def snapshot_extra_over(i):
    i.put32(i.snapshot(1) + 36, 1025)


@kind("snap")
def snapshot_extra_huge(i):
    i.put32(i.snapshot(0) + 36, 0xffffffff)


@kind("snap")
def snapshot_extra_missing(i):
    i.put32(i.snapshot(0) + 36, 0)


@kind("snap")
def snapshot_extra_short(i):
    i.put32(i.snapshot(1) + 36, 8)


@kind("snap")
def snapshot_id_long(i):
    i.put16(i.snapshot(1) + 12, 65535)


@kind("snap")
def snapshot_same_id(i):
    at = i.snapshot(1)
    i.b[at + 40 + i.u32(at + 36)] = ord("1")


@kind("snap")
def snapshot_disk_size_zero(i):
    i.put64(i.snapshot(0) + 48, 0)


@kind("snap")
def snapshot_disk_size_odd(i):
    i.put64(i.snapshot(0) + 48, 12345)


@kind("snap")
def snapshot_disk_size_huge(i):
    i.put64(i.snapshot(0) + 48, 1 << 63)


@kind("snap")
def snapshot_disk_size_large(i):
    i.put64(i.snapshot(0) + 48, 1 << 50)


@kind("v2")
def snapshot_in_v2(i):
    """An entry without extra data, which version 2 allows."""
    l1 = i.append(bytes(8 * i.l1_size))
    at = i.append(struct.pack(">QIHHIIQII", l1, i.l1_size, 1, 1, 0, 0, 0, 0, 0) + b"1n")
    i.put32(60, 1)
    i.put64(64, at)


@kind("plain")
def snapshot_in_v3_without_extra(i):
    l1 = i.append(bytes(8 * i.l1_size))
    at = i.append(struct.pack(">QIHHIIQII", l1, i.l1_size, 1, 1, 0, 0, 0, 0, 0) + b"1n")
    i.put32(60, 1)
    i.put64(64, at)


@kind("snap")
def snapshot_table_past_2_63(i):
    i.put64(64, 1 << 63)


@kind("snap")
def snapshot_table_near_2_63(i):
    i.put64(64, (1 << 63) - i.cluster)


@kind("snap")
def snapshot_l1_unaligned_and_long(i):
    i.xor64(i.snapshot(0), 512)
    i.put32(i.snapshot(0) + 8, (32 << 20) // 8 + 1)
