/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/alloc.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/writer.h"

enum { L1_PIECE_BYTES = 64 << 10 };

static uint64_t target_max(const struct alloc *a)
{
	return MAX((uint64_t)ALLOC_RESERVE_MIN, ALLOC_RESERVE_BYTES / a->w->cluster);
}

/* ---- clusters that tables occupy ---- */

int alloc_metadata_add(struct alloc *a, uint64_t first, uint64_t n)
{
	return cluster_set_add(&a->metadata, first, n);
}

void alloc_metadata_del(struct alloc *a, uint64_t first, uint64_t n)
{
	cluster_set_del(&a->metadata, first, n);
}

bool alloc_is_metadata(const struct alloc *a, uint64_t first, uint64_t n)
{
	return cluster_set_has(&a->metadata, first, n);
}

bool alloc_is_shared_table(const struct alloc *a, uint64_t cluster)
{
	return cluster_set_has(&a->overlaps, cluster, 1);
}

/* Bytes of the file, wherever they begin. */
static int metadata_add_bytes(struct alloc *a, uint64_t off, uint64_t len)
{
	uint64_t first = off / a->w->cluster;

	return len ? alloc_metadata_add(a, first, div_round_up(off % a->w->cluster + len,
							       a->w->cluster)) : 0;
}

static int add_l2_table(struct alloc *a, uint64_t off)
{
	uint64_t cluster = off / a->w->cluster;

	if (!alloc_is_metadata(a, cluster, 1))
		return alloc_metadata_add(a, cluster, 1);
	return cluster_set_add(&a->overlaps, cluster, 1);
}

/* The active L2 tables. */
static int add_l2_tables_wait(struct alloc *a)
{
	const struct qcow2_header *h = &a->w->q->header;
	uint64_t bytes = (uint64_t)h->l1_entries * 8, len;
	uint8_t *piece = aligned_alloc(4096, L1_PIECE_BYTES);
	int rc = piece ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < bytes && !rc; at += len) {
		len = MIN(bytes - at, (uint64_t)L1_PIECE_BYTES);
		rc = chan_read_wait(a->w->file, h->l1_off + at, piece, len);
		for (uint64_t i = 0; i < len && !rc; i += 8) {
			uint64_t table = be64_load(piece + i) & QCOW2_OFFSET_MASK;

			if (table)
				rc = add_l2_table(a, table);
		}
	}
	free(piece);
	return rc;
}

/* The table of snapshots and their L1 tables. */
static int add_snapshots_wait(struct alloc *a, struct err *err)
{
	const struct qcow2_header *h = &a->w->q->header;
	struct snapshot_walk walk;
	int rc = 0;

	if (!h->nb_snapshots)
		return 0;
	rc = snapshot_walk_start(&walk, a->w->file, h, err);
	while (!rc && walk.index < h->nb_snapshots) {
		const struct snapshot *s = &walk.entry.snapshot;

		rc = snapshot_walk_wait(&walk, err);
		if (rc)
			break;
		rc = metadata_add_bytes(a, s->l1_off, MIN((uint64_t)s->l1_entries * 8,
							  (uint64_t)QCOW2_L1_BYTES_MAX));
		if (rc)
			err_set_errno(err, -rc, "snapshots");
	}
	if (!rc) {
		rc = metadata_add_bytes(a, h->snapshots_off, walk.off - h->snapshots_off);
		if (rc)
			err_set_errno(err, -rc, "snapshots");
	}
	snapshot_walk_end(&walk);
	return rc;
}

static int metadata_fill_wait(struct alloc *a, struct err *err)
{
	const struct writer *w = a->w;
	const struct qcow2_header *h = &w->q->header;
	int rc = alloc_metadata_add(a, 0, 1);

	if (!rc)
		rc = metadata_add_bytes(a, h->l1_off, (uint64_t)h->l1_entries * 8);
	if (!rc)
		rc = metadata_add_bytes(a, w->refs.table_off, w->refs.table_entries * 8);
	for (uint64_t i = 0; i < w->refs.table_used && !rc; i++)
		if (refs_is_block(&w->refs, w->refs.table[i]))
			rc = alloc_metadata_add(a, w->refs.table[i] / w->cluster, 1);
	if (!rc)
		rc = add_l2_tables_wait(a);
	if (rc)
		return err_set_errno(err, -rc, "cannot note where the metadata lies");
	return add_snapshots_wait(a, err);
}

