/* SPDX-License-Identifier: MIT */
/* blk/node.c - the life of nodes and chans: the control path. All of it runs in fibers.
 *
 * Backing chains may be thousands deep and a fiber's stack is small, so whatever follows
 * CHILD_BACKING is a loop; only the short way down to a file is recursive. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"
#include "loop/iobuf.h"

int node_init(struct node *n, const struct node_ops *ops, const char *name, struct loop *home)
{
	char *copy = strdup(name);

	if (!copy)
		return -ENOMEM;
	n->ops = ops;
	n->name = copy;
	n->home = home;
	n->align = 1;
	atomic_store(&n->refs, 1);
	return 0;
}

struct node *node_get(struct node *n)
{
	atomic_fetch_add_explicit(&n->refs, 1, memory_order_relaxed);
	return n;
}

int node_open_home_wait(struct node *n, struct err *err)
{
	loop_assert(n->home);
	return chan_get_wait(n, &n->home_chan, err);
}

/* The slot of @n on loop @l; other loops never touch it. */
static struct chan **chan_slot(struct node *n, const struct loop *l)
{
	return &n->chans[loop_id(l)];
}

static void chan_close_wait(struct chan *ch)
{
	*chan_slot(ch->node, ch->loop) = NULL;
	if (ch->ops->chan_close_wait)
		ch->ops->chan_close_wait(ch);
	free(ch);
}

void chan_put_wait(struct chan *ch)
{
	while (ch) {
		loop_assert(ch->loop);
		assert(ch->refs > 0);
		if (--ch->refs)
			return;

		struct chan *file = ch->child[CHILD_FILE];
		struct chan *data = ch->child[CHILD_DATA];
		struct chan *backing = ch->child[CHILD_BACKING];

		chan_close_wait(ch);
		chan_put_wait(file);
		chan_put_wait(data);
		ch = backing;
	}
}

/* Opens @n's chan on @l; those of its children are open. It starts without a reference. */
static int chan_open_wait(struct node *n, struct loop *l, struct err *err)
{
	struct chan **slot = chan_slot(n, l);
	struct chan *ch;
	int rc;

	assert(n->ops->chan_size >= sizeof(*ch));
	ch = calloc(1, n->ops->chan_size);
	if (!ch)
		return err_set_errno(err, ENOMEM, "'%s'", n->name);
	ch->node = n;
	ch->loop = l;
	ch->ops = n->ops;
	for (unsigned i = 0; i < CHILDREN; i++) {
		if (!n->child[i])
			continue;
		ch->child[i] = *chan_slot(n->child[i], l);
		ch->child[i]->refs++;
	}
	ch->is_opening = true;
	*slot = ch;
	rc = n->ops->chan_open_wait ? n->ops->chan_open_wait(ch, err) : 0;
	ch->is_opening = false;
	fiber_queue_wake(&ch->opened);
	if (!rc)
		return 0;
	*slot = NULL;
	for (unsigned i = 0; i < CHILDREN; i++)
		if (ch->child[i])
			chan_put_wait(ch->child[i]);
	free(ch);
	return rc;
}

static bool is_open(struct node *n, const struct loop *l)
{
	struct chan *ch = *chan_slot(n, l);

	return ch && !ch->is_opening;
}

/* The first node from @n down that is not open on @l though all of its children are. */
static struct node *next_to_open(struct node *n, const struct loop *l)
{
	for (;;) {
		struct node *below = NULL;

		for (unsigned i = 0; i < CHILDREN && !below; i++)
			if (n->child[i] && !is_open(n->child[i], l))
				below = n->child[i];
		if (!below)
			return n;
		n = below;
	}
}

/* Closes what an unfinished chan_get_wait() left without references below @n. */
static void close_unused_wait(struct node *n, const struct loop *l)
{
	for (; n; n = n->child[CHILD_BACKING]) {
		for (unsigned i = 0; i < CHILDREN; i++) {
			struct chan *ch = n->child[i] ? *chan_slot(n->child[i], l) : NULL;

			if (ch && !ch->refs && !ch->is_opening) {
				ch->refs = 1;
				chan_put_wait(ch);
			}
		}
	}
}

int chan_get_wait(struct node *n, struct chan **ret, struct err *err)
{
	struct loop *l = loop_current();
	int rc = 0;

	while (!rc && !is_open(n, l)) {
		struct node *next = next_to_open(n, l);
		struct chan *ch = *chan_slot(next, l);

		if (ch)                         /* another fiber is opening it */
			fiber_queue_wait(&ch->opened);
		else
			rc = chan_open_wait(next, l, err);
	}
	if (rc) {
		close_unused_wait(n, l);
		return rc;
	}
	*ret = *chan_slot(n, l);
	(*ret)->refs++;
	return 0;
}

int node_attach_wait(struct node *n, enum node_child which, struct node *child, struct err *err)
{
	struct chan *ch;
	int rc;

	loop_assert(n->home);
	assert(!n->child[which]);
	rc = chan_get_wait(child, &ch, err);
	if (rc)
		return rc;
	n->child[which] = child;
	if (n->home_chan)
		n->home_chan->child[which] = ch;
	else
		chan_put_wait(ch);
	return 0;
}

