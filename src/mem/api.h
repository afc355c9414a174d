/* SPDX-License-Identifier: MIT */
/* mem/api.h - what malloc() and the operators of C++ have in common.
 *
 * The fast paths of heap.h are inlined in api.c and cxx.c by way of this, and nowhere else. */
#ifndef MEM_API_H
#define MEM_API_H

#include <malloc.h>
#include <stddef.h>

#include "mem/heap.h"

#define EXPORT __attribute__((visibility("default")))
#define HOT __attribute__((aligned(64)))

/* The heap @h is entered when these are called. It is an argument since a fast path that has it in
 * a register that is no result's needs one move less. */
void *api_alloc_slow(size_t size, struct heap *h);
void api_free_slow(void *p, struct heap *h);

/* NULL, and errno is ENOMEM, if there is no memory. */
static inline __attribute__((always_inline)) void *api_alloc(size_t size)
{
	struct heap *h = heap_self;
	void *p = heap_alloc_fast(h, size);

	return __builtin_expect(p != NULL, 1) ? p : api_alloc_slow(size, h);
}

static inline __attribute__((always_inline)) void api_free(void *p)
{
	struct heap *h = heap_self;

	uint32_t word;
	size_t c;

	if (__builtin_expect(heap_free_fast(h, p, &c), 1))
		return;
	if (!heap_free_key(h, c, &word) || __builtin_expect(word <= MAP_CLASS_MASK, 0) ||
	    !heap_send_fast(h, p, word))
		api_free_slow(p, h);
}

/* @align is a power of two. */
void *api_alloc_aligned(size_t align, size_t size);

/* What the object at @p has room for. Does not return if there is none. */
size_t api_usable(const void *p);

/* In C, but missing from some <stdlib.h>. */
void free_sized(void *p, size_t size);
void free_aligned_sized(void *p, size_t align, size_t size);

#endif
