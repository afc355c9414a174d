/* SPDX-License-Identifier: MIT */
/* fuzz/image_mutate.c - changes fields of an image where they are: it is followed from its header
 * to the tables, whatever state these are in, to one field, which gets a value that may matter. */
#include <string.h>

#include "fmt/qcow2/format.h"
#include "fuzz/image.h"

struct field {
	uint64_t off;
	unsigned bytes;                 /* 1, 2, 4 or 8; 0: nothing was found */
};

struct offset {
	uint8_t off, bytes;
};

static const struct offset header_fields[] = {
	{ 4, 4 }, { 8, 8 }, { 16, 4 }, { 20, 4 }, { 24, 8 }, { 32, 4 }, { 36, 4 }, { 40, 8 },
	{ 48, 8 }, { 56, 4 }, { 60, 4 }, { 64, 8 }, { 72, 8 }, { 80, 8 }, { 88, 8 }, { 96, 4 },
	{ 100, 4 }, { 104, 1 },
};
static const struct offset snapshot_fields[] = {
	{ 0, 8 }, { 8, 4 }, { 12, 2 }, { 14, 2 }, { 16, 4 }, { 24, 8 }, { 32, 4 }, { 36, 4 },
	{ 40, 8 }, { 48, 8 }, { 56, 8 },
};
static const struct offset bitmap_fields[] = {
	{ 0, 8 }, { 8, 4 }, { 12, 4 }, { 16, 1 }, { 17, 1 }, { 18, 2 }, { 20, 4 },
};

/* ---- reading ---- */

static uint64_t get(const struct image *im, uint64_t off, unsigned bytes)
{
	uint8_t b[8] = { 0 };

	if (off < IMAGE_SIZE_MAX)
		image_read(im, off, b + 8 - bytes, bytes);
	return be64_load(b);
}

static void put(struct image *im, struct field f, uint64_t v)
{
	uint8_t b[8];

	be64_store(b, v);
	if (f.off < IMAGE_SIZE_MAX)
		image_write(im, f.off, b + 8 - f.bytes, f.bytes);
}

static unsigned cluster_bits(const struct image *im)
{
	uint64_t bits = get(im, 20, 4);

	return bits < QCOW2_CLUSTER_BITS_MIN || bits > QCOW2_CLUSTER_BITS_MAX ? 16 : (unsigned)bits;
}

/* ---- finding ---- */

static struct field one_of(uint64_t base, const struct offset *list, size_t n, struct prng *p)
{
	const struct offset *o = &list[prng_below(p, n)];

	return (struct field){ base + o->off, o->bytes };
}

/* One of the first @n entries at @off; rather one that is not zero. */
static struct field entry_of(const struct image *im, uint64_t off, uint64_t n, struct prng *p)
{
	struct field f = { off, 8 };

	n = MAX(MIN(n, (uint64_t)512), (uint64_t)1);
	for (unsigned i = 0; i < 8; i++) {
		f.off = off + 8 * prng_below(p, n);
		if (get(im, f.off, 8))
			break;
	}
	return f;
}

/* The header extension of @type (0: any one), or 0. */
static uint64_t extension(const struct image *im, uint32_t type, struct prng *p)
{
	uint64_t off = get(im, 4, 4) == 2 ? QCOW2_HEADER_V2_BYTES : get(im, 100, 4);
	uint64_t found = 0;

	for (unsigned i = 0; i < 16 && off < (1U << cluster_bits(im)); i++) {
		uint64_t t = get(im, off, 4);

		if (t == type && type)
			return off;
		if (!type && prng_below(p, i + 1) == 0)
			found = off;
		if (!t)
			break;
		off += 8 + align_up(get(im, off + 4, 4), 8);
	}
	return found;
}

static struct field l1_field(const struct image *im, struct prng *p)
{
	return entry_of(im, get(im, 40, 8), get(im, 36, 4), p);
}

static struct field l2_field(const struct image *im, struct prng *p)
{
	uint64_t table = get(im, l1_field(im, p).off, 8) & QCOW2_OFFSET_MASK;

	return table ? entry_of(im, table, 1ULL << (cluster_bits(im) - 3), p)
		     : (struct field){ 0 };
}

static struct field reftable_field(const struct image *im, struct prng *p)
{
	return entry_of(im, get(im, 48, 8), get(im, 56, 4) << (cluster_bits(im) - 3), p);
}

static struct field refblock_field(const struct image *im, struct prng *p)
{
	uint64_t block = get(im, reftable_field(im, p).off, 8) & QCOW2_OFFSET_MASK;
	unsigned bytes = 1U << prng_below(p, 4);

	if (!block)
		return (struct field){ 0 };
	return (struct field){ block + bytes * prng_below(p, 64), bytes };
}

static struct field snapshot_field(const struct image *im, struct prng *p)
{
	uint64_t off = get(im, 64, 8), n = MIN(get(im, 60, 4), (uint64_t)8);

	if (!off)
		return (struct field){ 0 };
	for (uint64_t i = n ? prng_below(p, n) : 0; i; i--)
		off = align_up(off + 40 + get(im, off + 36, 4) + get(im, off + 12, 2) +
			       get(im, off + 14, 2), 8);
	if (prng_below(p, 4) == 0)              /* what the snapshot's L1 table has */
		return entry_of(im, get(im, off, 8), get(im, off + 8, 4), p);
	return one_of(off, snapshot_fields, ARRAY_SIZE(snapshot_fields), p);
}

static struct field bitmap_field(const struct image *im, struct prng *p)
{
	uint64_t ext = extension(im, QCOW2_EXT_BITMAPS, p), off, n;

