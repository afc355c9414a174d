/* SPDX-License-Identifier: MIT */
/* mem/decay.c - steps, looks, and the thread that makes them. */
#include "mem/decay.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "mem/census.h"
#include "mem/heap.h"
#include "mem/lock.h"
#include "mem/sweep.h"

enum {
	TICKS = 8,                      /* of a quarter of the decay time */
	STEPS = 256,                    /* in a quarter, if there is much to do */
	/* These are half a millisecond at most. The thread, which keeps nobody waiting,
	 * takes larger steps. */
	SLABS_A_STEP = 256,
	HEAPS_A_STEP = 16,
	MAGAZINES_A_STEP = 64,
	OF_THREAD = 16,
};
#define PURGE_A_STEP (2 * MiB)
#define PAUSE_MIN (UINT64_C(1000000))   /* between steps, ns */

_Atomic uint64_t decay_due;
_Atomic bool decay_goes_on;
static _Atomic unsigned decay_ms = 1000;

static _Atomic bool busy;
/* Of who has set busy. */
static struct {
	uint64_t d;                     /* the decay time that the others are made from */
	uint64_t tick_at, heaps_at, slabs_at;   /* when the next one begins; 0: never was one */
	size_t lows[TICKS];
	unsigned tick;
	size_t owed;                    /* bytes */
	size_t at, slab;                /* slices, where to go on; @slab is 0 between two looks */
	uint32_t heap;                  /* the same */
	bool slabs_next;
} now_at = { .at = 1 };

/* The thread: under the lock, but for @wanted. */
static struct mem_lock thread_lock;
static pthread_t thread;
static bool running;
static _Atomic uint32_t wanted;         /* a futex */

/* ---- what is due ---- */

/* A low-water mark, which is that of all the ticks that have passed unseen. */
static void tick(uint64_t now, uint64_t period)
{
	size_t low = pages_dirty_low(), least = low;
	uint64_t n = now_at.tick_at ? 1 + (now - now_at.tick_at) / period : 1;

	for (uint64_t i = 0; i < n && i < TICKS; i++)
		now_at.lows[now_at.tick++ % TICKS] = low;
	for (unsigned i = 0; i < TICKS; i++)
		least = MIN(least, now_at.lows[i]);
	now_at.owed = least;
	now_at.tick_at = now + period;
}

/* Around from where the last step has ended. */
static void purge(unsigned scale)
{
	size_t want = MIN(now_at.owed, PURGE_A_STEP * scale), gone;

	if (!want)
		return;
	gone = sweep(SWEEP_SLICES, &now_at.at, SIZE_MAX, want, SIZE_MAX);
	if (gone < want) {
		now_at.at = 1;
		gone += sweep(SWEEP_SLICES, &now_at.at, SIZE_MAX, want - gone, SIZE_MAX);
	}
	/* If there was none, others have taken it. */
	now_at.owed = gone ? now_at.owed - MIN(now_at.owed, gone) : 0;
}

/* Has the heap's thread been by since the last look? If not, what it has set aside goes. True: not
 * all has; the next step goes on. */
static bool look_at_heap(uint32_t number, bool *ret_did)
{
	struct heap *h = heap_at(number);
	bool sleeps, more = false;

	if (!mem_trylock(&h->gate.lock))
		return false;
	sleeps = h->slow_paths == h->seen_slow_paths;
	h->seen_slow_paths = h->slow_paths;
	if (sleeps && h->flushed && !inbox_bytes(&h->inbox))
		sleeps = false;
	else
		h->flushed = sleeps;
	if (sleeps)
		more = heap_flush_parked(h, MAGAZINES_A_STEP);
	if (more)
		h->flushed = false;
	mem_unlock(&h->gate.lock);
	if (sleeps && !more)
		census_empty(number, number + 1);
	*ret_did |= sleeps;
	return more;
}

static void look_at_heaps(void)
{
	uint32_t end = heap_count() + 1;
	bool did = false;

	if (!now_at.heap)
		return;
	for (unsigned i = 0; i < HEAPS_A_STEP && now_at.heap < end && !did; i++)
		if (!look_at_heap(now_at.heap, &did))
			now_at.heap++;
	if (now_at.heap >= end)
		now_at.heap = 0;
}

static void look_at_slabs(unsigned scale)
{
	size_t end = atomic_load_explicit(&pages_end, memory_order_relaxed);

	if (!now_at.slab)
		return;
	sweep(SWEEP_SLABS | SWEEP_COLD, &now_at.slab, end, PURGE_A_STEP * scale,
	      (size_t)SLABS_A_STEP * scale);
	if (now_at.slab >= end)
		now_at.slab = 0;
}

static void begin_looks(uint64_t now, uint64_t d)
{
	if (!now_at.heap && now >= now_at.heaps_at) {
		now_at.heaps_at = now + d / 8;
		now_at.heap = 1;
	}
	if (!now_at.slab && now >= now_at.slabs_at) {
		now_at.slabs_at = now + d / 8;
		now_at.slab = 1;
	}
}