int alloc_open_wait(struct alloc *a, struct writer *w, struct err *err)
{
	const struct node *file = w->file->node;

	*a = (struct alloc){ .w = w, .target = ALLOC_RESERVE_MIN, .fresh_from = UINT64_MAX };
	quarantine_init(&a->quarantine, w);
	if (file->holes_read_zero)
		a->fresh_from = div_round_up(atomic_load(&file->size), w->cluster);
	a->fresh_first = a->fresh_from;
	a->cut_floor = atomic_load(&file->size);
	return metadata_fill_wait(a, err);
}

void alloc_fini(struct alloc *a)
{
	quarantine_fini(&a->quarantine);
	cluster_set_fini(&a->metadata);
	cluster_set_fini(&a->overlaps);
}

/* ---- the reserve ---- */

static bool is_alike(const struct alloc_run *a, const struct alloc_run *b)
{
	return a->is_durable == b->is_durable && a->is_fresh == b->is_fresh &&
	       a->is_cut == b->is_cut;
}

static void run_del(struct alloc *a, unsigned i)
{
	a->nruns--;
	memmove(&a->runs[i], &a->runs[i + 1], (a->nruns - i) * sizeof(a->runs[0]));
}

/* Makes one run of @i and the next, where they are alike and adjacent. */
static bool run_join(struct alloc *a, unsigned i)
{
	struct alloc_run *r = &a->runs[i];

	if (i + 1 >= a->nruns || r->first + r->n != r[1].first || !is_alike(r, &r[1]))
		return false;
	r->n += r[1].n;
	run_del(a, i + 1);
	return true;
}

static void runs_join(struct alloc *a)
{
	for (unsigned i = 0; i < a->nruns;)
		if (!run_join(a, i))
			i++;
}

/* False: there is no place for it. */
static bool run_add(struct alloc *a, struct alloc_run run)
{
	unsigned i = 0;

	if (!run.n)
		return true;
	if (a->nruns == ALLOC_RUNS_MAX)
		return false;
	while (i < a->nruns && a->runs[i].first < run.first)
		i++;
	memmove(&a->runs[i + 1], &a->runs[i], (a->nruns - i) * sizeof(a->runs[0]));
	a->runs[i] = run;
	a->nruns++;
	a->reserved += run.n;
	run_join(a, i);
	if (i)
		run_join(a, i - 1);
	return true;
}

/* The lowest durable run, else the lowest that will be soon, else the lowest. */
static unsigned run_to_take(const struct alloc *a)
{
	unsigned cut = a->nruns;

	for (unsigned i = 0; i < a->nruns; i++) {
		if (a->runs[i].is_durable)
			return i;
		if (a->runs[i].is_cut && cut == a->nruns)
			cut = i;
	}
	return cut < a->nruns ? cut : 0;
}

uint64_t alloc_next(const struct alloc *a)
{
	return a->nruns ? a->runs[run_to_take(a)].n : 0;
}

/* From the start of run @i. */
static void take_from(struct alloc *a, unsigned i, uint64_t want, struct alloc_run *ret)
{
	struct alloc_run *run = &a->runs[i];

	assert(want);
	*ret = *run;
	ret->n = MIN(want, run->n);
	/* If the commit under way fails, alloc_cut_end() says that A is needed. */
	if (!run->is_durable && !run->is_cut)
		a->needs_a = true;
	if (a->w->broken & BREAK_Q2_ALWAYS_ZERO)
		ret->is_fresh = true;
	run->first += ret->n;
	run->n -= ret->n;
	if (!run->n)
		run_del(a, i);
	a->reserved -= ret->n;
	a->taken += ret->n;
	a->ntaken += ret->n;
}

bool alloc_take(struct alloc *a, uint64_t want, struct alloc_run *ret)
{
	if (!a->nruns)
		return false;
	take_from(a, run_to_take(a), want, ret);
	return true;
}

bool alloc_take_at(struct alloc *a, uint64_t first, uint64_t want, struct alloc_run *ret)
{
	unsigned i = 0;

	while (i < a->nruns && a->runs[i].first != first)
		i++;
	if (i == a->nruns)
		return false;
	take_from(a, i, want, ret);
	return true;
}

void alloc_expect(struct alloc *a)
{
	a->target = MAX(a->target, MIN(a->ntaken / 4, target_max(a)));
}

