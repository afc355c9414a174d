/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/bitmap_copy.c - the persistent bitmaps of one image into another (bitmap.h).
 *
 * The bits, the tables and the directory are written into clusters of the target while that is
 * open for writing. Nothing names them before it is closed: then the header gets its extension, of
 * an image that nobody changes, as the last thing. Whatever goes wrong before that leaves an image
 * without bitmaps, and leaks.
 *
 * Invariants:
 *	T35 whatever a power cut leaves of the header, an image that can be opened has all bitmaps
 *	    or none, and the backing file that it had. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/zero.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/header_edit.h"
#include "fmt/qcow2/writer.h"

enum {
	HEADER_MAX = 64 << 10,
	TAKES_MAX = 4096,               /* until clusters in a row are found */
	EXT_BYTES = sizeof(struct qcow2_ext_disk),
	BITMAPS_EXT_BYTES = EXT_BYTES + sizeof(struct qcow2_ext_bitmaps_disk),
};

#define ALL_ONES 1ULL                   /* a table's entry: every bit of its cluster is set */

struct copying {
	const struct qcow2 *from;
	struct chan *from_file;
	struct writer *w;               /* the target's */
	uint8_t *directory;             /* owned */
	uint64_t bytes;                 /* of it */
	uint32_t n;
	uint8_t *buf;                   /* owned: a cluster of the target's */
	struct err *err;
};

/* ---- room ---- */

/* @n clusters in a row. */
static int take_wait(struct writer *w, uint64_t n, uint64_t *ret_off)
{
	uint64_t first = 0, got = 0;
	int rc = 0;

	for (unsigned i = 0; i < TAKES_MAX && got < n && !rc; i++) {
		struct alloc_run run;

		if (!alloc_take(&w->alloc, n - got, &run)) {
			rc = alloc_fill_wait(&w->alloc);
		} else if (got && first + got == run.first) {
			got += run.n;
		} else {
			if (got)
				alloc_free(&w->alloc, first, got);
			first = run.first;
			got = run.n;
		}
	}
	if (!rc && got < n)
		rc = -ENOSPC;
	if (rc && got)
		alloc_free(&w->alloc, first, got);
	if (!rc)
		*ret_off = first * w->cluster;
	return rc;
}

/* Writes @len bytes, and zeros up to the end of the cluster, into new clusters. */
static int store_wait(struct writer *w, const void *bytes, uint64_t len, uint64_t *ret_off)
{
	uint64_t room = align_up(len, w->cluster);
	uint8_t *padded = calloc(1, room);
	int rc = padded ? take_wait(w, room / w->cluster, ret_off) : -ENOMEM;

	if (!rc) {
		memcpy(padded, bytes, len);
		rc = chan_write_wait(w->file, *ret_off, padded, room);
	}
	free(padded);
	return rc;
}

/* ---- one bitmap ---- */

/* Reads [@off, @off + @len) of the bitmap whose table is @table. */
static int read_bits_wait(const struct copying *c, const uint64_t *table, uint64_t off,
			  uint64_t len, uint8_t *buf)
{
	uint64_t cluster = qcow2_cluster_size(&c->from->header);
	int rc = 0;

	while (len && !rc) {
		uint64_t entry = table[off / cluster], host = entry & QCOW2_OFFSET_MASK;
		uint64_t n = MIN(len, cluster - off % cluster);

		if (host) {
			rc = qcow2_check_reach(host, cluster);
			if (!rc)
				rc = chan_read_wait(c->from_file, host + off % cluster, buf, n);
		} else {
			memset(buf, entry & ALL_ONES ? 0xff : 0, n);
		}
		off += n;
		buf += n;
		len -= n;
	}
	return rc;
}

/* Fills the target's @table from the source's. */
static int copy_bits_wait(const struct copying *c, const struct qcow2_bitmap *b,
			  const uint64_t *from, uint64_t *table)
{
	struct writer *w = c->w;
	uint64_t bits = div_round_up(c->from->header.size, 1ULL << b->granularity_bits);
	uint64_t bytes = div_round_up(bits, 8), off = 0, host = 0;

	for (uint64_t i = 0; off < bytes; i++, off += w->cluster) {
		uint64_t n = MIN(w->cluster, bytes - off);
		int rc = read_bits_wait(c, from, off, n, c->buf);

		if (!rc && off + n == bytes && bits % 8)
			c->buf[n - 1] &= (uint8_t)((1U << bits % 8) - 1);
		if (!rc && !bytes_are_zero(c->buf, n))
			rc = store_wait(w, c->buf, n, &host);
		else
			host = 0;
		if (rc)
			return rc;
		be64_store(&table[i], host);
	}
	return 0;
}

