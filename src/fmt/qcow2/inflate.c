/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/inflate.c - reads of compressed clusters (specification: "Compressed Clusters
 * Descriptor").
 *
 * A cluster is read whole and inflated by a worker. A request for all of it gets it straight into
 * its own memory; what is read in part stays for a while, so that a sequential reader of small
 * blocks inflates a cluster once, and readers who meet over one share the work. A chan has at most
 * KEPT_MAX clusters and KEPT_BYTES of them idle; those in use are bounded by the gate in
 * front of us. The buffers are our own: the exports' may be held by the very request that waits
 * here.
 *
 * Invariants:
 *	Z1  nothing but the bytes that the L2 entry names, widened to IN_ALIGN, is read;
 *	Z2  a cluster that failed to inflate is not kept;
 *	Z3  what is kept is not found any more when something else may lie in its place, with the
 *	    same entry. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "fmt/qcow2/codec.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/writer.h"
#include "loop/work.h"

enum { KEPT_MAX = 32, KEPT_BYTES = 2 << 20, IN_ALIGN = 4096, INLINE_BYTES_MAX = 8 << 10 };

/* A cluster in memory, or on its way there. */
struct inflated {
	struct list_node link;          /* in qcow2_chan.inflated */
	uint64_t entry;                 /* the key, */
	uint64_t packed_before;         /* and q->packed_before when it was read */
	uint8_t *data;                  /* a cluster */
	unsigned users;                 /* fibers that fill, wait for, or copy from it */
	bool is_ready;
	int res;                        /* once ready */
	struct list_node waiters;
};

struct waiter {
	struct list_node link;
	struct fiber *fiber;
};

struct job {
	unsigned compression;
	const uint8_t *in;
	size_t in_len;
	void *out;
	size_t out_len;
	int res;
};

void inflate_cache_init(struct qcow2_chan *qc)
{
	list_init(&qc->inflated);
}

static void inflated_free(struct qcow2_chan *qc, struct inflated *c)
{
	list_del(&c->link);
	qc->ninflated--;
	free(c->data);
	free(c);
}

void inflate_cache_fini(struct qcow2_chan *qc)
{
	list_for_each(n, &qc->inflated)
		inflated_free(qc, list_entry(n, struct inflated, link));
}

static void run_job(void *arg)
{
	struct job *j = arg;

	j->res = codec_inflate(j->compression, j->in, j->in_len, j->out, j->out_len);
}

/* Reads and inflates the cluster of @entry into @out, a cluster's bytes. @pk: what of it is in
 * buffers still; NULL: nothing is. */
static int fill_wait(struct chan *layer, const struct pack *pk, uint64_t entry, void *out)
{
	struct qcow2 *q = qcow2_of(layer->node);
	unsigned off_bits = 62 - (q->cluster_bits - 8);
	uint64_t off = entry & ((1ULL << off_bits) - 1);
	uint64_t sectors = ((entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> off_bits) + 1;
	uint64_t len = sectors * 512 - (off & 511);
	uint64_t start = align_down(off, IN_ALIGN);
	uint64_t in_bytes = align_up(off + len, IN_ALIGN) - start;
	uint8_t *in = aligned_alloc(IN_ALIGN, in_bytes);
	struct job j = { q->header.compression, in + (off - start), len, out,
			 qcow2_cluster_size(&q->header), 0 };
	int rc;

	if (!in)
		return -ENOMEM;
	rc = pk ? pack_read_wait(pk, start, in, in_bytes)
		: chan_read_wait(layer->child[CHILD_FILE], start, in, in_bytes);
	if (!rc) {
		/* Handing a small one over costs more than it does. */
		if (j.out_len <= INLINE_BYTES_MAX)
			run_job(&j);
		else
			loop_work_wait(layer->loop, run_job, &j);
		rc = j.res;
		if (rc == -EIO)
			qcow2_corrupt(q, "compressed cluster at %#llx does not decompress",
				      (unsigned long long)off);
	}
	free(in);
	return rc;
}

int inflate_packed_wait(const struct pack *pk, uint64_t entry, void *out)
{
	return fill_wait(pk->w->q->node.home_chan, pk, entry, out);
}

static uint64_t packed_before(const struct qcow2_chan *qc)
{
	return atomic_load_explicit(&qcow2_of(qc->ch.node)->packed_before, memory_order_acquire);
}

static struct inflated *find(struct qcow2_chan *qc, uint64_t entry)
{
	uint64_t now = packed_before(qc);

	list_for_each(n, &qc->inflated) {
		struct inflated *c = list_entry(n, struct inflated, link);

		if (c->entry == entry && c->packed_before == now)       /* Z3 */
			return c;
	}
	return NULL;
}

/* Frees the clusters used least recently until one more may be kept. */
static void make_room(struct qcow2_chan *qc, unsigned cluster_bits)
{
	unsigned limit = MAX(2U, MIN((unsigned)KEPT_MAX, (unsigned)KEPT_BYTES >> cluster_bits));

	struct list_node *n = qc->inflated.prev;

	while (n != &qc->inflated && qc->ninflated >= limit) {
		struct inflated *c = list_entry(n, struct inflated, link);

		n = n->prev;
		if (!c->users)
			inflated_free(qc, c);
	}
}

static struct inflated *add(struct qcow2_chan *qc, uint64_t entry, unsigned cluster_bits)
{
	struct inflated *c;

	make_room(qc, cluster_bits);
	c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	c->data = aligned_alloc(IN_ALIGN, MAX((size_t)IN_ALIGN, (size_t)1 << cluster_bits));
	if (!c->data) {
		free(c);
		return NULL;
	}
	c->entry = entry;
	c->packed_before = packed_before(qc);
	list_init(&c->waiters);
	list_add_head(&qc->inflated, &c->link);
	qc->ninflated++;
	return c;
}

/* Z2, of one that is ready. */
static bool is_kept(const struct qcow2_chan *qc, const struct inflated *c)
{
	const struct writer *w = qcow2_of(qc->ch.node)->writer;

	return !c->res || (w && w->broken & BREAK_Z2_KEPT);
}

/* The cluster of @entry, filled by whoever asked first. With a user counted, or an error. */
static int get_wait(struct chan *layer, uint64_t entry, struct inflated **ret)
{
	struct qcow2_chan *qc = container_of(layer, struct qcow2_chan, ch);
	struct inflated *c = find(qc, entry);
	struct waiter w = { .fiber = fiber_self() };
	struct list_node *n;

	if (c) {
		list_del(&c->link);
		list_add_head(&qc->inflated, &c->link);
		c->users++;
		if (!c->is_ready)
			list_add_tail(&c->waiters, &w.link);
		while (!c->is_ready)
			fiber_park();
	} else {
		c = add(qc, entry, qcow2_of(layer->node)->cluster_bits);
		if (!c)
			return -ENOMEM;
		c->users++;
		c->res = fill_wait(layer, NULL, entry, c->data);
		c->is_ready = true;
		while ((n = list_pop(&c->waiters)))
			fiber_wake(list_entry(n, struct waiter, link)->fiber);
		if (!is_kept(qc, c))
			c->entry = 0;   /* Z2: not to be found again; 0 is no compressed entry */
	}
	*ret = c;
	return c->res;
}

static void put(struct qcow2_chan *qc, struct inflated *c)
{
	if (!--c->users && !is_kept(qc, c))
		inflated_free(qc, c);
}

int inflate_read_wait(struct chan *layer, struct req *req, uint64_t off, uint64_t entry)
{
	struct qcow2_chan *qc = container_of(layer, struct qcow2_chan, ch);
	uint64_t cluster = qcow2_cluster_size(&qcow2_of(layer->node)->header);
	struct inflated *c = NULL;
	void *flat;
	int rc;

	/* Inflating reads what it has written: not where somebody else may write meanwhile. */
	if (req->len == cluster && !(req->flags & REQ_FOREIGN) && (flat = req_flat(req)) &&
	    !find(qc, entry))
		return fill_wait(layer, NULL, entry, flat);
	rc = get_wait(layer, entry, &c);
	if (!rc)
		req_copy_to(req, 0, c->data + (off & (cluster - 1)), req->len);
	if (c)
		put(qc, c);
	return rc;
}