void alloc_untake(struct alloc *a, uint64_t first, uint64_t n, bool is_fresh)
{
	/* It may be durable already; the next commit makes it so in any case. */
	if (!run_add(a, (struct alloc_run){ .first = first, .n = n, .is_fresh = is_fresh }))
		alloc_free(a, first, n);
}

void alloc_not_fresh(struct alloc *a, uint64_t end)
{
	a->fresh_from = MAX(a->fresh_from, end);
}

void alloc_named(struct alloc *a, uint64_t cluster)
{
	if (cluster < a->fresh_first)
		return;
	if (cluster >= a->fresh_from)
		alloc_not_fresh(a, cluster + 1);
	for (unsigned i = 0; i < a->nruns; i++)
		if (cluster - a->runs[i].first < a->runs[i].n)
			a->runs[i].is_fresh = false;
}

/* An entry may reach the disk before the data that makes the file long enough for its cluster, and
 * a cluster behind the end is damage to everybody: so the file ends behind the last cluster of the
 * reserve, and durably so when their refcounts are (Q12). File systems let all others wait for a
 * write that makes the file longer: so none does, but where there is no other way to that end. */
static int file_grow_wait(struct alloc *a, uint64_t last)
{
	static const uint8_t zeros[4096] __attribute__((aligned(4096)));
	uint64_t end = (last + 1) * a->w->cluster, len = MIN(sizeof(zeros), a->w->cluster);
	int rc = 0;

	if (!(a->w->broken & BREAK_Q12_SHORT))
		rc = node_grow_wait(a->w->file->node, end, a->is_dense);
	return rc == -ENOTSUP ? chan_write_wait(a->w->file, end - len, zeros, len) : rc;
}

/* One run of free clusters, @want at most, into the reserve, which has place for two. */
static int fill_run_wait(struct alloc *a, uint64_t want)
{
	struct writer *w = a->w;
	struct alloc_run run = { 0 }, fresh;
	int rc;

	w->refs.is_still = a->is_in_order && (a->reserved || !a->nasking);
	rc = refs_find_wait(&w->refs, want, &run.first, &run.n);
	if (rc)
		return rc;
	if (alloc_is_metadata(a, run.first, run.n) && !(w->broken & BREAK_Q6_OVERLAP)) {
		return writer_latch(w, qcow2_corrupt(w->q, "metadata at %#llx has no refcount",
						     (unsigned long long)
						     (run.first * w->cluster)));
	}
	reclaim_touch(&w->reclaim, run.first, run.n);
	rc = file_grow_wait(a, run.first + run.n - 1);
	if (!rc)
		rc = refs_add_wait(&w->refs, run.first, run.n, 1);
	if (rc)
		return rc;
	a->nfilled += run.n;
	fresh = run;
	if (a->fresh_from < run.first + run.n) {
		fresh.first = MAX(run.first, a->fresh_from);
		fresh.n = run.first + run.n - fresh.first;
		fresh.is_fresh = true;
		run.n -= fresh.n;
		run_add(a, run);
	}
	run_add(a, fresh);
	alloc_not_fresh(a, fresh.first + fresh.n);
	return 0;
}

/* There is no room for so many clusters. What was freed is wanted now, whatever the order (X5). */
static void fall_short(struct alloc *a)
{
	if (!a->quarantine.is_held)
		return;
	quarantine_let_go(&a->quarantine);
	commit_kick(&a->w->commit);
}

static int fill_wait(struct alloc *a)
{
	struct writer *w = a->w;
	uint64_t before = a->nfilled, most = UINT64_MAX;
	int rc = w->dead ? w->dead : mark_set_wait(w);

	while (!rc && a->nruns + 2 <= ALLOC_RUNS_MAX &&
	       (a->reserved < a->target || a->nfilled == before)) {
		uint64_t want = a->reserved < a->target ? a->target - a->reserved : 1;

		want = MIN(want, most);
		rc = fill_run_wait(a, want);
		if (rc == -ENOSPC)
			fall_short(a);
		/* Where there is no room for so many, there may be for fewer. */
		if (rc == -ENOSPC && want > 1 && !w->dead) {
			most = want / 2;
			rc = 0;
		}
	}
	/* Who waits for clusters gets some. */
	return a->nfilled > before && !w->dead ? 0 : rc;
}

