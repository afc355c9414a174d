/* SPDX-License-Identifier: MIT */
#include "blk/port.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/epoch.h"

/* One writer, the chan's loop; any thread reads. */
static void stat_add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static uint64_t stat_read(const uint64_t *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

int port_new(struct node *n, bool read_only, struct port **ret, struct err *err)
{
	struct port *p;

	if (!read_only && n->read_only)
		return err_set(err, EROFS, "'%s' is read-only", n->name);
	p = calloc(1, sizeof(*p));
	if (!p)
		return err_set_errno(err, ENOMEM, "'%s'", n->name);
	p->node = n;
	p->read_only = read_only;
	*ret = p;
	return 0;
}

void port_free(struct port *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < LOOPS_MAX; i++)
		assert(!p->pcs[i]);
	free(p);
}

int port_open_wait(struct port *p, struct err *err)
{
	struct loop *l = loop_current();
	struct port_chan *pc;
	int rc;

	assert(!p->pcs[loop_id(l)]);
	pc = calloc(1, sizeof(*pc));
	if (!pc)
		return err_set_errno(err, ENOMEM, "'%s'", p->node->name);
	rc = chan_get_wait(p->node, &pc->ch, err);
	if (rc) {
		free(pc);
		return rc;
	}
	pc->port = p;
	pc->loop = l;
	pc->epochs = epoch_open();
	__atomic_store_n(&p->pcs[loop_id(l)], pc, __ATOMIC_RELEASE);
	return 0;
}

void port_close_wait(struct port *p)
{
	struct port_chan *pc = port_here(p);

	assert(!pc->closer);
	pc->closer = fiber_self();
	while (pc->in_flight)
		fiber_park();
	epoch_close_wait(pc->epochs);
	chan_put_wait(pc->ch);
	__atomic_store_n(&p->pcs[loop_id(pc->loop)], NULL, __ATOMIC_RELEASE);
	free(pc);
}

struct port_chan *port_here(const struct port *p)
{
	return p->pcs[loop_id(loop_current())];
}

uint64_t port_size(const struct port *p)
{
	return atomic_load_explicit(&p->node->size, memory_order_relaxed);
}

static bool is_write(uint8_t kind)
{
	return kind == REQ_WRITE || kind == REQ_ZERO || kind == REQ_DISCARD || kind == REQ_COPY;
}

/* The answer to a request that must not go down: > 0 if it may. */
static int refuse(const struct port *p, const struct req *req)
{
	if (req->kind >= REQ_KINDS)
		return -EINVAL;
	if (is_write(req->kind) && p->read_only)
		return -EPERM;
	if (req->kind == REQ_FLUSH)
		return p->read_only ? 0 : 1;
	if (!range_within(req->off, req->len, port_size(p)))
		return req->kind == REQ_WRITE || req->kind == REQ_COPY ? -ENOSPC : -EINVAL;
	if (!req->len)
		return req->kind == REQ_MAP ? -EINVAL : 0;
	if (req->kind == REQ_DISCARD && p->ignore_discard)
		return 0;
	return 1;
}

static void start(struct port_chan *pc, struct req *req)
{
	int res = refuse(pc->port, req);

	req->epoch = epoch_enter(pc->epochs);
	pc->in_flight++;
	stat_add(&pc->stats.in_flight, 1);
	if (res > 0)
		chan_submit(pc->ch, req);
	else
		req_finish(pc->ch, req, res);
}

void port_submit(struct port_chan *pc, struct req *req)
{
	loop_assert(pc->loop);
	assert(!pc->closer);            /* P3 */
	req->pc = pc;
	req->start_ns = loop_now(pc->loop);
	/* The drivers may change these (B3): what the statistics need is noted now. */
	req->asked_kind = req->kind;
	if (req->kind < REQ_KINDS && req->kind != REQ_FLUSH)
		stat_add(&pc->stats.bytes[req->kind], req->len);
	start(pc, req);
}

struct port_call {
	struct req req;
	struct fiber *fiber;
	bool is_done;
	int res;
};

static void call_done(struct req *req, int res)
{
	struct port_call *c = container_of(req, struct port_call, req);

	c->res = res;
	c->is_done = true;
	fiber_wake(c->fiber);
}

int port_submit_wait(struct port_chan *pc, const struct req *req)
{
	struct port_call c = { .req = *req, .fiber = fiber_self() };

	c.req.done = call_done;
	port_submit(pc, &c.req);
	while (!c.is_done)
		fiber_park();
	return c.res;
}

void port_req_end(struct req *req, int res)
{
	struct port_chan *pc = req->pc;

	assert(pc->in_flight > 0);
	pc->in_flight--;
	epoch_leave(pc->epochs, req->epoch);
	stat_add(&pc->stats.in_flight, (uint64_t)-1);
	if (req->asked_kind < REQ_KINDS)
		stat_add(&pc->stats.ops[req->asked_kind], 1);
	if (res)
		stat_add(&pc->stats.errors, 1);
	stat_add(&pc->stats.latency_ns, loop_now(pc->loop) - req->start_ns);
	if (pc->closer && !pc->in_flight)
		fiber_wake(pc->closer);
}

static void stats_sum(const struct port_stats *from, struct port_stats *to)
{
	for (unsigned k = 0; k < REQ_KINDS; k++) {
		to->ops[k] += stat_read(&from->ops[k]);
		to->bytes[k] += stat_read(&from->bytes[k]);
	}
	to->errors += stat_read(&from->errors);
	to->latency_ns += stat_read(&from->latency_ns);
	to->in_flight += stat_read(&from->in_flight);
}

void port_get_stats(const struct port *p, struct port_stats *ret)
{
	*ret = (struct port_stats){ 0 };
	for (unsigned i = 0; i < LOOPS_MAX; i++) {
		const struct port_chan *pc = __atomic_load_n(&p->pcs[i], __ATOMIC_ACQUIRE);

		if (pc)
			stats_sum(&pc->stats, ret);
	}
}
