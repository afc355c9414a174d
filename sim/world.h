/* SPDX-License-Identifier: MIT */
/* sim/world.h - simulated loops and what they wait for, driven by one thread in an order that a
 * seed decides.
 *
 * Disks (disk.h) put their requests into the world's queue. The world turns its loops one after the
 * other; where these have nothing to do, or now and then all the same, one request of the queue
 * goes a step further. Which one, the seed says: any, the oldest, or mostly the newest, so
 * that others starve. Time passes only when nothing else can happen. */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include "base/list.h"
#include "base/prng.h"
#include "loop/loop.h"

enum { WORLD_LOOPS_MAX = 2 };

enum world_order { WORLD_ANY, WORLD_OLDEST, WORLD_NEWEST, WORLD_ORDERS };

struct world_item {
	struct list_node link;
	/* Goes a step further. True: that was the last, the item is the caller's again. */
	bool (*step)(struct world_item *it);
};

struct world {
	struct loop *loops[WORLD_LOOPS_MAX];
	unsigned nloops;
	struct prng prng;
	enum world_order order;
	struct list_node queue;         /* struct world_item, oldest first */
	unsigned nqueued;
};

void world_init(struct world *w, unsigned nloops, uint64_t seed);
void world_fini(struct world *w);

void world_add(struct world *w, struct world_item *it);

/* Runs fn(arg) in a fiber of loop @i until it has returned. -EDEADLK: it waits for something
 * that will never happen; the world cannot be used any more, not even world_fini(). */
int world_call(struct world *w, unsigned i, int (*fn)(void *arg), void *arg);
/* In a fiber: runs it in a fiber of loop @i, and does not wait. @t is the caller's till fn runs. */
void world_start(struct world *w, unsigned i, struct task *t);

#endif
