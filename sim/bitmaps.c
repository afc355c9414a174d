/* SPDX-License-Identifier: MIT */
#include "sim/bitmaps.h"

#include <string.h>

#include "fmt/qcow2/format.h"

static uint64_t entry_off(const struct sim_image *im, enum sim_bitmap i)
{
	return im->bitmaps_off + (uint64_t)i * SIM_BITMAP_ENTRY_BYTES;
}

struct sim_bitmap_head sim_bitmap_head(const struct sim_image *im, const struct sim_pages *pages,
				       enum sim_bitmap i)
{
	uint8_t e[SIM_BITMAP_ENTRY_BYTES];

	sim_pages_read(pages, entry_off(im, i), e, sizeof(e));
	return (struct sim_bitmap_head){
		.table_off = be64_load(e), .entries = be32_load(e + 8), .flags = be32_load(e + 12),
		.granularity_bits = e[17],
	};
}

static uint64_t table_entry(const struct sim_pages *pages, const struct sim_bitmap_head *h,
			    uint64_t at)
{
	uint8_t e[8];

	sim_pages_read(pages, h->table_off + at * 8, e, sizeof(e));
	return be64_load(e);
}

bool sim_bitmap_bit(const struct sim_image *im, const struct sim_pages *pages, enum sim_bitmap i,
		    uint64_t off)
{
	struct sim_bitmap_head h = sim_bitmap_head(im, pages, i);
	uint64_t bit = off >> h.granularity_bits, in = bit % (im->cluster * 8), e;
	uint8_t byte;

	if (bit / (im->cluster * 8) >= h.entries)
		return false;
	e = table_entry(pages, &h, bit / (im->cluster * 8));
	if (!(e & QCOW2_OFFSET_MASK))
		return e & 1;
	sim_pages_read(pages, (e & QCOW2_OFFSET_MASK) + in / 8, &byte, 1);
	return byte >> in % 8 & 1;
}

static bool is_same(const struct sim_pages *a, const struct sim_pages *b, uint64_t off,
		    uint64_t len)
{
	uint8_t x[SIM_SECTOR], y[SIM_SECTOR];

	for (uint64_t at = 0; at < len; at += SIM_SECTOR) {
		uint64_t n = MIN((uint64_t)SIM_SECTOR, len - at);

		sim_pages_read(a, off + at, x, n);
		sim_pages_read(b, off + at, y, n);
		if (memcmp(x, y, n))
			return false;
	}
	return true;
}

bool sim_bitmap_is_same(const struct sim_image *im, const struct sim_pages *a,
			const struct sim_pages *b, enum sim_bitmap i)
{
	struct sim_bitmap_head h = sim_bitmap_head(im, a, i);

	if (!is_same(a, b, entry_off(im, i), SIM_BITMAP_ENTRY_BYTES) ||
	    !is_same(a, b, h.table_off, 8ULL * h.entries))
		return false;
	for (uint32_t n = 0; n < h.entries; n++) {
		uint64_t off = table_entry(a, &h, n) & QCOW2_OFFSET_MASK;

		if (off && !is_same(a, b, off, im->cluster))
			return false;
	}
	return true;
}
