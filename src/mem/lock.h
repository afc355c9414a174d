/* SPDX-License-Identifier: MIT */
/* mem/lock.h - a lock of four bytes, zero when free, that sleeps in the kernel only when it must.
 *
 * A pthread mutex would do, but is 40 bytes, and what a fork leaves in the child's copy of one that
 * somebody held is undefined; here it is a word that mem_lock_init() sets to 0. Not recursive, not
 * fair. errno is left as it was: free() takes locks.
 *
 * Invariants:
 *	H11  whoever unlocks a lock that others sleep on wakes one: no sleeper is forgotten. */
#ifndef MEM_LOCK_H
#define MEM_LOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mem/step.h"

/* A test compiles these files again with this, to see what is called with a lock held. */
#ifdef MEM_LOCK_COUNT
extern __thread int mem_locks_held;
#define MEM_LOCKS_HELD(by) (mem_locks_held += (by))
#else
#define MEM_LOCKS_HELD(by) ((void)0)
#endif

struct mem_lock {
	_Atomic uint32_t state;         /* 0 free, 1 held, 2 held and somebody may sleep on it */
};

/* The halves that are rarely needed. */
void mem_lock_wait(struct mem_lock *l);
void mem_lock_wake(struct mem_lock *l);

static inline void mem_lock_init(struct mem_lock *l)
{
	atomic_store_explicit(&l->state, 0, memory_order_relaxed);
}

/* The acquire pairs with the release in mem_unlock(). */
static inline bool mem_trylock(struct mem_lock *l)
{
	uint32_t expected = 0;

	MEM_STEP(lock);
	if (!atomic_compare_exchange_strong_explicit(&l->state, &expected, 1,
			memory_order_acquire, memory_order_relaxed))
		return false;
	MEM_LOCKS_HELD(1);
	return true;
}

static inline void mem_lock(struct mem_lock *l)
{
	if (!mem_trylock(l))
		mem_lock_wait(l);
}

static inline void mem_unlock(struct mem_lock *l)
{
	MEM_STEP(unlock);
	MEM_LOCKS_HELD(-1);
	if (atomic_exchange_explicit(&l->state, 0, memory_order_release) == 2)
		mem_lock_wake(l);
}

/* For assertions: somebody holds it. */
static inline bool mem_lock_held(const struct mem_lock *l)
{
	return atomic_load_explicit(&l->state, memory_order_relaxed) != 0;
}

#endif
