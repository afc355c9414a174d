/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/repair_map.h"

#include <errno.h>
#include <stdlib.h>

#include "fmt/qcow2/check_impl.h"

static int add(struct repair_map *m, const struct check *ck, enum map_kind kind, uint64_t off,
	       uint64_t len)
{
	uint64_t first = off >> ck->cluster_bits;

	if (!len || !range_within(off, len, INT64_MAX))
		return 0;               /* nothing is ever written there */
	return cluster_set_add(&m->sets[kind], first,
			       div_round_up(off + len, ck->cluster) - first);
}

static int add_tables_wait(struct repair_map *m, struct check *ck)
{
	uint64_t bytes = (uint64_t)ck->h->l1_entries * 8;
	uint8_t *piece = malloc(CHECK_PIECE_BYTES);
	int rc = piece ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < bytes && !rc; at += CHECK_PIECE_BYTES) {
		uint64_t len = MIN(bytes - at, (uint64_t)CHECK_PIECE_BYTES);

		rc = check_read_wait(ck, ck->h->l1_off + at, piece, len);
		for (uint64_t i = 0; i < len / 8 && !rc; i++) {
			uint64_t off = be64_load(piece + 8 * i) & QCOW2_OFFSET_MASK;

			rc = off ? add(m, ck, MAP_ACTIVE_L2, off, ck->cluster) : 0;
		}
	}
	free(piece);
	return rc;
}

static int add_snapshots(struct repair_map *m, const struct check *ck)
{
	int rc = add(m, ck, MAP_SNAPSHOTS, ck->h->snapshots_off, ck->snapshots.bytes);

	for (uint32_t i = 0; i < ck->h->nb_snapshots && !rc; i++) {
		const struct check_snapshot *s = &ck->snapshots.list[i];

		rc = add(m, ck, MAP_INACTIVE_L1, s->l1_off, (uint64_t)s->l1_entries * 8);
	}
	return rc;
}

static int add_refcounts(struct repair_map *m, const struct check *ck)
{
	int rc = add(m, ck, MAP_REFTABLE, ck->h->reftable_off,
		     (uint64_t)ck->h->reftable_clusters << ck->cluster_bits);

	for (uint64_t i = 0; i < ck->reftable_entries && !rc; i++) {
		uint64_t off = be64_load(ck->reftable + 8 * i) & ~0x1ffULL;

		rc = off ? add(m, ck, MAP_REFBLOCK, off, ck->cluster) : 0;
	}
	return rc;
}

int repair_map_make_wait(struct repair_map *m, struct check *ck)
{
	const struct qcow2_header *h = ck->h;
	int rc;

	if (m->is_made)
		return 0;
	rc = add(m, ck, MAP_HEADER, 0, ck->cluster);
	if (!rc)
		rc = add(m, ck, MAP_ACTIVE_L1, h->l1_off, (uint64_t)h->l1_entries * 8);
	if (!rc)
		rc = add_snapshots(m, ck);
	if (!rc)
		rc = add_tables_wait(m, ck);
	if (!rc)
		rc = add_refcounts(m, ck);
	if (!rc && h->nb_bitmaps)
		rc = add(m, ck, MAP_BITMAPS, h->bitmaps_off, h->bitmaps_bytes);
	if (rc)
		repair_map_drop(m);
	else
		m->is_made = true;
	return rc;
}

void repair_map_drop(struct repair_map *m)
{
	for (unsigned i = 0; i < MAP_KINDS; i++)
		cluster_set_fini(&m->sets[i]);
	*m = (struct repair_map){ 0 };
}

const char *repair_map_find(const struct repair_map *m, unsigned own, uint64_t first, uint64_t n)
{
	static const char *const names[] = {
		[MAP_HEADER] = "qcow2_header", [MAP_ACTIVE_L1] = "active L1 table",
		[MAP_REFTABLE] = "refcount table", [MAP_SNAPSHOTS] = "snapshot table",
		[MAP_INACTIVE_L1] = "inactive L1 table", [MAP_ACTIVE_L2] = "active L2 table",
		[MAP_REFBLOCK] = "refcount block", [MAP_BITMAPS] = "bitmap directory",
	};

	for (unsigned i = 0; i < MAP_KINDS; i++)
		if (i != own && cluster_set_has(&m->sets[i], first, n))
			return names[i];
	return NULL;
}
