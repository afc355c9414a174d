/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/prng.h"
#include "blk/blk.h"
#include "fmt/qcow2/image.h"

enum {
	WINDOW_BYTES = 64 << 10,
	PHYS_BYTES_MAX = 512 << 20,             /* QEMU's limit for one bitmap */
};
#define TABLE_RESERVED (0x1feULL | 0xffULL << 56)
/* What is read of tables for judging them, whatever their sizes say: no sane image comes near. */
#define JUDGE_BYTES_MAX GiB

/* The directory on its way through memory. */
struct walk {
	struct chan *file;
	const struct qcow2_header *h;
	uint64_t at;                    /* in the directory */
	uint32_t seen;
	uint8_t *buf;                   /* WINDOW_BYTES from buf_at on */
	uint64_t buf_at;
	uint64_t buf_len;
	struct err *err;
};

/* @len bytes of the directory at w->at (at most WINDOW_BYTES). */
static int window_wait(struct walk *w, uint64_t len, const uint8_t **ret)
{
	if (w->at < w->buf_at || w->at + len > w->buf_at + w->buf_len) {
		uint64_t n = MIN(w->h->bitmaps_bytes - w->at, (uint64_t)WINDOW_BYTES);
		int rc = qcow2_check_reach(w->h->bitmaps_off, w->h->bitmaps_bytes);

		if (!rc)
			rc = chan_read_wait(w->file, w->h->bitmaps_off + w->at, w->buf, n);
		if (rc)
			return err_set_errno(w->err, -rc, "Failed to read bitmap directory");
		w->buf_at = w->at;
		w->buf_len = n;
	}
	*ret = w->buf + (w->at - w->buf_at);
	return 0;
}

static int broken(struct walk *w)
{
	return err_set(w->err, EINVAL, "Broken bitmap directory");
}

/* What the bitmap @b takes, by the disk's whole sectors, as QEMU reckons. */
static uint64_t bitmap_bytes(const struct qcow2_header *h, const struct qcow2_bitmap *b)
{
	return div_round_up(align_down(h->size, 512), 8ULL << b->granularity_bits);
}

static bool is_sane(const struct qcow2_header *h, const struct qcow2_bitmap *b, unsigned type,
		    unsigned name_size)
{
	uint64_t phys = (uint64_t)b->table_entries << h->cluster_bits;
	bool is_in_use = b->flags & BITMAP_IN_USE;

	return b->table_entries && b->table_off &&
	       is_aligned(b->table_off, qcow2_cluster_size(h)) && phys <= PHYS_BYTES_MAX &&
	       b->granularity_bits >= BITMAP_GRANULARITY_BITS_MIN &&
	       b->granularity_bits <= BITMAP_GRANULARITY_BITS_MAX && type == BITMAP_TYPE_DIRTY &&
	       !(b->flags & ~(uint32_t)(BITMAP_IN_USE | BITMAP_AUTO)) &&
	       name_size <= BITMAP_NAME_MAX &&
	       (is_in_use || bitmap_bytes(h, b) <= phys);
}

/* The entry at w->at, in @ret; goes to the next. */
static int entry_wait(struct walk *w, struct qcow2_bitmap *ret)
{
	const uint64_t end = w->h->bitmaps_bytes;
	const struct qcow2_bitmap_disk *d;
	const uint8_t *bytes = NULL;
	uint32_t size;
	unsigned name_size, kept;
	int rc;

	if (!range_within(w->at, sizeof(*d), end))
		return broken(w);
	rc = window_wait(w, sizeof(*d), &bytes);
	if (rc)
		return rc;
	if (++w->seen > w->h->nb_bitmaps)
		return err_set(w->err, EINVAL,
			       "More bitmaps found than specified in header extension");
	d = (const void *)bytes;
	name_size = be16_get(d->name_size);
	size = (uint32_t)align_up(sizeof(*d) + name_size + be32_get(d->extra_size), 8);
	if (!range_within(w->at, size, end))
		return broken(w);
	if (be32_get(d->extra_size))
		return err_set(w->err, EINVAL, "Bitmap extra data is not supported");
	*ret = (struct qcow2_bitmap) {
		.entry_off = w->h->bitmaps_off + w->at,
		.table_off = be64_get(d->table_off),
		.table_entries = be32_get(d->table_entries),
		.flags = be32_get(d->flags),
		.granularity_bits = d->granularity_bits,
	};
	kept = MIN(name_size, (unsigned)BITMAP_NAME_MAX);
	rc = window_wait(w, sizeof(*d) + kept, &bytes);
	if (rc)
		return rc;
	d = (const void *)bytes;
	memcpy(ret->name, bytes + sizeof(*d), kept);
	if (!is_sane(w->h, ret, d->type, name_size))
		return err_set(w->err, EINVAL, "Bitmap '%s' doesn't satisfy the constraints",
			       ret->name);
	w->at += size;
	return 0;
}

