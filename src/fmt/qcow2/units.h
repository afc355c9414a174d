/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/units.h - what an L2 table says of one cluster, unit by unit. Pure.
 *
 * A unit is what can be mapped by itself: with extended L2 entries a subcluster, of which a cluster
 * has 32; else the cluster. The writer knows only units. It asks which of them are data, zeros or
 * nowhere, decides what they shall be, and has the entry made of that.
 *
 * With extended L2 entries that is a *pair*: the entry names a host cluster, the bitmap says which
 * subclusters lie there and which read as zeros. A write to a cluster that the image owns, but to
 * a subcluster that does not lie there yet, goes in place and then sets the subcluster's bit.
 *
 * Invariants:
 *	U11 the words of a pair change together. A reader without locks sees both or none, as
 *	    both are stored under one version of their slice (C1 of cache.h); a page changes by
 *	    one record (meta.h); on disk a pair lies within one sector, so that no torn write
 *	    parts it;
 *	U12 what a write makes of a cluster: the units that it touches become data and no other
 *	    does, but for those that move along because the cluster gets a new place; bits of
 *	    zeros stay where it does not touch them. */
#ifndef FMT_QCOW2_UNITS_H
#define FMT_QCOW2_UNITS_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/image.h"

struct l2_pair {
	uint64_t entry;
	uint64_t bitmap;                /* 0 without extended L2 entries */
};

/* Bit i of a mask is unit i; without extended L2 entries there is only unit 0. */
struct units {
	struct l2_pair pair;            /* what says so */
	uint64_t host;                  /* the cluster's place in the file, where has_host */
	bool has_host;
	bool is_own;                    /* and it may be written to: nothing shares it */
	bool is_compressed;             /* all units are data, elsewhere */
	bool is_bad;                    /* it cannot be (EXT_CORRUPT) */
	uint32_t data, zero;            /* the rest is nowhere: the backing file's */
};

/* What @pair says of the cluster at @guest; not of one that is pending. */
struct units units_of(const struct qcow2 *q, struct l2_pair pair, uint64_t guest);

/* Units @first to @end - 1. */
static inline uint32_t units_range(unsigned first, unsigned end)
{
	return (uint32_t)((1ULL << end) - (1ULL << first));
}

/* All units of a cluster. */
static inline uint32_t units_all(const struct qcow2 *q)
{
	return units_range(0, 1U << (q->cluster_bits - q->unit_bits));
}

/* Those that have bytes of [@lo, @hi) of a cluster. */
static inline uint32_t units_touched(const struct qcow2 *q, uint64_t lo, uint64_t hi)
{
	assert(lo < hi && hi <= 1ULL << q->cluster_bits);
	return units_range((unsigned)(lo >> q->unit_bits),
			   (unsigned)((hi - 1) >> q->unit_bits) + 1);
}

/* Where the units end that are as the one at byte @lo of a cluster is in both @a and @b. */
uint64_t units_alike_end(const struct qcow2 *q, uint32_t a, uint32_t b, uint64_t lo);

/* A write touches @touched: these and what is data already will be data (U12). Which of them are to
 * be filled with the old content where it does not cover them? All but what is in place. */
static inline uint32_t units_to_fill(const struct units *u, uint32_t touched)
{
	return u->is_own ? touched & ~u->data : touched | u->data;
}

/* The pair that says @data and @zero (they have no unit in common) of a cluster at @host, an offset
 * with or without QCOW2_COPIED; or 0. */
struct l2_pair units_pair(const struct qcow2 *q, uint64_t host, uint32_t data, uint32_t zero);

static inline bool l2_pair_is(struct l2_pair a, struct l2_pair b)
{
	return a.entry == b.entry && a.bitmap == b.bitmap;
}

#endif
