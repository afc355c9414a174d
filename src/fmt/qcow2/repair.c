/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/repair.c - the order in which things are mended; the header (repair.h). */
#include "fmt/qcow2/repair.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "fmt/qcow2/check_impl.h"
#include "fmt/qcow2/header_edit.h"

/* ---- writing ---- */

int repair_write_wait(struct check *ck, uint64_t off, const void *buf, uint64_t len)
{
	ck->is_unsynced = true;
	return chan_write_wait(ck->file, off, buf, len);
}

int repair_sync_wait(struct check *ck)
{
	int rc = 0;

	if (ck->is_unsynced)
		rc = chan_flush_wait(ck->file);
	ck->is_unsynced &= rc != 0;
	return rc;
}

void repair_signal(struct check *ck, const char *what)
{
	if (!ck->is_signalled)
		check_say(ck, "qcow2: Marking image as corrupt: %s; further corruption events "
			  "will be suppressed", what);
	ck->is_signalled = true;
}

int repair_may_write_wait(struct check *ck, unsigned own, uint64_t off, uint64_t len)
{
	uint64_t first = off >> ck->cluster_bits, end = div_round_up(off + len, ck->cluster);
	const char *other;
	char what[96];
	int rc = repair_map_make_wait(&ck->map, ck);

	if (rc || (ck->broken & BREAK_Y14_OVERWRITE))
		return rc;
	other = repair_map_find(&ck->map, own, first, end - first);
	if (!other)
		return 0;
	snprintf(what, sizeof(what), "Preventing invalid write on metadata (overlaps with %s)",
		 other);
	repair_signal(ck, what);
	return -EIO;
}

/* ---- refcounts ---- */

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static int rebuild_wait(struct check *ck)
{
	struct qcow2_check old = ck->result, now;
	enum qcow2_repair repair = ck->repair;
	int rc;

	check_say(ck, "Rebuilding refcount structure");
	rc = repair_rebuild_wait(ck);
	if (rc)
		return rc;
	ck->result = (struct qcow2_check){ .total_clusters = old.total_clusters,
					   .check_errors = old.check_errors,
					   .corruptions_fixed = old.corruptions_fixed };
	ck->repair = QCOW2_REPAIR_NOTHING;
	rc = check_count_wait(ck);
	ck->repair = repair;
	if (rc)
		return rc;
	now = ck->result;
	/* Of this, only leaks count that cannot be mended, and what cannot be read: what else is
	 * wrong was told before. */
	ck->result = (struct qcow2_check){ 0 };
	ck->mends_leaks = true;
	rc = check_compare_wait(ck);
	if (ck->needs_rebuild)
		check_say(ck, "ERROR rebuilt refcount structure is still broken");
	now.image_end = ck->result.image_end;
	now.corruptions_fixed += less(old.corruptions, now.corruptions);
	now.leaks_fixed += less(old.leaks, now.leaks);
	now.leaks += ck->result.leaks;
	now.check_errors += ck->result.check_errors;
	ck->is_to_lower = ck->result.leaks_fixed;
	ck->result = now;
	return rc;
}

int repair_refcounts_wait(struct check *ck, const struct qcow2_check *before)
{
	int rc;

	if (ck->needs_rebuild && ck->repair == QCOW2_REPAIR_ALL)
		return rebuild_wait(ck);
	if (ck->needs_rebuild) {
		check_say(ck, "ERROR need to rebuild refcount structures");
		ck->result.check_errors++;
		return -EIO;
	}
	if (!ck->result.leaks && !ck->result.corruptions)
		return 0;
	ck->result = *before;
	ck->mends_leaks = true;
	ck->mends_errors = ck->repair == QCOW2_REPAIR_ALL;
	rc = check_compare_wait(ck);
	ck->is_to_lower = ck->result.leaks_fixed > before->leaks_fixed;
	if (!rc && ck->result.corruptions_fixed > before->corruptions_fixed)
		rc = repair_change_wait(ck, 0, ck->clusters, false);
	return rc || (ck->broken & BREAK_Y11_EARLY_MINUS) ? rc : repair_sync_wait(ck);
}

/* ---- the header ---- */

