/* SPDX-License-Identifier: MIT */
/* tests/malloc/allocating.c - a library to be opened and closed (early.c). */
#include <stdlib.h>

#define PUBLIC __attribute__((visibility("default")))

static void *held;
static _Thread_local char mine[20000];

__attribute__((constructor)) static void construct(void)
{
	held = malloc(100);
}

__attribute__((destructor)) static void destruct(void)
{
	free(held);
}

PUBLIC void *library_get(size_t size);
PUBLIC void library_put(void *p);

void *library_get(size_t size)
{
	mine[size % sizeof(mine)] = 1;
	return calloc(1, size);
}

void library_put(void *p)
{
	free(p);
}
