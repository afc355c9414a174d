/* SPDX-License-Identifier: MIT */
/* fuzz/malloc.c - a sequence of calls of malloc() and its kin, from several threads, beside a list
 * of what is allocated.
 *
 * Four bytes a call: what and by which thread, which slot, and a size. One thread calls at a time,
 * so an input means one thing; what they can do to each other at the same moment is
 * tested in src/mem/heap_stress_test.c. Threads end and others come.
 *
 * Held: blocks do not overlap; their content survives, whatever is freed, resized and given back
 * beside them; they are aligned as asked, also after realloc(); calloc()'s are zero; what is freed
 * by any thread is in use no more; at the end nothing is, and it all goes back. */
#include "mem/test_names.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bits.h"
#include "fuzz/fuzz.h"
#include "mem/api.h"
#include "mem/census.h"

enum { SLOTS = 64, CALL = 4, CALLS_MAX = 600, THREADS = 4, EDGE = 2048,
       LIVE_MAX = 256 << 20 };

static struct slot {
	unsigned char *at;
	size_t size, usable, align;
} slots[SLOTS];
static size_t live;                     /* bytes */

/* ---- blocks ---- */

static unsigned char content(const struct slot *s, size_t i)
{
	return (unsigned char)((size_t)(s - slots) * 37 + i * 11 + 1);
}

/* Both ends of large ones. */
static size_t next_byte(const struct slot *s, size_t i)
{
	return i + 1 == EDGE && s->usable > 2 * EDGE ? s->usable - EDGE : i + 1;
}

static void write_content(struct slot *s)
{
	for (size_t i = 0; i < s->usable; i = next_byte(s, i))
		s->at[i] = content(s, i);
}

static void check_content(const struct slot *s)
{
	for (size_t i = 0; i < s->usable; i = next_byte(s, i))
		FUZZ_CHECK(s->at[i] == content(s, i), "byte %zu of %zu has changed", i, s->usable);
}

static void overlaps_none(const struct slot *s)
{
	for (const struct slot *o = slots; o < slots + SLOTS; o++)
		FUZZ_CHECK(o == s || !o->at || o->at + o->usable <= s->at ||
			   s->at + s->usable <= o->at, "a block overlaps another");
}

static void take(struct slot *s, void *p, size_t size, size_t align)
{
	*s = (struct slot){ p, size, malloc_usable_size(p), align };
	FUZZ_CHECK(s->usable >= size, "%zu for %zu", s->usable, size);
	FUZZ_CHECK(is_aligned((uintptr_t)p, MAX(align, (size_t)16)), "not aligned to %zu", align);
	overlaps_none(s);
	live += s->usable;
	write_content(s);
}

static void release(struct slot *s)
{
	if (!s->at)
		return;
	check_content(s);
	live -= s->usable;
	errno = ERANGE;
	if (s->align > 16)
		free_aligned_sized(s->at, s->align, s->size);
	else
		free(s->at);
	FUZZ_CHECK(errno == ERANGE, "free() has changed errno");
	s->at = NULL;
}

static void clear(struct slot *s, size_t size)
{
	unsigned char *p = calloc(size / 7 + 1, 7);
	size_t n = (size / 7 + 1) * 7;

	FUZZ_CHECK(p, "no memory");
	for (size_t i = 0; i < n; i++)
		FUZZ_CHECK(!p[i], "byte %zu of calloc(%zu) is not zero", i, n);
	take(s, p, n, 16);
}

static void align(struct slot *s, size_t size, size_t align)
{
	void *p = NULL;

	FUZZ_CHECK(!posix_memalign(&p, align, size), "no memory");
	take(s, p, size, align);
}

static void resize(struct slot *s, size_t size)
{
	struct slot old = *s;
	unsigned char *p;
	size_t both;

	check_content(s);
	p = realloc(s->at, size);
	FUZZ_CHECK(p, "no memory");
	s->at = p;
	both = MIN(old.usable, malloc_usable_size(p));
	both = MIN(both, size);
	for (size_t i = 0; i < both; i = next_byte(&old, i))
		FUZZ_CHECK(p[i] == content(s, i), "realloc() has lost byte %zu", i);
	live -= old.usable;
	take(s, p, size, old.align);
}

