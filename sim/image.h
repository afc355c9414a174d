/* SPDX-License-Identifier: MIT */
/* sim/image.h - qcow2 images to begin with, byte by byte: nothing of the code under test makes
 * them, and they can be what no tool leaves behind (nearly full refcount tables, shared tables). */
#ifndef SIM_IMAGE_H
#define SIM_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/model.h"
#include "sim/pages.h"

/* An extension and an autoclear bit that nobody knows. */
enum { SIM_EXT_UNKNOWN = 0x53494d55 };
#define SIM_AUTOCLEAR_UNKNOWN (1ULL << 41)

struct sim_image_opts {
	unsigned version;               /* 2 or 3 */
	unsigned cluster_bits;
	bool is_extended;               /* extended L2 entries: version 3, clusters from 2^14 on */
	unsigned refcount_order;        /* version 2: 4 */
	uint64_t window;                /* bytes of the guest's disk that are used: its end */
	/* So many refcount blocks are full but for @spare clusters: what lies before the window is
	 * mapped, and never looked at. 0: nothing lies before it. */
	unsigned full_blocks;
	unsigned spare;
	unsigned own_every;             /* of the window, every nth cluster is mapped; 0: none. Of
					 * extended ones some subclusters; the rest is zeros, or
					 * nowhere, */
	bool has_stale_within;          /* and its place holds what others wrote */
	unsigned packed_every;          /* of these, every nth is compressed; 0: none. They share
					 * host clusters as far as refcounts allow */
	bool has_data_file;             /* the guest's data is on the second disk (disk.h), */
	bool is_raw_data;               /* which is a raw disk by itself */
	bool is_backing;                /* its data is stamped as a backing file's */
	unsigned stale;                 /* clusters that are free, and full of what others wrote */
	bool is_shared;                 /* by a snapshot, "1": all tables and data */
	unsigned bitmap_bits;           /* 1 << of the granularity of persistent bitmaps
					 * (bitmaps.h); 0: it has none */
	unsigned bitmap_fill;           /* 0: the first one is empty; 1: full; 2: neither */
	bool is_lazy;                   /* refcounts */
	bool is_odd;                    /* has what nobody knows */
	bool is_damaged;                /* the snapshot's L1 table has refcounts of 0 */
	const char *backing_name;       /* or NULL */
	const char *backing_format;
};

struct sim_image {
	uint64_t file_size;
	uint64_t guest_size;
	uint64_t window_off;
	uint64_t cluster;
	uint64_t bitmaps_off;           /* of their directory; 0: none */
	uint64_t damaged_off, damaged_len;      /* that table's clusters */
};

/* Writes the image into @pages, and into @m->initial what own_every maps; @m is made here. */
void sim_image_make(const struct sim_image_opts *o, struct sim_pages *pages, struct model *m,
		    struct sim_image *ret);

#endif