static int add_entry(struct copying *c, const struct qcow2_bitmap *b, uint64_t table_off,
		     uint32_t entries)
{
	size_t name_len = strlen(b->name);
	uint64_t size = align_up(sizeof(struct qcow2_bitmap_disk) + name_len, 8);
	uint8_t *grown = realloc(c->directory, c->bytes + size);
	struct qcow2_bitmap_disk d = {
		.table_off = be64_make(table_off),
		.table_entries = be32_make(entries),
		.flags = be32_make(b->flags & BITMAP_AUTO),
		.type = BITMAP_TYPE_DIRTY,
		.granularity_bits = (uint8_t)b->granularity_bits,
		.name_size = be16_make((uint16_t)name_len),
	};

	if (!grown)
		return -ENOMEM;
	c->directory = grown;
	memset(grown + c->bytes, 0, size);
	memcpy(grown + c->bytes, &d, sizeof(d));
	memcpy(grown + c->bytes + sizeof(d), b->name, name_len);
	c->bytes += size;
	c->n++;
	return 0;
}

static int copy_one_wait(void *arg, const struct qcow2_bitmap *b)
{
	struct copying *c = arg;
	uint64_t bits = div_round_up(c->from->header.size, 1ULL << b->granularity_bits);
	uint64_t entries = div_round_up(div_round_up(bits, 8), c->w->cluster), table_off = 0;
	uint64_t *from = NULL, *table;
	int rc;

	if (b->flags & BITMAP_IN_USE)
		return 0;
	table = calloc(MAX(entries, 1ULL), sizeof(*table));
	rc = table ? qcow2_bitmap_table_wait(c->from_file, &c->from->header, b, &from) : -ENOMEM;
	if (!rc)
		rc = copy_bits_wait(c, b, from, table);
	if (!rc)
		rc = store_wait(c->w, table, entries * sizeof(*table), &table_off);
	if (!rc)
		rc = add_entry(c, b, table_off, (uint32_t)entries);
	free(table);
	free(from);
	return rc ? err_set_errno(c->err, -rc, "Failed to populate bitmap %s", b->name) : 0;
}

/* ---- all ---- */

static int check(const struct qcow2 *from, const struct qcow2 *to, struct err *err)
{
	if (!to->writer)
		return err_set_errno(err, EROFS, "'%s'", to->node.name);
	if (to->header.nb_bitmaps)
		return err_set(err, ENOTSUP, "'%s' has bitmaps already", to->node.name);
	if (from->header.size != to->header.size)
		return err_set(err, EINVAL, "Bitmaps are of different sizes (destination size is "
			       "%llu, source size is %llu) and can't be merged",
			       (unsigned long long)to->header.size,
			       (unsigned long long)from->header.size);
	return 0;
}

int qcow2_bitmaps_copy_wait(struct node *from, struct node *to, struct qcow2_bitmaps_copy *ret,
			    struct err *err)
{
	struct qcow2 *target = qcow2_of(to);
	struct copying c = { .from = qcow2_of(from), .w = target->writer, .err = err,
			     .from_file = from->home_chan->child[CHILD_FILE] };
	int rc = check(c.from, target, err);

	if (rc)
		return rc;
	c.buf = malloc(c.w->cluster);
	rc = c.buf ? mark_set_wait(c.w) : -ENOMEM;
	if (!rc)
		rc = qcow2_bitmaps_each_wait(c.from_file, &c.from->header, copy_one_wait, &c, err);
	*ret = (struct qcow2_bitmaps_copy) { .n = c.n, .directory_bytes = c.bytes };
	if (!rc && c.n)
		rc = store_wait(c.w, c.directory, c.bytes, &ret->directory_off);
	if (!rc)
		rc = chan_flush_wait(to->home_chan);
	if (!rc)
		rc = chan_flush_wait(c.w->file);
	if (rc && err && !err->code)
		err_set_errno(err, -rc, "Failed to copy bitmaps");
	free(c.buf);
	free(c.directory);
	return rc;
}

/* ---- the header ---- */

/* Puts the extension behind all others, and with @moves_name the name of the backing file behind
 * it. Returns how much of @buf has changed then; 0: it has no room. */
