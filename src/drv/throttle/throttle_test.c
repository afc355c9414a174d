/* SPDX-License-Identifier: MIT */
#include "drv/throttle/throttle.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"
#include "blk/blk.h"
#include "drv/null/null.h"
#include "loop/loop_thread.h"
#include "loop/work.h"

enum { REQS = 400, LEN_MAX = 64 << 10 };

struct timed {
	struct req req;
	struct iovec iov;
	struct ctx *c;
	uint64_t len, done_ns;
	unsigned rank;                  /* of its completion */
};

struct ctx {
	struct loop *loop;
	struct throttle_opts opts;
	struct node *node;
	struct chan *ch;
	void (*body)(struct ctx *c);
	struct timed *reqs;
	unsigned left, done;
	struct fiber *fiber;
	char *buf;
};

static int open_node(struct ctx *c)
{
	struct null_opts no = { .size = 1ULL << 40 };
	struct node *null;

	assert_int_equal(null_open_wait(&no, c->loop, &null, NULL), 0);
	assert_int_equal(throttle_open_wait(null, &c->opts, &c->node, NULL), 0);
	return 0;
}

static int run_fiber(void *arg)
{
	struct ctx *c = arg;

	open_node(c);
	assert_int_equal(chan_get_wait(c->node, &c->ch, NULL), 0);
	c->body(c);
	chan_put_wait(c->ch);
	node_put_wait(c->node);
	return 0;
}

static void run(struct throttle_opts opts, uint64_t seed, void (*body)(struct ctx *c))
{
	struct loop_opts lo = { .backend = LOOP_SIM, .sim_seed = seed };
	struct ctx c = { .opts = opts, .body = body, .buf = malloc(LEN_MAX),
			 .reqs = calloc(REQS, sizeof(*c.reqs)) };

	assert_int_equal(loop_new(&lo, &c.loop, NULL), 0);
	assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
	loop_free(c.loop);
	free(c.buf);
	free(c.reqs);
}

static void timed_done(struct req *req, int res)
{
	struct timed *t = container_of(req, struct timed, req);

	assert_int_equal(res, 0);
	t->done_ns = loop_now(t->c->loop);
	t->rank = t->c->done++;
	if (!--t->c->left)
		fiber_wake(t->c->fiber);
}

static void start(struct ctx *c, unsigned i, enum req_kind kind, uint64_t len)
{
	struct timed *t = &c->reqs[i];

	*t = (struct timed){ .c = c, .len = len };
	t->iov = (struct iovec){ c->buf, len };
	t->req = (struct req){ .done = timed_done, .kind = (uint8_t)kind, .len = len,
			       .iov = &t->iov, .iovcnt = 1 };
	c->left++;
	c->fiber = fiber_self();
	chan_submit(c->ch, &t->req);
}

static void wait_all(struct ctx *c)
{
	while (c->left)
		fiber_park();
}

/* T1 over every span between two completions, for a bucket that counts bytes or requests of
 * @only. */
static void check_rate(const struct ctx *c, unsigned n, const struct throttle_limit *l,
		       bool is_bytes, enum req_kind only)
{
	uint64_t most = l->burst + l->rate / 1000 + (is_bytes ? LEN_MAX : 1) + 1;
	const struct timed *by_rank[REQS];

	for (unsigned i = 0; i < n; i++)
		by_rank[c->reqs[i].rank] = &c->reqs[i];
	for (unsigned i = 0; i < n; i++) {
		uint64_t sum = 0;

		for (unsigned k = i; k < n; k++) {
			uint64_t span = by_rank[k]->done_ns - by_rank[i]->done_ns;

			if (only == REQ_KINDS || by_rank[k]->req.kind == only)
				sum += is_bytes ? by_rank[k]->len : 1;
			assert_true(sum <= most + l->rate * span / NS_PER_SEC);
		}
	}
}

