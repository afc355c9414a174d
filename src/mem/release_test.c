/* SPDX-License-Identifier: MIT */
/* mem/release_test.c - giving back step by step, with no lock held, and a fork in between. */
#include "mem/test_names.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/prng.h"
#include "mem/api.h"
#include "mem/census.h"
#include "mem/sweep.h"
#include "mem/test_resident.h"

enum { THREADS = 3, OBJECTS = 20000, ALIVE_OF = 20 };

static void *objects[THREADS][OBJECTS];
static size_t sizes[THREADS][OBJECTS];
static pthread_t ids[THREADS];
static pthread_barrier_t filled, done;
static unsigned drops;

static void count_drop(void)
{
	drops++;
}

static bool is_alive(unsigned i)
{
	return i % ALIVE_OF == 0;
}

/* Allocates, frees all but some, and sleeps with what it has in magazines. */
static void *fill(void *arg)
{
	void **mine = arg;
	unsigned t = (unsigned)(mine - objects[0]) / OBJECTS;
	struct prng p = { t + 1 };

	for (unsigned i = 0; i < OBJECTS; i++) {
		sizes[t][i] = 16 + prng_below(&p, prng_below(&p, 10) ? 3000 : 40000);
		mine[i] = malloc(sizes[t][i]);
		memset(mine[i], (int)i, sizes[t][i]);
	}
	for (unsigned i = 0; i < OBJECTS; i++)
		if (!is_alive(i))
			free(mine[i]);
	pthread_barrier_wait(&filled);
	pthread_barrier_wait(&done);
	return NULL;
}

static void start(void)
{
	pthread_barrier_init(&filled, NULL, THREADS + 1);
	pthread_barrier_init(&done, NULL, THREADS + 1);
	for (unsigned t = 0; t < THREADS; t++)
		assert_int_equal(pthread_create(&ids[t], NULL, fill, objects[t]), 0);
	pthread_barrier_wait(&filled);
}

/* What is alive has kept its content; frees it. */
static void finish(void)
{
	os_drop_hook = NULL;
	pthread_barrier_wait(&done);
	for (unsigned t = 0; t < THREADS; t++) {
		pthread_join(ids[t], NULL);
		for (unsigned i = 0; i < OBJECTS; i++) {
			const unsigned char *p = objects[t][i];

			if (!is_alive(i))
				continue;
			for (size_t k = 0; k < sizes[t][i]; k++)
				assert_int_equal(p[k], i & 255);
			free(objects[t][i]);
		}
	}
}

/* Each call ends when its budget has gone, and the next goes on where it stopped, until no more is
 * there than one call without a budget would leave. O13 is asserted in os.c at every drop. */
static void g12_o13_budget_is_kept_and_the_next_call_goes_on(void **state)
{
	size_t before, gone, sum = 0, least;
	unsigned calls = 0;

	start();
	os_drop_hook = count_drop;
	before = test_resident();
	do {
		drops = 0;
		gone = census_release(1 * MiB, 0);
		sum += gone;
		/* 1024 ranges of a page at least, or the one thing that goes beyond. */
		assert_true(gone < 1 * MiB + 2 * SLICE_BYTES);
		assert_true(drops <= 4 * THREADS + 8);
		calls++;
	} while (gone);
	least = test_resident();
	assert_true(sum >= before - least);
	assert_true(calls >= sum / (1 * MiB + 2 * SLICE_BYTES));
	/* Nothing was left. */
	assert_true(census_release(SIZE_MAX, 0) == 0);
	assert_true(before > 80 * MiB && least < before / 3);
	finish();
	assert_null(pages_check());
}

static void keeps_what_it_is_told_to_keep(void **state)
{
	void *p;

	census_release(SIZE_MAX, 0);
	p = malloc(32 * MiB);
	memset(p, 1, 32 * MiB);
	free(p);
	assert_true(pages_dirty() >= 32 * MiB);
	assert_int_equal(census_release(MiB, 64 * MiB), 0);
	assert_int_equal(census_release(MiB, 31 * MiB) / MiB, 1);
	census_release(SIZE_MAX, 8 * MiB);
	assert_int_equal(pages_dirty(), 8 * MiB);
	census_release(SIZE_MAX, 0);
	assert_int_equal(pages_dirty(), 0);
}

