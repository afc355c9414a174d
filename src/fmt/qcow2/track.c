/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/track.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/writer.h"

enum { FLAGS_AT = 12 };                 /* of a bitmap's flags in its directory entry */
/* Of all tables together. A sane one has eight bytes for each 32 GiB of its disk. */
#define TABLE_BYTES_MAX (64 * MiB)
#define ALL_ONES 1ULL                   /* a table's entry: every bit of its cluster is set */

/* ---- opening ---- */

static int list_add(struct track *t, const struct qcow2_bitmap *b)
{
	char *name;

	if (t->n == t->room) {
		uint32_t room = MAX(2 * t->room, 4u);
		void *list = realloc(t->list, room * sizeof(*t->list));

		if (!list)
			return -ENOMEM;
		t->list = list;
		t->room = room;
	}
	name = strdup(b->name);
	if (!name)
		return -ENOMEM;
	t->list[t->n++] = (struct tracked){
		.entry_off = b->entry_off, .table_off = b->table_off,
		.table_entries = b->table_entries, .flags = b->flags,
		.granularity_bits = b->granularity_bits, .name = name,
	};
	return 0;
}

/* Q6. What is written there must be nothing else. */
static int occupy(struct track *t, uint64_t off, uint64_t bytes)
{
	struct alloc *a = &t->w->alloc;
	uint64_t first = off / t->w->cluster, n = div_round_up(bytes, t->w->cluster);

	return alloc_is_metadata(a, first, n) ? -EUCLEAN : alloc_metadata_add(a, first, n);
}

/* The clusters of @b's table, and those that it names. */
static int occupy_wait(struct track *t, const struct qcow2_bitmap *b)
{
	struct writer *w = t->w;
	uint64_t bytes = 8ULL * b->table_entries, *table;
	int rc;

	t->table_bytes += bytes;
	if (t->table_bytes > TABLE_BYTES_MAX)
		return -EFBIG;
	rc = qcow2_bitmap_table_wait(w->file, &w->q->header, b, &table);
	if (rc == -EINVAL)
		return 0;               /* in use, and damaged: nobody looks at it */
	if (rc)
		return rc;
	rc = occupy(t, b->table_off, bytes);
	for (uint32_t i = 0; i < b->table_entries && !rc; i++)
		if (table[i] & QCOW2_OFFSET_MASK)
			rc = occupy(t, table[i] & QCOW2_OFFSET_MASK, w->cluster);
	free(table);
	return rc;
}

static int look_at(void *arg, const struct qcow2_bitmap *b)
{
	struct track *t = arg;
	bool is_tracked = (b->flags & BITMAP_AUTO) && !(b->flags & BITMAP_IN_USE);
	int rc = occupy_wait(t, b);

	if (!rc && (is_tracked || (t->w->broken & BREAK_T33_ALL)))
		rc = list_add(t, b);
	return rc;
}

static int map_init(struct track *t)
{
	uint64_t granules;

	t->granularity_bits = BITMAP_GRANULARITY_BITS_MAX;
	for (uint32_t i = 0; i < t->n; i++)
		t->granularity_bits = MIN(t->granularity_bits, t->list[i].granularity_bits);
	granules = div_round_up(t->w->q->header.size, 1ULL << t->granularity_bits);
	t->npages = div_round_up(granules, TRACK_PAGE_BITS);
	t->pages = calloc(MAX(t->npages, 1ULL), sizeof(*t->pages));
	return t->pages ? 0 : -ENOMEM;
}

int track_open_wait(struct track *t, struct writer *w, struct err *err)
{
	const struct qcow2_header *h = &w->q->header;
	int rc;

	*t = (struct track){ .w = w };
	if (!h->nb_bitmaps)
		return 0;
	rc = qcow2_bitmaps_judge_wait(&w->q->node, err);
	if (rc)
		return rc;
	rc = occupy(t, h->bitmaps_off, h->bitmaps_bytes);
	if (!rc)
		rc = qcow2_bitmaps_each_wait(w->file, h, look_at, t, err);
	if (!rc && t->n)
		rc = map_init(t);
	if (rc == -EUCLEAN)
		return err_set(err, EUCLEAN, "bitmaps overlap other metadata");
	return rc && !(err && err->text[0]) ? err_set_errno(err, -rc, "bitmaps") : rc;
}

static void table_free(struct tracked *k)
{
	free(k->table);
	free(k->is_new);
	k->table = NULL;
	k->is_new = NULL;
}

void track_fini(struct track *t)
{
	for (uint64_t i = 0; t->pages && i < t->npages; i++)
		free((void *)(uintptr_t)t->pages[i]);
	free((void *)(uintptr_t)t->pages);
	for (uint32_t i = 0; i < t->n; i++) {
		table_free(&t->list[i]);
		free(t->list[i].name);
	}
	free(t->list);
	*t = (struct track){ 0 };
}

/* ---- marks ---- */

