/* SPDX-License-Identifier: MIT */
#include "job/latency.h"

#include "base/bits.h"

/* Times below LATENCY_STEPS are a row of their own, exact; each row after it is a power of two. */
static unsigned row_of(uint64_t ns)
{
	return ns < LATENCY_STEPS ? 0 : log2_floor(ns) - LATENCY_STEPS_LOG + 1;
}

static unsigned step_of(uint64_t ns, unsigned row)
{
	return (unsigned)(row ? ns >> (row - 1) : ns) & (LATENCY_STEPS - 1);
}

/* The longest time that counts there. */
static uint64_t end_of(unsigned row, unsigned step)
{
	return row ? (((uint64_t)LATENCY_STEPS + step + 1) << (row - 1)) - 1 : step;
}

void latency_add(struct latency *l, uint64_t ns)
{
	unsigned row = row_of(ns);

	l->counts[row][step_of(ns, row)]++;
	l->total++;
	l->most_ns = MAX(l->most_ns, ns);
}

uint64_t latency_at(const struct latency *l, unsigned per_mille)
{
	uint64_t want = l->total / 1000 * per_mille + l->total % 1000 * per_mille / 1000;
	uint64_t seen = 0;

	for (unsigned row = 0; row < ARRAY_SIZE(l->counts); row++)
		for (unsigned step = 0; step < LATENCY_STEPS; step++) {
			seen += l->counts[row][step];
			if (seen > want)
				return MIN(end_of(row, step), l->most_ns);
		}
	return l->most_ns;
}
