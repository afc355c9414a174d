/* SPDX-License-Identifier: MIT */
/* mem/peek.h - atomic loads that cost no instruction of their own.
 *
 * Compilers do not make an atomic load the operand of the instruction that uses it. For the three
 * that are on the fast paths of malloc() and free() that is a tenth of all they do. A plain load of
 * an aligned word is one load on the machines named here; where it must not move, the caller has
 * compiler barriers around it. */
#ifndef MEM_PEEK_H
#define MEM_PEEK_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/sanitizers.h"

#if defined(__x86_64__) && !HAS_TSAN
#define MEM_PEEK(word) (*(__typeof__((void)0, (word)) *)(uintptr_t)&(word))
/* The processor keeps loads in order; the compiler is to be told when the value has been tested. */
#define MEM_PEEK_ACQUIRE(word) MEM_PEEK(word)
#else
#define MEM_PEEK(word) atomic_load_explicit(&(word), memory_order_relaxed)
#define MEM_PEEK_ACQUIRE(word) atomic_load_explicit(&(word), memory_order_acquire)
#endif

#endif
