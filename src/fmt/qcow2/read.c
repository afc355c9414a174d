/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/read.c - requests to an image.
 *
 * The chain is walked here, layer by layer, without recursion: resolve() looks the offset up in
 * each qcow2 layer's cached slices until one has it. A request that is one run of data is
 * forwarded as it is. Otherwise one fiber serves it, run by run, with up to PARTS_MAX parts under
 * way.
 *
 * Invariants:
 *	V1  what is forwarded is one run: every byte of it lies where e.host_off says, in order;
 *	V2  bytes past the end of a layer's backing file are zeros, whatever that file holds there;
 *	V3  a fiber that waits for parts holds no place that a part needs: compressed parts pass
 *	    another gate, and parts never come back to this node's submit(). */
#include <errno.h>

#include "base/err.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/load.h"

enum { PARTS_MAX = 8, MAP_SLICES_MAX = 64 };

/* Where a look-up stands in the chain. */
struct place {
	struct chan *layer;
	unsigned depth;
	struct ext e;
};

/* Judges p->e, which is p->layer's answer for @off. True: the qcow2 layer below is to be asked for
 * p->e.len bytes, and p->layer is that one now. False: p->e is the chain's answer; EXT_BACKING
 * then means the node behind p->layer's CHILD_BACKING, which is not qcow2. */
static bool descend(struct place *p, uint64_t off)
{
	struct chan *below = p->layer->child[CHILD_BACKING];
	uint64_t end;

	if (p->e.kind != EXT_BACKING)
		return false;
	end = below ? atomic_load_explicit(&below->node->size, memory_order_relaxed) : 0;
	if (off >= end) {                                               /* V2 */
		p->e.kind = EXT_ZERO;
		return false;
	}
	p->e.len = MIN(p->e.len, end - off);
	if (below->ops != &qcow2_ops)
		return false;
	p->layer = below;
	p->depth++;
	return true;
}

/* The run at @off, from what is cached. */
static struct place resolve(struct chan *ch, uint64_t off, uint64_t len)
{
	struct place p = { .layer = ch, .e.len = len };

	do {
		p.e = map_run(qcow2_of(p.layer->node), off, p.e.len);
	} while (descend(&p, off));
	return p;
}

/* As resolve(), loading what is not cached. The walk goes on from where a load was needed: the
 * layers above need not stay cached meanwhile. 0 or -errno. */
static int resolve_wait(struct chan *ch, uint64_t off, uint64_t len, struct place *ret)
{
	struct place p = { .layer = ch, .e.len = len };

	do {
		struct qcow2 *q = qcow2_of(p.layer->node);

		len = p.e.len;
		p.e = map_run(q, off, len);
		if (p.e.kind == EXT_MISS) {
			int rc = load_wait(q, off, len, &p.e);

			if (rc)
				return rc;
		}
		if (p.e.kind == EXT_CORRUPT)
			return qcow2_corrupt(q, "L2 entry %#llx of guest offset %#llx is invalid",
					     (unsigned long long)p.e.host_off,
					     (unsigned long long)off);
	} while (descend(&p, off));
	*ret = p;
	return 0;
}

static void inflate_fiber(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct chan *layer = req->ch;
	struct qcow2_chan *qc = container_of(layer, struct qcow2_chan, ch);
	int res = inflate_read_wait(layer, req, req->priv[0], req->priv[1]);

	fiber_gate_leave(layer->loop, &qc->inflate_gate);
	req_finish(layer, req, res);
}

static void start_fiber(struct chan *ch, struct req *req, void (*fn)(struct task *t))
{
	struct qcow2_chan *qc = container_of(ch, struct qcow2_chan, ch);

	req->ch = ch;
	req->task.fn = fn;
	fiber_gate_start(ch->loop, &qc->gate, &req->task);
}

