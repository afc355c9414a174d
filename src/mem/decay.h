/* SPDX-License-Identifier: MIT */
/* mem/decay.h - giving back by itself what nobody has needed for a while.
 *
 * For the decay time D (1 s, BYRE_MALLOC_DECAY_MS):
 *
 *	free slices      as many as were dirty all the time for D / 4: the least of the low-water
 *	                 marks (pages_dirty_low()) of the last TICKS ticks;
 *	magazines        of a heap that took no slow path between two looks, D / 8 apart: it sleeps,
 *	                 or does without what is parked;
 *	pages in slabs   to which nothing has happened between two looks, D / 8 apart.
 *
 * So after D all is with the kernel that a burst has left: the magazines' objects become free
 * slices first. It is done in steps of half a millisecond, by whoever comes by a slow path when
 * one is due; or by a thread of its own, where one was asked for. A process that sleeps as a whole
 * and has no such thread keeps what it has.
 *
 * Any thread, without locks; one at a time, others go on.
 *
 * Invariants:
 *	G13  what was needed within D / 4 stays;
 *	G14  what was not needed for D goes, if there are slow paths or the thread. */
#ifndef MEM_DECAY_H
#define MEM_DECAY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mem/os.h"

/* When there is something to do, by os_now(); UINT64_MAX: never. */
extern _Atomic uint64_t decay_due __attribute__((visibility("hidden")));

/* Something is under way, so whoever can should look whether it is due: a hint. */
extern _Atomic bool decay_goes_on __attribute__((visibility("hidden")));

/* Does a step that is due. */
void decay_step(void);

/* On slow paths, with no lock. */
static inline void decay_poll(void)
{
	if (os_now() >= atomic_load_explicit(&decay_due, memory_order_relaxed))
		decay_step();
}

/* The decay time; 0: nothing goes back by itself. */
void decay_set(unsigned milliseconds);

/* Starts or stops the thread. 0 or -errno. */
int decay_background(bool on);

/* In the child of a fork, which has no thread. */
void decay_reset(void);

#endif
