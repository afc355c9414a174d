/* SPDX-License-Identifier: MIT */
/* region/region_block.c - the hot paths: allocate, free, resize.
 *
 * Each is written once, over whether tags are in line or in a table, and made twice by inlining
 * with that as a constant. steps_test.c counts their instructions. */
#include "region/region_impl.h"

#define NOINLINE __attribute__((noinline))

/* ---- allocate ---- */

/* The size word of a request, which is not above request_max. */
TLSF_INLINED uint32_t size_of(const struct byre_region *r, bool table, size_t request)
{
	unsigned log2 = table ? r->granule_log2 : TLSF_GRANULE_LOG2;
	size_t head = table ? 0 : TLSF_USED_BYTES;
	uint32_t granules = (uint32_t)((request + head + ((size_t)1 << log2) - 1) >> log2);

	return MAX(tlsf_word(granules), shape(table).least);
}

/* The size word of @len bytes, which are whole granules. */
TLSF_INLINED size_t word_of(const struct byre_region *r, bool table, size_t len)
{
	return len >> (table ? r->granule_log2 : TLSF_GRANULE_LOG2) << TLSF_FLAGS;
}

/* How much of the free block @t comes before an object aligned to @align; a size word. */
TLSF_INLINED size_t front_of(const struct byre_region *r, bool table, const struct tlsf_tag *t,
			     size_t align)
{
	uintptr_t object = (uintptr_t)region_object(r, table, t);
	size_t front = word_of(r, table, -object & (align - 1));

	if (front && front < shape(table).least)
		front += word_of(r, table, align);      /* else it is no block */
	return front;
}

/* The most that front_of() can return. */
TLSF_INLINED size_t front_max(const struct byre_region *r, bool table, size_t align)
{
	uint32_t least = shape(table).least, granule = 1 << TLSF_FLAGS;

	return word_of(r, table, align) - granule + (least > granule ? least : 0);
}

/* Takes @size, aligned to more than the granule. */
TLSF_INLINED struct tlsf_tag *take_aligned(struct byre_region *r, bool table, uint32_t size,
					   size_t align)
{
	size_t list = tlsf_find(&r->tlsf, size);
	size_t front = 0;

	if (list) {
		const struct tlsf_tag *t = *tlsf_head(&r->tlsf, list);

		front = front_of(r, table, t, align);
		if (front + size > tlsf_size(t)) {
			front = front_max(r, table, align);
			if (front + size > r->tlsf.size_max)
				return NULL;
			list = tlsf_find(&r->tlsf, (uint32_t)front + size);
			if (list)
				front = front_of(r, table, *tlsf_head(&r->tlsf, list), align);
		}
	}
	return list ? tlsf_take(&r->tlsf, shape(table), list, (uint32_t)front, size) : NULL;
}

/* Takes @size. */
TLSF_INLINED struct tlsf_tag *take(struct byre_region *r, bool table, uint32_t size)
{
	size_t list = tlsf_find(&r->tlsf, size);

	return list ? tlsf_take(&r->tlsf, shape(table), list, 0, size) : NULL;
}

TLSF_INLINED void *finish(struct byre_region *r, bool table, struct tlsf_tag *t)
{
	if (!t)
		return region_report_damage(r);
	if (r->flags & BYRE_REGION_POISON)
		region_poison_take(r, table, t, 0);
	return region_object(r, table, t);
}

/* Both, for whatever there is to think of. */
static NOINLINE void *take_any(struct byre_region *r, size_t request, size_t align)
{
	void *p;

	region_lock(r);
	if (align <= r->granule && r->table)
		p = finish(r, true, take(r, true, size_of(r, true, request)));
	else if (align <= r->granule)
		p = finish(r, false, take(r, false, size_of(r, false, request)));
	else if (r->table)
		p = finish(r, true, take_aligned(r, true, size_of(r, true, request), align));
	else
		p = finish(r, false, take_aligned(r, false, size_of(r, false, request), align));
	region_unlock(r);
	return p;
}

