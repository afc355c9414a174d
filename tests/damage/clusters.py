# SPDX-License-Identifier: MIT
"""Damage to L2 entries: standard, compressed, extended, and of data files."""
import random

from image import COMPRESSED, COPIED, HUGE, OFFSET
from kinds import kind


# L2

@kind("plain", "v2", "snap", "ext", "data")
def l2_unaligned(i):
    i.xor64(i.l2_at(i.data(2)), 512)


@kind("plain", "v2", "ext")
def l2_unaligned_without_copied(i):
    i.xor64(i.l2_at(i.data(2)), 512 | COPIED)


@kind("plain", "v2", "data", "ext", "snap", "rc1")
def l2_copied_missing(i):
    i.xor64(i.l2_at(i.data(1)), COPIED)


@kind("plain", "snap")
def l2_copied_missing_many(i):
    for n in range(20):
        at = i.l2_at(i.data(n))
        i.put64(at, i.u64(at) & ~COPIED)


@kind("snap")
def l2_copied_too_much(i):
    for n in range(10):
        at = i.l2_at(i.data(n))
        i.put64(at, i.u64(at) | COPIED)


@kind("plain", "v2", "data", "ext")
def l2_copied_of_nothing(i):
    i.put64(i.l2_at(i.hole()), COPIED)


@kind("plain", "v2", "snap", "ext")
def l2_beyond_eof(i):
    i.put64(i.l2_at(i.hole()), i.end() | COPIED)


@kind("plain")
def l2_at_eof(i):
    i.b += bytes(-len(i.b) % i.cluster)
    i.put64(i.l2_at(i.hole()), len(i.b) | COPIED)


@kind("plain")
def l2_beyond_eof_with_refcount(i):
    i.set_ref(i.end() >> i.cluster_bits, 1)
    i.put64(i.l2_at(i.hole()), i.end() | COPIED)


@kind("plain", "v2", "data")
def l2_huge(i):
    i.put64(i.l2_at(i.hole()), HUGE | COPIED)


@kind("plain")
def l2_last_possible(i):
    i.put64(i.l2_at(i.hole()), (OFFSET & ~(i.cluster - 1)) | COPIED)


@kind("plain", "v2", "ext", "data")
def l2_reserved_low(i):
    i.xor64(i.l2_at(i.data()), 0x1fe)


@kind("plain", "v2", "ext", "data")
def l2_reserved_high(i):
    i.xor64(i.l2_at(i.data()), 1 << 57)


@kind("plain", "v2", "ext")
def l2_reserved_of_nothing(i):
    i.put64(i.l2_at(i.hole()), 1 << 57)


@kind("plain")
def l2_reserved_of_zero(i):
    i.put64(i.l2_at(i.hole()), 1 << 57 | 1)


@kind("v2", "ext", "data")
def l2_zero_flag(i):
    i.put64(i.l2_at(i.data(1)), i.l2(i.data(1)) | 1)


@kind("v2", "ext", "plain", "data")
def l2_zero_flag_of_nothing(i):
    i.put64(i.l2_at(i.hole()), 1)


@kind("plain", "v2", "ext", "data")
def l2_zero_unaligned(i):
    at = i.l2_at(i.data(1))
    i.put64(at, (i.u64(at) ^ 512) | 1)


@kind("plain")
def l2_zero_copied_missing(i):
    at = i.l2_at(i.data(1))
    i.put64(at, (i.u64(at) ^ COPIED) | 1)


@kind("plain")
def l2_zero_copied_of_nothing(i):
    i.put64(i.l2_at(i.hole()), COPIED | 1)


@kind("plain")
def l2_zero_beyond_eof(i):
    i.put64(i.l2_at(i.hole()), i.end() | COPIED | 1)


@kind("plain", "v2", "ext", "rc1", "snap")
def l2_cross_linked(i):
    i.put64(i.l2_at(i.data(1)), i.l2(i.data(7)))


@kind("plain")
def l2_cross_linked_counted(i):
    one, other = i.data(1), i.data(7)
    i.set_ref(i.host(one) >> i.cluster_bits, 0)
    i.set_ref(i.host(other) >> i.cluster_bits, 2)
    i.put64(i.l2_at(one), i.l2(other))


