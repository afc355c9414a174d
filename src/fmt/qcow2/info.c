/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/info.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/luks.h"

enum { GRANULARITY_BITS_MIN = 9, GRANULARITY_BITS_MAX = 31, BITMAP_TYPE_DIRTY = 1 };
enum { BITMAP_IN_USE = 1, BITMAP_AUTO = 2, BITMAP_FLAGS = 3, BITMAP_NAME_MAX = 1023 };
enum { TABLE_PIECE = 4096, TABLES_LOOKED_AT = 8 << 20 };
enum { BITMAP_TABLE_ENTRIES_MAX = 0x8000000 };          /* QEMU's limit */

/* An entry of the bitmap directory (specification: "Bitmap directory"). */
struct bitmap_disk {
	be64_t table_offset;
	be32_t table_entries;
	be32_t flags;
	uint8_t type;
	uint8_t granularity_bits;
	be16_t name_size;
	be32_t extra_size;
	/* extra data, name, padding to 8 bytes */
};
_Static_assert(sizeof(struct bitmap_disk) == 24, "directory entries start with 24 bytes");

/* ---- snapshots ---- */

static int keep_snapshot(const struct snapshot_entry *e, struct qcow2_snapshot_info *ret)
{
	*ret = (struct qcow2_snapshot_info) {
		.id = strndup(e->id, e->id_size),
		.name = strndup(e->name, e->name_size),
		.vm_state_bytes = e->vm_state_bytes,
		.date_s = e->date_s,
		.date_ns = e->date_ns,
		.vm_clock_ns = e->vm_clock_ns,
		.icount = e->icount,
		.has_icount = e->has_icount,
	};
	return ret->id && ret->name ? 0 : -ENOMEM;
}

static int read_snapshots_wait(struct qcow2 *q, struct chan *file, struct qcow2_info *info,
			       struct err *err)
{
	const struct qcow2_header *h = &q->header;
	struct snapshot_walk w = { 0 };
	int rc;

	if (!h->nb_snapshots)
		return 0;
	info->snapshots = calloc(h->nb_snapshots, sizeof(*info->snapshots));
	if (!info->snapshots)
		return err_set_errno(err, ENOMEM, "snapshot table");
	rc = snapshot_walk_start(&w, file, h, err);
	while (!rc && info->nsnapshots < h->nb_snapshots) {
		rc = snapshot_walk_wait(&w, err);
		if (!rc && keep_snapshot(&w.entry, &info->snapshots[info->nsnapshots++]))
			rc = err_set_errno(err, ENOMEM, "snapshot table");
	}
	snapshot_walk_end(&w);
	return rc;
}

/* ---- bitmaps ---- */

static bool is_bitmap_sane(const struct qcow2_header *h, const struct bitmap_disk *d)
{
	uint64_t table = be64_get(d->table_offset), entries = be32_get(d->table_entries);

	return entries && entries <= BITMAP_TABLE_ENTRIES_MAX && table &&
	       is_aligned(table, qcow2_cluster_size(h)) && table <= INT64_MAX &&
	       d->granularity_bits >= GRANULARITY_BITS_MIN &&
	       d->granularity_bits <= GRANULARITY_BITS_MAX &&
	       !(be32_get(d->flags) & ~(uint32_t)BITMAP_FLAGS) && d->type == BITMAP_TYPE_DIRTY &&
	       be16_get(d->name_size) <= BITMAP_NAME_MAX;
}

/* The entry at *@at of the directory's @len bytes; *@at goes behind it. */
static int keep_bitmap(const struct qcow2_header *h, const uint8_t *dir, uint64_t len, uint64_t *at,
		       struct qcow2_bitmap_info *ret, struct err *err)
{
	const struct bitmap_disk *d = (const void *)(dir + *at);
	uint64_t extra, name;
	const char *text;

	if (!range_within(*at, sizeof(*d), len))
		return err_set(err, EINVAL, "Broken bitmap directory");
	extra = be32_get(d->extra_size);
	name = be16_get(d->name_size);
	if (!range_within(*at, align_up(sizeof(*d) + extra + name, 8), len))
		return err_set(err, EINVAL, extra ? "Bitmap extra data is not supported" :
						    "Broken bitmap directory");
	if (extra)
		return err_set(err, EINVAL, "Bitmap extra data is not supported");
	text = (const char *)(d + 1);
	if (!is_bitmap_sane(h, d))
		return err_set(err, EINVAL, "Bitmap '%.*s' doesn't satisfy the constraints",
			       (int)name, text);
	*ret = (struct qcow2_bitmap_info) {
		.name = strndup(text, name),
		.granularity = 1ULL << d->granularity_bits,
		.is_in_use = be32_get(d->flags) & BITMAP_IN_USE,
		.is_auto = be32_get(d->flags) & BITMAP_AUTO,
		.table_off = be64_get(d->table_offset),
		.table_entries = be32_get(d->table_entries),
	};
	*at += align_up(sizeof(*d) + name, 8);
	return ret->name ? 0 : err_set_errno(err, ENOMEM, "bitmap directory");
}

