/* SPDX-License-Identifier: MIT */
/* mem/elsewhere.c - finding the sanitizers' allocator. */
#include "mem/elsewhere.h"

#include <dlfcn.h>
#include <string.h>

/* Their runtimes have these. */
void __asan_init(void) __attribute__((weak));
void __hwasan_init(void) __attribute__((weak));
void __msan_init(void) __attribute__((weak));
void __tsan_init(void) __attribute__((weak));

const struct elsewhere *elsewhere_found;

/* A pointer to a function from one to anything, as ISO C has no way. */
static void look_up(void *ret, const char *name)
{
	void *p = dlsym(RTLD_NEXT, name);

	memcpy(ret, &p, sizeof(p));
}

const struct elsewhere *elsewhere_look(void)
{
	static struct elsewhere e;

	if (elsewhere_found || (!__asan_init && !__hwasan_init && !__msan_init && !__tsan_init))
		return elsewhere_found;
	look_up(&e.malloc, "malloc");
	look_up(&e.memalign, "memalign");
	look_up(&e.realloc, "realloc");
	look_up(&e.free, "free");
	look_up(&e.usable_size, "malloc_usable_size");
	if (e.malloc && e.memalign && e.realloc && e.free && e.usable_size)
		elsewhere_found = &e;
	return elsewhere_found;
}
