/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/err.h"
#include "base/prng.h"
#include "blk/blk.h"
#include "blk/port.h"

/* ---- a node that answers when the test says so ---- */

struct dev {
	struct node node;
	struct req *held;               /* what was submitted, newest first */
	unsigned nheld;
	unsigned opens, closes, settles;
	int open_rc;                    /* what chan_open_wait() answers */
	uint64_t open_ns;               /* and after how long */
	bool answer_at_once;
	bool scribbles;                 /* over all that B3 gives to drivers */
	bool *is_freed;
};

struct dev_chan {
	struct chan ch;
};

static struct dev *dev_of(const struct chan *ch)
{
	return container_of(ch->node, struct dev, node);
}

static int dev_open_wait(struct chan *ch, struct err *err)
{
	fiber_yield_wait();             /* others get a turn in the middle */
	if (dev_of(ch)->open_ns)
		fiber_sleep_wait(dev_of(ch)->open_ns);
	dev_of(ch)->opens++;
	return dev_of(ch)->open_rc;
}

static void dev_close_wait(struct chan *ch)
{
	dev_of(ch)->closes++;
}

static void dev_submit(struct chan *ch, struct req *req)
{
	struct dev *d = dev_of(ch);

	if (d->scribbles) {
		req->kind = REQ_ZERO;
		req->flags = 0xff;
		req->off = req->len = req->iov_skip = UINT64_MAX;
		req->iov = NULL;
		memset(req->priv, 0xff, sizeof(req->priv));
	}
	if (d->answer_at_once) {
		req_finish(ch, req, 0);
		return;
	}
	req->ch = ch;
	req->next = d->held;
	d->held = req;
	d->nheld++;
}

static void dev_answer(struct dev *d, int res)
{
	struct req *req = d->held;

	d->held = req->next;
	d->nheld--;
	req_finish(req->ch, req, res);
}

static unsigned all_settles;            /* of devices that are gone, too */
static int settle_rc;
static struct node *only_fails;         /* who alone has settle_rc; NULL: all */

static int dev_settle_wait(struct node *n, struct err *err)
{
	container_of(n, struct dev, node)->settles++;
	all_settles++;
	return only_fails && only_fails != n ? 0 : settle_rc;
}

static void dev_free(struct node *n)
{
	struct dev *d = container_of(n, struct dev, node);

	*d->is_freed = true;
	free(d);
}

static const struct node_ops dev_ops = {
	.name = "dev", .chan_size = sizeof(struct dev_chan), .chan_open_wait = dev_open_wait,
	.chan_close_wait = dev_close_wait, .submit = dev_submit, .settle_wait = dev_settle_wait,
	.free = dev_free,
};

static bool dev_freed[2000];

static struct dev *dev_new(struct loop *home, uint64_t size, unsigned number)
{
	struct dev *d = calloc(1, sizeof(*d));

	assert_int_equal(node_init(&d->node, &dev_ops, "dev", home), 0);
	d->node.size = size;
	d->is_freed = &dev_freed[number];
	*d->is_freed = false;
	return d;
}

/* Each test is a fiber of a loop with simulated time. */
struct run {
	int (*fn)(void *arg);
	struct loop *loop;
};

static void run(int (*fn)(void *arg))
{
	struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = 5 };
	struct loop *l;

	assert_int_equal(loop_new(&o, &l, NULL), 0);
	assert_int_equal(loop_call(l, fn, l), 0);
	loop_free(l);
}

static void settle_turns(void)
{
	for (int i = 0; i < 5; i++)
		fiber_yield_wait();
}

/* ---- requests ---- */

struct note {
	struct req req;
	int res;
	unsigned calls;
};

static void noted(struct req *req, int res)
{
	struct note *n = container_of(req, struct note, req);

	n->res = res;
	n->calls++;
}

static int b4_body(void *arg)
{
	struct dev *d = dev_new(arg, 4096, 0);
	struct note n = { .req = { .done = noted, .kind = REQ_FLUSH } };
	struct chan *ch;

	d->answer_at_once = true;
	assert_int_equal(chan_get_wait(&d->node, &ch, NULL), 0);
	chan_submit(ch, &n.req);
	assert_int_equal(n.calls, 0);           /* not inside */
	settle_turns();
	assert_int_equal(n.calls, 1);           /* but soon, and once */
	assert_int_equal(n.res, 0);
	chan_put_wait(ch);
	node_put_wait(&d->node);
	return 0;
}

static void b4_done_never_runs_inside_submit(void **state)
{
	run(b4_body);
}