/* Writes the flags of all that are not lost; they are to be marked, or not. */
static int write_flags_wait(struct track *t, bool marked)
{
	struct writer *w = t->w;
	int rc = 0;

	for (uint32_t i = 0; i < t->n && !rc; i++) {
		const struct tracked *k = &t->list[i];
		be32_t flags = be32_make(k->flags | (marked ? BITMAP_IN_USE : 0));

		if (!k->is_lost)
			rc = chan_write_wait(w->file, k->entry_off + FLAGS_AT, &flags,
					     sizeof(flags));
	}
	return rc;
}

static int mark_wait(struct track *t)
{
	struct writer *w = t->w;
	int rc = write_flags_wait(t, true);

	if (rc)
		return rc;
	w->commit.stats.syncs++;
	return chan_flush_wait(w->file);
}

int track_begin_wait(struct track *t)
{
	int rc = 0;

	while (t->is_busy)
		fiber_queue_wait(&t->waiting);
	if (!t->n || t->is_marked || (t->w->broken & BREAK_T31_NO_MARK))
		return 0;
	t->is_busy = true;
	rc = mark_wait(t);
	t->is_busy = false;
	t->is_marked = !rc;
	fiber_queue_wake(&t->waiting);
	return rc;
}

int track_end_wait(struct track *t)
{
	int rc;

	if (!t->n || !(t->is_marked || (t->w->broken & BREAK_T31_NO_MARK)))
		return 0;
	rc = write_flags_wait(t, false);
	t->is_marked = t->is_marked && rc;
	return rc;
}

/* ---- the map ---- */

/* The page @i, made where it is missing. NULL: no memory. Any loop. */
static _Atomic uint64_t *page_get(struct track *t, uint64_t i)
{
	_Atomic uint64_t *page = atomic_load_explicit(&t->pages[i], memory_order_acquire);
	void *made;

	if (page)
		return page;
	made = calloc(1, TRACK_PAGE_BYTES);
	if (!made)
		return NULL;
	if (atomic_compare_exchange_strong_explicit(&t->pages[i], &page, made,
						    memory_order_acq_rel, memory_order_acquire))
		return made;
	free(made);
	return page;
}

/* Bits [@from, @end) of @page. */
static void page_set(_Atomic uint64_t *page, unsigned from, unsigned end)
{
	while (from < end) {
		unsigned in = from % 64, n = MIN(64 - in, end - from);
		uint64_t mask = (n == 64 ? ~0ULL : (1ULL << n) - 1) << in;

		/* Most are set already: then the cache line stays shared. */
		if ((atomic_load_explicit(&page[from / 64], memory_order_relaxed) & mask) != mask)
			atomic_fetch_or_explicit(&page[from / 64], mask, memory_order_relaxed);
		from += n;
	}
}

void track_set(struct track *t, uint64_t off, uint64_t len)
{
	uint64_t from = off >> t->granularity_bits;
	uint64_t end = ((off + len - 1) >> t->granularity_bits) + 1;

	while (from < end) {
		uint64_t i = from / TRACK_PAGE_BITS, page_end = (i + 1) * TRACK_PAGE_BITS;
		_Atomic uint64_t *page = page_get(t, i);

		if (!page)
			atomic_store_explicit(&t->is_lost, true, memory_order_relaxed);
		else
			page_set(page, (unsigned)(from % TRACK_PAGE_BITS),
				 (unsigned)(MIN(end, page_end) - i * TRACK_PAGE_BITS));
		from = page_end;
	}
}

/* The first bit of [@from, @end) that is set, or @end. */
static uint64_t next_set(const struct track *t, uint64_t from, uint64_t end)
{
	while (from < end) {
		const _Atomic uint64_t *page = t->pages[from / TRACK_PAGE_BITS];
		uint64_t word;

		if (!page) {
			from = align_down(from, TRACK_PAGE_BITS) + TRACK_PAGE_BITS;
			continue;
		}
		word = page[from % TRACK_PAGE_BITS / 64] >> from % 64;
		if (word)
			return MIN(from + (unsigned)__builtin_ctzll(word), end);
		from = align_down(from, 64) + 64;
	}
	return end;
}

/* ---- storing ---- */

/* A bitmap's part that one entry of its table stands for. */
struct piece {
	const struct tracked *k;
	uint64_t first, end;            /* bits of the map in memory */
	uint8_t *buf;                   /* a cluster */
};

/* Adds the bits; the lowest bit of a byte comes first. */
static void piece_fill(const struct track *t, const struct piece *p)
{
	unsigned coarser = p->k->granularity_bits - t->granularity_bits;
	uint64_t at = p->first, bit;

	while ((at = next_set(t, at, p->end)) < p->end) {
		bit = (at - p->first) >> coarser;
		p->buf[bit / 8] |= (uint8_t)(1U << bit % 8);
		at = p->first + ((bit + 1) << coarser);
	}
}

static int take_wait(struct writer *w, uint64_t *ret)
{
	struct alloc_run run;
	int rc = 0;

	while (!rc && !alloc_take(&w->alloc, 1, &run))
		rc = alloc_fill_wait(&w->alloc);
	if (rc)
		return rc;
	rc = alloc_metadata_add(&w->alloc, run.first, 1);
	if (rc)
		alloc_untake(&w->alloc, run.first, 1, run.is_fresh);
	else
		*ret = run.first * w->cluster;
	return rc;
}

