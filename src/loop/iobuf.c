/* SPDX-License-Identifier: MIT */
/* loop/iobuf.c - a pool of buffers for I/O.
 *
 * Buffers are carved from one arena: a mapping of twice the budget, over which a region with the
 * page as its granule keeps the books, outside of the arena (byre/region.h). So sizes are pages,
 * not powers of two; what one size gave back serves any other; and nothing is ever written into a
 * free buffer: a late write to one harms nobody here. The arena is mapped by the first get and
 * unmapped by a trim that finds nothing handed out.
 *
 * Small buffers that come back rest on a *shelf* of their size, last in, first out, without the
 * region hearing of it: what is in use all the time costs a few instructions and stays in the
 * processor's caches. The shelves are cleared when the region has no hole for a request, and by a
 * trim.
 *
 * A free page is *warm* if it may have memory behind it: a bit each, set where a buffer comes back,
 * cleared where one is handed out or the memory is taken. Warm pages count in the budget and give
 * way when it is short, those at the highest addresses first, as the region prefers small holes
 * to the large one at the end. Every IDLE_NS those that did not come back since the last time
 * are given back to the system.
 *
 * A *span* is a MiB of the arena. One whose buffers do much direct I/O is registered with the ring,
 * so that the kernel need not look up and hold its pages each time. Registered pages must not be
 * dropped, or the kernel would go on using the old ones: a span is unregistered first, and that is
 * only done while none of its buffers is handed out (an SQE may name it that the kernel has not
 * seen yet). All pages of a registered span have memory, so the free ones are warm.
 *
 * Who waits, waits in one line. While anybody does, iobuf_get() refuses all but the task at
 * the head, which is run alone after a buffer came back, and which keeps its place when
 * it asks for iobuf_notify() again: large wants are not overtaken for ever by small ones, and one
 * buffer put back wakes one task. That is also why holes that are too small for the head of the
 * line only delay it: nobody makes more of them.
 *
 * Invariants:
 *	M1  used + warm <= budget, unless a single buffer is out and larger than the budget;
 *	M2  a get that finds a warm buffer makes no system call and no allocation;
 *	M3  those who wait are served in order, and none while one before it is not served;
 *	M4  after iobuf_trim() nothing that is not handed out has memory behind it, but for
 *	    registered spans of which a part is;
 *	M5  free buffers are poisoned for ASan;
 *	M6  what nobody needs for two periods of IDLE_NS is given back;
 *	M7  no page of a registered span is dropped. */
#include "loop/iobuf.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <byre/region.h>

#include "base/bits.h"
#include "loop/fiber.h"
#include "loop/loop_impl.h"
#include "loop/sanitize.h"

enum {
	IDLE_NS = 1000000000,
	RETRY_NS = 10 * NS_PER_MS,      /* after the system had no memory */
	SPAN_LOG2 = 20,
	SPAN_BYTES = 1 << SPAN_LOG2,
	SPAN_WANTED = 32,               /* I/Os after which registering it has paid */
	SHELVES = 16,                   /* for 1 to 16 pages */
	SHELF_ROOM = 128,
	SHELF_BYTES = 2 << 20,
};

/* What is known of 64 pages, a bit each. */
struct pages {
	uint64_t out;                   /* handed out */
	uint64_t warm;
	uint64_t recent;                /* came back since the idle timer was set */
};

struct shelf {
	unsigned n;
	char *bufs[SHELF_ROOM];
};

/* One loop's. */
struct iobufs {
	size_t budget;
	size_t page;                    /* what sizes are rounded up to: IOBUF_ALIGN or a page */
	unsigned page_log2;
	size_t used;                    /* bytes handed out */
	size_t warm;                    /* bytes of warm pages */
	struct byre_region *region;     /* NULL: there is no arena */
	char *arena;
	size_t arena_bytes;
	size_t top;                     /* no byte from there on has been handed out */
	size_t top_warm;                /* nor from there on is any warm */
	struct pages *pages;            /* of the arena; behind them the region's records */
	size_t books_bytes;
	uint64_t is_registered[IOBUF_SLOTS / 64];
	unsigned registered;            /* spans */
	uint8_t wanted[IOBUF_SLOTS];    /* I/Os that would have liked it; SPAN_WANTED at most */
	bool is_refused;                /* the kernel does not register more */
	struct task *head, **tail;      /* who waits */
	struct loop *loop;              /* whose thread this belongs to; NULL: not known yet */
	struct task server;             /* runs the head of the line */
	struct timer retry, idle;
	bool is_server_queued;
	bool is_serving;                /* the head of the line runs and has got nothing yet */
	bool is_stuck;                  /* it went back to its place */
	bool has_room;                  /* a buffer came back after the last refusal */
	bool had_no_memory;             /* the last refusal was the system's */
	struct shelf shelves[SHELVES];
};

