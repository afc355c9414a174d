/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/map.h"

#include "fmt/qcow2/image.h"

/* One cluster's or subcluster's kind. For EXT_DATA, host_off is that of the (sub)cluster's start.
 * */
struct unit {
	enum ext_kind kind;
	uint64_t host_off;
};

/* @guest is the cluster's guest offset, for what an external data file requires. */
static struct unit decode(const struct qcow2 *q, uint64_t entry, uint64_t guest)
{
	uint64_t host = entry & QCOW2_OFFSET_MASK;
	bool is_allocated = host || (q->has_data_file && (entry & QCOW2_COPIED));
	bool is_zero = false;

	if (entry & QCOW2_COMPRESSED)
		return (struct unit){ q->has_data_file ? EXT_CORRUPT : EXT_COMPRESSED, entry };
	if (q->entry_words == 1 && (entry & QCOW2_ZERO)) {
		if (!q->has_zero_flag)
			return (struct unit){ EXT_CORRUPT, entry };
		is_zero = true;
		is_allocated = host;    /* a preallocated zero cluster, or none */
	}
	if (is_allocated && (!is_aligned(host, 1ULL << q->cluster_bits) ||
			     (q->has_data_file && host != guest)))
		return (struct unit){ EXT_CORRUPT, entry };
	if (is_zero)
		return (struct unit){ EXT_ZERO, entry };
	return (struct unit){ is_allocated ? EXT_DATA : EXT_BACKING, host };
}

static struct unit decode_sub(const struct qcow2 *q, uint64_t entry, uint64_t bitmap,
			      uint64_t guest, unsigned sub)
{
	struct unit u = decode(q, entry, guest);
	bool is_allocated = bitmap >> sub & 1, is_zero = bitmap >> (sub + 32) & 1;

	if (u.kind == EXT_COMPRESSED || u.kind == EXT_CORRUPT)
		return u;
	/* A bit of both halves, or data without a place for it. */
	if ((bitmap & (bitmap >> 32) & 0xffffffff) || (u.kind != EXT_DATA && (uint32_t)bitmap))
		return (struct unit){ EXT_CORRUPT, entry };
	if (is_zero)
		return (struct unit){ EXT_ZERO, 0 };
	if (!is_allocated)
		return (struct unit){ EXT_BACKING, 0 };
	u.host_off += (uint64_t)sub << q->unit_bits;
	return u;
}

/* The unit at @off, from the words of its slice in @slot. */
static struct unit unit_at(const struct qcow2 *q, long slot, uint64_t off)
{
	uint64_t in_slice = off & ((1ULL << q->slice_shift) - 1);
	unsigned entry = (unsigned)(in_slice >> q->cluster_bits);
	uint64_t guest = align_down(off, 1ULL << q->cluster_bits);

	if (q->entry_words == 1)
		return decode(q, cache_word(q->cache, slot, entry), guest);
	return decode_sub(q, cache_word(q->cache, slot, 2 * entry),
			  cache_word(q->cache, slot, 2 * entry + 1), guest,
			  (unsigned)(off >> q->unit_bits) % QCOW2_SUBCLUSTERS);
}

struct ext map_run(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t key = cache_key(q->layer, off >> q->slice_shift);
	uint64_t slice_end = (off | ((1ULL << q->slice_shift) - 1)) + 1;
	uint64_t end = off + MIN(len, slice_end - off), at;
	uint64_t unit_bytes = 1ULL << q->unit_bits;
	struct unit first, u;
	bool is_empty;
	uint32_t version;
	long slot = cache_find(q->cache, key, &is_empty);

	if (slot < 0)
		return (struct ext){ EXT_MISS, len, 0 };
	if (is_empty)
		return (struct ext){ EXT_BACKING, end - off, 0 };
	version = cache_read_begin(q->cache, slot, key);
	first = unit_at(q, slot, off);
	if (first.kind == EXT_COMPRESSED || first.kind == EXT_CORRUPT) {
		at = align_down(off, 1ULL << q->cluster_bits) + (1ULL << q->cluster_bits);
	} else {
		at = align_down(off, unit_bytes) + unit_bytes;
		for (; at < end; at += unit_bytes) {
			u = unit_at(q, slot, at);
			if (u.kind != first.kind ||
			    (u.kind == EXT_DATA && u.host_off - first.host_off !=
			     at - align_down(off, unit_bytes)))
				break;
		}
	}
	if (!cache_read_valid(q->cache, slot, version))
		return (struct ext){ EXT_MISS, len, 0 };
	if (first.kind == EXT_DATA)
		first.host_off += off & (unit_bytes - 1);
	return (struct ext){ first.kind, MIN(at, end) - off, first.host_off };
}
