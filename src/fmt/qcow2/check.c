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

#define REFTABLE_RESERVED 0x1ffULL

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
	ck->says_max = CHECK_SAYS_MIN + bytes / 2;
}

/* ---- refcounts on disk ---- */

static uint64_t per_block(const struct check *ck)
{
	return ck->cluster * 8 >> ck->h->refcount_order;
}

/* Where refcount block @index is. *@ret_off 0: all its counts are zero. -EIO: nowhere. */
static int block_place(struct check *ck, uint64_t index, uint64_t *ret_off)
{
	uint64_t off = 0;

	if (index < ck->reftable_entries)
		off = be64_load(ck->reftable + 8 * index) & ~REFTABLE_RESERVED;
	if (!is_aligned(off, ck->cluster)) {
		if (!ck->is_unaligned_told)
			check_say(ck, "qcow2: Image is corrupt: Refblock offset 0x%llx unaligned "
				  "(reftable index: %#llx); further non-fatal corruption events "
				  "will be suppressed", (unsigned long long)off,
				  (unsigned long long)index);
		ck->is_unaligned_told = true;
		return -EIO;
	}
	if (!range_within(off, ck->cluster, CHECK_END_MAX))
		return -EIO;
	*ret_off = off < ck->file_end ? off : 0;
	return 0;
}

int check_refcount_wait(struct check *ck, uint64_t k, uint64_t *ret)
{
	uint64_t index = k / per_block(ck), off;
	struct check_block *b = &ck->blocks[index % CHECK_BLOCKS];
	int rc = block_place(ck, index, &off);

	if (rc || !off) {
		*ret = 0;
		return rc;
	}
	if (b->index_plus_1 != index + 1) {
		if (!b->bytes)
			b->bytes = malloc(ck->cluster);
		if (!b->bytes)
			return -ENOMEM;
		b->index_plus_1 = 0;
		rc = check_read_wait(ck, off, b->bytes, ck->cluster);
		if (rc)
			return rc;
		b->index_plus_1 = index + 1;
	}
	*ret = qcow2_refcount_at(ck->h->refcount_order, b->bytes, k % per_block(ck));
	return 0;
}

static int reftable_read_wait(struct check *ck)
{
	uint64_t bytes = (uint64_t)ck->h->reftable_clusters << ck->cluster_bits;
	int rc;

	ck->reftable_entries = bytes / 8;
	ck->reftable = malloc(bytes ? bytes : 1);
	if (!ck->reftable)
		return -ENOMEM;
	rc = check_budget_wait(ck, bytes);
	return rc ? rc : check_read_wait(ck, ck->h->reftable_off, ck->reftable, bytes);
}

/* Counts the refcount blocks themselves. */
static int blocks_use(struct check *ck)
{
	for (uint64_t i = 0; i < ck->reftable_entries; i++) {
		uint64_t entry = be64_load(ck->reftable + 8 * i), off = entry & ~REFTABLE_RESERVED;
		const char *wrong = NULL;
		int rc;

		if (entry & REFTABLE_RESERVED)
			wrong = "has reserved bits set";
		else if (!is_aligned(off, ck->cluster))
			wrong = "is not cluster aligned; refcount table entry corrupted";
		else if (off >> ck->cluster_bits >= ck->clusters)
			wrong = "is outside image";
		if (wrong) {
			check_say(ck, "ERROR refcount %s %llu %s", entry & REFTABLE_RESERVED ?
				  "table entry" : "block", (unsigned long long)i, wrong);
			ck->result.corruptions++;
			continue;
		}
		if (!off)
			continue;
		rc = check_use(ck, off, ck->cluster, 1, 0);
		if (rc)
			return rc;
		if (counts_get(&ck->counts, off >> ck->cluster_bits) != 1) {
			check_say(ck, "ERROR refcount block %llu refcount=%llu",
				  (unsigned long long)i,
				  (unsigned long long)counts_get(&ck->counts,
								 off >> ck->cluster_bits));
			ck->result.corruptions++;
		}
	}
	return 0;
}

