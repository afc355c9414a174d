/* SPDX-License-Identifier: MIT */
/* mem/census.c - visiting heaps. */
#include "mem/census.h"

#include <string.h>

#include "mem/heap.h"
#include "mem/large.h"
#include "mem/stock.h"
#include "mem/sweep.h"

/* With the lock of @h. @hot: its hot part may be used, too. */
typedef void visit_fn(struct heap *h, bool hot, void *arg);

/* Calls @fn for heaps @from to before @to; the hot part is taken over where that can be. */
static void visit(uint32_t from, uint32_t to, visit_fn *fn, void *arg)
{
	struct heap *own = heap_self;
	struct handover_round round;

	if (heap_number(own) >= from && heap_number(own) < to) {
		handover_lock(&own->gate);
		fn(own, true, arg);
		handover_unlock(&own->gate);
	}
	handover_begin(&round);
	for (uint32_t i = from; i < to; i++)
		if (heap_at(i) != own)
			handover_stop(&heap_at(i)->gate, &round);
	/* Where it fails, handover_take() takes fewer. */
	handover_barrier(&round);
	for (uint32_t i = from; i < to; i++) {
		struct heap *h = heap_at(i);

		if (h == own)
			continue;
		if (handover_take(&h->gate, &round)) {
			fn(h, true, arg);
			handover_give(&h->gate);
		} else {
			mem_lock(&h->gate.lock);
			fn(h, false, arg);
			mem_unlock(&h->gate.lock);
		}
	}
}

/* ---- counting ---- */

/* What is on its way to other heaps. */
static void count_outgoing(struct heap *h, struct census *c)
{
	for (unsigned i = 0; i < HEAP_OUT; i++) {
		const struct outgoing *o = &h->out[i];

		if (o->key)
			c->classes[o->key & MAP_CLASS_MASK].cached +=
				heap_objects_outgoing(o);
	}
}

static void count(struct heap *h, bool hot, void *arg)
{
	struct census *c = arg;

	c->heaps++;
	heap_drain(h);
	for (unsigned i = 0; i < CLASSES; i++) {
		const struct bin *bin = &h->bins[i];

		/* For now with those that are cached. */
		c->classes[i].used += bin->out;
		c->classes[i].cached += bin->parked_objects;
		c->classes[i].slabs += bin->slabs.slabs;
		if (hot)
			c->classes[i].cached += heap_objects_below(h->top[i], i);
	}
	if (hot)
		count_outgoing(h, c);
}

void census_take(struct census *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (!heap_start())
		return;
	visit(1, heap_count() + 1, count, ret);
	pages_stats(&ret->pages);
	large_count(&ret->large, &ret->large_bytes);
	for (unsigned i = 0; i < CLASSES; i++) {
		struct census_class *k = &ret->classes[i];

		k->used -= MIN(k->used, k->cached);
		ret->used += k->used * class_info[i].size;
		ret->cached += k->cached * class_info[i].size;
	}
	ret->used += ret->large_bytes;
	ret->metadata = stock_bytes() + ret->heaps * HEAP_STRIDE +
			(ret->pages.mapped >> SLICE_LOG2) * (4 + 32 + 64 + 512);
}

/* ---- giving back ---- */

/* How many parked magazines go back to the slabs while a heap's owner may have to wait: some 50
 * microseconds. */
enum { FLUSH_STEP = 64 };

/* What can be had without stopping anybody. */
static void empty_parked(struct heap *h)
{
	bool more;

	do {
		mem_lock(&h->gate.lock);
		more = heap_flush_parked(h, FLUSH_STEP);
		mem_unlock(&h->gate.lock);
	} while (more);
}

/* The rest, which is little by then. */
static void empty(struct heap *h, bool hot, void *arg)
{
	if (hot)
		heap_flush(h);
	else
		heap_flush_parked(h, FLUSH_STEP);
}

void census_empty(uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++)
		empty_parked(heap_at(i));
	visit(from, to, empty, NULL);
	/* What they had for each other has been sent. */
	for (uint32_t i = from; i < to; i++)
		empty_parked(heap_at(i));
}

static size_t dirty_beyond(size_t keep)
{
	size_t dirty = pages_dirty();

	return dirty > keep ? dirty - keep : 0;
}

/* Heaps are emptied some at a time, and only if what is dirty already is not enough: so a call with
 * a small budget is short, whatever there is. */
static size_t release(size_t budget, size_t keep)
{
	static _Atomic uint32_t next;
	uint32_t heaps = heap_count(), group, seen = 0, from;
	size_t gone = 0, got, spare;

	group = budget == SIZE_MAX ? heaps : MAX(heaps / 8, (uint32_t)8);
	for (;;) {
		bool wants_more = budget - gone > dirty_beyond(keep);

		if (wants_more) {
			from = atomic_load_explicit(&next, memory_order_relaxed);
			from = from < heaps ? from : 0;
			census_empty(1 + from, 1 + MIN(heaps, from + group));
			seen += MIN(heaps - from, group);
			atomic_store_explicit(&next, from + group, memory_order_relaxed);
		}
		spare = dirty_beyond(keep);
		if (!keep)
			got = sweep_round(SWEEP_SLICES | SWEEP_SLABS, budget - gone);
		else
			got = spare ? sweep_round(SWEEP_SLICES, MIN(budget - gone, spare)) : 0;
		gone += got;
		/* What cannot go (locked in memory, or others are at it) is not waited for. */
		if (gone >= budget || seen >= heaps || (!got && !wants_more))
			return gone;
	}
}

static _Atomic unsigned releasing;

size_t census_release(size_t budget, size_t keep)
{
	size_t gone;

	if (!heap_start())
		return 0;
	atomic_fetch_add_explicit(&releasing, 1, memory_order_relaxed);
	gone = release(budget, keep);
	atomic_fetch_sub_explicit(&releasing, 1, memory_order_relaxed);
	return gone;
}

bool census_is_releasing(void)
{
	return atomic_load_explicit(&releasing, memory_order_relaxed);
}

void census_reset(void)
{
	atomic_store_explicit(&releasing, 0, memory_order_relaxed);
}
