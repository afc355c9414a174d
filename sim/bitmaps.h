/* SPDX-License-Identifier: MIT */
/* sim/bitmaps.h - the bitmaps of simulated images, looked at byte by byte.
 *
 * An image with bitmaps has SIM_BITMAPS, each of a kind of its own. */
#ifndef SIM_BITMAPS_H
#define SIM_BITMAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/image.h"

enum sim_bitmap {
	SIM_BITMAP_FINE,                /* enabled; of the granularity that the options say */
	SIM_BITMAP_DISABLED,
	SIM_BITMAP_IN_USE,              /* enabled; somebody was killed */
	SIM_BITMAP_COARSE,              /* enabled, and empty */
	SIM_BITMAPS,
};

enum { SIM_BITMAP_ENTRY_BYTES = 32 };           /* of the directory */

static inline bool sim_bitmap_is_tracked(enum sim_bitmap i)
{
	return i == SIM_BITMAP_FINE || i == SIM_BITMAP_COARSE;
}

struct sim_bitmap_head {
	uint64_t table_off;
	uint32_t entries;
	uint32_t flags;
	unsigned granularity_bits;
};

/* The directory entry of bitmap @i in @pages. */
struct sim_bitmap_head sim_bitmap_head(const struct sim_image *im, const struct sim_pages *pages,
				       enum sim_bitmap i);
/* Its bit for guest offset @off. */
bool sim_bitmap_bit(const struct sim_image *im, const struct sim_pages *pages, enum sim_bitmap i,
		    uint64_t off);
/* Is it in @a, entry, table and bits, as it is in @b? */
bool sim_bitmap_is_same(const struct sim_image *im, const struct sim_pages *a,
			const struct sim_pages *b, enum sim_bitmap i);

#endif