static void serve(struct task *t);
static void serve_later(struct timer *t);
static void give_back_idle(struct timer *t);

int iobufs_new(size_t budget, struct iobufs **ret)
{
	struct iobufs *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->budget = budget;
	p->page = MAX((size_t)IOBUF_ALIGN, (size_t)sysconf(_SC_PAGESIZE));
	p->page_log2 = log2_floor(p->page);
	p->tail = &p->head;
	p->server.fn = serve;
	p->retry.fn = serve_later;
	p->idle.fn = give_back_idle;
	*ret = p;
	return 0;
}

void iobufs_attach(struct iobufs *p, struct loop *l)
{
	p->loop = l;
}

size_t iobuf_bytes(const struct iobufs *p, size_t size)
{
	return align_up(MAX(size, (size_t)1), p->page);
}

/* ---- the arena ---- */

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void region_fault(void *cookie, const struct byre_region_fault *fault)
{
	assert(!fault);                 /* our own bug: what is put back was not got */
}

/* An arena of @bytes and the books for it. */
static bool arena_map(struct iobufs *p, size_t bytes)
{
	struct byre_region_config config = {
		.granule = p->page, .page = p->page, .hooks = { .report = region_fault },
	};
	size_t n = div_round_up(bytes >> p->page_log2, 64) * sizeof(*p->pages);

	config.records_len = byre_region_records(&config, bytes);
	p->books_bytes = align_up(align_up(n, 16) + config.records_len, p->page);
	p->arena = map(bytes);
	if (!p->arena)
		return false;
	p->pages = map(p->books_bytes);
	if (!p->pages) {
		munmap(p->arena, bytes);
		return false;
	}
	/* Or a first touch could cost 2 MiB where 4 KiB are counted. Without effect where the
	 * kernel has no huge pages. */
	madvise(p->arena, bytes, MADV_NOHUGEPAGE);
	config.records = (char *)p->pages + align_up(n, 16);
	p->region = byre_region_init(p->arena, bytes, &config);
	assert(p->region);
	p->arena_bytes = bytes;
	p->top = p->top_warm = 0;
	return true;
}

/* Maps an arena for buffers of up to @least bytes, where address space is scarce a smaller one. */
static bool arena_open(struct iobufs *p, size_t least)
{
	size_t bytes = align_up(2 * MAX(p->budget, (size_t)IOBUF_MAX), p->page);

	while (!arena_map(p, bytes)) {
		if (bytes / 2 < least)
			return false;
		bytes = align_up(bytes / 2, p->page);
	}
	return true;
}

/* The shelf for buffers of @bytes, or NULL. */
static struct shelf *shelf_of(struct iobufs *p, size_t bytes)
{
	size_t pages = bytes >> p->page_log2;

	return pages <= SHELVES ? &p->shelves[pages - 1] : NULL;
}

static void clear_shelves(struct iobufs *p)
{
	for (unsigned i = 0; i < SHELVES; i++)
		while (p->shelves[i].n)
			byre_region_free(p->region, p->shelves[i].bufs[--p->shelves[i].n]);
}

/* ---- pages ---- */

static bool is_set(uint64_t word, size_t n)
{
	return word >> n % 64 & 1;
}

/* The bits of those of the @n pages from page @at on that lie in @at's word. */
static uint64_t mask_of(size_t at, size_t n)
{
	size_t left = 64 - at % 64;

	return (n < left ? (1ULL << n) - 1 : ~0ULL) << at % 64;
}

