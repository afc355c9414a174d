/* SPDX-License-Identifier: MIT */
#include "drv/fault/fault.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "blk/blk.h"
#include "drv/null/null.h"

struct ctx {
	struct loop *loop;
	const struct fault_rule *rules;
	unsigned nrules;
	struct node *node;
	struct chan *ch;
	void (*body)(struct ctx *c);
};

static int run_fiber(void *arg)
{
	struct ctx *c = arg;
	struct null_opts no = { .size = 1 << 20 };
	struct node *null;

	assert_int_equal(null_open_wait(&no, c->loop, &null, NULL), 0);
	assert_int_equal(fault_open_wait(null, c->rules, c->nrules, &c->node, NULL), 0);
	assert_int_equal(c->node->size, 1 << 20);
	assert_int_equal(chan_get_wait(c->node, &c->ch, NULL), 0);
	c->body(c);
	chan_put_wait(c->ch);
	node_put_wait(c->node);
	return 0;
}

static void run(const struct fault_rule *rules, unsigned n, void (*body)(struct ctx *c))
{
	struct loop_opts lo = { .backend = LOOP_SIM, .sim_seed = 1 };
	struct ctx c = { .rules = rules, .nrules = n, .body = body };

	assert_int_equal(loop_new(&lo, &c.loop, NULL), 0);
	assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
	loop_free(c.loop);
}

static int rd(struct ctx *c)
{
	char buf[16];

	return chan_read_wait(c->ch, 0, buf, sizeof(buf));
}

static int wr(struct ctx *c)
{
	char buf[16] = "";

	return chan_write_wait(c->ch, 0, buf, sizeof(buf));
}

static void kinds_body(struct ctx *c)
{
	assert_int_equal(rd(c), 0);
	assert_int_equal(wr(c), -EIO);
	assert_int_equal(wr(c), -EIO);
	assert_int_equal(chan_flush_wait(c->ch), -ENOSPC);
}

static void errors_by_kind(void **state)
{
	const struct fault_rule rules[] = {
		{ .kinds = FAULT_KIND(REQ_WRITE), .error = EIO },
		{ .kinds = FAULT_KIND(REQ_FLUSH) | FAULT_KIND(REQ_WRITE), .error = ENOSPC },
	};

	run(rules, 2, kinds_body);
}

static void nth_body(struct ctx *c)
{
	for (unsigned i = 1; i <= 12; i++) {
		assert_int_equal(rd(c), 0);
		assert_int_equal(wr(c), i % 3 ? i == 4 ? -ENOSPC : 0 : -EIO);
	}
}

static void every_nth_and_once(void **state)
{
	const struct fault_rule rules[] = {
		{ .kinds = FAULT_KIND(REQ_WRITE), .error = EIO, .nth = 3 },
		{ .kinds = FAULT_KIND(REQ_WRITE), .error = ENOSPC, .nth = 4, .once = true },
	};

	run(rules, 2, nth_body);
}

static void delay_body(struct ctx *c)
{
	uint64_t begin = loop_now(c->loop);

	assert_int_equal(rd(c), 0);
	assert_true(loop_now(c->loop) >= begin + 3 * NS_PER_MS);
	begin = loop_now(c->loop);
	assert_int_equal(wr(c), -EIO);
	assert_true(loop_now(c->loop) >= begin + NS_PER_MS);
	begin = loop_now(c->loop);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_true(loop_now(c->loop) < begin + NS_PER_MS);
}

static void delays(void **state)
{
	const struct fault_rule rules[] = {
		{ .kinds = FAULT_KIND(REQ_READ), .delay_ns = 3 * NS_PER_MS },
		{ .kinds = FAULT_KIND(REQ_WRITE), .error = EIO, .delay_ns = NS_PER_MS },
	};

	run(rules, 2, delay_body);
}

struct late {
	struct req req;
	unsigned *order, rank;
	unsigned *left;
	struct fiber *fiber;
};

static void late_done(struct req *req, int res)
{
	struct late *l = container_of(req, struct late, req);

	l->rank = (*l->order)++;
	if (!--*l->left)
		fiber_wake(l->fiber);
}

static void order_body(struct ctx *c)
{
	static const uint8_t kinds[] = { REQ_ZERO, REQ_FLUSH, REQ_ZERO, REQ_FLUSH, REQ_DISCARD };
	static const unsigned ranks[] = { 3, 1, 4, 2, 0 };
	struct late lates[5];
	unsigned left = 5, order = 0;

	for (unsigned i = 0; i < 5; i++) {
		lates[i] = (struct late){ .order = &order, .left = &left, .fiber = fiber_self(),
					  .req = { .done = late_done, .kind = kinds[i],
						   .len = 1 } };
		chan_submit(c->ch, &lates[i].req);
	}
	assert_int_equal(left, 5);      /* never inside chan_submit() */
	while (left)
		fiber_park();
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(lates[i].rank, ranks[i]);
}

static void b4_delays_of_different_length_end_in_order(void **state)
{
	const struct fault_rule rules[] = {
		{ .kinds = FAULT_KIND(REQ_ZERO), .delay_ns = 3 * NS_PER_MS },
		{ .kinds = FAULT_KIND(REQ_FLUSH), .error = EIO, .delay_ns = NS_PER_MS },
	};

	run(rules, 2, order_body);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(errors_by_kind),
		cmocka_unit_test(every_nth_and_once),
		cmocka_unit_test(delays),
		cmocka_unit_test(b4_delays_of_different_length_end_in_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
