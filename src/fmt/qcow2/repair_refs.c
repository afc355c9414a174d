/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/repair_refs.c - refcounts that are mended where they are, and refcounts made anew
 * (repair.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/check_impl.h"

enum { SECTOR = 512 };

/* ---- in place ---- */

/* Changes what @block says of clusters [@first, @end). The bytes that differ then are
 * [*@ret_from, *@ret_to). */
static void change_block(struct check *ck, uint8_t *block, uint64_t first, uint64_t end, bool lower,
			 uint64_t *ret_from, uint64_t *ret_to)
{
	uint64_t block_first = align_down(first, check_per_block(ck));
	unsigned order = ck->h->refcount_order;

	*ret_from = ck->cluster;
	*ret_to = 0;
	for (uint64_t k = first; k < end; k++) {
		uint64_t disk = qcow2_refcount_at(order, block, k - block_first);
		uint64_t count = counts_get(&ck->counts, k);
		uint64_t at = (k - block_first) << order >> 3;

		if (lower ? disk <= count : disk >= count)
			continue;
		qcow2_refcount_put(order, block, k - block_first, count);
		*ret_from = MIN(*ret_from, align_down(at, SECTOR));
		*ret_to = align_down(at, SECTOR) + SECTOR;
	}
}

int repair_change_wait(struct check *ck, uint64_t first, uint64_t end, bool lower)
{
	uint64_t per_block = check_per_block(ck);
	uint8_t *block = malloc(ck->cluster);
	int rc = block ? 0 : -ENOMEM;

	for (uint64_t k = first, next; k < end && !rc; k = next) {
		uint64_t off, from, to;

		next = MIN(align_down(k, per_block) + per_block, end);
		/* What lies nowhere was told of, and stays. */
		if (check_block_place(ck, k / per_block, &off) || !off)
			continue;
		rc = check_read_wait(ck, off, block, ck->cluster);
		if (rc)
			break;
		change_block(ck, block, k, next, lower, &from, &to);
		if (from < to)
			rc = repair_write_wait(ck, off + from, block + from, to - from);
	}
	check_refcounts_forget(ck);
	free(block);
	return rc;
}

/* ---- clusters for what is written new ---- */

static int extend_counts(struct check *ck, uint64_t clusters)
{
	int rc;

	if (clusters > CHECK_CLUSTERS_MAX)
		return -EFBIG;
	rc = counts_grow(&ck->counts, clusters + 1);
	if (!rc)
		ck->clusters = MAX(ck->clusters, clusters);
	return rc;
}

int repair_take(struct check *ck, uint64_t n, uint64_t *first_free, uint64_t *ret)
{
	uint64_t k = *first_free, run = 0;
	bool is_first_gap = true;
	int rc = 0;

	for (; k < ck->clusters && run < n; k++) {
		run = counts_get(&ck->counts, k) ? 0 : run + 1;
		if (run && is_first_gap) {
			*first_free = k;
			is_first_gap = false;
		}
	}
	if (run < n)
		rc = extend_counts(ck, k + n - run);
	if (rc)
		return rc;
	*ret = k - run;
	if (is_first_gap)
		*first_free = *ret;     /* nobody need look again */
	counts_credit(&ck->counts, n);
	for (uint64_t i = 0; i < n && !rc; i++) {
		uint64_t over;

		rc = counts_add(&ck->counts, *ret + i, 1, 0, &over);
	}
	return rc;
}

bool repair_is_counted(struct check *ck, uint64_t first, uint64_t n)
{
	uint64_t per_block = check_per_block(ck);

	for (uint64_t i = first / per_block; i <= (first + n - 1) / per_block; i++) {
		uint64_t off;

		if (check_block_place(ck, i, &off) || !off)
			return false;
	}
	return true;
}

int repair_extend_wait(struct check *ck, uint64_t off)
{
	static const uint8_t zeros[SECTOR];
	uint64_t end = off + ck->cluster;
	int rc;

	if (off > INT64_MAX - ck->cluster)
		return -EINVAL;
	rc = end >> ck->cluster_bits > CHECK_CLUSTERS_MAX ? -EFBIG :
	     repair_write_wait(ck, end - SECTOR, zeros, SECTOR);
	if (rc) {
		check_say_named(ck, "Could not resize file: %s", strerror(-rc));
		return rc;
	}
	ck->file_end = MAX(ck->file_end, end);
	return extend_counts(ck, div_round_up(ck->file_end, ck->cluster));
}

/* ---- all anew ---- */

/* The table in the making: for each block its cluster; 0: none. */
struct rebuild {
	struct check *ck;
	uint64_t *table;                /* owned */
	uint64_t entries;
};

static int table_grow(struct rebuild *r, uint64_t index)
{
	uint64_t entries = align_up(index + 1, r->ck->cluster / 8);
	uint64_t *table;

	if (entries * 8 > QCOW2_REFTABLE_BYTES_MAX)
		return -EFBIG;
	table = realloc(r->table, entries * sizeof(*table));
	if (!table)
		return -ENOMEM;
	memset(table + r->entries, 0, (entries - r->entries) * sizeof(*table));
	r->table = table;
	r->entries = entries;
	return 0;
}

/* Gives block @index a cluster among those that it counts, or behind them: so that blocks are
 * written once, in their order. */
static int block_take(struct rebuild *r, uint64_t index, uint64_t *first_free)
{
	int rc = index < r->entries ? 0 : table_grow(r, index);

	*first_free = MAX(*first_free, index * check_per_block(r->ck));
	return rc ? rc : repair_take(r->ck, 1, first_free, &r->table[index]);
}

/* Sees that there are blocks for all that is used of clusters [@first, @end), and for these. */
static int blocks_take(struct rebuild *r, uint64_t first, uint64_t end)
{
	struct counts *c = &r->ck->counts;
	uint64_t per_block = check_per_block(r->ck), first_free = 0;

	for (uint64_t k = first; k < end; k++) {
		uint64_t index = k / per_block;
		int rc;

		if (counts_is_empty(c, k >> COUNTS_CHUNK_BITS)) {
			k |= COUNTS_CHUNK - 1;
			continue;
		}
		if (!counts_get(c, k))
			continue;
		if (index >= r->entries || !r->table[index]) {
			rc = block_take(r, index, &first_free);
			if (rc)
				return rc;
			end = MAX(end, r->table[index] + 1);
		}
		k = (index + 1) * per_block - 1;
	}
	return 0;
}

static int place(struct rebuild *r, uint64_t *ret_first, uint64_t *ret_n)
{
	int rc = blocks_take(r, 0, r->ck->clusters);
	uint64_t before;

	/* What was taken for a table that turned out too small leaks, till the end. */
	do {
		uint64_t first_free = 0;

		before = r->entries;
		*ret_n = div_round_up(before * 8, r->ck->cluster);
		if (!rc)
			rc = repair_take(r->ck, *ret_n, &first_free, ret_first);
		if (!rc)
			rc = blocks_take(r, *ret_first, *ret_first + *ret_n);
	} while (!rc && r->entries != before);
	return rc;
}

static int block_write_wait(struct rebuild *r, uint64_t index, uint8_t *block)
{
	struct check *ck = r->ck;
	uint64_t first = index * check_per_block(ck), off = r->table[index] << ck->cluster_bits;
	uint64_t end = MIN(first + check_per_block(ck), ck->clusters);
	int rc = repair_may_write_wait(ck, MAP_KINDS, off, ck->cluster);

	memset(block, 0, ck->cluster);
	for (uint64_t k = first; k < end; k++)
		qcow2_refcount_put(ck->h->refcount_order, block, k - first,
				   counts_get(&ck->counts, k));
	if (!rc)
		rc = repair_write_wait(ck, off, block, ck->cluster);
	if (rc)
		check_say_named(ck, "ERROR writing refblock: %s", strerror(-rc));
	return rc;
}

static int table_write_wait(struct rebuild *r, uint64_t off)
{
	struct check *ck = r->ck;
	uint64_t len = r->entries * 8;
	int rc = repair_may_write_wait(ck, MAP_KINDS, off, len);

	for (uint64_t i = 0; i < r->entries; i++)
		be64_store(&r->table[i], r->table[i] << ck->cluster_bits);
	if (!rc)
		rc = repair_write_wait(ck, off, r->table, len);
	if (rc)
		check_say_named(ck, "ERROR writing reftable: %s", strerror(-rc));
	return rc;
}

/* Q7: two fields, side by side in one sector. */
static int switch_wait(struct check *ck, uint64_t off, uint64_t n)
{
	struct { be64_t off; be32_t clusters; } fields = { be64_make(off), be32_make((uint32_t)n) };
	int rc = ck->broken & BREAK_Y13_SWITCH ? 0 : repair_sync_wait(ck);

	_Static_assert(sizeof(fields) == 12, "as in the header");
	if (!rc)
		rc = repair_write_wait(ck, offsetof(struct qcow2_header_disk,
						    refcount_table_offset), &fields,
				       sizeof(fields));
	if (!rc)
		rc = repair_sync_wait(ck);
	if (rc) {
		check_say_named(ck, "ERROR setting reftable: %s", strerror(-rc));
		return rc;
	}
	ck->h->reftable_off = off;
	ck->h->reftable_clusters = (uint32_t)n;
	repair_map_drop(&ck->map);
	return 0;
}

int repair_rebuild_wait(struct check *ck)
{
	struct rebuild r = { .ck = ck };
	uint64_t first = 0, n = 0;
	uint8_t *block = malloc(ck->cluster);
	int rc = block ? place(&r, &first, &n) : -ENOMEM;

	if (rc)
		ck->result.check_errors++;
	for (uint64_t i = 0; i < r.entries && !rc; i++)
		if (r.table[i])
			rc = block_write_wait(&r, i, block);
	if (!rc)
		rc = table_write_wait(&r, first << ck->cluster_bits);
	if (!rc)
		rc = switch_wait(ck, first << ck->cluster_bits, n);
	ck->file_end = MAX(ck->file_end, align_up(atomic_load(&ck->file->node->size), 512));
	free(r.table);
	free(block);
	return rc;
}
