/* SPDX-License-Identifier: MIT */
/* sim/oracle.h - may an image be what a power cut left of it?
 *
 *	- it opens; the check finds neither corruption nor anything that it cannot look at, unless
 *	  the image says that its refcounts are not right (the dirty bit);
 *	- it leaks no more than what was reserved, taken or freed and not yet accounted for;
 *	- every sector that was flushed has that content or a later one, every other an old
 *	  or a new one, never anything else; a snapshot has what it always had;
 *	- a bitmap that is not marked has a bit for everything that is not as it was; after a
 *	  clean close exactly for that which was changed;
 *	- what nobody knows is still there, or cleared, as the format says;
 *	- opened for writing and closed again it has no leak, and no mark; the file is no longer
 *	  than it was, or ends with the last cluster in use. */
#ifndef SIM_ORACLE_H
#define SIM_ORACLE_H

#include "sim/crash.h"
#include "sim/trace.h"

struct oracle {
	struct world w;
	uint8_t *buf;
	unsigned fewer;                 /* leaks than may be are allowed: as if there were more */
	/* Of the last image. */
	char why[1024];
	bool is_dirty;
	uint64_t leaks, leaks_max;
	/* Of all. */
	uint64_t images, reopened, leaked, most_leaks;
};

void oracle_init(struct oracle *o, uint64_t seed);
void oracle_fini(struct oracle *o);

/* Judges @pages, of @size bytes, after a power cut at event @k of @t. False: o->why. */
bool oracle_judge(struct oracle *o, struct trace *t, struct sim_pages *pages, uint64_t size,
		  uint32_t k);
/* The same after a clean close: no leak, no mark, all that was done is there. */
bool oracle_judge_closed(struct oracle *o, struct trace *t);
/* Opens @pages for writing, writes a little, closes, and judges what is left. Changes @pages. */
bool oracle_reopen(struct oracle *o, struct trace *t, struct sim_pages *pages, uint64_t size,
		   uint32_t k, uint64_t seed);

#endif
