/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check_meta.c - the snapshot table and the bitmaps (check_impl.h). */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/check_impl.h"

enum {
	TEXT_MAX = 2 * 65535,           /* id and name: 16-bit lengths */
	EXTRA_MIN_V3 = 16,              /* version 3 wants VM state and disk size */
};

/* ---- the snapshot table ---- */

/* One pass over the table's entries. */
struct pass {
	struct check *ck;
	struct check_snapshots *list;
	uint64_t kept;                  /* bytes of the table that a repair would keep */
	uint32_t too_long;              /* entries with more extra data than there may be */
	uint8_t *window;
	uint64_t window_at, window_len;
	bool *is_incomplete;            /* by entry */
};

static int window_wait(struct pass *p, uint64_t off, size_t len, const uint8_t **ret)
{
	int rc;

	if (!p->window_len || off < p->window_at || off + len > p->window_at + p->window_len) {
		p->window_len = CHECK_PIECE_BYTES;
		p->window_at = off;
		rc = check_budget_wait(p->ck, p->window_len);
		if (!rc)
			rc = check_read_wait(p->ck, off, p->window, p->window_len);
		if (rc) {
			p->window_len = 0;
			return rc;
		}
	}
	*ret = p->window + (off - p->window_at);
	return 0;
}

/* A repair leaves out snapshot @i and those that follow. */
static int table_too_large(struct pass *p, uint32_t i)
{
	struct check *ck = p->ck;

	if (ck->repair == QCOW2_REPAIR_ALL) {
		check_say(ck, "Discarding %u overhanging snapshots (snapshot table is too big)",
			  ck->h->nb_snapshots - i);
		ck->tables.corruptions += ck->h->nb_snapshots - i;
		ck->h->nb_snapshots = i;
		p->list->bytes = i ? p->list->list[i].entry_off - ck->h->snapshots_off : 0;
		return 0;
	}
	check_say_named(ck, "ERROR failed to read the snapshot table: Snapshot table is too big");
	check_say(ck, "You can force-remove all %u overhanging snapshots with qemu-img check -r "
		  "all", ck->h->nb_snapshots - i);
	return -EFBIG;
}

/* Entry @i has @extra bytes of extra data, which is too much. */
static int extra_too_long(struct pass *p, uint32_t i, uint32_t extra)
{
	struct check *ck = p->ck;

	if (ck->repair == QCOW2_REPAIR_ALL) {
		check_say(ck, "Discarding too much extra metadata in snapshot table entry %u "
			  "(%u > %d)", i, extra, QCOW2_SNAPSHOT_EXTRA_MAX);
		p->too_long++;
		return 0;
	}
	check_say_named(ck, "ERROR failed to read the snapshot table: Too much extra metadata in "
			"snapshot table entry %u", i);
	check_say(ck, "You can force-remove this extra metadata with qemu-img check -r all");
	return -EFBIG;
}

/* Entry @i, at *@off; then *@off is behind it. */
static int entry_wait(struct pass *p, uint32_t i, uint64_t *off)
{
	const struct qcow2_header *h = p->ck->h;
	const struct qcow2_snapshot_disk *d;
	const uint8_t *bytes;
	uint32_t extra, text;
	int rc = window_wait(p, *off, sizeof(*d), &bytes);

	if (rc) {
		if (rc == -EIO)
			check_say_named(p->ck, "ERROR failed to read the snapshot table: "
					"Failed to read snapshot table: Input/output error");
		return rc;
	}
	d = (const void *)bytes;
	extra = be32_get(d->extra_size);
	if (extra > QCOW2_SNAPSHOT_EXTRA_MAX) {
		rc = extra_too_long(p, i, extra);
		if (rc)
			return rc;
	}
	p->is_incomplete[i] = h->version >= 3 && extra < EXTRA_MIN_V3;
	p->list->list[i] = (struct check_snapshot) {
		.l1_off = be64_get(d->l1_table_offset),
		.l1_entries = be32_get(d->l1_size),
		.entry_off = *off,
	};
	text = be16_get(d->id_size) + be16_get(d->name_size);
	*off += sizeof(*d) + extra + text;
	p->list->bytes = *off - h->snapshots_off;
	p->kept = align_up(p->kept, 8) + sizeof(*d) + text +
		  MIN(extra, (uint32_t)QCOW2_SNAPSHOT_EXTRA_MAX);
	return 0;
}

static int entries_wait(struct pass *p)
{
	struct check *ck = p->ck;
	const struct qcow2_header *h = ck->h;
	uint64_t off = h->snapshots_off;

	for (uint32_t i = 0; i < h->nb_snapshots; i++) {
		int rc;

		off = align_up(off, 8);
		rc = entry_wait(p, i, &off);
		if (!rc && (p->kept > QCOW2_SNAPSHOT_TABLE_BYTES_MAX || p->list->bytes > INT_MAX))
			rc = table_too_large(p, i);
		if (rc)
			return rc;
	}
	return 0;
}

static void tell_incomplete(struct pass *p)
{
	struct check *ck = p->ck;

	for (uint32_t i = 0; i < ck->h->nb_snapshots; i++) {
		if (!p->is_incomplete[i])
			continue;
		check_say(ck, "%s snapshot table entry %u is incomplete",
			  ck->repair == QCOW2_REPAIR_ALL ? "Repairing" : "ERROR", i);
		ck->tables.corruptions++;
	}
}

