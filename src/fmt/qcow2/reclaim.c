/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/reclaim.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/writer.h"

enum { TRIES = 8 };                     /* while tables move all the time */

struct reclaim_leak {
	uint64_t cluster;
	uint64_t refcount;              /* as it is on disk... */
	uint64_t references;            /* ...and should be; the same: only... */
	bool is_unflagged;              /* ...the flag of the entry that names it is missing (R7) */
};

void reclaim_touch(struct reclaim *r, uint64_t first, uint64_t n)
{
	if (!r->touched)
		return;
	for (uint64_t c = first; c < first + n && c < r->clusters; c++)
		r->touched[c / 64] |= 1ULL << c % 64;
}

static bool is_touched(const struct reclaim *r, uint64_t cluster)
{
	if (r->w->broken & BREAK_R4_TOUCHED)
		return false;
	return cluster >= r->clusters || (r->touched[cluster / 64] >> cluster % 64 & 1);
}

int reclaim_table_left(struct reclaim *r, uint64_t cluster)
{
	return r->is_running ? cluster_set_add(&r->left, cluster, 1) : 0;
}

void reclaim_release_wait(struct reclaim *r, uint64_t first, uint64_t n, uint64_t times)
{
	uint64_t count;

	for (uint64_t c = first; c < first + n && r->is_running && !r->is_void; c++) {
		bool is_shared = !refs_get_wait(&r->w->refs, c, &count) && count > times;

		if (is_shared)
			r->is_unsure |= !(r->w->broken & BREAK_R6_SHARED);
		else if (cluster_set_has(&r->left, c, 1) && !(r->w->broken & BREAK_R8_GOES_ON))
			reclaim_void(r);
	}
}

static void leak_add(struct reclaim *r, struct reclaim_leak leak)
{
	if (r->nleaks == r->room) {
		unsigned room = MAX(64U, MIN(2 * r->room, (unsigned)RECLAIM_LEAKS_MAX));
		void *leaks = r->nleaks < RECLAIM_LEAKS_MAX ?
			      realloc(r->leaks, room * sizeof(*r->leaks)) : NULL;

		if (!leaks) {
			r->is_more = true;
			return;
		}
		r->leaks = leaks;
		r->room = room;
	}
	r->leaks[r->nleaks++] = leak;
	r->nunflagged += leak.is_unflagged;
}

static void note_difference(void *arg, uint64_t cluster, uint64_t refcount, uint64_t references,
			    bool is_unflagged)
{
	struct reclaim *r = arg;

	if (refcount < references)
		/* Seen before it was freed, and its refcount after that. */
		r->nexcused += is_touched(r, cluster);
	else if (is_touched(r, cluster))
		r->is_unsure |= refcount > 1;
	else if (is_unflagged && !r->is_last)
		r->is_unsure = true;                                    /* R7 */
	else
		leak_add(r, (struct reclaim_leak){ cluster, refcount, references, is_unflagged });
}

static int pace_wait(void *arg)
{
	struct reclaim *r = arg;

	if (!r->is_hurried && !r->is_urgent)
		fiber_sleep_wait(RECLAIM_PAUSE_NS);
	return r->is_void || r->w->dead ? -ECANCELED : 0;
}

/* R4: its refcount is not what it was when the walk saw it. */
static void leave(struct reclaim *r, struct reclaim_leak *k)
{
	r->is_unsure = true;
	r->nunflagged -= k->is_unflagged;
	k->is_unflagged = false;
}

/* A walk may be void when a part is done, and the next one does not find on disk what is done in
 * memory: so a refcount changes only from what was seen. In one step, for any number may be there
 * in an image that somebody made. */
static int free_leaks_wait(struct reclaim *r, uint64_t *ret_freed)
{
	int rc = r->nleaks ? mark_set_wait(r->w) : 0;

	for (unsigned i = 0; i < r->nleaks && !rc && !r->is_void; i++) {
		struct reclaim_leak *k = &r->leaks[i];

		rc = is_touched(r, k->cluster) ? -EAGAIN :
		     refs_lower_wait(&r->w->refs, k->cluster, k->refcount, k->references);
		*ret_freed += !rc && k->refcount > k->references;
		if (rc == -EAGAIN) {
			leave(r, k);
			rc = 0;
		}
	}
	return rc;
}