@kind("plain", "rc1", "rc8")
def l2_cross_linked_often(i):
    for n in range(1, 30):
        i.put64(i.l2_at(i.data(n)), i.l2(i.data(0)))


@kind("plain", "snap")
def l2_data_is_header(i):
    i.put64(i.l2_at(i.data()), COPIED)


@kind("plain")
def l2_data_is_l1(i):
    i.put64(i.l2_at(i.data()), i.l1 | COPIED)


@kind("plain")
def l2_data_is_l2(i):
    i.put64(i.l2_at(i.data()), i.l2_table(0) | COPIED)


@kind("plain")
def l2_data_is_refcount_block(i):
    i.put64(i.l2_at(i.data()), i.ref_block(0) | COPIED)


@kind("plain")
def l2_data_is_reftable(i):
    i.put64(i.l2_at(i.data()), i.reftable | COPIED)


@kind("snap")
def l2_data_is_snapshot_table(i):
    i.put64(i.l2_at(i.data()), i.snapshots | COPIED)


@kind("bitmap")
def l2_data_is_bitmap_directory(i):
    i.put64(i.l2_at(i.data()), i.bitmap() & ~(i.cluster - 1) | COPIED)


@kind("plain", "ext")
def l2_garbage(i):
    r = random.Random(4)
    for n in range(60):
        i.put64(i.l2_table(0) + 8 * n, r.getrandbits(64))


@kind("ext", "data")
def l2_half_a_table(i):
    """An odd entry of a table filled with data."""
    for n in range(5):
        i.put64(i.l2_table(0) + 8 * 100 + 8 * n, 0x10000 * n | COPIED)


# compressed clusters

def csize_shift(i):
    return 62 - (i.cluster_bits - 8)


@kind("comp", "zstd")
def compressed_beyond_eof(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, (i.u64(at) & ~((1 << csize_shift(i)) - 1)) | (i.end() + 777))


@kind("comp")
def compressed_huge(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, i.u64(at) | 1 << (csize_shift(i) - 1))


@kind("comp", "zstd")
def compressed_size_max(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, i.u64(at) | ((1 << 62) - (1 << csize_shift(i))))


@kind("comp")
def compressed_size_past_eof(i):
    n = sum(1 for g in range(40) if i.l2(g) & COMPRESSED)
    last = max((i.compressed(k) for k in range(n)),
               key=lambda g: i.l2(g) & ((1 << csize_shift(i)) - 1))
    at = i.l2_at(last)
    i.put64(at, i.u64(at) | ((1 << 62) - (1 << csize_shift(i))))


@kind("comp", "zstd")
def compressed_size_zero(i):
    at = i.l2_at(i.compressed(2))
    i.put64(at, i.u64(at) & ~((1 << 62) - (1 << csize_shift(i))))


@kind("comp", "zstd")
def compressed_copied(i):
    i.xor64(i.l2_at(i.compressed(2)), COPIED)


@kind("comp")
def compressed_copied_many(i):
    for n in range(5):
        i.xor64(i.l2_at(i.compressed(n)), COPIED)


@kind("comp")
def compressed_offset_zero(i):
    i.put64(i.l2_at(i.compressed(2)), COMPRESSED)


@kind("comp")
def compressed_into_metadata(i):
    i.put64(i.l2_at(i.compressed(2)), COMPRESSED | (i.l1 + 100))


@kind("comp")
def compressed_refcount_low(i):
    i.set_ref((i.l2(i.compressed(2)) & ((1 << csize_shift(i)) - 1)) >> i.cluster_bits, 1)


@kind("comp")
def compressed_refcount_high(i):
    i.set_ref((i.l2(i.compressed(2)) & ((1 << csize_shift(i)) - 1)) >> i.cluster_bits, 30)


@kind("comp", "zstd")
def compressed_data_broken(i):
    at = i.l2(i.compressed(1)) & ((1 << csize_shift(i)) - 1)
    i.b[at:at + 400] = bytes(400)


