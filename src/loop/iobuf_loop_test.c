/* SPDX-License-Identifier: MIT */
/* A loop's own buffers: what it gives back when it is idle, and what it registers with its ring. */
#include "loop/iobuf.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "loop/loop_ground.h"

enum { BLOCK = 65536, BLOCKS = 64, OFTEN = 64 };

/* ---- idle ---- */

static bool has_rung;

static void ring(struct timer *t)
{
	has_rung = true;
}

static void sleep_ns(struct loop *l, uint64_t ns)
{
	struct timer t = { .fn = ring };

	has_rung = false;
	timer_set(l, &t, loop_now(l) + ns);
	while (!has_rung)
		loop_turn(l, true);
}

static void m6_what_is_idle_is_given_back(void **state)
{
	struct ground *g = ground_of(state);
	struct iobufs *pool = loop_iobufs(g->l);
	char *large = iobuf_get(pool, 1 * MiB), *small = iobuf_get(pool, BLOCK);

	assert_true(large && small);
	memset(large, 1, 1 * MiB);
	iobuf_put(pool, large, 1 * MiB);
	iobuf_put(pool, small, BLOCK);
	for (int i = 0; i < 30; i++) {          /* 3 s in which only the small one is used */
		sleep_ns(g->l, 100 * NS_PER_MS);
		small = iobuf_get(pool, BLOCK);
		assert_non_null(small);
		iobuf_put(pool, small, BLOCK);
	}
	assert_int_equal(iobuf_trim(pool), BLOCK);
	small = iobuf_get(pool, BLOCK);
	iobuf_put(pool, small, BLOCK);
	sleep_ns(g->l, 3 * NS_PER_SEC);
	assert_int_equal(iobuf_trim(pool), 0);
}

/* An idle loop sleeps: once all is given back there is no timer any more. */
static void m6_an_idle_pool_sets_no_timer(void **state)
{
	struct ground *g = ground_of(state);
	struct iobufs *pool = loop_iobufs(g->l);

	iobuf_put(pool, iobuf_get(pool, BLOCK), BLOCK);
	assert_true(g->l->timers.next != &g->l->timers);
	sleep_ns(g->l, 3 * NS_PER_SEC);
	assert_true(g->l->timers.next == &g->l->timers);
}

/* ---- registered ---- */

/* Block @n of the file @fd, to a buffer of the pool; it is what it should be. */
static void read_block(struct ground *g, int fd, unsigned n)
{
	struct iobufs *pool = loop_iobufs(g->l);
	unsigned char *buf = iobuf_get(pool, BLOCK);
	struct op op;

	assert_non_null(buf);
	memset(buf, 0xee, BLOCK);
	op_rw(&op, IO_READ, fd, buf, BLOCK, (uint64_t)n * BLOCK);
	op.io.flags = IO_DIRECT;
	assert_int_equal(op_run(g->l, &op), BLOCK);
	for (size_t i = 0; i < BLOCK; i++)
		assert_int_equal(buf[i], n);
	iobuf_put(pool, buf, BLOCK);
}

/* Fills @fd, block n with bytes n, by direct writes. */
static void write_blocks(struct ground *g, int fd)
{
	for (unsigned n = 0; n < BLOCKS; n++) {
		unsigned char *buf = iobuf_get(loop_iobufs(g->l), BLOCK);
		struct op op;

		assert_non_null(buf);
		memset(buf, (int)n, BLOCK);
		op_rw(&op, IO_WRITE, fd, buf, BLOCK, (uint64_t)n * BLOCK);
		op.io.flags = IO_DIRECT;
		assert_int_equal(op_run(g->l, &op), BLOCK);
		iobuf_put(loop_iobufs(g->l), buf, BLOCK);
	}
}

static uint64_t registered(const struct ground *g)
{
	struct loop_stats stats;

	loop_get_stats(g->l, &stats);
	return stats.registered;
}

/* Leaves some of the loop's memory registered. False where the kernel is too old, or refuses. */
static bool register_some(struct ground *g, int fd)
{
	uint64_t before = registered(g);

	write_blocks(g, fd);
	for (unsigned i = 0; i < OFTEN; i++)
		read_block(g, fd, i % BLOCKS);
	return registered(g) > before;
}

