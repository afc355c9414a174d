/* SPDX-License-Identifier: MIT */
/* sim/damage.h - a small qcow2 image as one piece of memory: counted the slow way, and damaged. Of
 * the code under test it uses the format's definitions only. */
#ifndef SIM_DAMAGE_H
#define SIM_DAMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/prng.h"
#include "sim/pages.h"

struct flat {
	uint8_t *b;                     /* owned */
	uint64_t size;                  /* of the file */
	/* As the header says. */
	unsigned version, cluster_bits, order;
	uint64_t cluster, l1, l1_entries, reftable, reftable_clusters, snapshots, incompatible;
	uint32_t nb_snapshots;
};

/* Whole sectors; what lies in the last cluster behind @size is zeros. */
void flat_init(struct flat *f, const struct sim_pages *pages, uint64_t size);
void flat_fini(struct flat *f);

/* The refcount that cluster @k has on disk: 0 where nothing says so. */
uint64_t flat_refcount(const struct flat *f, uint64_t k);
/* How often each of the @n first clusters is named, by whatever there is in the file. */
void flat_count(const struct flat *f, uint32_t *counts, uint64_t n);
/* Calls fn(arg, where, entry) for each entry of the active L1 table and its L2 tables. */
void flat_active(const struct flat *f, void (*fn)(void *arg, uint64_t where, uint64_t entry),
		 void *arg);

enum damage {
	DAMAGE_LEAK,                    /* a refcount that is too high */
	DAMAGE_LOW,                     /* one that is too low, not 0 where that can be */
	DAMAGE_LOST,                    /* one that is 0 */
	DAMAGE_FLAG,                    /* a COPIED flag is wrong */
	DAMAGE_NO_BLOCK,                /* a refcount block is missing */
	DAMAGE_BLOCK_TWICE,             /* a block lies on another cluster that is used */
	DAMAGE_BLOCK_OUTSIDE,           /* a little behind the end of the file */
	DAMAGE_UNALIGNED_ZERO,          /* preallocated zeros at an impossible place */
	DAMAGE_BITS,                    /* the dirty and the corrupt bit are set */
	DAMAGE_SNAPSHOT,                /* an entry of the snapshot table is too short */
	DAMAGE_BLOCK_RESERVED,          /* reserved bits: this cannot be mended */
	DAMAGES,
};

/* Does it, if this image can have it. */
void flat_damage(struct flat *f, enum damage what, struct prng *p);

/* As a program that makes a snapshot and ends early: of some entry the flag has gone, and the
 * refcount is higher. */
void flat_half_snapshot(struct flat *f, struct prng *p);
/* Puts the mark of an image in use behind its header extensions. */
void flat_mark(struct flat *f);

#endif
