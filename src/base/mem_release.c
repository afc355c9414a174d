/* SPDX-License-Identifier: MIT */
/* base/mem_release.c - each malloc's own call for it.
 *
 * Found by name, not by the option it was built with: a malloc may be preloaded as well. byre's is
 * first, since it has tcmalloc's names, too. */
#include "base/mem_release.h"

#include <malloc.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WEAK __attribute__((weak))

size_t byre_malloc_release(size_t budget) WEAK;
void mi_collect(bool force) WEAK;
int mallctl(const char *name, void *old, size_t *old_len, void *new, size_t new_len) WEAK;
void MallocExtension_ReleaseFreeMemory(void) WEAK;

static void release_byre(void)
{
	byre_malloc_release(SIZE_MAX);
}

static void release_mimalloc(void)
{
	mi_collect(true);
}

static void release_jemalloc(void)
{
	mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
	mallctl("arena.4096.purge", NULL, NULL, NULL, 0);       /* 4096 is all of them */
}

static void release_tcmalloc(void)
{
	MallocExtension_ReleaseFreeMemory();
}

static void release_libc(void)
{
	malloc_trim(0);
}

struct way {
	const char *name;
	void (*release)(void);
};

static struct way find(void)
{
	if (byre_malloc_release)
		return (struct way){ "byre", release_byre };
	if (mi_collect)
		return (struct way){ "mimalloc", release_mimalloc };
	if (mallctl)
		return (struct way){ "jemalloc", release_jemalloc };
	if (MallocExtension_ReleaseFreeMemory)
		return (struct way){ "tcmalloc", release_tcmalloc };
	return (struct way){ "libc", release_libc };
}

void mem_release(void)
{
	find().release();
}

const char *mem_name(void)
{
	return find().name;
}
