/* SPDX-License-Identifier: MIT */
/* job/measure.h - how large would a qcow2 image be?
 *
 * Its metadata is worked out as if every cluster were allocated, for that is what it must have room
 * for; the data is what a source has, in whole clusters.
 *
 * Invariants:
 *	D4  an image with the metadata that is worked out has a refcount for every cluster of it,
 *	    the refcount tables' own included. */
#ifndef JOB_MEASURE_H
#define JOB_MEASURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct port_chan;

/* The parts of a qcow2 image's layout that its size depends on. */
struct measure_layout {
	uint64_t cluster;               /* bytes; a power of two */
	unsigned refcount_order;        /* 0 to 6 */
	bool extended_l2;
};

/* Pure: the metadata of an image of @size guest bytes. 0, or -EFBIG: its L1 table would be too
 * large. */
int measure_metadata(const struct measure_layout *l, uint64_t size, uint64_t *ret);

/* Pure: what a bitmap of granularity @granularity, with a name of @name_len bytes, takes for @size
 * guest bytes: clusters, and *@ret_entry in the directory that all bitmaps share. */
uint64_t measure_bitmap(const struct measure_layout *l, uint64_t size, uint64_t granularity,
			size_t name_len, uint64_t *ret_entry);

/* In a fiber of pc->loop: what the first @size bytes of the disk hold as data, in clusters of
 * @cluster bytes. */
int measure_data_wait(struct port_chan *pc, uint64_t size, uint64_t cluster, uint64_t *ret);

#endif