static void check_order(const struct ctx *c, unsigned n, enum req_kind kind)
{
	unsigned last = 0;

	for (unsigned i = 0; i < n; i++) {
		if (c->reqs[i].req.kind != kind)
			continue;
		assert_true(c->reqs[i].rank >= last);
		last = c->reqs[i].rank;
	}
}

static void mixed_body(struct ctx *c)
{
	struct prng p = { 7 };

	for (unsigned i = 0; i < REQS; i++) {
		start(c, i, prng_below(&p, 2) ? REQ_READ : REQ_WRITE,
		      512 + prng_below(&p, LEN_MAX - 511));
		if (!prng_below(&p, 50))
			fiber_sleep_wait(prng_below(&p, 200 * NS_PER_MS));
	}
	wait_all(c);
	check_order(c, REQS, REQ_READ);
	check_order(c, REQS, REQ_WRITE);
	check_rate(c, REQS, &c->opts.limits[THROTTLE_BYTES_TOTAL], true, REQ_KINDS);
	check_rate(c, REQS, &c->opts.limits[THROTTLE_OPS_WRITE], false, REQ_WRITE);
}

static void t1_no_more_passes_than_the_limits_allow(void **state)
{
	struct throttle_opts o = { 0 };

	o.limits[THROTTLE_BYTES_TOTAL] = (struct throttle_limit){ 10 << 20, 1 << 20 };
	o.limits[THROTTLE_OPS_WRITE] = (struct throttle_limit){ 200, 20 };
	for (uint64_t seed = 1; seed <= 5; seed++)
		run(o, seed, mixed_body);
}

static void speed_body(struct ctx *c)
{
	uint64_t begin = loop_now(c->loop), took;

	for (unsigned i = 0; i < REQS; i++)
		start(c, i, REQ_READ, 4096);
	wait_all(c);
	took = loop_now(c->loop) - begin;
	/* 400 at 1000 a second, 100 of them at once. */
	assert_true(took >= 298 * NS_PER_MS && took <= 302 * NS_PER_MS);

	/* The burst comes back after idling. */
	fiber_sleep_wait(NS_PER_SEC);
	begin = loop_now(c->loop);
	for (unsigned i = 0; i < 100; i++)
		start(c, i, REQ_READ, 4096);
	wait_all(c);
	assert_true(loop_now(c->loop) - begin <= 2 * NS_PER_MS);
}

static void t1_the_rate_is_reached(void **state)
{
	struct throttle_opts o = { 0 };

	o.limits[THROTTLE_OPS_READ] = (struct throttle_limit){ 1000, 0 };
	run(o, 1, speed_body);
}

static void lanes_body(struct ctx *c)
{
	uint64_t begin = loop_now(c->loop);

	for (unsigned i = 0; i < 200; i++)
		start(c, i, i % 2 ? REQ_READ : REQ_WRITE, 512);
	start(c, 200, REQ_FLUSH, 0);
	wait_all(c);
	for (unsigned i = 0; i <= 200; i++)
		if (c->reqs[i].req.kind != REQ_WRITE)
			assert_true(c->reqs[i].done_ns == begin);
	assert_true(loop_now(c->loop) - begin > 800 * NS_PER_MS);
}

static void t2_reads_do_not_wait_behind_limited_writes(void **state)
{
	struct throttle_opts o = { 0 };

	o.limits[THROTTLE_OPS_WRITE] = (struct throttle_limit){ 100, 10 };
	run(o, 1, lanes_body);
}

/* ---- two loops ---- */

struct side {
	struct loop *loop;
	struct loop_thread thread;
	struct node *node;
	unsigned depth;
	uint64_t begin_ns, until_ns, passed, end_ns;
	pthread_t caller;
};

struct repeat {
	struct req req;
	struct iovec iov;
	char buf[512];
	struct side *side;
	struct chan *ch;
	unsigned *left;
	struct fiber *fiber;
};

