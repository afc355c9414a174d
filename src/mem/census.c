/* SPDX-License-Identifier: MIT */
/* mem/census.c - visiting heaps. */
#include "mem/census.h"

#include <string.h>

#include "mem/heap.h"
#include "mem/large.h"
#include "mem/stock.h"

void census_visit(census_fn *fn, void *arg)
{
	struct heap *own = heap_self;
	uint32_t n = heap_count();
	struct handover_round round;

	if (own != &heap_none) {
		handover_lock(&own->gate);
		fn(own, true, arg);
		handover_unlock(&own->gate);
	}
	handover_begin(&round);
	for (uint32_t i = 1; i <= n; i++)
		if (heap_at(i) != own)
			handover_stop(&heap_at(i)->gate, &round);
	/* Where it fails, handover_take() takes fewer. */
	handover_barrier(&round);
	for (uint32_t i = 1; i <= n; i++) {
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
				heap_objects_below(o->top, o->key & MAP_CLASS_MASK);
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
	census_visit(count, ret);
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

struct release {
	size_t budget;
	size_t gone;
};

static void empty(struct heap *h, bool hot, void *arg)
{
	if (hot)
		heap_flush(h);
	else
		heap_drain(h);
	heap_trim(h);
}

/* Pages within slabs; the heap's lock is free during system calls. */
static void thin(struct release *r)
{
	for (uint32_t i = 1; i <= heap_count() && r->gone < r->budget; i++)
		for (unsigned c = 0; c < CLASSES && r->gone < r->budget; c++)
			r->gone += heap_thin(heap_at(i), c, r->budget - r->gone);
}

size_t census_release(size_t budget, size_t keep)
{
	struct release r = { .budget = budget };
	size_t dirty;

	if (!heap_start())
		return 0;
	pages_giving_begin();
	/* The second time for what the first has sent to heaps that it had visited. */
	census_visit(empty, NULL);
	census_visit(empty, NULL);
	dirty = pages_dirty();
	if (dirty > keep)
		r.gone = pages_purge(MIN(budget, dirty - keep));
	if (!keep)
		thin(&r);
	pages_giving_end();
	return r.gone;
}