static void parts_and_cuts_agree_with_a_model(void **state)
{
	uint8_t flat[3000], copy[3000];
	struct prng p = { 9 };

	for (int round = 0; round < 3000; round++) {
		struct iovec iov[8], out[8];
		struct req req = { .kind = REQ_READ, .iov = iov, .iovcnt = 8 }, part;
		uint64_t at = 0, rel, len, got;
		unsigned n;

		for (unsigned i = 0; i < 8; i++) {
			uint64_t l = i == 7 ? sizeof(flat) - at : prng_below(&p, 300);

			iov[i] = (struct iovec){ flat + at, l };
			at += l;
		}
		memset(flat, 1, sizeof(flat));
		req.iov_skip = prng_below(&p, 1000);
		req.len = 1 + prng_below(&p, sizeof(flat) - req.iov_skip);
		rel = prng_below(&p, req.len);
		len = prng_below(&p, req.len - rel + 1);
		req_zero_part(&req, rel, len);
		for (uint64_t i = 0; i < sizeof(flat); i++)
			assert_int_equal(flat[i], !(i >= req.iov_skip + rel &&
						    i < req.iov_skip + rel + len));
		for (uint64_t i = 0; i < sizeof(flat); i++)
			flat[i] = (uint8_t)prng_next(&p);
		req_copy_from(&req, rel, copy, len);
		assert_memory_equal(copy, flat + req.iov_skip + rel, len);
		req_part(&req, rel, len, &part);
		assert_true(part.off == req.off + rel && part.len == len);
		n = req_iov_cut(&part, 0, len, out, 1 + (unsigned)prng_below(&p, 8), &got);
		assert_true(got <= len);
		at = req.iov_skip + rel;
		for (unsigned i = 0; i < n; at += out[i++].iov_len)
			assert_ptr_equal(out[i].iov_base, flat + at);
		assert_true(at == req.iov_skip + rel + got);
		if (req_flat(&part) && len)
			assert_ptr_equal(req_flat(&part), flat + part.iov_skip);
	}
}

/* ---- ports ---- */

struct port_try {
	uint8_t kind;
	uint64_t off, len;
	int res;                        /* 1: goes down */
};

static void try_all(struct port_chan *pc, struct dev *d, const struct port_try *tries, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct note note = { .req = { .done = noted, .kind = tries[i].kind,
					      .off = tries[i].off, .len = tries[i].len } };

		port_submit(pc, &note.req);
		assert_int_equal(note.calls, 0);
		assert_int_equal(d->nheld, tries[i].res > 0);
		if (d->nheld)
			dev_answer(d, 0);
		settle_turns();
		assert_int_equal(note.calls, 1);
		assert_int_equal(note.res, MIN(tries[i].res, 0));
	}
}

static int p2_body(void *arg)
{
	static const struct port_try rw[] = {
		{ REQ_READ, 0, 4096, 1 }, { REQ_READ, 4095, 1, 1 }, { REQ_READ, 4096, 1, -EINVAL },
		{ REQ_READ, UINT64_MAX, 2, -EINVAL }, { REQ_READ, 1, UINT64_MAX, -EINVAL },
		{ REQ_READ, 4096, 0, 0 }, { REQ_WRITE, 4095, 2, -ENOSPC }, { REQ_WRITE, 0, 1, 1 },
		{ REQ_ZERO, 0, 4097, -EINVAL }, { REQ_ZERO, 0, 4096, 1 }, { REQ_DISCARD, 0, 1, 1 },
		{ REQ_FLUSH, 99999, 99999, 1 }, { REQ_MAP, 0, 0, -EINVAL }, { REQ_MAP, 0, 9, 1 },
		{ REQ_COPY, 0, 4096, 1 }, { REQ_COPY, 4095, 2, -ENOSPC }, { REQ_COPY, 9, 0, 0 },
		{ REQ_KINDS, 0, 1, -EINVAL },
	};
	static const struct port_try ro[] = {
		{ REQ_READ, 0, 4096, 1 }, { REQ_WRITE, 0, 1, -EPERM }, { REQ_ZERO, 0, 1, -EPERM },
		{ REQ_DISCARD, 0, 1, -EPERM }, { REQ_FLUSH, 0, 0, 0 }, { REQ_MAP, 0, 9, 1 },
		{ REQ_COPY, 0, 1, -EPERM },
	};
	struct dev *d = dev_new(arg, 4096, 0);
	struct port_stats st;
	struct port *p;

	assert_int_equal(port_new(&d->node, false, &p, NULL), 0);
	assert_int_equal(port_open_wait(p, NULL), 0);
	try_all(port_here(p), d, rw, ARRAY_SIZE(rw));
	p->ignore_discard = true;
	try_all(port_here(p), d, &(struct port_try){ REQ_DISCARD, 0, 1, 0 }, 1);
	port_get_stats(p, &st);
	assert_int_equal(st.in_flight, 0);
	assert_int_equal(st.ops[REQ_READ], 6);
	assert_true(st.errors == 8);
	port_close_wait(p);
	port_free(p);

	assert_int_equal(port_new(&d->node, true, &p, NULL), 0);
	assert_int_equal(port_open_wait(p, NULL), 0);
	try_all(port_here(p), d, ro, ARRAY_SIZE(ro));
	port_close_wait(p);
	port_free(p);

	d->node.read_only = true;
	assert_int_equal(port_new(&d->node, false, &p, NULL), -EROFS);
	node_put_wait(&d->node);
	return 0;
}

