# SPDX-License-Identifier: MIT
"""Damage to the header, and files that were cut or have grown."""
from kinds import kind


# the header

@kind("plain", "snap", "data")
def corrupt_bit(i):
    i.xor64(72, 2)


@kind("plain", "lazy")
def dirty_bit(i):
    i.xor64(72, 1)


@kind("lazy")
def dirty_bit_and_refcounts(i):
    i.xor64(72, 1)
    for n in range(5):
        i.set_ref(i.host(i.data(n)) >> i.cluster_bits, 0)


@kind("plain")
def incompatible_unknown(i):
    i.xor64(72, 1 << 40)


@kind("plain")
def compatible_unknown(i):
    i.xor64(80, 1 << 40)


@kind("plain")
def autoclear_unknown(i):
    i.xor64(88, 1 << 40)


@kind("plain")
def magic(i):
    i.b[0] = 0


@kind("plain")
def version_one(i):
    i.put32(4, 1)


@kind("plain")
def version_four(i):
    i.put32(4, 4)


@kind("plain")
def cluster_bits_small(i):
    i.put32(20, 8)


@kind("plain")
def cluster_bits_large(i):
    i.put32(20, 22)


@kind("plain")
def cluster_bits_other(i):
    i.put32(20, 16)


@kind("plain")
def size_huge(i):
    i.put64(24, 1 << 63)


@kind("plain")
def size_largest(i):
    i.put64(24, (1 << 63) - 512)


@kind("plain")
def size_less(i):
    i.put64(24, 100000)


@kind("plain")
def size_more(i):
    i.put64(24, 1 << 40)


@kind("plain")
def encryption_unknown(i):
    i.put32(32, 3)


@kind("plain")
def encryption_aes(i):
    i.put32(32, 1)


@kind("plain")
def refcount_order_large(i):
    i.put32(96, 7)


@kind("plain")
def refcount_order_other(i):
    i.put32(96, 3)


@kind("plain")
def header_length_small(i):
    i.put32(100, 96)


@kind("plain")
def header_length_large(i):
    i.put32(100, 1 << 20)


@kind("plain")
def extension_long(i):
    i.put32(i.u32(100) + 4, 1 << 20)


@kind("plain")
def compression_type_without_bit(i):
    i.b[104] = 1


@kind("plain")
def compression_type_unknown(i):
    i.b[104] = 9
    i.xor64(72, 8)


@kind("plain")
def extended_bit(i):
    i.xor64(72, 16)


@kind("back")
def backing_offset_large(i):
    i.put64(8, 1 << 30)


@kind("back")
def backing_length(i):
    i.put32(16, 1024)


# the file

@kind("plain", "snap", "comp")
def truncated_half(i):
    del i.b[len(i.b) // 2:]


@kind("plain", "comp", "ext")
def truncated_a_little(i):
    del i.b[-700:]


@kind("plain")
def truncated_to_header(i):
    del i.b[i.cluster:]


@kind("plain")
def truncated_in_header(i):
    del i.b[90:]


@kind("plain")
def truncated_to_nothing(i):
    del i.b[:]


@kind("plain")
def longer_file(i):
    i.b += bytes(5 * i.cluster + 100)
