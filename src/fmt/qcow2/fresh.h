/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/fresh.h - subclusters that were never written, in clusters that the image owns. Home
 * loop.
 *
 * A cluster that was fresh (alloc.h) when it was taken reads as zeros where nobody has written.
 * With extended L2 entries the first write takes some of its subclusters only; when a later one
 * takes more, that may be mapped as a fresh cluster is: before it is written, and without a sync in
 * between. So what is left is noted here: in a table of fixed size, where a note may take the place
 * of another one. What is not noted is taken for written.
 *
 * Invariants:
 *	U13 a unit that is noted reads as zeros, whatever a crash does: nothing was sent there
 *	    since its cluster was fresh. Whoever maps a cluster's new place notes it or has it
 *	    forgotten; so no note outlives its cluster's being freed. */
#ifndef FMT_QCOW2_FRESH_H
#define FMT_QCOW2_FRESH_H

#include <stdint.h>

enum { FRESH_NOTES = 1 << 14 };

struct fresh_note;

/* Zeroed: nothing is noted. */
struct fresh {
	struct fresh_note *notes;       /* FRESH_NOTES; owned. NULL: not needed yet, or no memory */
};

void fresh_fini(struct fresh *f);

/* Of @cluster, a number, just @units were never written. */
void fresh_set(struct fresh *f, uint64_t cluster, uint32_t units);
/* @units of it are going to be, or may have been. */
void fresh_written(struct fresh *f, uint64_t cluster, uint32_t units);
/* Which were not? */
uint32_t fresh_units(const struct fresh *f, uint64_t cluster);

#endif
