/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check_walk.c - L1 and L2 tables: counts what they use (check_impl.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/check_impl.h"

#define L1_RESERVED (0x1ffULL | 0x7fULL << 56)
#define L2_RESERVED (0x1feULL | 0x3fULL << 56)

/* One walk through an L2 table. */
struct visit {
	bool is_active;                 /* the table is one of the active L1's */
	uint64_t table_off;             /* in the file */
	uint64_t times;                 /* what it uses is used so often */
	uint64_t active_times;          /* for the statistics */
	bool marks;                     /* its COPIED flags count */
	uint64_t next;                  /* where a file without fragments goes on; 0: not known */
};

static int use_cluster(struct check *ck, uint64_t k, uint64_t times, unsigned marks)
{
	uint64_t over = 0;
	int rc = counts_add(&ck->counts, k, times, marks, &over);

	for (; over && !check_is_endless(ck); over--) {
		check_say(ck, "ERROR: overflow cluster offset=0x%llx",
			  (unsigned long long)(k << ck->cluster_bits));
		check_say(ck, "Use qemu-img amend to increase the refcount entry width or qemu-img "
			  "convert to create a clean copy if the image cannot be opened for "
			  "writing");
		ck->result.corruptions++;
	}
	return rc;
}

/* Was what ends at @end written since the check began, beside it? */
static bool is_new(const struct check *ck, uint64_t end)
{
	return ck->say && ck->say->differ &&
	       end <= atomic_load(&ck->file->node->size) + ck->cluster;
}

int check_use(struct check *ck, uint64_t off, uint64_t len, uint64_t times, unsigned marks)
{
	uint64_t first = off >> ck->cluster_bits, last;

	if (!len)
		return 0;
	/* The last cluster may be there in part only. */
	if (!range_within(off, len, INT64_MAX) ||
	    (off + len > ck->file_end && off + len - ck->file_end >= ck->cluster)) {
		if (is_new(ck, off + len))
			return 0;
		for (; times && !check_is_endless(ck); times--) {
			check_say(ck, "ERROR: counting reference for region exceeding the end of "
				  "the file by one cluster or more: offset 0x%llx size 0x%llx",
				  (unsigned long long)off, (unsigned long long)len);
			ck->result.corruptions++;
		}
		ck->copied_differs |= marks != 0;
		return 0;
	}
	last = (off + len - 1) >> ck->cluster_bits;
	for (uint64_t k = first; k <= last; k++) {
		int rc = use_cluster(ck, k, times, k == first ? marks : 0);

		if (rc)
			return rc;
	}
	ck->clusters = MAX(ck->clusters, last + 1);
	return 0;
}

/* ---- L2 ---- */

static int visit_compressed(struct check *ck, struct visit *v, unsigned i, uint64_t entry,
			    uint64_t bitmap)
{
	unsigned shift = 62 - (ck->cluster_bits - 8);
	uint64_t off = entry & ((1ULL << shift) - 1);
	uint64_t sectors = ((entry & (QCOW2_COMPRESSED - 1)) >> shift) + 1;

	if (entry & QCOW2_COPIED) {
		check_say(ck, "ERROR: coffset=0x%llx: copied flag must never be set for "
			  "compressed clusters", (unsigned long long)off);
		entry &= ~QCOW2_COPIED;
		ck->result.corruptions++;
	}
	if (ck->has_data_file) {
		check_say(ck, "ERROR compressed cluster %u with data file, entry=0x%llx", i,
			  (unsigned long long)entry);
		ck->result.corruptions++;
		return 0;
	}
	if (bitmap) {
		check_say(ck, "ERROR compressed cluster %u with non-zero subcluster allocation "
			  "bitmap, entry=0x%llx", i, (unsigned long long)entry);
		ck->result.corruptions++;
		return 0;
	}
	/* It never lies where it would be in a file without fragments. */
	ck->result.allocated += v->active_times;
	ck->result.compressed += v->active_times;
	ck->result.fragmented += v->active_times;
	return check_use(ck, off, sectors * 512 - (off & 511), v->times, 0);
}

static void note_place(struct check *ck, struct visit *v, uint64_t off)
{
	ck->result.allocated += v->active_times;
	if (v->next && off != v->next)
		ck->result.fragmented += v->active_times;
	v->next = off + ck->cluster;
}

/* In a table that lies where one may lie. */
static bool may_mend(const struct check *ck, const struct visit *v)
{
	return ck->repair == QCOW2_REPAIR_ALL && is_aligned(v->table_off, ck->cluster);
}

/* What has no data reads as zeros, and needs no place for it. */
static int mend_by_zero_wait(struct check *ck, struct visit *v, unsigned i, uint64_t bitmap)
{
	uint64_t len = 8ULL * ck->entry_words, off = v->table_off + i * len;
	uint8_t entry[16];
	int rc = repair_may_write_wait(ck, v->is_active ? MAP_ACTIVE_L2 : MAP_KINDS, off, len);

	if (rc) {
		ck->result.corruptions++;
		ck->result.check_errors++;
		check_say(ck, "ERROR: Overlap check failed");
		return rc;
	}
	be64_store(entry, ck->entry_words == 1 ? QCOW2_ZERO : 0);
	be64_store(entry + 8, bitmap & ~(uint64_t)UINT32_MAX);
	rc = repair_write_wait(ck, off, entry, len);
	if (rc) {
		check_say(ck, "ERROR: Failed to overwrite L2 table entry: %s", strerror(-rc));
		ck->result.check_errors++;
		return rc;
	}
	ck->result.corruptions_fixed++;
	return 0;
}

static int visit_standard_wait(struct check *ck, struct visit *v, unsigned i, enum l2_kind kind,
			       uint64_t entry, uint64_t bitmap)
{
	uint64_t off = entry & QCOW2_OFFSET_MASK;
	bool is_copied = entry & QCOW2_COPIED;
	bool is_data = ck->entry_words == 2 ? bitmap & UINT32_MAX : kind == L2_DATA;

	if ((bitmap >> 32) & bitmap & UINT32_MAX) {
		check_say(ck, "ERROR offset=%llx: Allocated cluster has corrupted subcluster "
			  "allocation bitmap", (unsigned long long)off);
		ck->result.corruptions++;
	}
	if (!is_aligned(off, ck->cluster)) {
		bool is_mended = !is_data && may_mend(ck, v);
		int rc = 0;

		check_say(ck, "%s offset=%llx: %s cluster is not properly aligned; L2 entry "
			  "corrupted.", is_mended ? "Repairing" : "ERROR", (unsigned long long)off,
			  is_data ? "Data" : "Preallocated");
		if (is_mended)
			rc = mend_by_zero_wait(ck, v, i, bitmap);
		if (rc || is_mended)
			return rc;
		ck->result.corruptions++;
	}
	note_place(ck, v, off);
	if (ck->has_data_file) {
		ck->copied_differs |= v->marks && !is_copied;
		return 0;
	}
	return check_use(ck, off, ck->cluster, v->times,
			 !v->marks ? 0 : is_copied ? COUNTS_COPIED : COUNTS_NOT_COPIED);
}

static int visit_entry_wait(struct check *ck, struct visit *v, unsigned i, uint64_t entry,
			    uint64_t bitmap)
{
	enum l2_kind kind = check_l2_kind(ck, entry);

	if (kind == L2_COMPRESSED)
		return visit_compressed(ck, v, i, entry, bitmap);
	if (entry & L2_RESERVED) {
		check_say(ck, "ERROR found l2 entry with reserved bits set: %llx",
			  (unsigned long long)entry);
		ck->result.corruptions++;
	}
	if (kind == L2_DATA || kind == L2_ZERO_KEPT)
		return visit_standard_wait(ck, v, i, kind, entry, bitmap);
	if (bitmap & UINT32_MAX) {
		check_say(ck, "ERROR: Unallocated cluster has non-zero subcluster allocation map");
		ck->result.corruptions++;
	}
	return 0;
}

/* What nearly every entry is: a whole cluster of data in the file. False: look closer. */
static inline bool visit_quick(struct check *ck, struct visit *v, uint64_t entry)
{
	uint64_t off = entry & ~QCOW2_COPIED;
	unsigned marks = entry & QCOW2_COPIED ? COUNTS_COPIED : COUNTS_NOT_COPIED;

	if ((off & ~(QCOW2_OFFSET_MASK & ~(ck->cluster - 1))) || !off || off >= ck->file_end)
		return false;
	if (!counts_add_quick(&ck->counts, off >> ck->cluster_bits, v->marks ? marks : 0))
		return false;
	note_place(ck, v, off);
	return true;
}

static int visit_table_wait(struct check *ck, struct visit *v, const uint8_t *table)
{
	unsigned words = ck->entry_words, n = (unsigned)(ck->cluster / 8 / words);
	bool is_quick = words == 1 && v->times == 1 && !ck->has_data_file;
	uint64_t used = 0;

	v->next = 0;
	for (unsigned i = 0; i < n; i++) {
		uint64_t entry = be64_load(table + 8ULL * words * i), bitmap = 0;
		int rc;

		if (words == 2)
			bitmap = be64_load(table + 16ULL * i + 8);
		if (!entry && !bitmap)
			continue;
		used++;
		if (is_quick && visit_quick(ck, v, entry))
			continue;
		rc = visit_entry_wait(ck, v, i, entry, bitmap);
		if (rc)
			return rc;
	}
	if (v->times == 1)
		counts_credit(&ck->counts, used);
	return check_is_endless(ck) ? check_budget_wait(ck, 0) : 0;
}

/* ---- L1 ---- */

struct l1_walk {
	struct check *ck;
	bool is_active;
	struct readahead ra;
	uint8_t *table;                 /* a piece of L1 */
	uint8_t *buf;                   /* an L2 table that was not read ahead */
	bool *is_pushed;                /* for each entry of the piece */
};

static bool is_shareable(const struct check *ck, uint64_t off)
{
	return is_aligned(off, ck->cluster) && off < ck->file_end;
}

/* Reads the table at @off ahead, if it is to be walked now for all we know. */
static int read_ahead(struct l1_walk *w, unsigned i)
{
	struct check *ck = w->ck;
	uint64_t entry = be64_load(w->table + 8ULL * i), off = entry & QCOW2_OFFSET_MASK;
	int rc;

	w->is_pushed[i] = false;
	if (!entry || !is_shareable(ck, off) ||
	    (counts_value(&ck->counts, off >> ck->cluster_bits) & COUNTS_WALKED))
		return 0;
	rc = check_budget_wait(ck, ck->cluster);
	if (!rc)
		rc = counts_mark(&ck->counts, off >> ck->cluster_bits, COUNTS_WALKED);
	if (rc)
		return rc;
	readahead_push(&w->ra, off);
	w->is_pushed[i] = true;
	return 0;
}

static int put_off(struct l1_walk *w, uint64_t k)
{
	uint64_t over;
	int rc = counts_add(&w->ck->again, k, 1, 0, &over);

	if (!rc && w->is_active)
		rc = counts_add(&w->ck->again_active, k, 1, 0, &over);
	return rc;
}

/* The L2 table at @off: NULL in @ret where there is nothing to see. */
static int l2_get_wait(struct l1_walk *w, unsigned i, uint64_t off, const uint8_t **ret)
{
	struct check *ck = w->ck;
	uint64_t k = off >> ck->cluster_bits;
	int rc;

	*ret = NULL;
	if (w->is_pushed[i])
		return readahead_pop_wait(&w->ra, ret);
	/* A table that was made since is read: what it took over counts. */
	if (off >= ck->file_end && !is_new(ck, off + ck->cluster))
		return 0;
	if (is_shareable(ck, off) && !(counts_value(&ck->counts, k) & COUNTS_DAMAGED))
		return put_off(w, k);
	rc = check_budget_wait(ck, ck->cluster);
	if (!rc)
		rc = check_read_wait(ck, off, w->buf, ck->cluster);
	if (!rc)
		*ret = w->buf;
	return rc;
}

static int l1_entry_wait(struct l1_walk *w, unsigned i)
{
	struct check *ck = w->ck;
	uint64_t entry = be64_load(w->table + 8ULL * i), off = entry & QCOW2_OFFSET_MASK;
	struct visit v = { .times = 1, .active_times = w->is_active, .marks = w->is_active,
			   .is_active = w->is_active, .table_off = off };
	unsigned marks = entry & QCOW2_COPIED ? COUNTS_COPIED : COUNTS_NOT_COPIED;
	const uint8_t *table;
	uint64_t before;
	int rc;

	if (!entry)
		return 0;
	if (entry & L1_RESERVED) {
		check_say(ck, "ERROR found L1 entry with reserved bits set: %llx",
			  (unsigned long long)entry);
		ck->result.corruptions++;
	}
	counts_credit(&ck->counts, 1);
	rc = check_use(ck, off, ck->cluster, 1, w->is_active && off ? marks : 0);
	if (rc)
		return rc;
	if (!is_aligned(off, ck->cluster)) {
		check_say(ck, "ERROR l2_offset=%llx: Table is not cluster aligned; L1 entry "
			  "corrupted", (unsigned long long)off);
		ck->result.corruptions++;
	}
	rc = l2_get_wait(w, i, off, &table);
	if (rc == -EIO) {
		check_say(ck, "ERROR: I/O error in check_refcounts_l2");
		ck->result.check_errors++;
	}
	if (rc || !table)
		return rc;
	before = ck->result.corruptions;
	rc = visit_table_wait(ck, &v, table);
	if (!rc && ck->result.corruptions != before && is_shareable(ck, off))
		rc = counts_mark(&ck->counts, off >> ck->cluster_bits, COUNTS_DAMAGED);
	return rc;
}

static int l1_piece_wait(struct l1_walk *w, unsigned n)
{
	unsigned ahead = 0;
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++) {
		while (!rc && ahead < n && readahead_has_room(&w->ra))
			rc = read_ahead(w, ahead++);
		if (!rc)
			rc = l1_entry_wait(w, i);
	}
	return rc;
}

