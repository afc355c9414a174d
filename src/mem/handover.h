/* SPDX-License-Identifier: MIT */
/* mem/handover.h - a heap that its thread uses without atomics, and that others can take over.
 *
 * A thread's heap is of two parts. The *hot* part (the magazines it works with) is its owner's
 * alone: malloc() and free() read and write it with plain instructions between handover_enter() and
 * handover_leave(). The *cold* part (slabs, bitmaps, lists of magazines) belongs to whoever holds
 * the heap's lock, and so does, for the time, the hot part to the owner in its slow path.
 *
 * To give memory back, another thread must have the hot part of heaps whose owners sleep, perhaps
 * for ever. That is Dekker's mutual exclusion, with all of its cost on the side that is rare:
 *
 *	owner, handover_enter()         taker
 *	  busy = 1                        stop = ticket       handover_stop(), for each heap
 *	  (compiler barrier)              membarrier()        handover_barrier(), once
 *	  stopped? then slow              lock
 *	  ...                             stop != ticket? the owner came by meanwhile
 *	  busy = 0    (release)           busy != 0? it is at work just now
 *	                                  ...                 the heap is the taker's
 *	                                  stop = open (release), unlock   handover_give()
 *
 * membarrier() returns when every thread of the process has passed a full barrier. If the owner
 * passes its own before it reads stop, it reads the ticket, or what was written later; if after,
 * its busy = 1 came before the barrier and is seen by the taker. So not both go on. No data depends
 * on membarrier(): what an owner wrote comes to a taker through the release of busy = 0 and the
 * acquire that reads it, the way back is the release of stop = open and the acquire in
 * handover_enter(). (That is also why ThreadSanitizer, which knows nothing of membarrier(), needs
 * no annotation here.)
 *
 * A ticket is used once. As only its taker writes it, a stop that still holds it has not been
 * written since, neither by the owner, which clears it in its slow path, nor by other takers. So
 * stop needs no lock, several takers may be under way, and all the heaps of the process cost one
 * membarrier(). No lock is held over it.
 *
 * An owner that finds stop set in its slow path has been asked: it clears it, and gives its memory
 * back by itself (handover_lock() says so). That is what becomes of a heap that was busy, and of
 * all heaps where membarrier() is forbidden: then nothing is taken from a thread that may run, and
 * memory of threads that never call malloc() again stays where it is.
 *
 * A heap without an owner (its thread has ended), and one with HANDOVER_ALWAYS, whose owner never
 * takes the fast path, are taken by the lock alone. Heaps are never unmapped, and a new thread
 * gets an old one with handover_adopt(), under the lock: a taker cannot tell, and need not.
 *
 * A thread of a signal handler that calls malloc() while it interrupts malloc() breaks this, as it
 * breaks any malloc; POSIX allows no such call.
 *
 * Invariants:
 *	H12  the hot part is used by one thread at a time: the owner between handover_enter() and
 *	     handover_leave(), or whoever holds the lock after handover_lock() or handover_take();
 *	H13  each of them sees what the ones before it wrote;
 *	H14  a heap that was stopped and could not be taken is given back by its owner in its next
 *	     operation;
 *	H15  where membarrier() fails, no heap is taken whose owner could be inside. */
#ifndef MEM_HANDOVER_H
#define MEM_HANDOVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mem/lock.h"
#include "mem/peek.h"
#include "mem/step.h"

/* In stop: the owner's fast path is closed. */
#define HANDOVER_STOPPED (1u << 31)

/* The smallest open value. Not 0: gcc compares a word in memory with 0 in two instructions. */
#define HANDOVER_OPEN_LEAST 256

/* Of a heap whose fast path is never open: every operation takes the lock. For checks that must see
 * every operation; and for heaps that can be taken where membarrier() is forbidden. */
#define HANDOVER_ALWAYS HANDOVER_STOPPED

/* Zeroed, and then handover_init(): no owner, not stopped, not locked. */
struct handover {
	/* Written by the owner, read by takers. */
	_Atomic uint32_t busy;
	/* Written by takers, and under the lock; read by the owner. @open, or the ticket of the
	 * last taker, which has HANDOVER_STOPPED. */
	_Atomic uint32_t stop;
	struct mem_lock lock;
	uint32_t open;                  /* const after handover_init() */
	bool owned;                     /* under the lock: a thread uses this heap */
};

