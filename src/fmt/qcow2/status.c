/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/status.c - REQ_MAP: what lies where, and in which layer of the chain.
 *
 * It differs from the way of a read (read.c) in what it tells apart: a zero cluster from one that
 * is nowhere, and a zero cluster that keeps a place in the file from one that does not. An answer
 * is one run of one layer; it may be shorter than it could be, and whoever asks puts neighbours
 * together.
 *
 * Whoever maps goes through a whole image, so a miss does not read one slice but the rest of its
 * L2 table (load_ahead_wait()), and where L1 says that there is no table the answer is as long
 * as that holds, without a slice in the cache for each part of it: an empty image costs what its
 * L1 table costs, whatever its size.
 *
 * Invariants:
 *	E1  the answer's depth is that of the layer whose entry decided, or of the layer where the
 *	    chain ended: behind the end of a shorter backing file that is the one above it;
 *	E2  MAP_PRESENT says that this layer's entry decided. */

#include "fmt/qcow2/image.h"
#include "fmt/qcow2/load.h"

enum { MAP_SLICES_MAX = 64 };

/* A run of units of one kind in one layer; like struct ext, but nothing is left out. */
struct run {
	struct unit unit;               /* host_off: of the run's first byte */
	uint64_t len;
};

/* Where a look-up stands in the chain. */
struct spot {
	struct chan *layer;
	unsigned depth;
	struct run run;
	bool is_end;                    /* EXT_BACKING, and nothing is below */
};

static bool follows(const struct unit *first, const struct unit *u, uint64_t distance)
{
	return u->kind == first->kind && u->has_host == first->has_host &&
	       (!u->has_host || u->host_off - first->host_off == distance);
}

/* The run at @off of @q, @len bytes at most, from what is cached. Any thread. */
static struct run cached_run(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t key = cache_key(q->layer, off >> q->slice_shift);
	uint64_t slice_end = (off | ((1ULL << q->slice_shift) - 1)) + 1;
	uint64_t end = off + MIN(len, slice_end - off);
	uint64_t cluster = 1ULL << q->cluster_bits, unit = 1ULL << q->unit_bits;
	struct run miss = { { .kind = EXT_MISS }, len };
	bool is_empty;
	long slot = cache_find(q->cache, key, &is_empty);
	struct unit first, next = { 0 };
	uint64_t start, at;
	uint32_t version;

	if (slot < 0)
		return miss;
	if (is_empty)
		return (struct run){ { .kind = EXT_BACKING }, end - off };
	version = cache_read_begin(q->cache, slot, key);
	first = map_unit(q, slot, off);
	if (first.kind == EXT_COMPRESSED || first.kind == EXT_CORRUPT) {
		at = align_down(off, cluster) + cluster;
	} else {
		start = align_down(off, unit);
		for (at = start + unit; at < end; at += unit) {
			next = map_unit(q, slot, at);
			if (!follows(&first, &next, at - start))
				break;
		}
		first.host_off += off - start;
		/* QEMU does not tell of a run before it knows where that ends. */
		if (at < end && next.is_bitmap_bad)
			first = next;
	}
	if (!cache_read_valid(q->cache, slot, version))
		return miss;
	return (struct run){ first, MIN(at, end) - off };
}

/* Judges s->run, s->layer's answer for @off. True: the qcow2 layer below is to be asked for
 * s->run.len bytes, and s->layer is that one now. False: it is the chain's answer; EXT_BACKING
 * without is_end then means the node behind s->layer's CHILD_BACKING, which is not qcow2. (E1) */
static bool descend(struct spot *s, uint64_t off)
{
	struct chan *below = s->layer->child[CHILD_BACKING];
	uint64_t end;

	if (s->run.unit.kind != EXT_BACKING)
		return false;
	end = below ? atomic_load_explicit(&below->node->size, memory_order_relaxed) : 0;
	if (off >= end) {
		s->is_end = true;
		return false;
	}
	s->run.len = MIN(s->run.len, end - off);
	if (below->ops != &qcow2_ops)
		return false;
	s->layer = below;
	s->depth++;
	return true;
}

static struct spot find(struct chan *ch, uint64_t off, uint64_t len)
{
	struct spot s = { .layer = ch, .run.len = len };

	do {
		s.run = cached_run(qcow2_of(s.layer->node), off, s.run.len);
	} while (descend(&s, off));
	return s;
}

/* What is asked of a slice that had to be loaded. */
struct question {
	const struct qcow2 *q;
	uint64_t off, len;
	struct run answer;
};

static void look(void *arg)
{
	struct question *k = arg;

	k->answer = cached_run(k->q, k->off, k->len);
	if (k->answer.unit.kind == EXT_MISS)
		k->answer = (struct run){ { .kind = EXT_PENDING },
					  load_pending(k->q, k->off, k->len) };
}

/* As cached_run(), loading what is not cached. */
static int run_wait(struct qcow2 *q, uint64_t off, uint64_t len, struct run *ret)
{
	struct question k = { q, off, len, cached_run(q, off, len) };

	if (k.answer.unit.kind == EXT_MISS) {
		uint64_t empty_end;
		int rc = load_ahead_wait(q, off, len, look, &k, &empty_end);

		if (rc)
			return rc;
		if (empty_end > off)
			k.answer.len = MIN(len, empty_end - off);
	}
	if (k.answer.unit.kind == EXT_CORRUPT)
		return qcow2_corrupt(q, "L2 entry %#llx of guest offset %#llx is invalid",
				     (unsigned long long)k.answer.unit.host_off,
				     (unsigned long long)off);
	*ret = k.answer;
	return 0;
}

