/* SPDX-License-Identifier: MIT */
/* tests/malloc/broken.c - the C library's malloc with one thing wrong, which $BROKEN names: proof
 * that the cases can fail. Each name is that of the case which must. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

PUBLIC extern void *__libc_malloc(size_t size);
PUBLIC extern void *__libc_calloc(size_t n, size_t size);
PUBLIC extern void *__libc_realloc(void *p, size_t size);
PUBLIC extern void *__libc_memalign(size_t align, size_t size);
PUBLIC extern void __libc_free(void *p);
PUBLIC int malloc_trim(size_t pad);
PUBLIC size_t malloc_usable_size(void *p);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char given_twice[128] __attribute__((aligned(64)));

static bool is(const char *name)
{
	const char *broken = getenv("BROKEN");

	return broken && !strcmp(broken, name);
}

PUBLIC void *malloc(size_t size)
{
	static unsigned count;
	void *p;

	if (is("zero_sizes") && size == 0)
		return NULL;
	if (is("churn_of_all_calls") && size > 80 && size < 128 && ++count % 100 == 0)
		return given_twice;
	if (is("every_size") && size == 4097)
		size -= 2000;
	if (!is("fork_while_others_allocate"))
		return __libc_malloc(size);
	pthread_mutex_lock(&lock);                      /* and nobody thinks of fork */
	p = __libc_malloc(size);
	pthread_mutex_unlock(&lock);
	return p;
}

PUBLIC void free(void *p)
{
	if (p == given_twice)
		return;
	if (is("free_twice_small") || is("free_twice_large") || is("free_stack"))
		return;
	if (is("threads_by_the_thousand") && gettid() != getpid())
		return;
	if (is("thread_that_only_frees") && gettid() != getpid())
		return;
	__libc_free(p);
	if (is("free_keeps_errno"))
		errno = EINVAL;
}

PUBLIC void *calloc(size_t n, size_t size)
{
	if (is("products_that_wrap")) {
		size *= n;
		n = 1;
	}
	if (is("calloc_zeroes_what_was_used"))
		return __libc_malloc(n * size);
	return __libc_calloc(n, size);
}

PUBLIC void *realloc(void *p, size_t size)
{
	if (is("realloc_keeps_contents") && p && size) {
		free(p);
		return malloc(size);
	}
	if (is("realloc_to_zero_frees") && size == 0)
		return NULL;
	return __libc_realloc(p, size);
}

PUBLIC int posix_memalign(void **ret, size_t align, size_t size)
{
	bool wrong = align % sizeof(void *) || !align || align & (align - 1);

	if (wrong && !is("posix_memalign_refuses"))
		return EINVAL;
	if (is("posix_memalign_aligns") && align > 4096)
		align = 4096;
	*ret = __libc_memalign(align, size);
	return *ret ? 0 : ENOMEM;
}

PUBLIC void *aligned_alloc(size_t align, size_t size)
{
	return is("aligned_alloc_of_any_size") ? __libc_malloc(size) : __libc_memalign(align, size);
}

PUBLIC int malloc_trim(size_t pad)
{
	return 1;                       /* that is what "malloc_trim_gives_back" must notice */
}