/* Sends @req, which is the one run at @p, on its way (V1). */
static void send_run(const struct place *p, struct req *req)
{
	struct chan *layer = p->layer;
	struct qcow2_chan *qc;

	switch (p->e.kind) {
	case EXT_DATA:                  /* the hot path: forward, and forget */
		req->off = p->e.host_off;
		chan_submit(layer->child[qcow2_of(layer->node)->data_child], req);
		return;
	case EXT_BACKING:
		chan_submit(layer->child[CHILD_BACKING], req);
		return;
	case EXT_ZERO:
		req_zero_part(req, 0, req->len);
		req_finish(layer, req, 0);
		return;
	case EXT_COMPRESSED:
		qc = container_of(layer, struct qcow2_chan, ch);
		req->ch = layer;
		req->priv[0] = req->off;
		req->priv[1] = p->e.host_off;
		req->task.fn = inflate_fiber;
		fiber_gate_start(layer->loop, &qc->inflate_gate, &req->task);
		return;
	case EXT_MISS:
	case EXT_CORRUPT:
		break;                  /* resolve_wait() never answers these */
	}
	req_finish(layer, req, -EUCLEAN);
}

struct frame;

/* A part under way. */
struct part {
	struct req req;
	struct frame *frame;
	bool is_busy;
};

/* A request of several runs: the fiber's own, on its stack. */
struct frame {
	struct fiber *fiber;
	unsigned busy;
	int res;                        /* the first error */
	struct part parts[PARTS_MAX];
};

static void part_done(struct req *req, int res)
{
	struct part *p = container_of(req, struct part, req);
	struct frame *f = p->frame;

	if (res && !f->res)
		f->res = res;
	p->is_busy = false;
	f->busy--;
	fiber_wake(f->fiber);
}

static struct part *part_get_wait(struct frame *f)
{
	while (f->busy == PARTS_MAX)
		fiber_park();
	for (unsigned i = 0;; i++) {
		if (f->parts[i].is_busy)
			continue;
		f->parts[i].is_busy = true;
		f->busy++;
		return &f->parts[i];
	}
}

/* Sends @req run by run and waits for all of it. */
static int send_parts_wait(struct chan *ch, struct req *req)
{
	struct frame f;
	struct place p;

	f.fiber = fiber_self();
	f.busy = 0;
	f.res = 0;
	for (unsigned i = 0; i < PARTS_MAX; i++) {
		f.parts[i].frame = &f;
		f.parts[i].is_busy = false;
	}
	for (uint64_t at = 0; at < req->len && !f.res; at += p.e.len) {
		int rc = resolve_wait(ch, req->off + at, req->len - at, &p);
		struct part *part;

		if (rc) {
			f.res = f.res ? f.res : rc;
			break;
		}
		if (p.e.kind == EXT_ZERO) {
			req_zero_part(req, at, p.e.len);
			continue;
		}
		part = part_get_wait(&f);
		req_part(req, at, p.e.len, &part->req);
		part->req.done = part_done;
		send_run(&p, &part->req);
	}
	while (f.busy)
		fiber_park();
	return f.res;
}

/* A read that is not one run, or whose slice is not cached. */
static void runs_fiber(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct chan *ch = req->ch;
	struct qcow2_chan *qc = container_of(ch, struct qcow2_chan, ch);
	bool is_one_run = false;
	struct place p;
	int rc = resolve_wait(ch, req->off, req->len, &p);

	if (!rc) {
		is_one_run = p.e.len == req->len;
		if (!is_one_run)
			rc = send_parts_wait(ch, req);
	}
	fiber_gate_leave(ch->loop, &qc->gate);
	if (is_one_run)
		send_run(&p, req);
	else
		req_finish(ch, req, rc);
}

/* Says in req->map what run is at @p. */
static void map_fill(struct req *req, const struct place *p)
{
	const struct qcow2 *q = qcow2_of(p->layer->node);

	req->map = (struct map_run){ .len = p->e.len, .depth = p->depth };
	if (p->e.kind == EXT_ZERO) {
		req->map.flags = MAP_ZERO;
	} else {
		req->map.flags = MAP_DATA | MAP_PRESENT;
		if (p->e.kind == EXT_COMPRESSED) {
			req->map.flags |= MAP_COMPRESSED;
		} else {
			req->map.flags |= MAP_HOST;
			req->map.host_off = p->e.host_off;
			req->map.file = q->node.child[q->data_child];
		}
	}
}

/* Data clusters that were only preallocated are holes of the file. To look for them costs a
 * system call a run, so it is done only where the file takes clearly less than its length, as
 * QEMU does it: more than a tenth, and two clusters. */
