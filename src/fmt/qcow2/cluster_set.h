/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/cluster_set.h - a set of cluster numbers, for some millions of them.
 *
 * A hash table of groups: CLUSTER_SET_GROUP adjacent clusters, a bit each. So tables that
 * lie in a row cost little, and a single one 16 bytes and its share of room. */
#ifndef FMT_QCOW2_CLUSTER_SET_H
#define FMT_QCOW2_CLUSTER_SET_H

#include <stdbool.h>
#include <stdint.h>

enum {
	CLUSTER_SET_GROUP = 64,
	CLUSTER_SET_GROUPS_MAX = 4 << 20,       /* what an image may make of it: 128 MiB */
};

struct cluster_group {
	uint64_t number_plus_1;         /* of its first cluster / CLUSTER_SET_GROUP; 0: none here */
	uint64_t bits;
};

/* A zeroed one is empty. */
struct cluster_set {
	struct cluster_group *slots;    /* owned */
	uint64_t nslots;                /* a power of two, or 0 */
	uint64_t ngroups;               /* slots that are in use, those without a bit too */
};

void cluster_set_fini(struct cluster_set *s);
/* 0, -ENOMEM, or -EFBIG: too many; then nothing was added. */
int cluster_set_add(struct cluster_set *s, uint64_t first, uint64_t n);
void cluster_set_del(struct cluster_set *s, uint64_t first, uint64_t n);
/* Is any of them in it? */
bool cluster_set_has(const struct cluster_set *s, uint64_t first, uint64_t n);

#endif
