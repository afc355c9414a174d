/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/l2.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/endian.h"
#include "fmt/qcow2/writer.h"

static uint64_t l1_off_of(const struct qcow2 *q, uint64_t guest_off)
{
	return q->l1_off + guest_off / qcow2_l2_coverage(&q->header) * 8;
}

/* May the table that L1 entry @l1 names be changed where it is? */
static bool is_own(const struct writer *w, uint64_t l1)
{
	if (w->broken & BREAK_Q3_COPIED)
		return l1 & QCOW2_OFFSET_MASK;
	return (l1 & QCOW2_OFFSET_MASK) && (l1 & QCOW2_COPIED);
}

/* Makes the pages of a table at @off; the content of all @bytes of it, or zeros. Both or none. */
static int make_pages(struct writer *w, uint64_t off, const uint8_t *bytes)
{
	unsigned page = w->meta.page_bytes;

	for (uint64_t at = 0; at < w->cluster; at += page) {
		struct meta_page *p;
		int rc = meta_new(&w->meta, META_L2, off + at, bytes ? bytes + at : NULL, true, &p);

		if (rc) {
			meta_forget(&w->meta, off, at);
			return rc;
		}
		meta_put(&w->meta, p);
	}
	return 0;
}

/* A cluster for a table, until table_end(). Never waits where the reserve has one. */
static int take_wait(struct writer *w, struct alloc_run *ret)
{
	int rc = mark_set_wait(w);

	while (!rc && !alloc_take(&w->alloc, 1, ret))
		rc = alloc_fill_wait(&w->alloc);
	w->ntables += !rc;
	return rc;
}

/* It is named, or it goes back. */
static void table_end(struct writer *w, const struct alloc_run *run, bool is_named)
{
	w->ntables--;
	if (!is_named)
		alloc_untake(&w->alloc, run->first, 1, run->is_fresh);
}

/* Q6: a table in the cluster of @run. All or nothing. Never waits. */
static int place_table(struct writer *w, const struct alloc_run *run, const uint8_t *bytes)
{
	int rc = run->is_fresh ? 0 : guard_table(w, run->first, 1);

	if (!rc)
		rc = alloc_metadata_add(&w->alloc, run->first, 1);
	if (rc)
		return rc;
	rc = make_pages(w, run->first * w->cluster, bytes);
	if (rc)
		alloc_metadata_del(&w->alloc, run->first, 1);
	if (rc == -EUCLEAN)
		writer_latch(w, qcow2_corrupt(w->q, "metadata at %#llx has no refcount",
					      (unsigned long long)(run->first * w->cluster)));
	return rc;
}

/* Nothing of the active disk names @table any more: it is the snapshots' alone, and their
 * references keep it. One that L1 names twice stays, and leaks at worst, as does one that the walk
 * after a crash cannot be told of (R8). */
static void leave_table(struct writer *w, uint64_t table)
{
	if (alloc_is_shared_table(&w->alloc, table / w->cluster))
		return;
	if (reclaim_table_left(&w->reclaim, table / w->cluster)) {
		w->has_leaked = true;
		return;
	}
	alloc_metadata_del(&w->alloc, table / w->cluster, 1);
	alloc_free(&w->alloc, table / w->cluster, 1);
}

/* Puts a new table, or a copy of the shared one, into the L1 entry in @l1, if that is @old yet. */
static int make_table_wait(struct writer *w, struct meta_page *l1, uint64_t l1_off, uint64_t old)
{
	uint64_t shared = old & QCOW2_OFFSET_MASK;
	struct alloc_run run;
	uint8_t *bytes = NULL;
	int rc = take_wait(w, &run);

	if (rc)
		return rc;
	if (shared) {
		bytes = aligned_alloc(META_BYTES_MAX, align_up(w->cluster, META_BYTES_MAX));
		rc = bytes ? meta_read_wait(&w->meta, shared, bytes, w->cluster) : -ENOMEM;
		run.is_fresh = false;           /* a slice may have come meanwhile that names it */
	}
	/* Nothing below gives way. */
	if (rc || meta_value(&w->meta, l1, l1_off, 8) != old) {
		table_end(w, &run, false);
		free(bytes);
		return rc;
	}
	rc = place_table(w, &run, bytes);
	free(bytes);
	table_end(w, &run, !rc);
	if (rc)
		return rc;
	meta_change(&w->meta, l1, &(struct meta_record){
		.kind = META_L1, .width = 8, .off = l1_off, .old = old,
		.new = run.first * w->cluster | QCOW2_COPIED });
	w->commit.needs_a = true;
	if (shared)
		leave_table(w, shared);
	return 0;
}

