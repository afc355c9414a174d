/* SPDX-License-Identifier: MIT */
/* loop/iobuf.c - a pool of buffers for I/O.
 *
 * A class for each power of two. A class below CHUNK_BYTES cuts its buffers from chunks of that
 * size, aligned to it; a larger buffer is a chunk of its own. A free buffer is in one of two
 * stacks of its class: *warm*, with memory behind it, counted in the budget and taken first; or
 * *cold*, only an address. The stacks have room for every buffer of the class, so putting one
 * back cannot fail, and hold no links in the buffers themselves: a late write to a freed one
 * harms nobody here.
 *
 * Memory goes back to the system by making warm buffers cold; iobuf_trim() then also unmaps the
 * chunks of which all buffers are cold. No list of chunks is kept: a sorted cold stack shows them.
 *
 * Who waits, waits in one line. While anybody does, iobuf_get() refuses all but the task at
 * the head, which is run alone after a buffer came back, and which keeps its place when
 * it asks for iobuf_notify() again: large wants are not overtaken for ever by small ones, and one
 * buffer put back wakes one task.
 *
 * Invariants:
 *	M1  used + warm <= budget, unless a single buffer is out and larger than the budget;
 *	M2  a get that finds a warm buffer of its class makes no system call and no allocation;
 *	M3  those who wait are served in order, and none while one before it is not served;
 *	M4  after iobuf_trim() nothing that is not handed out has memory behind it;
 *	M5  free buffers are poisoned for ASan. */
#include "loop/iobuf.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "loop/fiber.h"
#include "loop/sanitize.h"

enum {
	CLASS_MIN_LOG2 = 12,            /* IOBUF_ALIGN */
	CLASS_MAX_LOG2 = 26,            /* IOBUF_MAX */
	CLASSES = CLASS_MAX_LOG2 - CLASS_MIN_LOG2 + 1,
	CHUNK_BYTES = 1 << 20,
	RETRY_NS = 10 * NS_PER_MS,      /* after the system had no memory */
};
_Static_assert(IOBUF_ALIGN == 1 << CLASS_MIN_LOG2 && IOBUF_MAX == 1 << CLASS_MAX_LOG2, "classes");

/* Stacks of free buffers, each with room for all @total. */
struct class {
	char **warm, **cold;
	size_t warm_n, cold_n, total;
	size_t bytes;                   /* of one buffer */
	size_t per_chunk;
};

/* One loop's. */
struct iobufs {
	size_t budget;
	size_t least;                   /* bytes of the smallest buffer: IOBUF_ALIGN or a page */
	size_t used;                    /* bytes handed out */
	size_t warm;                    /* bytes in all warm stacks */
	struct task *head, **tail;      /* who waits */
	struct loop *loop;              /* where they wait; set by the first iobuf_notify() */
	struct task server;             /* runs the head of the line */
	struct timer retry;
	bool is_server_queued;
	bool is_serving;                /* the head of the line runs and has got nothing yet */
	bool is_stuck;                  /* it went back to its place */
	bool has_room;                  /* a buffer came back after the last refusal */
	bool had_no_memory;             /* the last refusal was the system's */
	struct class classes[CLASSES];
};

static void serve(struct task *t);
static void serve_later(struct timer *t);

int iobufs_new(size_t budget, struct iobufs **ret)
{
	struct iobufs *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->budget = budget;
	p->least = MAX((size_t)IOBUF_ALIGN, (size_t)sysconf(_SC_PAGESIZE));
	p->tail = &p->head;
	p->server.fn = serve;
	p->retry.fn = serve_later;
	for (unsigned i = 0; i < CLASSES; i++) {
		struct class *c = &p->classes[i];

		c->bytes = (size_t)1 << (CLASS_MIN_LOG2 + i);
		c->per_chunk = MAX(CHUNK_BYTES / c->bytes, (size_t)1);
	}
	*ret = p;
	return 0;
}

static struct class *class_of(struct iobufs *p, size_t size)
{
	return &p->classes[log2_floor(MAX(size, p->least) - 1) + 1 - CLASS_MIN_LOG2];
}

/* ---- from and to the system ---- */

