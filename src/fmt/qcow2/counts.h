/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/counts.h - how often each cluster of a file is used, and a few marks, in little memory.
 *
 * Clusters are taken in chunks of COUNTS_CHUNK. A chunk grows with what is known of it: nothing, a
 * short list, then an array of 8, 16 or 64 bits a cluster. So an image of 16 million clusters that
 * are used once takes 16 MiB, and a file that only claims to be large takes what its
 * tables really name.
 *
 * Invariants:
 *	H1  a count never exceeds counts->max, and marks survive every change of form;
 *	H2  the chunks take COUNTS_FREE_BYTES and COUNTS_CREDIT_BYTES for each unit of credit at
 *	    most: a file that is small whatever it claims cannot make them large. */
#ifndef FMT_QCOW2_COUNTS_H
#define FMT_QCOW2_COUNTS_H

#include <stdbool.h>
#include <stdint.h>

enum {
	COUNTS_CHUNK_BITS = 12,
	COUNTS_CHUNK = 1 << COUNTS_CHUNK_BITS,
	COUNTS_FREE_BYTES = 64 << 20,
	COUNTS_CREDIT_BYTES = 32,
};

/* A cluster's value: its count, and below it these. */
enum counts_marks {
	COUNTS_COPIED = 1,              /* an active table says: referenced exactly once */
	COUNTS_NOT_COPIED = 2,          /* an active table says: referenced more often */
	COUNTS_WALKED = 4,              /* holds an L2 table that was walked */
	COUNTS_DAMAGED = 8,             /* and something was wrong with it */
	COUNTS_MARK_BITS = 4,
};

struct counts {
	uint64_t clusters;
	uint64_t max;                   /* no count goes higher */
	uintptr_t *chunks;              /* tagged pointers (counts.c), 0: all values are 0 */
	uint64_t nchunks;
	uint64_t bytes;                 /* of all chunks */
	uint64_t limit;                 /* of bytes (H2) */
};

/* 0 or -ENOMEM. A zeroed @c may be finished. */
int counts_init(struct counts *c, uint64_t clusters, uint64_t max);
void counts_fini(struct counts *c);
/* Makes room for clusters up to @clusters, with values of 0. 0 or -ENOMEM. */
int counts_grow(struct counts *c, uint64_t clusters);

/* @n entries of tables were read from the file: H2. */
static inline void counts_credit(struct counts *c, uint64_t n)
{
	c->limit += n * COUNTS_CREDIT_BYTES;
}

/* The value of @k: count << COUNTS_MARK_BITS | marks. */
uint64_t counts_value(const struct counts *c, uint64_t k);
static inline uint64_t counts_get(const struct counts *c, uint64_t k)
{
	return counts_value(c, k) >> COUNTS_MARK_BITS;
}

/* Adds @n, as far as max allows, and @marks. *@ret_over is what was above max. 0 or -ENOMEM. */
int counts_add(struct counts *c, uint64_t k, uint64_t n, unsigned marks, uint64_t *ret_over);
int counts_mark(struct counts *c, uint64_t k, unsigned marks);

/* Tag of a chunk that is an array of bytes: the one that matters for speed. */
enum { COUNTS_TAG_BYTES = 1, COUNTS_TAG_MASK = 3 };

/* Adds one where that is quick: false where it is not, and nothing was done. */
static inline bool counts_add_quick(struct counts *c, uint64_t k, unsigned marks)
{
	uintptr_t chunk = c->chunks[k >> COUNTS_CHUNK_BITS];
	uint8_t *v;

	if ((chunk & COUNTS_TAG_MASK) != COUNTS_TAG_BYTES || c->max < 15)
		return false;
	v = (uint8_t *)(chunk - COUNTS_TAG_BYTES) + (k & (COUNTS_CHUNK - 1));
	if (*v >= 0xf0)
		return false;
	*v = (uint8_t)((*v + (1U << COUNTS_MARK_BITS)) | marks);
	return true;
}

/* The chunk as an array of byte values, or NULL where it has another form. */
static inline const uint8_t *counts_bytes(const struct counts *c, uint64_t chunk)
{
	uintptr_t p = c->chunks[chunk];

	return (p & COUNTS_TAG_MASK) == COUNTS_TAG_BYTES ? (uint8_t *)(p - COUNTS_TAG_BYTES) : 0;
}

/* Is every value of the chunk 0? It may say no of one whose values are. */
static inline bool counts_is_empty(const struct counts *c, uint64_t chunk)
{
	return !c->chunks[chunk];
}

#endif
