/* SPDX-License-Identifier: MIT */
#include "loop/iobuf.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"
#include "loop/fiber.h"
#include "loop/sanitize.h"
#include "loop/test_loop.h"

static struct loop *loop;
static struct iobufs *pool;

/* A simulated loop and a pool with a budget of *@state KiB. */
static int setup(void **state)
{
	struct loop_opts opts = { .backend = LOOP_SIM };
	const unsigned *kib = *state;

	if (loop_new(&opts, &loop, NULL) < 0 || iobufs_new(*kib * KiB, &pool) < 0)
		return -1;
	loop_turn(loop, false);
	return 0;
}

static int teardown(void **state)
{
	iobufs_free(pool);
	loop_free(loop);
	return 0;
}

static void turn_until_idle(void)
{
	while (loop_turn(loop, false))
		;
}

/* Bytes of [@p, @p + @len) that have memory behind them. */
static size_t resident(void *p, size_t len)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 0;
	unsigned char *in = calloc(len / page, 1);

	assert_non_null(in);
	if (mincore(p, len, in) < 0)
		assert_int_equal(errno, ENOMEM);        /* not even mapped */
	else
		for (size_t i = 0; i < len / page; i++)
			n += in[i] & 1 ? page : 0;
	free(in);
	return n;
}

/* ---- sizes ---- */

static void sizes_are_rounded_and_aligned(void **state)
{
	static const struct { size_t size, bytes; } sizes[] = {
		{ 0, 4096 }, { 1, 4096 }, { 4096, 4096 }, { 4097, 8192 }, { 65536, 65536 },
		{ 65537, 69632 }, { 1 << 20, 1 << 20 }, { (1 << 20) + 1, (1 << 20) + 4096 },
		{ IOBUF_MAX, IOBUF_MAX },
	};

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		char *buf = iobuf_get(pool, sizes[i].size);

		assert_non_null(buf);
		assert_true(is_aligned((uintptr_t)buf, IOBUF_ALIGN));
		assert_int_equal(iobuf_used(pool), sizes[i].bytes);
		buf[0] = buf[sizes[i].bytes - 1] = 1;
		iobuf_put(pool, buf, sizes[i].size);
		assert_int_equal(iobuf_used(pool), 0);
	}
	assert_null(iobuf_get(pool, IOBUF_MAX + 1));
	assert_null(iobuf_get(pool, SIZE_MAX));
}

static void buffers_do_not_overlap(void **state)
{
	enum { N = 600 };
	static struct { unsigned char *buf; size_t size; } got[N];
	struct prng prng = { .state = 42 };

	for (int round = 0; round < 20; round++) {
		for (unsigned i = 0; i < N; i++) {
			got[i].size = 1 + prng_below(&prng, prng_below(&prng, 8) ? 8192 : 100000);
			got[i].buf = iobuf_get(pool, got[i].size);
			assert_non_null(got[i].buf);
			memset(got[i].buf, (int)(i % 251), got[i].size);
		}
		for (unsigned i = 0; i < N; i++) {
			assert_int_equal(got[i].buf[0], i % 251);
			assert_int_equal(got[i].buf[got[i].size / 2], i % 251);
			assert_int_equal(got[i].buf[got[i].size - 1], i % 251);
			iobuf_put(pool, got[i].buf, got[i].size);
		}
		if (round % 4 == 0)
			iobuf_trim(pool);
	}
	assert_int_equal(iobuf_used(pool), 0);
}

static void m5_free_buffers_are_poisoned(void **state)
{
	char *buf = iobuf_get(pool, 5000);

	if (!HAS_ASAN) {
		iobuf_put(pool, buf, 5000);
		return;
	}
	assert_false(memory_is_poisoned(buf + 8191));
	iobuf_put(pool, buf, 5000);
	assert_true(memory_is_poisoned(buf) && memory_is_poisoned(buf + 8191));
	assert_ptr_equal(iobuf_get(pool, 8192), buf);   /* last in, first out */
	assert_false(memory_is_poisoned(buf) || memory_is_poisoned(buf + 8191));
	iobuf_put(pool, buf, 8192);
}

