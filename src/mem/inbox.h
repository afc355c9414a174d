/* SPDX-License-Identifier: MIT */
/* mem/inbox.h - magazines, and how they go from the thread that frees to the heap that owns.
 *
 * A magazine is a block of 512 bytes, 512-aligned: a link word and 63 pointers to objects of one
 * class and one heap. A thread gathers what it frees for another heap in such magazines and sends
 * each with one compare-and-swap; the heap takes all that has come with one exchange and uses the
 * magazines as they are. So 63 objects cost one atomic operation on either side, nobody walks
 * chains through the objects' memory, and nobody waits.
 *
 * The inbox is a stack from which only everything is taken. So it does not suffer from ABA: a
 * sender that sees the head it expects links to the very magazine that is on top now, whatever
 * happened in between. Its head also counts, in one word with the pointer, roughly how many bytes
 * have come since the last take; every sender learns the sum from its own exchange, and none is
 * counted twice or forgotten. A sender that finds it too large looks after the heap itself, if its
 * lock is free (handover_visit(); the inbox may be taken by anybody, the lock is for where the
 * objects then go). Whoever holds the lock takes all that is there; what comes later meets the
 * next sender. So an idle or dead owner's inbox holds about the limit and a magazine for each
 * sender at most.
 *
 * An inbox belongs to a heap, not to a thread: heaps are never unmapped and keep their number, and
 * an object's memory stays with its heap as long as the object is anywhere but in a bitmap. A
 * magazine for a heap whose thread has ended is as good as any; the next thread will have it.
 *
 * Invariants:
 *	I11  a magazine is in one place: with one thread, in one inbox, in one heap, or empty;
 *	I12  whoever takes a magazine sees what the sender wrote to it, and all that any thread did
 *	     with its objects before it freed them;
 *	I13  an inbox's sum is that of the magazines in it, rounded up each, and stops at the most
 *	     that the word can hold. */
#ifndef MEM_INBOX_H
#define MEM_INBOX_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/step.h"

enum {
	MAGAZINE_BYTES = 512,
	MAGAZINE_OBJECTS = 63,
	/* A link or head word: address / 512 below, then what else is to be kept. User addresses
	 * have 48 bits at most unless a program asks for more by name. */
	MAGAZINE_ADDRESS_BITS = 39,
	MAGAZINE_COUNT_BITS = 6,
	INBOX_UNIT = 256,               /* what the sum counts */
};

struct magazine {
	uint64_t link;                  /* next, count, class: see magazine_link() */
	void *object[MAGAZINE_OBJECTS];
};

/* Zeroed: empty. */
struct inbox {
	/* Any thread adds, any thread takes all. The release in inbox_post() pairs with the
	 * acquire in inbox_take(). */
	_Atomic uint64_t head;          /* sum << MAGAZINE_ADDRESS_BITS | newest / 512 */
};

static inline uint64_t magazine_word(const struct magazine *m, uint64_t above)
{
	return above << MAGAZINE_ADDRESS_BITS | (uintptr_t)m / MAGAZINE_BYTES;
}

static inline struct magazine *magazine_at(uint64_t word)
{
	uint64_t index = word & ((UINT64_C(1) << MAGAZINE_ADDRESS_BITS) - 1);

	return (struct magazine *)(uintptr_t)(index * MAGAZINE_BYTES);
}

/* Notes in @m, which is the caller's, what follows it in a list and what it holds. */
static inline void magazine_link(struct magazine *m, const struct magazine *next, unsigned class,
		unsigned count)
{
	m->link = magazine_word(next, (uint64_t)class << MAGAZINE_COUNT_BITS | count);
}

static inline struct magazine *magazine_next(const struct magazine *m)
{
	return magazine_at(m->link);
}

static inline unsigned magazine_count(const struct magazine *m)
{
	return (unsigned)(m->link >> MAGAZINE_ADDRESS_BITS) & ((1u << MAGAZINE_COUNT_BITS) - 1);
}

static inline unsigned magazine_class(const struct magazine *m)
{
	return (unsigned)(m->link >> (MAGAZINE_ADDRESS_BITS + MAGAZINE_COUNT_BITS));
}

/* About how many bytes have come since the last take. */
static inline uint64_t inbox_bytes(const struct inbox *inbox)
{
	return (atomic_load_explicit(&inbox->head, memory_order_relaxed) >> MAGAZINE_ADDRESS_BITS)
			* INBOX_UNIT;
}

/* Sends @m, the caller's, with its @count objects (1 to 63) of @class, @bytes in all. Returns
 * inbox_bytes() with it. */
uint64_t inbox_post(struct inbox *inbox, struct magazine *m, unsigned class, unsigned count,
		uint64_t bytes);

/* Takes all: a list by magazine_next(), the newest first; NULL if there is none. */
struct magazine *inbox_take(struct inbox *inbox);

#endif
