/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/refs.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/writer.h"

enum { PIECE_BYTES = 64 << 10, SECTOR = 512, BUFFER_ALIGN = 4096, HOST_OFFSET_BITS = 56 };

/* A growth makes blocks for so many bytes, where it is not the first of a small image. */
#define GROW_BYTES (64 * MiB)
#define TABLE_ENTRIES_MAX ((uint64_t)QCOW2_REFTABLE_BYTES_MAX / 8)

/* ---- where a count is ---- */

static uint64_t per_block(const struct refs *r)
{
	return 1ULL << r->block_bits;
}

/* The host offset of @cluster's block; 0: it has none. */
static uint64_t block_of(const struct refs *r, uint64_t cluster)
{
	uint64_t b = cluster >> r->block_bits;

	return b < r->table_entries ? r->table[b] : 0;
}

/* The host offset of the byte in which @cluster's count begins; it has a block. */
static uint64_t count_off(const struct refs *r, uint64_t cluster)
{
	return block_of(r, cluster) + ((cluster & (per_block(r) - 1)) << r->order >> 3);
}

/* Clusters whose counts one page of metadata holds. */
static uint64_t per_page(const struct refs *r)
{
	return (uint64_t)r->w->meta.page_bytes * 8 >> r->order;
}

static uint64_t page_end(const struct refs *r, uint64_t cluster)
{
	return align_down(cluster, per_page(r)) + per_page(r);
}

static bool is_full(const struct refs *r, uint64_t b)
{
	return r->full[b / 64] >> (b % 64) & 1;
}

static void set_full(struct refs *r, uint64_t b, bool is_full)
{
	uint64_t bit = 1ULL << (b % 64);

	r->full[b / 64] = is_full ? r->full[b / 64] | bit : r->full[b / 64] & ~bit;
}

/* ---- opening ---- */

bool refs_is_block(const struct refs *r, uint64_t off)
{
	return off && is_aligned(off, r->w->cluster) && off <= QCOW2_OFFSET_MASK;
}

/* Damage counts when it is met: @cluster's count is needed, whose entry in the table is not 0. */
static int block_check(struct refs *r, uint64_t cluster)
{
	struct writer *w = r->w;

	if (refs_is_block(r, block_of(r, cluster)))
		return 0;
	return writer_latch(w, qcow2_corrupt(w->q, "entry %#llx of the refcount table is invalid "
					     "(%#llx)",
					     (unsigned long long)(cluster >> r->block_bits),
					     (unsigned long long)block_of(r, cluster)));
}

int refs_open_wait(struct refs *r, struct writer *w, struct err *err)
{
	const struct qcow2_header *h = &w->q->header;
	uint64_t bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;
	int rc;

	*r = (struct refs){
		.w = w, .table_off = h->reftable_off, .table_entries = bytes / 8,
		.order = h->refcount_order, .block_bits = h->cluster_bits + 3 - h->refcount_order,
	};
	r->max = r->order == 6 ? UINT64_MAX : (1ULL << (1U << r->order)) - 1;
	r->table = aligned_alloc(BUFFER_ALIGN, align_up(MAX(bytes, 1ULL), BUFFER_ALIGN));
	r->full = calloc(bytes / 512 + 1, sizeof(*r->full));
	r->piece = aligned_alloc(BUFFER_ALIGN, PIECE_BYTES);
	if (!r->table || !r->full || !r->piece)
		return err_set_errno(err, ENOMEM, "refcount table");
	rc = chan_read_wait(w->file, r->table_off, r->table, bytes);
	if (rc)
		return err_set_errno(err, -rc, "cannot read the refcount table");
	for (uint64_t i = 0; i < r->table_entries; i++) {
		/* The lowest bits are reserved. */
		r->table[i] = be64_load(&r->table[i]) & ~(uint64_t)(SECTOR - 1);
		if (r->table[i])
			r->table_used = i + 1;
	}
	return 0;
}

void refs_fini(struct refs *r)
{
	free(r->table);
	free(r->full);
	free(r->piece);
	*r = (struct refs){ 0 };
}

/* ---- one count, and some ---- */