static void putting_back_twice_is_caught(void **state)
{
	char *buf = iobuf_get(pool, 5000);
	int status = 0;
	pid_t pid;

	iobuf_put(pool, buf, 5000);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		fclose(stderr);
		signal(SIGABRT, SIG_DFL);
		iobuf_put(pool, buf, 5000);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void m2_what_one_size_gave_back_serves_others(void **state)
{
	static void *buf[4096];
	static const size_t sizes[] = { 4096, 64 * KiB, 68 * KiB, 1 * MiB, 4 * MiB };

	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		size_t n = 16 * MiB / sizes[s];

		for (size_t i = 0; i < n; i++) {
			buf[i] = iobuf_get(pool, sizes[s]);
			assert_non_null(buf[i]);
			memset(buf[i], 1, sizes[s]);
		}
		for (size_t i = 0; i < n; i++)
			iobuf_put(pool, buf[i], sizes[s]);
	}
	/* Little more than 16 MiB was ever touched: only what rested on shelves is extra. */
	assert_in_range(iobuf_trim(pool), 16 * MiB, 20 * MiB);
}

/* ---- budget ---- */

/* The pool of these tests holds 64 KiB. */
static void m1_budget_limits_what_is_out(void **state)
{
	void *buf[16];

	for (int i = 0; i < 16; i++) {
		buf[i] = iobuf_get(pool, 4096);
		assert_non_null(buf[i]);
		*(char *)buf[i] = 1;
	}
	assert_null(iobuf_get(pool, 1));
	iobuf_put(pool, buf[0], 4096);
	assert_null(iobuf_get(pool, 4097));
	assert_int_equal(resident(buf[0], 4096), 4096); /* not dropped in vain */
	buf[0] = iobuf_get(pool, 4096);
	assert_non_null(buf[0]);
	for (int i = 0; i < 16; i++)
		iobuf_put(pool, buf[i], 4096);
}

static void m1_free_buffers_make_room_for_other_sizes(void **state)
{
	char *small[16], *large;

	for (int i = 0; i < 16; i++) {
		small[i] = iobuf_get(pool, 4096);
		assert_non_null(small[i]);
		memset(small[i], 1, 4096);
	}
	for (int i = 1; i < 16; i++)
		iobuf_put(pool, small[i], 4096);
	large = iobuf_get(pool, 32 * KiB);
	assert_non_null(large);
	memset(large, 1, 32 * KiB);
	/* 4 KiB and 32 KiB are out, so at most 28 KiB may be kept. */
	assert_int_equal(iobuf_trim(pool), 28 * KiB);
	iobuf_put(pool, large, 32 * KiB);
	iobuf_put(pool, small[0], 4096);
	assert_int_equal(iobuf_trim(pool), 36 * KiB);
	assert_int_equal(iobuf_trim(pool), 0);
}

static void m1_one_buffer_is_always_allowed(void **state)
{
	char *small = iobuf_get(pool, 4096), *large;

	assert_non_null(small);
	assert_null(iobuf_get(pool, 1 * MiB));
	iobuf_put(pool, small, 4096);
	large = iobuf_get(pool, 1 * MiB);
	assert_non_null(large);
	memset(large, 1, 1 * MiB);
	assert_null(iobuf_get(pool, 1));
	iobuf_put(pool, large, 1 * MiB);
	assert_int_equal(resident(large, 1 * MiB), 64 * KiB);   /* no more than the budget */
	large = iobuf_get(pool, 512 * KiB);
	assert_non_null(large);
	memset(large, 1, 512 * KiB);
	iobuf_put(pool, large, 512 * KiB);
	assert_int_equal(resident(large, 512 * KiB), 64 * KiB);
	small = iobuf_get(pool, 4096);
	assert_non_null(small);
	iobuf_put(pool, small, 4096);
}

/* ---- giving back ---- */

