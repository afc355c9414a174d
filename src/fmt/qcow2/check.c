/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check.c - the order of things; refcounts on disk against what was counted
 * (check_impl.h). */
#include "fmt/qcow2/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/check_impl.h"

static void __attribute__((format(printf, 3, 0)))
say(struct check *ck, bool is_named, const char *fmt, va_list ap)
{
	char text[512];

	if (ck->says++ > ck->says_max || !ck->say || !ck->say->fn)
		return;
	vsnprintf(text, sizeof(text), fmt, ap);
	ck->say->fn(ck->say->arg, is_named, text);
}

void check_say(struct check *ck, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(ck, false, fmt, ap);
	va_end(ap);
}

void check_say_named(struct check *ck, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(ck, true, fmt, ap);
	va_end(ap);
}

int check_read_wait(struct check *ck, uint64_t off, void *buf, uint64_t len)
{
	if (!range_within(off, len, CHECK_END_MAX))
		return -EIO;
	/* It may have grown since the check began, beside it. */
	if (off < ck->file_end || off < atomic_load(&ck->file->node->size))
		return chan_read_wait(ck->file, off, buf, len);
	memset(buf, 0, len);
	return 0;
}

int check_budget_wait(struct check *ck, uint64_t bytes)
{
	ck->bytes_read += bytes;
	if (ck->bytes_read <= ck->bytes_max && !check_is_endless(ck))
		return ck->say && ck->say->pace_wait ? ck->say->pace_wait(ck->say->arg) : 0;
	ck->says = 0;
	if (!ck->is_budget_told)
		check_say_named(ck, "ERROR the tables are named too often to look at all of them");
	ck->is_budget_told = true;
	return -EFBIG;
}

/* Y2. A sane image names a table a few times, and every table lies in the file. */
static void budget_start(struct check *ck)
{
	struct node *file = ck->file->node;
	uint64_t bytes = ck->file_end;

	if (file->ops->allocated_wait && file->ops->allocated_wait(file, &bytes))
		bytes = ck->file_end;
	bytes = MIN(bytes, 1ULL << 56);
	ck->bytes_max = CHECK_BYTES_MIN + CHECK_BYTES_FACTOR * bytes;
	ck->bytes_read = 0;
	ck->says_max = CHECK_SAYS_MIN + bytes / 2;
	ck->says = 0;
}

/* ---- the whole ---- */

static int count_all_wait(struct check *ck)
{
	const struct qcow2_header *h = ck->h;
	int rc = check_use(ck, 0, ck->cluster, 1, 0);

	if (!rc)
		rc = check_l1_wait(ck, h->l1_off, h->l1_entries, true);
	if (!rc && ck->has_data_file && h->nb_snapshots) {
		check_say(ck, "ERROR %u snapshots in image with data file", h->nb_snapshots);
		ck->result.corruptions++;
	}
	if (!rc)
		rc = check_snapshots_wait(ck);
	if (!rc)
		rc = check_again_wait(ck);
	if (!rc)
		rc = check_use(ck, h->snapshots_off, ck->snapshots.bytes, 1, 0);
	if (!rc)
		rc = check_use(ck, h->reftable_off,
			       (uint64_t)h->reftable_clusters << ck->cluster_bits, 1, 0);
	if (!rc)
		rc = check_bitmaps_wait(ck);
	return rc ? rc : check_blocks_use_wait(ck);
}

static void counts_end(struct check *ck)
{
	counts_fini(&ck->again_active);
	counts_fini(&ck->again);
	counts_fini(&ck->counts);
}

/* Lets the comparison see all refcounts that there are. */
static int look_behind(struct check *ck)
{
	uint64_t n = ck->reftable_entries, clusters;
	int rc = 0;

	while (n && !be64_load(ck->reftable + 8 * (n - 1)))
		n--;
	clusters = MIN(n * check_per_block(ck), (uint64_t)CHECK_CLUSTERS_MAX);
	if (clusters > ck->clusters)
		rc = counts_grow(&ck->counts, clusters + 1);
	if (!rc)
		ck->clusters = MAX(ck->clusters, clusters);
	return rc;
}

