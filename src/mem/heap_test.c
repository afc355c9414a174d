/* SPDX-License-Identifier: MIT */
/* mem/heap_test.c - malloc(), free() and their kin in one thread or two; and what is told of a
 * wrong free. Many threads are in heap_stress_test.c, sequences of calls in fuzz/malloc.c. */
#include "mem/test_names.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mem/api.h"
#include "mem/census.h"

/* ---- what is wrong ends the program ---- */

/* Runs @fn in a child that has to abort, having said @message. */
static void dies(void (*fn)(void), const char *message)
{
	char said[256] = "";
	int fds[2], status;
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		const struct rlimit no_core = { 0, 0 };

		setrlimit(RLIMIT_CORE, &no_core);
		signal(SIGABRT, SIG_DFL);
		dup2(fds[1], STDERR_FILENO);
		fn();
		_exit(0);
	}
	close(fds[1]);
	n = read(fds[0], said, sizeof(said) - 1);
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
		fail_msg("'%s': did not abort: status %x, '%s'", message, status, said);
	assert_true(n > 0);
	if (strncmp(said, "byre-malloc: ", 13) || !strstr(said, message))
		fail_msg("'%s' instead of '%s'", said, message);
}

static void free_stack(void)
{
	char here[64];
	void *volatile p = here + 16;

	free(p);
}

static void free_inside(void)
{
	char *volatile p = malloc(100);

	free(p + 16);
}

static void free_inside_large(void)
{
	char *volatile p = malloc(5 << 20);

	free(p + 65536);
}

static void free_what_never_was(void)
{
	char *volatile p = malloc(48);

	/* Objects are handed out from the beginning of their slice on. */
	free((char *)((uintptr_t)p | 0xff00));
	census_release(SIZE_MAX, 0);
}

static void free_twice(void)
{
	void *volatile p = malloc(48);
	void *volatile other = malloc(48);

	free(p);
	free(other);
	free(p);
	census_release(SIZE_MAX, 0);
	heap_idle();
	malloc(48);
}

static void *free_it(void *p)
{
	free(p);
	return NULL;
}

static void free_in(void *p)
{
	pthread_t id;

	if (pthread_create(&id, NULL, free_it, p) || pthread_join(id, NULL))
		_exit(3);
}

static void free_twice_elsewhere(void)
{
	void *volatile p = malloc(48);

	free_in(p);
	free_in(p);
	census_release(SIZE_MAX, 0);
	heap_idle();
	malloc(48);
}

static void free_large_twice(void)
{
	void *volatile p = malloc(5 << 20);

	free(p);
	free(p);
}

static void resize_inside(void)
{
	char *volatile p = malloc(100);

	p = realloc(p + 16, 200);
}

static void ask_inside(void)
{
	char *volatile p = malloc(100);

	_exit((int)malloc_usable_size(p + 16) & 0);
}

static void m14_wrong_free_is_told(void **state)
{
	dies(free_stack, "free(): invalid pointer");
	dies(free_inside, "free(): invalid pointer");
	dies(free_inside_large, "free(): invalid pointer");
	dies(free_what_never_was, "free(): invalid pointer");
	dies(resize_inside, "realloc(): invalid pointer");
	dies(ask_inside, "malloc_usable_size(): invalid pointer");
}

static void m14_double_free_is_told_when_the_magazine_goes_back(void **state)
{
	dies(free_twice, "double free");
	dies(free_twice_elsewhere, "double free");
	dies(free_large_twice, "free(): invalid pointer");
}

/* With checks nothing else has to happen. */
static void check_free_twice(void)
{
	void *volatile p = malloc(48);
	void *volatile other = malloc(48);

	free(p);
	free(p);
	free(other);
}

static void check_free_twice_elsewhere(void)
{
	void *volatile p = malloc(48);
	void *volatile other = malloc(48);

	free_in(p);
	free_in(p);
	free(other);
}

static void check_free_what_never_was(void)
{
	char *volatile p = malloc(48);

	free((char *)((uintptr_t)p | 0xff00));
}

/* Runs first: whether there are checks is decided when the library starts. */
static void m14_with_checks_it_is_told_at_once(void **state)
{
	setenv("BYRE_MALLOC_CHECK", "1", 1);
	dies(check_free_twice, "double free");
	dies(check_free_twice_elsewhere, "double free");
	dies(check_free_what_never_was, "free(): invalid pointer");
	dies(free_stack, "free(): invalid pointer");
	unsetenv("BYRE_MALLOC_CHECK");
}

/* ---- what is right ---- */

static size_t in_use(void)
{
	struct census c;

	census_take(&c);
	return c.used;
}

