/* SPDX-License-Identifier: MIT */
/* mem/heap_stress_test.c - malloc() among threads that pass blocks to each other, end, fork, and
 * have their heaps taken over.
 *
 * Each block is full of a pattern that its address and size give, checked when it is freed,
 * wherever that is. At the end all are freed; then nothing is in use, and nearly all goes back.
 *
 *	BYRE_MEM_STRESS=120     seconds instead of two
 *	BYRE_MEM_SEED=4711 */
#include "mem/test_names.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"
#include "base/sanitizers.h"
#include "mem/api.h"
#include "mem/census.h"
#include "mem/decay.h"

enum { WORKERS = 6, HELD = 64, MAILBOXES = 64, LIFE = 4000 };

struct block {
	unsigned char *at;
	size_t size;
};

struct thread {
	pthread_t id;
	struct prng p;
	struct block held[HELD];
	uint64_t done;
};

static struct thread threads[WORKERS];
/* A block on its way: its size is at its beginning. */
static _Atomic(unsigned char *) mailbox[MAILBOXES];
static _Atomic bool stop_all;
static _Atomic unsigned wrong;

static bool is_over(void)
{
	return atomic_load_explicit(&stop_all, memory_order_relaxed);
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

/* ---- blocks ---- */

static void is_wrong(const char *what, const void *at)
{
	if (!atomic_fetch_add(&wrong, 1))
		fprintf(stderr, "%s: %p\n", what, at);
	atomic_store(&stop_all, true);
}

static unsigned char pattern(const unsigned char *at, size_t size)
{
	return (unsigned char)(((uintptr_t)at >> 4) * 31 + size * 7 + 1);
}

/* The ends of small blocks and some of large ones: to touch all would be all that is done. */
static void stamp(struct block b)
{
	size_t n = b.size < 512 ? b.size : 512;

	memset(b.at, pattern(b.at, b.size), n);
	memset(b.at + b.size - n, pattern(b.at, b.size), n);
}

static void check_stamp(const unsigned char *at, size_t n, unsigned char with)
{
	for (size_t i = 0; i < n; i++)
		if (at[i] != with) {
			is_wrong("content has changed", at + i);
			return;
		}
}

static void check_block(struct block b)
{
	size_t n = b.size < 512 ? b.size : 512;

	check_stamp(b.at, n, pattern(b.at, b.size));
	check_stamp(b.at + b.size - n, n, pattern(b.at, b.size));
}

static size_t random_size(struct prng *p)
{
	switch (prng_below(p, 16)) {
	case 0:
		return 1 + prng_below(p, 3 << 20);
	case 1: case 2:
		return 1 + prng_below(p, 300 << 10);
	case 3: case 4: case 5:
		return 1 + prng_below(p, 8 << 10);
	default:
		return 1 + prng_below(p, 600);
	}
}

static struct block take(struct prng *p)
{
	struct block b = { .size = random_size(p) };
	size_t align = (size_t)16 << prng_below(p, 14);

	if (prng_below(p, 8))
		b.at = malloc(b.size);
	else
		b.at = aligned_alloc(align, b.size);
	if (!b.at)
		return b;
	if (malloc_usable_size(b.at) < b.size)
		is_wrong("too small", b.at);
	stamp(b);
	return b;
}

static void let_go(struct block *b)
{
	if (!b->at)
		return;
	check_block(*b);
	free(b->at);
	b->at = NULL;
}

static void resize(struct prng *p, struct block *b)
{
	size_t size = random_size(p), both = size < b->size ? size : b->size;
	unsigned char with = pattern(b->at, b->size), *at;

	both = both < 512 ? both : 512;
	check_block(*b);
	at = realloc(b->at, size);
	if (!at)
		return;
	check_stamp(at, both, with);
	*b = (struct block){ at, size };
	stamp(*b);
}

/* Leaves @b in a mailbox, and takes what lay there. */
static void pass_on(struct prng *p, struct block *b)
{
	unsigned char *got;

	check_block(*b);
	if (b->size < sizeof(size_t)) {
		let_go(b);
		return;
	}
	memcpy(b->at, &b->size, sizeof(size_t));
	got = atomic_exchange_explicit(&mailbox[prng_below(p, MAILBOXES)], b->at,
			memory_order_acq_rel);
	b->at = got;
	if (!got)
		return;
	memcpy(&b->size, got, sizeof(size_t));
	memset(got, pattern(got, b->size), sizeof(size_t));
	check_block(*b);
}

/* ---- threads ---- */

static void operate(struct thread *t)
{
	struct block *b = &t->held[prng_below(&t->p, HELD)];

	if (!b->at)
		*b = take(&t->p);
	else if (prng_below(&t->p, 16) == 0)
		resize(&t->p, b);
	else if (prng_below(&t->p, 3) == 0)
		pass_on(&t->p, b);
	else
		let_go(b);
	t->done++;
}

/* Lives for a while, and leaves what it has to its successor. */
static void *live(void *arg)
{
	struct thread *t = arg;

	for (uint64_t n = 1 + prng_below(&t->p, LIFE); n && !is_over(); n--)
		operate(t);
	return NULL;
}

/* Frees what it finds and never allocates. */
static void *free_only(void *arg)
{
	const struct timespec pause = { .tv_nsec = 100000 };

	while (!is_over()) {
		for (int i = 0; i < MAILBOXES; i++)
			free(atomic_exchange_explicit(&mailbox[i], NULL, memory_order_acq_rel));
		nanosleep(&pause, NULL);
	}
	return NULL;
}

/* One thread after the other. */
static void *generations(void *arg)
{
	struct thread *t = arg;
	pthread_t id;

	while (!is_over()) {
		if (pthread_create(&id, NULL, live, t)) {
			is_wrong("no thread", NULL);
			return NULL;
		}
		pthread_join(id, NULL);
	}
	return NULL;
}

static void *release(void *arg)
{
	const struct timespec pause = { .tv_nsec = 2000000 };
	struct prng p = { 5 };

	while (!is_over()) {
		size_t keep = prng_below(&p, 4) ? 0 : prng_below(&p, 4 * MiB);

		census_release(prng_below(&p, 2) ? SIZE_MAX : prng_below(&p, MiB), keep);
		/* Beside this one, all the time or now and then. */
		if (prng_below(&p, 50) == 0 && decay_background(prng_below(&p, 2)))
			is_wrong("no background thread", NULL);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

/* ---- forks ---- */

/* All that the parent had can be used and freed. */
static int in_child(void)
{
	struct thread t = { .p = { 7 } };

	for (int i = 0; i < 3000; i++)
		operate(&t);
	for (int i = 0; i < HELD; i++)
		let_go(&t.held[i]);
	for (int i = 0; i < MAILBOXES; i++)
		free(atomic_exchange(&mailbox[i], NULL));
	census_release(SIZE_MAX, 0);
	/* Neither the sanitizers nor qemu can do that: their locks are not made for it. */
#if !HAS_ASAN && !HAS_TSAN && !defined(TEST_EMULATED)
	if (pthread_create(&t.id, NULL, live, &t) || pthread_join(t.id, NULL))
		return 2;
#endif
	return wrong ? 1 : 0;
}

static void fork_once(void)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		alarm(300);
		_exit(in_child());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* ---- the run ---- */

static void empty_all(void)
{
	for (int i = 0; i < WORKERS; i++)
		for (int k = 0; k < HELD; k++)
			let_go(&threads[i].held[k]);
	for (int i = 0; i < MAILBOXES; i++)
		free(atomic_exchange(&mailbox[i], NULL));
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void run(uint64_t seed, double seconds, bool forks)
{
	const struct timespec moment = { .tv_nsec = 50000000 };
	pthread_t releaser, freer;
	double end = now() + seconds;

	/* free(NULL) beside the first malloc() reads where the window is: either value will do, but
	 * ThreadSanitizer cannot know. */
	assert_true(heap_start());
	/* What decay does in a second it does all the time. */
	decay_set(8);
	atomic_store(&stop_all, false);
	for (unsigned i = 0; i < WORKERS; i++) {
		threads[i] = (struct thread){ .p = { seed * WORKERS + i } };
		assert_int_equal(pthread_create(&threads[i].id, NULL, generations, &threads[i]),
				0);
	}
	assert_int_equal(pthread_create(&releaser, NULL, release, NULL), 0);
	assert_int_equal(pthread_create(&freer, NULL, free_only, NULL), 0);
	do {
		if (forks)
			fork_once();
		nanosleep(&moment, NULL);
	} while (now() < end && !is_over());
	atomic_store(&stop_all, true);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(threads[i].id, NULL);
	pthread_join(releaser, NULL);
	pthread_join(freer, NULL);
	assert_int_equal(decay_background(false), 0);
	decay_set(0);
	if (wrong)
		fail_msg("wrong, with BYRE_MEM_SEED=%llu", (unsigned long long)seed);
	empty_all();
}

static void m11_m12_m13_nothing_is_lost_among_threads(void **state)
{
	struct census c;
	uint64_t done = 0;

	run(number("BYRE_MEM_SEED", 1), (double)number("BYRE_MEM_STRESS", 2), false);
	for (unsigned i = 0; i < WORKERS; i++)
		done += threads[i].done;
	heap_idle();
	census_release(SIZE_MAX, 0);
	census_take(&c);
	print_message("# %llu operations; then %zu bytes in use, %zu in magazines, %zu dirty\n",
			(unsigned long long)done, c.used, c.cached, c.pages.dirty);
	assert_true(done > 0);
	assert_int_equal(c.used, 0);
	assert_int_equal(c.pages.dirty, 0);
	assert_null(pages_check());
}

static void m11_child_of_a_fork_has_it_all(void **state)
{
	run(number("BYRE_MEM_SEED", 1), (double)number("BYRE_MEM_STRESS", 2), true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(m11_m12_m13_nothing_is_lost_among_threads),
		cmocka_unit_test(m11_child_of_a_fork_has_it_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
