/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/write.h - requests that change the image: between write.c and zero.c. Home loop. */
#ifndef FMT_QCOW2_WRITE_H
#define FMT_QCOW2_WRITE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/units.h"
#include "loop/fiber.h"

struct req;
struct writer;

enum {
	WRITE_PARTS_MAX = 8,            /* of one request under way */
	WRITE_GATE = 64,                /* requests that are served */
	WRITE_COMMIT_GATE = 256,        /* requests that share a commit */
};

struct writes {
	/* Any loop reads it: what must come before the first write is done. Set with release, so
	 * that a write in place comes after it. */
	atomic_bool may_write;
	struct fiber_gate gate, commit_gate;
	uint64_t nin_order;             /* tests: requests in order (X5) that came */
};

void writes_init(struct writes *ws);

/* In a fiber. Writes the data of @req to its place of the guest; nothing else of it is looked at
 * but FUA, for a hint. 0 or the first error, when nothing of it is under way any more (X3). */
int write_range_wait(struct writer *w, const struct req *req);
/* In a fiber: what must be so before anything is written. Returns at once where it is. */
int write_begin_wait(struct writer *w);
/* The L2 entry of guest offset @off cannot be: nothing is changed any more. Returns -EUCLEAN. */
int write_corrupt(struct writer *w, struct l2_pair pair, uint64_t off);
/* Waits for a commit where far too many pages are dirty. */
int write_throttle_wait(struct writer *w);

/* On the home loop: answers @req, which came from any. */
void write_answer(struct req *req, int res);

/* ---- zero.c ---- */

/* In a fiber: the range reads as zeros; @flags of enum req_flags. */
int zero_range_wait(struct writer *w, uint64_t off, uint64_t len, unsigned flags);
/* In a fiber: frees the whole clusters of the range. */
int discard_range_wait(struct writer *w, uint64_t off, uint64_t len);

#endif
