/* SPDX-License-Identifier: MIT */
/* mem/inbox.c - sending and taking magazines. */
#include "mem/inbox.h"

#include <assert.h>

#include "base/bits.h"

#define SUM_MAX ((UINT64_C(1) << (64 - MAGAZINE_ADDRESS_BITS)) - 1)

uint64_t inbox_post(struct inbox *inbox, struct magazine *m, unsigned class, unsigned count,
		uint64_t bytes)
{
	uint64_t units = div_round_up(bytes, INBOX_UNIT), sum, head;

	assert(count > 0 && count <= MAGAZINE_OBJECTS);
	MEM_STEP(post_head);
	head = atomic_load_explicit(&inbox->head, memory_order_relaxed);
	do {
		sum = head >> MAGAZINE_ADDRESS_BITS;
		sum = units < SUM_MAX - sum ? sum + units : SUM_MAX;
		MEM_STEP(post_link);
		magazine_link(m, magazine_at(head), class, count);
		MEM_STEP(post_swap);
	} while (!atomic_compare_exchange_weak_explicit(&inbox->head, &head, magazine_word(m, sum),
			memory_order_release, memory_order_relaxed));
	return sum * INBOX_UNIT;
}

struct magazine *inbox_take(struct inbox *inbox)
{
	/* Seen from outside first: the line stays shared while nothing comes. */
	MEM_STEP(inbox_look);
	if (!atomic_load_explicit(&inbox->head, memory_order_relaxed))
		return NULL;
	/* Every sender's release, not only the last one's: exchanges continue its sequence. */
	MEM_STEP(inbox_swap);
	return magazine_at(atomic_exchange_explicit(&inbox->head, 0, memory_order_acquire));
}
