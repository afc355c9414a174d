/* SPDX-License-Identifier: MIT */
/* job/map.h - where a disk has what, run after run, from one end to the other.
 *
 * A cursor asks the graph for one run at a time (REQ_MAP). map_walk_wait() puts together those that
 * belong together, which makes the answer one of the image alone: in how many pieces the drivers
 * told it does not show.
 *
 * Invariants:
 *	D1  the runs of a walk are one behind the other, without a gap, and no two neighbours could
 *	    be one. */
#ifndef JOB_MAP_H
#define JOB_MAP_H

#include "blk/blk.h"

struct fiber;
struct port_chan;

struct map_cursor {
	struct port_chan *pc;           /* borrowed */
	uint64_t off;                   /* of the run that comes next */
	uint64_t end;
	struct req req;
	struct fiber *waiter;
	bool is_done;
	int res;
};

/* @end is at most the disk's size, and not below @off. */
void map_cursor_init(struct map_cursor *c, struct port_chan *pc, uint64_t off, uint64_t end);
/* In a fiber of pc->loop; c->off is below c->end. The run at c->off, which moves behind it. */
int map_next_wait(struct map_cursor *c, struct map_run *ret);

/* Is @b, which comes behind @a, more of the same? */
bool map_is_more(const struct map_run *a, const struct map_run *b);

/* Takes the run at @start. @is_last: none follows. 0, or what the walk is to end with. */
typedef int (*map_take_fn)(void *arg, uint64_t start, const struct map_run *run, bool is_last);

/* In a fiber of pc->loop: hands out the runs of [@off, @end). An error of the graph ends the walk
 * at once: the run before it, which might go on, is not handed out. An empty range has one run
 * of no length. 0, -errno of the graph, or what @take returned. */
int map_walk_wait(struct port_chan *pc, uint64_t off, uint64_t end, map_take_fn take, void *arg);

#endif
