/* SPDX-License-Identifier: MIT */
/* mem/handover_stress_test.c - the protocols under threads that are held up where it hurts.
 *
 * A few heaps, each with a magazine, a bitmap and an inbox, all in plain memory. Owners allocate,
 * free, pass objects on to other threads, send home what is not theirs, end, and come back in
 * another heap; takers empty all heaps, over and over. The code is compiled with MEM_STEP_HOOK: at
 * each access to shared memory, and amid the use of a magazine, a thread may be made to wait, for
 * the most part at one place that is chosen anew every few milliseconds, so that each of them is
 * one where others get in between.
 *
 * Each object says who has it, in plain memory as well: two users at a time are found by what
 * they read, or by ThreadSanitizer as a race. For that nothing is annotated or kept from it: what
 * goes from thread to thread goes by release and acquire. What it cannot see is a barrier too few
 * between busy and stop, where both sides are atomic; that is the model's part, and the values'.
 *
 * That the test can fail is tested, too: with owners whose busy = 1 is lost.
 *
 *	BYRE_MEM_STRESS=120     seconds instead of two
 *	BYRE_MEM_SEED=4711 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/prng.h"
#include "base/sanitizers.h"
#include "mem/handover.h"
#include "mem/inbox.h"

enum {
	HEAPS = 3,
	OWNERS = 4,                     /* one more than there are heaps */
	TAKERS = 2,
	THREADS = OWNERS + TAKERS,
	OBJECTS = 24,                   /* of each heap */
	ROOM = 6,                       /* of its magazine */
	MAILBOXES = 8,
	HELD = 4,                       /* objects that an owner has at a time */
	FOCUS_MS = 5,
};

struct heap {
	struct handover gate;
	/* Hot. */
	unsigned top;
	unsigned slots[ROOM];
	struct magazine *out;           /* for the next heap, or NULL */
	unsigned out_count;
	/* Cold. */
	uint32_t bitmap;
	struct magazine *empty;
	struct inbox inbox;
};

struct thread {
	pthread_t id;
	unsigned number;                /* from 1 on */
	struct prng seed;
	uint64_t done, taken, denied;   /* operations; a taker's rounds */
	struct heap *heap;
	unsigned held[HELD];
};

/* Object n is one of heap n / OBJECTS; 0 is none, so they begin at OBJECTS. */
static struct heap heaps[HEAPS];
static unsigned user[(HEAPS + 1) * OBJECTS];
static _Atomic unsigned mailbox[MAILBOXES];
static struct thread threads[THREADS];
static _Alignas(MAGAZINE_BYTES) struct magazine magazines[HEAPS * 4];

static _Atomic bool stop_all, lose_busy;
static _Atomic unsigned wrong, focus;
static __thread struct thread *self;

/* ---- being held up ---- */

static unsigned hash(const char *name)
{
	unsigned h = 0;

	while (*name)
		h = h * 31 + (unsigned char)*name++;
	return h % 16;
}

void mem_step(const char *name);
void mem_step(const char *name)
{
	const struct timespec moment = { .tv_nsec = 20000 };
	unsigned in;

	if (!self)
		return;
	if (atomic_load_explicit(&lose_busy, memory_order_relaxed) && self->heap &&
			!strcmp(name, "enter_stop"))
		atomic_store_explicit(&self->heap->gate.busy, 0, memory_order_relaxed);
	in = hash(name) == atomic_load_explicit(&focus, memory_order_relaxed) ? 8 : 512;
	if (prng_below(&self->seed, in))
		return;
	if (prng_below(&self->seed, 4))
		sched_yield();
	else
		nanosleep(&moment, NULL);
}

static void is_wrong(const char *what, unsigned object)
{
	if (!atomic_fetch_add(&wrong, 1))
		fprintf(stderr, "%s: object %u\n", what, object);
	atomic_store(&stop_all, true);
}

/* ---- objects ---- */

static void use(unsigned object)
{
	if (user[object])
		is_wrong("handed out twice", object);
	user[object] = self->number;
}

static void used(unsigned object)
{
	if (user[object] != self->number)
		is_wrong("has another user", object);
	user[object] = 0;
}

static struct heap *heap_of(unsigned object)
{
	return &heaps[object / OBJECTS - 1];
}

static unsigned object_of(const struct heap *h, unsigned bit)
{
	return (unsigned)(h - heaps + 1) * OBJECTS + bit;
}

/* ---- a heap, with the lock ---- */

static void put_back(struct heap *h, unsigned object)
{
	uint32_t bit = 1u << object % OBJECTS;

	if (h->bitmap & bit || heap_of(object) != h)
		is_wrong("freed twice", object);
	h->bitmap |= bit;
}