static int find_wait(struct chan *ch, uint64_t off, uint64_t len, struct spot *ret)
{
	struct spot s = { .layer = ch, .run.len = len };

	do {
		int rc = run_wait(qcow2_of(s.layer->node), off, s.run.len, &s.run);

		if (rc)
			return rc;
	} while (descend(&s, off));
	*ret = s;
	return 0;
}

/* Says in req->map what run is at @s. */
static void fill(struct req *req, const struct spot *s)
{
	const struct qcow2 *q = qcow2_of(s->layer->node);
	const struct unit *u = &s->run.unit;
	struct map_run *map = &req->map;

	*map = (struct map_run){ .len = s->run.len, .depth = s->depth };
	if (u->kind == EXT_BACKING)
		map->flags = MAP_ZERO;
	else if (u->kind == EXT_ZERO)
		map->flags = MAP_ZERO | MAP_PRESENT;
	else if (u->kind == EXT_COMPRESSED)
		map->flags = MAP_DATA | MAP_PRESENT | MAP_COMPRESSED;
	else
		map->flags = MAP_DATA | MAP_PRESENT;
	if (u->has_host) {
		map->flags |= MAP_HOST;
		map->host_off = u->host_off;
		map->file = q->node.child[q->data_child];
	}
}

/* Data clusters that were only preallocated are holes of the file. To look for them costs a
 * system call a run, so it is done only where the file looks preallocated. */
static bool look_for_holes_wait(struct chan *ch)
{
	struct qcow2 *q = qcow2_of(ch->node);
	enum holes holes = atomic_load_explicit(&q->holes, memory_order_relaxed);

	if (holes == HOLES_UNKNOWN) {
		holes = sparse_wait(ch) ? HOLES_LOOK : HOLES_NONE;
		atomic_store_explicit(&q->holes, holes, memory_order_relaxed);
	}
	return holes == HOLES_LOOK;
}

/* Shortens the run of data in @req->map to what its file says of it: data or a hole. */
static void holes_wait(struct chan *data, struct req *req)
{
	struct req below = { .kind = REQ_MAP, .off = req->map.host_off, .len = req->map.len };

	if (chan_submit_wait(data, &below))
		return;                 /* data, as far as is known */
	req->map.len = MIN(req->map.len, below.map.len);
	req->map.flags |= below.map.flags & MAP_ZERO;
}

/* Does the run at @s end where a slice of its layer does, and not by itself? */
static bool ends_with_slice(const struct spot *s, uint64_t off)
{
	return s->run.unit.kind != EXT_COMPRESSED &&
	       is_aligned(off + s->run.len, 1ULL << qcow2_of(s->layer->node)->slice_shift);
}

/* Lengthens the run at @s by what follows in the next slices, where that is the same run. */
static void extend_wait(struct chan *ch, const struct req *req, struct spot *s)
{
	struct spot next;

	for (unsigned i = 0; i < MAP_SLICES_MAX; i++) {
		if (s->run.len == req->len || !ends_with_slice(s, req->off) ||
		    find_wait(ch, req->off + s->run.len, req->len - s->run.len, &next) ||
		    next.layer != s->layer || next.is_end != s->is_end ||
		    !follows(&s->run.unit, &next.run.unit, s->run.len))
			return;
		s->run.len += next.run.len;
	}
}

static int map_wait(struct chan *ch, struct req *req)
{
	struct spot s;
	int rc = find_wait(ch, req->off, req->len, &s);

	if (rc)
		return rc;
	extend_wait(ch, req, &s);
	if (s.run.unit.kind == EXT_BACKING && !s.is_end) {
		struct req below = { .kind = REQ_MAP, .off = req->off, .len = s.run.len };

		rc = chan_submit_wait(s.layer->child[CHILD_BACKING], &below);
		req->map = below.map;
		req->map.depth += s.depth + 1;
		return rc;
	}
	fill(req, &s);
	if (s.run.unit.kind == EXT_DATA && look_for_holes_wait(s.layer))
		holes_wait(s.layer->child[qcow2_of(s.layer->node)->data_child], req);
	return 0;
}

static void map_fiber(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct chan *ch = req->ch;
	struct qcow2_chan *qc = container_of(ch, struct qcow2_chan, ch);
	int rc = map_wait(ch, req);

	fiber_gate_leave(ch->loop, &qc->gate);
	req_finish(ch, req, rc);
}

/* Is @s the whole answer for @off, without a look at any file or at the slice behind? */
static bool is_known(const struct spot *s, uint64_t off)
{
	const struct qcow2 *q = qcow2_of(s->layer->node);

	if (ends_with_slice(s, off))
		return false;
	switch (s->run.unit.kind) {
	case EXT_ZERO:
	case EXT_COMPRESSED:
		return true;
	case EXT_DATA:
		return atomic_load_explicit(&q->holes, memory_order_relaxed) == HOLES_NONE;
	case EXT_BACKING:
		return s->is_end;
	case EXT_MISS:
	case EXT_PENDING:
	case EXT_CORRUPT:
		break;
	}
	return false;
}

void qcow2_submit_map(struct chan *ch, struct req *req)
{
	struct spot s = find(ch, req->off, req->len);
	struct qcow2_chan *qc = container_of(ch, struct qcow2_chan, ch);

	if (is_known(&s, req->off)) {
		fill(req, &s);
		req_finish(ch, req, 0);
		return;
	}
	req->ch = ch;
	req->task.fn = map_fiber;
	fiber_gate_start(ch->loop, &qc->gate, &req->task);
}
