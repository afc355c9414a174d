/* SPDX-License-Identifier: MIT */
/* mem/gperftools.c - what programs that were built for tcmalloc ask it besides (tune.c).
 *
 * The names and their meaning are in gperftools' tcmalloc.h and malloc_extension_c.h. Those of
 * malloc() and its kin are in api.c. There are no hooks (MallocHook_): the fast paths would have to
 * look whether there is one. */
#include <stdint.h>
#include <string.h>

#include "mem/api.h"
#include "mem/census.h"
#include "mem/elsewhere.h"
#include "mem/heap.h"
#include "mem/slab.h"

enum { HISTOGRAM = 64 };
enum ownership { OWNERSHIP_UNKNOWN, OWNED, NOT_OWNED };

const char *tc_version(int *major, int *minor, const char **patch);
size_t nallocx(size_t size, int flags);
size_t tc_nallocx(size_t size, int flags);
struct mallinfo tc_mallinfo(void);
int tc_mallopt(int what, int value);
void tc_malloc_stats(void);
int MallocExtension_VerifyAllMemory(void);
int MallocExtension_VerifyNewMemory(const void *p);
int MallocExtension_VerifyArrayNewMemory(const void *p);
int MallocExtension_VerifyMallocMemory(const void *p);
int MallocExtension_MallocMemoryStats(int *blocks, size_t *total, int histogram[HISTOGRAM]);
size_t MallocExtension_GetThreadCacheSize(void);
enum ownership MallocExtension_GetOwnership(const void *p);

/* The numbers are those of the interface that is followed. */
EXPORT const char *tc_version(int *major, int *minor, const char **patch)
{
	if (major)
		*major = 2;
	if (minor)
		*minor = 10;
	if (patch)
		*patch = "";
	return "byre-malloc " BYRE_VERSION;
}

/* @flags: log2 of the alignment, below other things. */
EXPORT size_t nallocx(size_t size, int flags)
{
	size_t align = (size_t)1 << (flags & 63);
	unsigned class = CLASSES;

	if (size > PTRDIFF_MAX || align > PTRDIFF_MAX)
		return 0;
	if (align <= SLICE_BYTES)
		class = class_of_aligned(size, align);
	return class < CLASSES ? class_size(class) : align_up(size, SLICE_BYTES);
}

EXPORT size_t tc_nallocx(size_t size, int flags)
{
	return nallocx(size, flags);
}

EXPORT struct mallinfo tc_mallinfo(void)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
	return mallinfo();
#pragma GCC diagnostic pop
}

EXPORT int tc_mallopt(int what, int value)
{
	return mallopt(what, value);
}

EXPORT void tc_malloc_stats(void)
{
	malloc_stats();
}

/* ---- is it as it should be? ---- */

EXPORT int MallocExtension_VerifyAllMemory(void)
{
	return !heap_start() || !pages_check();
}

/* Is it a block that is in use? As far as its slab knows: what was freed last counts as well. */
static int verify(const void *p)
{
	uint32_t word = map_of(p);

	if (!p || elsewhere())
		return 1;
	return word > MAP_CLASS_MASK ? slab_is_out(p) : word == MAP_RUN && !slice_offset(p);
}

EXPORT int MallocExtension_VerifyNewMemory(const void *p)
{
	return verify(p);
}

EXPORT int MallocExtension_VerifyArrayNewMemory(const void *p)
{
	return verify(p);
}

EXPORT int MallocExtension_VerifyMallocMemory(const void *p)
{
	return verify(p);
}

EXPORT enum ownership MallocExtension_GetOwnership(const void *p)
{
	if (elsewhere())
		return OWNERSHIP_UNKNOWN;
	return map_of(p) > MAP_DIRTY ? OWNED : NOT_OWNED;
}

/* ---- how much is there? ---- */

static int bounded(size_t n)
{
	return (int)MIN(n, (size_t)INT32_MAX);
}

/* Blocks in use and their bytes; and how many there are of each power of two. */
EXPORT int MallocExtension_MallocMemoryStats(int *blocks, size_t *total, int histogram[HISTOGRAM])
{
	size_t n, in[HISTOGRAM] = { 0 };
	struct census c;

	census_take(&c);
	n = c.large;
	if (c.large)
		in[log2_floor(c.large_bytes / c.large)] = c.large;
	for (unsigned i = 0; i < CLASSES; i++) {
		in[log2_floor(class_size(i))] += c.classes[i].used;
		n += c.classes[i].used;
	}
	for (unsigned i = 0; i < HISTOGRAM; i++)
		histogram[i] = bounded(in[i]);
	*blocks = bounded(n);
	*total = c.used;
	return 1;
}

EXPORT size_t MallocExtension_GetThreadCacheSize(void)
{
	return heap_cached_bytes();
}