/* ---- the comparison ---- */

/* Cluster @k has the refcount @disk and the value @value in our counts. */
static void compare(struct check *ck, uint64_t k, uint64_t disk, uint64_t value)
{
	uint64_t count = value >> COUNTS_MARK_BITS;

	if (value & (disk == 1 ? COUNTS_NOT_COPIED : COUNTS_COPIED))
		ck->copied_differs = true;
	if (disk || count)
		ck->result.image_end = (k + 1) << ck->cluster_bits;
	if (disk == count)
		return;
	if (ck->say && ck->say->differ)
		ck->say->differ(ck->say->arg, k, disk, count);
	check_say(ck, "%s cluster %llu refcount=%llu reference=%llu",
		  disk < count ? "ERROR" : "Leaked", (unsigned long long)k,
		  (unsigned long long)disk, (unsigned long long)count);
	if (disk < count)
		ck->result.corruptions++;
	else
		ck->result.leaks++;
}

/* The part [@k, @end) of a chunk of counts against @block, of which cluster @first is the first. */
static void compare_chunk(struct check *ck, const uint8_t *block, uint64_t first, uint64_t k,
			  uint64_t end)
{
	const uint8_t *bytes = counts_bytes(&ck->counts, k >> COUNTS_CHUNK_BITS);
	unsigned order = ck->h->refcount_order;

	for (; k < end; k++) {
		uint64_t disk = block ? qcow2_refcount_at(order, block, k - first) : 0;
		uint64_t value = bytes ? bytes[k & (COUNTS_CHUNK - 1)] :
				 counts_value(&ck->counts, k);

		/* Used once, as it should be, and said to be. */
		if (disk == 1 && (value & ~(uint64_t)(COUNTS_WALKED | COUNTS_DAMAGED)) ==
		    (1ULL << COUNTS_MARK_BITS | COUNTS_COPIED))
			ck->result.image_end = (k + 1) << ck->cluster_bits;
		else if (disk || value)
			compare(ck, k, disk, value);
	}
}

static bool is_zero(const uint8_t *buf, size_t len)
{
	return !buf[0] && !memcmp(buf, buf + 1, len - 1);
}

static void compare_block(struct check *ck, const uint8_t *block, uint64_t first, uint64_t end)
{
	if (block && is_zero(block, ck->cluster))
		block = NULL;
	for (uint64_t k = first, next; k < end; k = next) {
		next = MIN(align_down(k, COUNTS_CHUNK) + COUNTS_CHUNK, end);
		if (block || !counts_is_empty(&ck->counts, k >> COUNTS_CHUNK_BITS))
			compare_chunk(ck, block, first, k, next);
	}
}

static void block_unreadable(struct check *ck, uint64_t first, uint64_t end)
{
	for (uint64_t k = first; k < end && !check_is_endless(ck); k++) {
		check_say(ck, "Can't get refcount for cluster %llu: Input/output error",
			  (unsigned long long)k);
		ck->result.check_errors++;
	}
}

/* Starts reading blocks until the next that is not there, or @ra is full. */
static void blocks_read_ahead(struct check *ck, struct readahead *ra, uint64_t *ahead, uint64_t n)
{
	for (; *ahead < n && readahead_has_room(ra); ++*ahead) {
		uint64_t off = 0;

		if (*ahead < ck->reftable_entries)
			off = be64_load(ck->reftable + 8 * *ahead) & ~REFTABLE_RESERVED;
		if (off && is_aligned(off, ck->cluster) && off < ck->file_end)
			readahead_push(ra, off);
	}
}