static void p2_b1_only_what_is_in_range_and_allowed_goes_down(void **state)
{
	run(p2_body);
}

static void answer_later(struct timer *t);

struct later {
	struct timer timer;
	struct dev *d;
	struct note *notes;
	unsigned done_before;
};

static void answer_later(struct timer *t)
{
	struct later *la = container_of(t, struct later, timer);

	dev_answer(la->d, -EIO);
	dev_answer(la->d, 0);
}

/* What a filter has made of a request is not what the port was asked for. */
static int b3_body(void *arg)
{
	struct dev *d = dev_new(arg, 4096, 0);
	struct note n = { .req = { .done = noted, .kind = REQ_WRITE, .off = 512, .len = 1024 } };
	struct port_stats st;
	struct port *p;

	d->answer_at_once = d->scribbles = true;
	assert_int_equal(port_new(&d->node, false, &p, NULL), 0);
	assert_int_equal(port_open_wait(p, NULL), 0);
	port_submit(port_here(p), &n.req);
	settle_turns();
	assert_int_equal(n.calls, 1);
	port_get_stats(p, &st);
	assert_int_equal(st.in_flight, 0);
	assert_int_equal(st.ops[REQ_WRITE], 1);
	assert_int_equal(st.bytes[REQ_WRITE], 1024);
	assert_int_equal(st.ops[REQ_ZERO], 0);
	assert_int_equal(st.bytes[REQ_ZERO], 0);
	port_close_wait(p);
	port_free(p);
	node_put_wait(&d->node);
	return 0;
}

static void b3_what_drivers_change_is_not_counted(void **state)
{
	run(b3_body);
}

/* P1, P3: a close waits for what is below. */
static int p3_body(void *arg)
{
	struct dev *d = dev_new(arg, 4096, 0);
	struct note n[2];
	struct later la = { .timer.fn = answer_later, .d = d, .notes = n };
	struct port_chan *pc;
	struct port *p;

	assert_int_equal(port_new(&d->node, false, &p, NULL), 0);
	assert_int_equal(port_open_wait(p, NULL), 0);
	pc = port_here(p);
	for (unsigned i = 0; i < 2; i++) {
		n[i] = (struct note){ .req = { .done = noted, .kind = REQ_READ, .off = i,
					       .len = 1 } };
		port_submit(pc, &n[i].req);
	}
	assert_int_equal(pc->in_flight, 2);
	timer_set(arg, &la.timer, loop_now(arg) + 1000);
	port_close_wait(p);
	assert_int_equal(n[0].calls + n[1].calls, 2);   /* P1: done() has run, too */
	port_free(p);
	node_put_wait(&d->node);
	return 0;
}

static void p1_p3_a_close_waits_for_what_is_in_flight(void **state)
{
	run(p3_body);
}

/* ---- nodes and chans ---- */

static int chain_body(void *arg)
{
	enum { DEPTH = 1500 };
	struct dev *d[DEPTH];
	struct chan *ch, *again;

	for (unsigned i = 0; i < DEPTH; i++) {
		d[i] = dev_new(arg, 4096, i);
		if (i)
			d[i]->node.child[CHILD_BACKING] = &d[i - 1]->node;
	}
	/* Deeper than a fiber's stack would bear as recursion. */
	assert_int_equal(chan_get_wait(&d[DEPTH - 1]->node, &ch, NULL), 0);
	assert_int_equal(chan_get_wait(&d[DEPTH - 1]->node, &again, NULL), 0);
	assert_ptr_equal(ch, again);
	for (unsigned i = 0; i < DEPTH; i++)
		assert_int_equal(d[i]->opens, 1);
	chan_put_wait(again);
	assert_int_equal(d[0]->closes, 0);
	chan_put_wait(ch);
	for (unsigned i = 0; i < DEPTH; i++)
		assert_int_equal(d[i]->closes, 1);
	assert_int_equal(node_settle_wait(&d[DEPTH - 1]->node, NULL), 0);
	assert_int_equal(d[0]->settles, 1);
	node_put_wait(&d[DEPTH - 1]->node);
	for (unsigned i = 0; i < DEPTH; i++)
		assert_true(dev_freed[i]);
	return 0;
}

static void deep_chains_open_and_close_without_recursion(void **state)
{
	run(chain_body);
}