/* The next commit syncs the file in any case. */
static int file_write_wait(struct writer *w, uint64_t off, const void *buf, uint64_t len)
{
	int rc = chan_write_wait(w->file, off, buf, len);

	w->commit.is_file_written = true;
	return rc;
}

/* Brings @entry of the table up to date. *@ret_new: it names a new cluster. */
static int piece_store_wait(struct track *t, const struct piece *p, uint64_t *entry, bool *ret_new)
{
	struct writer *w = t->w;
	uint64_t host = *entry & QCOW2_OFFSET_MASK;
	int rc = 0;

	*ret_new = false;
	if ((!host && (*entry & ALL_ONES)) || next_set(t, p->first, p->end) == p->end)
		return 0;
	memset(p->buf, 0, w->cluster);
	if (host) {
		rc = chan_read_wait(w->file, host, p->buf, w->cluster);
	} else {
		rc = take_wait(w, &host);
		*ret_new = !rc;
	}
	if (rc)
		return rc;
	*entry = host;
	piece_fill(t, p);
	return file_write_wait(w, host, p->buf, w->cluster);
}

/* Where this fails, what is on disk may name the new clusters: they stay. */
static int table_write_wait(struct track *t, const struct tracked *k)
{
	struct writer *w = t->w;
	int rc;

	for (uint32_t i = 0; i < k->table_entries; i++)
		be64_store(&k->table[i], k->table[i]);
	rc = file_write_wait(w, k->table_off, k->table, 8ULL * k->table_entries);
	w->has_leaked |= rc != 0;
	return rc;
}

/* Nothing on disk names the new clusters of @k's table: they go back. */
static void table_drop(struct track *t, const struct tracked *k)
{
	struct writer *w = t->w;

	for (uint32_t i = 0; i < k->table_entries; i++) {
		if (!k->is_new[i])
			continue;
		alloc_metadata_del(&w->alloc, k->table[i] / w->cluster, 1);
		alloc_free(&w->alloc, k->table[i] / w->cluster, 1);
	}
}

/* *@ret_any: there are new clusters. */
static int store_pieces_wait(struct track *t, struct tracked *k, uint8_t *buf, bool *ret_any)
{
	unsigned coarser = k->granularity_bits - t->granularity_bits;
	uint64_t bits = t->w->cluster * 8 << coarser, all = t->npages * TRACK_PAGE_BITS;
	int rc = 0;

	*ret_any = false;
	for (uint32_t i = 0; i < k->table_entries && !rc && i * bits < all; i++) {
		struct piece p = { k, i * bits, MIN((i + 1) * bits, all), buf };

		rc = piece_store_wait(t, &p, &k->table[i], &k->is_new[i]);
		*ret_any |= k->is_new[i];
	}
	if (rc)
		table_drop(t, k);
	return rc;
}

static int store_one_wait(struct track *t, struct tracked *k)
{
	const struct qcow2_bitmap b = { .table_off = k->table_off,
					.table_entries = k->table_entries };
	struct writer *w = t->w;
	uint8_t *buf = aligned_alloc(META_BYTES_MAX, align_up(w->cluster, META_BYTES_MAX));
	bool has_new = false;
	int rc = buf ? 0 : -ENOMEM;

	k->is_new = calloc(k->table_entries, sizeof(*k->is_new));
	if (!k->is_new)
		rc = -ENOMEM;
	if (!rc)
		rc = qcow2_bitmap_table_wait(w->file, &w->q->header, &b, &k->table);
	if (!rc)
		rc = store_pieces_wait(t, k, buf, &has_new);
	free(buf);
	if (rc || !has_new)
		table_free(k);
	return rc;
}

static void lose(struct track *t, struct tracked *k, int why)
{
	k->is_lost = true;
	log_warn("'%s': the bitmap '%s' cannot be stored (%s): it does not count any more",
		 t->w->q->node.name, k->name, strerror(-why));
}

void track_store_wait(struct track *t)
{
	bool is_lost = atomic_load(&t->is_lost);

	if (!t->is_marked && !(t->w->broken & BREAK_T31_NO_MARK))
		return;
	for (uint32_t i = 0; i < t->n; i++) {
		struct tracked *k = &t->list[i];
		int rc;

		if (k->is_lost || k->table)     /* since a close that failed */
			continue;
		rc = is_lost ? -ENOMEM : t->w->dead ? t->w->dead : store_one_wait(t, k);
		if (rc)
			lose(t, k, rc);
	}
	if (t->w->broken & BREAK_T34_EARLY)
		track_name_wait(t);
	if (t->w->broken & BREAK_T31_EARLY)
		write_flags_wait(t, false);
}

void track_name_wait(struct track *t)
{
	for (uint32_t i = 0; i < t->n; i++) {
		struct tracked *k = &t->list[i];
		int rc = k->table ? table_write_wait(t, k) : 0;

		if (rc)
			lose(t, k, rc);
		table_free(k);
	}
}
