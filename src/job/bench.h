/* SPDX-License-Identifier: MIT */
/* job/bench.h - many requests of one size, one after the other through the disk, so many of them
 * under way: what is measured with.
 *
 * Invariants:
 *	J1  exactly `count` reads or writes are sent, never more than `depth` at a time, each a step
 *	    behind the one before, wrapped at the disk's size; or with `random` anywhere within it,
 *	    at multiples of the length;
 *	J2  with `drain` no request is under way while a flush is, and none is sent before it is
 *	    done. */
#ifndef JOB_BENCH_H
#define JOB_BENCH_H

#include <stdbool.h>
#include <stdint.h>

struct latency;
struct port_chan;

struct bench_opts {
	uint64_t count;                 /* at least 1 */
	uint64_t depth;                 /* at least 1 */
	uint64_t off;                   /* of the first request */
	uint64_t len;                   /* of each; at least 1 */
	uint64_t step;
	bool random;                    /* offsets from @seed, instead of @off and @step */
	uint64_t seed;
	struct latency *latency;        /* of each read or write, with the time as the loop sees it,
					 * once a turn; borrowed; NULL: nobody asks */
	bool writes;
	uint8_t pattern;                /* what is written */
	/* Writes: a flush is sent whenever the number of those still to be done is a multiple of
	 * this; 0: never. Not less than the depth. */
	uint64_t flush_interval;
	bool drain;
};

/* In a fiber of pc->loop. 0 and *@ret_ns, the time from the first request to the last answer; or
 * the first error, after what was under way has ended: -EIO for what is not within the disk,
 * -ENOMEM where there is no memory for so many buffers. */
int bench_run_wait(struct port_chan *pc, const struct bench_opts *o, uint64_t *ret_ns);

#endif