/* From the top down: what a node writes back goes through its children. */
int node_settle_wait(struct node *n, struct err *err)
{
	int first = 0;

	for (; n; n = n->child[CHILD_BACKING]) {
		/* Whose it is alone knows that nothing is written behind that. */
		bool is_alone = atomic_load_explicit(&n->refs, memory_order_acquire) == 1;
		int rc = n->ops->settle_wait ? n->ops->settle_wait(n, first ? NULL : err) : 0;

		n->is_settled = !rc && is_alone;
		if (rc && !first)
			first = rc;
		for (unsigned i = 0; i < CHILD_BACKING; i++) {
			rc = n->child[i] ? node_settle_wait(n->child[i], first ? NULL : err) : 0;
			if (rc && !first)
				first = rc;
		}
	}
	return first;
}

int node_truncate_wait(struct node *n, uint64_t size)
{
	loop_assert(n->home);
	assert(size < atomic_load(&n->size));
	return n->ops->truncate_wait ? n->ops->truncate_wait(n, size) : -ENOTSUP;
}

int node_grow_wait(struct node *n, uint64_t size, bool is_dense)
{
	loop_assert(n->home);
	if (atomic_load_explicit(&n->size, memory_order_relaxed) >= size)
		return 0;
	return n->ops->grow_wait ? n->ops->grow_wait(n, size, is_dense) : -ENOTSUP;
}

uint32_t node_share_align_wait(struct node *n, const struct node *from)
{
	return n->ops->share_align_wait ? n->ops->share_align_wait(n, from) : 0;
}

/* @is_closed: node_settle_wait() has just been done. What settles once more may write to its files,
 * but not to what backs it. */
static void drop_wait(struct node *n, bool is_closed)
{
	while (n && atomic_fetch_sub_explicit(&n->refs, 1, memory_order_acq_rel) == 1) {
		struct node *file = n->child[CHILD_FILE];
		struct node *data = n->child[CHILD_DATA];
		struct node *backing = n->child[CHILD_BACKING];
		bool is_settled = is_closed && n->is_settled;

		if (n->ops->settle_wait && !is_settled)
			n->ops->settle_wait(n, NULL);
		if (n->home_chan)
			chan_put_wait(n->home_chan);
		free(n->name);
		if (n->ops->free)
			n->ops->free(n);
		else
			free(n);
		drop_wait(file, is_settled);
		drop_wait(data, is_settled);
		n = backing;
	}
}

void node_put_wait(struct node *n)
{
	drop_wait(n, false);
}

int node_close_wait(struct node *n, struct err *err)
{
	int rc = node_settle_wait(n, err);

	drop_wait(n, true);
	return rc;
}

struct waiter {
	struct fiber *fiber;
	int res;
	bool is_done;
};

static void wait_done(struct req *req, int res)
{
	struct waiter *w = (struct waiter *)(uintptr_t)req->start_ns;

	w->res = res;
	w->is_done = true;
	fiber_wake(w->fiber);
}

int chan_submit_wait(struct chan *ch, struct req *req)
{
	struct waiter w = { .fiber = fiber_self() };

	loop_assert(ch->loop);
	req->done = wait_done;
	req->pc = NULL;
	req->start_ns = (uintptr_t)&w;  /* the port's field, and this request has no port */
	chan_submit(ch, req);
	while (!w.is_done)
		fiber_park();
	return w.res;
}

static int rw_wait(struct chan *ch, enum req_kind kind, uint64_t off, void *buf, uint64_t len)
{
	struct iovec iov = { buf, len };
	struct req req = { .kind = (uint8_t)kind, .off = off, .len = len, .iov = &iov,
			   .iovcnt = 1 };

	return chan_submit_wait(ch, &req);
}

int chan_read_wait(struct chan *ch, uint64_t off, void *buf, uint64_t len)
{
	return rw_wait(ch, REQ_READ, off, buf, len);
}

int chan_write_wait(struct chan *ch, uint64_t off, const void *buf, uint64_t len)
{
	return rw_wait(ch, REQ_WRITE, off, (void *)(uintptr_t)buf, len);
}

int chan_flush_wait(struct chan *ch)
{
	struct req req = { .kind = REQ_FLUSH };

	return chan_submit_wait(ch, &req);
}

int chan_write_sync_wait(struct chan *ch, uint64_t off, const void *buf, uint64_t len)
{
	int rc = chan_write_wait(ch, off, buf, len);

	return rc ? rc : chan_flush_wait(ch);
}

/* The chan below @ch that has memory of its own, or NULL. */
static struct chan *memory_owner(struct chan *ch)
{
	while (ch && !ch->ops->memory_get)
		ch = ch->child[CHILD_FILE];
	return ch;
}

void *chan_memory_get(struct chan *ch, size_t bytes)
{
	struct chan *owner = memory_owner(ch);
	void *mem = owner ? owner->ops->memory_get(owner, bytes) : NULL;

	return mem ? mem : aligned_alloc(IOBUF_ALIGN, align_up(bytes, IOBUF_ALIGN));
}

void chan_memory_put(struct chan *ch, void *mem, size_t bytes)
{
	struct chan *owner = memory_owner(ch);

	if (!mem || !owner || !owner->ops->memory_put(owner, mem, bytes))
		free(mem);
}