/* The page at @at->table, if L1 entry @entry of @l1 is still the same then; else -EAGAIN. */
static int slice_get_wait(struct writer *w, struct meta_page *l1, uint64_t l1_off, uint64_t entry,
			  struct l2_at *at)
{
	struct meta_page *p;
	int rc = meta_get_wait(&w->meta, META_L2, at->table, &p);

	if (rc == -EUCLEAN)
		return writer_latch(w, qcow2_corrupt(w->q, "L2 table %#llx overlaps other metadata",
						     (unsigned long long)at->table));
	if (rc)
		return rc;
	if (meta_value(&w->meta, l1, l1_off, 8) != entry) {
		meta_put(&w->meta, p);
		return -EAGAIN;
	}
	at->page = p;
	return 0;
}

int l2_get_wait(struct writer *w, uint64_t guest_off, bool make, struct l2_at *ret)
{
	struct qcow2 *q = w->q;
	uint64_t slice_bytes = 1ULL << q->slice_shift, first = align_down(guest_off, slice_bytes);
	uint64_t in_table = guest_off % qcow2_l2_coverage(&q->header) >> q->slice_shift;
	uint64_t l1_off = l1_off_of(q, guest_off);
	struct l2_at at = { .first = first, .end = first + slice_bytes };
	struct meta_page *l1;
	int rc;

	assert(guest_off / qcow2_l2_coverage(&q->header) < q->l1_entries);
	rc = meta_get_wait(&w->meta, META_L1, l1_off, &l1);
	if (rc == -EUCLEAN)
		return writer_latch(w, qcow2_corrupt(q, "the L1 table overlaps other metadata"));
	if (rc)
		return rc;
	do {
		uint64_t entry = meta_value(&w->meta, l1, l1_off, 8);
		uint64_t table = entry & QCOW2_OFFSET_MASK;

		rc = 0;
		if (!is_aligned(table, w->cluster)) {
			rc = qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#llx)",
					   (unsigned long long)table, (unsigned long long)
					   (guest_off / qcow2_l2_coverage(&q->header)));
			writer_latch(w, rc);
		} else if (make && is_own(w, entry) &&
			   alloc_is_shared_table(&w->alloc, table / w->cluster)) {
			rc = qcow2_corrupt(q, "L2 table %#llx overlaps other metadata",
					   (unsigned long long)table);
			writer_latch(w, rc);
		} else if (make && !is_own(w, entry)) {
			rc = make_table_wait(w, l1, l1_off, entry);
			rc = rc ? rc : -EAGAIN;
		} else if (table) {
			at.table = table + in_table * w->meta.page_bytes;
			rc = slice_get_wait(w, l1, l1_off, entry, &at);
		} else {
			at.table = 0;
		}
	} while (rc == -EAGAIN);
	meta_put(&w->meta, l1);
	if (!rc)
		*ret = at;
	return rc;
}

void l2_put(struct writer *w, struct l2_at *at)
{
	if (at->page)
		meta_put(&w->meta, at->page);
	at->page = NULL;
}

/* Of the entry's first word in its slice. */
static unsigned word_of(const struct writer *w, const struct l2_at *at, uint64_t guest_off)
{
	assert(guest_off >= at->first && guest_off < at->end);
	return (unsigned)((guest_off - at->first) >> w->q->cluster_bits) * w->q->entry_words;
}

struct l2_pair l2_pair(const struct writer *w, const struct l2_at *at, uint64_t guest_off)
{
	struct l2_pair p = { 0, 0 };
	const uint8_t *bytes;

	if (!at->page)
		return p;
	bytes = at->page->bytes + 8 * word_of(w, at, guest_off);
	p.entry = be64_load(bytes);
	if (w->q->entry_words == 2)
		p.bitmap = be64_load(bytes + 8);
	return p;
}

void l2_set(struct writer *w, struct l2_at *at, uint64_t guest_off, struct l2_pair new,
	    bool needs_a)
{
	struct qcow2 *q = w->q;
	struct l2_pair old = l2_pair(w, at, guest_off);
	unsigned word = word_of(w, at, guest_off);
	uint64_t key = cache_key(q->layer, guest_off >> q->slice_shift);
	bool is_empty;

	meta_change(&w->meta, at->page,
		    &(struct meta_record){ .kind = META_L2, .width = 8 * q->entry_words,
					   .off = at->page->off + 8 * word,
					   .old = old.entry, .new = new.entry,
					   .old_second = old.bitmap, .new_second = new.bitmap });
	w->commit.needs_a |= needs_a;
	if (w->broken & BREAK_U11_APART)
		cache_store(q->cache, key, word, 1, &new.entry);
	if (cache_store(q->cache, key, word, q->entry_words,
			(const uint64_t[]){ new.entry, new.bitmap }))
		return;
	if (cache_find(q->cache, key, &is_empty) >= 0)
		pendings_cache_slice(&w->pendings, at);
}
