/* SPDX-License-Identifier: MIT */
/* mem/sweep.c - gathering batches, and returning them. */
#include "mem/sweep.h"

#include <stdatomic.h>
#include <stdbool.h>

#include "mem/heap.h"

enum {
	BATCHES = 4,
	RANGES = 1024,                  /* the most that the kernel takes in a call */
	HELD = 1024,
	SLAB_RANGES = SLICE_BYTES / OS_PAGE / 2,        /* the most of one slab */
};
/* Some 2 ms of the kernel's time. */
#define BATCH_BYTES (8 * MiB)

struct held {
	struct pages_held run;          /* its record is 0 when it was returned. See G11 */
	uint32_t slab;                  /* or a slab's slice, the same */
	uint16_t pages;                 /* of the slab */
	bool dropped;
};

struct batch {
	_Atomic bool taken;
	unsigned ranges, things;
	size_t bytes;
	size_t extra;                   /* of those: clean already, or bitmaps */
	struct iovec range[RANGES];
	struct held held[HELD];
};

/* What costs nothing while nothing is given back: never touched. */
static struct batch batches[BATCHES];
/* Where sweep_round() goes on. Any thread; a hint. */
static _Atomic size_t next_round;

static struct batch *batch_get(void)
{
	for (struct batch *b = batches; b < batches + BATCHES; b++)
		if (!atomic_exchange_explicit(&b->taken, true, memory_order_acquire))
			return b;
	return NULL;
}

static void batch_put(struct batch *b)
{
	atomic_store_explicit(&b->taken, false, memory_order_release);
}

static void batch_clear(struct batch *b)
{
	b->ranges = 0;
	b->things = 0;
	b->bytes = 0;
	b->extra = 0;
}

/* ---- gathering ---- */

static void add_range(struct batch *b, char *at, size_t len)
{
	struct iovec *last = b->ranges ? &b->range[b->ranges - 1] : NULL;

	b->bytes += len;
	if (last && (char *)last->iov_base + last->iov_len == at)
		last->iov_len += len;
	else
		b->range[b->ranges++] = (struct iovec){ at, len };
}

static size_t wanted_bytes(const struct batch *b)
{
	return b->bytes - b->extra;
}

/* Free slices need no bitmaps. */
static void add_bitmaps(struct batch *b, const struct pages_held *run)
{
	size_t from = align_up((size_t)run->record, PAGES_BITS_SLICES);
	size_t to = align_down((size_t)run->record + run->slices, PAGES_BITS_SLICES);

	if (from >= to)
		return;
	add_range(b, (char *)slab_bits(from), (to - from) * SLAB_BITS_BYTES);
	b->extra += (to - from) * SLAB_BITS_BYTES;
}

/* Takes the lowest of @pages that follow each other out of it: what they are of a slab at @base. */
static struct iovec next_pages(char *base, uint16_t *pages)
{
	unsigned from = (unsigned)__builtin_ctz(*pages);
	unsigned n = (unsigned)__builtin_ctz(~((unsigned)*pages >> from));

	*pages &= (uint16_t)~(((1u << n) - 1) << from);
	return (struct iovec){ base + from * (size_t)OS_PAGE, n * (size_t)OS_PAGE };
}

static void add_pages(struct batch *b, char *base, uint16_t pages)
{
	while (pages) {
		struct iovec r = next_pages(base, &pages);

		add_range(b, r.iov_base, r.iov_len);
	}
}

/* Returns how many slices it was about: those need no further look. */
static size_t gather_run(struct batch *b, size_t slice, size_t budget)
{
	struct held *t = &b->held[b->things];
	size_t room = MIN(budget, (size_t)BATCH_BYTES) - wanted_bytes(b);

	if (!pages_hold(slice, div_round_up(room, SLICE_BYTES), &t->run))
		return 1;
	add_range(b, slice_at(t->run.from), (size_t)(t->run.to - t->run.from) << SLICE_LOG2);
	b->extra += (size_t)(t->run.to - t->run.from - t->run.dirty) << SLICE_LOG2;
	add_bitmaps(b, &t->run);
	b->things++;
	return t->run.to - t->run.from;
}

static void gather_slab(struct batch *b, size_t slice, uint32_t word, bool cold)
{
	struct heap *h = heap_at(word >> MAP_HEAP_SHIFT);
	struct held *t = &b->held[b->things];
	uint16_t pages = 0;

	mem_lock(&h->gate.lock);
	/* It is this heap's slab as long as the lock is held, if it still is. */
	if (atomic_load_explicit(map_at(slice), memory_order_relaxed) == word)
		pages = slab_hold(&h->bins[word & MAP_CLASS_MASK].slabs, (uint32_t)slice, cold);
	if (pages) {
		t->pages = pages;
		t->slab = (uint32_t)slice;
	}
	mem_unlock(&h->gate.lock);
	if (!pages)
		return;
	add_pages(b, slice_at(slice), pages);
	b->things++;
}

