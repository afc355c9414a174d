/* SPDX-License-Identifier: MIT */
/* mem/heap.c - the slow paths: parking, draining, filling; and what goes to other heaps. */
#include "mem/heap.h"

#include <errno.h>
#include <string.h>

#include "mem/decay.h"
#include "mem/stock.h"

_Static_assert(sizeof(struct heap) <= HEAP_STRIDE, "heaps lie that far apart");
_Static_assert(sizeof(struct magazine) == MAGAZINE_BYTES, "slot 0 is the link");

_Alignas(MAGAZINE_BYTES) void *heap_no_magazine[64];
#define NO_MAGAZINE (&heap_no_magazine[63])

struct heap heap_none = {
	.gate = { .stop = HANDOVER_ALWAYS, .open = HANDOVER_ALWAYS },
	.key = HEAP_NO_KEY,
};

__thread struct heap *heap_self __attribute__((tls_model("initial-exec"))) = &heap_none;
bool heap_checks;

/* ---- magazines ---- */

static void **slots_of(struct magazine *m)
{
	return (void **)(void *)m;
}

static struct magazine *magazine_of(void **top)
{
	return (struct magazine *)((uintptr_t)top & ~(uintptr_t)(MAGAZINE_BYTES - 1));
}

/* Where the NULL of a magazine of @class is. */
static unsigned bottom_of(unsigned class)
{
	return MAGAZINE_OBJECTS - class_info[class].room;
}

unsigned heap_objects_below(void **top, unsigned class)
{
	if (top == NO_MAGAZINE)
		return 0;
	return (unsigned)(top - slots_of(magazine_of(top))) - bottom_of(class);
}

/* Has the line at @p brought here, to be written. */
static void fetch(const void *p)
{
#ifdef __x86_64__
	/* Does nothing on processors that do not know it; the compiler would take one that only
	 * reads. */
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
	__builtin_prefetch(p, 1);
#endif
}

enum { LINE = 64 };

/* Another processor may have used the magazine last, if there is one: it will be wanted when the
 * one before it is used up, so that nobody waits then. */
static void fetch_magazine(const struct magazine *m)
{
	for (unsigned i = 0; m && i < MAGAZINE_BYTES; i += LINE)
		fetch((const char *)m + i);
}

/* The same for the @n objects before @end, which will be handed out and written. */
static void fetch_objects(void **end, unsigned n)
{
#pragma GCC unroll 8
	for (; n; n--)
		fetch(*--end);
}

static struct magazine *spare_take(struct heap *h)
{
	struct magazine *m;

	if (!h->spare)
		h->spare = stock_take(&h->spares);
	m = h->spare;
	if (m) {
		h->spare = magazine_next(m);
		h->spares--;
	}
	return m;
}

static void spare_put(struct heap *h, struct magazine *m)
{
	struct magazine *last = m;

	magazine_link(m, h->spare, 0, 0);
	h->spare = m;
	if (++h->spares <= HEAP_SPARE_MAX)
		return;
	/* The newest go: they are the warm ones, and somebody is about to want some. */
	for (unsigned i = 1; i < STOCK_BATCH; i++)
		last = magazine_next(last);
	h->spare = magazine_next(last);
	h->spares -= STOCK_BATCH;
	magazine_link(last, NULL, 0, 0);
	stock_put(m);
}

/* Makes @m, with @n objects, the loaded magazine of @class. */
static void load(struct heap *h, unsigned class, struct magazine *m, unsigned n)
{
	void **bottom = slots_of(m) + bottom_of(class);

	*bottom = NULL;
	h->top[class] = bottom + n;
}

/* Takes the loaded magazine away: NULL if there is none. */
static struct magazine *unload(struct heap *h, unsigned class, unsigned *ret_n)
{
	void **top = h->top[class];

	if (top == NO_MAGAZINE)
		return NULL;
	*ret_n = heap_objects_below(top, class);
	h->top[class] = NO_MAGAZINE;
	return magazine_of(top);
}

/* ---- slabs ---- */

/* Puts the @n objects of @m into the slabs they came from. */
static void return_objects(struct heap *h, unsigned class, struct magazine *m, unsigned n)
{
	void **slot = slots_of(m) + bottom_of(class);
	struct bin *bin = &h->bins[class];

	for (unsigned i = 1; i <= n; i++)
		slab_put(&bin->slabs, slot[i]);
	bin->out -= n;
}

static void *take_one(struct heap *h, unsigned class)
{
	struct bin *bin = &h->bins[class];
	void *p = NULL;

	if (slab_take(&bin->slabs, class, heap_number(h), &p + 1, 1))
		bin->out++;
	return p;
}

static void put_one(struct heap *h, unsigned class, void *p)
{
	slab_put(&h->bins[class].slabs, p);
	h->bins[class].out--;
}

