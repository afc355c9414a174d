/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/quarantine.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "blk/epoch.h"
#include "fmt/qcow2/writer.h"

enum { RELEASE_CLUSTERS_MAX = 2048 };   /* between two turns for others */

void quarantine_init(struct quarantine *q, struct writer *w)
{
	*q = (struct quarantine){ .w = w };
}

static void list_fini(struct run_list *l)
{
	free(l->runs);
	*l = (struct run_list){ 0 };
}

void quarantine_fini(struct quarantine *q)
{
	assert(!q->is_releasing);
	list_fini(&q->freed);
	list_fini(&q->cut);
	list_fini(&q->resting);
}

/* @n clusters stay allocated for good. */
static void leak(struct quarantine *q, uint64_t n, int why)
{
	q->clusters -= n;
	q->w->has_leaked = true;
	if (q->is_leak_logged)
		return;
	q->is_leak_logged = true;
	log_warn("'%s': clusters that were freed stay allocated (%s); "
		 "'byre check -r leaks' gives them back", q->w->q->node.name, strerror(-why));
}

/* ---- lists of runs ---- */

static bool list_reserve(struct run_list *l, size_t more)
{
	size_t room = MAX(l->room, (size_t)16);
	void *runs;

	if (l->n + more <= l->room)
		return true;
	while (room < l->n + more)
		room *= 2;
	runs = realloc(l->runs, room * sizeof(*l->runs));
	if (!runs)
		return false;
	l->runs = runs;
	l->room = room;
	return true;
}

/* Adjacent ones become one; the same cluster twice stays two: it was shared. */
static bool list_append(struct run_list *l, uint64_t first, uint64_t n)
{
	struct cluster_run *last = l->n ? &l->runs[l->n - 1] : NULL;

	if (last && last->first + last->n == first) {
		last->n += n;
		return true;
	}
	if (!list_reserve(l, 1))
		return false;
	l->runs[l->n++] = (struct cluster_run){ first, n };
	return true;
}

static int by_first(const void *a, const void *b)
{
	const struct cluster_run *x = a, *y = b;

	return x->first < y->first ? -1 : x->first > y->first;
}

static void list_sort(struct run_list *l)
{
	size_t n = l->n;

	if (!n)
		return;
	qsort(l->runs, n, sizeof(l->runs[0]), by_first);
	l->n = 0;
	for (size_t i = 0; i < n; i++)
		list_append(l, l->runs[i].first, l->runs[i].n); /* never more than there were */
}

static uint64_t list_clusters(const struct run_list *l)
{
	uint64_t n = 0;

	for (size_t i = 0; i < l->n; i++)
		n += l->runs[i].n;
	return n;
}

/* Moves all of @from to @to. Without memory they leak. */
static void list_move(struct quarantine *q, struct run_list *from, struct run_list *to)
{
	if (!from->n)
		return;
	if (!to->n) {
		struct run_list empty = *to;

		*to = *from;
		*from = empty;
		return;
	}
	if (from->n && list_reserve(to, from->n)) {
		memcpy(to->runs + to->n, from->runs, from->n * sizeof(from->runs[0]));
		to->n += from->n;
	} else {
		leak(q, list_clusters(from), -ENOMEM);
	}
	from->n = 0;
}

/* ---- releasing ---- */

/* Gives back to the medium what becomes free of [@first, @first + @n). Errors do not matter. */
static void punch_wait(struct quarantine *q, uint64_t first, uint64_t n)
{
	struct writer *w = q->w;
	uint64_t end = first + n, count;

	while (first < end) {
		uint64_t run = 0;
		struct req req = { .kind = REQ_DISCARD, .off = first * w->cluster };

		while (first + run < end && !refs_get_wait(&w->refs, first + run, &count) &&
		       count == 1)
			run++;
		req.len = run * w->cluster;
		if (run)
			chan_submit_wait(w->file, &req);
		first += MAX(run, 1ULL);
	}
}

/* No durable table names these clusters, no request uses them. */
static int release_wait(struct quarantine *q, uint64_t first, uint64_t n)
{
	struct writer *w = q->w;

	if (!w->dead && alloc_is_metadata(&w->alloc, first, n))
		writer_latch(w, qcow2_corrupt(w->q, "a cluster of the disk at %#llx is metadata, "
					      "too", (unsigned long long)(first * w->cluster)));
	if (w->dead)
		return w->dead;
	if (w->discard)
		punch_wait(q, first, n);
	/* In the reserve, where it is taken from without a look at anything. */
	if ((w->broken & BREAK_Q4_NO_COMMIT) && w->alloc.nruns < ALLOC_RUNS_MAX) {
		alloc_untake(&w->alloc, first, n, false);
		return 0;
	}
	return refs_add_wait(&w->refs, first, n, -1);
}

static void release_run_wait(struct quarantine *q, struct cluster_run run)
{
	while (run.n) {
		uint64_t part = MIN(run.n, (uint64_t)RELEASE_CLUSTERS_MAX);
		int rc = release_wait(q, run.first, part);

		if (rc)
			leak(q, part, rc);
		else
			q->clusters -= part;
		run.first += part;
		run.n -= part;
		fiber_yield_wait();
	}
}

static void release_fiber(struct task *t)
{
	struct quarantine *q = container_of(t, struct quarantine, task);

	while (q->resting.n) {
		struct run_list batch = q->resting;

		q->resting = (struct run_list){ 0 };
		if (!(q->w->broken & BREAK_Q4_NO_EPOCH))
			epoch_wait();
		list_sort(&batch);
		for (size_t i = 0; i < batch.n; i++)
			release_run_wait(q, batch.runs[i]);
		list_fini(&batch);
	}
	q->is_releasing = false;
	fiber_queue_wake(&q->settled);
}

static void release_start(struct quarantine *q)
{
	if (q->is_releasing || !q->resting.n)
		return;
	q->is_releasing = true;
	q->task.fn = release_fiber;
	fiber_start(q->w->home, &q->task);
}

/* ---- in and through ---- */

void quarantine_add(struct quarantine *q, uint64_t first, uint64_t n)
{
	struct writer *w = q->w;

	q->clusters += n;
	reclaim_touch(&w->reclaim, first, n);
	if (!list_append(&q->freed, first, n)) {
		leak(q, n, -ENOMEM);
		return;
	}
	commit_note(&w->commit);
	if (q->clusters > QUARANTINE_BYTES / w->cluster)
		commit_kick(&w->commit);
	if (w->broken & (BREAK_Q1_EARLY_REF_MINUS | BREAK_Q4_NO_COMMIT)) {
		list_move(q, &q->freed, &q->resting);
		release_start(q);
	}
}

void quarantine_cut(struct quarantine *q)
{
	assert(!q->cut.n);
	list_move(q, &q->freed, &q->cut);
}

void quarantine_cut_end(struct quarantine *q, int res)
{
	list_move(q, &q->cut, res ? &q->freed : &q->resting);
	release_start(q);
}

void quarantine_settle_wait(struct quarantine *q)
{
	while (q->is_releasing)
		fiber_queue_wait(&q->settled);
}
