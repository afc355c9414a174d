# SPDX-License-Identifier: MIT
"""Damage to refcounts and to L1 tables."""
import random

from image import COPIED, HUGE, OFFSET
from kinds import kind


# refcounts

@kind("plain", "v2", "rc1", "rc2", "rc8", "rc32", "rc64", "ext")
def refcount_zero(i):
    i.set_ref(i.host(i.data()) >> i.cluster_bits, 0)


@kind("plain", "v2", "rc2", "rc8", "rc32", "rc64", "snap")
def refcount_high(i):
    i.set_ref(i.host(i.data(3)) >> i.cluster_bits, 3)


@kind("rc32", "rc64", "plain")
def refcount_max(i):
    i.set_ref(i.host(i.data(3)) >> i.cluster_bits, (1 << (1 << i.order)) - 1)


@kind("rc64")
def refcount_top_bit(i):
    i.set_ref(i.host(i.data(3)) >> i.cluster_bits, 1 << 63)


@kind("snap")
def refcount_low(i):
    i.set_ref(i.host(i.data(2)) >> i.cluster_bits, 1)


@kind("snap")
def refcount_one_less_everywhere(i):
    for c in range(len(i.b) >> i.cluster_bits):
        if i.ref(c):
            i.set_ref(c, i.ref(c) - 1)


@kind("plain", "snap", "comp", "data", "rc1", "small")
def refcounts_all_zero(i):
    for c in range(len(i.b) >> i.cluster_bits):
        i.set_ref(c, 0)


@kind("plain", "rc1", "rc64")
def leak_one(i):
    i.append(b"leak")


