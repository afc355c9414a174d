/* SPDX-License-Identifier: MIT */
/* sim/pages.h - the bytes of a simulated medium, sparse: what was never written takes no memory.
 *
 * Pages may lie over others (`below`): then they hold what differs, and what is written is copied
 * first. Never-written bytes are zeros, or garbage that follows from a seed. */
#ifndef SIM_PAGES_H
#define SIM_PAGES_H

#include <stdbool.h>
#include <stdint.h>

enum { SIM_PAGE = 4096, SIM_SECTOR = 512, SIM_PAGE_SECTORS = SIM_PAGE / SIM_SECTOR };

struct sim_page {
	uint64_t number;                /* of the page: offset / SIM_PAGE */
	struct sim_page *next;          /* of its bucket, or of the free ones */
	uint32_t seq[SIM_PAGE_SECTORS]; /* crash.c: how new each sector is */
	uint8_t bytes[SIM_PAGE];
};

struct sim_pages {
	const struct sim_pages *below;  /* borrowed; or NULL */
	uint64_t garbage;               /* seed of what was never written; 0: zeros */
	struct sim_page **buckets;
	struct sim_page **all;          /* those in use */
	struct sim_page *free;
	unsigned nbuckets, n, room;
};

void sim_pages_init(struct sim_pages *p, const struct sim_pages *below, uint64_t garbage);
void sim_pages_fini(struct sim_pages *p);
/* Forgets all that was written. */
void sim_pages_clear(struct sim_pages *p);
/* Adds what @from holds itself, which is empty space here. */
void sim_pages_copy(struct sim_pages *p, const struct sim_pages *from);

/* The page as it is, or NULL where neither this nor what is below has it. */
const struct sim_page *sim_pages_find(const struct sim_pages *p, uint64_t number);
/* The page, to be changed. */
struct sim_page *sim_pages_get(struct sim_pages *p, uint64_t number);

void sim_pages_read(const struct sim_pages *p, uint64_t off, void *buf, uint64_t len);
void sim_pages_write(struct sim_pages *p, uint64_t off, const void *buf, uint64_t len);
/* @garbage 0: zeros. */
void sim_pages_fill(struct sim_pages *p, uint64_t off, uint64_t len, uint64_t garbage);

/* What was never written: part of sector @sector. */
void sim_garbage(uint64_t seed, uint64_t off, void *buf, uint64_t len);

#endif
