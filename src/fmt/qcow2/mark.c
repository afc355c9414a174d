/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/mark.c - the mark of an image in use: a header extension of ours, without data, that
 * stands last in the list while the image is open for writing and changed. Programs that do not
 * know it keep it; then it is stale, and costs whoever finds it a walk for leaks.
 *
 * The list ends with eight zero bytes. The mark is set by putting its type there, where eight more
 * zero bytes follow to be the new end; it is taken away by putting the zeros back. Either
 * changes four bytes of one sector (Q7). Where a backing file's name follows at once, that moves
 * to the end of the cluster first: it is written there, then the header's field changes, then the
 * old place is zeroed, each durable before the next. What fails or loses power on the way is begun
 * again by who comes next: copies that nothing names are told by their bytes. In a cluster too
 * small for that the image goes without a mark, and leaks of a crash stay until a check.
 *
 * An image with lazy refcounts gets the dirty bit instead, whose meaning everybody knows: who opens
 * it for writing makes the refcounts anew.
 *
 * Specification: "Header extensions"; "incompatible_features". */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "base/zero.h"
#include "fmt/qcow2/header_edit.h"
#include "fmt/qcow2/writer.h"

enum { SECTOR = 512, MARK_READ_MAX = 64 << 10, EXT_BYTES = sizeof(struct qcow2_ext_disk) };

/* Where the list of extensions ends, or the mark stands; false: not in these @len bytes. */
static bool find_end(const struct qcow2_header *h, const uint8_t *buf, uint64_t len, uint64_t *ret)
{
	return header_find_extension(h, buf, len, QCOW2_EXT_IN_USE, ret) ||
	       header_find_extension(h, buf, len, QCOW2_EXT_END, ret);
}

static int write_wait(struct writer *w, uint64_t off, const void *buf, uint64_t len)
{
	return chan_write_wait(w->file, off, buf, len);
}

static int write_sync_wait(struct writer *w, uint64_t off, const void *buf, uint64_t len)
{
	w->commit.stats.syncs++;
	return chan_write_sync_wait(w->file, off, buf, len);
}

/* All of @buf's @n bytes are zeros or, each in its place, those of @name: a copy that was begun. */
static bool is_copy_begun(const uint8_t *buf, const uint8_t *name, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		if (buf[i] && buf[i] != name[i])
			return false;
	return true;
}

/* Where the name goes that stands in @len bytes of header: to their end. */
static uint64_t name_new_place(uint64_t n, uint64_t len)
{
	return align_down(len - n, 8);
}

/* The header names @to, then what stands at @from is zeroed. */
static int name_switch_wait(struct writer *w, uint8_t *buf, uint64_t from, uint64_t to, uint64_t n)
{
	be64_t field = be64_make(to);
	int rc = write_sync_wait(w, offsetof(struct qcow2_header_disk, backing_file_offset), &field,
				 sizeof(field));

	if (rc)
		return rc;
	memset(buf + from, 0, n);
	return write_sync_wait(w, from, buf + from, n);
}

/* Moves the backing file's name away from behind the extensions. *@ret: where to; 0: no room. */
static int name_move_wait(struct writer *w, uint8_t *buf, uint64_t len, uint64_t end, uint64_t *ret)
{
	const struct qcow2_header_disk *d = (void *)buf;
	uint64_t from = be64_get(d->backing_file_offset), n = be32_get(d->backing_file_size);
	uint64_t to = name_new_place(n, len);
	int rc;

	*ret = 0;
	if (from < end + EXT_BYTES || !range_within(from, n, len) || to < from + n ||
	    to < end + 2 * EXT_BYTES || !is_copy_begun(buf + to, buf + from, n) ||
	    !bytes_are_zero(buf + to + n, len - to - n))
		return 0;
	rc = write_sync_wait(w, to, buf + from, n);
	if (!rc)
		rc = name_switch_wait(w, buf, from, to, n);
	if (!rc)
		*ret = to;
	return rc;
}

/* The name was moved, and what is left of it stands behind the list's end, at @end, still: the last
 * steps again, both, as it is not known which of them is durable. */
static int name_finish_wait(struct writer *w, uint8_t *buf, uint64_t len, uint64_t end)
{
	const struct qcow2_header_disk *d = (void *)buf;
	uint64_t at = be64_get(d->backing_file_offset), n = be32_get(d->backing_file_size);
	uint64_t from = end + EXT_BYTES;

	if (!range_within(at, n, len) || at != name_new_place(n, len) || be64_load(buf + end) ||
	    bytes_are_zero(buf + end, 2 * EXT_BYTES))
		return 0;
	/* It stood where the mark goes, or it would not have moved; what was before it is zero. */
	while (from + n <= at && !is_copy_begun(buf + from, buf + at, n))
		if (buf[from++])
			return 0;
	if (from + n > at || from >= end + 2 * EXT_BYTES)
		return 0;
	return name_switch_wait(w, buf, from, at, n);
}

