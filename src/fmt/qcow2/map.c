/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/map.h"

#include "fmt/qcow2/image.h"
#include "fmt/qcow2/writer.h"

/* @guest is the cluster's guest offset, for what an external data file requires. */
static struct unit decode(const struct qcow2 *q, uint64_t entry, uint64_t guest)
{
	uint64_t host = entry & QCOW2_OFFSET_MASK;
	bool is_allocated = host || (q->has_data_file && (entry & QCOW2_COPIED));
	bool is_zero = false;

	if (entry & QCOW2_COMPRESSED)
		return (struct unit){ .kind = q->has_data_file ? EXT_CORRUPT : EXT_COMPRESSED,
				      .host_off = entry };
	if (q->entry_words == 1 && (entry & QCOW2_ZERO)) {
		if (!q->has_zero_flag)
			return (struct unit){ .kind = EXT_CORRUPT, .host_off = entry };
		is_zero = true;
		is_allocated = host;    /* a preallocated zero cluster, or none */
	}
	if (is_allocated && (!is_aligned(host, 1ULL << q->cluster_bits) ||
			     (q->has_data_file && host != guest)))
		return (struct unit){ .kind = EXT_CORRUPT, .host_off = entry };
	if (entry == CACHE_PENDING && q->writer)
		return (struct unit){ .kind = EXT_MISS };
	return (struct unit){ .kind = is_zero ? EXT_ZERO : is_allocated ? EXT_DATA : EXT_BACKING,
			      .host_off = host, .has_host = is_allocated };
}

struct unit map_entry(const struct qcow2 *q, uint64_t entry, uint64_t guest)
{
	return decode(q, entry, guest);
}

static struct unit decode_sub(const struct qcow2 *q, uint64_t entry, uint64_t bitmap,
			      uint64_t guest, unsigned sub)
{
	struct unit u = decode(q, entry, guest);
	bool is_allocated = bitmap >> sub & 1, is_zero = bitmap >> (sub + 32) & 1;

	if (entry & QCOW2_COMPRESSED || u.kind == EXT_MISS)
		return u;
	/* A bit of both halves, or data without a place for it. */
	if ((bitmap & (bitmap >> 32) & 0xffffffff) || (u.kind == EXT_BACKING && (uint32_t)bitmap))
		return (struct unit){ .kind = EXT_CORRUPT, .host_off = entry,
				      .is_bitmap_bad = true };
	if (u.kind == EXT_CORRUPT)
		return u;
	if (u.has_host)
		u.host_off += (uint64_t)sub << q->unit_bits;
	u.kind = is_zero ? EXT_ZERO : is_allocated ? EXT_DATA : EXT_BACKING;
	return u;
}

struct unit map_unit(const struct qcow2 *q, long slot, uint64_t off)
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

/* The run from @off to @end, from what is in @slot at the moment. */
static struct ext run_in_slot(const struct qcow2 *q, long slot, uint64_t off, uint64_t end)
{
	uint64_t cluster_bytes = 1ULL << q->cluster_bits, unit_bytes = 1ULL << q->unit_bits;
	uint64_t start = align_down(off, unit_bytes), at;
	struct unit first = map_unit(q, slot, off), u;

	if (first.kind == EXT_COMPRESSED || first.kind == EXT_CORRUPT) {
		at = align_down(off, cluster_bytes) + cluster_bytes;
	} else {
		for (at = start + unit_bytes; at < end; at += unit_bytes) {
			u = map_unit(q, slot, at);
			if (u.kind != first.kind || (u.kind == EXT_DATA &&
						     u.host_off - first.host_off != at - start))
				break;
		}
	}
	if (first.kind == EXT_DATA)
		first.host_off += off - start;
	return (struct ext){ .kind = first.kind, .len = MIN(at, end) - off,
			     .host_off = first.host_off };
}

struct ext map_run(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t slice_end = (off | ((1ULL << q->slice_shift) - 1)) + 1;
	uint64_t key = cache_key(q->layer, off >> q->slice_shift);
	uint64_t end = off + MIN(len, slice_end - off);
	struct ext miss = { .kind = EXT_MISS, .len = len };
	struct ext e = { .kind = EXT_BACKING, .len = end - off };
	uint32_t version;
	bool is_empty;
	long slot = cache_find(q->cache, key, &is_empty);

	if (slot < 0)
		return miss;
	if (!is_empty) {
		version = cache_read_begin(q->cache, slot, key);
		e = run_in_slot(q, slot, off, end);
		if (!cache_read_valid(q->cache, slot, version))
			return miss;
	}
	if (e.kind == EXT_BACKING)
		e.next = cache_next(q->cache, slot, key, map_part(q, off));
	return e;
}