static uint64_t add_extension(uint8_t *buf, uint64_t len, const struct qcow2_bitmaps_copy *c,
			      bool moves_name)
{
	struct qcow2_header_disk *d = (void *)buf;
	uint64_t name = be64_get(d->backing_file_offset), at;
	uint64_t name_len = name ? be32_get(d->backing_file_size) : 0;
	struct qcow2_header h = { .header_length = be32_get(d->header_length) };
	struct qcow2_ext_bitmaps_disk ext = {
		.nb_bitmaps = be32_make(c->n),
		.directory_size = be64_make(c->directory_bytes),
		.directory_offset = be64_make(c->directory_off),
	};
	uint64_t end;

	if (!header_find_extension(&h, buf, len, QCOW2_EXT_END, &at))
		return 0;
	end = at + BITMAPS_EXT_BYTES + EXT_BYTES;
	if (end + name_len > len || (name && (name < at || name + name_len > len)))
		return 0;
	moves_name &= name != 0;
	if (moves_name)
		memmove(buf + end, buf + name, name_len);
	memset(buf + at, 0, end - at);
	be32_store(buf + at, QCOW2_EXT_BITMAPS);
	be32_store(buf + at + 4, sizeof(ext));
	memcpy(buf + at + EXT_BYTES, &ext, sizeof(ext));
	if (moves_name)
		d->backing_file_offset = be64_make(end);
	d->autoclear_features =
		be64_make(be64_get(d->autoclear_features) | QCOW2_AUTOCLEAR_BITMAPS);
	return moves_name ? end + name_len : end;
}

/* Makes these bytes of the header durable. */
static int put_wait(struct chan *ch, const uint8_t *buf, uint64_t off, uint64_t len)
{
	return chan_write_sync_wait(ch, off, buf + off, len);
}

/* T35, of an image that others may open: what the extension holds, behind the end of the list;
 * then its type and length, which end the list no more; then the bit that says that it counts.
 * The mark of the image in use has moved a name that was in the way (mark.c). */
static int name_in_steps_wait(struct chan *ch, uint8_t *buf, uint64_t len,
			      const struct qcow2_bitmaps_copy *c)
{
	struct qcow2_header_disk *d = (void *)buf;
	struct qcow2_header h = { .header_length = be32_get(d->header_length) };
	uint64_t at = 0, end, name = be64_get(d->backing_file_offset);
	int rc;

	if (!header_find_extension(&h, buf, len, QCOW2_EXT_END, &at))
		return -ENOSPC;
	end = at + BITMAPS_EXT_BYTES + EXT_BYTES;
	if (name && name < end)
		return -ENOSPC;
	if (!add_extension(buf, len, c, false))
		return -ENOSPC;
	rc = put_wait(ch, buf, at + EXT_BYTES, end - at - EXT_BYTES);
	if (!rc)
		rc = put_wait(ch, buf, at, EXT_BYTES);
	if (!rc)
		rc = put_wait(ch, buf, offsetof(struct qcow2_header_disk, autoclear_features),
			      sizeof(be64_t));
	return rc;
}

/* Nobody can open what is unfinished (Q11): it is rewritten as it comes. */
static int name_at_once_wait(struct chan *ch, uint8_t *buf, uint64_t len,
			     const struct qcow2_bitmaps_copy *c)
{
	uint64_t used = add_extension(buf, len, c, true);
	int rc = used ? put_wait(ch, buf, 0, used) : -ENOSPC;

	return rc ? rc : header_finish_wait(ch);
}

int qcow2_bitmaps_name_wait(struct node *file, const struct qcow2_bitmaps_copy *c, struct err *err)
{
	struct chan *ch = file->home_chan;
	uint8_t *buf = aligned_alloc(4096, HEADER_MAX);
	const struct qcow2_header_disk *d = (const void *)buf;
	uint64_t len;
	int rc = buf ? chan_read_wait(ch, 0, buf, HEADER_MAX) : -ENOMEM;

	if (!rc) {
		len = MIN(1ULL << be32_get(d->cluster_bits), (uint64_t)HEADER_MAX);
		if (be32_get(d->version) & QCOW2_VERSION_UNFINISHED || c->breaks_t35)
			rc = name_at_once_wait(ch, buf, len, c);
		else
			rc = name_in_steps_wait(ch, buf, len, c);
	}
	free(buf);
	return rc ? err_set_errno(err, -rc, "Failed to store bitmaps in '%s'", file->name) : 0;
}