/* ---- calls ---- */

static size_t size_of(const uint8_t *c)
{
	unsigned number = c[2] | (unsigned)c[3] << 8;

	/* 12 bits and a power of two up to 2^9: all sizes are met, small ones mostly. */
	return 1 + ((size_t)(number & 0xfff) << (number >> 12 > 6 ? 0 : (number >> 12) * 3 / 2));
}

static void call(const uint8_t *c)
{
	struct slot *s = &slots[c[1] % SLOTS];
	size_t size = size_of(c);

	switch (c[0] % 16) {
	case 12:
		heap_idle();
		return;
	case 13:
		census_release(c[1] % 2 ? SIZE_MAX : size, c[1] % 4 / 2 * size);
		return;
	}
	if (!s->at && live + size > LIVE_MAX)
		return;
	if (!s->at && c[0] % 16 < 4)
		align(s, size, (size_t)8 << c[1] / SLOTS * 4 << c[0] % 4);
	else if (!s->at && c[0] % 16 < 6)
		clear(s, size);
	else if (!s->at)
		take(s, malloc(size), size, 16);
	else if (c[0] % 16 < 3)
		resize(s, size);
	else
		release(s);
}

/* ---- threads ---- */

static struct thread {
	pthread_t id;
	bool runs;
	const uint8_t *call;            /* under the lock: to be done, or NULL */
	bool end;
} threads[THREADS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void *serve(void *arg)
{
	struct thread *t = arg;

	pthread_mutex_lock(&lock);
	while (!t->end) {
		if (t->call) {
			call(t->call);
			t->call = NULL;
			pthread_cond_broadcast(&changed);
		} else {
			pthread_cond_wait(&changed, &lock);
		}
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

/* Thread 0 is the caller. */
static void call_in(struct thread *t, const uint8_t *c)
{
	if (t == threads) {
		call(c);
		return;
	}
	pthread_mutex_lock(&lock);
	if (!t->runs) {
		*t = (struct thread){ .runs = true };
		FUZZ_CHECK(!pthread_create(&t->id, NULL, serve, t), "no thread");
	}
	t->call = c;
	pthread_cond_broadcast(&changed);
	while (t->call)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

static void end_thread(struct thread *t)
{
	if (!t->runs)
		return;
	pthread_mutex_lock(&lock);
	t->end = true;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	pthread_join(t->id, NULL);
	t->runs = false;
}

/* ---- an input ---- */

static void nothing_is_left(void)
{
	struct census c;

	heap_idle();
	census_release(SIZE_MAX, 0);
	census_take(&c);
	FUZZ_CHECK(!c.used && !c.cached && !c.large, "%zu bytes in use, %zu in magazines", c.used,
		   c.cached);
	FUZZ_CHECK(!c.pages.dirty && !c.pages.used, "%zu bytes dirty, %zu in runs", c.pages.dirty,
		   c.pages.used);
}

static void run(const uint8_t *data, size_t size)
{
	const char *wrong;

	memset(slots, 0, sizeof(slots));
	live = 0;
	FUZZ_CHECK(heap_start(), "no memory");
	for (size_t at = 0; at + CALL <= size; at += CALL) {
		struct thread *t = &threads[(data[at] >> 4) % THREADS];

		if (data[at] % 16 == 15 && data[at + 1] % 8 == 0)
			end_thread(t);
		else
			call_in(t, data + at);
		wrong = pages_check();
		FUZZ_CHECK(!wrong, "%s", wrong);
	}
	for (unsigned i = 0; i < SLOTS; i++)
		release(&slots[i]);
	for (struct thread *t = threads + 1; t < threads + THREADS; t++)
		end_thread(t);
	nothing_is_left();
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return fuzz_mutate_calls(data, size, max, 0, CALL, p);
}

const struct fuzz_target fuzz_target = { "malloc", CALL * CALLS_MAX, run, mutate };
