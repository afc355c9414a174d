/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/pack_jobs.c - from requests to compressed clusters, in order. See pack.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/l2.h"
#include "fmt/qcow2/writer.h"
#include "loop/work.h"

enum { PARTS = 8, JOBS_MIN = 4, GATHERED_MIN = 2, INLINE_BYTES_MAX = 4 << 10 };

struct parent;

/* A guest cluster to be compressed. */
struct job {
	struct task task;
	struct pack_turn turn;
	struct parent *parent;
	struct req part;                /* the request's bytes in this cluster */
	uint64_t guest;                 /* the cluster's offset */
	struct pending *p;              /* once it is opened */
	bool is_busy;
	bool is_in_place;               /* the cluster is the image's own: nothing to compress */
	bool is_gathered;               /* somebody else compresses it */
	uint8_t *copy;                  /* owned; or NULL */
	struct pack_cluster c;          /* its plain is @copy, or the request's own memory; its out
					 * owned, or NULL */
};

/* A request that is served: the fiber's own, on its stack. */
struct parent {
	struct pack *pack;
	struct fiber *fiber;
	bool is_wanted;                 /* the request itself asks for it */
	unsigned busy;
	int res;                        /* the first error */
	struct job jobs[PARTS];
};

/* How many clusters, each in two forms, have room in @bytes; from @min to @max. */
static unsigned clusters_in(const struct writer *w, uint64_t bytes, uint64_t min, uint64_t max)
{
	return (unsigned)MAX(min, MIN(bytes / (2 * w->cluster), max));
}

void pack_init(struct pack *pk, struct writer *w)
{
	pk->w = w;
	list_init(&pk->turns);
	list_init(&pk->gathered);
	pk->gathered_max = clusters_in(w, PACK_GATHERED_BYTES, GATHERED_MIN, PACK_GATHERED_MAX);
	fiber_gate_init(&pk->gate, clusters_in(w, PACK_JOBS_BYTES, JOBS_MIN, PACK_JOBS_MAX));
}

bool pack_wants(const struct pack *pk, const struct req *req)
{
	return req->kind == REQ_WRITE && (pk->is_for_all || req->flags & REQ_COMPRESSED);
}

/* ---- the order ----
 *
 * Whose turn it is waits for nobody that comes later. What he finds pending in his clusters is his
 * elders', who are placed, or that of somebody who takes no turns: all others open theirs in their
 * own turn, or when no elder changes the same clusters. */

static struct pack_turn *first_turn(const struct pack *pk)
{
	return list_is_empty(&pk->turns) ? NULL :
					   list_entry(pk->turns.next, struct pack_turn, link);
}

static void turn_begin(struct pack *pk, struct pack_turn *t, uint64_t off, uint64_t len)
{
	uint64_t cluster = pk->w->cluster;

	*t = (struct pack_turn){ .off = align_down(off, cluster),
				 .end = align_up(off + len, cluster) };
	list_add_tail(&pk->turns, &t->link);
}

static void turn_wait(struct pack *pk, struct pack_turn *t)
{
	t->fiber = fiber_self();
	while (first_turn(pk) != t)
		fiber_park();
	t->fiber = NULL;
}

void pack_turn_wait(struct pack *pk, struct pack_turn *t, uint64_t off, uint64_t len)
{
	turn_begin(pk, t, off, len);
	turn_wait(pk, t);
}

void pack_turn_end(struct pack *pk, struct pack_turn *t)
{
	struct pack_turn *next;

	list_del(&t->link);
	list_init(&t->link);
	next = first_turn(pk);
	if (next && next->fiber)
		fiber_wake(next->fiber);
	fiber_queue_wake(&pk->moved);
}

/* Is there one before @j that changes its cluster? */
static bool has_elder(const struct pack *pk, const struct job *j)
{
	list_for_each(n, &pk->turns) {
		const struct pack_turn *o = list_entry(n, struct pack_turn, link);

		if (o == &j->turn)
			break;
		if (o->off < j->turn.end && j->turn.off < o->end)
			return true;
	}
	return false;
}

/* ---- steps of a job ---- */

/* Bytes of the cluster that the guest can see. */
static uint64_t visible(const struct pack *pk, const struct job *j)
{
	uint64_t size = atomic_load_explicit(&pk->w->q->node.size, memory_order_relaxed);

	return MIN(pk->w->cluster, size - j->guest);
}

static bool is_whole(const struct pack *pk, const struct job *j)
{
	return j->part.off == j->guest && j->part.len == visible(pk, j);
}

/* Opens the cluster, whose slice is in @at, if it can be: 1. 0: look again. Or -errno. Waits only
 * where it answers 0. */
