/* SPDX-License-Identifier: MIT */
#include "sim/damage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "fmt/qcow2/format.h"

/* Behind the header's own; read as 64 bits. */
enum { AT_INCOMPATIBLE = 72 };

static uint64_t get64(const struct flat *f, uint64_t at)
{
	return at + 8 <= f->size ? be64_load(f->b + at) : 0;
}

static void read_header(struct flat *f)
{
	const struct qcow2_header_disk *d = (const void *)f->b;

	f->version = be32_get(d->version);
	f->cluster_bits = be32_get(d->cluster_bits);
	f->cluster = 1ULL << f->cluster_bits;
	f->order = f->version == 2 ? 4 : be32_get(d->refcount_order);
	f->l1 = be64_get(d->l1_table_offset);
	f->l1_entries = be32_get(d->l1_size);
	f->reftable = be64_get(d->refcount_table_offset);
	f->reftable_clusters = be32_get(d->refcount_table_clusters);
	f->nb_snapshots = be32_get(d->nb_snapshots);
	f->snapshots = be64_get(d->snapshots_offset);
	f->incompatible = f->version == 2 ? 0 : be64_get(d->incompatible_features);
}

void flat_init(struct flat *f, const struct sim_pages *pages, uint64_t size)
{
	*f = (struct flat){ .size = size };
	f->b = calloc(1, align_up(size, 64 * KiB) + 64 * KiB);
	assert(f->b);
	sim_pages_read(pages, 0, f->b, size);
	read_header(f);
}

void flat_fini(struct flat *f)
{
	free(f->b);
}

/* ---- counting ---- */

static uint64_t per_block(const struct flat *f)
{
	return f->cluster * 8 >> f->order;
}

/* Where the refcount block of cluster @k is said to be. */
static uint64_t block_of(const struct flat *f, uint64_t k)
{
	uint64_t index = k / per_block(f);

	if (index >= f->reftable_clusters * f->cluster / 8)
		return 0;
	return get64(f, f->reftable + 8 * index) & ~0x1ffULL;
}

uint64_t flat_refcount(const struct flat *f, uint64_t k)
{
	uint64_t block = block_of(f, k);

	if (!block || !is_aligned(block, f->cluster) || !range_within(block, f->cluster, f->size))
		return 0;
	return qcow2_refcount_at(f->order, f->b + block, k % per_block(f));
}

struct counting {
	const struct flat *f;
	uint32_t *counts;
	uint64_t n;
};

static void use(struct counting *c, uint64_t off, uint64_t len)
{
	for (uint64_t k = off >> c->f->cluster_bits; len && k < c->n &&
	     k <= (off + len - 1) >> c->f->cluster_bits; k++)
		c->counts[k]++;
}

static void use_l2(struct counting *c, uint64_t table)
{
	for (uint64_t i = 0; i < c->f->cluster / 8; i++) {
		uint64_t off = get64(c->f, table + 8 * i) & QCOW2_OFFSET_MASK;

		if (off)
			use(c, off, c->f->cluster);
	}
}

static void use_l1(struct counting *c, uint64_t l1, uint64_t entries)
{
	use(c, l1, entries * 8);
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t table = get64(c->f, l1 + 8 * i) & QCOW2_OFFSET_MASK;

		if (!table)
			continue;
		use(c, table, c->f->cluster);
		use_l2(c, table);
	}
}

static void use_snapshots(struct counting *c)
{
	const struct flat *f = c->f;
	uint64_t at = f->snapshots;

	for (uint32_t i = 0; i < f->nb_snapshots && at + 40 <= f->size; i++) {
		const struct qcow2_snapshot_disk *d = (const void *)(f->b + at);

		use_l1(c, be64_get(d->l1_table_offset), be32_get(d->l1_size));
		at = align_up(at + sizeof(*d) + be32_get(d->extra_size) + be16_get(d->id_size) +
			      be16_get(d->name_size), 8);
	}
	use(c, f->snapshots, at - f->snapshots);
}

void flat_count(const struct flat *f, uint32_t *counts, uint64_t n)
{
	struct counting c = { f, counts, n };

	memset(counts, 0, n * sizeof(*counts));
	use(&c, 0, f->cluster);
	use_l1(&c, f->l1, f->l1_entries);
	use_snapshots(&c);
	use(&c, f->reftable, f->reftable_clusters * f->cluster);
	for (uint64_t i = 0; i < f->reftable_clusters * f->cluster / 8; i++) {
		uint64_t block = get64(f, f->reftable + 8 * i) & ~0x1ffULL;

		if (block && is_aligned(block, f->cluster))
			use(&c, block, f->cluster);
	}
}

void flat_active(const struct flat *f, void (*fn)(void *arg, uint64_t where, uint64_t entry),
		 void *arg)
{
	for (uint64_t i = 0; i < f->l1_entries; i++) {
		uint64_t at = f->l1 + 8 * i, table = get64(f, at) & QCOW2_OFFSET_MASK;

		fn(arg, at, get64(f, at));
		for (uint64_t n = 0; table && n < f->cluster / 8; n++)
			fn(arg, table + 8 * n, get64(f, table + 8 * n));
	}
}

/* ---- damage ---- */

static void put_refcount(struct flat *f, uint64_t k, uint64_t value)
{
	uint64_t block = block_of(f, k);

	if (block && block + f->cluster <= f->size)
		qcow2_refcount_put(f->order, f->b + block, k % per_block(f), value);
}