static void repeat_done(struct req *req, int res)
{
	struct repeat *r = container_of(req, struct repeat, req);
	struct side *s = r->side;

	s->passed++;
	if (loop_now(s->loop) < s->until_ns) {
		r->req = (struct req){ .done = repeat_done, .kind = REQ_READ, .len = 512,
				       .iov = &r->iov, .iovcnt = 1 };
		chan_submit(r->ch, &r->req);
	} else if (!--*r->left) {
		fiber_wake(r->fiber);
	}
}

static int side_fiber(void *arg)
{
	struct side *s = arg;
	struct repeat *reqs = calloc(s->depth, sizeof(*reqs));
	unsigned left = s->depth;
	struct chan *ch;

	assert_int_equal(chan_get_wait(s->node, &ch, NULL), 0);
	s->begin_ns = loop_now(s->loop);
	s->until_ns = s->begin_ns + 400 * NS_PER_MS;
	for (unsigned i = 0; i < s->depth; i++) {
		struct repeat *r = &reqs[i];

		*r = (struct repeat){ .side = s, .ch = ch, .left = &left, .fiber = fiber_self() };
		r->iov = (struct iovec){ r->buf, 512 };
		r->req = (struct req){ .done = repeat_done, .kind = REQ_READ, .len = 512,
				       .iov = &r->iov, .iovcnt = 1 };
		chan_submit(ch, &r->req);
	}
	while (left)
		fiber_park();
	s->end_ns = loop_now(s->loop);
	chan_put_wait(ch);
	free(reqs);
	return 0;
}

static void *side_caller(void *arg)
{
	struct side *s = arg;

	loop_call(s->loop, side_fiber, s);
	return NULL;
}

static int open_fiber(void *arg)
{
	return open_node(arg);
}

static int close_fiber(void *arg)
{
	node_put_wait(((struct ctx *)arg)->node);
	return 0;
}

static void t3_loops_share_fairly(void **state)
{
	struct workers *ws;
	struct side sides[2] = { { .depth = 64 }, { .depth = 1 } };
	struct ctx c = { 0 };
	uint64_t all, span;

	c.opts.limits[THROTTLE_OPS_TOTAL] = (struct throttle_limit){ 1000, 1 };
	assert_int_equal(workers_new(2, &ws, NULL), 0);
	for (unsigned i = 0; i < 2; i++) {
		struct loop_opts lo = { .backend = LOOP_POSIX, .workers = ws };
		struct side *s = &sides[i];

		assert_int_equal(loop_new(&lo, &s->loop, NULL), 0);
		assert_int_equal(loop_thread_start(&s->thread, s->loop, "test", NULL), 0);
	}
	c.loop = sides[0].loop;
	assert_int_equal(loop_call(c.loop, open_fiber, &c), 0);
	for (unsigned i = 0; i < 2; i++) {
		sides[i].node = c.node;
		assert_int_equal(pthread_create(&sides[i].caller, NULL, side_caller, &sides[i]), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		pthread_join(sides[i].caller, NULL);
	loop_call(c.loop, close_fiber, &c);
	for (unsigned i = 0; i < 2; i++)
		loop_thread_stop(&sides[i].thread);
	workers_free(ws);

	all = sides[0].passed + sides[1].passed;
	/* They need not have run side by side, where there is little time for them. */
	span = MAX(sides[0].end_ns, sides[1].end_ns) - MIN(sides[0].begin_ns, sides[1].begin_ns);
	/* T1: burst, a request and a batch (of one) a loop; and clocks are read once a turn. */
	assert_true(all <= 1000 * (span + 20 * NS_PER_MS) / NS_PER_SEC + 1 + 2 * 2);
	assert_true(sides[1].passed * 5 > sides[0].passed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(t1_no_more_passes_than_the_limits_allow),
		cmocka_unit_test(t1_the_rate_is_reached),
		cmocka_unit_test(t2_reads_do_not_wait_behind_limited_writes),
		cmocka_unit_test(t3_loops_share_fairly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