static void m4_trim_gives_memory_back(void **state)
{
	enum { N = 1024 };
	static char *buf[N];
	size_t all = 0;

	for (int i = 0; i < N; i++) {
		buf[i] = iobuf_get(pool, 4096);
		assert_non_null(buf[i]);
		memset(buf[i], 1, 4096);
		all += resident(buf[i], 4096);
	}
	assert_int_equal(all, N * 4096);
	for (int i = 0; i < N; i++)
		if (i % 64)
			iobuf_put(pool, buf[i], 4096);
	assert_int_equal(iobuf_trim(pool), (N - N / 64) * 4096);
	/* One in 64 is still out and keeps its content; around it nothing is left. */
	for (int i = 0; i < N; i++) {
		assert_int_equal(resident(buf[i], 4096), i % 64 ? 0 : 4096);
		if (i % 64 == 0)
			assert_int_equal(buf[i][4095], 1);
	}
	for (int i = 0; i < N; i += 64)
		iobuf_put(pool, buf[i], 4096);
	iobuf_trim(pool);
	for (int i = 0; i < N; i++) {
		unsigned char in;

		assert_true(mincore(buf[i], 4096, &in) < 0 && errno == ENOMEM); /* unmapped */
	}
}

static void m4_large_ones_too(void **state)
{
	char *a = iobuf_get(pool, 16 * MiB), *b = iobuf_get(pool, 3 * MiB);

	assert_true(a && b);
	memset(a, 1, 16 * MiB);
	memset(b, 1, 3 * MiB);
	iobuf_put(pool, a, 16 * MiB);
	assert_int_equal(resident(a, 16 * MiB), 16 * MiB);      /* kept for reuse */
	assert_ptr_equal(iobuf_get(pool, 16 * MiB), a);
	iobuf_put(pool, a, 16 * MiB);
	assert_int_equal(iobuf_trim(pool), 16 * MiB);
	assert_int_equal(resident(a, 16 * MiB), 0);
	assert_int_equal(b[3 * MiB - 1], 1);
	iobuf_put(pool, b, 3 * MiB);
}

/* ---- waiting ---- */

struct waiter {
	struct task task;
	size_t size;
	void *buf;
	int tries;
	int number;
};

static int got_order[16], got_count;

static void try_get(struct task *t)
{
	struct waiter *w = container_of(t, struct waiter, task);

	w->tries++;
	w->buf = iobuf_get(pool, w->size);
	if (w->buf)
		got_order[got_count++] = w->number;
	else
		iobuf_notify(loop, pool, t);
}

static void start_waiters(struct waiter *w, int n, const size_t *sizes)
{
	got_count = 0;
	for (int i = 0; i < n; i++) {
		w[i] = (struct waiter){ .task.fn = try_get, .size = sizes[i], .number = i };
		assert_null(iobuf_get(pool, sizes[i]));
		iobuf_notify(loop, pool, &w[i].task);
	}
	turn_until_idle();
	for (int i = 0; i < n; i++)
		assert_int_equal(w[i].tries, 0);        /* nothing came back yet */
}

static void m3_waiters_are_served_in_order(void **state)
{
	static const size_t sizes[] = { 32 * KiB, 4096, 4096 };
	struct waiter w[3];
	void *buf[16];

	for (int i = 0; i < 16; i++)
		buf[i] = iobuf_get(pool, 4096);
	start_waiters(w, 3, sizes);
	for (int i = 0; i < 7; i++) {
		iobuf_put(pool, buf[i], 4096);
		turn_until_idle();
		/* There is room for the small ones, but not before the large one; nor for
		 * newcomers. */
		assert_int_equal(got_count, 0);
		assert_int_equal(w[0].tries, i + 1);
		assert_int_equal(w[1].tries + w[2].tries, 0);
		assert_null(iobuf_get(pool, 4096));
	}
	iobuf_put(pool, buf[7], 4096);
	assert_int_equal(got_count, 0);         /* deferred: L1 */
	turn_until_idle();
	assert_int_equal(got_count, 1);
	assert_int_equal(w[1].tries, 1);        /* it tried next, and stays first */
	assert_int_equal(w[2].tries, 0);
	iobuf_put(pool, buf[8], 4096);
	iobuf_put(pool, buf[9], 4096);
	turn_until_idle();
	assert_int_equal(got_count, 3);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(got_order[i], i);
		iobuf_put(pool, w[i].buf, w[i].size);
	}
	for (int i = 10; i < 16; i++)
		iobuf_put(pool, buf[i], 4096);
}

