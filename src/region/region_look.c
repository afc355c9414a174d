/* SPDX-License-Identifier: MIT */
/* region/region_look.c - questions: sizes, statistics, walks, the check. None changes anything. */
#include "region/region_impl.h"

size_t byre_region_usable(struct byre_region *r, const void *p)
{
	struct tlsf_tag *t = region_tag(r, r->table, p);
	size_t usable = 0;

	if (!p)
		return 0;
	region_lock(r);
	if (tlsf_is_used(&r->tlsf, shape(r->table), t))
		usable = region_usable(r, r->table, tlsf_size(t));
	else
		region_report_pointer(r, p);
	region_unlock(r);
	return usable;
}

size_t byre_region_overhead(const struct byre_region *r)
{
	return r->table ? 0 : BYRE_REGION_HEADER;
}

size_t byre_region_largest(struct byre_region *r)
{
	uint32_t size;

	region_lock(r);
	size = tlsf_largest(&r->tlsf);
	region_unlock(r);
	return size ? region_usable(r, r->table, size) : 0;
}

/* ---- walking ---- */

typedef bool walk_fn(void *arg, const void *p, size_t usable, bool in_use);

static bool walk_pool(struct byre_region *r, struct tlsf_tag *t, size_t granules, walk_fn *fn,
		      void *arg)
{
	struct tlsf_shape s = shape(r->table);
	uint32_t left = tlsf_word((uint32_t)granules);

	while (left) {
		uint32_t size = tlsf_size(t);

		if (size < s.least || size > left || !tlsf_joined(&r->tlsf, s, t)) {
			tlsf_damaged(&r->tlsf, t);
			region_report_damage(r);
			return false;
		}
		if (!fn(arg, region_object(r, r->table, t), region_usable(r, r->table, size),
			t->size & TLSF_USED))
			return false;
		left -= size;
		t = tlsf_next(s, t);
	}
	return true;
}

bool byre_region_walk(struct byre_region *r,
		      bool (*fn)(void *arg, const void *p, size_t usable, bool in_use), void *arg)
{
	bool ok = true;

	region_lock(r);
	if (r->table)
		ok = walk_pool(r, r->table, r->total, fn, arg);
	for (struct pool *pool = r->pools; pool && ok; pool = pool->next)
		ok = walk_pool(r, POOL_TAG(pool), pool->granules, fn, arg);
	region_unlock(r);
	return ok;
}

/* ---- statistics ---- */

static void count_free(const struct byre_region *r, const struct tlsf_tag *t,
		       struct byre_region_stats *s)
{
	size_t len;
	char *body = region_body(r, r->table, t, &len);
	uintptr_t from = (uintptr_t)align_up((uintptr_t)body, r->page);
	uintptr_t to = (uintptr_t)align_down((uintptr_t)body + len, r->page);

	s->free_blocks++;
	if (t->size & TLSF_CLEAN && to > from)
		s->dropped += to - from;
}

static void count_pool(struct byre_region *r, struct tlsf_tag *t, struct byre_region_stats *s)
{
	for (; t->size != TLSF_USED; t = tlsf_next(shape(r->table), t)) {
		if (t->size & TLSF_USED)
			s->blocks++;
		else
			count_free(r, t, s);
		if (!tlsf_joined(&r->tlsf, shape(r->table), t))
			break;
	}
}

void byre_region_stats(struct byre_region *r, struct byre_region_stats *ret)
{
	struct byre_region_stats s = { 0 };

	region_lock(r);
	s.held = r->held;
	s.used = r->tlsf.used >> TLSF_FLAGS << r->granule_log2;
	s.free = (r->total << r->granule_log2) - s.used;
	s.records = s.held - s.used - s.free;
	s.pools = r->npools;
	if (r->table)
		count_pool(r, r->table, &s);
	for (struct pool *pool = r->pools; pool; pool = pool->next)
		count_pool(r, POOL_TAG(pool), &s);
	region_unlock(r);
	*ret = s;
}

