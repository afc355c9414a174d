/* SPDX-License-Identifier: MIT */
/* job/compare.h - have two disks the same content?
 *
 * Both are mapped; what is zero in both is not read, and what is zero in one is read in the other
 * alone. Reads are cut into pieces, several of which are under way, and looked at in order. Disks
 * may differ in size: behind the end of the shorter one the longer must be zero.
 *
 * A *chunk* is what the result speaks of, as with qemu-img: a stretch in which neither disk's
 * state changes, of at most COMPARE_CHUNK_BYTES where it has to be read. A chunk in which a read
 * fails has failed as a whole, wherever else it differs.
 *
 * Invariants:
 *	D2  the answer is that of the first chunk that has one: pieces end in any order, and are
 *	    judged in theirs;
 *	D3  no buffer is used before both answers into it are there. */
#ifndef JOB_COMPARE_H
#define JOB_COMPARE_H

#include <stdbool.h>
#include <stdint.h>

struct port_chan;

enum { COMPARE_CHUNK_BYTES = 2 << 20, COMPARE_PIECE_BYTES = 512 << 10, COMPARE_PIECES = 4 };

enum compare_verdict {
	COMPARE_SAME,
	COMPARE_DIFFERS,                /* at `off`: a multiple of 512 behind its chunk's start */
	COMPARE_STATUS_DIFFERS,         /* strict: what is stored at `off` is not alike */
	COMPARE_MAP_FAILED,             /* of disk `which` */
	COMPARE_READ_FAILED,            /* of disk `which`, in the chunk at `off` */
};

struct compare_result {
	enum compare_verdict verdict;
	uint64_t off;
	unsigned which;                 /* 0 or 1 */
	int error;                      /* -errno */
};

struct compare_opts {
	struct port_chan *pc[2];        /* borrowed; of one loop */
	bool is_strict;                 /* the same state everywhere, too */
	/* Optional. Called where the shorter disk has ended and the longer goes on. */
	void (*on_longer)(void *arg);
	/* Optional. All below @done is the same. */
	void (*on_progress)(void *arg, uint64_t done, uint64_t total);
	void *arg;
};

/* In a fiber of the ports' loop. 0 and a result, or -ENOMEM. */
int compare_run_wait(const struct compare_opts *o, struct compare_result *ret);

/* The first 512-byte sector of @a that is not the same in @b, or not zero where @b is NULL: its
 * offset, or @len. Pure. */
uint64_t compare_bytes(const uint8_t *a, const uint8_t *b, uint64_t len);

#endif
