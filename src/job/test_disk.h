/* SPDX-License-Identifier: MIT */
/* job/test_disk.h - a disk in memory for the tests of this folder, which tells its runs in pieces
 * and answers reads in a seeded order. */
#ifndef JOB_TEST_DISK_H
#define JOB_TEST_DISK_H

#include <stdint.h>

#include "base/prng.h"
#include "blk/port.h"

enum { GRANULE = 64 << 10, GRANULES = 80, SECTOR = 512 };

struct mem {
	struct node node;               /* the first */
	struct prng *prng;
	uint8_t bytes[GRANULES * GRANULE];
	uint8_t state[GRANULES];        /* 0: nothing; 1: zero; 2: data */
	int fails_at;                   /* the granule whose reads and writes fail; -1: none */
	int fails_with;                 /* -EIO where it is 0 */
	int map_fails_at;               /* the same for maps */
	unsigned nwrites;               /* answered */
	unsigned nwriting;              /* not yet */
	uint64_t reading, reading_max;  /* bytes that are being read: now, at most */
	uint64_t nread;                 /* bytes, in all */
	/* Where it is a target: */
	uint32_t share_align;
	uint64_t order;                 /* of the last request that came with REQ_IN_ORDER */
	int share_res, copy_res;        /* < 0: sharing or copying is done by half, and fails so */
	unsigned nprobes, nshared, ncopied;     /* the last two: tries */
};

/* A disk of random content, open on the running loop. In a fiber. */
struct mem *mem_new(struct prng *prng, unsigned granules);
struct port *port_on(struct mem *m);
struct port *port_to_write_on(struct mem *m);
/* Frees both. */
void mem_free_wait(struct mem *m, struct port *port);
/* Runs fn, whose argument is a struct prng *, in a fiber of a simulated loop. */
void run(uint64_t seed, int (*fn)(void *arg));

#endif