size_t byre_region_used(struct byre_region *r)
{
	size_t used;

	region_lock(r);
	used = r->tlsf.used >> TLSF_FLAGS << r->granule_log2;
	region_unlock(r);
	return used;
}

/* ---- the check ---- */

static bool owns(void *arg, const struct tlsf_tag *t)
{
	const struct byre_region *r = arg;

	if (r->table)
		return tlsf_within(&r->tlsf, TLSF_TABLE, t);
	for (const struct pool *pool = r->pools; pool; pool = pool->next) {
		uintptr_t off = (uintptr_t)t - ((uintptr_t)pool + sizeof(*pool));

		if (off >> TLSF_GRANULE_LOG2 < pool->granules)
			return is_aligned(off, BYRE_REGION_GRANULE);
	}
	return false;
}

/* The chain of pools, before anything follows it. */
static struct tlsf_fault check_chain(const struct byre_region *r)
{
	const struct pool *prev = NULL;
	size_t pools = r->table ? 1 : 0, granules = r->table ? r->total : 0;

	for (const struct pool *pool = r->pools; pool; prev = pool, pool = pool->next) {
		if (region_pool_sum(pool) != pool->sum || pool->prev != prev)
			return (struct tlsf_fault){ "the head of a memory is overwritten", pool };
		pools++;
		granules += pool->granules;
	}
	if (pools != r->npools || granules != r->total)
		return (struct tlsf_fault){ "the region's record of its memory is wrong", r };
	return (struct tlsf_fault){ 0 };
}

static struct tlsf_fault check_blocks(struct byre_region *r)
{
	struct tlsf_count count = { 0 };
	struct tlsf_fault f = { 0 };

	if (r->table)
		f = tlsf_check_pool(&r->tlsf, TLSF_TABLE, r->table, (uint32_t)r->total, owns, r,
				    &count);
	for (struct pool *pool = r->pools; pool && !f.what; pool = pool->next)
		f = tlsf_check_pool(&r->tlsf, TLSF_INLINE, POOL_TAG(pool), pool->granules, owns, r,
				    &count);
	return f.what ? f : tlsf_check_lists(&r->tlsf, owns, r, &count);
}

static const void *find_written(struct byre_region *r)
{
	const void *other = NULL;

	for (size_t i = TLSF_LIST_FIRST; i < r->tlsf.list_end; i++) {
		for (struct tlsf_tag *t = *tlsf_head(&r->tlsf, i); t && !other; t = t->next_free) {
			size_t len;
			char *body = region_body(r, r->table, t, &len);

			other = region_find_other(body, len, REGION_POISON_FREE);
		}
	}
	return other;
}

static struct byre_region_fault check(struct byre_region *r)
{
	struct tlsf_fault f = { 0 };
	const void *written;

	if (region_sum(r) != r->sum)
		f = (struct tlsf_fault){ "the region's own record is overwritten", r };
	if (!f.what)
		f = check_chain(r);
	if (!f.what)
		f = check_blocks(r);
	if (f.what)
		return (struct byre_region_fault){ BYRE_REGION_DAMAGED, f.what, f.where };
	written = r->flags & BYRE_REGION_POISON ? find_written(r) : NULL;
	if (written)
		return (struct byre_region_fault){ BYRE_REGION_WRITTEN,
						   "freed memory was written to", written };
	return (struct byre_region_fault){ 0 };
}

bool byre_region_check(struct byre_region *r, struct byre_region_fault *ret)
{
	struct byre_region_fault f = { BYRE_REGION_DAMAGED, "the region's hooks are overwritten",
				       r };

	if (region_hooks_sum(r) == r->hooks_sum) {
		region_lock(r);
		f = check(r);
		region_unlock(r);
	}
	if (f.kind && ret)
		*ret = f;
	return !f.kind;
}
