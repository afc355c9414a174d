/* SPDX-License-Identifier: MIT */
/* drv/throttle/throttle.c - token buckets that all loops share.
 *
 * A bucket is one number: the time from which on it has tokens, `next_ns`. Taking n tokens moves it
 * by n / rate and gives the time at which they may be used, which may lie in the future: that is a
 * booking, and whoever made it sleeps until then. It never lies further back than the burst allows.
 *
 * A chan books for the head of a queue only, and what it books is at least a batch of BATCH_NS.
 * What it does not need stays with it as credit: most requests touch no shared memory. Reads and
 * writes are two queues, so that a limit of one does not hold up the other. ZERO and DISCARD are a
 * write of no bytes; FLUSH and MAP pass.
 *
 * Invariants:
 *	T1  in any time t no more passes than burst + rate * t, and one request and one batch a
 *	    loop;
 *	T2  requests of one chan and direction go on in the order of their arrival;
 *	T3  bookings are served in the order in which they were made, of whatever loop: a loop with
 *	    many requests has one batch booked, as one with few has. */
#include "drv/throttle/throttle.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"

#define BATCH_NS NS_PER_MS

enum { BURST_PARTS = 10 };              /* of a second: the default burst */

struct bucket {
	uint64_t rate;                  /* const; 0: no limit */
	uint64_t burst_ns;              /* const */
	uint64_t batch;                 /* const; tokens */
	/* Any loop; relaxed: nothing else depends on it. */
	_Atomic uint64_t next_ns;
};

struct throttle_node {
	struct node node;
	struct bucket buckets[THROTTLE_BUCKETS];
};

struct lane {
	struct req *head, **tail;
	uint64_t ready_ns;              /* when the head may go */
};

enum { LANE_READ, LANE_WRITE, LANES };

struct throttle_chan {
	struct chan chan;
	struct timer timer;
	struct lane lanes[LANES];
	uint64_t credit[THROTTLE_BUCKETS];      /* tokens that are booked and not used */
};

static struct throttle_chan *throttle_chan(struct chan *ch)
{
	return container_of(ch, struct throttle_chan, chan);
}

/* The time that @tokens take. */
static uint64_t cost_ns(const struct bucket *b, uint64_t tokens)
{
	unsigned __int128 ns = (unsigned __int128)tokens * NS_PER_SEC + b->rate - 1;

	ns /= b->rate;
	return ns > INT64_MAX ? INT64_MAX : (uint64_t)ns;
}

/* Books @tokens; returns from when on they may be used. */
static uint64_t book(struct bucket *b, uint64_t tokens, uint64_t now)
{
	uint64_t earliest = now > b->burst_ns ? now - b->burst_ns : 0;
	uint64_t cost = cost_ns(b, tokens);
	uint64_t next = atomic_load_explicit(&b->next_ns, memory_order_relaxed);
	uint64_t start, then;

	do {
		start = MAX(next, earliest);
		then = start > UINT64_MAX - cost ? UINT64_MAX : start + cost;
	} while (!atomic_compare_exchange_weak_explicit(&b->next_ns, &next, then,
							memory_order_relaxed,
							memory_order_relaxed));
	return start;
}

/* Takes @tokens of bucket @i; returns from when on they may be used, 0 for at once. */
static uint64_t take(struct throttle_chan *tc, enum throttle_bucket i, uint64_t tokens,
		     uint64_t now)
{
	struct throttle_node *tn = container_of(tc->chan.node, struct throttle_node, node);
	struct bucket *b = &tn->buckets[i];
	uint64_t *credit = &tc->credit[i];
	uint64_t booked, start;

	if (!b->rate)
		return 0;
	if (*credit >= tokens) {
		*credit -= tokens;
		return 0;
	}
	booked = MAX(tokens - *credit, b->batch);
	start = book(b, booked, now);
	*credit += booked - tokens;
	return start;
}

/* Takes all that @req needs; returns from when on it may go. */
static uint64_t take_all(struct throttle_chan *tc, const struct req *req, uint64_t now)
{
	bool is_read = req->kind == REQ_READ;
	uint64_t bytes = is_read || req->kind == REQ_WRITE ? req->len : 0;
	uint64_t ready = 0, at;

	at = take(tc, THROTTLE_BYTES_TOTAL, bytes, now);
	ready = MAX(ready, at);
	at = take(tc, is_read ? THROTTLE_BYTES_READ : THROTTLE_BYTES_WRITE, bytes, now);
	ready = MAX(ready, at);
	at = take(tc, THROTTLE_OPS_TOTAL, 1, now);
	ready = MAX(ready, at);
	at = take(tc, is_read ? THROTTLE_OPS_READ : THROTTLE_OPS_WRITE, 1, now);
	return MAX(ready, at);
}