/* Snapshots were left out: what they used is leaked, and will be found so. */
static int write_number_wait(struct check *ck)
{
	be32_t nb = be32_make(ck->h->nb_snapshots);
	int rc = repair_write_wait(ck, offsetof(struct qcow2_header_disk, nb_snapshots), &nb,
				   sizeof(nb));

	if (!rc)
		rc = repair_sync_wait(ck);
	if (rc)
		check_say(ck, "ERROR failed to update the snapshot count in the image header: %s",
			  strerror(-rc));
	else
		ck->tables.corruptions_fixed += ck->tables.corruptions;
	if (!rc)
		ck->tables.corruptions = 0;
	return rc;
}

static int table_wait(struct pass *p)
{
	struct check *ck = p->ck;
	int rc = entries_wait(p);

	if (!rc && ck->tables.corruptions)
		rc = write_number_wait(ck);
	if (rc)
		return rc;
	ck->tables.corruptions += p->too_long;
	tell_incomplete(p);
	return 0;
}

static void leave_out_overhanging(struct check *ck)
{
	uint32_t n = ck->h->nb_snapshots - QCOW2_SNAPSHOTS_MAX;

	check_say(ck, "Discarding %u overhanging snapshots", n);
	ck->tables.corruptions += n;
	ck->h->nb_snapshots = QCOW2_SNAPSHOTS_MAX;
}

int check_snapshot_table_wait(struct check *ck)
{
	const struct qcow2_header *h = ck->h;
	struct check_snapshots *ret = &ck->snapshots;
	struct pass p = { .ck = ck, .list = ret };
	int rc;

	if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX && ck->repair == QCOW2_REPAIR_ALL)
		leave_out_overhanging(ck);
	if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX) {
		check_say_named(ck, "ERROR snapshot table too large");
		check_say(ck, "You can force-remove all %u overhanging snapshots with qemu-img "
			  "check -r all", h->nb_snapshots - QCOW2_SNAPSHOTS_MAX);
		return -EFBIG;
	}
	if (!is_aligned(h->snapshots_off, ck->cluster) ||
	    !range_within(h->snapshots_off,
			  (uint64_t)h->nb_snapshots * sizeof(struct qcow2_snapshot_disk),
			  INT64_MAX)) {
		check_say_named(ck, "ERROR snapshot table offset invalid");
		return -EINVAL;
	}
	if (!h->nb_snapshots)
		return 0;
	ret->list = calloc(h->nb_snapshots, sizeof(*ret->list));
	p.is_incomplete = calloc(h->nb_snapshots, sizeof(*p.is_incomplete));
	p.window = malloc(CHECK_PIECE_BYTES);
	rc = ret->list && p.is_incomplete && p.window ? table_wait(&p) : -ENOMEM;
	free(p.window);
	free(p.is_incomplete);
	return rc;
}

/* ---- what they keep ---- */

/* A snapshot whose L1 table cannot be looked at: @what is wrong with it. */
static int snapshot_bad_wait(struct check *ck, const struct check_snapshot *s, const char *field,
			     uint64_t value, const char *what)
{
	struct qcow2_snapshot_disk d;
	char *text = malloc(TEXT_MAX + 1), *id, *name;
	uint64_t off = s->entry_off + sizeof(d);
	int rc = text ? check_read_wait(ck, s->entry_off, &d, sizeof(d)) : -ENOMEM;

	if (!rc)
		rc = check_read_wait(ck, off + be32_get(d.extra_size), text,
				     be16_get(d.id_size) + be16_get(d.name_size));
	if (!rc) {
		text[be16_get(d.id_size) + be16_get(d.name_size)] = '\0';
		id = strndup(text, be16_get(d.id_size));
		name = text + be16_get(d.id_size);
		check_say(ck, "ERROR snapshot %s (%s) %s=%#llx: L1 table is %s; snapshot table "
			  "entry corrupted", id ? id : "", name, field, (unsigned long long)value,
			  what);
		free(id);
		ck->result.corruptions++;
	}
	free(text);
	return rc;
}

int check_snapshots_wait(struct check *ck)
{
	int rc = 0;

	for (uint32_t i = 0; i < ck->h->nb_snapshots && !rc; i++) {
		const struct check_snapshot *s = &ck->snapshots.list[i];

		if (!is_aligned(s->l1_off, ck->cluster))
			rc = snapshot_bad_wait(ck, s, "l1_offset", s->l1_off,
					       "not cluster aligned");
		else if (s->l1_entries > QCOW2_L1_BYTES_MAX / 8)
			rc = snapshot_bad_wait(ck, s, "l1_size", s->l1_entries, "too large");
		else
			rc = check_l1_wait(ck, s->l1_off, s->l1_entries, false);
	}
	return rc;
}

/* ---- bitmaps ---- */

static int bitmap_use(void *arg, const struct qcow2_bitmap *b)
{
	struct check *ck = arg;
	uint64_t bytes = (uint64_t)b->table_entries * 8, *table;
	int rc = check_use(ck, b->table_off, bytes, 1, 0);

	if (!rc)
		rc = check_budget_wait(ck, bytes);
	if (!rc)
		rc = qcow2_bitmap_table_wait(ck->file, ck->h, b, &table);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < b->table_entries && !rc; i++) {
		counts_credit(&ck->counts, table[i] != 0);
		if (table[i] & QCOW2_OFFSET_MASK)
			rc = check_use(ck, table[i] & QCOW2_OFFSET_MASK, ck->cluster, 1, 0);
	}
	free(table);
	return rc;
}

int check_bitmaps_wait(struct check *ck)
{
	struct err err = { 0 };

	if (!ck->h->nb_bitmaps)
		return 0;
	if (check_use(ck, ck->h->bitmaps_off, ck->h->bitmaps_bytes, 1, 0))
		return -ENOMEM;
	return qcow2_bitmaps_each_wait(ck->file, ck->h, bitmap_use, ck, &err);
}