/* Bytes of the pages in @bits, which are nearly always all of @mask: counting them is a call on
 * plain x86-64. */
static size_t bytes_of(const struct iobufs *p, uint64_t bits, uint64_t mask, size_t at, size_t n)
{
	size_t count = bits == mask ? MIN(n, 64 - at % 64) : (size_t)__builtin_popcountll(bits);

	return count << p->page_log2;
}

/* @n pages from page @at on are handed out. */
static void pages_go(struct iobufs *p, size_t at, size_t n)
{
	for (size_t end = at + n; at < end; at = align_down(at, 64) + 64) {
		struct pages *pg = &p->pages[at / 64];
		uint64_t mask = mask_of(at, end - at);

		p->warm -= bytes_of(p, pg->warm & mask, mask, at, end - at);
		pg->warm &= ~mask;
		pg->out |= mask;
	}
}

static void pages_come_back(struct iobufs *p, size_t at, size_t n)
{
	p->warm += n << p->page_log2;
	for (size_t end = at + n; at < end; at = align_down(at, 64) + 64) {
		struct pages *pg = &p->pages[at / 64];
		uint64_t mask = mask_of(at, end - at);

		assert((pg->out & mask) == mask);       /* else they were put back before */
		pg->out &= ~mask;
		pg->warm |= mask;
		pg->recent |= mask;
	}
}

static void pages_cool(struct iobufs *p, size_t at, size_t n)
{
	p->warm -= n << p->page_log2;
	for (size_t end = at + n; at < end; at = align_down(at, 64) + 64)
		p->pages[at / 64].warm &= ~mask_of(at, end - at);
}

/* ---- registered spans ---- */

static size_t span_pages(const struct iobufs *p)
{
	return SPAN_BYTES >> p->page_log2;
}

static bool span_is_out(const struct iobufs *p, size_t span)
{
	size_t first = span * span_pages(p);

	for (size_t i = first; i < first + span_pages(p); i++)
		if (is_set(p->pages[i / 64].out, i))
			return true;
	return false;
}

/* The bytes of its pages that have no memory yet. */
static size_t span_cold(const struct iobufs *p, size_t span)
{
	size_t first = span * span_pages(p), n = 0;

	for (size_t i = first; i < first + span_pages(p); i++)
		n += !is_set(p->pages[i / 64].out | p->pages[i / 64].warm, i);
	return n << p->page_log2;
}

static bool span_register(struct iobufs *p, size_t span)
{
	size_t first = span * span_pages(p), cold = span_cold(p, span);

	if (p->used + p->warm + cold > p->budget)
		return false;
	if (!p->loop->ops->memory_register(p->loop, (unsigned)span, p->arena + span * SPAN_BYTES,
					   SPAN_BYTES)) {
		p->is_refused = true;
		return false;
	}
	for (size_t i = first; i < first + span_pages(p); i++)
		p->pages[i / 64].warm |= ~p->pages[i / 64].out & (1ULL << i % 64);
	p->warm += cold;
	p->top_warm = MAX(p->top_warm, (span + 1) << SPAN_LOG2);
	p->is_registered[span / 64] |= 1ULL << span % 64;
	p->registered++;
	return true;
}

/* M7: called before pages of @span are dropped. False: they must stay. */
static bool span_unregister(struct iobufs *p, size_t span)
{
	if (!p->registered || span >= IOBUF_SLOTS || !is_set(p->is_registered[span / 64], span))
		return true;
	if (span_is_out(p, span))
		return false;
	if (p->loop)                    /* else the ring is gone */
		p->loop->ops->memory_unregister(p->loop, (unsigned)span);
	p->is_registered[span / 64] &= ~(1ULL << span % 64);
	p->registered--;
	p->wanted[span] = 0;
	return true;
}

int iobuf_slot(struct iobufs *p, const void *buf, size_t len)
{
	size_t off = (size_t)((const char *)buf - p->arena), span = off >> SPAN_LOG2;

	if (!p->region || off >= p->top || !len || (off + len - 1) >> SPAN_LOG2 != span ||
	    span >= IOBUF_SLOTS || (span + 1) << SPAN_LOG2 > p->arena_bytes)
		return -1;
	if (is_set(p->is_registered[span / 64], span))
		return (int)span;
	if (p->is_refused || !p->loop || !p->loop->ops->memory_register)
		return -1;
	if (p->wanted[span] < SPAN_WANTED)
		p->wanted[span]++;
	else if (span_register(p, span))
		return (int)span;
	return -1;
}