/* Fills @m from the slabs; returns with how many objects. */
static unsigned fill(struct heap *h, unsigned class, struct magazine *m)
{
	unsigned n = MIN((unsigned)class_info[class].room, (unsigned)class_info[class].objects);
	void **bottom = slots_of(m) + bottom_of(class);
	struct bin *bin = &h->bins[class];
	unsigned got = slab_take(&bin->slabs, class, heap_number(h), bottom + 1 + n, n);

	if (got < n)
		memmove(bottom + 1, bottom + 1 + n - got, got * sizeof(*bottom));
	bin->out += got;
	return got;
}

/* ---- parked magazines ---- */

static void park(struct heap *h, unsigned class, struct magazine *m, unsigned n)
{
	struct bin *bin = &h->bins[class];

	magazine_link(m, bin->parked, class, n);
	bin->parked = m;
	bin->parked_objects += n;
	h->parked_bytes += n * (size_t)class_info[class].size;
}

static struct magazine *unpark(struct heap *h, unsigned class, unsigned *ret_n)
{
	struct bin *bin = &h->bins[class];
	struct magazine *m = bin->parked;

	if (!m)
		return NULL;
	*ret_n = magazine_count(m);
	bin->parked = magazine_next(m);
	bin->parked_objects -= *ret_n;
	h->parked_bytes -= *ret_n * (size_t)class_info[class].size;
	return m;
}

static bool has_too_many(const struct heap *h, unsigned class)
{
	size_t bytes = (size_t)h->bins[class].parked_objects * class_info[class].size;

	if (class_info[class].objects == 1)
		return bytes > HEAP_PARKED_SINGLE_MAX;
	return bytes > HEAP_PARKED_CLASS_MAX ||
	       (bytes > HEAP_PARKED_CLASS_MIN && h->parked_bytes > HEAP_PARKED_MAX);
}

/* Keeps no more parked than the limits. */
static void limit_parked(struct heap *h, unsigned class)
{
	struct magazine *m;
	unsigned n = 0;

	while (has_too_many(h, class)) {
		m = unpark(h, class, &n);
		return_objects(h, class, m, n);
		spare_put(h, m);
	}
}

/* ---- other heaps ---- */

/* The next of what was received; NULL if there is none. Each is looked at only when its turn comes:
 * a processor that has to wait for the lines of one after the other does nothing else. */
static struct magazine *next_received(struct heap *h)
{
	struct magazine *m = h->received;

	if (m) {
		h->received = magazine_next(m);
		fetch_magazine(h->received);
	}
	return m;
}

/* The newest magazine of @class that was received: it is the warmest. Others that are met are
 * parked. NULL if there is none. */
static struct magazine *find_received(struct heap *h, unsigned class, unsigned *ret_n)
{
	struct magazine *m;

	while ((m = next_received(h))) {
		unsigned c = magazine_class(m), n = magazine_count(m);

		if (c == class) {
			*ret_n = n;
			return m;
		}
		park(h, c, m, n);
		limit_parked(h, c);
	}
	return NULL;
}

/* Takes what came by the inbox, if anything. What was left of before is parked. */
static void receive(struct heap *h)
{
	unsigned n;

	find_received(h, CLASSES, &n);
	h->received = inbox_take(&h->inbox);
}

/* Puts what came for @h into its slabs; the empty magazines are for @to, whose lock the caller has,
 * too. */
static void drain(struct heap *h, struct heap *to)
{
	struct magazine *m;

	do {
		while ((m = next_received(h))) {
			return_objects(h, magazine_class(m), m, magazine_count(m));
			spare_put(to, m);
		}
		h->received = inbox_take(&h->inbox);
	} while (h->received);
}

void heap_drain(struct heap *h)
{
	drain(h, h);
}

/* Where the objects of an outgoing magazine begin. */
static void **outgoing_first(struct magazine *m)
{
	return slots_of(m) + MAGAZINE_OBJECTS + 1 - magazine_count(m);
}

unsigned heap_objects_outgoing(const struct outgoing *o)
{
	return (unsigned)(o->top + 1 - outgoing_first(magazine_of(o->top)));
}

/* How many objects may gather for @word. */
static unsigned outgoing_room(uint32_t word)
{
	const struct class_info *info = &class_info[word & MAP_CLASS_MASK];
	const struct heap *to = heap_at(word >> MAP_HEAP_SHIFT);
	unsigned n;

	if (!atomic_load_explicit(&to->idle, memory_order_relaxed))
		return info->room;
	/* What fits, as class_index() has it: none of those that have a slab each. */
	n = class_index(info->mul, HEAP_OUT_IDLE_MAX);
	return MIN(MAX(n, (unsigned)HEAP_OUT_IDLE_LEAST), (unsigned)info->room);
}