static void drain(struct heap *h)
{
	struct magazine *m = inbox_take(&h->inbox), *next;

	for (; m; m = next) {
		next = magazine_next(m);
		for (unsigned i = 0; i < magazine_count(m); i++)
			put_back(h, (unsigned)(uintptr_t)m->object[i]);
		magazine_link(m, h->empty, 0, 0);
		h->empty = m;
	}
}

/* Sends what is in @h for its neighbour. */
static void post(struct heap *h)
{
	struct heap *to = h + 1 < heaps + HEAPS ? h + 1 : heaps;

	if (!h->out || !h->out_count)
		return;
	inbox_post(&to->inbox, h->out, 0, h->out_count, h->out_count);
	h->out = NULL;
	h->out_count = 0;
}

static void flush(struct heap *h)
{
	while (h->top)
		put_back(h, h->slots[--h->top]);
	drain(h);
	post(h);
}

static void lock_own(struct heap *h)
{
	if (handover_lock(&h->gate))
		flush(h);
}

/* ---- what owners do ---- */

static unsigned allocate_slow(struct heap *h)
{
	unsigned object = 0;

	lock_own(h);
	if (!h->bitmap)
		drain(h);
	while (h->bitmap && h->top < ROOM / 2) {
		unsigned bit = (unsigned)__builtin_ctz(h->bitmap);

		h->bitmap &= h->bitmap - 1;
		h->slots[h->top++] = object_of(h, bit);
	}
	if (h->top)
		object = h->slots[--h->top];
	handover_unlock(&h->gate);
	return object;
}

static unsigned allocate(struct heap *h)
{
	unsigned object, top;

	if (!handover_enter(&h->gate) || !h->top)
		return allocate_slow(h);
	top = h->top - 1;
	object = h->slots[top];
	mem_step("inside");
	h->top = top;
	handover_leave(&h->gate);
	return object;
}

static void free_own(struct heap *h, unsigned object)
{
	unsigned top;

	if (!handover_enter(&h->gate) || h->top == ROOM) {
		lock_own(h);
		put_back(h, object);
		handover_unlock(&h->gate);
		return;
	}
	top = h->top;
	h->slots[top] = object;
	mem_step("inside");
	h->top = top + 1;
	handover_leave(&h->gate);
}

/* An object of the next heap goes into the magazine for it, any other straight home. */
static void free_other(struct heap *h, unsigned object)
{
	struct heap *to = heap_of(object);
	bool is_next = to == h + 1 || (to == heaps && h == heaps + HEAPS - 1);

	if (is_next && handover_enter(&h->gate) && h->out && h->out_count < 3) {
		h->out->object[h->out_count++] = (void *)(uintptr_t)object;
		handover_leave(&h->gate);
		return;
	}
	lock_own(h);
	post(h);
	if (!h->out && h->empty) {
		h->out = h->empty;
		h->empty = magazine_next(h->empty);
	}
	handover_unlock(&h->gate);
	mem_lock(&to->gate.lock);
	put_back(to, object);
	mem_unlock(&to->gate.lock);
}

static void let_go(struct thread *t, unsigned object)
{
	used(object);
	if (heap_of(object) == t->heap)
		free_own(t->heap, object);
	else
		free_other(t->heap, object);
}

static void operate(struct thread *t)
{
	unsigned *held = &t->held[prng_below(&t->seed, HELD)], got;

	if (!*held) {
		*held = allocate(t->heap);
		if (*held)
			use(*held);
	} else if (prng_below(&t->seed, 2)) {
		let_go(t, *held);
		*held = 0;
	} else {
		/* Pass it on; what lay there is ours. */
		used(*held);
		got = atomic_exchange_explicit(&mailbox[prng_below(&t->seed, MAILBOXES)], *held,
				memory_order_acq_rel);
		*held = got;
		if (got)
			use(got);
	}
	t->done++;
}

static bool adopt_any(struct thread *t)
{
	struct heap *h = &heaps[prng_below(&t->seed, HEAPS)];

	if (!handover_adopt(&h->gate))
		return false;
	t->heap = h;
	return true;
}

static void leave_heap(struct thread *t)
{
	for (unsigned i = 0; i < HELD; i++)
		if (t->held[i])
			let_go(t, t->held[i]);
	memset(t->held, 0, sizeof(t->held));
	lock_own(t->heap);
	post(t->heap);
	handover_orphan(&t->heap->gate);
	t->heap = NULL;
}

static bool is_over(void)
{
	return atomic_load_explicit(&stop_all, memory_order_relaxed);
}