/* A taker: one round over any number of heaps. */
struct handover_round {
	uint32_t ticket;
	bool fenced;                    /* membarrier() was done after the stops */
};

/* ---- the owner ---- */

/* Before anybody else knows @h. @open is what stop is to be when nobody wants the heap: from
 * HANDOVER_OPEN_LEAST to INT32_MAX, for handover_enter_as(); or HANDOVER_ALWAYS. */
static inline void handover_init(struct handover *h, uint32_t open)
{
	h->open = open;
	atomic_store_explicit(&h->stop, open, memory_order_relaxed);
}

/* As handover_enter(), for who compares something with the heap's @open anyway: returns that, or
 * something with HANDOVER_STOPPED, and then the owner must not go on. If it does, it calls
 * handover_entered() first. */
static inline __attribute__((always_inline)) uint32_t handover_enter_as(struct handover *h)
{
	MEM_STEP(enter_busy);
	atomic_store_explicit(&h->busy, 1, memory_order_relaxed);
	/* All that the fast path pays: the compiler keeps this order. For the processor's part see
	 * handover_barrier(), its partner. */
	atomic_signal_fence(memory_order_seq_cst);
	MEM_STEP(enter_stop);
	/* The acquire pairs with the release in handover_give(). */
	return MEM_PEEK_ACQUIRE(h->stop);
}

/* The other half of the acquire, where that is the compiler's business alone (peek.h). */
static inline __attribute__((always_inline)) void handover_entered(struct handover *h)
{
	(void)h;
	atomic_signal_fence(memory_order_acquire);
}

/* The owner begins to use the hot part. False: it must not, and calls handover_lock(). */
static inline __attribute__((always_inline)) bool handover_enter(struct handover *h)
{
	if (__builtin_expect((int32_t)handover_enter_as(h) < HANDOVER_OPEN_LEAST, 0))
		return false;
	handover_entered(h);
	return true;
}

/* The owner ends what handover_enter() began. The release pairs with the acquire in
 * handover_take(). */
static inline __attribute__((always_inline)) void handover_leave(struct handover *h)
{
	MEM_STEP(leave_busy);
	atomic_store_explicit(&h->busy, 0, memory_order_release);
}

/* The owner's slow path: ends the fast one, if it was inside, and takes the lock; both parts of the
 * heap are its own until handover_unlock(). True: somebody asked for the heap's memory, so give it
 * back first. */
bool handover_lock(struct handover *h);
void handover_unlock(struct handover *h);

/* A thread without a heap makes @h, which nobody owns, its own; false if somebody was faster.
 * handover_orphan() is called as the last thing with the lock held as by handover_lock(), and
 * releases it. */
bool handover_adopt(struct handover *h);
void handover_orphan(struct handover *h);

/* ---- takers, any thread ---- */

/* Once, best while there is one thread: what handover_barrier() needs takes the kernel 10 ms when
 * there are several. */
void handover_start(void);

/* A round: handover_begin(), handover_stop() for each heap, handover_barrier(), then for each heap
 * handover_take() and, where that gave it, handover_give(). */
void handover_begin(struct handover_round *round);

/* A plain store, without the lock: that one taker's stop is overwritten by another's, or by the
 * owner, is noticed. */
static inline void handover_stop(struct handover *h, const struct handover_round *round)
{
	MEM_STEP(stop);
	atomic_store_explicit(&h->stop, round->ticket, memory_order_relaxed);
}

/* Partner of the compiler barrier in handover_enter(). Returns 0, or -errno where membarrier() is
 * forbidden or unknown; the round goes on without it. */
int handover_barrier(struct handover_round *round);

/* True: @h is the caller's, both parts, until handover_give(). False: its owner is at work, or has
 * been by meanwhile, or cannot be kept out; unless somebody else took it meanwhile, it gives back
 * by itself. Sleeps for the lock only. */
bool handover_take(struct handover *h, const struct handover_round *round);
void handover_give(struct handover *h);

/* Only the cold part, and only if nobody has it just now. */
static inline bool handover_visit(struct handover *h)
{
	return mem_trylock(&h->lock);
}

static inline void handover_visited(struct handover *h)
{
	mem_unlock(&h->lock);
}

/* In the child of a fork, where only the caller is left: a heap of a thread that is no more, or, if
 * @mine, of the caller. Its hot part is as it was between two of its owner's stores. */
void handover_reset(struct handover *h, bool mine);

#endif