/* Gets memory from the hook and takes @request from it. */
static void *take_more(struct byre_region *r, size_t request, size_t align)
{
	size_t most = size_of(r, false, request), len;
	bool ok;
	void *mem;

	if (align > r->granule)
		most += front_max(r, false, align);
	if (most > r->tlsf.size_max)
		return NULL;
	len = (most >> TLSF_FLAGS << TLSF_GRANULE_LOG2) + POOL_OVERHEAD;
	len = (size_t)align_up(MAX(len, r->grow), r->page);
	if (!len || (len - POOL_OVERHEAD) >> TLSF_GRANULE_LOG2 > r->tlsf.size_max >> TLSF_FLAGS)
		return NULL;
	mem = r->hooks.get_pages(r->hooks.cookie, len);
	if (!mem)
		return NULL;
	region_lock(r);
	ok = region_pool_add(r, mem, len, POOL_GIVE_BACK | POOL_FROM_HOOK);
	region_unlock(r);
	if (!ok && r->hooks.put_pages)
		r->hooks.put_pages(r->hooks.cookie, mem, len);
	return ok ? take_any(r, request, align) : NULL;
}

static NOINLINE void *alloc_any(struct byre_region *r, size_t request,
						 size_t align)
{
	void *p;

	if (request > r->request_max || (align > r->granule && align & (align - 1)))
		return NULL;
	p = take_any(r, request, align);
	return p || !r->hooks.get_pages ? p : take_more(r, request, align);
}

/* Without hooks and poison: nothing is called, so little is saved on the stack. */
TLSF_INLINED void *alloc_plain(struct byre_region *r, bool table, size_t request)
{
	uint32_t size = size_of(r, table, request);
	size_t list = tlsf_find(&r->tlsf, size);
	struct tlsf_tag *t;

	if (!list)
		return NULL;
	t = tlsf_take(&r->tlsf, shape(table), list, 0, size);
	if (!t)
		return region_report_damage(r);
	return region_object(r, table, t);
}

TLSF_INLINED void *alloc_plain_aligned(struct byre_region *r, bool table, size_t request,
				       size_t align)
{
	struct tlsf_tag *t = take_aligned(r, table, size_of(r, table, request), align);

	return t ? region_object(r, table, t) : region_report_damage(r);
}

static NOINLINE void *alloc_aligned(struct byre_region *r, size_t request, size_t align)
{
	return align & (align - 1) ? NULL : alloc_plain_aligned(r, false, request, align);
}

static NOINLINE void *alloc_other(struct byre_region *r, size_t request, size_t align)
{
	if (r->flags != REGION_TABLE || request > r->request_max)
		return alloc_any(r, request, align);
	if (align <= r->granule)
		return alloc_plain(r, true, request);
	return align & (align - 1) ? NULL : alloc_plain_aligned(r, true, request, align);
}

void *byre_region_alloc(struct byre_region *r, size_t size, size_t align)
{
	if (size >= r->plain_end)
		return alloc_other(r, size, align);
	if (align > BYRE_REGION_GRANULE)
		return alloc_aligned(r, size, align);
	return alloc_plain(r, false, size);
}

/* ---- free ---- */

/* Takes the pool that the free block @t is the whole of out of the region, if it is to be given
 * back. */
static struct pool *retire_pool(struct byre_region *r, struct tlsf_tag *t)
{
	struct pool *pool = (struct pool *)(void *)((char *)t - sizeof(*pool));

	if (t->prev != TLSF_USED || tlsf_next(TLSF_INLINE, t)->size != TLSF_USED ||
	    !(pool->flags & POOL_GIVE_BACK))
		return NULL;
	return region_pool_remove(r, pool) ? pool : NULL;
}

/* Frees the block at @p, whose tag @t is. Returns the free block that it is part of, or NULL after
 * reporting. */
TLSF_INLINED struct tlsf_tag *release(struct byre_region *r, bool table, struct tlsf_tag *t,
				      bool is_used, void *p)
{
	struct tlsf_tag *free;

	if (!is_used)
		return region_report_pointer(r, p);
	free = tlsf_free(&r->tlsf, shape(table), t);
	return free ? free : region_report_damage(r);
}

