/* SPDX-License-Identifier: MIT */
/* base/fence.h - a full memory barrier, for memory that is shared with other processes.
 *
 * It is what atomic_thread_fence(memory_order_seq_cst) compiles to, in gcc's cheaper form on
 * x86-64; ThreadSanitizer, which does not know that call, sees nothing of other processes
 * anyway. */
#ifndef BASE_FENCE_H
#define BASE_FENCE_H

static inline void memory_fence(void)
{
#if defined(__x86_64__)
	__asm__ volatile("lock; orq $0, (%%rsp)" ::: "memory", "cc");
#elif defined(__aarch64__)
	__asm__ volatile("dmb ish" ::: "memory");
#else
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

#endif