static int l1_unreadable(struct check *ck, int rc)
{
	check_say(ck, "ERROR: I/O error in check_refcounts_l1");
	ck->result.check_errors++;
	return rc;
}

static int l1_pieces_wait(struct l1_walk *w, uint64_t off, uint64_t bytes)
{
	struct check *ck = w->ck;
	int rc = 0;

	if (!range_within(off, bytes, CHECK_END_MAX))
		return l1_unreadable(ck, -EIO);
	/* Behind the end of the file there are only entries of zero. */
	if (off >= ck->file_end)
		return 0;
	bytes = MIN(bytes, ck->file_end - off);
	for (uint64_t at = 0; at < bytes && !rc; at += CHECK_PIECE_BYTES) {
		uint64_t len = MIN(bytes - at, (uint64_t)CHECK_PIECE_BYTES);

		rc = check_budget_wait(ck, len);
		if (rc)
			break;
		rc = check_read_wait(ck, off + at, w->table, len);
		rc = rc ? l1_unreadable(ck, rc) : l1_piece_wait(w, (unsigned)(len / 8));
	}
	return rc;
}

int check_l1_wait(struct check *ck, uint64_t off, uint64_t entries, bool is_active)
{
	struct l1_walk w = { .ck = ck, .is_active = is_active };
	int rc = check_use(ck, off, entries * 8, 1, 0);

	if (rc || !entries)
		return rc;
	w.table = malloc(CHECK_PIECE_BYTES);
	w.is_pushed = calloc(CHECK_PIECE_BYTES / 8, sizeof(*w.is_pushed));
	w.buf = malloc(ck->cluster);
	rc = w.table && w.is_pushed && w.buf ?
		readahead_init(&w.ra, ck->file, ck->file_end, ck->cluster) : -ENOMEM;
	if (!rc)
		rc = l1_pieces_wait(&w, off, entries * 8);
	readahead_fini_wait(&w.ra);
	free(w.buf);
	free(w.is_pushed);
	free(w.table);
	return rc;
}

