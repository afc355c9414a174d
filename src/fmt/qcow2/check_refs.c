/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check_refs.c - refcounts on disk, and the comparison with what was counted
 * (check_impl.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/zero.h"
#include "fmt/qcow2/check_impl.h"

#define REFTABLE_RESERVED 0x1ffULL

/* ---- refcounts on disk ---- */

static void tell_unaligned(struct check *ck, uint64_t off, uint64_t index)
{
	char what[96];

	snprintf(what, sizeof(what), "Refblock offset 0x%llx unaligned (reftable index: %#llx)",
		 (unsigned long long)off, (unsigned long long)index);
	if (ck->repair)
		repair_signal(ck, what);
	else if (!ck->is_unaligned_told)
		check_say(ck, "qcow2: Image is corrupt: %s; further non-fatal corruption events "
			  "will be suppressed", what);
	ck->is_unaligned_told = true;
}

int check_block_place(struct check *ck, uint64_t index, uint64_t *ret_off)
{
	uint64_t off = 0;

	if (index < ck->reftable_entries)
		off = be64_load(ck->reftable + 8 * index) & ~REFTABLE_RESERVED;
	if (!is_aligned(off, ck->cluster)) {
		tell_unaligned(ck, off, index);
		return -EIO;
	}
	if (!range_within(off, ck->cluster, CHECK_END_MAX))
		return -EIO;
	*ret_off = off < ck->file_end ? off : 0;
	return 0;
}

int check_refcount_wait(struct check *ck, uint64_t k, uint64_t *ret)
{
	uint64_t index = k / check_per_block(ck), off;
	struct check_block *b = &ck->blocks[index % CHECK_BLOCKS];
	int rc = check_block_place(ck, index, &off);

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
	*ret = qcow2_refcount_at(ck->h->refcount_order, b->bytes,
				  k % check_per_block(ck));
	return 0;
}

void check_refcounts_forget(struct check *ck)
{
	for (unsigned i = 0; i < CHECK_BLOCKS; i++)
		ck->blocks[i].index_plus_1 = 0;
}

int check_reftable_read_wait(struct check *ck)
{
	uint64_t bytes = (uint64_t)ck->h->reftable_clusters << ck->cluster_bits;
	int rc;

	check_refcounts_forget(ck);
	free(ck->reftable);
	ck->reftable_entries = bytes / 8;
	ck->reftable = malloc(bytes ? bytes : 1);
	if (!ck->reftable)
		return -ENOMEM;
	rc = check_budget_wait(ck, bytes);
	return rc ? rc : check_read_wait(ck, ck->h->reftable_off, ck->reftable, bytes);
}

/* The block at @off, behind the end of the image. -EFBIG and the like: it is of no use. */
static int block_outside_wait(struct check *ck, uint64_t index, uint64_t off)
{
	int rc;

	check_say(ck, "%s refcount block %llu is outside image",
		  ck->repair == QCOW2_REPAIR_ALL ? "Repairing" : "ERROR",
		  (unsigned long long)index);
	ck->result.corruptions++;
	if (ck->repair != QCOW2_REPAIR_ALL)
		return 0;
	rc = repair_extend_wait(ck, off);
	if (rc == -ENOMEM)
		return rc;
	if (rc) {
		check_say(ck, "ERROR could not resize image: %s", strerror(-rc));
		ck->needs_rebuild = true;
		return 0;
	}
	ck->result.corruptions--;
	ck->result.corruptions_fixed++;
	return check_use(ck, off, ck->cluster, 1, 0);
}

static int block_use_wait(struct check *ck, uint64_t i)
{
	uint64_t entry = be64_load(ck->reftable + 8 * i), off = entry & ~REFTABLE_RESERVED;
	uint64_t k = off >> ck->cluster_bits;
	const char *wrong = NULL;
	int rc;

	if (entry & REFTABLE_RESERVED)
		wrong = "has reserved bits set";
	else if (!is_aligned(off, ck->cluster))
		wrong = "is not cluster aligned; refcount table entry corrupted";
	if (wrong) {
		check_say(ck, "ERROR refcount %s %llu %s", entry & REFTABLE_RESERVED ?
			  "table entry" : "block", (unsigned long long)i, wrong);
		ck->result.corruptions++;
		ck->needs_rebuild = true;
		return 0;
	}
	if (k >= ck->clusters)
		return block_outside_wait(ck, i, off);
	if (!off)
		return 0;
	rc = check_use(ck, off, ck->cluster, 1, 0);
	if (rc)
		return rc;
	if (counts_get(&ck->counts, k) != 1) {
		check_say(ck, "ERROR refcount block %llu refcount=%llu", (unsigned long long)i,
			  (unsigned long long)counts_get(&ck->counts, k));
		ck->result.corruptions++;
		ck->needs_rebuild = true;
	}
	return 0;
}

int check_blocks_use_wait(struct check *ck)
{
	int rc = 0;

	for (uint64_t i = 0; i < ck->reftable_entries && !rc; i++)
		rc = block_use_wait(ck, i);
	return rc;
}

/* ---- the comparison ---- */

/* Does a COPIED flag that was noted in @value not fit a refcount of @refcount? */
static bool copied_differs(uint64_t value, uint64_t refcount)
{
	return value & (refcount == 1 ? COUNTS_NOT_COPIED : COUNTS_COPIED);
}

/* Cluster @k has the refcount @disk and should have @count. True: it will have. */
static bool tell_difference(struct check *ck, uint64_t k, uint64_t disk, uint64_t count)
{
	struct qcow2_check *r = &ck->result;
	/* Where there is no refcount, its block is not to be trusted. */
	bool is_mended = disk && (disk > count ? ck->mends_leaks : ck->mends_errors);

	ck->needs_rebuild |= !disk;
	check_say(ck, "%s cluster %llu refcount=%llu reference=%llu",
		  is_mended ? "Repairing" : disk < count ? "ERROR" : "Leaked",
		  (unsigned long long)k, (unsigned long long)disk, (unsigned long long)count);
	if (disk < count)
		++*(is_mended ? &r->corruptions_fixed : &r->corruptions);
	else
		++*(is_mended ? &r->leaks_fixed : &r->leaks);
	return is_mended;
}

/* Cluster @k has the refcount @disk and the value @value in our counts. */
static void compare(struct check *ck, uint64_t k, uint64_t disk, uint64_t value)
{
	uint64_t count = value >> COUNTS_MARK_BITS;

	bool is_unflagged = count == 1 && (value & COUNTS_NOT_COPIED);

	if (disk || count)
		ck->result.image_end = (k + 1) << ck->cluster_bits;
	if ((disk != count || is_unflagged) && ck->say && ck->say->differ)
		ck->say->differ(ck->say->arg, k, disk, count, is_unflagged);
	ck->copied_differs |= copied_differs(value, disk);
	if (disk != count && tell_difference(ck, k, disk, count))
		ck->copied_differs |= copied_differs(value, count);
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

static void compare_block(struct check *ck, const uint8_t *block, uint64_t first, uint64_t end)
{
	if (block && bytes_are_zero(block, ck->cluster))
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

int check_compare_wait(struct check *ck)
{
	uint64_t n = div_round_up(ck->clusters, check_per_block(ck)), ahead = 0;
	struct readahead ra;
	int rc = readahead_init(&ra, ck->file, ck->file_end, ck->cluster);

	/* The header's cluster, even if its refcount cannot be read. */
	ck->result.image_end = ck->cluster;
	for (uint64_t i = 0; i < n && !rc; i++) {
		uint64_t first = i * check_per_block(ck);
		uint64_t end = MIN(first + check_per_block(ck), ck->clusters);
		const uint8_t *block = NULL;
		uint64_t off = 0;
		int bad;

		blocks_read_ahead(ck, &ra, &ahead, n);
		bad = check_block_place(ck, i, &off);
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