/* One above the other, as @which; @is_shared: somebody else has the lower one. How often they were
 * settled. With settle_rc, only the upper one fails with @is_alone. */
static unsigned close_two_wait(struct loop *l, enum node_child which, bool is_shared, bool is_alone)
{
	struct dev *bottom = dev_new(l, 4096, 0), *top = dev_new(l, 4096, 1);

	only_fails = is_alone ? &top->node : NULL;
	top->node.child[which] = is_shared ? node_get(&bottom->node) : &bottom->node;
	all_settles = 0;
	assert_int_equal(node_close_wait(&top->node, NULL), settle_rc);
	assert_true(dev_freed[1]);
	if (is_shared)
		node_put_wait(&bottom->node);
	assert_true(dev_freed[0]);
	return all_settles;
}

static int close_body(void *arg)
{
	assert_int_equal(close_two_wait(arg, CHILD_FILE, false, false), 2);
	/* Whoever else has it may have written since. */
	assert_int_equal(close_two_wait(arg, CHILD_FILE, true, false), 3);
	/* What failed is tried again, and so is what that writes to. */
	settle_rc = -EIO;
	assert_int_equal(close_two_wait(arg, CHILD_FILE, false, false), 4);
	assert_int_equal(close_two_wait(arg, CHILD_FILE, false, true), 4);
	assert_int_equal(close_two_wait(arg, CHILD_BACKING, false, true), 3);
	settle_rc = 0;
	assert_int_equal(node_close_wait(NULL, NULL), 0);
	return 0;
}

static void what_is_closed_settles_once(void **state)
{
	run(close_body);
}

static int failing_open_body(void *arg)
{
	struct dev *bottom = dev_new(arg, 4096, 0), *top = dev_new(arg, 4096, 1);
	struct chan *ch = NULL;

	top->node.child[CHILD_FILE] = &bottom->node;
	top->open_rc = -EIO;
	assert_int_equal(chan_get_wait(&top->node, &ch, NULL), -EIO);
	assert_null(ch);
	assert_int_equal(bottom->opens, bottom->closes);        /* nothing is left open */
	top->open_rc = 0;
	assert_int_equal(chan_get_wait(&top->node, &ch, NULL), 0);
	chan_put_wait(ch);
	node_put_wait(&top->node);
	assert_true(dev_freed[0] && dev_freed[1]);
	return 0;
}

static void a_failed_open_leaves_nothing_open(void **state)
{
	run(failing_open_body);
}

struct opener {
	struct task task;
	struct dev *d;
	struct chan *ch;
	unsigned *left;
	struct fiber *waiter;
};

static void open_it(struct task *t)
{
	struct opener *o = container_of(t, struct opener, task);

	assert_int_equal(chan_get_wait(&o->d->node, &o->ch, NULL), 0);
	if (!--*o->left)
		fiber_wake(o->waiter);
}

static int together_body(void *arg)
{
	struct dev *bottom = dev_new(arg, 4096, 0), *top = dev_new(arg, 4096, 1);
	struct opener o[5];
	unsigned left = 5;
	struct loop_stats st;
	uint64_t turns;

	bottom->open_ns = 1000 * 1000 * 1000;
	loop_get_stats(arg, &st);
	turns = st.turns;
	top->node.child[CHILD_FILE] = &bottom->node;
	for (unsigned i = 0; i < 5; i++) {
		o[i] = (struct opener){ .task.fn = open_it, .d = top, .left = &left,
					.waiter = fiber_self() };
		fiber_start(arg, &o[i].task);
	}
	while (left)
		fiber_park();
	loop_get_stats(arg, &st);
	assert_in_range(st.turns - turns, 0, 50);       /* nobody asks over and over */
	assert_int_equal(top->opens, 1);
	assert_int_equal(bottom->opens, 1);
	for (unsigned i = 0; i < 5; i++)
		chan_put_wait(o[i].ch);
	assert_int_equal(top->closes, 1);
	node_put_wait(&top->node);
	return 0;
}

static void fibers_that_open_together_share_one_chan(void **state)
{
	run(together_body);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(b4_done_never_runs_inside_submit),
		cmocka_unit_test(parts_and_cuts_agree_with_a_model),
		cmocka_unit_test(p2_b1_only_what_is_in_range_and_allowed_goes_down),
		cmocka_unit_test(b3_what_drivers_change_is_not_counted),
		cmocka_unit_test(p1_p3_a_close_waits_for_what_is_in_flight),
		cmocka_unit_test(what_is_closed_settles_once),
		cmocka_unit_test(deep_chains_open_and_close_without_recursion),
		cmocka_unit_test(a_failed_open_leaves_nothing_open),
		cmocka_unit_test(fibers_that_open_together_share_one_chan),
	};

	return cmocka_run_group_tests_name("blk", tests, NULL, NULL);
}
