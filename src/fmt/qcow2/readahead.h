/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/readahead.h - tables of one size read in order, several at a time.
 *
 * The reader says what it will want (readahead_push) and takes it in the same order
 * (readahead_pop_wait). What lies behind the end of the file is not read: it is zeros.
 *
 * One fiber's; it ends with readahead_fini_wait(), whatever is under way. */
#ifndef FMT_QCOW2_READAHEAD_H
#define FMT_QCOW2_READAHEAD_H

#include "blk/blk.h"

enum { READAHEAD_MAX = 64, READAHEAD_BYTES = 4 << 20 };

struct readahead;

struct readahead_slot {
	struct req req;
	struct iovec iov;
	struct readahead *ra;
	bool is_done;
	int res;
};

struct readahead {
	struct chan *ch;
	uint64_t end;                   /* of the file */
	size_t bytes;                   /* of a table */
	unsigned depth;
	unsigned first, count;          /* the ring: pushed, not yet popped */
	uint8_t *bufs;
	struct readahead_slot *slots;   /* depth + 1: one is what was popped last */
	struct fiber *waiter;
};

/* 0 or -ENOMEM. */
int readahead_init(struct readahead *ra, struct chan *ch, uint64_t end, size_t bytes);
/* A zeroed @ra is fine. */
void readahead_fini_wait(struct readahead *ra);

static inline bool readahead_has_room(const struct readahead *ra)
{
	return ra->count < ra->depth;
}

/* There is room. @off + bytes is at most INT64_MAX. */
void readahead_push(struct readahead *ra, uint64_t off);
/* The oldest: *@ret is valid until the next pop; NULL: all zeros. 0 or -errno. */
int readahead_pop_wait(struct readahead *ra, const uint8_t **ret);

#endif
