/* SPDX-License-Identifier: MIT */
/* byre/xmalloc.h - xmalloc() for hypervisors and kernels, in bounded time.
 *
 *	struct domain *d = xzalloc(struct domain);
 *	uint32_t *table = xmalloc_array(uint32_t, entries);
 *	XFREE(table);
 *	xfree(d);
 *
 * A heap takes pages from its embedder and puts a region over them (byre/region.h). Nothing is
 * kept outside of these pages; what an embedder brings are the hooks and one function:
 *
 *	struct byre_xheap *byre_xheap_current(void) { return the_heap; }
 *
 * Small requests, up to about a page, are the region's: constant time, any size, pages given back
 * as soon as nothing is left in them. Larger ones, or those aligned to a page, get pages of their
 * own: exactly as many as their size fills, aligned to the page, with no header before them. If the
 * last of them is not filled, the rest of it holds small objects. The record of such a request is a
 * small object too (48 bytes; 32 where pointers have 32 bits).
 *
 * Everything here may be called from any thread if there are lock hooks. */
#ifndef BYRE_XMALLOC_H
#define BYRE_XMALLOC_H

#include <stdbool.h>
#include <stddef.h>

#include "byre/region.h"

#ifdef __cplusplus
extern "C" {
#endif

struct byre_xheap;

/* All get @cookie, and must not call into the heap. */
struct byre_xheap_hooks {
	void *cookie;
	/* @len bytes, whole pages, aligned to the page; or NULL. */
	void *(*get_pages)(void *cookie, size_t len);
	/* Takes back whole pages that get_pages() returned: not always all of one call at once, and
	 * never of two calls together. */
	void (*put_pages)(void *cookie, void *pages, size_t len);
	/* May be NULL. The pages' hooks are called outside of the lock. */
	void (*lock)(void *cookie);
	void (*unlock)(void *cookie);
	/* May be NULL: faults are survived in silence. Called under the lock. */
	void (*report)(void *cookie, const struct byre_region_fault *fault);
};

/* Zeroed but for the pages' hooks: the defaults. */
struct byre_xheap_config {
	size_t page;                    /* a power of two, at least 1024; 0: 4096 */
	size_t grow;                    /* bytes to get at a time for small objects; 0: a page */
	unsigned flags;                 /* BYRE_REGION_POISON */
	struct byre_xheap_hooks hooks;
};

/* A heap, itself in a page or two of the embedder's. NULL if there are none, or if @config makes
 * no sense. */
struct byre_xheap *byre_xheap_open(const struct byre_xheap_config *config);
/* Gives back the last pages. Fails, and does nothing, while there is an object. */
bool byre_xheap_close(struct byre_xheap *heap);

/* The heap that the calls below use. The embedder defines this. */
struct byre_xheap *byre_xheap_current(void);

/* Bytes. */
struct byre_xheap_stats {
	size_t pages;                   /* held in all */
	size_t runs;                    /* of which by requests with pages of their own */
	struct byre_region_stats small; /* the rest, and the rests of last pages */
};

void byre_xheap_stats(struct byre_xheap *heap, struct byre_xheap_stats *ret);
/* As byre_region_check(). */
bool byre_xheap_check(struct byre_xheap *heap, struct byre_region_fault *ret);

/* ---- objects ---- */

/* At least @size bytes (0 counts as 1) aligned to @align, a power of two (0: to 16); NULL if there
 * is no memory. The second is zeroed. */
void *_xmalloc(size_t size, size_t align);
void *_xzalloc(size_t size, size_t align);
/* Makes @p larger or smaller, moving it if necessary; keeps the content up to the lesser size. NULL
 * and @p as before if there is no memory. @p NULL: as _xmalloc(). */
void *_xrealloc(void *p, size_t size, size_t align);
/* @p NULL does nothing. What is no object, or is free already, is reported and let be. */
void xfree(void *p);

/* The same for @n elements of @size bytes. NULL if that is more than memory can be. */
void *_xmalloc_array(size_t size, size_t align, size_t n);
void *_xzalloc_array(size_t size, size_t align, size_t n);
void *_xrealloc_array(void *p, size_t size, size_t align, size_t n);

/* A copy of the @size bytes at @from, or NULL. */
void *_xmemdup(const void *from, size_t size, size_t align);

#define xmalloc(type) ((type *)_xmalloc(sizeof(type), __alignof__(type)))
#define xzalloc(type) ((type *)_xzalloc(sizeof(type), __alignof__(type)))

#define xmalloc_array(type, n) ((type *)_xmalloc_array(sizeof(type), __alignof__(type), n))
#define xzalloc_array(type, n) ((type *)_xzalloc_array(sizeof(type), __alignof__(type), n))
/* The new address, or NULL: assign it to something else than @p until it is known. */
#define xrealloc_array(p, n) \
	((__typeof__(p))_xrealloc_array(p, sizeof(*(p)), __alignof__(*(p)), n))

/* A struct whose last member, @field, is an array without a length; with @n elements. */
#define xmalloc_flex_struct(type, field, n) \
	((type *)_xmalloc(byre_xheap_flex(offsetof(type, field), sizeof(((type *)0)->field[0]), n, \
					  sizeof(type)), __alignof__(type)))
#define xzalloc_flex_struct(type, field, n) \
	((type *)_xzalloc(byre_xheap_flex(offsetof(type, field), sizeof(((type *)0)->field[0]), n, \
					  sizeof(type)), __alignof__(type)))

/* Bytes, aligned to a cache line. */
#define BYRE_XHEAP_LINE 64
#define xmalloc_bytes(n) _xmalloc(n, BYRE_XHEAP_LINE)
#define xzalloc_bytes(n) _xzalloc(n, BYRE_XHEAP_LINE)
#define xrealloc_bytes(p, n) _xrealloc(p, n, BYRE_XHEAP_LINE)

/* A copy of what @p points to. */
#define xmemdup(p) ((__typeof__(*(p)) *)_xmemdup(p, sizeof(*(p)), __alignof__(*(p))))
#define xmemdup_bytes(p, n) _xmemdup(p, n, BYRE_XHEAP_LINE)

/* Frees @p and forgets it. */
#define XFREE(p) do { \
		xfree(p); \
		(p) = NULL; \
	} while (0)

/* How large such a struct is: SIZE_MAX where it is more than memory can be. */
static inline size_t byre_xheap_flex(size_t head, size_t size, size_t n, size_t least)
{
	size_t bytes;

	if (__builtin_mul_overflow(size, n, &bytes) || __builtin_add_overflow(bytes, head, &bytes))
		return (size_t)-1;
	return bytes < least ? least : bytes;
}

#ifdef __cplusplus
}
#endif

#endif
