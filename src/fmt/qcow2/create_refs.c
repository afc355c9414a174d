/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/create_refs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "blk/blk.h"
#include "fmt/qcow2/format.h"

enum { ENTRY = 8, TABLE_MAX = QCOW2_REFTABLE_BYTES_MAX / ENTRY };

static uint64_t cluster_size(const struct create_refs *r)
{
	return 1ULL << r->cluster_bits;
}

static uint64_t entries_per_cluster(const struct create_refs *r)
{
	return cluster_size(r) / ENTRY;
}

/* ---- what is used ---- */

/* The first of r->used that ends behind @cluster. */
static size_t find_range(const struct create_refs *r, uint64_t cluster)
{
	size_t low = 0, high = r->nused;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (r->used[mid].end <= cluster)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static int make_room(struct create_refs *r)
{
	size_t room = MAX(2 * r->used_room, (size_t)64);
	struct cluster_range *grown;

	if (r->nused < r->used_room)
		return 0;
	grown = realloc(r->used, room * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	r->used = grown;
	r->used_room = room;
	return 0;
}

static int insert(struct create_refs *r, size_t i, struct cluster_range range)
{
	int rc = make_room(r);

	if (rc)
		return rc;
	memmove(&r->used[i + 1], &r->used[i], (r->nused - i) * sizeof(r->used[0]));
	r->used[i] = range;
	r->nused++;
	return 0;
}

static void erase(struct create_refs *r, size_t i)
{
	memmove(&r->used[i], &r->used[i + 1], (r->nused - i - 1) * sizeof(r->used[0]));
	r->nused--;
}

/* None of [@first, @end) is used. */
static int use(struct create_refs *r, uint64_t first, uint64_t end)
{
	size_t i = find_range(r, first);
	bool touches_before = i && r->used[i - 1].end == first;
	bool touches_after = i < r->nused && r->used[i].first == end;

	if (first == end)
		return 0;
	assert(i == r->nused || r->used[i].first >= end);
	if (touches_before && touches_after) {
		r->used[i - 1].end = r->used[i].end;
		erase(r, i);
	} else if (touches_before) {
		r->used[i - 1].end = end;
	} else if (touches_after) {
		r->used[i].first = first;
	} else {
		return insert(r, i, (struct cluster_range) { first, end });
	}
	return 0;
}

/* All of [@first, @end) is used, and in one run. */
static int unuse(struct create_refs *r, uint64_t first, uint64_t end)
{
	size_t i = find_range(r, first);
	struct cluster_range range;

	if (first == end)
		return 0;
	range = r->used[i];
	assert(range.first <= first && end <= range.end);
	r->search_from = MIN(r->search_from, first);
	if (range.first < first && end < range.end) {
		r->used[i].end = first;
		return insert(r, i + 1, (struct cluster_range) { end, range.end });
	}
	if (range.first < first)
		r->used[i].end = first;
	else if (end < range.end)
		r->used[i].first = end;
	else
		erase(r, i);
	return 0;
}

/* The first of @n adjacent free clusters; the next search goes on behind them. */
static uint64_t find_free(struct create_refs *r, uint64_t n)
{
	uint64_t first = r->search_from;

	for (size_t i = find_range(r, first); i < r->nused && r->used[i].first < first + n; i++)
		first = r->used[i].end;
	r->search_from = first + n;
	return first;
}

/* ---- blocks ---- */

static bool has_block(const struct create_refs *r, uint64_t index)
{
	return index < r->table_entries && r->table[index];
}

/* How many blocks count @clusters, themselves and the table. With @generous the table gets half
 * as much again to grow into. */
static uint64_t blocks_for(const struct create_refs *r, uint64_t clusters, bool generous)
{
	uint64_t table = 0, blocks = 0, last, n = 0;

	do {
		last = n;
		blocks = div_round_up(clusters + table + blocks, 1ULL << r->block_bits);
		table = div_round_up(blocks, entries_per_cluster(r));
		n = clusters + blocks + table;
		if (n == last && generous) {
			clusters += div_round_up(table, 2);
			n = 0;          /* once more */
			generous = false;
		}
	} while (n != last);
	return blocks;
}

/* The table as it is, into its place. */
static int write_table_wait(const struct create_refs *r)
{
	be64_t *disk = malloc(r->table_entries * ENTRY);
	int rc;

	if (!disk)
		return -ENOMEM;
	for (uint64_t i = 0; i < r->table_entries; i++)
		be64_store(&disk[i], r->table[i] << r->cluster_bits);
	rc = chan_write_wait(r->file, r->table_first << r->cluster_bits, disk,
			     r->table_entries * ENTRY);
	free(disk);
	return rc;
}

/* Puts @table, of @entries, at @first; what the old one took is free. Its bytes stay in the file,
 * as QEMU's do. */
static int replace_table_wait(struct create_refs *r, uint64_t *table, uint64_t entries,
			      uint64_t first)
{
	uint64_t old = r->table_first, old_clusters = r->table_entries / entries_per_cluster(r);
	int rc = write_table_wait(r);

	free(r->table);
	r->table = table;
	r->table_entries = entries;
	r->table_first = first;
	return rc ? rc : unuse(r, old, old + old_clusters);
}

/* Makes blocks and a larger table, side by side from cluster @start on, that count all up to
 * there, themselves, and @more clusters. Block @new_index, where it is not 0, is at @new_block.
 * *@ret_end is what lies behind. */
static int make_area_wait(struct create_refs *r, uint64_t start, uint64_t more, bool generous,
			  uint64_t new_index, uint64_t new_block, uint64_t *ret_end)
{
	uint64_t blocks = blocks_for(r, start + more, generous), at = start, entries, end;
	uint64_t *table;
	int rc;

	if (blocks > TABLE_MAX)
		return -EFBIG;
	entries = generous ? blocks + div_round_up(blocks, 2) : blocks;
	entries = align_up(entries, entries_per_cluster(r));
	if (entries > TABLE_MAX)
		return -EFBIG;
	table = calloc(entries, sizeof(*table));
	if (!table)
		return -ENOMEM;
	memcpy(table, r->table, MIN(entries, r->table_entries) * sizeof(*table));
	if (new_index)
		table[new_index] = new_block;
	for (uint64_t i = start >> r->block_bits; i < blocks; i++)
		if (!table[i])
			table[i] = at++;
	end = at + entries / entries_per_cluster(r);
	rc = use(r, start, end);
	if (rc) {
		free(table);
		return rc;
	}
	*ret_end = end;
	return replace_table_wait(r, table, entries, at);
}

static int mark_wait(struct create_refs *r, uint64_t first, uint64_t n);

/* Makes the block that counts @cluster. -EAGAIN: it is there now, but what was free need not be so
 * any longer. */
static int make_block_wait(struct create_refs *r, uint64_t cluster)
{
	uint64_t index = cluster >> r->block_bits, block = find_free(r, 1), behind, ignored;
	int rc;

	if (block >> r->block_bits == index)
		rc = use(r, block, block + 1);          /* it counts itself */
	else
		rc = mark_wait(r, block, 1);
	if (rc)
		return rc;
	if (index < r->table_entries) {
		r->table[index] = block;
		return -EAGAIN;
	}
	behind = div_round_up(MAX(cluster + 1, block), 1ULL << r->block_bits) << r->block_bits;
	rc = make_area_wait(r, behind, 0, true, index, block, &ignored);
	return rc ? rc : -EAGAIN;
}

/* Marks free clusters as used. On failure none is; -EAGAIN: search again. */
static int mark_wait(struct create_refs *r, uint64_t first, uint64_t n)
{
	uint64_t end = first + n, at = first;
	int rc = 0, undo;

	while (at < end && !rc) {
		uint64_t index = at >> r->block_bits;
		uint64_t stop = MIN(end, (index + 1) << r->block_bits);

		rc = has_block(r, index) ? use(r, at, stop) : make_block_wait(r, at);
		if (!rc)
			at = stop;
	}
	if (!rc)
		return 0;
	if (rc == -EAGAIN)
		r->search_from = MIN(r->search_from, first);
	undo = unuse(r, first, at);
	return undo ? undo : rc;
}

/* ---- for those who make an image ---- */

int create_refs_take_wait(struct create_refs *r, uint64_t n, uint64_t *ret_first)
{
	uint64_t first;
	int rc;

	do {
		first = find_free(r, n);
		rc = mark_wait(r, first, n);
	} while (rc == -EAGAIN);
	if (!rc)
		*ret_first = first;
	return rc;
}

int create_refs_take_at_wait(struct create_refs *r, uint64_t first, uint64_t n, uint64_t *ret_n)
{
	uint64_t got;
	int rc;

	do {
		size_t i = find_range(r, first);
		uint64_t next = i < r->nused ? r->used[i].first : UINT64_MAX;

		got = next <= first ? 0 : MIN(n, next - first);
		rc = mark_wait(r, first, got);
	} while (rc == -EAGAIN);
	if (!rc)
		*ret_n = got;
	return rc;
}

uint64_t create_refs_end(const struct create_refs *r)
{
	return r->used[r->nused - 1].end;
}

int create_refs_move_wait(struct create_refs *r, uint64_t n, uint64_t *ret_first)
{
	return make_area_wait(r, create_refs_end(r), n, false, 0, 0, ret_first);
}

/* Sets the refcounts of clusters [@from, @to) of a block to 1. */
static void fill_block(const struct create_refs *r, uint8_t *block, uint64_t from, uint64_t to)
{
	unsigned per_byte;

	if (r->order >= 3) {
		for (uint64_t i = from + 1; i <= to; i++)
			block[(i << (r->order - 3)) - 1] = 1;
		return;
	}
	per_byte = 8u >> r->order;
	for (uint64_t i = from; i < to; i++)
		block[i / per_byte] |= (uint8_t)(1u << ((i % per_byte) << r->order));
}

static int write_block_wait(const struct create_refs *r, uint64_t index, uint8_t *block)
{
	uint64_t first = index << r->block_bits, end = first + (1ULL << r->block_bits);

	memset(block, 0, cluster_size(r));
	for (size_t i = find_range(r, first); i < r->nused && r->used[i].first < end; i++)
		fill_block(r, block, MAX(r->used[i].first, first) - first,
			   MIN(r->used[i].end, end) - first);
	return chan_write_wait(r->file, r->table[index] << r->cluster_bits, block,
			       cluster_size(r));
}

int create_refs_write_wait(struct create_refs *r)
{
	uint8_t *block = malloc(cluster_size(r));
	int rc = block ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < r->table_entries && !rc; i++)
		if (r->table[i])
			rc = write_block_wait(r, i, block);
	free(block);
	return rc ? rc : write_table_wait(r);
}

int create_refs_init(struct create_refs *r, struct chan *file, unsigned cluster_bits,
		     unsigned order)
{
	uint64_t ignored;

	*r = (struct create_refs) {
		.file = file,
		.cluster_bits = cluster_bits,
		.order = order,
		.block_bits = cluster_bits + 3 - order,
		.table_first = 1,
	};
	r->table_entries = entries_per_cluster(r);
	r->table = calloc(r->table_entries, sizeof(*r->table));
	if (!r->table)
		return -ENOMEM;
	r->table[0] = 2;
	return create_refs_take_wait(r, 3, &ignored);
}

void create_refs_fini(struct create_refs *r)
{
	free(r->used);
	free(r->table);
	*r = (struct create_refs) { 0 };
}
