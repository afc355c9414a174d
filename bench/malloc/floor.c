/* SPDX-License-Identifier: MIT */
/* bench/malloc/floor.c - a malloc that walks round a buffer a thread and never frees.
 *
 * Not one to use: what is alive is overwritten when the buffer comes round again. Those patterns
 * that pass blocks on do not notice (producer-64, producer-512, n-to-m, io-objects; the others
 * would). So what they cost with it is what they cost themselves: the rings, threads that sleep
 * and are woken, blocks that one processor writes and another one reads.
 *
 *	compare.py -o producer-64 -a floor=BUILD/bench/malloc/libfloor.so */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* As much as a processor's own cache has, so that it is no worse than a malloc that reuses. */
enum { THREADS = 64, BYTES = 512 << 10 };

#define EXPORT __attribute__((visibility("default")))

static _Alignas(4096) char buffers[THREADS][BYTES];
static _Atomic unsigned threads;
static __thread char *at __attribute__((tls_model("initial-exec")));
static __thread char *end __attribute__((tls_model("initial-exec")));

static __attribute__((noinline)) void *go_round(size_t size)
{
	if (!end) {
		unsigned n = atomic_fetch_add(&threads, 1);

		if (n >= THREADS)
			return NULL;
		end = buffers[n] + BYTES;
	}
	if (size > BYTES)
		return NULL;
	at = end - BYTES + size;
	return end - BYTES;
}

EXPORT void *malloc(size_t size)
{
	char *p = at;

	size = (size + 15) & ~(size_t)15;
	if (!p || (size_t)(end - p) < size)
		return go_round(size);
	at = p + size;
	return p;
}

EXPORT void free(void *p)
{
}

EXPORT void *calloc(size_t n, size_t size)
{
	size_t bytes;
	void *p = __builtin_mul_overflow(n, size, &bytes) ? NULL : malloc(bytes);

	return p ? memset(p, 0, bytes) : NULL;
}

/* What lies behind the old block comes along, and does no harm. */
EXPORT void *realloc(void *old, size_t size)
{
	void *p = malloc(size);

	if (p && old)
		memmove(p, old, size);
	return p;
}

EXPORT int posix_memalign(void **ret, size_t align, size_t size)
{
	char *p = malloc(size + align);

	if (!p)
		return ENOMEM;
	*ret = p + (-(uintptr_t)p & (align - 1));
	return 0;
}
