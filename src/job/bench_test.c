/* SPDX-License-Identifier: MIT */
/* The requests that a bench sends, seen from a node that keeps a book of them and answers in a
 * seeded order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>

#include "base/bits.h"
#include "base/prng.h"
#include "blk/port.h"
#include "job/bench.h"
#include "job/latency.h"

enum { DISK = 1 << 20, SEEN_MAX = 1024 };

struct book {
	struct node node;
	struct prng prng;
	uint64_t off[SEEN_MAX];         /* of reads and writes, as they came */
	unsigned seen, done, flushes, under_way, most_under_way;
	unsigned flush_at[SEEN_MAX];    /* done when the flush came */
	bool is_flushing, overlaps_flush;
	uint8_t first_byte;
	int fail_at;                    /* the number of the request that fails; -1: none */
};

static struct book *book_of(const struct chan *ch)
{
	return container_of(ch->node, struct book, node);
}

static void answer(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct book *b = book_of(req->ch);

	if (prng_below(&b->prng, 3)) {
		loop_defer(req->ch->loop, t);
		return;
	}
	b->under_way--;
	if (req->kind == REQ_FLUSH)
		b->is_flushing = false;
	else
		b->done++;
	req_complete(req, req->priv[0] ? -ENODEV : 0);
}

static void book_submit(struct chan *ch, struct req *req)
{
	struct book *b = book_of(ch);

	if (req->kind == REQ_FLUSH) {
		b->overlaps_flush |= b->under_way;
		b->is_flushing = true;
		b->flush_at[b->flushes++] = b->done;
		req->priv[0] = 0;
	} else {
		b->overlaps_flush |= b->is_flushing;
		req_copy_from(req, 0, &b->first_byte, 1);
		req->priv[0] = (int)b->seen == b->fail_at;
		b->off[b->seen++] = req->off;
	}
	b->under_way++;
	b->most_under_way = MAX(b->most_under_way, b->under_way);
	/* A driver may leave its mark in them. */
	req->ch = ch;
	req->off += 77;
	req->task.fn = answer;
	loop_defer(ch->loop, &req->task);
}

static void book_free(struct node *n)
{
	/* Its test's: looked at when all is over. */
}

static const struct node_ops book_ops = {
	.name = "book", .chan_size = sizeof(struct chan), .submit = book_submit, .free = book_free,
};

struct args {
	struct bench_opts o;
	struct book book;
	int res;
	uint64_t ns;
};

static int run_fiber(void *arg)
{
	struct args *a = arg;
	struct port *port;

	assert_int_equal(node_init(&a->book.node, &book_ops, "book", loop_current()), 0);
	atomic_store(&a->book.node.size, DISK);
	assert_int_equal(node_open_home_wait(&a->book.node, NULL), 0);
	assert_int_equal(port_new(&a->book.node, false, &port, NULL), 0);
	assert_int_equal(port_open_wait(port, NULL), 0);
	a->res = bench_run_wait(port_here(port), &a->o, &a->ns);
	port_close_wait(port);
	port_free(port);
	node_put_wait(&a->book.node);
	return 0;
}

static int run(struct args *a)
{
	struct loop *l;

	assert_int_equal(loop_new(&(struct loop_opts){ .backend = LOOP_SIM, .sim_seed = 1 }, &l,
				  NULL), 0);
	loop_call(l, run_fiber, a);
	loop_free(l);
	assert_int_equal(a->book.under_way, 0);
	return a->res;
}

static struct args args(uint64_t count, uint64_t depth, uint64_t seed)
{
	return (struct args){
		.o = { .count = count, .depth = depth, .len = 4096, .step = 4096, .drain = true },
		.book = { .prng = { seed }, .fail_at = -1 },
	};
}

static void j1_count_depth_and_offsets_are_kept(void **state)
{
	struct prng p = { 5 };

	for (uint64_t round = 0; round < 200; round++) {
		struct args a = args(1 + prng_below(&p, 300), 1 + prng_below(&p, 70), round);
		uint64_t off = prng_below(&p, 4) * 4096;

		/* Steps that fit the disk, so that no request crosses its end. */
		a.o.off = off;
		a.o.step = 4096 << prng_below(&p, 6);
		a.o.writes = prng_below(&p, 2);
		a.o.pattern = 0x5a;
		assert_int_equal(run(&a), 0);
		assert_int_equal(a.book.seen, a.o.count);
		assert_int_equal(a.book.done, a.o.count);
		assert_int_equal(a.book.most_under_way, MIN(a.o.depth, a.o.count));
		assert_int_equal(a.book.flushes, 0);
		for (unsigned i = 0; i < a.book.seen; i++)
			assert_int_equal(a.book.off[i], (off + i * a.o.step) % DISK);
		if (a.o.writes)
			assert_int_equal(a.book.first_byte, 0x5a);
	}
}

