/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/repair_snap.c - the snapshot table, written anew (repair.h): with all the extra data
 * that an entry must have, and no more than it may have. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/check_impl.h"

enum {
	TEXT_MAX = 2 * 65535,           /* id and name: 16-bit lengths */
	ENTRY_MAX = sizeof(struct qcow2_snapshot_disk) + QCOW2_SNAPSHOT_EXTRA_MAX + TEXT_MAX,
};

/* The table is copied twice: to see how long it will be, then to its place. */
struct copy {
	struct check *ck;
	bool is_written;
	uint64_t to;                    /* in the file; 0 the first time */
	uint8_t *in, *out;              /* ENTRY_MAX each; owned */
};

/* The length up to the first zero. */
static uint16_t text_len(const uint8_t *text, uint16_t len)
{
	return (uint16_t)strnlen((const char *)text, len);
}

/* Makes c->out of the entry in c->in, which has @extra bytes of extra data, and behind them id and
 * name. Returns its length. */
static uint64_t convert(struct copy *c, uint32_t extra)
{
	struct qcow2_snapshot_disk *d = (void *)c->out;
	const struct qcow2_snapshot_disk *from = (const void *)c->in;
	struct qcow2_snapshot_extra_disk *x = (void *)(c->out + sizeof(*d));
	const uint8_t *id = c->in + sizeof(*d) + extra;
	const uint8_t *name = id + be16_get(from->id_size);
	uint16_t id_len = text_len(id, be16_get(from->id_size));
	uint16_t name_len = text_len(name, be16_get(from->name_size));
	uint32_t kept = MAX(extra, (uint32_t)sizeof(*x));
	uint8_t *text = c->out + sizeof(*d) + kept;

	*d = *from;
	*x = (struct qcow2_snapshot_extra_disk) {
		.vm_state_size = be64_make(be32_get(from->vm_state_size)),
		.disk_size = be64_make(align_down(c->ck->h->size, 512)),
		.icount = be64_make(UINT64_MAX),
	};
	/* Whole fields only. */
	memcpy(x, c->in + sizeof(*d), extra < sizeof(*x) ? align_down(extra, 8) : extra);
	if (be64_get(x->vm_state_size) <= UINT32_MAX)
		d->vm_state_size = be32_make((uint32_t)be64_get(x->vm_state_size));
	else
		d->vm_state_size = be32_make(0);
	d->extra_size = be32_make(kept);
	d->id_size = be16_make(id_len);
	d->name_size = be16_make(name_len);
	memcpy(text, id, id_len);
	memcpy(text + id_len, name, name_len);
	return sizeof(*d) + kept + id_len + name_len;
}

/* The entry at @off: *@at, where it goes, is behind it then. */
static int copy_entry_wait(struct copy *c, uint64_t off, uint64_t *at)
{
	struct qcow2_snapshot_disk *d = (void *)c->in;
	uint32_t all, extra;
	uint64_t len;
	int rc = check_read_wait(c->ck, off, d, sizeof(*d));

	if (rc)
		return rc;
	all = be32_get(d->extra_size);
	extra = MIN(all, (uint32_t)QCOW2_SNAPSHOT_EXTRA_MAX);
	rc = check_read_wait(c->ck, off + sizeof(*d), c->in + sizeof(*d), extra);
	if (!rc)
		rc = check_read_wait(c->ck, off + sizeof(*d) + all, c->in + sizeof(*d) + extra,
				     be16_get(d->id_size) + be16_get(d->name_size));
	if (rc)
		return rc;
	len = convert(c, extra);
	*at = align_up(*at, 8);
	if (c->is_written)
		rc = repair_write_wait(c->ck, c->to + *at, c->out, len);
	*at += len;
	return rc;
}

static int copy_wait(struct copy *c, uint64_t *ret_bytes)
{
	uint64_t at = 0;
	int rc = 0;

	for (uint32_t i = 0; i < c->ck->h->nb_snapshots && !rc; i++) {
		rc = copy_entry_wait(c, c->ck->snapshots.list[i].entry_off, &at);
		if (!rc && at > QCOW2_SNAPSHOT_TABLE_BYTES_MAX)
			rc = -EFBIG;
	}
	*ret_bytes = at;
	return rc;
}

/* Takes clusters for a table of @bytes; their refcounts are durable then. */
static int place_wait(struct check *ck, uint64_t bytes, uint64_t *ret_off)
{
	uint64_t first_free = 0, n = div_round_up(bytes, ck->cluster), first;
	int rc = repair_take(ck, n, &first_free, &first);

	*ret_off = first << ck->cluster_bits;
	if (!rc)
		rc = repair_may_write_wait(ck, MAP_KINDS, *ret_off, bytes);
	if (!rc)
		rc = repair_is_counted(ck, first, n) ?
		     repair_change_wait(ck, first, first + n, false) : repair_rebuild_wait(ck);
	return rc ? rc : repair_sync_wait(ck);
}

/* Q7: two fields, side by side in one sector. */
static int switch_wait(struct check *ck, uint64_t off)
{
	uint8_t fields[12];
	int rc = ck->broken & BREAK_Y13_SWITCH ? 0 : repair_sync_wait(ck);

	be32_store(fields, ck->h->nb_snapshots);
	be64_store(fields + 4, off);
	if (!rc)
		rc = repair_write_wait(ck, offsetof(struct qcow2_header_disk, nb_snapshots),
				       fields, sizeof(fields));
	return rc ? rc : repair_sync_wait(ck);
}

/* Counts again, silently, and lowers what nothing names now: the old table, and more where the
 * refcounts had to be made anew. */
static int free_old_wait(struct check *ck)
{
	const struct qcow2_check_say *say = ck->say;
	struct qcow2_check result = ck->result;
	enum qcow2_repair repair = ck->repair;
	int rc;

	repair_map_drop(&ck->map);
	ck->say = NULL;
	ck->repair = QCOW2_REPAIR_NOTHING;
	rc = check_count_wait(ck);
	ck->repair = repair;
	ck->say = say;
	ck->result = result;
	if (!rc)
		rc = repair_change_wait(ck, 0, ck->clusters, true);
	return rc ? rc : repair_sync_wait(ck);
}

static int rewrite_wait(struct copy *c)
{
	struct check *ck = c->ck;
	uint64_t bytes, off = 0;
	int rc = copy_wait(c, &bytes);

	if (!rc && bytes)
		rc = place_wait(ck, bytes, &off);
	c->is_written = true;
	c->to = off;
	if (!rc)
		rc = copy_wait(c, &bytes);
	if (!rc)
		rc = switch_wait(ck, off);
	if (rc)
		return rc;
	ck->h->snapshots_off = off;
	ck->snapshots.bytes = bytes;
	return free_old_wait(ck);
}

int repair_snapshots_wait(struct check *ck)
{
	struct copy c = { .ck = ck, .in = malloc(ENTRY_MAX), .out = malloc(ENTRY_MAX) };
	int rc = c.in && c.out ? rewrite_wait(&c) : -ENOMEM;

	free(c.in);
	free(c.out);
	if (rc) {
		check_say(ck, "ERROR failed to update snapshot table: %s", strerror(-rc));
		ck->result.check_errors++;
		return rc;
	}
	ck->tables.corruptions_fixed += ck->tables.corruptions;
	ck->tables.corruptions = 0;
	return 0;
}