/* Maps @bytes, aligned to CHUNK_BYTES if they are as many. */
static char *chunk_map(size_t bytes)
{
	size_t more = bytes == CHUNK_BYTES ? CHUNK_BYTES : 0;
	char *map = mmap(NULL, bytes + more, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *chunk;

	if (map == MAP_FAILED)
		return NULL;
	if (!more)
		return map;
	chunk = (char *)align_up((uintptr_t)map, CHUNK_BYTES);
	if (chunk > map)
		munmap(map, chunk - map);
	if (chunk < map + more)
		munmap(chunk + bytes, map + more - chunk);
	/* Or a first touch could cost 2 MiB where 4 KiB are counted. Without effect where the
	 * kernel has no huge pages. */
	madvise(chunk, bytes, MADV_NOHUGEPAGE);
	return chunk;
}

static bool stack_grow(char ***stack, size_t n)
{
	char **grown = realloc(*stack, n * sizeof(*grown));

	if (!grown)
		return false;
	*stack = grown;
	return true;
}

/* Adds a chunk's buffers to @c, cold. */
static bool class_grow(struct class *c)
{
	size_t total = c->total + c->per_chunk, bytes = c->bytes * c->per_chunk;
	char *chunk;

	if (!stack_grow(&c->warm, total) || !stack_grow(&c->cold, total))
		return false;
	chunk = chunk_map(bytes);
	if (!chunk)
		return false;
	memory_poison(chunk, bytes);
	for (size_t i = c->per_chunk; i-- > 0; )
		c->cold[c->cold_n++] = chunk + i * c->bytes;
	c->total = total;
	return true;
}

static int by_address(const void *a, const void *b)
{
	uintptr_t x = (uintptr_t)*(char *const *)a, y = (uintptr_t)*(char *const *)b;

	return (x > y) - (x < y);
}

/* Takes the memory from the last @n warm buffers of @c. Returns the bytes given back. */
static size_t class_cool(struct iobufs *p, struct class *c, size_t n)
{
	char **first = c->warm + (c->warm_n - n);
	size_t done = 0;

	qsort(first, n, sizeof(*first), by_address);
	while (done < n) {
		size_t run = 1;

		while (done + run < n && first[done + run] == first[done] + run * c->bytes)
			run++;
		if (madvise(first[done], run * c->bytes, MADV_DONTNEED) < 0)
			break;          /* locked in memory: it stays warm */
		memcpy(c->cold + c->cold_n, first + done, run * sizeof(*first));
		c->cold_n += run;
		done += run;
	}
	memmove(first, first + done, (n - done) * sizeof(*first));
	c->warm_n -= done;
	p->warm -= done * c->bytes;
	return done * c->bytes;
}

/* Unmaps the chunks of @c that are cold as a whole. */
static void class_unmap(struct class *c)
{
	size_t chunk_bytes = c->bytes * c->per_chunk, kept = 0;

	qsort(c->cold, c->cold_n, sizeof(*c->cold), by_address);
	for (size_t i = 0; i < c->cold_n; ) {
		size_t last = i + c->per_chunk - 1;
		char *buf = c->cold[i];

		if (last < c->cold_n && c->cold[last] == buf + chunk_bytes - c->bytes &&
		    (c->per_chunk == 1 || is_aligned((uintptr_t)buf, CHUNK_BYTES))) {
			memory_unpoison(buf, chunk_bytes);
			if (munmap(buf, chunk_bytes) == 0) {
				c->total -= c->per_chunk;
				i = last + 1;
				continue;
			}
			memory_poison(buf, chunk_bytes);
		}
		c->cold[kept++] = c->cold[i++];
	}
	c->cold_n = kept;
}

/* Gives back up to @bytes or a little more, the largest buffers first: they cost the fewest
 * calls. */
static void pool_cool(struct iobufs *p, size_t bytes)
{
	size_t done = 0;

	for (unsigned i = CLASSES; i-- > 0 && done < bytes; ) {
		struct class *c = &p->classes[i];
		size_t n = MIN(c->warm_n, div_round_up(bytes - done, c->bytes));

		if (!n)
			continue;
		done += class_cool(p, c, n);
		if (c->per_chunk == 1)
			class_unmap(c);
	}
}

size_t iobuf_trim(struct iobufs *p)
{
	size_t before = p->warm;

	for (unsigned i = 0; i < CLASSES; i++) {
		struct class *c = &p->classes[i];

		if (c->warm_n)
			class_cool(p, c, c->warm_n);
		if (c->cold_n)
			class_unmap(c);
	}
	return before - p->warm;
}

void iobufs_free(struct iobufs *p)
{
	if (!p)
		return;
	assert(!p->used && !p->head && !p->is_server_queued);
	iobuf_trim(p);
	for (unsigned i = 0; i < CLASSES; i++) {
		free(p->classes[i].warm);
		free(p->classes[i].cold);
	}
	free(p);
}

/* ---- get and put ---- */

/* Does the budget allow @bytes more? Free buffers give way. */
static bool make_room(struct iobufs *p, size_t bytes)
{
	size_t want = p->used + bytes;

	if (p->used && want > p->budget)
		return false;
	if (want + p->warm > p->budget)
		pool_cool(p, want + p->warm - p->budget);
	return !p->used || want + p->warm <= p->budget;
}

/* Has @c a cold buffer now? */
static bool has_cold(struct iobufs *p, struct class *c)
{
	if (c->cold_n || class_grow(c))
		return true;
	iobuf_trim(p);
	p->had_no_memory = !c->cold_n && !class_grow(c);
	return !p->had_no_memory;
}

static __attribute__((noinline)) void *get_cold(struct iobufs *p, struct class *c)
{
	char *buf;

	p->had_no_memory = false;
	if (!make_room(p, c->bytes) || !has_cold(p, c)) {
		p->has_room = false;
		return NULL;
	}
	buf = c->cold[--c->cold_n];
	p->used += c->bytes;
	p->is_serving = false;
	memory_unpoison(buf, c->bytes);
	return buf;
}

void *iobuf_get(struct iobufs *p, size_t size)
{
	struct class *c;
	char *buf;

	if (size > IOBUF_MAX)
		return NULL;
	if (p->head && !p->is_serving)
		return NULL;            /* M3 */
	c = class_of(p, size);
	if (!c->warm_n)
		return get_cold(p, c);
	buf = c->warm[--c->warm_n];
	p->warm -= c->bytes;
	p->used += c->bytes;
	p->is_serving = false;          /* one buffer a turn at the head of the line */
	memory_unpoison(buf, c->bytes);
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
	struct class *c = class_of(p, size);

	assert(buf && size <= IOBUF_MAX && p->used >= c->bytes);
	assert(!memory_is_poisoned(buf));       /* put back twice */
	memory_poison(buf, c->bytes);
	c->warm[c->warm_n++] = buf;
	p->used -= c->bytes;
	p->warm += c->bytes;
	if (p->used + p->warm > p->budget) {    /* it was larger than the budget */
		class_cool(p, c, 1);
		if (c->per_chunk == 1)
			class_unmap(c);
	}
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

struct buf_waiter {
	struct task task;
	struct loop *loop;
	struct iobufs *pool;
	size_t size;
	void *buf;
	struct fiber *fiber;
};

static void try_again(struct task *t)
{
	struct buf_waiter *w = container_of(t, struct buf_waiter, task);

	w->buf = iobuf_get(w->pool, w->size);
	if (w->buf)
		fiber_wake(w->fiber);
	else
		iobuf_notify(w->loop, w->pool, &w->task);
}

void *iobuf_get_wait(struct loop *l, struct iobufs *p, size_t size)
{
	struct buf_waiter w = {
		.task.fn = try_again, .loop = l, .pool = p, .size = size, .fiber = fiber_self(),
	};

	assert(w.fiber);
	w.buf = iobuf_get(p, size);
	if (w.buf || size > IOBUF_MAX)
		return w.buf;
	iobuf_notify(l, p, &w.task);
	while (!w.buf)
		fiber_park();
	return w.buf;
}

size_t iobuf_used(const struct iobufs *p)
{
	return p->used;
}