/* The page with @cluster's count, pinned. */
static int page_get_wait(struct refs *r, uint64_t cluster, struct meta_page **ret)
{
	struct writer *w = r->w;
	int rc = block_check(r, cluster);

	if (rc)
		return rc;
	rc = meta_get_wait(&w->meta, META_REFBLOCK, count_off(r, cluster), ret);
	if (rc == -EUCLEAN)
		writer_latch(w, qcow2_corrupt(w->q, "refcount block %#llx overlaps other metadata",
					      (unsigned long long)block_of(r, cluster)));
	return rc;
}

static uint64_t count_at(const struct refs *r, const struct meta_page *p, uint64_t cluster)
{
	return qcow2_refcount_at(r->order, p->bytes, cluster & (per_page(r) - 1));
}

int refs_get_wait(struct refs *r, uint64_t cluster, uint64_t *ret)
{
	struct meta_page *p;
	int rc;

	if (!block_of(r, cluster)) {
		*ret = 0;
		return 0;
	}
	rc = page_get_wait(r, cluster, &p);
	if (rc)
		return rc;
	*ret = count_at(r, p, cluster);
	meta_put(&r->w->meta, p);
	return 0;
}

int refs_end_wait(struct refs *r, uint64_t from, uint64_t end, uint64_t *ret)
{
	bool is_used = false;

	while (end > from && !is_used) {
		uint64_t block = block_of(r, end - 1);
		uint64_t first = MAX(from, align_down(end - 1, block ? per_page(r) : per_block(r)));
		struct meta_page *p = NULL;
		int rc = 0;

		if (block)      /* a damaged one is nobody's trouble here */
			rc = refs_is_block(r, block) ? page_get_wait(r, end - 1, &p) : -EUCLEAN;
		if (rc)
			return rc;
		for (; end > first && !is_used; end -= !is_used)
			is_used = (p && count_at(r, p, end - 1)) ||
				  alloc_is_metadata(&r->w->alloc, end - 1, 1);
		if (p)
			meta_put(&r->w->meta, p);
	}
	*ret = end;
	return 0;
}

static void became_free(struct refs *r, uint64_t cluster)
{
	r->nfreed++;
	r->free_from = MIN(r->free_from, cluster);
	set_full(r, cluster >> r->block_bits, false);
}

static void count_set(struct refs *r, struct meta_page *p, uint64_t cluster, uint64_t value)
{
	unsigned width = r->order > 3 ? 1U << (r->order - 3) : 1;
	struct meta_record rec = { .kind = META_REFBLOCK, .width = width,
				   .off = count_off(r, cluster), .new = value };

	rec.old = meta_value(&r->w->meta, p, rec.off, width);
	if (r->order < 3) {             /* others share the byte */
		unsigned shift = (unsigned)(cluster << r->order & 7);

		rec.new = (rec.old & ~(r->max << shift)) | value << shift;
	}
	meta_change(&r->w->meta, p, &rec);
}

/* Can all of @n counts of the page be changed? */
static bool page_can_add(const struct refs *r, const struct meta_page *p, uint64_t first,
			 uint64_t n, int delta)
{
	uint64_t limit = delta > 0 ? r->max : 0;

	for (uint64_t i = 0; i < n; i++)
		if (count_at(r, p, first + i) == limit)
			return false;
	return true;
}

static void page_add(struct refs *r, struct meta_page *p, uint64_t first, uint64_t n, int delta)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t value = count_at(r, p, first + i) + (uint64_t)(int64_t)delta;

		count_set(r, p, first + i, value);
		if (!value)
			became_free(r, first + i);
	}
	if (delta > 0 && first <= r->free_from)
		r->free_from = MAX(r->free_from, first + n);
}

/* Page by page: checks, and with @change changes what it has checked. */
static int add_wait(struct refs *r, uint64_t first, uint64_t n, int delta, bool change)
{
	while (n) {
		uint64_t part = MIN(n, page_end(r, first) - first);
		struct meta_page *p;
		bool can;
		int rc;

		if (!block_of(r, first))
			return -ERANGE;
		rc = page_get_wait(r, first, &p);
		if (rc)
			return rc;
		can = page_can_add(r, p, first, part, delta);
		if (can && change)
			page_add(r, p, first, part, delta);
		meta_put(&r->w->meta, p);
		if (!can)
			return -ERANGE;
		first += part;
		n -= part;
	}
	return 0;
}

