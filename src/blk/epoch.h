/* SPDX-License-Identifier: MIT */
/* blk/epoch.h - have all requests ended that had begun before now? One epoch a process.
 *
 * Who takes something away that requests may be using (a cluster, a node) first makes it
 * unreachable for new requests, then waits here, then reuses it. Requests count at their port, in
 * (loop, epoch) (P1). To advance, every loop that has a port open gets a message, counts new
 * requests in the other epoch from then on, and answers when its count of the old one is zero. One
 * advance runs at a time; who comes meanwhile shares the next.
 *
 * Two counters a loop are enough: an advance begins when all loops have answered the one before,
 * so whatever is in flight at a loop when the message comes is in its present epoch.
 *
 * Invariants:
 *	P4  a request that had entered any port before epoch_wait() was called has ended when it
 *	    returns: its done() has been called;
 *	P5  a request is counted down on the loop, and in the epoch, in which it was counted up. */
#ifndef BLK_EPOCH_H
#define BLK_EPOCH_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "loop/fiber.h"
#include "loop/loop.h"

/* In a fiber of any loop. Must not be called on behalf of a request that a port has counted: it
 * would wait for itself. */
void epoch_wait(void);

/* ---- for port.c ---- */

/* What one loop counts. Its own thread's, but for what the lock in epoch.c keeps. */
struct epoch_loop {
	unsigned count[2];              /* requests in flight, by epoch */
	uint8_t now;                    /* new requests count here */
	bool owes_answer;               /* once count[!now] is zero */
	unsigned nports;                /* open ones */
	struct loop *loop;
	struct task task;               /* the message, then the answer */
	struct fiber_queue closing;     /* fibers that wait for the answer to have been given */
	struct list_node link;          /* locked: of all loops with a port open */
	bool is_asked;                  /* locked: the message is under way, or not answered yet */
} __attribute__((aligned(64)));         /* a cache line of its own: others count beside it */

/* A port opens on the current loop, or closes with nothing of it in flight: in a fiber. */
struct epoch_loop *epoch_open(void);
void epoch_close_wait(struct epoch_loop *el);

void epoch_answer_later(struct epoch_loop *el);

/* Counts a request up; returns the epoch to count it down in. */
static inline uint8_t epoch_enter(struct epoch_loop *el)
{
	el->count[el->now]++;
	return el->now;
}

static inline void epoch_leave(struct epoch_loop *el, uint8_t epoch)
{
	assert(el->count[epoch] > 0);
	if (!--el->count[epoch] && el->owes_answer && epoch != el->now)
		epoch_answer_later(el);
}

/* ---- for tests ---- */

/* Loops answer at once, whatever is in flight: what P4 forbids. Nothing is in flight now, or when
 * it is set back. */
void epoch_break(bool is_broken);

#endif