static void j1_random_places_are_within_and_repeat(void **state)
{
	struct latency latency = { 0 };
	struct args a = args(1000, 16, 7), b = args(1000, 3, 8), c = args(1000, 3, 8);
	bool differ = false;

	a.o.random = b.o.random = c.o.random = true;
	a.o.seed = b.o.seed = 99;
	c.o.seed = 100;
	a.o.latency = &latency;
	assert_int_equal(run(&a) | run(&b) | run(&c), 0);
	assert_int_equal(a.book.seen, 1000);
	for (unsigned i = 0; i < a.book.seen; i++) {
		assert_true(a.book.off[i] % 4096 == 0 && a.book.off[i] < DISK);
		assert_int_equal(a.book.off[i], b.book.off[i]);
		differ |= a.book.off[i] != c.book.off[i];
	}
	assert_true(differ);
	assert_int_equal(latency.total, 1000);
}

static void j2_a_drained_flush_is_alone(void **state)
{
	for (uint64_t seed = 0; seed < 100; seed++) {
		struct args a = args(10 + seed, 4, seed);

		a.o.writes = true;
		a.o.flush_interval = 4 + seed % 5;
		assert_int_equal(run(&a), 0);
		assert_false(a.book.overlaps_flush);
		/* Whenever a multiple of the interval is left, but for the end. */
		assert_int_equal(a.book.flushes, (a.o.count - 1) / a.o.flush_interval);
		for (unsigned i = 0; i < a.book.flushes; i++)
			assert_int_equal((a.o.count - a.book.flush_at[i]) % a.o.flush_interval, 0);
	}
}

static void without_drain_writes_go_on_during_a_flush(void **state)
{
	bool has_overlapped = false;

	for (uint64_t seed = 0; seed < 100; seed++) {
		struct args a = args(40 + seed, 4, seed);

		a.o.writes = true;
		a.o.drain = false;
		a.o.flush_interval = 4 + seed % 5;
		assert_int_equal(run(&a), 0);
		has_overlapped |= a.book.overlaps_flush;
		assert_int_equal(a.book.flushes, div_round_up(a.o.count, a.o.flush_interval));
		assert_int_equal(a.book.seen, a.o.count);
		assert_true(a.book.most_under_way <= 4);
	}
	assert_true(has_overlapped);            /* the switch of j2: drain is what prevents it */
}

static void the_first_error_ends_it(void **state)
{
	struct args a = args(100, 8, 3);

	a.book.fail_at = 20;
	assert_int_equal(run(&a), -ENODEV);
	assert_true(a.book.seen >= 21 && a.book.seen < 100);
	a = args(100, 8, 3);
	a.o.off = DISK - 100;                   /* not within the disk */
	assert_int_equal(run(&a), -EIO);
	assert_int_equal(a.book.seen, 0);
	a = args(3, 2, 3);
	a.o.off = DISK - 4096;                  /* the second wraps to a place that fits */
	assert_int_equal(run(&a), 0);
	assert_int_equal(a.book.off[1], 0);
	a = args(100, 8, 3);
	a.o.step = 3000;                        /* does not fit at the end */
	a.o.off = DISK - 8192;
	assert_int_equal(run(&a), -EIO);
	assert_int_equal(a.book.seen, 2);
}

static void too_much_memory_is_an_error(void **state)
{
	struct args a = args(1ULL << 31, 1ULL << 31, 1);

	assert_int_equal(run(&a), -ENOMEM);
	a = args(UINT64_MAX, UINT64_MAX, 1);
	assert_int_equal(run(&a), -ENOMEM);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(j1_count_depth_and_offsets_are_kept),
		cmocka_unit_test(j1_random_places_are_within_and_repeat),
		cmocka_unit_test(j2_a_drained_flush_is_alone),
		cmocka_unit_test(without_drain_writes_go_on_during_a_flush),
		cmocka_unit_test(the_first_error_ends_it),
		cmocka_unit_test(too_much_memory_is_an_error),
	};

	return cmocka_run_group_tests_name("job_bench", tests, NULL, NULL);
}
