/* SPDX-License-Identifier: MIT */
/* mem/lock.c - the slow half of the lock: waiting and waking, by futex. */
#include "mem/lock.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 64 };

static void pause_cpu(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

void mem_lock_wait(struct mem_lock *l)
{
	int saved = errno;

	for (int i = 0; i < SPINS; i++) {
		if (!atomic_load_explicit(&l->state, memory_order_relaxed) && mem_trylock(l))
			return;
		pause_cpu();
	}
	/* Whoever comes this way leaves a 2: it cannot know whether others wait as well. */
	while (atomic_exchange_explicit(&l->state, 2, memory_order_acquire) != 0)
		syscall(SYS_futex, &l->state, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
	MEM_LOCKS_HELD(1);
	errno = saved;
}

void mem_lock_wake(struct mem_lock *l)
{
	int saved = errno;

	syscall(SYS_futex, &l->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	errno = saved;
}