TLSF_INLINED struct tlsf_tag *release_any(struct byre_region *r, bool table, void *p)
{
	struct tlsf_tag *t = region_tag(r, table, p);

	return release(r, table, t, tlsf_is_used(&r->tlsf, shape(table), t), p);
}

static NOINLINE void free_any(struct byre_region *r, void *p)
{
	bool table = r->table;
	struct tlsf_tag *t = region_tag(r, table, p), *free;
	struct pool *pool = NULL;
	uint32_t size;

	if (!p)
		return;
	region_lock(r);
	size = tlsf_within(&r->tlsf, shape(table), t) ? tlsf_size(t) : 0;
	free = table ? release_any(r, true, p) : release_any(r, false, p);
	if (free && r->flags & BYRE_REGION_POISON)
		region_poison_free(r, table, free, t, size);
	if (free && !table && r->hooks.put_pages)
		pool = retire_pool(r, free);
	region_unlock(r);
	if (pool)
		r->hooks.put_pages(r->hooks.cookie, region_pool_mem(pool), pool->len);
}

static NOINLINE void free_other(struct byre_region *r, void *p)
{
	if (r->flags == REGION_TABLE)
		release_any(r, true, p);
	else
		free_any(r, p);
}

void byre_region_free(struct byre_region *r, void *p)
{
	struct tlsf_tag *t = region_tag(r, false, p);

	if (tlsf_index(&r->tlsf, TLSF_INLINE, t) >= r->plain_granules)
		free_other(r, p);
	else
		release(r, false, t, tlsf_is_used_within(&r->tlsf, TLSF_INLINE, t), p);
}

/* ---- resize ---- */

/* What a resize did in poison mode: what is behind @old is new, or was given up. */
static void poison_resized(struct byre_region *r, bool table, struct tlsf_tag *t, uint32_t old)
{
	struct tlsf_tag *next = tlsf_next(shape(table), t);
	uint32_t size = tlsf_size(t);

	if (size > old)
		region_poison_take(r, table, t, region_usable(r, table, old));
	else if (size < old)
		region_poison_free(r, table, next, next, old - size);
}

/* False if it does not fit; @ret_usable is then what there is, 0 if @p is no block. */
TLSF_INLINED bool resize(struct byre_region *r, bool table, void *p, size_t size,
			 size_t *ret_usable)
{
	struct tlsf_tag *t = region_tag(r, table, p);
	uint32_t old;
	bool ok;

	*ret_usable = 0;
	if (!tlsf_is_used(&r->tlsf, shape(table), t)) {
		region_report_pointer(r, p);
		return false;
	}
	old = tlsf_size(t);
	*ret_usable = region_usable(r, table, old);
	if (size > r->request_max)
		return false;
	ok = tlsf_resize(&r->tlsf, shape(table), t, size_of(r, table, size));
	if (!ok)
		region_report_damage(r);
	else if (r->flags & BYRE_REGION_POISON)
		poison_resized(r, table, t, old);
	return ok;
}

TLSF_INLINED bool resize_locked(struct byre_region *r, void *p, size_t size, size_t *ret_usable)
{
	bool ok;

	region_lock(r);
	ok = r->table ? resize(r, true, p, size, ret_usable)
		      : resize(r, false, p, size, ret_usable);
	region_unlock(r);
	return ok;
}

bool byre_region_resize_in_place(struct byre_region *r, void *p, size_t size)
{
	size_t usable;

	return p && resize_locked(r, p, size, &usable);
}

void *byre_region_resize(struct byre_region *r, void *p, size_t size, size_t align)
{
	size_t usable;
	void *moved;

	if (!p)
		return alloc_other(r, size, align);
	if (resize_locked(r, p, size, &usable))
		return p;
	if (!usable)
		return NULL;
	moved = alloc_other(r, size, align);
	if (!moved)
		return NULL;
	region_copy(moved, p, MIN(usable, size));
	free_other(r, p);
	return moved;
}
