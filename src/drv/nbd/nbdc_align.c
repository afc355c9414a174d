/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc_align.c - what the server does not take as it is: parts of its blocks, and data in
 * many small pieces, each of which would be a command. Copies, in fibers.
 *
 * A write that covers a part of a block reads the block first. Where the server has blocks all
 * writes go through one connection, so that its lock keeps others away meanwhile (N12): a write
 * that overlaps what is locked is held back; who locks waits for the writes that are under way.
 *
 * Buffers come from the loop's pool; where that has none now, from the connection's reserve, for
 * those who submitted the request may hold the pool's last buffer while they wait for us. A buffer
 * is taken before a lock, never after it: whoever holds a lock waits for the server alone. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "drv/nbd/nbdc_impl.h"
#include "loop/iobuf.h"

/* ---- buffers ---- */

struct bounce {
	char *buf;
	uint64_t size;
	bool is_reserve;
};

/* Of at least one block, at most @want bytes. */
static void bounce_get_wait(struct nbdc_conn *c, uint64_t want, struct bounce *b)
{
	b->size = MIN(want, (uint64_t)NBDC_BOUNCE_MAX);
	b->is_reserve = false;
	b->buf = iobuf_get(loop_iobufs(c->loop), b->size);
	if (b->buf)
		return;
	while (c->is_reserve_used)
		fiber_queue_wait(&c->reserve_free);
	c->is_reserve_used = true;
	b->size = MIN(want, (uint64_t)NBDC_BLOCK_MAX);
	b->is_reserve = true;
	b->buf = c->reserve;
}

static void bounce_put(struct nbdc_conn *c, struct bounce *b)
{
	if (!b->is_reserve) {
		iobuf_put(loop_iobufs(c->loop), b->buf, b->size);
		return;
	}
	c->is_reserve_used = false;
	fiber_queue_wake(&c->reserve_free);
}

/* ---- N12 ---- */

struct lock {
	struct list_node link;
	uint64_t off, end;
};

static bool has_blocks(const struct nbdc_conn *c)
{
	return c->nn->info.block > 1 && !c->nn->leave_lock_out;
}

static bool is_locked(const struct nbdc_conn *c, uint64_t off, uint64_t end)
{
	list_for_each(n, &c->locks) {
		const struct lock *lk = list_entry(n, struct lock, link);

		if (off < lk->end && end > lk->off)
			return true;
	}
	return false;
}

static bool is_written(const struct nbdc_conn *c, uint64_t off, uint64_t end)
{
	list_for_each(n, &c->writes) {
		const struct req *req = list_entry(n, struct req, io.link);

		if (off < req->off + req->len && end > req->off)
			return true;
	}
	return false;
}

static void lock_wait(struct nbdc_conn *c, struct lock *lk, uint64_t off, uint64_t end)
{
	if (!has_blocks(c))
		return;
	while (is_locked(c, off, end))
		fiber_queue_wait(&c->write_ended);
	*lk = (struct lock){ .off = off, .end = end };
	list_add_tail(&c->locks, &lk->link);
	while (is_written(c, off, end))
		fiber_queue_wait(&c->write_ended);
}

static void unlock(struct nbdc_conn *c, struct lock *lk)
{
	struct req *req = c->held;

	if (!has_blocks(c))
		return;
	list_del(&lk->link);
	fiber_queue_wake(&c->write_ended);
	c->held = NULL;
	c->held_tail = &c->held;
	while (req) {
		struct req *next = req->next;

		nbdc_start(c, req);
		req = next;
	}
}

/* True: @req overlaps what is locked and will be started again. */
static bool hold(struct nbdc_conn *c, struct req *req)
{
	if (!is_locked(c, req->off, req->off + req->len))
		return false;
	req->next = NULL;
	*c->held_tail = req;
	c->held_tail = &req->next;
	return true;
}

void nbdc_write_end(struct nbdc_conn *c, struct req *req)
{
	nbdc_req(req)->is_write = false;
	list_del(&req->io.link);
	fiber_queue_wake(&c->write_ended);
}

/* ---- commands of our own ---- */

struct inner {
	struct req req;
	struct iovec iov;
	struct fiber *fiber;
	int res;
	bool is_done;
};