int refs_add_wait(struct refs *r, uint64_t first, uint64_t n, int delta)
{
	int rc = 0;

	assert(delta == 1 || delta == -1);
	if (n > page_end(r, first) - first)
		rc = add_wait(r, first, n, delta, false);
	return rc ? rc : add_wait(r, first, n, delta, true);
}

int refs_lower_wait(struct refs *r, uint64_t cluster, uint64_t from, uint64_t to)
{
	struct meta_page *p;
	int rc;

	assert(to <= from);
	if (!block_of(r, cluster))
		return -EAGAIN;
	rc = page_get_wait(r, cluster, &p);
	if (rc)
		return rc;
	if (count_at(r, p, cluster) != from)
		rc = -EAGAIN;
	else if (to != from)
		count_set(r, p, cluster, to);
	if (!rc && from && !to)
		became_free(r, cluster);
	meta_put(&r->w->meta, p);
	return rc;
}

/* ---- growing ---- */

struct growth {
	uint64_t b;                     /* the first new block's index */
	uint64_t nblocks;
	uint64_t base;                  /* cluster: the blocks, then the new table */
	uint64_t table_clusters;        /* 0: the table stays */
	uint64_t *table, *full;         /* owned: the new ones */
	uint8_t *buf;                   /* owned: what is written at base */
};

static uint64_t table_entries(const struct refs *r, const struct growth *g)
{
	return g->table_clusters ? g->table_clusters * r->w->cluster / 8 : r->table_entries;
}

static uint64_t clusters_needed(const struct growth *g)
{
	return g->nblocks + g->table_clusters;
}

/* As many blocks as there are, within GROW_BYTES and half of what the first one covers. */
static uint64_t blocks_wanted(const struct refs *r)
{
	uint64_t most = GROW_BYTES / (r->w->cluster << r->block_bits);

	most = MIN(most, per_block(r) / 2);
	return MAX(1ULL, MIN(most, r->table_used));
}

/* A table twice as long, at least; it and the blocks that cover it need each other's size. */
static int plan_table(struct refs *r, struct growth *g)
{
	uint64_t entries;

	for (;;) {
		entries = MAX(2 * r->table_entries, g->b + g->nblocks);
		entries = MIN(entries, TABLE_ENTRIES_MAX);
		g->table_clusters = div_round_up(entries * 8, r->w->cluster);
		if (clusters_needed(g) <= g->nblocks << r->block_bits)
			break;
		g->nblocks++;
	}
	return g->b + g->nblocks <= entries ? 0 : -EFBIG;
}

/* May a growth from @b on have the block @next, too? All entries of one are in one sector (Q7): the
 * first block counts the others, so that none of them may be named without it. */
static bool may_follow(const struct refs *r, uint64_t b, uint64_t next)
{
	bool is_apart = next * 8 / SECTOR != b * 8 / SECTOR;

	return next < r->table_entries && !r->table[next] &&
	       (!is_apart || r->w->broken & BREAK_Q7_APART);
}

static int plan(struct refs *r, uint64_t b, struct growth *g)
{
	uint64_t most = blocks_wanted(r), reach = (1ULL << HOST_OFFSET_BITS) / r->w->cluster;
	int rc = 0;

	*g = (struct growth){ .b = b, .base = b << r->block_bits };
	if (b >= r->table_entries) {
		g->nblocks = most;
		rc = plan_table(r, g);
	}
	while (g->nblocks < most && may_follow(r, b, b + g->nblocks))
		g->nblocks++;
	if (!rc && (b + g->nblocks) << r->block_bits > reach)
		rc = -EFBIG;            /* no L2 entry can name what lies there */
	return rc;
}

/* The tables in memory as they will be, and what is written: blocks that count themselves and
 * the table, then the table. */