int check_count_wait(struct check *ck)
{
	unsigned order = ck->h->refcount_order;
	uint64_t max = order >= 6 ? UINT64_MAX >> COUNTS_MARK_BITS : (1ULL << (1U << order)) - 1;
	/* One more than there are: check_use(). */
	uint64_t room = MAX(ck->clusters, div_round_up(ck->file_end, ck->cluster)) + 1;
	int rc;

	budget_start(ck);
	counts_end(ck);
	ck->copied_differs = ck->needs_rebuild = false;
	rc = counts_init(&ck->counts, room, max);
	if (!rc)
		rc = counts_init(&ck->again, room, UINT32_MAX);
	if (!rc)
		rc = counts_init(&ck->again_active, room, UINT32_MAX);
	if (!rc)
		rc = check_reftable_read_wait(ck);
	if (!rc && ck->looks_behind)
		rc = look_behind(ck);
	return rc ? rc : count_all_wait(ck);
}

static int check_start(struct check *ck, struct err *err)
{
	uint64_t clusters = div_round_up(ck->file_end, ck->cluster);

	if (clusters > CHECK_CLUSTERS_MAX) {
		ck->result.check_errors++;
		return err_set(err, EFBIG, "the file has %llu clusters, and only %d can be checked",
			       (unsigned long long)clusters, CHECK_CLUSTERS_MAX);
	}
	ck->clusters = clusters;
	ck->result.total_clusters = div_round_up(align_down(ck->h->size, 512), ck->cluster);
	return 0;
}

static int check_wait(struct check *ck, struct err *err)
{
	struct qcow2_check before;
	int rc;

	budget_start(ck);
	rc = check_snapshot_table_wait(ck);
	if (!rc)
		rc = check_start(ck, err);
	if (!rc)
		rc = check_count_wait(ck);
	before = ck->result;
	if (!rc)
		rc = check_compare_wait(ck);
	if (!rc && ck->repair)
		rc = repair_refcounts_wait(ck, &before);
	if (!rc && ck->copied_differs && !(ck->say && ck->say->differ))
		rc = check_copied_wait(ck);
	if (!rc && ck->repair)
		rc = repair_rest_wait(ck);
	if (rc && err && !err->code)
		return err_set(err, -rc, "%s", strerror(-rc));
	return rc;
}

int check_run_wait(struct check *ck, struct qcow2_check *ret, struct err *err)
{
	const struct qcow2_header *h = ck->h;
	int rc;

	ck->cluster_bits = h->cluster_bits;
	ck->cluster = qcow2_cluster_size(h);
	ck->entry_words = qcow2_has_extended_l2(h) ? 2 : 1;
	ck->has_data_file = qcow2_has_data_file(h);
	ck->file_end = align_up(atomic_load(&ck->file->node->size), 512);
	if (ck->say)
		ck->file_end = MAX(ck->file_end, ck->say->end_min);
	rc = check_wait(ck, err);
	*ret = ck->result;
	ret->corruptions += ck->tables.corruptions;
	ret->corruptions_fixed += ck->tables.corruptions_fixed;
	for (unsigned i = 0; i < CHECK_BLOCKS; i++)
		free(ck->blocks[i].bytes);
	free(ck->snapshots.list);
	free(ck->reftable);
	counts_end(ck);
	return rc;
}

int qcow2_check_wait(struct node *n, const struct qcow2_check_say *say, struct qcow2_check *ret,
		     struct err *err)
{
	struct check ck = {
		.h = &qcow2_of(n)->header, .file = n->home_chan->child[CHILD_FILE], .say = say,
	};

	return check_run_wait(&ck, ret, err);
}