static void *owner(void *arg)
{
	struct thread *t = self = arg;

	while (!is_over()) {
		unsigned n = 50 + (unsigned)prng_below(&t->seed, 500);

		if (!adopt_any(t)) {
			sched_yield();
			continue;
		}
		while (n-- && !is_over())
			operate(t);
		leave_heap(t);
	}
	return NULL;
}

/* ---- takers ---- */

static void *taker(void *arg)
{
	const struct timespec pause = { .tv_nsec = 200000 };
	struct thread *t = self = arg;

	while (!is_over()) {
		struct handover_round round;

		handover_begin(&round);
		for (struct heap *h = heaps; h < heaps + HEAPS; h++)
			handover_stop(&h->gate, &round);
		handover_barrier(&round);
		for (struct heap *h = heaps; h < heaps + HEAPS; h++) {
			if (!handover_take(&h->gate, &round)) {
				t->denied++;
				continue;
			}
			flush(h);
			handover_give(&h->gate);
			t->taken++;
		}
		nanosleep(&pause, NULL);
	}
	return NULL;
}

/* ---- a run ---- */

static void set_up(uint64_t seed)
{
	memset(heaps, 0, sizeof(heaps));
	memset(user, 0, sizeof(user));
	memset(threads, 0, sizeof(threads));
	atomic_store(&stop_all, false);
	atomic_store(&wrong, 0);
	for (unsigned i = 0; i < HEAPS; i++) {
		handover_init(&heaps[i].gate, (i + 1) << 8);
		heaps[i].bitmap = (1u << OBJECTS) - 1;
		for (unsigned k = 0; k < 4; k++) {
			magazine_link(&magazines[i * 4 + k], heaps[i].empty, 0, 0);
			heaps[i].empty = &magazines[i * 4 + k];
		}
	}
	for (unsigned i = 0; i < MAILBOXES; i++)
		atomic_store(&mailbox[i], 0);
	for (unsigned i = 0; i < THREADS; i++) {
		threads[i].number = i + 1;
		threads[i].seed.state = seed * THREADS + i + 1;
	}
}

static void run(uint64_t seed, double seconds)
{
	const struct timespec moment = { .tv_nsec = FOCUS_MS * 1000000 };
	struct prng where = { seed };

	set_up(seed);
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i].id, NULL, i < OWNERS ? owner : taker,
				&threads[i]), 0);
	for (double t = 0; t < seconds && !is_over(); t += FOCUS_MS / 1e3) {
		atomic_store(&focus, (unsigned)prng_below(&where, 16));
		nanosleep(&moment, NULL);
	}
	atomic_store(&stop_all, true);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i].id, NULL);
}

/* Every object is free, or in a mailbox, and once. */
static void count_all(void)
{
	for (unsigned i = 0; i < MAILBOXES; i++)
		if (mailbox[i])
			put_back(heap_of(mailbox[i]), mailbox[i]);
	/* What goes out of one heap comes into the next. */
	for (int twice = 0; twice < 2; twice++)
		for (struct heap *h = heaps; h < heaps + HEAPS; h++)
			flush(h);
	for (struct heap *h = heaps; h < heaps + HEAPS; h++)
		assert_int_equal(h->bitmap, (1u << OBJECTS) - 1);
	for (unsigned i = 0; i < ARRAY_SIZE(user); i++)
		assert_int_equal(user[i], 0);
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

static void h12_h13_i11_i12_threads_that_are_held_up(void **state)
{
	uint64_t seed = number("BYRE_MEM_SEED", 1), done = 0, taken = 0, denied = 0;

	atomic_store(&lose_busy, false);
	run(seed, (double)number("BYRE_MEM_STRESS", 2));
	if (wrong)
		fail_msg("wrong, with BYRE_MEM_SEED=%llu", (unsigned long long)seed);
	count_all();
	for (unsigned i = 0; i < THREADS; i++) {
		done += threads[i].done;
		taken += threads[i].taken;
		denied += threads[i].denied;
	}
	print_message("# %llu operations, heaps taken %llu times, denied %llu times\n",
			(unsigned long long)done, (unsigned long long)taken,
			(unsigned long long)denied);
	assert_true(done > 0 && taken > 0);
}

/* It would be found if it were wrong. */
static void a_lost_busy_is_found(void **state)
{
#if HAS_TSAN
	skip();                 /* it is found as a race, and that ends the test */
#endif
	atomic_store(&lose_busy, true);
	for (uint64_t seed = 1; seed < 30; seed++) {
		run(seed, 1);
		if (wrong)
			return;
	}
	fail_msg("not found");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(h12_h13_i11_i12_threads_that_are_held_up),
		cmocka_unit_test(a_lost_busy_is_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