/* ---- COPIED flags: of the last walk ---- */

/* Does @entry name a cluster that was noted? They were, lowest first. */
static bool is_unflagged(const struct reclaim *r, uint64_t entry)
{
	uint64_t off = entry & QCOW2_OFFSET_MASK, cluster = off / r->w->cluster;
	unsigned from = 0, to = r->nleaks;

	if (!off || !is_aligned(off, r->w->cluster) || (entry & (QCOW2_COPIED | QCOW2_COMPRESSED)))
		return false;
	while (from < to) {
		unsigned mid = from + (to - from) / 2;

		if (r->leaks[mid].cluster < cluster)
			from = mid + 1;
		else
			to = mid;
	}
	return from < r->nleaks && r->leaks[from].cluster == cluster &&
	       r->leaks[from].is_unflagged;
}

/* R7: in the entries in @p of [@at, @end), one each @step bytes. Phase B of a commit has them,
 * behind a sync of the refcounts in A. */
static void set_flags(struct reclaim *r, struct meta_page *p, uint64_t at, uint64_t end,
		      unsigned step)
{
	struct writer *w = r->w;

	for (; at < end && r->nunflagged; at += step) {
		uint64_t entry = meta_value(&w->meta, p, at, 8);

		if (!is_unflagged(r, entry))
			continue;
		w->commit.needs_a |= !(w->broken & BREAK_R7_EARLY);
		meta_change(&w->meta, p, &(struct meta_record){
			.kind = p->kind, .width = 8, .off = at, .old = entry,
			.new = entry | QCOW2_COPIED });
		r->nunflagged--;
	}
}

/* In the L2 table at @off, unless it is something else as well: all refcounts are right by now. */
static int set_table_flags_wait(struct reclaim *r, uint64_t off)
{
	struct writer *w = r->w;
	uint64_t count = 0;
	int rc = 0;

	if (off && is_aligned(off, w->cluster) && !w->q->has_data_file)
		rc = refs_get_wait(&w->refs, off / w->cluster, &count);
	if (rc || count != 1)
		return rc;
	for (uint64_t at = off; at < off + w->cluster && !rc; at += w->meta.page_bytes) {
		struct meta_page *p;

		rc = meta_get_wait(&w->meta, META_L2, at, &p);
		if (rc)
			break;
		set_flags(r, p, at, at + w->meta.page_bytes, 8 * w->q->entry_words);
		meta_put(&w->meta, p);
	}
	/* Nobody else holds us up. */
	if (!rc && w->meta.ndirty > META_DIRTY_MAX)
		rc = commit_metadata_wait(&w->commit);
	return rc;
}

/* In the L1 entries [@at, @end), which are in one page, and in the tables that they name. */
static int set_l1_flags_wait(struct reclaim *r, uint64_t at, uint64_t end)
{
	struct writer *w = r->w;
	struct meta_page *l1;
	uint64_t count;
	int rc = refs_get_wait(&w->refs, at / w->cluster, &count);

	if (rc || count != 1)
		return rc;
	rc = meta_get_wait(&w->meta, META_L1, at, &l1);
	if (rc)
		return rc;
	for (uint64_t i = at; i < end && r->nunflagged && !rc; i += 8)
		rc = set_table_flags_wait(r, meta_value(&w->meta, l1, i, 8) & QCOW2_OFFSET_MASK);
	if (!rc)
		set_flags(r, l1, at, end, 8);
	meta_put(&w->meta, l1);
	return rc;
}

static int set_all_flags_wait(struct reclaim *r)
{
	const struct qcow2 *q = r->w->q;
	uint64_t at = q->l1_off, end = at + 8ULL * q->l1_entries, wanted = r->nunflagged;
	int rc = 0;

	while (at < end && r->nunflagged && !rc) {
		uint64_t next = MIN(end, align_down(at, r->w->meta.page_bytes) +
					 r->w->meta.page_bytes);

		rc = set_l1_flags_wait(r, at, next);
		at = next;
	}
	if (wanted > r->nunflagged)
		log_info("'%s' was not closed cleanly: %llu entries that had lost their COPIED "
			 "flag have it again", q->node.name,
			 (unsigned long long)(wanted - r->nunflagged));
	return rc;
}

