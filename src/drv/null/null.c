/* SPDX-License-Identifier: MIT */
/* drv/null/null.c - reads give zeros, the rest does nothing.
 *
 * All requests take equally long, so those that wait are a queue in the order of their arrival, and
 * one timer a chan answers its head. */
#include "drv/null/null.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"

struct null_node {
	struct node node;
	uint64_t latency_ns;
};

struct null_chan {
	struct chan chan;
	uint64_t latency_ns;
	struct timer timer;
	struct req *head, **tail;       /* priv[0]: when it is done */
};

static struct null_chan *null_chan(struct chan *ch)
{
	return container_of(ch, struct null_chan, chan);
}

static void timer_fn(struct timer *t)
{
	struct null_chan *nc = container_of(t, struct null_chan, timer);
	uint64_t now = loop_now(nc->chan.loop);
	struct req *req = nc->head, *rest = req;

	while (rest && rest->priv[0] <= now)
		rest = rest->next;
	/* Those before @rest are answered below; what their owners submit comes behind it. */
	nc->head = rest;
	if (rest)
		timer_set(nc->chan.loop, t, rest->priv[0]);
	else
		nc->tail = &nc->head;
	while (req != rest) {
		struct req *next = req->next;

		req_complete(req, 0);
		req = next;
	}
}

static void null_submit(struct chan *ch, struct req *req)
{
	struct null_chan *nc = null_chan(ch);

	if (req->kind == REQ_READ) {
		req_zero_part(req, 0, req->len);
	} else if (req->kind == REQ_MAP) {
		req->map = (struct map_run){ .len = req->len, .flags = MAP_ZERO };
	} else if (ch->node->read_only && req->kind != REQ_FLUSH) {
		req_finish(ch, req, -EROFS);
		return;
	}
	if (!nc->latency_ns || req->kind == REQ_MAP) {
		req_finish(ch, req, 0);
		return;
	}
	req->priv[0] = loop_now(ch->loop) + nc->latency_ns;
	req->next = NULL;
	if (!nc->head)
		timer_set(ch->loop, &nc->timer, req->priv[0]);
	*nc->tail = req;
	nc->tail = &req->next;
}

static int null_chan_open_wait(struct chan *ch, struct err *err)
{
	struct null_chan *nc = null_chan(ch);

	nc->latency_ns = container_of(ch->node, struct null_node, node)->latency_ns;
	nc->timer.fn = timer_fn;
	nc->tail = &nc->head;
	return 0;
}

static void null_free(struct node *n)
{
	free(container_of(n, struct null_node, node));
}

static const struct node_ops null_ops = {
	.name = "null",
	.chan_size = sizeof(struct null_chan),
	.chan_open_wait = null_chan_open_wait,
	.submit = null_submit,
	.free = null_free,
};

int null_open_wait(const struct null_opts *opts, struct loop *home, struct node **ret,
		   struct err *err)
{
	struct null_node *nn = calloc(1, sizeof(*nn));
	int rc;

	if (!nn || node_init(&nn->node, &null_ops, "null", home) < 0) {
		free(nn);
		return err_set_errno(err, ENOMEM, "null disk");
	}
	nn->latency_ns = opts->latency_ns;
	nn->node.read_only = opts->read_only;
	nn->node.can_discard = !opts->read_only;
	nn->node.zero_is_fast = !opts->read_only;
	atomic_store(&nn->node.size, opts->size);
	rc = node_open_home_wait(&nn->node, err);
	if (rc) {
		node_put_wait(&nn->node);
		return rc;
	}
	*ret = &nn->node;
	return 0;
}