static int compare_all_wait(struct check *ck)
{
	uint64_t n = div_round_up(ck->clusters, per_block(ck)), ahead = 0;
	struct readahead ra;
	int rc = readahead_init(&ra, ck->file, ck->file_end, ck->cluster);

	/* The header's cluster, even if its refcount cannot be read. */
	ck->result.image_end = ck->cluster;
	for (uint64_t i = 0; i < n && !rc; i++) {
		uint64_t first = i * per_block(ck), end = MIN(first + per_block(ck), ck->clusters);
		const uint8_t *block = NULL;
		uint64_t off = 0;
		int bad;

		blocks_read_ahead(ck, &ra, &ahead, n);
		bad = block_place(ck, i, &off);
		if (!bad && off)
			bad = readahead_pop_wait(&ra, &block);
		if (bad)
			block_unreadable(ck, first, end);
		else
			compare_block(ck, block, first, end);
		if (check_is_endless(ck))
			rc = check_budget_wait(ck, 0);
	}
	readahead_fini_wait(&ra);
	return rc;
}

/* ---- the whole ---- */

static int count_all_wait(struct check *ck, const struct check_snapshots *snapshots)
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
		rc = check_snapshots_wait(ck, snapshots);
	if (!rc)
		rc = check_again_wait(ck);
	if (!rc)
		rc = check_use(ck, h->snapshots_off, snapshots->bytes, 1, 0);
	if (!rc)
		rc = check_use(ck, h->reftable_off,
			       (uint64_t)h->reftable_clusters << ck->cluster_bits, 1, 0);
	if (!rc)
		rc = check_bitmaps_wait(ck);
	return rc ? rc : blocks_use(ck);
}

static int check_start(struct check *ck, struct err *err)
{
	unsigned order = ck->h->refcount_order;
	uint64_t max = order >= 6 ? UINT64_MAX >> COUNTS_MARK_BITS : (1ULL << (1U << order)) - 1;
	/* One more than there are: check_use(). */
	uint64_t clusters = div_round_up(ck->file_end, ck->cluster);
	int rc;

	if (clusters > CHECK_CLUSTERS_MAX) {
		ck->result.check_errors++;
		return err_set(err, EFBIG, "the file has %llu clusters, and only %d can be checked",
			       (unsigned long long)clusters, CHECK_CLUSTERS_MAX);
	}
	ck->clusters = clusters;
	ck->result.total_clusters = div_round_up(align_down(ck->h->size, 512), ck->cluster);
	rc = counts_init(&ck->counts, clusters + 1, max);
	if (!rc)
		rc = counts_init(&ck->again, clusters + 1, UINT32_MAX);
	if (!rc)
		rc = counts_init(&ck->again_active, clusters + 1, UINT32_MAX);
	return rc;
}

static int check_wait(struct check *ck, struct err *err)
{
	struct check_snapshots snapshots = { 0 };
	int rc;

	budget_start(ck);
	rc = check_snapshot_table_wait(ck, &snapshots);
	if (!rc)
		rc = check_start(ck, err);
	if (!rc)
		rc = reftable_read_wait(ck);
	if (!rc)
		rc = count_all_wait(ck, &snapshots);
	if (!rc)
		rc = compare_all_wait(ck);
	if (!rc && ck->copied_differs && !(ck->say && ck->say->differ))
		rc = check_copied_wait(ck);
	free(snapshots.list);
	if (rc && err && !err->code)
		return err_set(err, -rc, "%s", strerror(-rc));
	return rc;
}

int qcow2_check_wait(struct node *n, const struct qcow2_check_say *say, struct qcow2_check *ret,
		     struct err *err)
{
	struct qcow2 *q = qcow2_of(n);
	struct check ck = {
		.h = &q->header,
		.file = n->home_chan->child[CHILD_FILE],
		.cluster_bits = q->cluster_bits,
		.cluster = qcow2_cluster_size(&q->header),
		.entry_words = q->entry_words,
		.has_data_file = q->has_data_file,
		.say = say,
	};
	int rc;

	ck.file_end = align_up(atomic_load(&n->child[CHILD_FILE]->size), 512);
	if (say)
		ck.file_end = MAX(ck.file_end, say->end_min);
	rc = check_wait(&ck, err);
	*ret = ck.result;
	for (unsigned i = 0; i < CHECK_BLOCKS; i++)
		free(ck.blocks[i].bytes);
	free(ck.reftable);
	counts_fini(&ck.again_active);
	counts_fini(&ck.again);
	counts_fini(&ck.counts);
	return rc;
}