static void m3_one_put_wakes_one(void **state)
{
	static const size_t sizes[8] = {
		65536, 65536, 65536, 65536, 65536, 65536, 65536, 65536,
	};
	void *buf = iobuf_get(pool, 65536);
	struct waiter w[8];
	int tries = 0;

	start_waiters(w, 8, sizes);
	for (int i = 0; i < 8; i++) {
		iobuf_put(pool, buf, 65536);
		turn_until_idle();
		assert_int_equal(got_count, i + 1);
		assert_int_equal(got_order[i], i);
		buf = w[i].buf;
	}
	iobuf_put(pool, buf, 65536);
	for (int i = 0; i < 8; i++)
		tries += w[i].tries;
	assert_true(tries <= 2 * 8);
}

/* Whoever asks for a notice after something came back must not wait for the next one. */
static void a_late_notice_is_not_lost(void **state)
{
	void *buf = iobuf_get(pool, 65536);
	struct waiter w = { .task.fn = try_get, .size = 65536 };

	assert_null(iobuf_get(pool, 65536));
	iobuf_put(pool, buf, 65536);
	got_count = 0;
	iobuf_notify(loop, pool, &w.task);
	assert_int_equal(w.tries, 0);
	turn_until_idle();
	assert_int_equal(got_count, 1);
	iobuf_put(pool, w.buf, 65536);
}

/* Takes as much as it can whenever it is told, like an export with a queue of requests. */
static struct greedy {
	struct task task;
	void *buf[16];
	int n;
} greedy;

static void take_all(struct task *t)
{
	void *buf;

	while ((buf = iobuf_get(pool, 4096)))
		greedy.buf[greedy.n++] = buf;
	iobuf_notify(loop, pool, t);
}

static void give_all_back(struct task *t)
{
	while (greedy.n)
		iobuf_put(pool, greedy.buf[--greedy.n], 4096);
}

static void m3_the_greedy_go_back_to_the_end(void **state)
{
	static const size_t sizes[] = { 4096 };
	struct waiter w;

	greedy = (struct greedy){ .task.fn = take_all };
	take_all(&greedy.task);
	assert_int_equal(greedy.n, 16);
	start_waiters(&w, 1, sizes);
	for (int i = 0; i < 4; i++)
		iobuf_put(pool, greedy.buf[--greedy.n], 4096);
	turn_until_idle();
	/* One for the greedy, who came first, one for the other, the rest for the greedy again. */
	assert_int_equal(got_count, 1);
	assert_int_equal(greedy.n, 12 + 3);
	iobuf_put(pool, w.buf, 4096);
	turn_until_idle();
	assert_int_equal(greedy.n, 16);
	greedy.task.fn = give_all_back;
	iobuf_put(pool, greedy.buf[--greedy.n], 4096);
	turn_until_idle();
	assert_int_equal(iobuf_used(pool), 0);
}

/* ---- in fibers ---- */

static int fibers_served;

struct buf_waiter {
	struct task task;
	size_t size;
	char *buf;
	struct fiber *fiber;
};

static void try_again(struct task *t)
{
	struct buf_waiter *w = container_of(t, struct buf_waiter, task);

	w->buf = iobuf_get(pool, w->size);
	if (w->buf)
		fiber_wake(w->fiber);
	else
		iobuf_notify(loop, pool, &w->task);
}

static char *get_wait(size_t size)
{
	struct buf_waiter w = { .task.fn = try_again, .size = size, .fiber = fiber_self() };

	w.buf = iobuf_get(pool, size);
	if (!w.buf)
		iobuf_notify(loop, pool, &w.task);
	while (!w.buf)
		fiber_park();
	return w.buf;
}

struct borrower {
	struct task task;
	size_t size;
	int rounds;
};

static void borrow(struct task *t)
{
	struct borrower *b = container_of(t, struct borrower, task);

	for (int i = 0; i < b->rounds; i++) {
		char *buf = get_wait(b->size);

		assert_non_null(buf);
		buf[0] = buf[b->size - 1] = (char)i;
		for (int k = 0; k < 3; k++) {
			fiber_yield_wait();
			assert_int_equal(buf[b->size - 1], (char)i);
		}
		iobuf_put(pool, buf, b->size);
	}
	fibers_served++;
}