static void m11_objects_do_not_overlap(void **state)
{
	enum { N = 3000 };
	static unsigned char *p[N];

	for (size_t size = 1; size <= 300000; size = size * 3 + 1) {
		size_t n = size < 4096 ? N : 20;

		for (size_t i = 0; i < n; i++) {
			p[i] = malloc(size);
			assert_non_null(p[i]);
			assert_true(malloc_usable_size(p[i]) >= size);
			assert_int_equal((uintptr_t)p[i] % 16, 0);
			memset(p[i], (int)i, size);
		}
		for (size_t i = 0; i < n; i++) {
			assert_int_equal(p[i][0], i & 255);
			assert_int_equal(p[i][size - 1], i & 255);
			assert_int_equal(p[i][size / 2], i & 255);
			free(p[i]);
		}
	}
	assert_int_equal(in_use(), 0);
}

static void aligned_blocks_are_aligned(void **state)
{
	for (size_t align = 1; align <= 16 << 20; align *= 2) {
		for (size_t size = 0; size < 3 * align && size < 4 << 20; size += align / 2 + 1) {
			char *p = aligned_alloc(align, size), *q;

			assert_non_null(p);
			assert_int_equal((uintptr_t)p % align, 0);
			if (size) {
				p[0] = 5;
				p[size - 1] = 5;
			}
			q = realloc(p, size + 100);
			assert_non_null(q);
			assert_int_equal((uintptr_t)q % align, 0);
			free(q);
		}
	}
	assert_int_equal(in_use(), 0);
}

static void new_memory_is_zero_where_it_has_to_be(void **state)
{
	for (size_t size = 1; size <= 8 << 20; size = size * 5 + 3) {
		for (int twice = 0; twice < 2; twice++) {
			unsigned char *p = calloc(1, size);

			assert_non_null(p);
			for (size_t i = 0; i < size; i++)
				assert_true(!p[i]);
			memset(p, 0xa5, size);
			free(p);
		}
	}
}

/* Who asks how much there is may use it, and finds it again. */
static void realloc_keeps_all_that_is_usable(void **state)
{
	for (size_t size = 1; size <= 4 << 20; size = size * 5 + 3) {
		unsigned char *p = malloc(size), *q = malloc(size);
		size_t usable = malloc_usable_size(p);

		memset(p, 0x5a, usable);
		p = realloc(p, usable * 3);
		assert_non_null(p);
		for (size_t i = 0; i < usable; i++)
			assert_int_equal(p[i], 0x5a);
		free(p);
		free(q);
	}
}

static void sizes_near_overflow_fail(void **state)
{
	volatile size_t most = SIZE_MAX, half = PTRDIFF_MAX;
	char *p = malloc(10);

	for (size_t back = 0; back < 70000; back += 4093) {
		errno = 0;
		assert_null(malloc(most - back));
		assert_int_equal(errno, ENOMEM);
		assert_null(aligned_alloc(4096, most - back));
		assert_null(realloc(p, most - back));
		assert_null(malloc(half + 1 + back));
	}
	errno = 0;
	assert_null(calloc(most / 2, 3));
	assert_int_equal(errno, ENOMEM);
	assert_null(reallocarray(NULL, most / 4, 8));
	free(p);
	assert_int_equal(in_use(), 0);
}

/* Five are less than a magazine. */
static void m12_what_a_thread_freed_for_others_arrives_when_it_ends(void **state)
{
	void *p[5];

	for (int i = 0; i < 5; i++)
		p[i] = malloc(80);
	assert_true(in_use() >= 5 * 80);
	for (int i = 0; i < 5; i++)
		free_in(p[i]);
	heap_idle();
	assert_int_equal(in_use(), 0);
}

enum { MANY_EACH = 200 };

static void *allocate_many(void *arg)
{
	void *(*p)[MANY_EACH] = arg;

	for (unsigned c = 0; c < CLASSES; c++)
		for (unsigned i = 0; i < MANY_EACH; i++)
			p[c][i] = malloc(class_size(c));
	return NULL;
}

/* The most objects of class @c that have ever gathered while those at @p were freed. */
static unsigned most_gathered(void *p[MANY_EACH], unsigned c)
{
	uint32_t word = map_of(p[0]);
	const struct outgoing *o = heap_outgoing(heap_self, word);
	unsigned most = 0;

	for (unsigned i = 0; i < MANY_EACH; i++) {
		free(p[i]);
		if (o->key == word)
			most = MAX(most, heap_objects_outgoing(o));
	}
	return most;
}