/* ---- warm pages ---- */

/* Nothing is handed out. */
static void arena_close(struct iobufs *p)
{
	for (size_t i = 0; p->registered; i++)
		span_unregister(p, i);
	p->is_refused = false;
	memory_unpoison(p->arena, p->top);
	munmap(p->arena, p->arena_bytes);
	munmap(p->pages, p->books_bytes);
	for (unsigned i = 0; i < SHELVES; i++)
		p->shelves[i].n = 0;
	p->region = NULL;
	p->warm = 0;
}

/* The warm pages in the word of page @n; with @is_idle only those that did not come back lately. */
static uint64_t warm_word(const struct iobufs *p, size_t n, bool is_idle)
{
	const struct pages *pg = &p->pages[n / 64];

	return is_idle ? pg->warm & ~pg->recent : pg->warm;
}

/* The last run of warm pages below page @end. False if there is none. */
static bool last_run(const struct iobufs *p, size_t end, bool is_idle, size_t *ret_at,
		     size_t *ret_n)
{
	size_t at = end, n = 0;

	while (at && !is_set(warm_word(p, at - 1, is_idle), at - 1)) {
		size_t first = align_down(at - 1, 64);
		uint64_t below = warm_word(p, first, is_idle) & mask_of(first, at - first);

		at = below ? first + log2_floor(below) + 1 : first;
	}
	while (n < at && is_set(warm_word(p, at - n - 1, is_idle), at - n - 1))
		n++;
	*ret_at = at - n;
	*ret_n = n;
	return n;
}

/* Gives back @bytes of warm pages, or all there are. */
static void cool(struct iobufs *p, size_t bytes, bool is_idle)
{
	size_t end = p->top_warm >> p->page_log2, done = 0, at, n;

	while (done < bytes && last_run(p, end, is_idle, &at, &n)) {
		size_t take = MIN(n, div_round_up(bytes - done, p->page));

		if (p->registered)              /* not beyond one span */
			take = MIN(take, (at + n - 1) % span_pages(p) + 1);
		end = at + n - take;
		if (!span_unregister(p, end / span_pages(p)) ||
		    madvise(p->arena + end * p->page, take * p->page, MADV_DONTNEED) < 0)
			continue;               /* or locked in memory: it stays warm */
		pages_cool(p, end, take);
		done += take * p->page;
	}
}

size_t iobuf_trim(struct iobufs *p)
{
	size_t before = p->warm;

	if (!p->region)
		return 0;
	if (p->used) {
		clear_shelves(p);
		cool(p, SIZE_MAX, false);
		return before - p->warm;
	}
	arena_close(p);
	return before;
}

/* Gives back what did not come back since this was set. */
static void give_back_idle(struct timer *t)
{
	struct iobufs *p = container_of(t, struct iobufs, idle);
	bool is_recent = false;

	if (!p->region)
		return;
	cool(p, SIZE_MAX, true);
	for (size_t i = 0; i < div_round_up(p->top_warm, 64 * p->page); i++) {
		is_recent |= p->pages[i].recent != 0;
		p->pages[i].recent = 0;
	}
	if (!is_recent && !p->used)
		iobuf_trim(p);
	else if (p->warm)
		timer_set(p->loop, &p->idle, loop_now(p->loop) + IDLE_NS);
}

void iobufs_free(struct iobufs *p)
{
	if (!p)
		return;
	assert(!p->used && !p->head && !p->is_server_queued);
	iobuf_trim(p);
	free(p);
}

/* ---- get and put ---- */

static void *carve_new(struct iobufs *p, size_t bytes)
{
	void *buf;

	if (p->region && !p->used && p->arena_bytes < bytes)
		arena_close(p);         /* it was mapped when address space was scarce */
	if (!p->region) {
		p->had_no_memory = !arena_open(p, bytes);
		if (p->had_no_memory)
			return NULL;
	}
	buf = byre_region_alloc(p->region, bytes, 0);
	if (buf)
		return buf;
	clear_shelves(p);
	return byre_region_alloc(p->region, bytes, 0);
}