static void u1_memory_is_registered_from_linux_5_19_on(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g);

	write_blocks(g, fd);
	for (unsigned i = 0; i < OFTEN; i++)
		read_block(g, fd, i);
	if (g->backend != LOOP_URING || (g->kernel_max && g->kernel_max < 519))
		assert_int_equal(registered(g), 0);
	file_free(g, fd);
}

static void what_would_not_be_faster_is_not_registered(void **state)
{
	struct ground *g = ground_of(state);
	struct iobufs *pool = loop_iobufs(g->l);
	char *buf = iobuf_get(pool, BLOCK), elsewhere[BLOCK] = { 0 };
	int fd = file_new(g);
	struct op op;

	assert_non_null(buf);
	for (unsigned i = 0; i < 2 * OFTEN; i++) {
		op_rw(&op, IO_WRITE, fd, buf, BLOCK, 0);        /* through the page cache */
		assert_int_equal(op_run(g->l, &op), BLOCK);
		op_rw(&op, IO_WRITE, fd, buf, 4096, 0);
		op.io.flags = IO_DIRECT;
		assert_int_equal(op_run(g->l, &op), 4096);
		op_rw(&op, IO_WRITE, fd, elsewhere, BLOCK, 0);
		op.io.flags = IO_DIRECT;
		assert_int_equal(op_run(g->l, &op), BLOCK);
	}
	assert_int_equal(registered(g), 0);
	iobuf_put(pool, buf, BLOCK);
	file_free(g, fd);
}

/* The budget is used up by others; the registered memory gives way, and is used again later. */
static void m7_registered_memory_is_not_stale_after_the_budget_was_short(void **state)
{
	struct ground *g = ground_of(state);
	struct iobufs *pool = loop_iobufs(g->l);
	int fd = file_new(g);
	void *large[4];

	for (unsigned round = 0; round < 3 && register_some(g, fd); round++) {
		for (unsigned i = 0; i < 4; i++) {
			large[i] = iobuf_get(pool, IOBUF_MAX);
			assert_non_null(large[i]);
		}
		assert_int_equal(iobuf_used(pool), IOBUF_BUDGET_DEFAULT);       /* M1: all cold */
		for (unsigned i = 0; i < 4; i++)
			iobuf_put(pool, large[i], IOBUF_MAX);
		for (unsigned i = 0; i < OFTEN; i++)
			read_block(g, fd, i % BLOCKS);
	}
	file_free(g, fd);
}

static bool is_resident(char *p)
{
	unsigned char in = 0;

	return mincore(p, 4096, &in) == 0 && (in & 1);
}

static void m4_m7_a_registered_part_that_is_in_use_stays(void **state)
{
	struct ground *g = ground_of(state);
	struct iobufs *pool = loop_iobufs(g->l);
	int fd = file_new(g);
	char *used, *other;
	uint64_t before;

	if (!register_some(g, fd)) {
		file_free(g, fd);
		return;
	}
	used = iobuf_get(pool, BLOCK);
	other = iobuf_get(pool, BLOCK);
	assert_true(used && other);
	memset(used, 7, BLOCK);
	memset(other, 7, BLOCK);
	iobuf_put(pool, other, BLOCK);
	iobuf_trim(pool);
	assert_true(is_resident(other));        /* or the kernel would read into pages of its own */
	before = registered(g);
	for (unsigned i = 0; i < BLOCKS; i++)
		read_block(g, fd, i);
	assert_int_equal(registered(g), before + BLOCKS);
	iobuf_put(pool, used, BLOCK);
	iobuf_trim(pool);
	assert_false(is_resident(used) || is_resident(other));
	for (unsigned i = 0; i < BLOCKS; i++)
		read_block(g, fd, i);
	file_free(g, fd);
}

int main(void)
{
	static const struct ground_test tests[] = {
#define T(fn, with) { #fn, fn, with }
		T(m6_what_is_idle_is_given_back, WITH_SIM),
		T(m6_an_idle_pool_sets_no_timer, WITH_SIM),
		T(u1_memory_is_registered_from_linux_5_19_on, WITH_ALL),
		T(what_would_not_be_faster_is_not_registered, WITH_URING),
		T(m7_registered_memory_is_not_stale_after_the_budget_was_short, WITH_URING),
		T(m4_m7_a_registered_part_that_is_in_use_stays, WITH_URING),
	};

	return ground_run(tests, ARRAY_SIZE(tests));
}
