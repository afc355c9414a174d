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
#include "fmt/qcow2/pending.h"

enum { PARTS_MAX = 8 };

/* Where a look-up stands in the chain. */
struct place {
	struct chan *layer;
	struct ext e;
	const struct chan *above;       /* where it may learn(): the layer asked before; or NULL */
};

static uint64_t size_of(const struct chan *ch)
{
	return atomic_load_explicit(&ch->node->size, memory_order_relaxed);
}

/* Where the way leads on from p->layer, which has nothing from @off on: to its backing file, or to
 * the next layer that it remembers, if it does for all of the run (C4). */
static struct chan *layer_below(const struct place *p, uint64_t off)
{
	const struct qcow2 *q = qcow2_of(p->layer->node);
	unsigned next = p->e.next & CACHE_LAYERS_MAX, part_shift = q->slice_shift - CACHE_PART_BITS;

	if (!next || (off + p->e.len - 1) >> part_shift != off >> part_shift)
		return p->layer->child[CHILD_BACKING];
	return q->cache->images[next - 1]->node.chans[loop_id(p->layer->loop)];
}

/* p->layer has nothing at @off. If it has nothing of the whole part that the layer above remembers
 * a next layer for, the next walk may go from there straight to @below. The steps double with
 * each walk: even a long chain is short after a few. (C4) */
static void learn(const struct place *p, const struct chan *below, uint64_t off)
{
	const struct qcow2 *q = qcow2_of(p->layer->node), *above = qcow2_of(p->above->node);
	uint64_t part = 1ULL << (above->slice_shift - CACHE_PART_BITS);
	uint64_t start = align_down(off, part), end = MIN(start + part, size_of(p->above));
	unsigned next = (q->layer + 1) | CACHE_LAST;

	assert(above->cache == q->cache);
	if (q->slice_shift >= above->slice_shift && size_of(p->layer) >= end) {
		struct ext e = map_run(q, start, end - start);

		if (e.kind == EXT_MISS)
			return;
		if (e.kind == EXT_BACKING && e.len == end - start)
			next = qcow2_of(below->node)->layer + 1;
	}
	cache_set_next(q->cache, cache_key(above->layer, off >> above->slice_shift),
		       map_part(above, off), next);
}

/* Judges p->e, which is p->layer's answer for @off. True: the qcow2 layer below is to be asked for
 * p->e.len bytes, and p->layer is that one now. False: p->e is the chain's answer; EXT_BACKING
 * then means the node behind p->layer's CHILD_BACKING, which is not qcow2. */
static inline bool descend(struct place *p, uint64_t off)
{
	struct chan *below;
	bool is_known;
	uint64_t end;

	if (p->e.kind != EXT_BACKING)
		return false;
	below = layer_below(p, off);
	end = below ? size_of(below) : 0;
	if (off >= end) {                                               /* V2 */
		p->e.kind = EXT_ZERO;
		return false;
	}
	p->e.len = MIN(p->e.len, end - off);
	if (below->ops != &qcow2_ops)
		return false;
	if (p->above)
		learn(p, below, off);
	/* What is known already is not learnt: the last step, or one too short for this run. */
	is_known = p->e.next && (p->e.next & CACHE_LAST || below == p->layer->child[CHILD_BACKING]);
	p->above = is_known ? NULL : p->layer;
	p->layer = below;
	return true;
}

/* Is p->e.len from @off on a part of one cluster that p->layer surely does not have? Then that is
 * its answer, as map_run() would put it. Most layers of a chain give it, so it costs as little as
 * can be: one entry is looked at. */
static bool is_hole(struct place *p, uint64_t off)
{
	const struct qcow2 *q = qcow2_of(p->layer->node);
	uint64_t key = cache_key(q->layer, off >> q->slice_shift);
	uint64_t cluster = off >> q->cluster_bits;
	bool is_empty;
	long slot = cache_find(q->cache, key, &is_empty);

	if (slot < 0 || (off + p->e.len - 1) >> q->cluster_bits != cluster)
		return false;
	if (!is_empty) {
		uint32_t version = cache_read_begin(q->cache, slot, key);
		uint64_t entries = 1ULL << (q->slice_shift - q->cluster_bits);
		unsigned at = (unsigned)(cluster & (entries - 1)) * q->entry_words;

		/* Zeros are the unallocated entry of either format. */
		if (cache_word(q->cache, slot, at) ||
		    (q->entry_words == 2 && cache_word(q->cache, slot, at + 1)) ||
		    !cache_read_valid(q->cache, slot, version))
			return false;
	}
	p->e.kind = EXT_BACKING;
	p->e.next = cache_next(q->cache, slot, key, map_part(q, off));
	return true;
}

/* The run at @off, from what is cached. */
static struct place resolve(struct chan *ch, uint64_t off, uint64_t len)
{
	struct place p = { .layer = ch, .e = map_run(qcow2_of(ch->node), off, len) };

	while (descend(&p, off))
		if (!is_hole(&p, off))
			p.e = map_run(qcow2_of(p.layer->node), off, p.e.len);
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
	case EXT_PENDING:
		pendings_submit_read(layer, req);
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
	uint64_t at;                    /* of the request */
	bool is_busy;
};

/* A request of several runs: the fiber's own, on its stack. */
struct frame {
	struct fiber *fiber;
	unsigned busy;
	int res;                        /* the error of the first bytes that have one, */
	uint64_t res_at;                /* and where they are: whatever fails first */
	struct part parts[PARTS_MAX];
};

static void note_result(struct frame *f, uint64_t at, int res)
{
	if (!res || (f->res && f->res_at < at))
		return;
	f->res = res;
	f->res_at = at;
}

static void part_done(struct req *req, int res)
{
	struct part *p = container_of(req, struct part, req);
	struct frame *f = p->frame;

	note_result(f, p->at, res);
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
			note_result(&f, at, rc);
			break;
		}
		if (p.e.kind == EXT_ZERO) {
			req_zero_part(req, at, p.e.len);
			continue;
		}
		part = part_get_wait(&f);
		part->at = at;
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
		qcow2_submit_map(ch, req);
		return;
	case REQ_FLUSH:
	case REQ_WRITE:
	case REQ_ZERO:
	case REQ_DISCARD:
	case REQ_COPY:
		qcow2_submit_write(ch, req);
		return;
	case REQ_KINDS:
		break;
	}
	req_finish(ch, req, -EINVAL);
}
