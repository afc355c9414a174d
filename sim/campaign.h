/* SPDX-License-Identifier: MIT */
/* sim/campaign.h - many traces, many power cuts in each, until one leaves what must not be. */
#ifndef SIM_CAMPAIGN_H
#define SIM_CAMPAIGN_H

#include "sim/oracle.h"

struct campaign {
	uint64_t first_seed, step;      /* seeds: first, first + step, ... */
	unsigned traces;
	unsigned images;                /* power cuts a trace */
	unsigned reopen_every;          /* one of so many is also written on; 0: none */
	unsigned fewer_leaks;           /* are allowed than may be */
	/* Optional: changes what the seed says. */
	void (*change)(struct trace_opts *o, uint64_t seed);

	/* Results. */
	unsigned ran;
	uint64_t struck;                /* requests that failed as they were told to */
	uint64_t judged, reopened, events, leaked, most_leaks;
	bool has_failed;
	uint64_t seed;                  /* of the trace that failed */
	uint32_t k;                     /* and the event, */
	uint64_t fate;                  /* and the fate */
	char why[2048];
};

/* Stops at the first violation. True: there is none. */
bool campaign_run(struct campaign *c);
/* Runs the one case again, and prints it. */
void campaign_show(const struct campaign *c, uint64_t seed, uint32_t k, uint64_t fate);

#endif
