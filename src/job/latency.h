/* SPDX-License-Identifier: MIT */
/* job/latency.h - how long requests took: counts by time, in 64 steps to each power of two, so
 * that a percentile is at most 1.6 % above what it was. Pure. */
#ifndef JOB_LATENCY_H
#define JOB_LATENCY_H

#include <stdint.h>

enum { LATENCY_STEPS_LOG = 6, LATENCY_STEPS = 1 << LATENCY_STEPS_LOG };

struct latency {
	uint64_t total;
	uint64_t most_ns;
	uint64_t counts[64 - LATENCY_STEPS_LOG + 1][LATENCY_STEPS];
};

void latency_add(struct latency *l, uint64_t ns);
/* What @per_mille of all that was added did not exceed; 0 where nothing was. */
uint64_t latency_at(const struct latency *l, unsigned per_mille);

#endif