static void *carve(struct iobufs *p, size_t bytes)
{
	struct shelf *shelf = shelf_of(p, bytes);

	return shelf && shelf->n ? shelf->bufs[--shelf->n] : carve_new(p, bytes);
}

void *iobuf_get(struct iobufs *p, size_t size)
{
	size_t bytes = iobuf_bytes(p, size), at;
	char *buf = NULL;

	if (size > IOBUF_MAX)
		return NULL;
	if (p->head && !p->is_serving)
		return NULL;            /* M3 */
	p->had_no_memory = false;
	if (!p->used || p->used + bytes <= p->budget)
		buf = carve(p, bytes);
	if (!buf) {
		p->has_room = false;
		return NULL;
	}
	at = (size_t)(buf - p->arena);
	p->top = MAX(p->top, at + bytes);
	pages_go(p, at >> p->page_log2, bytes >> p->page_log2);
	p->used += bytes;
	if (p->used + p->warm > p->budget)
		cool(p, p->used + p->warm - p->budget, false);
	p->is_serving = false;          /* one buffer a turn at the head of the line */
	memory_unpoison(buf, bytes);
	return buf;
}

static void queue_server(struct iobufs *p)
{
	if (p->is_server_queued)
		return;
	p->is_server_queued = true;
	loop_defer(p->loop, &p->server);
}

void iobuf_put(struct iobufs *p, void *buf, size_t size)
{
	size_t bytes = iobuf_bytes(p, size), at = (size_t)((char *)buf - p->arena);
	struct shelf *shelf = shelf_of(p, bytes);

	assert(buf && size <= IOBUF_MAX && p->used >= bytes);
	assert(!memory_is_poisoned(buf));
	memory_poison(buf, bytes);
	if (shelf && shelf->n < SHELF_ROOM && shelf->n * bytes < SHELF_BYTES)
		shelf->bufs[shelf->n++] = buf;
	else
		byre_region_free(p->region, buf);
	pages_come_back(p, at >> p->page_log2, bytes >> p->page_log2);
	p->top_warm = MAX(p->top_warm, at + bytes);
	p->used -= bytes;
	if (p->used + p->warm > p->budget)      /* it was larger than the budget */
		cool(p, p->used + p->warm - p->budget, false);
	if (p->loop && !p->idle.is_set)
		timer_set(p->loop, &p->idle, loop_now(p->loop) + IDLE_NS);
	p->has_room = true;
	if (p->head)
		queue_server(p);
}

/* ---- the line ---- */

static void serve(struct task *server)
{
	struct iobufs *p = container_of(server, struct iobufs, server);
	struct task *t = p->head;

	p->is_server_queued = false;
	timer_cancel(p->loop, &p->retry);
	if (!t)
		return;
	p->head = t->next;
	if (!p->head)
		p->tail = &p->head;
	p->is_serving = true;
	p->is_stuck = false;
	t->fn(t);
	p->is_serving = false;
	if (p->head && !p->is_stuck)
		queue_server(p);
}

static void serve_later(struct timer *timer)
{
	struct iobufs *p = container_of(timer, struct iobufs, retry);

	if (p->head)
		queue_server(p);
}

void iobuf_notify(struct loop *l, struct iobufs *p, struct task *t)
{
	bool is_first = !p->head || p->is_serving;

	assert(!p->loop || p->loop == l);
	p->loop = l;
	if (p->is_serving) {
		t->next = p->head;
		p->head = t;
		if (!t->next)
			p->tail = &t->next;
		p->is_serving = false;
		p->is_stuck = true;
	} else {
		t->next = NULL;
		*p->tail = t;
		p->tail = &t->next;
	}
	if (!is_first)
		return;
	/* Nothing may come back that would start it: see to it here. */
	if (p->had_no_memory)
		timer_set(l, &p->retry, loop_now(l) + RETRY_NS);
	else if (p->has_room || !p->used)
		queue_server(p);
}

size_t iobuf_used(const struct iobufs *p)
{
	return p->used;
}