/* Makes @m, with @p alone, the outgoing magazine of @word at @o, which has none. */
static void gather(struct outgoing *o, uint32_t word, struct magazine *m, void *p)
{
	magazine_link(m, NULL, word & MAP_CLASS_MASK, outgoing_room(word));
	o->key = word;
	o->top = outgoing_first(m);
	*o->top = p;
}

static void post(struct heap *h, struct outgoing *o)
{
	unsigned class = o->key & MAP_CLASS_MASK, n = heap_objects_outgoing(o);
	struct heap *to = heap_at(o->key >> MAP_HEAP_SHIFT);
	struct magazine *m = magazine_of(o->top);
	void **first = outgoing_first(m), **at = slots_of(m) + bottom_of(class) + 1;
	uint64_t waiting;

	/* To where its owner expects them. */
	if (first != at)
		memmove(at, first, n * sizeof(*at));
	waiting = inbox_post(&to->inbox, m, class, n, (uint64_t)n * class_info[class].size);
	o->key = 0;
	o->top = NO_MAGAZINE;
	if (waiting < (atomic_load_explicit(&to->idle, memory_order_relaxed)
			? HEAP_INBOX_IDLE_MAX : HEAP_INBOX_MAX) || !handover_visit(&to->gate))
		return;
	drain(to, h);
	handover_visited(&to->gate);
}

/* Sends off outgoing magazines. */
static void post_all(struct heap *h)
{
	for (struct outgoing *o = h->out; o < h->out + HEAP_OUT; o++)
		if (o->key)
			post(h, o);
}

/* Sends off what nothing is added to. */
static void post_old(struct heap *h)
{
	for (struct outgoing *o = h->out; o < h->out + HEAP_OUT; o++) {
		uint32_t now = (uint32_t)(uintptr_t)o->top;

		if (o->key && o->seen == now)
			post(h, o);
		o->seen = now;
	}
}

/* What slow paths do now and then. */
static void tick(struct heap *h)
{
	if (++h->slow_paths % HEAP_POST_EVERY == 0)
		post_old(h);
}

/* ---- giving back ---- */

/* Puts all objects of @class that are in magazines, but for what the inbox has, into slabs. */
static void flush_class(struct heap *h, unsigned class)
{
	struct magazine *m;
	unsigned n;

	while ((m = unpark(h, class, &n)) || (m = unload(h, class, &n))) {
		return_objects(h, class, m, n);
		spare_put(h, m);
	}
}

void heap_flush(struct heap *h)
{
	drain(h, h);
	for (unsigned c = 0; c < CLASSES; c++)
		flush_class(h, c);
	post_all(h);
}

bool heap_flush_parked(struct heap *h, unsigned magazines)
{
	struct magazine *m;
	unsigned n = 0;

	receive(h);
	find_received(h, CLASSES, &n);
	for (unsigned c = 0; c < CLASSES && h->parked_bytes; c++) {
		for (; magazines && (m = unpark(h, c, &n)); magazines--) {
			return_objects(h, c, m, n);
			spare_put(h, m);
		}
	}
	return h->parked_bytes;
}

void heap_trim(struct heap *h)
{
	for (unsigned c = 0; c < CLASSES; c++)
		slab_trim(&h->bins[c].slabs);
}

/* With no lock; @h is the thread's own. */
static void decay_now_and_then(const struct heap *h)
{
	if (h->slow_paths % HEAP_DECAY_EVERY == 0 ||
	    atomic_load_explicit(&decay_goes_on, memory_order_relaxed))
		decay_poll();
}

/* The lock of the thread's own heap. */
static void lock_own(struct heap *h)
{
	if (__builtin_expect(handover_lock(&h->gate), 0)) {
		heap_flush(h);
		heap_trim(h);
	}
}

void heap_idle(void)
{
	struct heap *h = heap_self;

	if (h == &heap_none)
		return;
	lock_own(h);
	post_all(h);
	receive(h);
	handover_unlock(&h->gate);
}

size_t heap_cached_bytes(void)
{
	struct heap *h = heap_self;
	size_t n;

	if (h == &heap_none)
		return 0;
	lock_own(h);
	n = h->parked_bytes;
	for (unsigned c = 0; c < CLASSES; c++)
		n += heap_objects_below(h->top[c], c) * (size_t)class_info[c].size;
	handover_unlock(&h->gate);
	return n;
}

void heap_clear_runs(void)
{
	struct heap *h = heap_self;

	if (h == &heap_none)
		return;
	lock_own(h);
	for (unsigned c = class_of(CLASS_SHARED_MAX) + 1; c < CLASSES; c++)
		flush_class(h, c);
	handover_unlock(&h->gate);
}

/* ---- allocating ---- */

/* A magazine of @class with objects that were freed; NULL if there is none. */
static struct magazine *find_full(struct heap *h, unsigned class, unsigned *ret_n)
{
	struct magazine *m;