static int set_incompatible_wait(struct check *ck, uint64_t bits)
{
	be64_t field = be64_make(bits);
	int rc = repair_sync_wait(ck);

	if (bits == ck->h->incompatible || ck->h->version < 3)
		return rc;
	if (!rc)
		rc = repair_write_wait(ck, offsetof(struct qcow2_header_disk,
						    incompatible_features), &field, sizeof(field));
	if (!rc)
		rc = repair_sync_wait(ck);
	if (!rc)
		ck->h->incompatible = bits;
	return rc;
}

/* Y15. */
static int clean_wait(struct check *ck)
{
	uint64_t bad = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
	int rc = set_incompatible_wait(ck, ck->h->incompatible & ~bad);

	if (!rc && ck->h->is_in_use && !ck->result.leaks)
		rc = header_drop_mark_wait(ck->file, ck->h);
	return rc;
}

int repair_rest_wait(struct check *ck)
{
	struct qcow2_check *r = &ck->result, *t = &ck->tables;
	int rc = ck->broken & BREAK_Y11_EARLY_MINUS ? 0 : repair_sync_wait(ck);

	if (!rc && ck->is_to_lower)
		rc = repair_change_wait(ck, 0, ck->clusters, true);
	if (!rc && !(ck->broken & BREAK_Y12_EARLY_COPIED))
		rc = repair_sync_wait(ck);
	if (!rc && ck->is_to_set)
		rc = check_copied_set_wait(ck);
	if (!rc)
		rc = repair_sync_wait(ck);
	if (!rc && t->corruptions && ck->repair == QCOW2_REPAIR_ALL)
		rc = repair_snapshots_wait(ck);
	if (!rc && !r->check_errors && !r->corruptions && !t->corruptions)
		rc = clean_wait(ck);
	return rc;
}

/* Q5: what a program that knows nothing of these bits, or the bitmaps, leaves behind. */
static int before_wait(struct check *ck)
{
	struct qcow2_header *h = ck->h;
	int rc = header_clear_autoclear_wait(ck->file, h);

	if (!rc && h->has_void_bitmaps)
		rc = header_drop_bitmaps_wait(ck->file, h);
	if (!rc && (ck->broken & BREAK_Y15_BITS))
		rc = clean_wait(ck);
	return rc;
}

int qcow2_repair_wait(struct chan *file, struct qcow2_header *h,
		      const struct qcow2_repair_opts *opts, const struct qcow2_check_say *say,
		      struct qcow2_check *ret, struct err *err)
{
	struct check ck = { .h = h, .file = file, .say = say, .repair = opts->what,
			    .looks_behind = opts->looks_behind, .broken = opts->broken };
	int rc = opts->what ? before_wait(&ck) : 0;

	*ret = (struct qcow2_check){ 0 };
	if (rc)
		return err_set_errno(err, -rc, "header");
	rc = check_run_wait(&ck, ret, err);
	repair_map_drop(&ck.map);
	if (ck.is_signalled)
		set_incompatible_wait(&ck, h->incompatible | QCOW2_INCOMPAT_CORRUPT);
	return rc;
}

int qcow2_repair_node_wait(struct node *n, const struct qcow2_repair_opts *opts,
			   const struct qcow2_check_say *say, struct qcow2_check *ret,
			   struct err *err)
{
	struct qcow2 *q = qcow2_of(n);

	assert(!q->writer);
	return qcow2_repair_wait(n->home_chan->child[CHILD_FILE], &q->header, opts, say, ret, err);
}

int qcow2_repair_dirty_wait(struct chan *file, struct qcow2_header *h, const char *name,
			    struct err *err)
{
	struct qcow2_repair_opts opts = { .what = QCOW2_REPAIR_ALL, .looks_behind = true };
	struct qcow2_check res;
	int rc = qcow2_repair_wait(file, h, &opts, NULL, &res, err);

	if (!rc && res.check_errors)
		rc = err_set_errno(err, EIO, "some of it cannot be looked at");
	if (rc)
		return err_wrap(err, rc, "Could not repair dirty image");
	if (res.corruptions) {
		err_set(err, EUCLEAN, "Could not repair dirty image: %llu errors remain",
			(unsigned long long)res.corruptions);
		err_hint(err, "look at it with 'byre check'");
		return -EUCLEAN;
	}
	log_info("'%s' was not closed cleanly: %llu refcounts that were too low and %llu that were "
		 "too high are right again", name, (unsigned long long)res.corruptions_fixed,
		 (unsigned long long)res.leaks_fixed);
	return 0;
}
