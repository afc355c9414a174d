/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/snap.c - the table of internal snapshots (specification: "Snapshots"). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/image.h"

enum { TEXT_MAX = 2 * 65535 };          /* id and name: 16-bit lengths */

/* One entry of the table, and where the next begins. */
struct entry {
	struct snapshot snapshot;
	const char *id, *name;          /* not ended by a zero */
	size_t id_size, name_size;
	uint64_t next_off;
};

/* Reads the entry at @off into @text (TEXT_MAX bytes) and judges it. */
static int entry_read_wait(struct chan *file, const struct qcow2_header *h, uint64_t off,
			   char *text, struct entry *ret, struct err *err)
{
	struct qcow2_snapshot_disk d;
	struct entry e = { .snapshot.size = h->size };
	uint32_t extra;
	be64_t disk_size;
	int rc;

	rc = chan_read_wait(file, off, &d, sizeof(d));
	if (rc)
		goto io_error;
	e.snapshot.l1_off = be64_get(d.l1_table_offset);
	e.snapshot.l1_entries = be32_get(d.l1_size);
	e.id_size = be16_get(d.id_size);
	e.name_size = be16_get(d.name_size);
	extra = be32_get(d.extra_size);
	if (extra > QCOW2_SNAPSHOT_EXTRA_MAX)
		return err_set(err, EINVAL, "Too much extra metadata in a snapshot table entry");
	if (extra >= QCOW2_SNAPSHOT_EXTRA_DISK_SIZE_AT + sizeof(disk_size)) {
		rc = chan_read_wait(file, off + sizeof(d) + QCOW2_SNAPSHOT_EXTRA_DISK_SIZE_AT,
				    &disk_size, sizeof(disk_size));
		if (rc)
			goto io_error;
		e.snapshot.size = be64_get(disk_size);
	}
	rc = chan_read_wait(file, off + sizeof(d) + extra, text, e.id_size + e.name_size);
	if (rc)
		goto io_error;
	e.id = text;
	e.name = text + e.id_size;
	e.next_off = align_up(off + sizeof(d) + extra + e.id_size + e.name_size, 8);
	*ret = e;
	return 0;
io_error:
	return err_set_errno(err, -rc, "cannot read the snapshot table");
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
	uint64_t off = h->snapshots_off;
	bool is_found = false;
	char *text = malloc(TEXT_MAX);
	int rc = 0;

	if (!text)
		return err_set_errno(err, ENOMEM, "snapshot table");
	for (uint32_t i = 0; i < h->nb_snapshots; i++) {
		struct entry e = { 0 };

		rc = entry_read_wait(file, h, off, text, &e, err);
		if (rc)
			goto out;
		off = e.next_off;
		if (off - h->snapshots_off > QCOW2_SNAPSHOT_TABLE_BYTES_MAX) {
			rc = err_set(err, EFBIG, "Snapshot table is too big");
			goto out;
		}
		if (is_text(e.id, e.id_size, wanted)) {
			*ret = e.snapshot;
			is_found = true;
			break;
		}
		if (!is_found && is_text(e.name, e.name_size, wanted)) {
			*ret = e.snapshot;
			is_found = true;
		}
	}
	if (is_found) {
		rc = snapshot_check(h, ret, err);
	} else {
		rc = err_set(err, ENOENT, "the image has no snapshot '%s'", wanted);
		err_hint(err, "'qemu-img snapshot -l' lists those that it has");
	}
out:
	free(text);
	return rc;
}