static int prepare(struct refs *r, struct growth *g)
{
	uint64_t cluster = r->w->cluster, bytes = clusters_needed(g) * cluster;
	uint64_t entries = table_entries(r, g);
	uint8_t *table;

	g->table = calloc(entries, sizeof(*g->table));
	g->full = calloc(entries / 64 + 1, sizeof(*g->full));
	g->buf = aligned_alloc(BUFFER_ALIGN, align_up(bytes, BUFFER_ALIGN));
	if (!g->table || !g->full || !g->buf)
		return -ENOMEM;
	memcpy(g->table, r->table, r->table_entries * sizeof(*g->table));
	memcpy(g->full, r->full, (r->table_entries / 64 + 1) * sizeof(*g->full));
	for (uint64_t i = 0; i < g->nblocks; i++)
		g->table[g->b + i] = (g->base + i) * cluster;
	memset(g->buf, 0, bytes);
	for (uint64_t i = 0; i < clusters_needed(g); i++) {
		uint64_t bit = i << r->order;           /* a count of 1: its last byte, or bit */

		if (r->order < 3)
			g->buf[bit / 8] |= (uint8_t)(1U << (bit % 8));
		else
			g->buf[bit / 8 + (1U << (r->order - 3)) - 1] = 1;
	}
	table = g->buf + g->nblocks * cluster;
	for (uint64_t i = 0; g->table_clusters && i < entries; i++)
		be64_store(table + 8 * i, g->table[i]);
	return 0;
}

static int sync_wait(struct refs *r)
{
	r->w->commit.stats.syncs++;
	return chan_flush_wait(r->w->file);
}

/* The new entries in the table where it is: a whole sector, so all of them are there or none. */
static int write_entries_wait(struct refs *r, const struct growth *g)
{
	uint64_t from = align_down(g->b * 8, SECTOR);
	uint64_t end = align_up((g->b + g->nblocks) * 8, SECTOR);

	for (uint64_t at = from; at < end; at += 8)     /* the blocks are on their way already */
		be64_store(g->buf + (at - from), g->table[at / 8]);
	return chan_write_wait(r->w->file, r->table_off + from, g->buf, end - from);
}

/* Q7: both fields of the header; they lie in one sector. */
static int write_header_wait(struct refs *r, const struct growth *g)
{
	struct { be64_t off; be32_t clusters; } __attribute__((packed)) fields = {
		be64_make((g->base + g->nblocks) * r->w->cluster),
		be32_make((uint32_t)g->table_clusters),
	};
	uint64_t at = offsetof(struct qcow2_header_disk, refcount_table_offset);

	_Static_assert(offsetof(struct qcow2_header_disk, refcount_table_clusters) ==
		       offsetof(struct qcow2_header_disk, refcount_table_offset) + 8, "adjacent");
	return chan_write_wait(r->w->file, at, &fields, sizeof(fields));
}

/* Q8, Q7: what is named first, then the name, each durable before the next step. */
static int write_wait(struct refs *r, const struct growth *g)
{
	bool moves = g->table_clusters;
	bool skip_first = r->w->broken & (moves ? BREAK_Q7_SWITCH : BREAK_Q8_GROW);
	bool skip_last = r->w->broken & BREAK_Q8_GROW;
	int rc = chan_write_wait(r->w->file, g->base * r->w->cluster, g->buf,
				 clusters_needed(g) * r->w->cluster);

	if (!rc && !skip_first)
		rc = sync_wait(r);
	if (!rc)
		rc = moves ? write_header_wait(r, g) : write_entries_wait(r, g);
	if (!rc && !skip_last)
		rc = sync_wait(r);
	return rc;
}

/* It is durable: from now on it counts. *Takes* g->table and g->full. */
static void adopt(struct refs *r, struct growth *g)
{
	uint64_t cluster = r->w->cluster, old_off = r->table_off;
	uint64_t old_clusters = r->table_entries * 8 / cluster;

	free(r->table);
	free(r->full);
	r->table = g->table;
	r->full = g->full;
	g->table = g->full = NULL;
	r->table_used = MAX(r->table_used, g->b + g->nblocks);
	reclaim_void(&r->w->reclaim);
	if (!g->table_clusters)
		return;
	r->table_entries = table_entries(r, g);
	r->table_off = (g->base + g->nblocks) * cluster;
	r->w->q->header.reftable_off = r->table_off;
	r->w->q->header.reftable_clusters = (uint32_t)g->table_clusters;
	alloc_metadata_del(&r->w->alloc, old_off / cluster, old_clusters);
	if (r->w->alloc.is_in_order && r->nold < REFS_OLD_MAX)
		r->old[r->nold++] = (struct cluster_run){ old_off / cluster, old_clusters };
	else
		alloc_free(&r->w->alloc, old_off / cluster, old_clusters);
}