static int keep_bitmaps(const struct qcow2_header *h, const uint8_t *dir, uint64_t len,
			struct qcow2_info *info, struct err *err)
{
	uint64_t at = 0;
	int rc = 0;

	info->bitmaps = calloc(h->nb_bitmaps, sizeof(*info->bitmaps));
	if (!info->bitmaps)
		return err_set_errno(err, ENOMEM, "bitmap directory");
	while (at < len && !rc) {
		if (info->nbitmaps == h->nb_bitmaps)
			return err_set(err, EINVAL, "More bitmaps found than specified in header "
				       "extension");
		rc = keep_bitmap(h, dir, len, &at, &info->bitmaps[info->nbitmaps], err);
		info->nbitmaps += !rc;
	}
	if (!rc && info->nbitmaps < h->nb_bitmaps)
		rc = err_set(err, EINVAL,
			     "Less bitmaps found than specified in header extension");
	return rc;
}

/* What lies behind the end of the file reads as zeros, and so is no bitmap: only one entry's worth
 * of it is looked at. */
static uint64_t directory_bytes(const struct qcow2_header *h, uint64_t file_size)
{
	uint64_t there = file_size > h->bitmaps_off ? file_size - h->bitmaps_off : 0;

	return MIN(h->bitmaps_bytes, there + sizeof(struct bitmap_disk) + BITMAP_NAME_MAX);
}

/* Specification, "Bitmap table": an offset and zeros around it, or a flag alone. */
static bool is_table_entry_sane(const struct qcow2_header *h, uint64_t entry)
{
	uint64_t off = entry & QCOW2_OFFSET_MASK;

	return !(entry & ~(QCOW2_OFFSET_MASK | 1)) && is_aligned(off, qcow2_cluster_size(h)) &&
	       !(off && (entry & 1));
}

/* Looks at the table of @b, or at the first *@budget entries of it, which are counted down: many
 * bitmaps may name the same large table. */
static int read_table_wait(struct qcow2 *q, struct chan *file, const struct qcow2_bitmap_info *b,
			   uint64_t *budget)
{
	uint64_t size = atomic_load(&file->node->size);
	uint64_t left = MIN((uint64_t)b->table_entries, *budget);
	uint8_t piece[TABLE_PIECE];
	uint64_t off = b->table_off;
	int rc = qcow2_check_reach(off, (uint64_t)b->table_entries * 8);

	*budget -= left;
	/* Behind the end of the file there are but zeros. */
	while (left && !rc && off < size) {
		uint64_t n = MIN(left, (uint64_t)TABLE_PIECE / 8);

		rc = chan_read_wait(file, off, piece, n * 8);
		for (uint64_t i = 0; i < n && !rc; i++)
			if (!is_table_entry_sane(&q->header, be64_load(piece + 8 * i)))
				rc = -EINVAL;
		off += n * 8;
		left -= n;
	}
	return rc;
}

static int check_bitmap_table_wait(struct qcow2 *q, struct chan *file,
				   const struct qcow2_bitmap_info *b, uint64_t *budget,
				   struct err *err)
{
	uint64_t size = align_down(q->header.size, 512);
	uint64_t bytes = div_round_up(div_round_up(size, b->granularity), 64) * 8;
	int rc;