/* ---- the walk ---- */

static void walk_wait(struct reclaim *r)
{
	struct writer *w = r->w;
	struct qcow2_check_say say = { .differ = note_difference, .pace_wait = pace_wait,
				       .end_min = r->clusters * w->cluster, .arg = r };
	struct qcow2_check res;
	struct err err = { 0 };
	uint64_t freed = 0;
	int rc = qcow2_check_wait(&w->q->node, &say, &res, &err);

	if (r->is_void)
		return;
	if (!rc && (res.corruptions > r->nexcused || res.check_errors) &&
	    !(w->broken & BREAK_R5_DAMAGED)) {                                  /* R5 */
		log_warn("'%s' was not closed cleanly, and is damaged: clusters that leaked stay "
			 "lost; look at it with 'byre check'", w->q->node.name);
		return;
	}
	if (!rc)
		rc = free_leaks_wait(r, &freed);
	if (freed)
		log_info("'%s' was not closed cleanly: %llu clusters that had leaked are free "
			 "again", w->q->node.name, (unsigned long long)freed);
	if (!rc)
		rc = set_all_flags_wait(r);
	r->is_owed = rc || r->is_void || r->is_more || r->nunflagged ||
		     (r->is_last && r->is_unsure);
	if (!r->is_owed)
		w->alloc.cut_floor = 0;                         /* Q10 */
}

/* What was touched stays so: a later walk of the same session finds names, too, that are on disk
 * only soon (R4). */
static void start_over(struct reclaim *r)
{
	r->is_owed = true;
	r->is_void = false;
	r->is_unsure = false;
	r->is_more = false;
	r->nleaks = 0;
	r->nexcused = 0;
	r->nunflagged = 0;
}

static int prepare(struct reclaim *r)
{
	struct writer *w = r->w;

	start_over(r);
	r->clusters = w->refs.table_used << w->refs.block_bits;
	r->touched = calloc(div_round_up(r->clusters, 64) + 1, sizeof(*r->touched));
	return r->touched ? 0 : -ENOMEM;
}

static void walk_fiber(struct task *t)
{
	struct reclaim *r = container_of(t, struct reclaim, task);

	walk_wait(r);
	for (unsigned i = 0; r->is_void && i < TRIES && !r->is_hurried; i++) {
		start_over(r);
		walk_wait(r);
	}
	reclaim_fini(r);
	r->is_running = false;
	fiber_queue_wake(&r->waiting);
}

int reclaim_start(struct reclaim *r, struct writer *w)
{
	int rc;

	r->w = w;
	r->is_owed = true;
	if (w->refs.table_used << w->refs.block_bits > RECLAIM_CLUSTERS_MAX)
		return 0;
	rc = prepare(r);
	if (rc)
		return rc;
	r->is_running = true;
	r->task.fn = walk_fiber;
	fiber_start(w->home, &r->task);
	return 0;
}

int reclaim_again_wait(struct reclaim *r)
{
	assert(!r->is_running);
	if (!r->w || !(r->is_void || r->is_unsure) || r->w->dead || prepare(r))
		return 0;
	r->is_last = true;
	walk_wait(r);
	reclaim_fini(r);
	return commit_wait(&r->w->commit);
}

static void end_wait(struct reclaim *r)
{
	while (r->is_running)
		fiber_queue_wait(&r->waiting);
}

bool reclaim_room_wait(struct reclaim *r)
{
	if (!r->is_running)
		return false;
	r->is_urgent = true;
	end_wait(r);
	return true;
}

void reclaim_finish_wait(struct reclaim *r)
{
	r->is_hurried = true;
	end_wait(r);
}

void reclaim_fini(struct reclaim *r)
{
	cluster_set_fini(&r->left);
	free(r->touched);
	free(r->leaks);
	r->touched = NULL;
	r->leaks = NULL;
	r->room = 0;
}