@kind("plain")
def leak_without_data(i):
    i.set_ref(len(i.b) // i.cluster + 3, 2)


@kind("plain")
def leak_last_of_block(i):
    i.set_ref(i.per_block - 1, 1)


@kind("plain", "snap", "comp")
def metadata_refcounts_zero(i):
    for off in (0, i.l1, i.reftable, i.ref_block(0), i.l2_table(0)):
        i.set_ref(off >> i.cluster_bits, 0)


@kind("plain", "small", "comp")
def refcount_block_missing(i):
    i.put64(i.reftable, 0)


@kind("small")
def refcount_block_missing_in_the_middle(i):
    i.put64(i.reftable + 8, 0)


@kind("plain", "small", "comp")
def refcount_block_unaligned(i):
    i.xor64(i.reftable, 512)


@kind("small")
def refcount_block_half_unaligned(i):
    i.put64(i.reftable + 16, i.u64(i.reftable + 16) + 256)


@kind("plain", "small")
def refcount_block_reserved_bits(i):
    i.xor64(i.reftable, 0x1fe)


@kind("small")
def refcount_block_reserved_bit_second(i):
    i.xor64(i.reftable + 8, 1)


@kind("plain", "small")
def refcount_block_beyond_eof(i):
    i.put64(i.reftable + 8, i.end())


@kind("small")
def refcount_block_replaced_beyond_eof(i):
    i.put64(i.reftable + 16, len(i.b) + 512 * 100)


@kind("plain", "small")
def refcount_block_huge(i):
    i.put64(i.reftable + 8, HUGE)


@kind("plain", "small")
def refcount_block_top_bits(i):
    i.put64(i.reftable + 8, 0xff << 56)


@kind("small", "plain")
def refcount_block_twice(i):
    i.put64(i.reftable + 8, i.u64(i.reftable))


@kind("small")
def refcount_block_thrice(i):
    for n in (1, 2, 3):
        i.put64(i.reftable + 8 * n, i.u64(i.reftable + 32))


@kind("plain")
def refcount_block_is_data(i):
    i.put64(i.reftable + 8, i.host(i.data()))


@kind("plain")
def refcount_block_is_header(i):
    i.put64(i.reftable + 8, 0)
    i.put64(i.reftable, i.l1)


@kind("plain")
def refcount_block_is_table(i):
    i.put64(i.reftable + 8, i.reftable)


@kind("small", "rc64")
def refcount_block_added(i):
    i.put64(i.reftable + 24, i.append())


@kind("plain")
def reftable_beyond_eof(i):
    i.put64(48, i.end())


@kind("plain")
def reftable_at_eof(i):
    i.b += bytes(-len(i.b) % i.cluster)
    i.put64(48, len(i.b))


@kind("plain")
def reftable_unaligned(i):
    i.put64(48, i.reftable + 512)


@kind("plain")
def reftable_is_l1(i):
    i.put64(48, i.l1)


@kind("plain")
def reftable_is_header(i):
    i.put64(48, 0)


@kind("plain")
def reftable_longer(i):
    i.put32(56, 3)


@kind("plain")
def reftable_far_longer(i):
    i.put32(56, 2048)


@kind("plain")
def reftable_too_long(i):
    i.put32(56, 2049)


@kind("plain")
def reftable_none(i):
    i.put32(56, 0)


@kind("plain")
def reftable_huge(i):
    i.put64(48, 1 << 62)


# L1

@kind("plain", "v2", "snap", "data", "ext")
def l1_unaligned(i):
    i.xor64(i.l1_at(0), 512)


@kind("plain")
def l1_unaligned_other(i):
    i.xor64(i.l1_at(2), 2048)


@kind("plain", "data")
def l1_entry_beyond_eof(i):
    i.put64(i.l1_at(3), i.end() | COPIED)


@kind("plain")
def l1_entry_replaced_beyond_eof(i):
    i.put64(i.l1_at(1), i.end() | COPIED)


@kind("plain")
def l1_entry_at_eof(i):
    i.b += bytes(-len(i.b) % i.cluster)
    i.put64(i.l1_at(3), len(i.b) | COPIED)


@kind("plain", "data")
def l1_entry_huge(i):
    i.put64(i.l1_at(3), HUGE | COPIED)


@kind("plain")
def l1_entry_last_possible(i):
    i.put64(i.l1_at(3), (OFFSET & ~(i.cluster - 1)) | COPIED)


@kind("plain", "v2", "data", "snap", "ext", "rc1")
def l1_copied_missing(i):
    i.xor64(i.l1_at(0), COPIED)


@kind("snap")
def l1_copied_too_much(i):
    for n in range(i.l1_size):
        if i.l2_table(n):
            i.put64(i.l1_at(n), i.u64(i.l1_at(n)) | COPIED)


@kind("plain")
def l1_copied_without_table(i):
    i.put64(i.l1_at(3), COPIED)


@kind("plain", "v2", "ext")
def l1_reserved_low(i):
    i.xor64(i.l1_at(0), 0x1ff)


@kind("plain", "v2")
def l1_reserved_high(i):
    i.xor64(i.l1_at(0), 1 << 60)


@kind("plain")
def l1_reserved_without_table(i):
    i.put64(i.l1_at(3), 1 << 56)


@kind("plain", "snap")
def l1_same_table_twice(i):
    i.put64(i.l1_at(3), i.u64(i.l1_at(0)))


@kind("plain")
def l1_table_is_data(i):
    i.put64(i.l1_at(3), i.host(i.data()) | COPIED)


@kind("plain")
def l1_table_is_header(i):
    """Offset 0 is no table: the nearest is the reftable."""
    i.put64(i.l1_at(3), i.reftable | COPIED)


@kind("plain")
def l1_table_is_refcount_block(i):
    i.put64(i.l1_at(3), i.ref_block(0) | COPIED)


@kind("plain")
def l1_table_is_l1(i):
    i.put64(i.l1_at(3), i.l1 | COPIED)


@kind("plain")
def l1_all_garbage(i):
    r = random.Random(3)
    for n in range(i.l1_size):
        i.put64(i.l1_at(n), r.getrandbits(64))


@kind("plain")
def l1_position_beyond_eof(i):
    i.put64(40, i.end())


@kind("plain")
def l1_position_unaligned(i):
    i.put64(40, i.l1 + 8)


@kind("plain")
def l1_position_huge(i):
    i.put64(40, 1 << 62)


@kind("plain")
def l1_position_header(i):
    i.put64(40, 0)


@kind("plain")
def l1_position_is_data(i):
    i.put64(40, i.host(i.data()))


@kind("plain")
def l1_too_small(i):
    i.put32(36, 1)


@kind("plain")
def l1_longer(i):
    i.put32(36, 2000)


@kind("plain")
def l1_far_longer(i):
    i.put32(36, (32 << 20) // 8)


@kind("plain")
def l1_too_long(i):
    i.put32(36, (32 << 20) // 8 + 1)


@kind("plain", "empty")
def l1_in_the_middle(i):
    at = i.append(bytes(i.b[i.l1:i.l1 + 8 * i.l1_size]))
    i.append(b"x", 0)
    i.set_ref(i.l1 >> i.cluster_bits, 0)
    i.put64(40, at)