static void m15_little_gathers_for_a_heap_without_a_thread(void **state)
{
	static void *p[CLASSES][MANY_EACH];
	pthread_t id;

	assert_int_equal(pthread_create(&id, NULL, allocate_many, p), 0);
	pthread_join(id, NULL);
	for (unsigned c = 0; c < CLASSES; c++) {
		size_t room = MAX(HEAP_OUT_IDLE_MAX / class_size(c), (size_t)HEAP_OUT_IDLE_LEAST);

		assert_int_equal(most_gathered(p[c], c), MIN(room, (size_t)class_info[c].room));
	}
	heap_idle();
	assert_int_equal(in_use(), 0);
}

static void *leave_some(void *arg)
{
	void **p = arg;

	for (int i = 0; i < 100; i++)
		p[i] = malloc(1000);
	return NULL;
}

static void m13_heap_of_a_thread_that_ended_is_whole(void **state)
{
	void *p[100];
	pthread_t id;

	for (int round = 0; round < 50; round++) {
		assert_int_equal(pthread_create(&id, NULL, leave_some, p), 0);
		pthread_join(id, NULL);
		for (int i = 0; i < 100; i++)
			free(p[i]);
	}
	heap_idle();
	assert_int_equal(in_use(), 0);
	assert_true(heap_count() < 10);
}

/* What a thread keeps of objects with a slab each goes before a large block moves. */
static void m13_runs_that_are_cleared_are_there(void **state)
{
	enum { N = 40, SIZE = 50000 };
	void *p[N], *small = malloc(100);
	size_t before, kept;

	for (unsigned i = 0; i < N; i++)
		p[i] = malloc(SIZE);
	free(small);
	before = heap_cached_bytes();
	for (unsigned i = 0; i < N; i++)
		free(p[i]);
	kept = heap_cached_bytes();
	assert_true(kept >= before + SIZE);
	assert_true(kept <= before + HEAP_PARKED_SINGLE_MAX + 4 * 57344);
	heap_clear_runs();
	assert_true(heap_cached_bytes() <= before);
	assert_null(pages_check());
	for (unsigned i = 0; i < N; i++) {
		p[i] = malloc(SIZE);
		memset(p[i], (int)i, SIZE);
	}
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(*((unsigned char *)p[i] + SIZE - 1), i);
		free(p[i]);
	}
	free(realloc(malloc(3 << 20), 9 << 20));
	assert_null(pages_check());
}

/* More empty magazines go round than a heap keeps: they go through the stock, whole batches. */
static void m13_batches_of_the_stock_are_whole(void **state)
{
	enum { N = 40 * 63 };
	static void *p[4][N];

	for (unsigned round = 0; round < 6; round++) {
		for (unsigned i = 0; i < N; i++)
			for (unsigned k = 0; k < 4; k++)
				p[k][i] = malloc(16 + 300 * k);
		for (unsigned i = 0; i < N; i++)
			for (unsigned k = 0; k < 4; k++) {
				memset(p[k][i], (int)round, 16);
				free(p[k][i]);
			}
		census_release(SIZE_MAX, 0);
	}
}

static void free_keeps_errno(void **state)
{
	for (size_t size = 16; size <= 32 << 20; size *= 4) {
		void *p = malloc(size);

		errno = ERANGE;
		free(p);
		assert_int_equal(errno, ERANGE);
	}
	errno = ERANGE;
	free(NULL);
	assert_int_equal(errno, ERANGE);
}

static void all_goes_back(void **state)
{
	static void *p[1000];
	struct census c;

	for (int i = 0; i < 1000; i++) {
		p[i] = malloc(20000);
		memset(p[i], 1, 20000);
	}
	for (int i = 0; i < 1000; i++)
		free(p[i]);
	assert_true(census_release(SIZE_MAX, 0) >= 1000 * 20000);
	census_take(&c);
	assert_int_equal(c.pages.dirty, 0);
	assert_int_equal(c.used, 0);
	assert_null(pages_check());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(m14_with_checks_it_is_told_at_once),
		cmocka_unit_test(m14_wrong_free_is_told),
		cmocka_unit_test(m14_double_free_is_told_when_the_magazine_goes_back),
		cmocka_unit_test(m11_objects_do_not_overlap),
		cmocka_unit_test(aligned_blocks_are_aligned),
		cmocka_unit_test(new_memory_is_zero_where_it_has_to_be),
		cmocka_unit_test(realloc_keeps_all_that_is_usable),
		cmocka_unit_test(sizes_near_overflow_fail),
		cmocka_unit_test(m12_what_a_thread_freed_for_others_arrives_when_it_ends),
		cmocka_unit_test(m15_little_gathers_for_a_heap_without_a_thread),
		cmocka_unit_test(m13_heap_of_a_thread_that_ended_is_whole),
		cmocka_unit_test(m13_runs_that_are_cleared_are_there),
		cmocka_unit_test(m13_batches_of_the_stock_are_whole),
		cmocka_unit_test(free_keeps_errno),
		cmocka_unit_test(all_goes_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
