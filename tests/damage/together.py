# SPDX-License-Identifier: MIT
"""Several things at once: the order of messages."""
from clusters import data_snapshots
from image import COPIED
from kinds import kind


@kind("bitmap")
def order_of_metadata(i):
    i.put64(i.bitmap(), i.end())
    i.put64(i.reftable + 8, i.end())
    i.put64(48, i.reftable)
    i.put64(i.l1_at(3), i.end())


@kind("snap")
def order_of_tables(i):
    i.put64(i.snapshot(0), i.end())
    i.put64(i.l1_at(3), i.end())
    i.put64(i.u64(i.snapshot(1)) + 24, i.end())
    i.put64(i.reftable + 8, i.end())
    i.b[i.snapshots + 3000:i.snapshots + 3000] = b""
    i.put32(60, 3)


@kind("data")
def order_with_snapshots(i):
    data_snapshots(i)
    i.put64(i.l2_at(i.data(1)), 1 << 57 | 512)


@kind("small")
def copied_where_refcounts_cannot_be_read(i):
    i.put64(i.reftable + 8, 0xff << 56)
    for n in (0, 1, 300, 600):
        i.xor64(i.l2_at(n), COPIED)


@kind("small")
def copied_where_tables_cannot_be_counted(i):
    i.put64(i.reftable, i.u64(i.reftable) + 0x200)
    i.put64(i.reftable + 16, 0xff << 56)
    for n in range(0, 1000, 100):
        i.xor64(i.l2_at(n), COPIED)
        i.xor64(i.l1_at(n // 64), COPIED)


@kind("plain")
def refcount_blocks_unaligned(i):
    i.put64(i.reftable, i.ref_block(0) + 0x200)
    i.put64(i.reftable + 8, i.ref_block(0) + 0x400)
    for n in range(3):
        i.xor64(i.l2_at(i.data(n)), COPIED)


@kind("small")
def refcount_blocks_unreadable_and_too_high(i):
    i.put64(i.reftable, 0xff << 56)
    for c in range(256, 300):
        i.set_ref(c, 2)


@kind("snap")
def snapshots_cross_linked(i):
    """Tables with damage, visited by the active state and two snapshots."""
    for n in (1, 2):
        table = i.l2_table(n, i.u64(i.snapshot(0))) if n < 2 else i.l2_table(1)
        i.put64(table + 8 * 300, 1 << 57)
        i.put64(table + 8 * 301, i.end())
    i.put64(i.l1_at(3), i.u64(i.l1_at(1)))


@kind("rc1", "rc2")
def overflow_of_metadata(i):
    for n in range(5):
        i.put64(i.l2_at(i.data(n)), i.l1 | COPIED)
    i.put64(i.reftable + 8, i.u64(i.reftable))


@kind("plain", "small")
def longer_file_with_part(i):
    """The last cluster is not whole, and used."""
    guest = i.hole() if i.cluster > 512 else 5
    i.put64(i.l2_at(guest), (len(i.b) // i.cluster + 1) * i.cluster)
    i.b += bytes(i.cluster + 100)


@kind("plain", "v2")
def table_over_the_end(i):
    """Unaligned, so that its second cluster lies behind the end."""
    i.put64(i.l2_at(i.data(2)), (len(i.b) // i.cluster - 1) * i.cluster + 512 | COPIED)