/* The kernel refuses to drop it; nobody waits for it. */
static void what_is_locked_stays(void **state)
{
	char *p;

	census_release(SIZE_MAX, 0);
	p = malloc(16 * MiB);
	memset(p, 1, 16 * MiB);
	/* Sanitizers make mlock() do nothing. */
	if (syscall(SYS_mlock, p, 16 * MiB)) {
		free(p);
		skip();
	}
	free(p);
	assert_true(pages_dirty() >= 16 * MiB);
	/* Little else is there. */
	assert_true(census_release(MiB, 0) < MiB);
	census_release(SIZE_MAX, 0);
	assert_int_equal(census_release(SIZE_MAX, 0), 0);
	assert_int_equal(pages_dirty(), 16 * MiB);
	assert_null(pages_check());
	syscall(SYS_munlock, p, 16 * MiB);
	assert_int_equal(census_release(SIZE_MAX, 0), 16 * MiB);
	assert_int_equal(pages_dirty(), 0);
}

/* Bytes of bitmaps that the kernel has memory for. */
static size_t resident_bitmaps(void)
{
	size_t pages = atomic_load(&pages_end) / PAGES_BITS_SLICES, n = 0;
	unsigned char there;

	for (size_t i = 0; i < pages; i++)
		if (!mincore(slab_bits(i * PAGES_BITS_SLICES), OS_PAGE, &there))
			n += (size_t)(there & 1) * OS_PAGE;
	return n;
}

/* In whatever pieces the slices go; but for a page or two where a slab went last. */
static void bitmaps_of_free_slices_go(void **state)
{
	static void *p[1 << 15];
	size_t before;

	for (unsigned i = 0; i < ARRAY_SIZE(p); i++) {
		p[i] = malloc(2000);
		memset(p[i], 1, 2000);
	}
	before = resident_bitmaps();
	assert_true(before >= 64 * MiB / SLICE_BYTES * SLAB_BITS_BYTES);
	for (unsigned i = 0; i < ARRAY_SIZE(p); i++)
		free(p[i]);
	while (census_release(MiB, 0))
		;
	assert_true(resident_bitmaps() < before / 16);
	assert_null(pages_check());
}

/* ---- fork ---- */

static size_t used_before;

static void child_has_it_all(void)
{
	struct pages_stats s;
	const char *wrong;

	os_drop_hook = NULL;
	mem_locks_held = 0;
	wrong = pages_check();
	if (wrong)
		_exit(2);
	pages_stats(&s);
	if (s.used > used_before)
		_exit(3);
	for (unsigned t = 0; t < THREADS; t++) {
		for (unsigned i = 0; i < OBJECTS; i++) {
			const unsigned char *p = objects[t][i];

			if (!is_alive(i))
				continue;
			if (p[0] != (i & 255) || p[sizes[t][i] - 1] != (i & 255))
				_exit(4);
			free(objects[t][i]);
		}
	}
	census_release(SIZE_MAX, 0);
	/* A slab that were held for ever would be in use for ever. */
	pages_stats(&s);
	if (s.used || s.dirty || pages_check())
		_exit(5);
	_exit(0);
}

/* In the middle of every fourth system call. */
static void fork_now(void)
{
	int status = 0;
	pid_t pid;

	if (drops++ % 4)
		return;
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		child_has_it_all();
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void g11_child_of_a_fork_during_a_release_has_it_all(void **state)
{
	struct pages_stats s;

	start();
	drops = 0;
	pages_stats(&s);
	used_before = s.used;
	os_drop_hook = fork_now;
	while (census_release(4 * MiB, 0))
		;
	assert_true(drops > 8);
	finish();
	census_release(SIZE_MAX, 0);
	pages_stats(&s);
	assert_int_equal(s.used, 0);
	assert_int_equal(s.dirty, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bitmaps_of_free_slices_go),
		cmocka_unit_test(g12_o13_budget_is_kept_and_the_next_call_goes_on),
		cmocka_unit_test(what_is_locked_stays),
		cmocka_unit_test(keeps_what_it_is_told_to_keep),
		cmocka_unit_test(g11_child_of_a_fork_during_a_release_has_it_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
