/* SPDX-License-Identifier: MIT */
/* drv/fault/fault.c - errors and delays on demand.
 *
 * Counters belong to the chan; only what a rule may do once is shared. Delayed requests are a list
 * sorted by time, with one timer a chan; equal times keep their order. */
#include "drv/fault/fault.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"

struct fault_node {
	struct node node;
	unsigned nrules;
	struct fault_rule rules[FAULT_RULES_MAX];
	atomic_bool has_struck[FAULT_RULES_MAX];        /* of rules with `once` */
};

struct fault_chan {
	struct chan chan;
	uint64_t counts[FAULT_RULES_MAX];
	struct timer timer;
	struct req *delayed;            /* priv[0]: until when; priv[1]: the error after it */
};

static struct fault_chan *fault_chan(struct chan *ch)
{
	return container_of(ch, struct fault_chan, chan);
}

static bool strikes(struct fault_node *fn, unsigned i, uint64_t count)
{
	const struct fault_rule *r = &fn->rules[i];

	if (r->nth > 1 && count % r->nth)
		return false;
	return !r->once || !atomic_exchange(&fn->has_struck[i], true);
}

/* Counts @req and returns the rule that it meets, or NULL. */
static const struct fault_rule *rule_for(struct fault_chan *fc, const struct req *req)
{
	struct fault_node *fn = container_of(fc->chan.node, struct fault_node, node);
	const struct fault_rule *found = NULL;

	for (unsigned i = 0; i < fn->nrules; i++) {
		if (!(fn->rules[i].kinds & FAULT_KIND(req->kind)))
			continue;
		fc->counts[i]++;
		if (!found && strikes(fn, i, fc->counts[i]))
			found = &fn->rules[i];
	}
	return found;
}

static void go_on(struct fault_chan *fc, struct req *req, int error)
{
	if (error)
		req_finish(&fc->chan, req, -error);
	else
		chan_submit(fc->chan.child[CHILD_FILE], req);
}

static void timer_fn(struct timer *t)
{
	struct fault_chan *fc = container_of(t, struct fault_chan, timer);
	struct req *req;

	while ((req = fc->delayed) && req->priv[0] <= loop_now(fc->chan.loop)) {
		fc->delayed = req->next;
		go_on(fc, req, (int)req->priv[1]);
	}
	if (fc->delayed)
		timer_set(fc->chan.loop, t, fc->delayed->priv[0]);
}

static void delay(struct fault_chan *fc, struct req *req, const struct fault_rule *r)
{
	struct req **at = &fc->delayed;

	req->priv[0] = loop_now(fc->chan.loop) + r->delay_ns;
	req->priv[1] = (uint64_t)r->error;
	while (*at && (*at)->priv[0] <= req->priv[0])
		at = &(*at)->next;
	req->next = *at;
	*at = req;
	timer_set(fc->chan.loop, &fc->timer, fc->delayed->priv[0]);
}

static void fault_submit(struct chan *ch, struct req *req)
{
	struct fault_chan *fc = fault_chan(ch);
	const struct fault_rule *r = rule_for(fc, req);

	if (r && r->delay_ns)
		delay(fc, req, r);
	else
		go_on(fc, req, r ? r->error : 0);
}

static int fault_chan_open_wait(struct chan *ch, struct err *err)
{
	fault_chan(ch)->timer.fn = timer_fn;
	return 0;
}

static int fault_resize_wait(struct node *n, struct err *err)
{
	struct node *child = n->child[CHILD_FILE];
	int rc = child->ops->resize_wait ? child->ops->resize_wait(child, err) : 0;

	if (!rc)
		atomic_store(&n->size, atomic_load(&child->size));
	return rc;
}

static int fault_truncate_wait(struct node *n, uint64_t size)
{
	int rc = node_truncate_wait(n->child[CHILD_FILE], size);

	if (!rc)
		atomic_store(&n->size, size);
	return rc;
}

static int fault_grow_wait(struct node *n, uint64_t size, bool is_dense)
{
	int rc = node_grow_wait(n->child[CHILD_FILE], size, is_dense);

	if (!rc)
		atomic_store(&n->size, size);
	return rc;
}

static void fault_free(struct node *n)
{
	free(container_of(n, struct fault_node, node));
}

static const struct node_ops fault_ops = {
	.name = "fault",
	.chan_size = sizeof(struct fault_chan),
	.chan_open_wait = fault_chan_open_wait,
	.submit = fault_submit,
	.free = fault_free,
	.resize_wait = fault_resize_wait,
	.truncate_wait = fault_truncate_wait,
	.grow_wait = fault_grow_wait,
};

int fault_open_wait(struct node *child, const struct fault_rule *rules, unsigned n,
		    struct node **ret, struct err *err)
{
	struct fault_node *fn;
	int rc;

	if (n > FAULT_RULES_MAX)
		return err_set(err, EINVAL, "more than %d fault rules", FAULT_RULES_MAX);
	fn = calloc(1, sizeof(*fn));
	if (!fn || node_init(&fn->node, &fault_ops, child->name, child->home) < 0) {
		free(fn);
		return err_set_errno(err, ENOMEM, "'%s'", child->name);
	}
	memcpy(fn->rules, rules, n * sizeof(*rules));
	fn->nrules = n;
	fn->node.align = child->align;
	fn->node.read_only = child->read_only;
	fn->node.can_discard = child->can_discard;
	fn->node.zero_is_fast = child->zero_is_fast;
	fn->node.holes_read_zero = child->holes_read_zero;
	atomic_store(&fn->node.size, atomic_load(&child->size));
	fn->node.child[CHILD_FILE] = node_get(child);
	rc = node_open_home_wait(&fn->node, err);
	if (rc) {
		node_put_wait(&fn->node);
		return rc;
	}
	node_put_wait(child);           /* the caller's reference; ours stays */
	*ret = &fn->node;
	return 0;
}
