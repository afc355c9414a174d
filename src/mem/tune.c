/* SPDX-License-Identifier: MIT */
/* mem/tune.c - giving back on demand, limits, and gperftools' interface for the same.
 *
 * Programs that were built for tcmalloc ask it by name for statistics and for memory back. The
 * names and their meaning are in gperftools' malloc_extension_c.h. */
#include <byre/malloc.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>

#include "mem/api.h"
#include "mem/census.h"
#include "mem/decay.h"
#include "mem/heap.h"
#include "mem/large.h"

EXPORT size_t byre_malloc_release(size_t budget)
{
	return census_release(budget, 0);
}

EXPORT void byre_malloc_decay(unsigned milliseconds)
{
	decay_set(milliseconds);
}

EXPORT int byre_malloc_background(int on)
{
	int err = decay_background(on);

	if (err)
		errno = -err;
	return err ? -1 : 0;
}

EXPORT void byre_malloc_idle(void)
{
	heap_idle();
}

/* ---- as the C library has it ---- */

EXPORT int malloc_trim(size_t keep)
{
	return census_release(SIZE_MAX, keep) > 0;
}

EXPORT int mallopt(int what, int value)
{
	_Atomic size_t *limit;

	switch (what) {
	case M_TRIM_THRESHOLD:
		limit = &large_dirty_max;
		break;
	case M_MMAP_THRESHOLD:
		limit = &large_keep;
		break;
	case M_MXFAST:
		/* Small objects are always fast; glibc refuses more than this. */
		return value >= 0 && value <= (int)(80 * sizeof(size_t) / 4);
	case M_TOP_PAD:
	case M_MMAP_MAX:
	case M_CHECK_ACTION:
	case M_ARENA_TEST:
	case M_ARENA_MAX:
		return 1;               /* about things that are not here, so it holds */
	default:
		return 0;
	}
	/* -1 is "never" for glibc. */
	atomic_store_explicit(limit, value < 0 ? SIZE_MAX : (size_t)value, memory_order_relaxed);
	return 1;
}

/* ---- as gperftools has it ---- */

void MallocExtension_ReleaseFreeMemory(void);
void MallocExtension_ReleaseToSystem(size_t bytes);
int MallocExtension_GetNumericProperty(const char *name, size_t *ret);
int MallocExtension_SetNumericProperty(const char *name, size_t value);
void MallocExtension_GetStats(char *buf, int size);
void MallocExtension_MarkThreadIdle(void);
void MallocExtension_MarkThreadBusy(void);
void MallocExtension_MarkThreadTemporarilyIdle(void);
size_t MallocExtension_GetEstimatedAllocatedSize(size_t size);
size_t MallocExtension_GetAllocatedSize(const void *p);

EXPORT void MallocExtension_ReleaseFreeMemory(void)
{
	census_release(SIZE_MAX, 0);
}

EXPORT void MallocExtension_ReleaseToSystem(size_t bytes)
{
	census_release(bytes, 0);
}

EXPORT int MallocExtension_GetNumericProperty(const char *name, size_t *ret)
{
	struct census c;

	census_take(&c);
	if (!strcmp(name, "generic.current_allocated_bytes"))
		*ret = c.used;
	else if (!strcmp(name, "generic.heap_size"))
		*ret = c.pages.used + c.pages.dirty;
	else if (!strcmp(name, "generic.total_physical_bytes"))
		*ret = c.pages.used + c.pages.dirty + c.metadata;
	else if (!strcmp(name, "tcmalloc.pageheap_committed_bytes"))
		*ret = c.pages.used + c.pages.dirty;
	else if (!strcmp(name, "tcmalloc.pageheap_free_bytes"))
		*ret = c.pages.dirty;
	else if (!strcmp(name, "tcmalloc.pageheap_unmapped_bytes"))
		*ret = c.pages.mapped - c.pages.used - c.pages.dirty;
	else if (!strcmp(name, "tcmalloc.central_cache_free_bytes"))
		*ret = c.pages.used - MIN(c.pages.used, c.used + c.cached);
	else if (!strcmp(name, "tcmalloc.current_total_thread_cache_bytes") ||
		 !strcmp(name, "tcmalloc.thread_cache_free_bytes"))
		*ret = c.cached;
	else if (!strcmp(name, "tcmalloc.max_total_thread_cache_bytes"))
		*ret = c.heaps * HEAP_PARKED_MAX;
	else if (!strcmp(name, "tcmalloc.slack_bytes") ||
		 !strcmp(name, "tcmalloc.transfer_cache_free_bytes"))
		*ret = 0;
	else
		return 0;
	return 1;
}

EXPORT int MallocExtension_SetNumericProperty(const char *name, size_t value)
{
	/* What threads keep is bounded for each class; the sum cannot be set. */
	return 0;
}

EXPORT void MallocExtension_GetStats(char *buf, int size)
{
	if (size > 0)
		byre_malloc_statistics(buf, (size_t)size, BYRE_MALLOC_TEXT);
}

EXPORT void MallocExtension_MarkThreadIdle(void)
{
	heap_idle();
}

EXPORT void MallocExtension_MarkThreadBusy(void)
{
}

EXPORT void MallocExtension_MarkThreadTemporarilyIdle(void)
{
	heap_idle();
}

EXPORT size_t MallocExtension_GetEstimatedAllocatedSize(size_t size)
{
	if (size > PTRDIFF_MAX)
		return 0;
	return size <= CLASS_MAX ? class_size(class_of(size)) : align_up(size, SLICE_BYTES);
}

EXPORT size_t MallocExtension_GetAllocatedSize(const void *p)
{
	return api_usable(p);
}