/* ---- tables that were met again ---- */

/* The next cluster from @k on that holds such a table. */
static bool next_again(const struct check *ck, uint64_t *k)
{
	for (; *k < ck->again.clusters; ++*k) {
		if (counts_is_empty(&ck->again, *k >> COUNTS_CHUNK_BITS))
			*k |= COUNTS_CHUNK - 1;
		else if (counts_get(&ck->again, *k))
			return true;
	}
	return false;
}

int check_again_wait(struct check *ck)
{
	struct readahead ra = { 0 };
	uint64_t ahead = 0, k = 0;
	int rc;

	if (!next_again(ck, &ahead))
		return 0;
	rc = readahead_init(&ra, ck->file, ck->file_end, ck->cluster);
	for (; !rc && next_again(ck, &k); k++) {
		struct visit v = { .times = counts_get(&ck->again, k),
				   .active_times = counts_get(&ck->again_active, k),
				   .is_active = counts_get(&ck->again_active, k),
				   .table_off = k << ck->cluster_bits };
		const uint8_t *table;

		while (!rc && readahead_has_room(&ra) && next_again(ck, &ahead)) {
			rc = check_budget_wait(ck, ck->cluster);
			if (!rc)
				readahead_push(&ra, ahead++ << ck->cluster_bits);
		}
		if (!rc)
			rc = readahead_pop_wait(&ra, &table);
		if (!rc && table)
			rc = visit_table_wait(ck, &v, table);
	}
	readahead_fini_wait(&ra);
	return rc;
}