static void inner_done(struct req *req, int res)
{
	struct inner *in = container_of(req, struct inner, req);

	in->res = res;
	in->is_done = true;
	fiber_wake(in->fiber);
}

/* @len and @off are multiples of the block. */
static int inner_wait(struct nbdc_conn *c, enum req_kind kind, unsigned flags, uint64_t off,
		      void *buf, uint64_t len)
{
	struct inner in = {
		.req = { .done = inner_done, .kind = (uint8_t)kind, .flags = (uint8_t)flags,
			 .off = off, .len = len, .iovcnt = 1, .ch = c->chan },
		.iov = { buf, len },
		.fiber = fiber_self(),
	};

	in.req.iov = &in.iov;
	*nbdc_req(&in.req) = (struct nbdc_req){ .conn = c, .is_inner = true };
	nbdc_conn_send(c, &in.req);
	while (!in.is_done)
		fiber_park();
	return in.res;
}

/* ---- reads and writes ---- */

static int read_any_wait(struct nbdc_conn *c, const struct req *req)
{
	uint32_t block = c->nn->info.block;
	uint64_t at = align_down(req->off, block), end = align_up(req->off + req->len, block);
	struct bounce b;
	int rc = 0;

	bounce_get_wait(c, end - at, &b);
	for (uint64_t part; at < end && !rc; at += part) {
		part = MIN(end - at, b.size);
		rc = inner_wait(c, REQ_READ, 0, at, b.buf, part);
		if (rc)
			break;

		uint64_t from = MAX(at, req->off), to = MIN(at + part, req->off + req->len);

		req_copy_to(req, from - req->off, b.buf + (from - at), to - from);
	}
	bounce_put(c, &b);
	return rc;
}

/* Reads the blocks of [@at, @at + @part) that [@from, @to) covers in part. */
static int read_edges_wait(struct nbdc_conn *c, uint64_t at, uint64_t part, uint64_t from,
			   uint64_t to, char *buf)
{
	uint32_t block = c->nn->info.block;
	uint64_t last = part - block;
	int rc = 0;

	if (from > at)
		rc = inner_wait(c, REQ_READ, 0, at, buf, block);
	if (!rc && to < at + part && (last || from == at))
		rc = inner_wait(c, REQ_READ, 0, at + last, buf + last, block);
	return rc;
}

/* Writes [@off, @end) of what @req has there, a WRITE's data or zeros, with the blocks around it
 * as they are. Under the lock. */
static int write_any_wait(struct nbdc_conn *c, const struct req *req, struct bounce *b,
			  uint64_t off, uint64_t end)
{
	uint32_t block = c->nn->info.block;
	uint64_t at = align_down(off, block), stop = align_up(end, block);
	unsigned flags = req->flags & REQ_FUA;
	int rc = 0;

	for (uint64_t part; at < stop && !rc; at += part) {
		part = MIN(stop - at, b->size);

		uint64_t from = MAX(at, off), to = MIN(at + part, end);

		rc = read_edges_wait(c, at, part, from, to, b->buf);
		if (rc)
			break;
		if (req->kind == REQ_WRITE)
			req_copy_from(req, from - req->off, b->buf + (from - at), to - from);
		else
			memset(b->buf + (from - at), 0, to - from);
		rc = inner_wait(c, REQ_WRITE, flags, at, b->buf, part);
	}
	return rc;
}

/* The whole blocks by the server's command, the parts at either end by writing. */
static int zero_any_wait(struct nbdc_conn *c, const struct req *req, struct bounce *b)
{
	uint32_t block = c->nn->info.block;
	uint64_t end = req->off + req->len;
	uint64_t from = align_up(req->off, block), to = align_down(end, block);
	int rc;

	if (from >= to)
		return write_any_wait(c, req, b, req->off, end);
	rc = inner_wait(c, REQ_ZERO, req->flags, from, NULL, to - from);
	if (rc == -ENOTSUP && !(req->flags & REQ_FAST_ONLY))
		return write_any_wait(c, req, b, req->off, end);
	if (!rc && from > req->off)
		rc = write_any_wait(c, req, b, req->off, from);
	if (!rc && end > to)
		rc = write_any_wait(c, req, b, to, end);
	return rc;
}

