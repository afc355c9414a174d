/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/snap.c - the table of internal snapshots (specification: "Snapshots"). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/image.h"

enum { TEXT_MAX = 2 * 65535 };          /* id and name: 16-bit lengths */

/* What the fields of fixed size say, and where the rest begins. */
static uint32_t entry_fixed(const struct qcow2_snapshot_disk *d, struct snapshot_entry *e)
{
	e->snapshot.l1_off = be64_get(d->l1_table_offset);
	e->snapshot.l1_entries = be32_get(d->l1_size);
	e->id_size = be16_get(d->id_size);
	e->name_size = be16_get(d->name_size);
	e->date_s = be32_get(d->date_s);
	e->date_ns = be32_get(d->date_ns);
	e->vm_clock_ns = be64_get(d->vm_clock_ns);
	e->vm_state_bytes = be32_get(d->vm_state_size);
	return be32_get(d->extra_size);
}

/* The fields that the extra data has, as far as there is so much of it. */
static void entry_extra(const struct qcow2_snapshot_extra_disk *x, uint32_t len,
			struct snapshot_entry *e)
{
	if (len >= offsetof(struct qcow2_snapshot_extra_disk, disk_size))
		e->vm_state_bytes = be64_get(x->vm_state_size);
	if (len >= offsetof(struct qcow2_snapshot_extra_disk, icount))
		e->snapshot.size = be64_get(x->disk_size);
	/* All ones: not recorded. */
	if (len >= sizeof(*x) && be64_get(x->icount) != UINT64_MAX) {
		e->icount = be64_get(x->icount);
		e->has_icount = true;
	}
}

int snapshot_walk_start(struct snapshot_walk *w, struct chan *file, const struct qcow2_header *h,
			struct err *err)
{
	*w = (struct snapshot_walk) { .file = file, .h = h, .off = h->snapshots_off };
	w->text = malloc(TEXT_MAX);
	return w->text ? 0 : err_set_errno(err, ENOMEM, "snapshot table");
}

void snapshot_walk_end(struct snapshot_walk *w)
{
	free(w->text);
	w->text = NULL;
}

int snapshot_walk_wait(struct snapshot_walk *w, struct err *err)
{
	struct qcow2_snapshot_disk d;
	struct qcow2_snapshot_extra_disk x;
	struct snapshot_entry e = { .snapshot.size = w->h->size };
	uint64_t at = w->off;
	uint32_t extra;
	int rc = qcow2_check_reach(at, QCOW2_SNAPSHOT_TABLE_BYTES_MAX);

	if (!rc)
		rc = chan_read_wait(w->file, at, &d, sizeof(d));
	if (rc)
		goto io_error;
	extra = entry_fixed(&d, &e);
	if (extra > QCOW2_SNAPSHOT_EXTRA_MAX)
		return err_set(err, EINVAL, "Too much extra metadata in snapshot table entry %u\n"
			       "You can force-remove this extra metadata with qemu-img check -r "
			       "all",
			       w->index);
	at += sizeof(d);
	rc = chan_read_wait(w->file, at, &x, MIN((size_t)extra, sizeof(x)));
	if (rc)
		goto io_error;
	entry_extra(&x, extra, &e);
	at += extra;
	rc = chan_read_wait(w->file, at, w->text, e.id_size + e.name_size);
	if (rc)
		goto io_error;
	e.id = w->text;
	e.name = w->text + e.id_size;
	w->off = align_up(at + e.id_size + e.name_size, 8);
	w->index++;
	w->entry = e;
	if (w->off - w->h->snapshots_off > QCOW2_SNAPSHOT_TABLE_BYTES_MAX)
		return err_set(err, EFBIG, "Snapshot table is too big");
	return 0;
io_error:
	return err_set_errno(err, -rc, "Failed to read snapshot table");
}

static bool is_text(const char *text, size_t size, const char *wanted)
{
	return strlen(wanted) == size && !memcmp(text, wanted, size);
}

static int snapshot_check(const struct qcow2_header *h, const struct snapshot *s, struct err *err)
{
	int rc = qcow2_table_check(h, "Snapshot L1 table", s->l1_off,
				   (uint64_t)s->l1_entries * 8, QCOW2_L1_BYTES_MAX, err);

	if (rc)
		return rc;
	if (s->size > INT64_MAX)
		return err_set(err, EFBIG, "Snapshot is too big");
	return 0;
}

/* An id wins over a name, as in QEMU: so the whole table is read. */
int snapshot_find_wait(struct chan *file, const struct qcow2_header *h, const char *wanted,
		       struct snapshot *ret, struct err *err)
{
	struct snapshot_walk w;
	bool is_found = false, is_id = false;
	int rc = snapshot_walk_start(&w, file, h, err);

	while (!rc && !is_id && w.index < h->nb_snapshots) {
		const struct snapshot_entry *e = &w.entry;

		rc = snapshot_walk_wait(&w, err);
		if (rc)
			break;
		is_id = is_text(e->id, e->id_size, wanted);
		if (is_id || (!is_found && is_text(e->name, e->name_size, wanted))) {
			*ret = e->snapshot;
			is_found = true;
		}
	}
	snapshot_walk_end(&w);
	if (rc)
		return rc;
	if (is_found)
		return snapshot_check(h, ret, err);
	err_set(err, ENOENT, "the image has no snapshot '%s'", wanted);
	err_hint(err, "'byre info' lists those that it has");
	return -ENOENT;
}