static void m3_fibers_of_all_sizes_make_progress(void **state)
{
	static const size_t sizes[] = {
		4096, 100, 64 * KiB, 8192, 1 * MiB, 32 * KiB, 20000, 4096, 300 * KiB, 1,
	};
	struct borrower b[100];

	fibers_served = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(b); i++) {
		b[i] = (struct borrower){
			.task.fn = borrow, .size = sizes[i % ARRAY_SIZE(sizes)], .rounds = 20,
		};
		fiber_start(loop, &b[i].task);
	}
	turn_until_idle();
	assert_int_equal(fibers_served, ARRAY_SIZE(b));
	assert_int_equal(iobuf_used(pool), 0);
	assert_true(iobuf_trim(pool) <= 64 * KiB);      /* M1 */
}

/* ---- without memory ---- */

static void limit_address_space(size_t bytes)
{
	struct rlimit rl = { .rlim_cur = bytes, .rlim_max = RLIM_INFINITY };

	if (setrlimit(RLIMIT_AS, &rl) < 0)
		_exit(2);
}

/* In a child. The budget allows 64 MiB, the system nothing; later it does. */
static void run_short_of_memory(void)
{
	struct waiter w = { .task.fn = try_get, .size = IOBUF_MAX };

	got_count = 0;
	limit_address_space(0);
	if (iobuf_get(pool, IOBUF_MAX))
		_exit(3);
	iobuf_notify(loop, pool, &w.task);
	for (int i = 0; i < 20; i++)
		loop_turn(loop, true);
	if (w.tries < 2 || w.tries > 25 || got_count)
		_exit(4);
	limit_address_space(RLIM_INFINITY);
	for (int i = 0; i < 20; i++)
		loop_turn(loop, true);
	_exit(got_count == 1 && w.buf ? 0 : 5);
}

static void without_memory_waiters_try_again(void **state)
{
	test_in_child(run_short_of_memory);
}

/* ---- cost ---- */

static void get_and_put(int rounds)
{
	void *buf[32];

	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < 32; i++) {
			buf[i] = iobuf_get(pool, 4096);
			*(char *)buf[i] = 2;
		}
		for (int i = 0; i < 32; i++)
			iobuf_put(pool, buf[i], 4096);
	}
}

static void reuse_touches_no_new_pages(void **state)
{
	struct rusage before, after;

	get_and_put(10);
	getrusage(RUSAGE_SELF, &before);
	get_and_put(1000);
	getrusage(RUSAGE_SELF, &after);
	/* The same pages each time: 32000 that are new would be as many faults. */
	assert_in_range(after.ru_minflt - before.ru_minflt, 0, 1000);
}

/* In a child: anything but read, write and exit kills. */
static void get_and_put_only(void)
{
	get_and_put(1);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0)
		get_and_put(100);
	syscall(SYS_exit, 0);
}

static void m2_reuse_makes_no_system_calls(void **state)
{
	test_in_child(get_and_put_only);
}

static unsigned small_kib = 64, large_kib = 256 * 1024;

#define T(name, kib) cmocka_unit_test_prestate_setup_teardown(name, setup, teardown, kib)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		T(sizes_are_rounded_and_aligned, &large_kib),
		T(buffers_do_not_overlap, &large_kib),
		T(m5_free_buffers_are_poisoned, &large_kib),
		T(putting_back_twice_is_caught, &large_kib),
		T(m2_what_one_size_gave_back_serves_others, &large_kib),
		T(m1_budget_limits_what_is_out, &small_kib),
		T(m1_free_buffers_make_room_for_other_sizes, &small_kib),
		T(m1_one_buffer_is_always_allowed, &small_kib),
		T(m4_trim_gives_memory_back, &large_kib),
		T(m4_large_ones_too, &large_kib),
		T(m3_waiters_are_served_in_order, &small_kib),
		T(m3_one_put_wakes_one, &small_kib),
		T(a_late_notice_is_not_lost, &small_kib),
		T(m3_the_greedy_go_back_to_the_end, &small_kib),
		T(m3_fibers_of_all_sizes_make_progress, &small_kib),
		T(without_memory_waiters_try_again, &large_kib),
		T(reuse_touches_no_new_pages, &large_kib),
		T(m2_reuse_makes_no_system_calls, &large_kib),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