/* Returns when the next step is due. */
static uint64_t step(uint64_t now, unsigned scale)
{
	uint64_t d = atomic_load_explicit(&decay_ms, memory_order_relaxed) * UINT64_C(1000000);

	if (!d)
		return UINT64_MAX;
	if (d != now_at.d) {
		now_at.d = d;
		now_at.tick_at = now_at.heaps_at = now_at.slabs_at = 0;
		memset(now_at.lows, 0, sizeof(now_at.lows));
	}
	if (now >= now_at.tick_at)
		tick(now, d / 4 / TICKS);
	begin_looks(now, d);
	/* System calls of one kind are enough for a step. */
	if (now_at.slabs_next && now_at.slab)
		look_at_slabs(scale);
	else if (now_at.owed)
		purge(scale);
	else
		look_at_slabs(scale);
	now_at.slabs_next = !now_at.slabs_next;
	look_at_heaps();
	if (now_at.owed || now_at.heap || now_at.slab)
		return now + MAX(d / 4 / STEPS, PAUSE_MIN);
	return now_at.tick_at;
}

static uint64_t step_alone(unsigned scale)
{
	uint64_t next = 0;

	if (!atomic_exchange_explicit(&busy, true, memory_order_acquire)) {
		next = step(os_now(), scale);
		atomic_store_explicit(&decay_goes_on, now_at.owed || now_at.heap || now_at.slab,
				      memory_order_relaxed);
		atomic_store_explicit(&busy, false, memory_order_release);
	}
	return next;
}

void decay_step(void)
{
	/* Whoever comes by now goes on; errors matter to nobody. */
	int saved = errno;
	uint64_t next, due = atomic_exchange_explicit(&decay_due, UINT64_MAX, memory_order_relaxed);

	if (due == UINT64_MAX)
		return;
	/* All goes just now, and nobody is to wait for that. */
	next = census_is_releasing() ? os_now() + 5 * NS_PER_MS : step_alone(1);
	if (!atomic_load_explicit(&wanted, memory_order_relaxed))
		atomic_store_explicit(&decay_due, next, memory_order_relaxed);
	errno = saved;
}

void decay_set(unsigned milliseconds)
{
	atomic_store_explicit(&decay_ms, milliseconds, memory_order_relaxed);
	if (!atomic_load_explicit(&wanted, memory_order_relaxed))
		atomic_store_explicit(&decay_due, milliseconds ? 0 : UINT64_MAX,
				      memory_order_relaxed);
}

static unsigned decay_time(void)
{
	return atomic_load_explicit(&decay_ms, memory_order_relaxed);
}

/* ---- the thread ---- */

static void *live(void *arg)
{
	while (atomic_load_explicit(&wanted, memory_order_acquire)) {
		uint64_t next = step_alone(OF_THREAD), now = os_now(), wait = NS_PER_SEC;
		struct timespec t;

		if (next <= now + wait)
			wait = next > now + PAUSE_MIN ? next - now : PAUSE_MIN;
		t = (struct timespec){ .tv_sec = (time_t)(wait / NS_PER_SEC),
				       .tv_nsec = (long)(wait % NS_PER_SEC) };
		syscall(SYS_futex, &wanted, FUTEX_WAIT_PRIVATE, 1, &t, NULL, 0);
	}
	return NULL;
}

/* No signal of the program's is for this thread. */
static int thread_start(void)
{
	sigset_t all, before;
	int err;

	atomic_store_explicit(&wanted, 1, memory_order_release);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&thread, NULL, live, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err) {
		atomic_store_explicit(&wanted, 0, memory_order_relaxed);
		return -err;
	}
	pthread_setname_np(thread, "byre-malloc");
	atomic_store_explicit(&decay_due, UINT64_MAX, memory_order_relaxed);
	running = true;
	return 0;
}

static void thread_stop(void)
{
	atomic_store_explicit(&wanted, 0, memory_order_release);
	syscall(SYS_futex, &wanted, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	pthread_join(thread, NULL);
	running = false;
	atomic_store_explicit(&decay_due, decay_time() ? 0 : UINT64_MAX, memory_order_relaxed);
}

int decay_background(bool on)
{
	int saved = errno, err = 0;

	if (!heap_start())
		return -ENOMEM;
	mem_lock(&thread_lock);
	if (on && !running)
		err = thread_start();
	else if (!on && running)
		thread_stop();
	mem_unlock(&thread_lock);
	errno = saved;
	return err;
}

void decay_reset(void)
{
	mem_lock_init(&thread_lock);
	running = false;
	atomic_store_explicit(&wanted, 0, memory_order_relaxed);
	atomic_store_explicit(&busy, false, memory_order_relaxed);
	now_at.owed = 0;
	now_at.heap = 0;
	now_at.slab = 0;
	atomic_store_explicit(&decay_due, decay_time() ? 0 : UINT64_MAX, memory_order_relaxed);
}