/* Bits of an L2 entry that decide whether its cluster is data. */
#define OWN_MASK (QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_ZERO)

static inline bool is_own(const struct qcow2 *q, uint64_t entry, uint64_t guest)
{
	uint64_t host = entry & QCOW2_OFFSET_MASK;

	if ((entry & OWN_MASK) != QCOW2_COPIED)
		return false;
	return q->has_data_file ? host == guest : host && is_aligned(host, 1ULL << q->cluster_bits);
}

/* The same for a run's first cluster, where tests may break the rule. */
static inline bool is_first_own(const struct qcow2 *q, uint64_t entry, uint64_t guest)
{
	if (is_own(q, entry, guest))
		return true;
	return q->writer->broken & BREAK_Q3_COPIED && !(entry & QCOW2_COMPRESSED) &&
	       entry != CACHE_PENDING && is_own(q, entry | QCOW2_COPIED, guest);
}

/* Where the run of own data in @slot ends that begins at @in_slice, in the cluster of guest offset
 * @guest; *@ret: where that lies. 0: there is none. */
static uint64_t own_end(const struct qcow2 *q, long slot, uint64_t guest, uint64_t in_slice,
			uint64_t end, uint64_t *ret)
{
	uint64_t cluster = 1ULL << q->cluster_bits, start = align_down(in_slice, cluster), at;
	unsigned word = (unsigned)(in_slice >> q->cluster_bits);
	uint64_t host = cache_word(q->cache, slot, word);

	if (!is_first_own(q, host, guest))
		return 0;
	host &= QCOW2_OFFSET_MASK;
	for (at = start + cluster; at < end; at += cluster) {
		uint64_t next = cache_word(q->cache, slot, ++word);

		if (!is_own(q, next, guest + (at - start)) ||
		    (next & QCOW2_OFFSET_MASK) - host != at - start)
			break;
	}
	*ret = host;
	return at;
}

/* The same with extended L2 entries: units that are there. A bitmap that cannot be is none. */
static uint64_t own_units_end(const struct qcow2 *q, long slot, uint64_t guest, uint64_t in_slice,
			      uint64_t end, uint64_t *ret)
{
	uint64_t cluster = 1ULL << q->cluster_bits, start = align_down(in_slice, cluster);
	uint64_t at = align_down(in_slice, 1ULL << q->unit_bits), host = 0;
	bool is_first = true;

	do {
		unsigned word = 2 * (unsigned)(at >> q->cluster_bits);
		unsigned unit = (unsigned)(at >> q->unit_bits) % QCOW2_SUBCLUSTERS;
		uint64_t entry = cache_word(q->cache, slot, word), bits, place;

		bits = cache_word(q->cache, slot, word + 1);
		place = entry & QCOW2_OFFSET_MASK;
		if (!(is_first ? is_first_own(q, entry, guest) :
				 is_own(q, entry, guest + (at - start))) ||
		    (bits & bits >> 32 & 0xffffffff) || !(bits >> unit & 1) ||
		    (!is_first && place - host != at - start))
			break;
		host = is_first ? place : host;
		is_first = false;
		at += (uint64_t)__builtin_ctzll(~((bits & 0xffffffff) >> unit)) << q->unit_bits;
	} while (at < end && is_aligned(at, cluster));
	*ret = host;
	return is_first ? 0 : at;
}

struct ext map_write_run(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t cluster = 1ULL << q->cluster_bits, in_slice = off & ((1ULL << q->slice_shift) - 1);
	uint64_t end = in_slice + MIN(len, (1ULL << q->slice_shift) - in_slice);
	uint64_t key = cache_key(q->layer, off >> q->slice_shift), host, at;
	uint64_t guest = align_down(off, cluster);
	struct ext fault = { .kind = EXT_MISS, .len = len };
	uint32_t version;
	bool is_empty;
	long slot = cache_find(q->cache, key, &is_empty);

	if (slot < 0 || is_empty)
		return fault;
	version = cache_read_begin(q->cache, slot, key);
	at = q->entry_words == 1 ? own_end(q, slot, guest, in_slice, end, &host)
				 : own_units_end(q, slot, guest, in_slice, end, &host);
	if (!at || !cache_read_valid(q->cache, slot, version))
		return fault;
	return (struct ext){ .kind = EXT_DATA, .len = MIN(at, end) - in_slice,
			     .host_off = host + (in_slice & (cluster - 1)) };
}
