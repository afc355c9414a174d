/* SPDX-License-Identifier: MIT */
/* mem/sweep.h - giving back: what is free, slice by slice, in the order of addresses.
 *
 * A sweep goes along the map and gathers a *batch* of what costs memory and is free: dirty slices,
 * which it takes from the pages like a run of its own; and pages in slabs on which nothing is in
 * use, whose slab it takes out of its heap's list. Then, with no lock held, all goes back to the
 * kernel in one call (os_drop_all()): neighbours are one range by then, whoever had them. Then it
 * returns what it took. Meanwhile others allocate from what is left, and free whatever they
 * like: no thread waits for a sweep, but for the time that it takes to look at one slab or run.
 *
 * A batch is one of a few that lie ready, since nothing can be allocated here and stacks are small.
 * Who finds all of them in use goes without: then that many others are at it.
 *
 * Any thread, without locks.
 *
 * Invariants:
 *	G11  what a sweep holds is noted in its batch, and the note is written and wiped under the
 *	     lock of what it is about: a fork, which has all locks, finds it, and nothing is lost
 *	     in the child;
 *	G12  a sweep gives back no more than its budget and what one slab or slice has beyond it. */
#ifndef MEM_SWEEP_H
#define MEM_SWEEP_H

#include <stddef.h>
#include <stdint.h>

enum {
	SWEEP_SLICES = 1,               /* free slices */
	SWEEP_SLABS = 2,                /* pages in slabs */
	SWEEP_COLD = 4,                 /* but of slabs only those nothing happened to lately */
};

/* Goes on from slice *@at, up to @end or pages_end, until @budget bytes have gone or @steps slabs
 * and runs were looked at. Returns how many bytes went; *@at is where to go on. */
size_t sweep(unsigned what, size_t *at, size_t end, size_t budget, size_t steps);

/* Once through all slices, beginning where the last such round has ended. */
size_t sweep_round(unsigned what, size_t budget);

/* In the child of a fork: returns what the parent's other threads had taken. All locks are free. */
void sweep_reset(void);

#endif