	if (b->table_entries != div_round_up(bytes, qcow2_cluster_size(&q->header)))
		return err_set_errno(err, EINVAL, "Could not read bitmap '%s' from image",
				     b->name);
	rc = read_table_wait(q, file, b, budget);
	if (!rc)
		return 0;
	return err_set_errno(err, -rc,
			     "Could not read bitmap_table table from image for bitmap '%s'",
			     b->name);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int check_bitmap_names(const struct qcow2_info *info, struct err *err)
{
	const char **names = calloc(MAX(info->nbitmaps, (size_t)1), sizeof(*names));
	int rc = 0;

	if (!names)
		return err_set_errno(err, ENOMEM, "bitmap directory");
	for (size_t i = 0; i < info->nbitmaps; i++)
		names[i] = info->bitmaps[i].name;
	qsort(names, info->nbitmaps, sizeof(*names), compare_names);
	for (size_t i = 1; i < info->nbitmaps && !rc; i++)
		if (!strcmp(names[i - 1], names[i]))
			rc = err_set(err, EINVAL, "Bitmap already exists: %s", names[i]);
	free(names);
	return rc;
}

static int read_bitmaps_wait(struct qcow2 *q, struct chan *file, struct qcow2_info *info,
			     struct err *err)
{
	const struct qcow2_header *h = &q->header;
	uint64_t len = directory_bytes(h, atomic_load(&file->node->size));
	uint64_t budget = TABLES_LOOKED_AT;
	uint8_t *dir;
	int rc;

	if (!h->nb_bitmaps)
		return 0;
	dir = malloc(len);
	if (!dir)
		return err_set_errno(err, ENOMEM, "bitmap directory");
	rc = qcow2_check_reach(h->bitmaps_off, len);
	if (!rc)
		rc = chan_read_wait(file, h->bitmaps_off, dir, len);
	if (rc)
		err_set_errno(err, -rc, "Failed to read bitmap directory");
	else
		rc = keep_bitmaps(h, dir, len, info, err);
	free(dir);
	for (size_t i = 0; i < info->nbitmaps && !rc; i++)
		if (!info->bitmaps[i].is_in_use)
			rc = check_bitmap_table_wait(q, file, &info->bitmaps[i], &budget, err);
	return rc ? rc : check_bitmap_names(info, err);
}

/* ---- encryption ---- */

static int read_luks_wait(struct qcow2 *q, struct chan *file, struct qcow2_info *info,
			  struct err *err)
{
	struct luks_disk d;
	int rc;

	if (q->header.encryption != QCOW2_ENCRYPTION_LUKS)
		return 0;
	if (q->header.crypto_len < sizeof(d) ||
	    !range_within(q->header.crypto_off, sizeof(d), INT64_MAX))
		return err_set(err, EINVAL, "LUKS header residing in cluster is too small");
	rc = chan_read_wait(file, q->header.crypto_off, &d, sizeof(d));
	if (rc)
		return err_set_errno(err, -rc, "Unable to read LUKS header");
	info->luks = calloc(1, sizeof(*info->luks));
	if (!info->luks)
		return err_set_errno(err, ENOMEM, "LUKS header");
	return luks_parse(&d, info->luks, err);
}

/* ---- all ---- */

int qcow2_info_wait(struct node *n, struct qcow2_info *ret, struct err *err)
{
	struct qcow2 *q = qcow2_of(n);
	const struct qcow2_header *h = &q->header;
	struct chan *file = n->home_chan->child[CHILD_FILE];
	struct qcow2_info info = {
		.version = h->version,
		.cluster_size = qcow2_cluster_size(h),
		.refcount_bits = 1u << h->refcount_order,
		.is_zstd = h->compression == QCOW2_COMPRESSION_ZSTD,
		.is_lazy = h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS,
		.is_dirty = h->incompatible & QCOW2_INCOMPAT_DIRTY,
		.is_corrupt = h->incompatible & QCOW2_INCOMPAT_CORRUPT,
		.has_extended_l2 = qcow2_has_extended_l2(h),
		.has_data_file = qcow2_has_data_file(h),
		.is_data_file_raw = h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW,
		.is_encrypted = h->encryption != QCOW2_ENCRYPTION_NONE,
	};
	int rc = read_luks_wait(q, file, &info, err);

	loop_assert(n->home);
	if (!rc)
		rc = read_snapshots_wait(q, file, &info, err);
	if (!rc)
		rc = read_bitmaps_wait(q, file, &info, err);
	if (rc)
		qcow2_info_fini(&info);
	else
		*ret = info;
	return rc;
}

void qcow2_info_fini(struct qcow2_info *info)
{
	for (size_t i = 0; i < info->nsnapshots; i++) {
		free(info->snapshots[i].id);
		free(info->snapshots[i].name);
	}
	for (size_t i = 0; i < info->nbitmaps; i++)
		free(info->bitmaps[i].name);
	free(info->snapshots);
	free(info->bitmaps);
	free(info->luks);
	*info = (struct qcow2_info) { 0 };
}

bool qcow2_has_void_bitmaps(const struct node *n)
{
	return qcow2_of(n)->header.has_void_bitmaps;
}
