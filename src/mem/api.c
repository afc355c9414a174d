/* SPDX-License-Identifier: MIT */
/* mem/api.c - malloc() and its kin.
 *
 * What a program calls; the fast paths of heap.h are inlined here and nowhere else. Sizes beyond
 * PTRDIFF_MAX fail, as they do with glibc; a request for nothing gets an object of the smallest
 * class, so that it has an address of its own. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mem/api.h"
#include "mem/heap.h"
#include "mem/large.h"

#define EXPORT __attribute__((visibility("default")))
#define SLOW __attribute__((noinline, cold))
#define HOT __attribute__((aligned(64)))

static void *no_memory(void)
{
	errno = ENOMEM;
	return NULL;
}

/* ---- allocating ---- */

/* The fast path is over, and the heap may still be entered. */
static void leave(struct heap *h)
{
	handover_leave(&h->gate);
}

static void *alloc_large(size_t size, size_t align, bool *ret_clean)
{
	void *p = NULL;

	if (size <= PTRDIFF_MAX && heap_start())
		p = large_alloc(size, align, ret_clean);
	return p ? p : no_memory();
}

/* Having @h in a register that is no result's saves a move on the fast path. */
static __attribute__((noinline)) void *alloc_slow(size_t size, struct heap *h)
{
	void *p;

	if (size <= CLASS_MAX) {
		p = heap_alloc(class_of(size));
		return p ? p : no_memory();
	}
	leave(h);
	return alloc_large(size, 1, NULL);
}

static inline __attribute__((always_inline)) void *alloc(size_t size)
{
	struct heap *h = heap_self;
	void *p = heap_alloc_fast(h, size);

	return __builtin_expect(p != NULL, 1) ? p : alloc_slow(size, h);
}

EXPORT HOT void *malloc(size_t size)
{
	return alloc(size);
}

EXPORT void *calloc(size_t n, size_t size)
{
	size_t bytes;
	bool clean = false;
	void *p;

	if (__builtin_mul_overflow(n, size, &bytes))
		return no_memory();
	p = bytes <= CLASS_MAX ? alloc(bytes) : alloc_large(bytes, 1, &clean);
	if (p && !clean)
		memset(p, 0, bytes);
	return p;
}

/* @align is a power of two. */
static void *alloc_aligned(size_t align, size_t size)
{
	unsigned c;
	uint8_t log = (uint8_t)log2_floor(align);
	struct slab *s;
	void *p;

	if (align <= 16)
		return alloc(size);
	if (size > PTRDIFF_MAX)
		return no_memory();
	c = align > SLICE_BYTES ? CLASSES : class_of_aligned(size, align);
	if (c == CLASSES)
		return alloc_large(size, align, NULL);
	p = heap_alloc(c);
	if (!p)
		return no_memory();
	/* For realloc(), which keeps what was asked for. */
	s = slab_at(slice_of(p));
	if (atomic_load_explicit(&s->align, memory_order_relaxed) < log)
		atomic_store_explicit(&s->align, log, memory_order_relaxed);
	return p;
}

EXPORT void *memalign(size_t align, size_t size)
{
	/* As glibc: the next power of two will do. */
	if (align > (size_t)PTRDIFF_MAX + 1) {
		errno = EINVAL;
		return NULL;
	}
	return alloc_aligned(align ? (size_t)1 << log2_ceil(align) : 1, size);
}

EXPORT void *aligned_alloc(size_t align, size_t size)
{
	if (!is_pow2(align)) {
		errno = EINVAL;
		return NULL;
	}
	return alloc_aligned(align, size);
}

EXPORT int posix_memalign(void **ret, size_t align, size_t size)
{
	int saved = errno;
	void *p;

	if (!is_pow2(align) || align % sizeof(void *))
		return EINVAL;
	p = alloc_aligned(align, size);
	errno = saved;
	if (!p)
		return ENOMEM;
	*ret = p;
	return 0;
}

static size_t page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

EXPORT void *valloc(size_t size)
{
	return alloc_aligned(page_bytes(), size);
}

EXPORT void *pvalloc(size_t size)
{
	size_t page = page_bytes();

	if (size > PTRDIFF_MAX)
		return no_memory();
	return alloc_aligned(page, align_up(size, page));
}

/* ---- freeing ---- */

static __attribute__((noinline)) void free_slow(void *p, struct heap *h)
{
	uint32_t word = map_of(p);
	int saved;

	if (word > MAP_CLASS_MASK) {
		heap_free(p, word);
		return;
	}
	leave(h);
	if (!p)
		return;
	if (word != MAP_RUN || slice_offset(p))
		os_die("free(): invalid pointer", p);
	saved = errno;
	large_free(p);
	errno = saved;
}

static inline __attribute__((always_inline)) void release(void *p)
{
	struct heap *h = heap_self;

	if (__builtin_expect(!heap_free_fast(h, p), 0))
		free_slow(p, h);
}

EXPORT HOT void free(void *p)
{
	release(p);
}

EXPORT void free_sized(void *p, size_t size)
{
	release(p);
}

EXPORT void free_aligned_sized(void *p, size_t align, size_t size)
{
	release(p);
}

/* ---- asking, resizing ---- */

/* What @p, which is somebody's object, has room for. Does not return if it is none. */
static size_t usable(const void *p, const char *what)
{
	uint32_t word = map_of(p), class = word & MAP_CLASS_MASK;

	if (word > MAP_CLASS_MASK) {
		if (!class_is_object(class_info[class].mul, slice_offset(p)))
			os_die(what, p);
		return class_info[class].size;
	}
	if (word != MAP_RUN || slice_offset(p))
		os_die(what, p);
	return large_usable(p);
}

EXPORT size_t malloc_usable_size(void *p)
{
	return p ? usable(p, "malloc_usable_size(): invalid pointer") : 0;
}

/* Moves to a new block. */
static void *realloc_copy(void *p, size_t old, size_t size)
{
	struct slab *s = slab_at(slice_of(p));
	unsigned log = atomic_load_explicit(&s->align, memory_order_relaxed);
	void *to = log > 4 ? alloc_aligned((size_t)1 << log, size) : alloc(size);

	if (!to)
		return NULL;
	memcpy(to, p, MIN(old, size));
	release(p);
	return to;
}

EXPORT void *realloc(void *p, size_t size)
{
	size_t old;

	if (!p)
		return alloc(size);
	if (!size) {
		release(p);
		return NULL;
	}
	old = usable(p, "realloc(): invalid pointer");
	if (size > PTRDIFF_MAX)
		return no_memory();
	/* It stays where it is unless half of it or more would be wasted. */
	if (size <= old && size > old / 2)
		return p;
	if (old > CLASS_MAX && size > CLASS_MAX) {
		void *to = large_resize(p, size);

		return to ? to : no_memory();
	}
	if (size <= old && old <= 64)
		return p;
	return realloc_copy(p, old, size);
}

EXPORT void *reallocarray(void *p, size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		return no_memory();
	return realloc(p, bytes);
}
