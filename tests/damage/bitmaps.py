# SPDX-License-Identifier: MIT
"""Damage to persistent bitmaps and their directory."""
from image import HUGE
from kinds import kind


@kind("bitmap")
def bitmap_in_use(i):
    i.put32(i.bitmap() + 12, i.u32(i.bitmap() + 12) | 1)


@kind("bitmap")
def bitmap_reserved_flags(i):
    i.put32(i.bitmap() + 12, i.u32(i.bitmap() + 12) | 16)


@kind("bitmap")
def bitmap_type_unknown(i):
    i.b[i.bitmap() + 16] = 2


@kind("bitmap")
def bitmap_granularity_small(i):
    i.b[i.bitmap() + 17] = 8


@kind("bitmap")
def bitmap_granularity_large(i):
    i.b[i.bitmap() + 17] = 40


@kind("bitmap")
def bitmap_granularity_other(i):
    i.b[i.bitmap() + 17] = 12


@kind("bitmap")
def bitmap_name_empty(i):
    i.put16(i.bitmap(1) + 18, 0)


@kind("bitmap")
def bitmap_name_long(i):
    i.put16(i.bitmap(1) + 18, 1024)


@kind("bitmap")
def bitmap_name_twice(i):
    at = i.bitmap(1)
    i.b[at + 24:at + 29] = b"first"
    i.put16(at + 18, 5)
    i.b[at + 29] = 0


@kind("bitmap")
def bitmap_extra(i):
    i.put32(i.bitmap(1) + 20, 8)


@kind("bitmap")
def bitmap_extra_huge(i):
    i.put32(i.bitmap(1) + 20, 0xffffffff)


@kind("bitmap")
def bitmap_table_unaligned(i):
    i.xor64(i.bitmap(), 512)


@kind("bitmap")
def bitmap_table_beyond_eof(i):
    i.put64(i.bitmap(), i.end())


@kind("bitmap")
def bitmap_table_zero(i):
    i.put64(i.bitmap(), 0)


@kind("bitmap")
def bitmap_table_huge(i):
    i.put64(i.bitmap(), 1 << 62)


@kind("bitmap")
def bitmap_table_of_other(i):
    i.put64(i.bitmap(), i.u64(i.bitmap(1)))


@kind("bitmap")
def bitmap_table_is_l1(i):
    i.put64(i.bitmap(), i.l1)


@kind("bitmap")
def bitmap_table_too_small(i):
    i.put32(i.bitmap() + 8, 1)


@kind("bitmap")
def bitmap_table_none(i):
    i.put32(i.bitmap() + 8, 0)


@kind("bitmap")
def bitmap_table_too_large(i):
    i.put32(i.bitmap() + 8, 1000)


@kind("bitmap")
def bitmap_table_huge_size(i):
    i.put32(i.bitmap() + 8, 0xffffffff)


@kind("bitmap")
def bitmap_entry_unaligned(i):
    i.put64(i.u64(i.bitmap()), i.host(i.data()) + 512)


@kind("bitmap")
def bitmap_entry_reserved(i):
    i.put64(i.u64(i.bitmap()) + 8, 2)


@kind("bitmap")
def bitmap_entry_reserved_high(i):
    i.put64(i.u64(i.bitmap()) + 8, 1 << 60)


@kind("bitmap")
def bitmap_entry_one_with_offset(i):
    i.put64(i.u64(i.bitmap()), i.u64(i.u64(i.bitmap())) | 1)


@kind("bitmap")
def bitmap_entry_ones(i):
    i.put64(i.u64(i.bitmap()) + 8, 1)


@kind("bitmap")
def bitmap_entry_beyond_eof(i):
    i.put64(i.u64(i.bitmap()) + 8, i.end())


@kind("bitmap")
def bitmap_entry_is_data(i):
    i.put64(i.u64(i.bitmap()) + 8, i.host(i.data()))


@kind("bitmap")
def bitmap_autoclear_missing(i):
    i.put64(88, 0)


@kind("plain")
def bitmap_autoclear_without_extension(i):
    i.put64(88, 1)


@kind("bitmap")
def bitmap_directory_unaligned(i):
    i.xor64(i.extension(0x23852875) + 16, 512)


@kind("bitmap")
def bitmap_directory_beyond_eof(i):
    i.put64(i.extension(0x23852875) + 16, i.end())


@kind("bitmap")
def bitmap_directory_zero(i):
    i.put64(i.extension(0x23852875) + 16, 0)


@kind("bitmap")
def bitmap_directory_size_less(i):
    i.put64(i.extension(0x23852875) + 8, 40)


@kind("bitmap")
def bitmap_directory_size_more(i):
    i.put64(i.extension(0x23852875) + 8, 96)


