/* SPDX-License-Identifier: MIT */
/* loop/sanitize.h - what the sanitizers and valgrind are told of stacks and free buffers. Nothing
 * of this is left in a plain build, but for valgrind's few no-ops where a stack is mapped. */
#ifndef LOOP_SANITIZE_H
#define LOOP_SANITIZE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/sanitizers.h"

#if HAS_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if HAS_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__has_include)
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#endif
#endif

/* [@p, @p + @n) must not be touched until memory_unpoison(). */
static inline void memory_poison(void *p, size_t n)
{
#if HAS_ASAN
	__asan_poison_memory_region(p, n);
#else
	(void)p, (void)n;
#endif
}

static inline void memory_unpoison(void *p, size_t n)
{
#if HAS_ASAN
	__asan_unpoison_memory_region(p, n);
#else
	(void)p, (void)n;
#endif
}

static inline bool memory_is_poisoned(const void *p)
{
#if HAS_ASAN
	return __asan_address_is_poisoned(p);
#else
	(void)p;
	return false;
#endif
}

static inline unsigned valgrind_stack_register(void *lo, void *hi)
{
#ifdef VALGRIND_STACK_REGISTER
	return VALGRIND_STACK_REGISTER(lo, hi);
#else
	(void)lo, (void)hi;
	return 0;
#endif
}

static inline void valgrind_stack_deregister(unsigned id)
{
#ifdef VALGRIND_STACK_DEREGISTER
	VALGRIND_STACK_DEREGISTER(id);
#else
	(void)id;
#endif
}

/* Is more memory, address space or system calls in use than by byre itself? For tests. */
static inline bool is_instrumented(void)
{
#ifdef RUNNING_ON_VALGRIND
	if (RUNNING_ON_VALGRIND)
		return true;
#endif
	return HAS_ASAN || HAS_TSAN;
}

/* One side of a pair of stacks that switch to and fro. */
struct stack_mark {
	const void *lo;                 /* ASan: the stack's lowest address and size */
	size_t bytes;
	void *fake;                     /* ASan: its fake frames while it is switched off */
	void *tsan;                     /* TSan: what it calls a fiber */
};

/* Just before the switch @from -> @to; @is_last: @from is never run again. */
static inline void stack_leave(struct stack_mark *from, const struct stack_mark *to, bool is_last)
{
#if HAS_ASAN
	__sanitizer_start_switch_fiber(is_last ? NULL : &from->fake, to->lo, to->bytes);
#endif
#if HAS_TSAN
	__tsan_switch_to_fiber(to->tsan, 0);
#endif
	(void)from, (void)to, (void)is_last;
}

/* Just after it, on @self; fills in where @from is. */
static inline void stack_enter(struct stack_mark *self, struct stack_mark *from)
{
#if HAS_ASAN
	__sanitizer_finish_switch_fiber(self->fake, &from->lo, &from->bytes);
#endif
	(void)self, (void)from;
}

#endif
