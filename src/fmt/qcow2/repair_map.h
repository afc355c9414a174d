/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/repair_map.h - where the metadata of an image that is repaired lies, by what names it
 * and whatever the refcounts say. Made when something is first to be written. */
#ifndef FMT_QCOW2_REPAIR_MAP_H
#define FMT_QCOW2_REPAIR_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/cluster_set.h"

struct check;

/* In the order in which the reference looks. */
enum map_kind {
	MAP_HEADER, MAP_ACTIVE_L1, MAP_REFTABLE, MAP_SNAPSHOTS, MAP_INACTIVE_L1, MAP_ACTIVE_L2,
	MAP_REFBLOCK, MAP_BITMAPS, MAP_KINDS,
};

/* A zeroed one is empty. */
struct repair_map {
	struct cluster_set sets[MAP_KINDS];
	bool is_made;
};

/* In a fiber: reads what names metadata. 0 or -errno. */
int repair_map_make_wait(struct repair_map *m, struct check *ck);
/* It is not true any longer. */
void repair_map_drop(struct repair_map *m);
/* The name of what lies in clusters [@first, @first + @n), leaving kind @own out; NULL: nothing. */
const char *repair_map_find(const struct repair_map *m, unsigned own, uint64_t first, uint64_t n);

#endif