/* Q5: another program that wrote the image without knowing what these bits say would have to. */
static int clear_autoclear_wait(struct writer *w)
{
	return w->broken & BREAK_Q5_AUTOCLEAR ? 0 :
	       header_clear_autoclear_wait(w->file, &w->q->header);
}

/* Makes room for the mark at @at, where the list ends. *@ret: there is some. */
static int room_wait(struct writer *w, uint8_t *buf, uint64_t len, uint64_t at, bool *ret)
{
	uint64_t name = be64_get(((struct qcow2_header_disk *)(void *)buf)->backing_file_offset);
	uint64_t end = name > at ? MIN(name, len) : len;
	int rc = 0;

	if (name && at + 2 * EXT_BYTES > end)
		rc = name_move_wait(w, buf, len, at, &end);
	else if (name)
		rc = name_finish_wait(w, buf, len, at);
	if (rc)
		return rc;
	*ret = at + 2 * EXT_BYTES <= end && bytes_are_zero(buf + at, 2 * EXT_BYTES);
	return 0;
}

/* Finds the mark's place and makes it free, where the mark is not there. *@ret 0: there is none. */
static int place_wait(struct writer *w, uint64_t *ret)
{
	uint64_t len = MIN(w->cluster, (uint64_t)MARK_READ_MAX), at = 0;
	uint8_t *buf = aligned_alloc(META_BYTES_MAX, MARK_READ_MAX);
	int rc = buf ? chan_read_wait(w->file, 0, buf, len) : -ENOMEM;
	bool has_room = false;

	if (!rc && find_end(&w->q->header, buf, len, &at)) {
		has_room = be32_load(buf + at) == QCOW2_EXT_IN_USE;
		if (!has_room)
			rc = room_wait(w, buf, len, at, &has_room);
	}
	*ret = has_room ? at : 0;
	free(buf);
	return rc;
}

static int dirty_write_wait(struct writer *w, bool is_dirty)
{
	struct qcow2_header *h = &w->q->header;
	uint64_t others = h->incompatible & ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
	uint64_t at = offsetof(struct qcow2_header_disk, incompatible_features);
	be64_t field = be64_make(others | (is_dirty ? QCOW2_INCOMPAT_DIRTY : 0));
	int rc;

	if (!w->is_lazy || (w->broken & BREAK_Q1_NOT_DIRTY))
		return 0;
	rc = (is_dirty ? write_sync_wait : write_wait)(w, at, &field, sizeof(field));
	if (!rc)
		h->incompatible = be64_get(field);
	return rc;
}

static int set_wait(struct writer *w)
{
	static const uint8_t end[EXT_BYTES];
	be32_t type = be32_make(QCOW2_EXT_IN_USE);
	int rc = clear_autoclear_wait(w);

	if (!rc)
		rc = dirty_write_wait(w, true);
	if (rc || (w->is_lazy && !w->q->header.is_in_use))
		return rc;
	rc = place_wait(w, &w->mark.off);
	if (rc || !w->mark.off)
		return rc;
	/* The list's new end is as durable as the mark if it shares its sector. */
	if ((w->mark.off + EXT_BYTES) % SECTOR == 0)
		rc = write_sync_wait(w, w->mark.off + EXT_BYTES, end, sizeof(end));
	/* A mark that is there may have been written by one whose sync failed. */
	return rc ? rc : write_sync_wait(w, w->mark.off, &type, sizeof(type));
}

int mark_set_wait(struct writer *w)
{
	struct mark *m = &w->mark;
	int rc;

	while (m->is_busy)
		fiber_queue_wait(&m->waiting);
	if (m->is_set)
		return 0;
	if (w->dead)
		return w->dead;
	m->is_busy = true;
	rc = set_wait(w);
	if (!rc && w->broken & BREAK_Q11_AT_ONCE)
		rc = header_finish_wait(w->file);
	m->is_busy = false;
	m->is_set = !rc;
	fiber_queue_wake(&m->waiting);
	return rc;
}

int mark_clear_wait(struct writer *w)
{
	be32_t none = be32_make(QCOW2_EXT_END);
	int rc = 0;

	assert(!w->mark.is_busy);
	if (w->mark.is_set)
		rc = dirty_write_wait(w, false);
	if (!rc && w->mark.is_set && w->mark.off)
		rc = write_wait(w, w->mark.off, &none, sizeof(none));
	if (!rc) {
		w->mark.is_set = false;
		w->q->header.is_in_use = false;
	}
	return rc;
}