static bool look_for_holes_wait(struct qcow2 *q)
{
	struct node *file = q->node.child[CHILD_FILE];
	uint64_t cluster = qcow2_cluster_size(&q->header);
	uint64_t clusters = div_round_up(atomic_load(&file->size), cluster), bytes;
	enum holes holes = atomic_load_explicit(&q->holes, memory_order_relaxed);

	if (holes == HOLES_UNKNOWN) {
		holes = HOLES_NONE;
		if (file->ops->allocated_wait && !file->ops->allocated_wait(file, &bytes)) {
			bytes /= cluster;
			if (clusters >= MAX(bytes * 11 / 10, bytes + 2))
				holes = HOLES_LOOK;
		}
		atomic_store_explicit(&q->holes, holes, memory_order_relaxed);
	}
	return holes == HOLES_LOOK;
}

/* Shortens the run of data in @req->map to what its file says of it: data or a hole. */
static void map_holes_wait(struct chan *data, struct req *req)
{
	struct req below = { .kind = REQ_MAP, .off = req->map.host_off, .len = req->map.len };

	if (chan_submit_wait(data, &below))
		return;                 /* data, as far as is known */
	req->map.len = MIN(req->map.len, below.map.len);
	req->map.flags |= below.map.flags & MAP_ZERO;
}

/* Lengthens the run at @p by what follows it in the next slices, where that is the same run. */
static void extend_wait(struct chan *ch, const struct req *req, struct place *p)
{
	struct place next;

	for (unsigned i = 0; i < MAP_SLICES_MAX && p->e.len < req->len; i++) {
		if (resolve_wait(ch, req->off + p->e.len, req->len - p->e.len, &next) ||
		    next.e.kind != p->e.kind || next.layer != p->layer)
			return;
		if (p->e.kind == EXT_COMPRESSED ||
		    (p->e.kind == EXT_DATA && next.e.host_off != p->e.host_off + p->e.len))
			return;
		p->e.len += next.e.len;
	}
}

static void map_fiber(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct chan *ch = req->ch;
	struct qcow2_chan *qc = container_of(ch, struct qcow2_chan, ch);
	struct place p;
	int rc = resolve_wait(ch, req->off, req->len, &p);

	if (!rc)
		extend_wait(ch, req, &p);
	if (!rc && p.e.kind == EXT_BACKING) {
		struct req below = { .kind = REQ_MAP, .off = req->off, .len = p.e.len };

		rc = chan_submit_wait(p.layer->child[CHILD_BACKING], &below);
		req->map = below.map;
		req->map.depth += p.depth + 1;
	} else if (!rc) {
		map_fill(req, &p);
		if (p.e.kind == EXT_DATA && look_for_holes_wait(qcow2_of(p.layer->node)))
			map_holes_wait(p.layer->child[qcow2_of(p.layer->node)->data_child], req);
	}
	fiber_gate_leave(ch->loop, &qc->gate);
	req_finish(ch, req, rc);
}

static void submit_map(struct chan *ch, struct req *req)
{
	struct place p = resolve(ch, req->off, req->len);
	const struct qcow2 *q = qcow2_of(p.layer->node);
	bool is_known = p.e.kind == EXT_ZERO || p.e.kind == EXT_COMPRESSED ||
			(p.e.kind == EXT_DATA && atomic_load_explicit(&q->holes,
							memory_order_relaxed) == HOLES_NONE);

	if (!is_known) {
		start_fiber(ch, req, map_fiber);
		return;
	}
	map_fill(req, &p);
	req_finish(ch, req, 0);
}

static void submit_read(struct chan *ch, struct req *req)
{
	struct place p = resolve(ch, req->off, req->len);

	if (p.e.len < req->len || p.e.kind == EXT_MISS || p.e.kind == EXT_CORRUPT)
		start_fiber(ch, req, runs_fiber);
	else
		send_run(&p, req);
}

void qcow2_submit(struct chan *ch, struct req *req)
{
	switch ((enum req_kind)req->kind) {
	case REQ_READ:
		submit_read(ch, req);
		return;
	case REQ_MAP:
		submit_map(ch, req);
		return;
	case REQ_FLUSH:
		req_finish(ch, req, 0); /* nothing is ever written */
		return;
	case REQ_WRITE:
	case REQ_ZERO:
	case REQ_DISCARD:
	case REQ_KINDS:
		break;
	}
	req_finish(ch, req, -EROFS);
}
