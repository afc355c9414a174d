/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/header_edit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk/blk.h"

enum { READ_MAX = 64 << 10, SECTOR = 512, EXT_BYTES = sizeof(struct qcow2_ext_disk) };

bool header_find_extension(const struct qcow2_header *h, const uint8_t *buf, uint64_t len,
			   uint32_t wanted, uint64_t *ret)
{
	uint64_t at = h->header_length;

	while (at + EXT_BYTES <= len) {
		uint32_t type = be32_load(buf + at), bytes = be32_load(buf + at + 4);

		if (type == wanted) {
			*ret = at;
			return true;
		}
		if (type == QCOW2_EXT_END)
			return false;
		at += EXT_BYTES + align_up((uint64_t)bytes, 8);
	}
	return false;
}

int header_clear_autoclear_wait(struct chan *file, struct qcow2_header *h)
{
	uint64_t known = QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_DATA_FILE_RAW;
	be64_t field = be64_make(h->autoclear & known);
	int rc;

	if (h->version < 3 || !(h->autoclear & ~known))
		return 0;
	rc = chan_write_sync_wait(file, offsetof(struct qcow2_header_disk, autoclear_features),
				  &field, sizeof(field));
	if (!rc)
		h->autoclear &= known;
	return rc;
}

/* The start of the image, as far as extensions may reach: *@ret is owned. */
static int read_wait(struct chan *file, const struct qcow2_header *h, uint8_t **ret,
		     uint64_t *ret_len)
{
	uint64_t len = MIN(qcow2_cluster_size(h), (uint64_t)READ_MAX);
	uint8_t *buf = aligned_alloc(4096, READ_MAX);
	int rc = buf ? chan_read_wait(file, 0, buf, len) : -ENOMEM;

	if (rc) {
		free(buf);
		return rc;
	}
	*ret = buf;
	*ret_len = len;
	return 0;
}

int header_drop_mark_wait(struct chan *file, struct qcow2_header *h)
{
	be32_t none = be32_make(QCOW2_EXT_END);
	uint64_t len, at;
	uint8_t *buf;
	int rc = read_wait(file, h, &buf, &len);

	if (rc)
		return rc;
	if (header_find_extension(h, buf, len, QCOW2_EXT_IN_USE, &at) &&
	    !be32_load(buf + at + 4))
		rc = chan_write_sync_wait(file, at, &none, sizeof(none));
	if (!rc)
		h->is_in_use = false;
	free(buf);
	return rc;
}

/* The extension at @at of the header in @buf is the last, and what ends the list is at @end. */
static int drop_last_wait(struct chan *file, uint8_t *buf, uint64_t at, uint64_t end)
{
	int rc;

	memset(buf + at, 0, end - at);
	rc = chan_write_sync_wait(file, at, buf + at, sizeof(be32_t));
	/* What follows the end of the list is nobody's. */
	return rc ? rc : chan_write_sync_wait(file, at, buf + at, end - at);
}

int header_drop_bitmaps_wait(struct chan *file, struct qcow2_header *h)
{
	uint64_t len, at, next, end;
	uint8_t *buf;
	int rc = read_wait(file, h, &buf, &len);

	if (rc)
		return rc;
	if (!header_find_extension(h, buf, len, QCOW2_EXT_BITMAPS, &at) ||
	    !header_find_extension(h, buf, len, QCOW2_EXT_END, &end))
		goto out;
	next = at + EXT_BYTES + align_up((uint64_t)be32_load(buf + at + 4), 8);
	if (next == end) {
		rc = drop_last_wait(file, buf, at, end);
	} else if (at / SECTOR == (end + EXT_BYTES - 1) / SECTOR) {
		memmove(buf + at, buf + next, end - next);
		memset(buf + at + end - next, 0, next - at);
		rc = chan_write_sync_wait(file, at, buf + at, end - at);
	} else {
		goto out;
	}
	if (!rc)
		h->has_void_bitmaps = false;
out:
	free(buf);
	return rc;
}

int header_finish_wait(struct chan *file)
{
	be32_t field;
	uint64_t off = offsetof(struct qcow2_header_disk, version);
	int rc = chan_read_wait(file, off, &field, sizeof(field));
	uint32_t version = be32_get(field);

	if (rc || !(version & QCOW2_VERSION_UNFINISHED))
		return rc;
	field = be32_make(version & ~QCOW2_VERSION_UNFINISHED);
	return chan_write_sync_wait(file, off, &field, sizeof(field));
}