static int open_at(struct pack *pk, struct job *j, struct l2_at *at)
{
	struct writer *w = pk->w;
	struct units u = units_of(w->q, l2_pair(w, at, j->guest), j->guest);

	if (w->dead)
		return w->dead;
	if (pending_find(&w->pendings, j->guest))
		return pendings_close_wait(&w->pendings, j->guest, 1);
	if (u.is_bad)
		return write_corrupt(w, u.pair, j->guest);
	if (guard_entry(w, u.pair.entry, j->guest))
		return -EUCLEAN;
	/* Of a cluster of the image's own, other loops may be writing parts in place just now: it
	 * is replaced as a whole, or written to as by anybody. */
	j->is_in_place = u.is_own && !(j->parent->is_wanted && is_whole(pk, j));
	if (j->is_in_place)
		return 1;
	if (w->pendings.n == PENDING_MAX)
		return pendings_room_wait(&w->pendings);
	pendings_cache_slice(&w->pendings, at);
	j->p = pending_open_packed(&w->pendings, at, j->guest);
	return j->p ? 1 : -ENOMEM;
}

static int open_wait(struct pack *pk, struct job *j)
{
	struct writer *w = pk->w;
	int rc = mark_set_wait(w);

	while (!rc) {
		struct l2_at at;

		rc = l2_get_wait(w, j->guest, true, &at);
		if (rc)
			break;
		rc = open_at(pk, j, &at);
		l2_put(w, &at);
	}
	return MIN(rc, 0);
}

static uint8_t *cluster_memory(const struct pack *pk)
{
	return aligned_alloc(PACK_ALIGN, align_up(pk->w->cluster, PACK_ALIGN));
}

/* Lets j->c.plain be what the cluster shall hold. Whoever asks for compression leaves its memory
 * alone; a guest may change it while we look. */
static int fetch_wait(struct pack *pk, struct job *j)
{
	struct writer *w = pk->w;
	uint64_t cluster = w->cluster, at = j->part.off - j->guest;
	int rc = 0;

	j->c.pack = pk;
	j->c.out = cluster_memory(pk);
	if (!j->c.out)
		return -ENOMEM;
	j->c.plain = j->parent->is_wanted && j->part.len == cluster ? req_flat(&j->part) : NULL;
	if (j->c.plain)
		return 0;
	j->copy = cluster_memory(pk);
	if (!j->copy)
		return -ENOMEM;
	j->c.plain = j->copy;
	memset(j->copy + visible(pk, j), 0, cluster - visible(pk, j));
	if (!is_whole(pk, j))
		rc = fill_read_wait(&w->pendings.fills, &j->p->old, j->guest, j->copy, 0,
				    visible(pk, j));
	if (!rc)
		req_copy_from(&j->part, 0, j->copy + at, j->part.len);
	return rc;
}

static void compress(void *arg)
{
	struct pack_cluster *c = arg;
	uint64_t cluster = c->pack->w->cluster;

	c->len = codec_deflate(&c->pack->codec, c->plain, cluster, c->out, cluster - 1);
}

int pack_compress_wait(struct pack_cluster *c)
{
	struct pack *pk = c->pack;

	while (pk->ncompressing >= codec_at_once(&pk->codec, pk->w->cluster))
		fiber_queue_wait(&pk->compressed);
	pk->ncompressing++;
	if (pk->w->cluster <= INLINE_BYTES_MAX)
		compress(c);
	else
		loop_work_wait(pk->w->home, compress, c);
	pk->ncompressing--;
	fiber_queue_wake(&pk->compressed);
	return c->len < 0 ? (int)c->len : 0;
}

/* Leaves the cluster to those that gather. */
static int gather(struct pack *pk, struct job *j)
{
	uint64_t lo = j->part.off - j->guest;
	int rc = pack_gather(pk, j->p, j->copy, j->c.out, lo, lo + j->part.len);

	if (rc)
		return rc;
	j->is_gathered = true;
	j->copy = j->c.out = NULL;
	return 0;
}

/* A write that reads the rest of its cluster, or finds it in memory. In a fiber that waits for its
 * elders. */
static int prepare_part_wait(struct pack *pk, struct job *j)
{
	struct pending *p = pending_find(&pk->w->pendings, j->guest);
	bool gathers = !j->parent->is_wanted;
	int rc = 0;

	if (gathers && p && pack_gather_join(pk, p, &j->part)) {
		j->is_gathered = true;
		return 0;
	}
	if (gathers)
		rc = pack_gather_room_wait(pk);
	if (!rc)
		rc = open_wait(pk, j);
	if (rc || j->is_in_place)
		return rc;
	rc = fetch_wait(pk, j);
	if (rc)
		return rc;
	return gathers ? gather(pk, j) : pack_compress_wait(&j->c);
}