static void damage_refcount(struct flat *f, enum damage what, struct prng *p)
{
	uint64_t max = f->order >= 6 ? UINT64_MAX : (1ULL << (1U << f->order)) - 1;
	uint64_t k = prng_below(p, f->size / f->cluster), now = flat_refcount(f, k);

	if (what == DAMAGE_LEAK)
		put_refcount(f, k, now < max ? now + 1 : max);
	else if (what == DAMAGE_LOST)
		put_refcount(f, k, 0);
	else if (now > 1)
		put_refcount(f, k, now - 1);
}

/* A place in the active tables that holds an entry with (or, @is_hole, without) an offset. */
static uint64_t find_entry(const struct flat *f, bool is_hole, struct prng *p)
{
	for (unsigned tries = 0; tries < 200; tries++) {
		uint64_t i = prng_below(p, f->l1_entries);
		uint64_t table = get64(f, f->l1 + 8 * i) & QCOW2_OFFSET_MASK;
		uint64_t at = table + 8 * prng_below(p, f->cluster / 8);

		if (!table)
			continue;
		if (!is_hole && !prng_below(p, 8))
			return f->l1 + 8 * i;
		if (!(get64(f, at) & QCOW2_OFFSET_MASK) == is_hole)
			return at;
	}
	return 0;
}

static void damage_entry(struct flat *f, enum damage what, struct prng *p)
{
	uint64_t at = find_entry(f, what == DAMAGE_UNALIGNED_ZERO, p);
	uint64_t k = prng_below(p, f->size / f->cluster - 1);

	if (!at)
		return;
	if (what == DAMAGE_FLAG) {
		be64_store(f->b + at, get64(f, at) ^ QCOW2_COPIED);
	} else if (f->version == 3 && f->cluster > 512 && !(get64(f, at) & QCOW2_ZERO)) {
		be64_store(f->b + at, (k << f->cluster_bits) | 512 | QCOW2_ZERO);
		/* Often it is counted. */
		for (unsigned i = 0; i < 2 && f->order >= 3 && prng_below(p, 4); i++)
			put_refcount(f, k + i, flat_refcount(f, k + i) + 1);
	}
}

static void damage_block(struct flat *f, enum damage what, struct prng *p)
{
	uint64_t n = 0, at, end = align_up(f->size, f->cluster);

	while (get64(f, f->reftable + 8 * n) && n < f->cluster / 8 - 1)
		n++;
	at = f->reftable + 8 * prng_below(p, MAX(n, 1ULL));
	if (what == DAMAGE_NO_BLOCK)
		be64_store(f->b + at, 0);
	else if (what == DAMAGE_BLOCK_TWICE)
		be64_store(f->b + at, prng_below(p, 2) ? f->l1 : get64(f, f->reftable));
	else if (what == DAMAGE_BLOCK_OUTSIDE)
		be64_store(f->b + f->reftable + 8 * n, end + f->cluster * prng_below(p, 4));
	else
		be64_store(f->b + at, get64(f, at) | 1ULL << prng_below(p, 9));
}

/* The entry without its extra data. */
static void damage_snapshot(struct flat *f)
{
	struct qcow2_snapshot_disk *d = (void *)(f->b + f->snapshots);
	uint32_t extra = be32_get(d->extra_size);
	uint8_t *text = (uint8_t *)(d + 1);

	memmove(text, text + extra, be16_get(d->id_size) + be16_get(d->name_size));
	d->extra_size = be32_make(0);
}

void flat_damage(struct flat *f, enum damage what, struct prng *p)
{
	switch (what) {
	case DAMAGE_LEAK: case DAMAGE_LOW: case DAMAGE_LOST:
		damage_refcount(f, what, p);
		return;
	case DAMAGE_FLAG: case DAMAGE_UNALIGNED_ZERO:
		damage_entry(f, what, p);
		return;
	case DAMAGE_NO_BLOCK: case DAMAGE_BLOCK_TWICE: case DAMAGE_BLOCK_OUTSIDE:
	case DAMAGE_BLOCK_RESERVED:
		damage_block(f, what, p);
		return;
	case DAMAGE_BITS:
		if (f->version == 3)
			be64_store(f->b + AT_INCOMPATIBLE, f->incompatible | QCOW2_INCOMPAT_DIRTY |
				   QCOW2_INCOMPAT_CORRUPT);
		return;
	case DAMAGE_SNAPSHOT:
		if (f->nb_snapshots && f->version == 3)
			damage_snapshot(f);
		return;
	case DAMAGES:
		return;
	}
}

void flat_half_snapshot(struct flat *f, struct prng *p)
{
	uint64_t at = find_entry(f, false, p), entry = get64(f, at);
	uint64_t max = f->order >= 6 ? UINT64_MAX : (1ULL << (1U << f->order)) - 1;
	uint64_t k = (entry & QCOW2_OFFSET_MASK) >> f->cluster_bits;

	if (!at || !k || flat_refcount(f, k) == max)
		return;
	be64_store(f->b + at, entry & ~QCOW2_COPIED);
	put_refcount(f, k, flat_refcount(f, k) + 1);
}

void flat_mark(struct flat *f)
{
	const struct qcow2_header_disk *d = (const void *)f->b;
	uint64_t at = f->version == 2 ? AT_INCOMPATIBLE : be32_get(d->header_length);

	while (be32_load(f->b + at) != QCOW2_EXT_END)
		at += 8 + align_up(be32_load(f->b + at + 4), 8);
	assert(!get64(f, at) && !get64(f, at + 8));
	be32_store(f->b + at, QCOW2_EXT_IN_USE);
}
