/* SPDX-License-Identifier: MIT */
#include "drv/null/null.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "blk/blk.h"

struct ctx {
	struct loop *loop;
	struct null_opts opts;
	struct node *node;
	struct chan *ch;
	int (*body)(struct ctx *c);
};

static int run_fiber(void *arg)
{
	struct ctx *c = arg;

	assert_int_equal(null_open_wait(&c->opts, c->loop, &c->node, NULL), 0);
	assert_int_equal(chan_get_wait(c->node, &c->ch, NULL), 0);
	c->body(c);
	chan_put_wait(c->ch);
	node_put_wait(c->node);
	return 0;
}

static void run(struct null_opts opts, int (*body)(struct ctx *c))
{
	struct loop_opts lo = { .backend = LOOP_SIM, .sim_seed = 1 };
	struct ctx c = { .opts = opts, .body = body };

	assert_int_equal(loop_new(&lo, &c.loop, NULL), 0);
	assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
	loop_free(c.loop);
}

static int zeros_body(struct ctx *c)
{
	char buf[4096];
	struct req req = { .kind = REQ_MAP, .off = 100, .len = 1000 };

	memset(buf, 'x', sizeof(buf));
	assert_int_equal(c->node->size, 1 << 20);
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(chan_read_wait(c->ch, 0, buf, sizeof(buf)), 0);
	for (unsigned i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 0);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	assert_int_equal(req.map.len, 1000);
	assert_int_equal(req.map.flags, MAP_ZERO);
	return 0;
}

static void reads_zeros_and_forgets_writes(void **state)
{
	run((struct null_opts){ .size = 1 << 20 }, zeros_body);
}

static int read_only_body(struct ctx *c)
{
	char buf[512] = "";

	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), -EROFS);
	assert_int_equal(chan_read_wait(c->ch, 0, buf, sizeof(buf)), 0);
	return 0;
}

static void read_only_refuses_writes(void **state)
{
	run((struct null_opts){ .size = 1 << 20, .read_only = true }, read_only_body);
}

struct late {
	struct req req;
	struct iovec iov;
	char buf[512];
	uint64_t done_ns;
	unsigned *left;
	struct fiber *fiber;
};

static void late_done(struct req *req, int res)
{
	struct late *l = container_of(req, struct late, req);

	assert_int_equal(res, 0);
	l->done_ns = loop_now(loop_current());
	if (!--*l->left)
		fiber_wake(l->fiber);
}

static int latency_body(struct ctx *c)
{
	struct late lates[8];
	unsigned left = ARRAY_SIZE(lates);
	uint64_t begin[ARRAY_SIZE(lates)];

	for (unsigned i = 0; i < ARRAY_SIZE(lates); i++) {
		struct late *l = &lates[i];

		*l = (struct late){ .left = &left, .fiber = fiber_self() };
		l->iov = (struct iovec){ l->buf, sizeof(l->buf) };
		l->req = (struct req){ .done = late_done, .kind = REQ_READ, .len = sizeof(l->buf),
				       .iov = &l->iov, .iovcnt = 1 };
		begin[i] = loop_now(c->loop);
		chan_submit(c->ch, &l->req);
		fiber_sleep_wait(NS_PER_MS);
	}
	while (left)
		fiber_park();
	for (unsigned i = 0; i < ARRAY_SIZE(lates); i++) {
		assert_true(lates[i].done_ns >= begin[i] + c->opts.latency_ns);
		assert_true(lates[i].done_ns < begin[i] + c->opts.latency_ns + NS_PER_MS);
	}
	return 0;
}

static void latency_is_the_same_for_all(void **state)
{
	run((struct null_opts){ .size = 1 << 20, .latency_ns = 5 * NS_PER_MS }, latency_body);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_zeros_and_forgets_writes),
		cmocka_unit_test(read_only_refuses_writes),
		cmocka_unit_test(latency_is_the_same_for_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
