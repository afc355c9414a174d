/* SPDX-License-Identifier: MIT */
/* region/region_impl.h - what the files of this folder share.
 *
 * The records are, in this order: struct byre_region, which ends in the heads of the core's lists;
 * the table of tags, if the granule is not 16. Where it is, each memory begins with a struct pool,
 * then come blocks, then the tag that ends the pool. Tags lie 8 bytes off the granule, so that
 * objects, which begin behind the part of the tag that blocks in use have, are aligned to it.
 *
 * Everything that is known is known twice, so that byre_region_check() finds any one change: what
 * changes with blocks is counted anew from them (tlsf.c); what does not is summed, and the sum
 * compared before a pointer in it is followed. So nothing is kept here that could not be
 * found again, and no struct has padding.
 *
 * Invariants:
 *	R11  sums are right whenever no call is under way;
 *	R12  pools hold all granules there are, and their number is @npools;
 *	R13  in poison mode free memory has REGION_POISON_FREE in every byte behind its tag. */
#ifndef REGION_REGION_IMPL_H
#define REGION_REGION_IMPL_H

#include <byre/region.h>

#include "base/bits.h"
#include "tlsf/tlsf.h"

enum {
	/* In flags. */
	REGION_HOOKED = 1 << 16,        /* there are hooks that calls must think of */
	REGION_TABLE = 1 << 17,         /* tags are in a table */

	POOL_GIVE_BACK = 1,             /* to put_pages(), when it is free */
	POOL_FROM_HOOK = 2,             /* get_pages() returned it */
	POOL_LEAD_SHIFT = 8,            /* above: the bytes before the pool that alignment cost */

	REGION_POISON_FREE = 0xfc,      /* as a size word: not in use, T15 */
	REGION_POISON_NEW = 0xa5,
};

struct pool {
	uintptr_t sum;                  /* region_pool_sum() */
	struct pool *next, *prev;
	size_t len;                     /* as it came in */
	uint32_t granules;
	uint32_t flags;
};

struct byre_region {
	uintptr_t sum;                  /* region_sum(): from here to @tlsf */
	uintptr_t hooks_sum;            /* region_hooks_sum(): never changes, so needs no lock */
	struct byre_region_hooks hooks;
	size_t page;
	size_t grow;
	char *base;                     /* with a table: the memory */
	struct tlsf_tag *table;         /* NULL: tags are in line */
	struct pool *pools;             /* in line */
	size_t npools;
	size_t total;                   /* granules of all pools */
	size_t held;
	size_t records_len;
	size_t granule;
	size_t request_max;             /* bytes */
	/* Where there is nothing special: one above request_max, and tlsf.granules. Else 0. */
	size_t plain_end;
	size_t plain_granules;
	uint32_t flags;                 /* 0: nothing special */
	uint32_t granule_log2;
	struct tlsf tlsf;               /* the last: it ends in an array */
};

#define POOL_TAG(p) ((struct tlsf_tag *)(void *)((char *)(p) + sizeof(struct pool)))
#define POOL_OVERHEAD (sizeof(struct pool) + TLSF_USED_BYTES)

/* ---- from tags to memory: @table is a constant wherever speed matters ---- */

TLSF_INLINED struct tlsf_shape shape(bool table)
{
	return table ? TLSF_TABLE : TLSF_INLINE;
}

/* The object whose tag is @t. */
TLSF_INLINED char *region_object(const struct byre_region *r, bool table, const struct tlsf_tag *t)
{
	if (!table)
		return (char *)(uintptr_t)t + TLSF_USED_BYTES;
	return r->base + (tlsf_index(&r->tlsf, TLSF_TABLE, t) << r->granule_log2);
}

/* The tag of the object @p, which can be anything: then something that is not within. */
TLSF_INLINED struct tlsf_tag *region_tag(const struct byre_region *r, bool table, const void *p)
{
	size_t off = (uintptr_t)p - (uintptr_t)r->base;

	if (!table)
		return (struct tlsf_tag *)((uintptr_t)p - TLSF_USED_BYTES);
	if (off >> r->granule_log2 >= r->tlsf.granules || off & (r->granule - 1))
		return NULL;
	return tlsf_after(TLSF_TABLE, r->table, tlsf_word((uint32_t)(off >> r->granule_log2)));
}

/* The bytes usable in a block of a size word without flags. */
TLSF_INLINED size_t region_usable(const struct byre_region *r, bool table, size_t size)
{
	return table ? (size_t)(size >> TLSF_FLAGS) << r->granule_log2
		     : tlsf_distance(TLSF_INLINE, size) - TLSF_USED_BYTES;
}

/* The memory of the free block @t that its tag does not take. */
TLSF_INLINED char *region_body(const struct byre_region *r, bool table, const struct tlsf_tag *t,
			       size_t *ret_len)
{
	size_t skip = table ? 0 : sizeof(*t) - TLSF_USED_BYTES;

	*ret_len = region_usable(r, table, tlsf_size(t)) - skip;
	return region_object(r, table, t) + skip;
}

TLSF_INLINED void region_lock(struct byre_region *r)
{
	if (r->hooks.lock)
		r->hooks.lock(r->hooks.cookie);
}

TLSF_INLINED void region_unlock(struct byre_region *r)
{
	if (r->hooks.unlock)
		r->hooks.unlock(r->hooks.cookie);
}

/* ---- region.c; all under the lock ---- */

uintptr_t region_sum(const struct byre_region *r);
uintptr_t region_hooks_sum(const struct byre_region *r);
uintptr_t region_pool_sum(const struct pool *pool);
struct pool *region_pool_next(struct pool *pool);

/* NULL: @mem does not do. */
struct pool *region_pool_add(struct byre_region *r, void *mem, size_t len, uint32_t flags);
/* The pool is no longer in the region. False, and it still is, if it is not one free block. */
bool region_pool_remove(struct byre_region *r, struct pool *pool);
/* Where @pool begins as it came in. */
void *region_pool_mem(struct pool *pool);

/* ---- region_poison.c ---- */

#define REGION_COLD __attribute__((cold, noinline))

/* Both return NULL, for their callers to do the same. What the core met, if anything: */
REGION_COLD void *region_report_damage(struct byre_region *r);
/* @p was to be a block in use and is not; NULL is no fault. */
REGION_COLD void *region_report_pointer(struct byre_region *r, const void *p);

void region_fill(void *p, size_t len, unsigned char byte);
/* The first byte of [p, p + len) that is not @byte, or NULL. */
const void *region_find_other(const void *p, size_t len, unsigned char byte);
void region_copy(void *dst, const void *src, size_t len);

/* @t was free and becomes, or became, memory in use: was it written to? Fills it for its user, from
 * byte @keep of the object on. */
void region_poison_take(struct byre_region *r, bool table, struct tlsf_tag *t, size_t keep);
/* @free is a free block; @size from @t on in it was in use until now. */
void region_poison_free(struct byre_region *r, bool table, const struct tlsf_tag *free,
			const struct tlsf_tag *t, uint32_t size);

#endif
