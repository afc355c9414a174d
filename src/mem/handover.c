/* SPDX-License-Identifier: MIT */
/* mem/handover.c - taking over heaps: all but the owner's fast path. */
#include "mem/handover.h"

#include <assert.h>
#include <errno.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

/* How often a taker looks at a heap that is busy: a fast path is some 20 instructions long, so one
 * that takes longer has lost its processor, and its thread will see stop when it runs again. */
enum { LOOKS = 32 };

static void pause_cpu(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* With the lock held. */
static void clear_stop(struct handover *h)
{
	MEM_STEP(clear_stop);
	/* The release pairs with the acquire in handover_enter(). */
	atomic_store_explicit(&h->stop, h->open, memory_order_release);
}

bool handover_lock(struct handover *h)
{
	handover_leave(h);
	mem_lock(&h->lock);
	MEM_STEP(asked_stop);
	if (atomic_load_explicit(&h->stop, memory_order_relaxed) == h->open)
		return false;
	clear_stop(h);
	return true;
}

void handover_unlock(struct handover *h)
{
	mem_unlock(&h->lock);
}

bool handover_adopt(struct handover *h)
{
	bool mine;

	mem_lock(&h->lock);
	MEM_STEP(adopt_owned);
	mine = !h->owned;
	h->owned = true;
	mem_unlock(&h->lock);
	return mine;
}

void handover_orphan(struct handover *h)
{
	assert(h->owned && mem_lock_held(&h->lock));
	MEM_STEP(orphan_owned);
	h->owned = false;
	mem_unlock(&h->lock);
}

void handover_begin(struct handover_round *round)
{
	/* Used once, or as good: a heap's stop is overwritten by each of the 2^31 rounds until a
	 * ticket comes again. */
	static _Atomic uint32_t last;
	uint32_t ticket;

	do {
		ticket = HANDOVER_STOPPED |
			atomic_fetch_add_explicit(&last, 1, memory_order_relaxed);
	} while (ticket == HANDOVER_ALWAYS);
	*round = (struct handover_round){ .ticket = ticket };
}

void handover_start(void)
{
	int saved = errno;

	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
	errno = saved;
}

int handover_barrier(struct handover_round *round)
{
	int saved = errno, err = 0;

	/* Where handover_start() came too early, or the child of a fork is not registered. */
	MEM_STEP(membarrier);
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) &&
			(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) ||
			syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0)))
		err = -errno;
	errno = saved;
	round->fenced = !err;
	return err;
}

/* With the lock held: can the owner not be inside the fast path, nor get there? */
static bool is_kept_out(struct handover *h, const struct handover_round *round)
{
	MEM_STEP(take_owned);
	if (!h->owned || h->open == HANDOVER_ALWAYS)
		return true;
	if (!round->fenced)
		return false;
	MEM_STEP(take_stop);
	if (atomic_load_explicit(&h->stop, memory_order_relaxed) != round->ticket)
		return false;
	for (int i = 0; i < LOOKS; i++) {
		MEM_STEP(take_busy);
		if (!atomic_load_explicit(&h->busy, memory_order_acquire))
			return true;
		pause_cpu();
	}
	return false;
}

bool handover_take(struct handover *h, const struct handover_round *round)
{
	mem_lock(&h->lock);
	if (is_kept_out(h, round))
		return true;
	mem_unlock(&h->lock);
	return false;
}

void handover_give(struct handover *h)
{
	clear_stop(h);
	mem_unlock(&h->lock);
}

void handover_reset(struct handover *h, bool mine)
{
	atomic_store_explicit(&h->busy, 0, memory_order_relaxed);
	atomic_store_explicit(&h->stop, h->open, memory_order_relaxed);
	mem_lock_init(&h->lock);
	h->owned = mine;
}