@kind("bitmap")
def bitmap_directory_size_zero(i):
    i.put64(i.extension(0x23852875) + 8, 0)


@kind("bitmap")
def bitmap_directory_size_huge(i):
    i.put64(i.extension(0x23852875) + 8, 1 << 62)


@kind("bitmap")
def bitmap_directory_size_max(i):
    i.put64(i.extension(0x23852875) + 8, 65535 * 1024)


@kind("bitmap")
def bitmap_count_less(i):
    i.put32(i.extension(0x23852875), 1)


@kind("bitmap")
def bitmap_count_more(i):
    i.put32(i.extension(0x23852875), 3)


@kind("bitmap")
def bitmap_count_zero(i):
    i.put32(i.extension(0x23852875), 0)


@kind("bitmap")
def bitmap_count_huge(i):
    i.put32(i.extension(0x23852875), 65536)


@kind("bitmap")
def bitmap_extension_reserved(i):
    i.put32(i.extension(0x23852875) + 4, 1)


@kind("bitmap")
def bitmap_extension_short(i):
    i.put32(i.extension(0x23852875) - 4, 16)


@kind("bitmap")
def bitmap_refcounts_zero(i):
    i.set_ref(i.bitmap() >> i.cluster_bits, 0)
    i.set_ref(i.u64(i.bitmap()) >> i.cluster_bits, 0)


@kind("bitmap")
def bitmap_in_use_entry_unaligned(i):
    bitmap_in_use(i)
    bitmap_entry_unaligned(i)


@kind("bitmap")
def bitmap_in_use_entry_reserved(i):
    bitmap_in_use(i)
    bitmap_entry_reserved(i)


@kind("bitmap")
def bitmap_in_use_entry_one_with_offset(i):
    bitmap_in_use(i)
    bitmap_entry_one_with_offset(i)


@kind("bitmap")
def bitmap_in_use_entries(i):
    bitmap_in_use(i)
    at = i.u64(i.bitmap())
    for n, v in enumerate((HUGE, 2 << 56, i.host(i.data()), i.end() + 512)):
        i.put64(at + 8 * n, v)


@kind("bitmap")
def bitmap_in_use_table_too_small(i):
    bitmap_in_use(i)
    i.put32(i.bitmap() + 8, 1)


@kind("bitmap")
def bitmap_in_use_table_too_large(i):
    bitmap_in_use(i)
    i.put32(i.bitmap() + 8, 1000)


@kind("bitmap")
def bitmap_in_use_table_huge(i):
    bitmap_in_use(i)
    i.put64(i.bitmap(), 1 << 62)


@kind("bitmap")
def bitmap_in_use_table_top(i):
    bitmap_in_use(i)
    i.put64(i.bitmap(), 1 << 63)


@kind("bitmap")
def bitmap_in_use_name_twice(i):
    bitmap_in_use(i)
    bitmap_name_twice(i)


@kind("bitmap")
def bitmap_in_use_granularity_small(i):
    bitmap_in_use(i)
    bitmap_granularity_small(i)


@kind("bitmap")
def bitmap_extra_compatible(i):
    i.put32(i.bitmap() + 12, i.u32(i.bitmap() + 12) | 4)


@kind("bitmap")
def bitmap_name_empty_only(i):
    i.put32(i.extension(0x23852875), 1)
    i.put64(i.extension(0x23852875) + 8, 24)
    i.put16(i.bitmap() + 18, 0)


@kind("bitmap")
def bitmap_name_longest(i):
    i.put64(i.extension(0x23852875) + 8, 32 + 1056)
    i.put16(i.bitmap(1) + 18, 1023)


@kind("bitmap")
def bitmap_name_too_long(i):
    i.put64(i.extension(0x23852875) + 8, 32 + 1048)
    i.put16(i.bitmap(1) + 18, 1024)


@kind("bitmap")
def bitmap_extra_fits(i):
    i.put64(i.extension(0x23852875) + 8, 32 + 40)
    i.put32(i.bitmap(1) + 20, 8)


@kind("bitmap")
def bitmap_table_larger_than_needed(i):
    i.put64(i.bitmap(1), i.append())
    i.put32(i.bitmap(1) + 8, 3)


@kind("bitmap")
def bitmap_without_autoclear_and_broken(i):
    i.put64(88, 0)
    i.put32(i.extension(0x23852875) + 4, 1)


@kind("bitmap")
def bitmap_without_autoclear_and_short(i):
    i.put64(88, 0)
    i.put32(i.extension(0x23852875) - 4, 16)


@kind("bitmap")
def bitmap_corrupt_image(i):
    i.xor64(72, 2)
    bitmap_type_unknown(i)