static void set_timer(struct throttle_chan *tc)
{
	uint64_t when = UINT64_MAX;

	for (unsigned i = 0; i < LANES; i++)
		if (tc->lanes[i].head)
			when = MIN(when, tc->lanes[i].ready_ns);
	if (when != UINT64_MAX)
		timer_set(tc->chan.loop, &tc->timer, when);
}

/* Sends what may go. */
static void run_lane(struct throttle_chan *tc, struct lane *lane, uint64_t now)
{
	struct req *req;

	while ((req = lane->head) && lane->ready_ns <= now) {
		lane->head = req->next;
		if (lane->head)
			lane->ready_ns = take_all(tc, lane->head, now);
		else
			lane->tail = &lane->head;
		chan_submit(tc->chan.child[CHILD_FILE], req);
	}
}

static void timer_fn(struct timer *t)
{
	struct throttle_chan *tc = container_of(t, struct throttle_chan, timer);
	uint64_t now = loop_now(tc->chan.loop);

	for (unsigned i = 0; i < LANES; i++)
		run_lane(tc, &tc->lanes[i], now);
	set_timer(tc);
}

static void throttle_submit(struct chan *ch, struct req *req)
{
	struct throttle_chan *tc = throttle_chan(ch);
	struct lane *lane = &tc->lanes[req->kind == REQ_READ ? LANE_READ : LANE_WRITE];

	if (req->kind == REQ_FLUSH || req->kind == REQ_MAP) {
		chan_submit(ch->child[CHILD_FILE], req);
		return;
	}
	if (!lane->head) {
		uint64_t now = loop_now(ch->loop);

		lane->ready_ns = take_all(tc, req, now);
		if (lane->ready_ns <= now) {
			chan_submit(ch->child[CHILD_FILE], req);
			return;
		}
	}
	req->next = NULL;
	*lane->tail = req;
	lane->tail = &req->next;
	if (lane->head == req)
		set_timer(tc);
}

static int throttle_chan_open_wait(struct chan *ch, struct err *err)
{
	struct throttle_chan *tc = throttle_chan(ch);

	tc->timer.fn = timer_fn;
	for (unsigned i = 0; i < LANES; i++)
		tc->lanes[i].tail = &tc->lanes[i].head;
	return 0;
}

static int throttle_resize_wait(struct node *n, struct err *err)
{
	struct node *child = n->child[CHILD_FILE];
	int rc = child->ops->resize_wait ? child->ops->resize_wait(child, err) : 0;

	if (!rc)
		atomic_store(&n->size, atomic_load(&child->size));
	return rc;
}

static int throttle_truncate_wait(struct node *n, uint64_t size)
{
	int rc = node_truncate_wait(n->child[CHILD_FILE], size);

	if (!rc)
		atomic_store(&n->size, size);
	return rc;
}

static int throttle_grow_wait(struct node *n, uint64_t size, bool is_dense)
{
	int rc = node_grow_wait(n->child[CHILD_FILE], size, is_dense);

	if (!rc)
		atomic_store(&n->size, size);
	return rc;
}

static void throttle_free(struct node *n)
{
	free(container_of(n, struct throttle_node, node));
}

static const struct node_ops throttle_ops = {
	.name = "throttle",
	.chan_size = sizeof(struct throttle_chan),
	.chan_open_wait = throttle_chan_open_wait,
	.submit = throttle_submit,
	.free = throttle_free,
	.resize_wait = throttle_resize_wait,
	.truncate_wait = throttle_truncate_wait,
	.grow_wait = throttle_grow_wait,
};

static void bucket_init(struct bucket *b, const struct throttle_limit *l)
{
	b->rate = l->rate;
	if (!l->rate)
		return;
	b->burst_ns = l->burst ? cost_ns(b, l->burst) : NS_PER_SEC / BURST_PARTS;
	b->batch = l->rate / (NS_PER_SEC / BATCH_NS);
}

int throttle_open_wait(struct node *child, const struct throttle_opts *opts, struct node **ret,
		       struct err *err)
{
	struct throttle_node *tn = calloc(1, sizeof(*tn));
	int rc;

	if (!tn || node_init(&tn->node, &throttle_ops, child->name, child->home) < 0) {
		free(tn);
		return err_set_errno(err, ENOMEM, "'%s'", child->name);
	}
	for (unsigned i = 0; i < THROTTLE_BUCKETS; i++)
		bucket_init(&tn->buckets[i], &opts->limits[i]);
	tn->node.align = child->align;
	tn->node.read_only = child->read_only;
	tn->node.can_discard = child->can_discard;
	tn->node.zero_is_fast = child->zero_is_fast;
	tn->node.holes_read_zero = child->holes_read_zero;
	atomic_store(&tn->node.size, atomic_load(&child->size));
	tn->node.child[CHILD_FILE] = node_get(child);
	rc = node_open_home_wait(&tn->node, err);
	if (rc) {
		node_put_wait(&tn->node);
		return rc;
	}
	node_put_wait(child);           /* the caller's reference; ours stays */
	*ret = &tn->node;
	return 0;
}