@kind("data", "ext", "v2", "plain")
def compressed_where_it_cannot_be(i):
    i.put64(i.l2_at(i.data()), COMPRESSED | (i.host(i.data()) + 5))


@kind("ext")
def compressed_with_bitmap(i):
    at = i.l2_at(i.data())
    i.put64(at, COMPRESSED | (i.host(i.data()) + 5))
    i.put64(at + 8, 0xffff)


@kind("data")
def compressed_copied_in_data(i):
    i.put64(i.l2_at(i.data()), COPIED | COMPRESSED | (i.host(i.data()) + 5))


@kind("ext")
def compressed_copied_with_bitmap(i):
    at = i.l2_at(i.data())
    i.put64(at, COPIED | COMPRESSED | (i.host(i.data()) + 5))
    i.put64(at + 8, 0xffff)


@kind("ext")
def compressed_copied_without_bitmap(i):
    at = i.l2_at(i.data())
    i.put64(at, COPIED | COMPRESSED | (i.host(i.data()) + 5))
    i.put64(at + 8, 0)


@kind("ext")
def compressed_in_second_table(i):
    i.put64(i.l1_at(0), i.l2_table(0) | COPIED)
    for n in range(3):
        at = i.l2_table(0) + 16 * (100 + n)
        i.put64(at, COMPRESSED | (i.host(i.data()) + 5))
        i.put64(at + 8, 1)


# extended L2

@kind("ext")
def bitmap_both(i):
    i.put64(i.l2_at(i.data()) + 8, 0x0000000100000001)


@kind("ext")
def bitmap_all_both(i):
    i.put64(i.l2_at(i.data()) + 8, 0xffffffffffffffff)


@kind("ext")
def bitmap_of_nothing(i):
    i.put64(i.l2_at(i.hole()) + 8, 0x3)


@kind("ext")
def bitmap_zeros_of_nothing(i):
    i.put64(i.l2_at(i.hole()) + 8, 0x3 << 32)


@kind("ext")
def bitmap_empty(i):
    i.put64(i.l2_at(i.data()) + 8, 0)


@kind("ext")
def bitmap_both_many(i):
    for n in range(8):
        i.put64(i.l2_at(i.data(n)) + 8, 0x0000000300000003)


@kind("ext")
def l2_unaligned_without_bitmap(i):
    at = i.l2_at(i.data(1))
    i.xor64(at, 512)
    i.put64(at + 8, 0)


@kind("ext")
def l2_unaligned_with_zeros(i):
    at = i.l2_at(i.data(1))
    i.xor64(at, 512)
    i.put64(at + 8, 7 << 32)


@kind("ext")
def bitmap_of_zero(i):
    at = i.l2_at(i.hole())
    i.put64(at, 1)
    i.put64(at + 8, 3)


@kind("ext")
def bitmap_of_zero_copied(i):
    at = i.l2_at(i.hole())
    i.put64(at, COPIED | 1)
    i.put64(at + 8, 3 << 32 | 2)


# data files

@kind("data")
def data_offset_differs(i):
    i.put64(i.l2_at(i.data(1)), i.host(i.data(3)) | COPIED)


@kind("data")
def data_offset_differs_without_copied(i):
    i.put64(i.l2_at(i.data(1)), i.host(i.data(3)))


@kind("data")
def data_offset_zero(i):
    i.put64(i.l2_at(i.data(1)), COPIED)


@kind("data")
def data_beyond_eof(i):
    i.put64(i.l2_at(i.hole()), (100 << 20) | COPIED)


@kind("data")
def data_snapshots(i):
    i.put32(60, 1)
    at = i.append()
    i.put64(64, at)


@kind("data")
def data_file_missing(i):
    i.remove = ".data"


@kind("back")
def backing_file_missing(i):
    i.remove = ".base"


@kind("data")
def data_flag_missing(i):
    i.xor64(72, 4)


@kind("plain")
def data_flag_without_name(i):
    i.xor64(72, 4)


@kind("data")
def l2_zero_copied_at_zero(i):
    i.put64(i.l2_at(i.hole()), COPIED | 1)
