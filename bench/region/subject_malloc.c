/* SPDX-License-Identifier: MIT */
/* bench/region/subject_malloc.c - the malloc of the process: the C library's, or a peer's that was
 * preloaded, whose own call for giving memory back is used where it has one. */
#include <malloc.h>
#include <stdbool.h>
#include <stdlib.h>

#include "subject.h"

/* What preloaded allocators bring: gperftools, jemalloc, mimalloc. */
void MallocExtension_ReleaseFreeMemory(void) __attribute__((weak));
int mallctl(const char *name, void *old, size_t *old_len, void *new, size_t new_len)
	__attribute__((weak));
void mi_collect(bool force) __attribute__((weak));

static void malloc_open(size_t region_bytes)
{
	(void)region_bytes;
}

static void malloc_free(void *p, size_t size)
{
	(void)size;
	free(p);
}

static void malloc_release(void)
{
	if (MallocExtension_ReleaseFreeMemory) {
		MallocExtension_ReleaseFreeMemory();
	} else if (mallctl) {
		mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
		mallctl("arena.4096.purge", NULL, NULL, NULL, 0);       /* all arenas */
	} else if (mi_collect) {
		mi_collect(true);
	} else {
		malloc_trim(0);
	}
}

const struct subject subject_malloc = {
	.name = "malloc",
	.open = malloc_open,
	.alloc = malloc,
	.free = malloc_free,
	.release = malloc_release,
};