bool refs_free_old(struct refs *r)
{
	bool has_some = r->nold;

	while (r->nold) {
		const struct cluster_run *run = &r->old[--r->nold];

		alloc_free(&r->w->alloc, run->first, run->n);
	}
	return has_some;
}

static int overlap(struct refs *r, uint64_t cluster)
{
	struct writer *w = r->w;

	return writer_latch(w, qcow2_corrupt(w->q, "metadata at %#llx has no refcount",
					     (unsigned long long)(cluster * w->cluster)));
}

/* Makes blocks from index @b on, where there is none. */
static int grow_wait(struct refs *r, uint64_t b)
{
	struct writer *w = r->w;
	struct growth g;
	uint64_t n;
	int rc = plan(r, b, &g);

	if (rc)
		return rc;
	n = clusters_needed(&g);
	if (alloc_is_metadata(&w->alloc, g.base, n) && !(w->broken & BREAK_Q6_OVERLAP))
		rc = overlap(r, g.base);
	else if (g.base < w->alloc.fresh_from)
		rc = guard_table(w, g.base, n);
	if (rc)
		return rc;
	rc = prepare(r, &g);
	if (!rc)
		rc = alloc_metadata_add(&w->alloc, g.base, n);
	if (!rc) {
		alloc_not_fresh(&w->alloc, g.base + n);
		reclaim_touch(&w->reclaim, g.base, n);
		rc = meta_forget(&w->meta, g.base * w->cluster, n * w->cluster);
		rc = rc ? overlap(r, g.base) : write_wait(r, &g);
		if (rc)
			alloc_metadata_del(&w->alloc, g.base, n);
	}
	if (!rc)
		adopt(r, &g);
	free(g.table);
	free(g.full);
	free(g.buf);
	return rc;
}

/* ---- searching ---- */

/* Looks for a free cluster from *@at to @end in @bytes, counts from @first on. Sets *@at to
 * the first one found, and returns how many are free from there on, @want at most; or sets it to
 * @end and returns 0. */
static uint64_t scan(const struct refs *r, const uint8_t *bytes, uint64_t first, uint64_t *at,
		     uint64_t end, uint64_t want)
{
	uint64_t n = 0;

	while (*at < end && qcow2_refcount_at(r->order, bytes, *at - first))
		++*at;
	if (*at == end)
		return 0;
	end = MIN(end, page_end(r, *at));
	while (n < want && *at + n < end && !qcow2_refcount_at(r->order, bytes, *at + n - first))
		n++;
	return n;
}

/* The same in a page if it is in memory, else in the piece of the block that is read. */
static int scan_piece_wait(struct refs *r, uint64_t *at, uint64_t end, uint64_t want,
			   uint64_t *ret_n)
{
	uint64_t first = align_down(*at, per_page(r)), bytes;
	struct meta_page *p = meta_try_get(&r->w->meta, count_off(r, first));
	int rc;

	if (p) {
		*ret_n = scan(r, p->bytes, first, at, MIN(end, first + per_page(r)), want);
		meta_put(&r->w->meta, p);
		return 0;
	}
	bytes = MIN((uint64_t)PIECE_BYTES, (end - first) << r->order >> 3);
	rc = meta_read_wait(&r->w->meta, count_off(r, first), r->piece, bytes);
	if (!rc)
		*ret_n = scan(r, r->piece, first, at, first + (bytes * 8 >> r->order), want);
	return rc;
}

int refs_find_wait(struct refs *r, uint64_t want, uint64_t *ret_first, uint64_t *ret_n)
{
	uint64_t at = r->free_from, nfreed = r->nfreed, n = 0;
	int rc = 0;

	while (!rc && !n) {
		uint64_t b = at >> r->block_bits, end = (b + 1) << r->block_bits;

		if (!block_of(r, at)) {
			rc = r->is_still ? -EAGAIN : grow_wait(r, b);
			continue;
		}
		if (is_full(r, b)) {
			at = end;
			continue;
		}
		rc = block_check(r, at);
		while (!rc && !n && at < end)
			rc = scan_piece_wait(r, &at, end, want, &n);
		/* Behind the part that was searched something may have become free meanwhile. */
		if (!rc && !n && r->nfreed == nfreed)
			set_full(r, b, true);
	}
	if (rc)
		return rc;
	if (r->nfreed == nfreed)
		r->free_from = at;
	*ret_first = at;
	*ret_n = n;
	return 0;
}