int qcow2_bitmaps_each_wait(struct chan *file, const struct qcow2_header *h,
			    int (*fn)(void *arg, const struct qcow2_bitmap *b), void *arg,
			    struct err *err)
{
	struct walk w = { .file = file, .h = h, .err = err };
	int rc = 0;

	if (!h->nb_bitmaps)
		return 0;
	if (!h->bitmaps_bytes)
		return err_set(err, EINVAL, "Requested bitmap directory size is zero");
	w.buf = malloc(WINDOW_BYTES);
	if (!w.buf)
		return err_set_errno(err, ENOMEM, "bitmap directory");
	while (w.at < h->bitmaps_bytes && !rc) {
		struct qcow2_bitmap b;

		rc = entry_wait(&w, &b);
		if (!rc)
			rc = fn(arg, &b);
	}
	if (!rc && w.seen != h->nb_bitmaps)
		rc = err_set(err, EINVAL, "Less bitmaps found than specified in header extension");
	free(w.buf);
	return rc;
}

int qcow2_bitmap_table_wait(struct chan *file, const struct qcow2_header *h,
			    const struct qcow2_bitmap *b, uint64_t **ret)
{
	uint64_t bytes = (uint64_t)b->table_entries * 8;
	uint64_t *table;
	int rc = qcow2_check_reach(b->table_off, bytes);

	if (rc)
		return rc;
	table = malloc(bytes);
	if (!table)
		return -ENOMEM;
	rc = chan_read_wait(file, b->table_off, table, bytes);
	for (uint32_t i = 0; i < b->table_entries && !rc; i++) {
		uint64_t entry = be64_load(&table[i]), off = entry & QCOW2_OFFSET_MASK;

		if ((entry & TABLE_RESERVED) || !is_aligned(off, qcow2_cluster_size(h)) ||
		    (off && (entry & 1)))
			rc = -EINVAL;
		table[i] = entry;
	}
	if (rc) {
		free(table);
		return rc;
	}
	*ret = table;
	return 0;
}

/* ---- as when an image is opened ---- */

struct judge {
	struct chan *file;
	const struct qcow2_header *h;
	uint64_t *names;                /* a set: hashes, 0 where none is */
	uint64_t slots;                 /* power of two */
	uint64_t bytes;
	struct err *err;
};

static int ignore(void *arg, const struct qcow2_bitmap *b)
{
	return 0;
}

/* False: there is one with this name. */
static bool name_add(struct judge *j, const char *name)
{
	uint64_t hash = 1, at;

	for (; *name; name++)
		hash = mix64(hash + (unsigned char)*name);
	hash |= 1;
	for (at = hash >> 1 & (j->slots - 1); j->names[at]; at = (at + 1) & (j->slots - 1))
		if (j->names[at] == hash)
			return false;
	j->names[at] = hash;
	return true;
}

static int judge_one(void *arg, const struct qcow2_bitmap *b)
{
	struct judge *j = arg;
	uint64_t needed = bitmap_bytes(j->h, b);
	uint64_t *table = NULL;
	int rc = 0;

	if (!(b->flags & BITMAP_IN_USE)) {
		j->bytes += 8ULL * b->table_entries;
		rc = j->bytes > JUDGE_BYTES_MAX ? -EFBIG :
		     qcow2_bitmap_table_wait(j->file, j->h, b, &table);
		free(table);
	}
	if (rc)
		return err_set(j->err, -rc, "Could not read bitmap_table table from image for "
			       "bitmap '%s': %s", b->name, strerror(-rc));
	if (!name_add(j, b->name))
		return err_set(j->err, EINVAL, "Bitmap already exists: %s", b->name);
	if (!(b->flags & BITMAP_IN_USE) &&
	    b->table_entries != div_round_up(needed, qcow2_cluster_size(j->h)))
		return err_set_errno(j->err, EINVAL, "Could not read bitmap '%s' from image",
				     b->name);
	return 0;
}

int qcow2_bitmaps_judge_wait(struct node *n, struct err *err)
{
	const struct qcow2_header *h = &qcow2_of(n)->header;
	struct judge j = { .file = n->home_chan->child[CHILD_FILE], .h = h, .err = err };
	int rc;

	if (!h->nb_bitmaps)
		return 0;
	rc = qcow2_bitmaps_each_wait(j.file, h, ignore, NULL, err);
	if (rc)
		return rc;
	j.slots = 1ULL << log2_ceil(2ULL * h->nb_bitmaps);
	j.names = calloc(j.slots, sizeof(*j.names));
	rc = j.names ? qcow2_bitmaps_each_wait(j.file, h, judge_one, &j, err) :
		       err_set_errno(err, ENOMEM, "bitmaps");
	free(j.names);
	return rc;
}

const char *qcow2_bitmaps_warning(const struct node *n)
{
	return !qcow2_of(n)->header.has_void_bitmaps ? NULL :
		"a program lacking bitmap support modified this file, so all bitmaps are now "
		"considered inconsistent";
}