static int change_wait(struct nbdc_conn *c, const struct req *req, bool by_writing)
{
	uint32_t block = c->nn->info.block;
	uint64_t at = align_down(req->off, block), end = align_up(req->off + req->len, block);
	struct bounce b;
	struct lock lk;
	int rc;

	bounce_get_wait(c, end - at, &b);
	lock_wait(c, &lk, at, end);
	if (req->kind == REQ_WRITE || by_writing)
		rc = write_any_wait(c, req, &b, req->off, req->off + req->len);
	else
		rc = zero_any_wait(c, req, &b);
	unlock(c, &lk);
	bounce_put(c, &b);
	return rc;
}

static void finish_in_fiber(struct nbdc_conn *c, struct req *req, int rc)
{
	nbdc_finish(c, req, rc);
	fiber_gate_leave(c->loop, &c->gate);
}

static void any_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct nbdc_conn *c = nbdc_req(req)->conn;

	finish_in_fiber(c, req, req->kind == REQ_READ ? read_any_wait(c, req) :
							change_wait(c, req, false));
}

static void zeros_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct nbdc_conn *c = nbdc_req(req)->conn;

	finish_in_fiber(c, req, change_wait(c, req, true));
}

static void start_fiber(struct nbdc_conn *c, struct req *req, void (*fn)(struct task *t))
{
	req->task.fn = fn;
	fiber_gate_start(c->loop, &c->gate, &req->task);
}

void nbdc_write_zeros(struct nbdc_conn *c, struct req *req)
{
	if (nbdc_req(req)->is_write)
		nbdc_write_end(c, req);
	start_fiber(c, req, zeros_task);
}

/* ---- what goes as it is ---- */

/* Does the data lie in pieces that are worth a command each? */
static bool has_large_pieces(const struct req *req, uint32_t block)
{
	uint64_t skip = req->iov_skip, left = req->len;

	for (uint32_t i = 0; i < req->iovcnt && left; i++) {
		uint64_t n = req->iov[i].iov_len;

		if (skip >= n) {
			skip -= n;
			continue;
		}
		n = MIN(n - skip, left);
		skip = 0;
		left -= n;
		if (left && (n < NBDC_PIECE_MIN || !is_aligned(n, block)))
			return false;
	}
	return true;
}

/* What is whole blocks of it; a DISCARD is a hint. */
static void shrink_to_blocks(struct req *req, uint32_t block)
{
	uint64_t end = align_down(req->off + req->len, block);

	req->off = align_up(req->off, block);
	req->len = end > req->off ? end - req->off : 0;
}

void nbdc_start(struct nbdc_conn *c, struct req *req)
{
	uint32_t block = c->nn->info.block;
	bool is_whole, is_change = req->kind == REQ_WRITE || req->kind == REQ_ZERO;

	if (req->kind == REQ_DISCARD) {
		shrink_to_blocks(req, block);
		if (!req->len) {
			nbdc_finish(c, req, 0);
			return;
		}
		is_change = true;
	}
	if (is_change && has_blocks(c) && hold(c, req))
		return;
	is_whole = req->kind == REQ_MAP || is_aligned(req->off | req->len, block);
	if (req->kind == REQ_ZERO && !c->nn->info.can_zero) {
		start_fiber(c, req, zeros_task);
	} else if (!is_whole || ((req->kind == REQ_READ || req->kind == REQ_WRITE) &&
				 !has_large_pieces(req, block))) {
		start_fiber(c, req, any_task);
	} else {
		if (is_change && has_blocks(c)) {
			nbdc_req(req)->is_write = true;
			list_add_tail(&c->writes, &req->io.link);
		}
		nbdc_conn_send(c, req);
	}
}

int nbdc_align_init(struct nbdc_conn *c)
{
	c->reserve = aligned_alloc(IOBUF_ALIGN, NBDC_BLOCK_MAX);
	if (!c->reserve)
		return -ENOMEM;
	fiber_gate_init(&c->gate, NBDC_FIBERS_MAX);
	list_init(&c->writes);
	list_init(&c->locks);
	c->held_tail = &c->held;
	return 0;
}

void nbdc_align_fini(struct nbdc_conn *c)
{
	assert(!c->held && list_is_empty(&c->writes) && list_is_empty(&c->locks));
	free(c->reserve);
}
