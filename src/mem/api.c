/* SPDX-License-Identifier: MIT */
/* mem/api.c - malloc() and its kin.
 *
 * Sizes beyond PTRDIFF_MAX fail, as they do with glibc; a request for nothing gets an object of the
 * smallest class, so that it has an address of its own.
 *
 * In a program with a sanitizer, which has an allocator of its own to find errors with, everything
 * goes there (elsewhere.h), and no thread ever has a heap. */
#include "mem/api.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mem/elsewhere.h"
#include "mem/large.h"

static void *no_memory(void)
{
	errno = ENOMEM;
	return NULL;
}

/* ---- allocating ---- */

static void *alloc_large(size_t size, size_t align, size_t *ret_dirty)
{
	void *p = NULL;

	if (size <= PTRDIFF_MAX && heap_start())
		p = large_alloc(size, align, ret_dirty);
	return p ? p : no_memory();
}

__attribute__((noinline)) void *api_alloc_slow(size_t size, struct heap *h)
{
	size_t dirty;
	void *p;

	if (h == &heap_none && elsewhere_look())
		return elsewhere()->malloc(size);
	if (size <= CLASS_MAX) {
		p = heap_alloc(class_of(size));
		return p ? p : no_memory();
	}
	handover_leave(&h->gate);
	return alloc_large(size, 1, &dirty);
}

EXPORT HOT void *malloc(size_t size)
{
	return api_alloc(size);
}

static __attribute__((noinline)) void *calloc_large(size_t bytes)
{
	size_t dirty = 1;
	void *p = elsewhere_look() ? api_alloc(bytes) : alloc_large(bytes, 1, &dirty);

	return p && dirty ? memset(p, 0, bytes) : p;
}

EXPORT HOT void *calloc(size_t n, size_t size)
{
	size_t bytes;
	void *p;

	if (__builtin_mul_overflow(n, size, &bytes))
		return no_memory();
	if (__builtin_expect(bytes > CLASS_MAX, 0))
		return calloc_large(bytes);
	p = api_alloc(bytes);
	return p ? memset(p, 0, bytes) : NULL;
}

void *api_alloc_aligned(size_t align, size_t size)
{
	uint8_t log = (uint8_t)log2_floor(align);
	struct slab *s;
	size_t dirty;
	unsigned c;
	void *p;

	if (align <= 16)
		return api_alloc(size);
	if (elsewhere_look())
		return elsewhere()->memalign(align, size);
	if (size > PTRDIFF_MAX)
		return no_memory();
	c = align > SLICE_BYTES ? CLASSES : class_of_aligned(size, align);
	if (c == CLASSES)
		return alloc_large(size, align, &dirty);
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
	if (align > (size_t)PTRDIFF_MAX + 1) {
		errno = EINVAL;
		return NULL;
	}
	/* As glibc: the next power of two will do. */
	return api_alloc_aligned(align ? (size_t)1 << log2_ceil(align) : 1, size);
}

EXPORT void *aligned_alloc(size_t align, size_t size)
{
	if (!is_pow2(align)) {
		errno = EINVAL;
		return NULL;
	}
	return api_alloc_aligned(align, size);
}

EXPORT int posix_memalign(void **ret, size_t align, size_t size)
{
	int saved = errno;
	void *p;

	if (!is_pow2(align) || align % sizeof(void *))
		return EINVAL;
	p = api_alloc_aligned(align, size);
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
	return api_alloc_aligned(page_bytes(), size);
}

EXPORT void *pvalloc(size_t size)
{
	size_t page = page_bytes();

	if (size > PTRDIFF_MAX)
		return no_memory();
	return api_alloc_aligned(page, align_up(size, page));
}

/* ---- freeing ---- */