	/* Who sends writes the inbox's line, so it is not looked at each time. */
	if (h->slow_paths % HEAP_LOOK_EVERY == 0 && inbox_bytes(&h->inbox) > HEAP_INBOX_MAX / 8)
		receive(h);
	m = unpark(h, class, ret_n);
	if (!m)
		m = find_received(h, class, ret_n);
	if (!m) {
		receive(h);
		m = find_received(h, class, ret_n);
	}
	fetch_magazine(h->bins[class].parked);
	return m;
}

/* Sees to it that the loaded magazine of @class has an object. */
static bool reload(struct heap *h, unsigned class)
{
	struct magazine *m, *old;
	unsigned n = 0, old_n;
	bool warm;

	tick(h);
	m = find_full(h, class, &n);
	warm = m != NULL;
	old = unload(h, class, &old_n);
	if (!m) {
		m = old ? old : spare_take(h);
		if (!m)
			return false;
		n = fill(h, class, m);
	} else if (old) {
		spare_put(h, old);
	}
	load(h, class, m, n);
	if (warm)
		fetch_objects(h->top[class] + 1, n);
	return n;
}

static void *alloc_locked(struct heap *h, unsigned class)
{
	void **t;

	if (heap_checks)
		return take_one(h, class);
	if (!*h->top[class] && !reload(h, class))
		return take_one(h, class);
	t = h->top[class];
	h->top[class] = t - 1;
	return *t;
}

/* For threads that can have no heap. */
static void *alloc_shared(unsigned class)
{
	struct heap *h = heap_shared_lock();
	void *p;

	if (!h)
		return NULL;
	p = take_one(h, class);
	handover_unlock(&h->gate);
	return p;
}

void *heap_alloc(unsigned class)
{
	struct heap *h = heap_self;
	void **t, *p;

	if (handover_enter(&h->gate)) {
		t = h->top[class];
		p = *t;
		if (p) {
			h->top[class] = t - 1;
			handover_leave(&h->gate);
			return p;
		}
	}
	h = heap_get();
	if (!h)
		return alloc_shared(class);
	lock_own(h);
	p = alloc_locked(h, class);
	handover_unlock(&h->gate);
	decay_now_and_then(h);
	return p;
}

/* ---- freeing ---- */

/* Room for an object in the loaded magazine. */
static bool make_room(struct heap *h, unsigned class)
{
	struct magazine *m = spare_take(h), *old;
	unsigned n;

	if (!m)
		return false;
	tick(h);
	old = unload(h, class, &n);
	if (old)
		park(h, class, old, n);
	limit_parked(h, class);
	load(h, class, m, 0);
	return true;
}

static void free_own(struct heap *h, unsigned class, void *p)
{
	if (heap_checks || (heap_magazine_full(h->top[class]) && !make_room(h, class))) {
		put_one(h, class, p);
		return;
	}
	*++h->top[class] = p;
}

/* Into the slab at once, whoever owns it. The caller has no lock. */
static void free_direct(uint32_t word, void *p)
{
	struct heap *to = heap_at(word >> MAP_HEAP_SHIFT);

	mem_lock(&to->gate.lock);
	put_one(to, word & MAP_CLASS_MASK, p);
	mem_unlock(&to->gate.lock);
}

/* Puts @p into an outgoing magazine. False if there is none. */
static bool send(struct heap *h, uint32_t word, void *p)
{
	struct outgoing *o = heap_outgoing(h, word);
	struct magazine *m;

	if (o->key == word && !heap_magazine_full(o->top)) {
		*++o->top = p;
		return true;
	}
	m = spare_take(h);
	if (!m)
		return false;
	fetch_magazine(h->spare);
	tick(h);
	if (o->key)
		post(h, o);
	gather(o, word, m, p);
	return true;
}

static void free_slow(void *p, uint32_t word)
{
	struct heap *h = heap_get();
	bool done = true;

	if (!h || (heap_checks && (word ^ h->key) >= CLASSES)) {
		free_direct(word, p);
		return;
	}
	if ((word ^ h->key) >= CLASSES)
		fetch(&heap_at(word >> MAP_HEAP_SHIFT)->inbox);
	lock_own(h);
	if ((word ^ h->key) < CLASSES)
		free_own(h, word & MAP_CLASS_MASK, p);
	else
		done = send(h, word, p);
	handover_unlock(&h->gate);
	if (!done)
		free_direct(word, p);
	decay_now_and_then(h);
}

void heap_free(void *p, uint32_t word)
{
	int saved = errno;

	if (!class_is_object(class_info[word & MAP_CLASS_MASK].mul, slice_offset(p)))
		os_die("free(): invalid pointer", p);
	free_slow(p, word);
	errno = saved;
}
