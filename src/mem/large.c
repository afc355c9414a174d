/* SPDX-License-Identifier: MIT */
/* mem/large.c - large blocks. */
#include "mem/large.h"

#include <string.h>

#include "mem/decay.h"
#include "mem/slab.h"
#include "mem/sweep.h"

enum { DECAY_EVERY = 16 };              /* frees */

_Atomic size_t large_keep = 64 * MiB, large_dirty_max = 128 * MiB;
static _Atomic size_t blocks, block_slices;

static size_t get(const _Atomic size_t *v)
{
	return atomic_load_explicit(v, memory_order_relaxed);
}

static void add(_Atomic size_t *v, size_t n)
{
	atomic_fetch_add_explicit(v, n, memory_order_relaxed);
}

static size_t slices_for(size_t size)
{
	return size ? div_round_up(size, SLICE_BYTES) : 1;
}

void *large_alloc(size_t size, size_t align, size_t *ret_dirty)
{
	size_t first;

	if (size > LARGE_SIZE_MAX || align > LARGE_SIZE_MAX)
		return NULL;
	first = pages_alloc(slices_for(size), align <= SLICE_BYTES ? 1 : align >> SLICE_LOG2,
			    ret_dirty);
	if (!first)
		return NULL;
	*slab_at(first) = (struct slab){ .size = size,
					 .align = (uint8_t)log2_floor(MAX(align, (size_t)16)) };
	add(&blocks, 1);
	add(&block_slices, pages_run(first));
	return slice_at(first);
}

/* A block that is none any more. */
static void gone(size_t first, bool clean)
{
	add(&blocks, (size_t)-1);
	add(&block_slices, -pages_run(first));
	pages_free(first, clean);
}

void large_count(size_t *ret_n, size_t *ret_bytes)
{
	*ret_n = get(&blocks);
	*ret_bytes = get(&block_slices) << SLICE_LOG2;
}

/* Not too much memory that nobody uses. */
static void limit_dirty(void)
{
	struct pages_stats s;
	size_t limit;

	limit = get(&large_dirty_max);
	if (pages_dirty() <= limit)
		return;
	pages_stats(&s);
	limit = MAX(limit, s.used / 4);
	if (s.dirty > limit)
		sweep_round(SWEEP_SLICES, s.dirty - limit + limit / 8);
}

/* Asking what time it is costs as much as the rest of a free. */
static void decay_now_and_then(void)
{
	static _Atomic unsigned frees;
	unsigned n = atomic_load_explicit(&frees, memory_order_relaxed);

	/* One that is not counted is no loss. */
	atomic_store_explicit(&frees, n + 1, memory_order_relaxed);
	if (n % DECAY_EVERY == 0)
		decay_poll();
}

void large_free(void *p)
{
	size_t first = slice_of(p), len = pages_run(first) << SLICE_LOG2;
	struct slab *s = slab_at(first);
	bool clean = false;

	if (s->moved)
		clean = !os_renew(p, len);
	else if (len > get(&large_keep))
		clean = !os_drop(p, len);
	s->moved = false;
	gone(first, clean);
	if (!clean)
		limit_dirty();
	decay_now_and_then();
}

size_t large_usable(const void *p)
{
	return pages_run(slice_of(p)) << SLICE_LOG2;
}

void *large_move(void *p, size_t size)
{
	size_t first = slice_of(p), len = pages_run(first) << SLICE_LOG2;
	struct slab *s = slab_at(first);
	size_t align = (size_t)1 << atomic_load_explicit(&s->align, memory_order_relaxed);
	size_t dirty;
	void *to = large_alloc(size, align, &dirty);

	if (!to)
		return NULL;
	if (size > len && len >= LARGE_MOVE && dirty <= (len >> SLICE_LOG2) / 2 &&
	    !os_move(p, len, to)) {
		slab_at(slice_of(to))->moved = true;
		s->moved = false;
		gone(first, true);
		return to;
	}
	/* All that malloc_usable_size() allows, not only what was asked for. */
	memcpy(to, p, MIN(len, size));
	large_free(p);
	return to;
}

bool large_resize(void *p, size_t size)
{
	size_t first = slice_of(p), n = slices_for(size), old = pages_run(first);

	if (size > LARGE_SIZE_MAX)
		return false;
	if (n != old) {
		if (!pages_resize(first, n))
			return false;
		add(&block_slices, n - old);
	}
	slab_at(first)->size = size;
	return true;
}