/* One filling at a time; who comes meanwhile shares it. */
static int fill_or_join_wait(struct alloc *a)
{
	if (a->is_filling) {
		while (a->is_filling)
			fiber_queue_wait(&a->waiting);
		return a->fill_rc;
	}
	a->is_filling = true;
	a->fill_rc = fill_wait(a);
	a->is_filling = false;
	fiber_queue_wake(&a->waiting);
	return a->fill_rc;
}

int alloc_fill_wait(struct alloc *a)
{
	int rc;

	a->ran_out = true;
	a->nasking++;
	do
		rc = fill_or_join_wait(a);
	while ((rc == -EAGAIN && !a->reserved) ||       /* a filling that nobody had asked for */
	       (rc == -ENOSPC && reclaim_room_wait(&a->w->reclaim)));
	a->nasking--;
	return rc == -EAGAIN ? 0 : rc;
}

/* Gives the reserve back: REF- in the pages. What cannot be given back leaks. */
static int give_back_wait(struct alloc *a)
{
	int first = 0;

	while (a->is_filling)                   /* for a commit */
		fiber_queue_wait(&a->waiting);
	while (a->nruns) {
		const struct alloc_run run = a->runs[--a->nruns];
		int rc = a->w->dead;

		a->reserved -= run.n;
		if (!rc)
			rc = refs_add_wait(&a->w->refs, run.first, run.n, -1);
		a->w->has_leaked |= rc != 0;
		first = first ? first : rc;
	}
	return first;
}

int alloc_close_wait(struct alloc *a)
{
	a->target = ALLOC_RESERVE_MIN;
	return give_back_wait(a);
}

int alloc_reuse_wait(struct alloc *a)
{
	struct writer *w = a->w;
	int rc = pendings_close_all_wait(&w->pendings, true);

	if (rc || !a->quarantine.clusters)
		return rc;
	a->is_reusing = true;
	rc = pack_leave_wait(&w->pack);
	if (!rc)
		rc = give_back_wait(a);
	if (!rc)
		rc = commit_wait(&w->commit);
	if (!rc)
		alloc_settle_wait(a);
	a->is_reusing = false;
	return rc;
}

void alloc_cut_file_wait(struct alloc *a)
{
	struct writer *w = a->w;
	struct node *file = w->file->node;
	uint64_t size = atomic_load(&file->size), end = div_round_up(size, w->cluster);

	if (refs_end_wait(&w->refs, a->cut_floor / w->cluster, end, &end))
		return;
	if ((w->broken & BREAK_Q10_CUT) && end)
		end--;
	end = end ? (end - 1) * w->cluster + pack_tail(&w->pack, end - 1) : 0;
	end = MAX(end, a->cut_floor);
	if (end < size)
		node_truncate_wait(file, end);
}

/* ---- quarantine and commit ---- */

void alloc_free(struct alloc *a, uint64_t first, uint64_t n)
{
	a->nfreed += n;
	quarantine_add(&a->quarantine, first, n);
}

void alloc_topup_wait(struct alloc *a)
{
	if (!a->nfilled || a->w->dead || a->w->commit.is_last || a->is_reusing)
		return;                 /* nobody has written yet, or nobody ever will, or now */
	if (a->ran_out || a->taken >= a->target)
		a->target = MIN(2 * a->target, target_max(a));
	else if (a->taken < a->target / 8)
		a->target = MAX(a->target / 2, (uint64_t)ALLOC_RESERVE_MIN);
	if (a->taken && a->reserved < div_round_up(a->target, 2))
		fill_or_join_wait(a);
}

bool alloc_cut(struct alloc *a)
{
	bool needs_a = a->needs_a;

	for (unsigned i = 0; i < a->nruns; i++)
		a->runs[i].is_cut = !a->runs[i].is_durable;
	quarantine_cut(&a->quarantine);
	runs_join(a);
	a->needs_a = false;
	a->ran_out = false;
	a->taken = 0;
	return needs_a;
}

void alloc_cut_end(struct alloc *a, int res)
{
	for (unsigned i = 0; i < a->nruns; i++) {
		a->runs[i].is_durable |= a->runs[i].is_cut && !res;
		a->runs[i].is_cut = false;
	}
	runs_join(a);
	if (res)
		a->needs_a = true;
	quarantine_cut_end(&a->quarantine, res);
}

void alloc_settle_wait(struct alloc *a)
{
	quarantine_settle_wait(&a->quarantine);
}