	if (!ext)
		return (struct field){ 0 };
	if (prng_below(p, 4) == 0) {
		static const struct offset own[] = { { 4, 4 }, { 8, 4 }, { 12, 4 }, { 16, 8 },
						     { 24, 8 } };

		return one_of(ext, own, ARRAY_SIZE(own), p);
	}
	off = get(im, ext + 24, 8);
	n = MIN(get(im, ext + 8, 4), (uint64_t)8);
	for (uint64_t i = n ? prng_below(p, n) : 0; i; i--)
		off = align_up(off + 24 + get(im, off + 18, 2) + get(im, off + 20, 4), 8);
	if (prng_below(p, 3) == 0)
		return entry_of(im, get(im, off, 8), get(im, off + 8, 4), p);
	return one_of(off, bitmap_fields, ARRAY_SIZE(bitmap_fields), p);
}

/* A byte of what a compressed cluster or any other holds, or of a LUKS header. */
static struct field data_field(const struct image *im, struct prng *p)
{
	uint64_t entry = get(im, l2_field(im, p).off, 8), off = entry & QCOW2_OFFSET_MASK;

	if (entry & QCOW2_COMPRESSED)
		off = entry & ((1ULL << (62 - (cluster_bits(im) - 8))) - 1);
	return (struct field){ off + prng_below(p, 64), 1 };
}

static struct field find(const struct image *im, enum image_spot spot, struct prng *p)
{
	uint64_t ext;

	switch (spot) {
	case SPOT_HEADER: return one_of(0, header_fields, ARRAY_SIZE(header_fields), p);
	case SPOT_EXTENSION:
		ext = extension(im, 0, p);
		return (struct field){ ext ? ext + 4 * prng_below(p, 4) : 0, ext ? 4 : 0 };
	case SPOT_L1: return l1_field(im, p);
	case SPOT_L2: return l2_field(im, p);
	case SPOT_REFTABLE: return reftable_field(im, p);
	case SPOT_REFBLOCK: return refblock_field(im, p);
	case SPOT_SNAPSHOT: return snapshot_field(im, p);
	case SPOT_BITMAP: return bitmap_field(im, p);
	case SPOT_DATA: return data_field(im, p);
	default: return (struct field){ 0 };
	}
}

/* ---- values ---- */

/* Where in a file something may be said to be: on a table, near the end, anywhere, out of it. */
static uint64_t place(const struct image *im, struct prng *p)
{
	uint64_t cluster = 1ULL << cluster_bits(im);
	uint64_t clusters = MAX(MIN(im->size, (uint64_t)1 << 40) / cluster, (uint64_t)1);

	switch (prng_below(p, 12)) {
	case 0: return get(im, 40, 8);
	case 1: return get(im, 48, 8);
	case 2: return get(im, 64, 8);
	case 3: return get(im, l1_field(im, p).off, 8) & QCOW2_OFFSET_MASK;
	case 4: return get(im, reftable_field(im, p).off, 8);
	case 5: return align_down(im->size, cluster) - cluster * prng_below(p, 2);
	case 6: return align_up(im->size, cluster) + cluster * prng_below(p, 3);
	case 7: return QCOW2_OFFSET_MASK - cluster * prng_below(p, 3);
	case 8: return cluster * prng_below(p, clusters) + (512 >> prng_below(p, 10));
	case 9: return prng_next(p) & QCOW2_OFFSET_MASK;
	default: return cluster * prng_below(p, clusters);
	}
}

static uint64_t value(const struct image *im, struct field f, struct prng *p)
{
	uint64_t old = get(im, f.off, f.bytes), v;

	if (f.bytes < 8 || prng_below(p, 3) == 0)
		return fuzz_number(p, old, f.bytes);
	switch (prng_below(p, 8)) {
	case 0: return old ^ QCOW2_COPIED;
	case 1: return old ^ QCOW2_COMPRESSED;
	case 2: return old ^ QCOW2_ZERO;
	case 3:
		v = place(im, p);
		return QCOW2_COMPRESSED | v | prng_below(p, 8) << (62 - (cluster_bits(im) - 8));
	case 4: return old ^ 1ULL << (56 + prng_below(p, 8));
	case 5: return place(im, p) | QCOW2_COPIED;
	default: return place(im, p);
	}
}

static void change(struct image *im, enum image_spot spot, struct prng *p)
{
	struct field f;

	if (spot == SPOT_SIZE) {
		static const uint64_t near[] = { 1, 511, 512, 4096, 65536 };
		uint64_t by = near[prng_below(p, ARRAY_SIZE(near))];

		im->size = prng_below(p, 2) ? im->size - MIN(by, im->size) :
			   prng_below(p, 2) ? im->size + by : fuzz_number(p, im->size, 7);
		im->size = MIN(im->size, IMAGE_SIZE_MAX);
		return;
	}
	if (spot == SPOT_SEED) {
		im->seed = prng_next(p);
		return;
	}
	f = find(im, spot, p);
	if (f.bytes)
		put(im, f, value(im, f, p));
}

size_t image_mutate(uint8_t *data, size_t size, size_t max, struct prng *p, unsigned spots)
{
	struct image *im = image_unpack(data, size);

	if (!im)
		return fuzz_mutate_bytes(data, size, max, p);
	for (uint64_t k = 1 + prng_below(p, 3); k;) {
		unsigned spot = 1U << prng_below(p, SPOT_KINDS);

		if (!(spots & spot))
			continue;
		k--;
		if (spot == SPOT_BYTES) {
			size = fuzz_mutate_bytes(data, size, max, p);
			break;
		}
		change(im, spot, p);
		if (k == 0)
			size = image_pack(im, data, max);
	}
	image_free(im);
	return size;
}
