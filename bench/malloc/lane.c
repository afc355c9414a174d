/* SPDX-License-Identifier: MIT */
/* bench/malloc/lane.c - the rings through which threads pass on pointers, and threads.
 *
 * The harness should not be what is measured, so a ring costs next to nothing: one thread puts, one
 * takes, a batch at a time, so that a batch is one store on either side and the lines of the slots
 * move in order. Who finds nothing to do sleeps, which is the dear part, and is woken when half of
 * the ring is ready for it, not by the first batch.
 *
 * Sleeping is Dekker's way: who goes to sleep says so and looks once more; the other moves its
 * index and looks whether somebody sleeps; a full barrier between the two on either side. */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pattern.h"

static void sleep_until_woken(struct sleeper *s)
{
	syscall(SYS_futex, &s->sleeps, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
}

static void wake(struct sleeper *s)
{
	if (atomic_exchange_explicit(&s->sleeps, 0, memory_order_relaxed))
		syscall(SYS_futex, &s->sleeps, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* What was seen before is to be looked at again when this returns. */
static void about_to_sleep(struct sleeper *s)
{
	atomic_store_explicit(&s->sleeps, 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
}

static bool is_asleep(struct sleeper *s)
{
	atomic_thread_fence(memory_order_seq_cst);
	return atomic_load_explicit(&s->sleeps, memory_order_relaxed);
}

void lane_init(struct lane *l, unsigned slots, unsigned batch, struct taker *taker)
{
	memset(l, 0, offsetof(struct lane, items));
	l->slots = slots;
	l->batch = batch;
	l->taker = taker;
	taker->lanes[taker->count++] = l;
}

/* ---- who puts ---- */

void **lane_room(struct lane *l)
{
	while (l->put_at - atomic_load_explicit(&l->taken, memory_order_acquire) == l->slots) {
		about_to_sleep(&l->putter);
		if (l->put_at - atomic_load_explicit(&l->taken, memory_order_acquire) == l->slots)
			sleep_until_woken(&l->putter);
		atomic_store_explicit(&l->putter.sleeps, 0, memory_order_relaxed);
	}
	return &l->items[l->put_at % l->slots];
}

void lane_put(struct lane *l)
{
	unsigned taken = atomic_load_explicit(&l->taken, memory_order_relaxed);

	l->put_at += l->batch;
	atomic_store_explicit(&l->put, l->put_at, memory_order_release);
	if (l->put_at - taken >= l->slots / 2 && is_asleep(&l->taker->sleeper))
		wake(&l->taker->sleeper);
}

/* ---- who takes ---- */

static struct lane *find(struct taker *t)
{
	for (unsigned i = 0; i < t->count; i++) {
		struct lane *l = t->lanes[(t->at + i) % t->count];

		if (atomic_load_explicit(&l->put, memory_order_acquire) != l->taken_at) {
			t->at = (t->at + i) % t->count;
			return l;
		}
	}
	return NULL;
}

struct lane *lane_next(struct taker *t)
{
	struct lane *l = find(t);
	bool closed = false;

	while (!l && !closed) {
		about_to_sleep(&t->sleeper);
		/* In this order: what was put before it was closed is found. */
		closed = atomic_load_explicit(&t->closed, memory_order_acquire);
		l = find(t);
		if (!l && !closed)
			sleep_until_woken(&t->sleeper);
		atomic_store_explicit(&t->sleeper.sleeps, 0, memory_order_relaxed);
		if (!l && !closed)
			l = find(t);
	}
	return l;
}

void lane_taken(struct lane *l)
{
	unsigned put = atomic_load_explicit(&l->put, memory_order_relaxed);

	l->taken_at += l->batch;
	atomic_store_explicit(&l->taken, l->taken_at, memory_order_release);
	if (put - l->taken_at <= l->slots / 2 && is_asleep(&l->putter))
		wake(&l->putter);
}

void lanes_close(struct taker *t)
{
	atomic_store_explicit(&t->closed, true, memory_order_release);
	atomic_thread_fence(memory_order_seq_cst);
	wake(&t->sleeper);
}

/* ---- threads ---- */

pthread_t thread_start(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	int rc = pthread_create(&t, NULL, fn, arg);

	if (rc) {
		errno = rc;
		die("patterns: pthread_create");
	}
	return t;
}

void thread_place(unsigned n)
{
	cpu_set_t there, one;

	if (sched_getaffinity(0, sizeof(there), &there) < 0)
		die("patterns: sched_getaffinity");
	n %= (unsigned)CPU_COUNT(&there);
	CPU_ZERO(&one);
	for (unsigned i = 0; i < CPU_SETSIZE; i++) {
		if (CPU_ISSET(i, &there) && n-- == 0)
			CPU_SET(i, &one);
	}
	if (sched_setaffinity(0, sizeof(one), &one) < 0)
		die("patterns: sched_setaffinity");
}

void thread_join(pthread_t t)
{
	int rc = pthread_join(t, NULL);

	if (rc) {
		errno = rc;
		die("patterns: pthread_join");
	}
}
