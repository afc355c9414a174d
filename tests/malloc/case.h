/* SPDX-License-Identifier: MIT */
/* tests/malloc/case.h - cases of how a malloc behaves.
 *
 * A case is a function that runs in a process of its own, with whatever malloc that process has:
 * the C library's as the reference, byre's by preload, or linked. It returns if all held. */
#ifndef TESTS_MALLOC_CASE_H
#define TESTS_MALLOC_CASE_H

#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/prng.h"

enum {
	BYRE_ONLY = 1,                  /* others do not promise this */
	DIES = 2,                       /* must end by SIGABRT and say something */
	CHECKED = 4,                    /* with BYRE_MALLOC_CHECK=1 */
	/* Not where a program emulates the processor: its memory and its limits are the
	 * emulator's as well, and qemu's user mode cannot fork while threads run. */
	NATIVE = 8,
};

struct test_case {
	const char *name;
	void (*run)(void);
	unsigned flags;
	const char *says;               /* DIES: byre's message has this */
};

extern const struct test_case cases_size[], cases_align[], cases_info[], cases_thread[],
	cases_fork[], cases_early[], cases_limit[], cases_misuse[], cases_churn[], cases_back[];

enum { SKIPPED = 77, PAGE = 4096 };

/* Neither may allocate: the allocator may be what fails. */
_Noreturn void case_fail(const char *file, int line, const char *what);
_Noreturn void case_skip(const char *why);

#define CHECK(condition) do { \
	if (!(condition)) \
		case_fail(__FILE__, __LINE__, #condition); \
} while (0)

bool is_byre(void);

/* A function that not every malloc has. Where it is missing the case is skipped, and fails for
 * byre, which has them all. */
void *must_find(const char *name);

/* Opens and closes a library that allocates, many times. As a thread's function. */
void *open_and_close_libraries(void *arg);

/* Sizes around all that an allocator may treat differently. */
extern const size_t some_sizes[];
extern const unsigned some_sizes_count;

/* Bytes that tell whose they are and where. */
void fill(void *p, size_t size, uint64_t seed);
bool is_filled(const void *p, size_t size, uint64_t seed);
bool is_zero(const void *p, size_t size);

size_t resident_bytes(void);

/* The compiler must not know what it is about to see. */
static inline size_t hidden(size_t v)
{
	volatile size_t hide = v;

	return hide;
}

static inline void *hide(void *p)
{
	void *volatile hidden_pointer = p;

	return hidden_pointer;
}

#endif
