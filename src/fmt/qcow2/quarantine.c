/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/quarantine.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "blk/epoch.h"
#include "fmt/qcow2/writer.h"

enum { RELEASE_CLUSTERS_MAX = 2048, RELEASE_RUNS_MAX = 256 };  /* between two turns for others */

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

/* ---- what was freed how often ---- */

/* Clusters that @times of those who shared them have freed. */
struct freed {
	uint64_t first, n, times;
};

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* Makes *@ret, owned, of @l, which is sorted: clusters one behind the other, each but once. Returns
 * how many of them; 0: there is no memory. */
static size_t list_flatten(const struct run_list *l, struct freed **ret)
{
	struct freed *f = malloc(2 * l->n * sizeof(*f));
	uint64_t *ends = malloc(l->n * sizeof(*ends)), at = 0, times = 0;
	size_t n = 0;

	if (!f || !ends) {
		free(f);
		free(ends);
		return 0;
	}
	for (size_t i = 0; i < l->n; i++)
		ends[i] = l->runs[i].first + l->runs[i].n;
	qsort(ends, l->n, sizeof(*ends), by_number);
	for (size_t i = 0, k = 0; k < l->n;) {
		uint64_t next = i < l->n ? MIN(l->runs[i].first, ends[k]) : ends[k];

		if (times && next > at)
			f[n++] = (struct freed){ at, next - at, times };
		for (at = next; i < l->n && l->runs[i].first == at; i++)
			times++;
		for (; k < l->n && ends[k] == at; k++)
			times--;
	}
	free(ends);
	*ret = f;
	return n;
}

/* ---- releasing ---- */

static void discard_wait(const struct quarantine *q, uint64_t first, uint64_t n)
{
	struct req req = { .kind = REQ_DISCARD, .off = first * q->w->cluster,
			   .len = n * q->w->cluster };

	if (n)
		chan_submit_wait(q->w->file, &req);
}

/* Gives back to the medium what becomes free, neighbours at once. Errors do not matter. */
static void punch_wait(const struct quarantine *q, const struct freed *f, size_t n)
{
	uint64_t first = 0, len = 0, count;

	for (size_t i = 0; i < n; i++)
		for (uint64_t c = f[i].first; c < f[i].first + f[i].n; c++) {
			if (refs_get_wait(&q->w->refs, c, &count) || count != f[i].times)
				continue;
			if (first + len != c) {
				discard_wait(q, first, len);
				first = c;
				len = 0;
			}
			len++;
		}
	discard_wait(q, first, len);
}

/* May these be released? */
static int judge(const struct quarantine *q, const struct freed *f)
{
	struct writer *w = q->w;

	if (!w->dead && alloc_is_metadata(&w->alloc, f->first, f->n))
		writer_latch(w, qcow2_corrupt(w->q, "a cluster of the disk at %#llx is metadata, "
					      "too", (unsigned long long)(f->first * w->cluster)));
	return w->dead;
}

static int lower_wait(const struct quarantine *q, const struct freed *f)
{
	struct writer *w = q->w;
	int rc = judge(q, f);

	if (rc)
		return rc;
	/* In the reserve, where it is taken from without a look at anything. */
	if ((w->broken & BREAK_Q4_NO_COMMIT) && w->alloc.nruns < ALLOC_RUNS_MAX) {
		alloc_untake(&w->alloc, f->first, f->n, false);
		return 0;
	}
	return refs_add_wait(&w->refs, f->first, f->n, -1);
}

/* No durable table names these clusters, no request uses them. */
static void release_wait(struct quarantine *q, const struct freed *f, size_t n)
{
	int rc = 0;

	for (size_t i = 0; i < n && !rc; i++)
		rc = judge(q, &f[i]);
	for (size_t i = 0; i < n && !rc; i++)
		reclaim_release_wait(&q->w->reclaim, f[i].first, f[i].n, f[i].times);
	if (!rc && q->w->discard)
		punch_wait(q, f, n);
	for (size_t i = 0; i < n; i++)
		for (uint64_t times = f[i].times; times; times--) {
			rc = lower_wait(q, &f[i]);
			if (rc)
				leak(q, f[i].n, rc);
			else
				q->clusters -= f[i].n;
		}
}

/* Some at a time. */
static void release_all_wait(struct quarantine *q, struct freed *f, size_t n)
{
	struct freed some[RELEASE_RUNS_MAX];

	for (size_t i = 0; i < n;) {
		uint64_t room = RELEASE_CLUSTERS_MAX;
		size_t nsome = 0;

		while (i < n && room && nsome < RELEASE_RUNS_MAX) {
			struct freed *next = &some[nsome++];

			*next = f[i];
			next->n = MIN(next->n, room);
			room -= next->n;
			f[i].first += next->n;
			f[i].n -= next->n;
			i += !f[i].n;
		}
		release_wait(q, some, nsome);
		fiber_yield_wait();
	}
}

static void release_fiber(struct task *t)
{
	struct quarantine *q = container_of(t, struct quarantine, task);

	while (q->resting.n) {
		struct run_list batch = q->resting;
		struct freed *freed = NULL;
		size_t n;

		q->resting = (struct run_list){ 0 };
		if (!(q->w->broken & BREAK_Q4_NO_EPOCH))
			epoch_wait();
		list_sort(&batch);
		n = list_flatten(&batch, &freed);
		if (n)
			release_all_wait(q, freed, n);
		else
			leak(q, list_clusters(&batch), -ENOMEM);
		free(freed);
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
	if (!q->is_held && q->clusters > QUARANTINE_BYTES / w->cluster)
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
	if (!q->is_held)
		release_start(q);
}

void quarantine_hold(struct quarantine *q)
{
	q->is_held = !q->is_let_go;
}

void quarantine_let_go(struct quarantine *q)
{
	q->is_let_go = true;
	q->is_held = false;
	release_start(q);
}

void quarantine_settle_wait(struct quarantine *q)
{
	release_start(q);
	while (q->is_releasing)
		fiber_queue_wait(&q->settled);
}