/* All that needs no turn. */
static int prepare_wait(struct pack *pk, struct job *j)
{
	struct writer *w = pk->w;
	bool is_part = !is_whole(pk, j);
	int rc = write_begin_wait(w);

	if (!rc)
		rc = write_throttle_wait(w);
	if (rc)
		return rc;
	track_change(&w->track, j->part.off, j->part.len);
	/* Before the old content is read, or it is known that all stays where it is. The cluster is
	 * opened for that, which may take another for its table: in turn (Z10). A guest's small
	 * writes have no turns, or they could not gather. */
	if (is_part && j->parent->is_wanted && !(w->broken & BREAK_X5_ANY_ORDER))
		turn_wait(pk, &j->turn);
	else if (is_part || !j->parent->is_wanted)
		while (has_elder(pk, j))
			fiber_queue_wait(&pk->moved);
	if (is_part)
		return prepare_part_wait(pk, j);
	if (!j->parent->is_wanted)
		rc = open_wait(pk, j);
	if (!rc && !j->is_in_place)
		rc = fetch_wait(pk, j);
	return rc || j->is_in_place ? rc : pack_compress_wait(&j->c);
}

int pack_take_wait(struct pack *pk, uint64_t *ret_host)
{
	struct writer *w = pk->w;
	struct alloc_run run;
	int rc = 0;

	while (!rc && !alloc_take(&w->alloc, 1, &run)) {
		w->alloc.is_dense = true;
		rc = alloc_fill_wait(&w->alloc);
	}
	if (rc)
		return rc;
	pk->nplain++;
	pk->nstoring++;
	*ret_host = run.first * w->cluster;
	return 0;
}

/* In turn. */
static int place_wait(struct pack *pk, struct job *j, uint64_t *ret_host)
{
	int rc = pack_retry_wait(pk);

	if (!rc && !j->p)
		rc = open_wait(pk, j);
	if (rc)
		return rc;
	if (j->c.len)
		return pack_place_wait(pk, j->p, j->c.out, (size_t)j->c.len);
	return pack_take_wait(pk, ret_host);
}

int pack_store_wait(struct pack *pk, struct pending *p, const uint8_t *plain, uint64_t host)
{
	struct writer *w = pk->w;
	struct iovec iov = { (void *)(uintptr_t)plain, w->cluster };
	struct req req = { .kind = REQ_WRITE, .off = host, .len = w->cluster, .iov = &iov,
			   .iovcnt = 1 };
	int rc = chan_submit_wait(w->file, &req);

	commit_note(&w->commit);
	pk->nstoring--;
	if (!rc)
		pending_stored(p, host);
	else
		alloc_untake(&w->alloc, host / w->cluster, 1, false);
	return rc;
}

static int run_wait(struct pack *pk, struct job *j)
{
	uint64_t host = 0;
	int rc = prepare_wait(pk, j);

	if (!rc && !j->is_in_place && !j->is_gathered) {
		turn_wait(pk, &j->turn);
		rc = place_wait(pk, j, &host);
	}
	pack_turn_end(pk, &j->turn);
	if (!rc && j->is_in_place)
		return write_range_wait(pk->w, &j->part);
	if (!rc && host)
		rc = pack_store_wait(pk, j->p, j->c.plain, host);
	if (rc && j->p)
		pending_not_packed(j->p);
	return rc;
}

static void job_fiber(struct task *t)
{
	struct job *j = container_of(t, struct job, task);
	struct parent *f = j->parent;
	struct pack *pk = f->pack;
	int rc = run_wait(pk, j);

	free(j->copy);
	free(j->c.out);
	if (rc && !f->res)
		f->res = rc;
	j->is_busy = false;
	f->busy--;
	fiber_gate_leave(pk->w->home, &pk->gate);
	fiber_wake(f->fiber);
}

/* ---- requests ---- */

static struct job *job_get_wait(struct parent *f)
{
	unsigned i = 0;

	while (f->busy == PARTS)
		fiber_park();
	while (f->jobs[i].is_busy)
		i++;
	return &f->jobs[i];
}

/* The job for what of @req, from @at on, lies in one cluster: *@ret_len bytes. */
static void job_start(struct parent *f, struct job *j, const struct req *req, uint64_t at,
		      uint64_t *ret_len)
{
	struct pack *pk = f->pack;
	uint64_t off = req->off + at, guest = align_down(off, pk->w->cluster);

	*ret_len = MIN(req->len - at, guest + pk->w->cluster - off);
	*j = (struct job){ .parent = f, .guest = guest, .is_busy = true, .task.fn = job_fiber };
	req_part(req, at, *ret_len, &j->part);
	j->part.kind = REQ_WRITE;
	j->part.flags = 0;
	f->busy++;
	turn_begin(pk, &j->turn, off, *ret_len);
	fiber_gate_start(pk->w->home, &pk->gate, &j->task);
}

int pack_write_wait(struct pack *pk, const struct req *req)
{
	struct parent f;
	uint64_t len;

	if (pk->w->q->has_data_file)
		return -ENOTSUP;
	f.pack = pk;
	f.fiber = fiber_self();
	f.is_wanted = req->flags & REQ_COMPRESSED;
	f.busy = 0;
	f.res = 0;
	for (unsigned i = 0; i < PARTS; i++)
		f.jobs[i].is_busy = false;
	for (uint64_t at = 0; at < req->len && !f.res; at += len)
		job_start(&f, job_get_wait(&f), req, at, &len);
	while (f.busy)
		fiber_park();
	return f.res;
}