/* What is in no slab. */
static __attribute__((noinline)) void free_other(void *p, uint32_t word, struct heap *h)
{
	int saved;

	handover_leave(&h->gate);
	if (!p)
		return;
	saved = errno;
	if (elsewhere_look()) {
		elsewhere()->free(p);
		return;
	}
	if (word != MAP_RUN || slice_offset(p))
		os_die("free(): invalid pointer", p);
	large_free(p);
	errno = saved;
}

__attribute__((noinline)) void api_free_slow(void *p, struct heap *h)
{
	uint32_t word = map_of(p);

	if (word <= MAP_CLASS_MASK)
		free_other(p, word, h);
	else
		heap_free(p, word);
}

EXPORT HOT void free(void *p)
{
	api_free(p);
}

EXPORT void free_sized(void *p, size_t size)
{
	api_free(p);
}

EXPORT void free_aligned_sized(void *p, size_t align, size_t size)
{
	api_free(p);
}

/* ---- asking, resizing ---- */

static size_t usable(const void *p, const char *what)
{
	uint32_t word = map_of(p), class = word & MAP_CLASS_MASK;

	if (word > MAP_CLASS_MASK && class_is_object(class_info[class].mul, slice_offset(p)))
		return class_info[class].size;
	if (word != MAP_RUN || slice_offset(p))
		os_die(what, p);
	return large_usable(p);
}

size_t api_usable(const void *p)
{
	if (!p)
		return 0;
	if (elsewhere())
		return elsewhere()->usable_size(p);
	return usable(p, "malloc_usable_size(): invalid pointer");
}

EXPORT size_t malloc_usable_size(void *p)
{
	return api_usable(p);
}

/* Moves to a new block. */
static void *realloc_copy(void *p, size_t old, size_t size)
{
	unsigned log = atomic_load_explicit(&slab_at(slice_of(p))->align, memory_order_relaxed);
	void *to = log > 4 ? api_alloc_aligned((size_t)1 << log, size) : api_alloc(size);

	if (!to)
		return NULL;
	memcpy(to, p, MIN(old, size));
	api_free(p);
	return to;
}

EXPORT void *realloc(void *p, size_t size)
{
	size_t old;
	void *to;

	if (!p)
		return api_alloc(size);
	if (elsewhere())
		return elsewhere()->realloc(p, size);
	if (!size) {
		api_free(p);
		return NULL;
	}
	old = usable(p, "realloc(): invalid pointer");
	if (size > PTRDIFF_MAX)
		return no_memory();
	/* It stays where it is unless half of it or more would be wasted. */
	if (size <= old && (size > old / 2 || old <= 64))
		return p;
	if (old <= CLASS_MAX || size <= CLASS_MAX)
		return realloc_copy(p, old, size);
	if (large_resize(p, size))
		return p;
	if (size > old && old >= LARGE_MOVE)
		heap_clear_runs();
	to = large_move(p, size);
	return to ? to : no_memory();
}

EXPORT void *reallocarray(void *p, size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		return no_memory();
	return realloc(p, bytes);
}

/* ---- as gperftools has them ---- */

#if __has_attribute(copy)               /* gcc insists on the same attributes */
#define COPY(of) __attribute__((copy(of)))
#else
#define COPY(of)
#endif

/* Under the name @name, too, which programs built for it call. */
#define ALSO(name, of) ALSO_EXPANDED(name, of)
#define ALSO_EXPANDED(name, of) \
	extern __typeof__(of) name __attribute__((alias(#of))) COPY(of) EXPORT

ALSO(tc_malloc, malloc);
ALSO(tc_malloc_skip_new_handler, malloc);
ALSO(tc_free, free);
ALSO(tc_cfree, free);
ALSO(tc_free_sized, free_sized);
ALSO(tc_calloc, calloc);
ALSO(tc_realloc, realloc);
ALSO(tc_memalign, memalign);
ALSO(tc_posix_memalign, posix_memalign);
ALSO(tc_valloc, valloc);
ALSO(tc_pvalloc, pvalloc);
ALSO(tc_malloc_size, malloc_usable_size);