static bool has_room(const struct batch *b, size_t budget)
{
	size_t bytes = wanted_bytes(b);

	return bytes < BATCH_BYTES && bytes < budget && b->things < HELD &&
	       b->ranges + SLAB_RANGES <= RANGES;
}

/* Returns how far it got. */
static size_t gather(struct batch *b, unsigned what, size_t at, size_t end, size_t budget,
		     size_t *steps)
{
	while (at < end && *steps && has_room(b, budget)) {
		uint32_t word = atomic_load_explicit(map_at(at), memory_order_relaxed);

		if (word > MAP_CLASS_MASK && what & SWEEP_SLABS) {
			--*steps;
			gather_slab(b, at, word, what & SWEEP_COLD);
			word = atomic_load_explicit(map_at(at), memory_order_relaxed);
		}
		if (word == MAP_DIRTY && what & SWEEP_SLICES) {
			--*steps;
			at += gather_run(b, at, budget);
		} else {
			at++;
		}
	}
	return at;
}

/* ---- giving back ---- */

/* Where not all went: what did and what did not? What is gone already goes again. */
static void drop_singly(struct held *t)
{
	uint16_t pages = t->pages;

	if (!t->slab)
		t->dropped = !os_drop(slice_at(t->run.from),
				      (size_t)(t->run.to - t->run.from) << SLICE_LOG2);
	while (t->slab && pages) {
		struct iovec r = next_pages(slice_at(t->slab), &pages);

		t->dropped &= !os_drop(r.iov_base, r.iov_len);
	}
}

static void let_go(struct held *t)
{
	uint32_t word;
	struct heap *h;

	if (!t->slab) {
		pages_let_go(&t->run, t->dropped);
		return;
	}
	/* Held, it keeps its owner. */
	word = atomic_load_explicit(map_at(t->slab), memory_order_relaxed);
	h = heap_at(word >> MAP_HEAP_SHIFT);
	mem_lock(&h->gate.lock);
	slab_let_go(&h->bins[word & MAP_CLASS_MASK].slabs, t->slab, t->dropped ? t->pages : 0);
	t->slab = 0;
	mem_unlock(&h->gate.lock);
}

static size_t give(struct batch *b)
{
	size_t gone = b->ranges ? os_drop_all(b->range, b->ranges) : 0;

	for (unsigned i = 0; i < b->things; i++) {
		b->held[i].dropped = true;
		if (gone < b->bytes)
			drop_singly(&b->held[i]);
		let_go(&b->held[i]);
	}
	/* Who asks for memory means the program's. */
	gone -= MIN(gone, b->extra);
	batch_clear(b);
	return gone;
}

size_t sweep(unsigned what, size_t *at, size_t end, size_t budget, size_t steps)
{
	struct batch *b = batch_get();
	size_t gone = 0, went;

	if (!b)
		return 0;
	end = MIN(end, atomic_load_explicit(&pages_end, memory_order_relaxed));
	while (*at < end && gone < budget && steps) {
		*at = gather(b, what, *at, end, budget - gone, &steps);
		went = give(b);
		gone += went;
	}
	batch_put(b);
	return gone;
}

size_t sweep_round(unsigned what, size_t budget)
{
	size_t from = atomic_load_explicit(&next_round, memory_order_relaxed), at, gone;

	at = MAX(from, (size_t)1);
	gone = sweep(what, &at, SIZE_MAX, budget, SIZE_MAX);
	if (gone < budget) {
		at = 1;
		gone += sweep(what, &at, from, budget - gone, SIZE_MAX);
	}
	atomic_store_explicit(&next_round, at, memory_order_relaxed);
	return gone;
}

void sweep_reset(void)
{
	for (struct batch *b = batches; b < batches + BATCHES; b++) {
		if (!atomic_load_explicit(&b->taken, memory_order_relaxed))
			continue;
		/* Whether it went is not known; it may have more notes than it has counted. */
		for (unsigned i = 0; i < HELD; i++) {
			b->held[i].dropped = false;
			if (b->held[i].run.record || b->held[i].slab)
				let_go(&b->held[i]);
		}
		batch_clear(b);
		batch_put(b);
	}
}
