/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/info.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/luks.h"

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

static int keep_bitmap(void *arg, const struct qcow2_bitmap *b)
{
	struct qcow2_info *info = arg;
	struct qcow2_bitmap_info *ret = &info->bitmaps[info->nbitmaps];

	*ret = (struct qcow2_bitmap_info) {
		.name = strdup(b->name),
		.granularity = 1ULL << b->granularity_bits,
		.is_in_use = b->flags & BITMAP_IN_USE,
		.is_auto = b->flags & BITMAP_AUTO,
	};
	if (!ret->name)
		return -ENOMEM;
	info->nbitmaps++;
	return 0;
}

static int read_bitmaps_wait(struct node *n, struct chan *file, struct qcow2_info *info,
			     struct err *err)
{
	const struct qcow2_header *h = &qcow2_of(n)->header;
	int rc = qcow2_bitmaps_judge_wait(n, err);

	if (rc || !h->nb_bitmaps)
		return rc;
	info->bitmaps = calloc(h->nb_bitmaps, sizeof(*info->bitmaps));
	rc = info->bitmaps ? qcow2_bitmaps_each_wait(file, h, keep_bitmap, info, err) : -ENOMEM;
	return rc == -ENOMEM ? err_set_errno(err, ENOMEM, "bitmap directory") : rc;
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
		rc = read_bitmaps_wait(n, file, &info, err);
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
