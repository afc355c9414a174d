/* SPDX-License-Identifier: MIT */
/* mem/decay_test.c - what goes back by itself, and when. Time is the machine's, which may be busy:
 * that something stays is asked for times far from the limit only. */
#include "mem/test_names.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/sanitizers.h"
#include "mem/api.h"
#include "mem/census.h"
#include "mem/decay.h"
#include "mem/test_resident.h"

enum { OBJECTS = 30000, SIZE = 1000, ALIVE_OF = 20 };

static void sleep_ms(long ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

/* Waits until no more than @bytes are resident, for a minute at most; with @traffic the caller
 * takes slow paths meanwhile. */
static bool shrinks_to(size_t bytes, bool traffic)
{
	for (int i = 0; i < 6000; i++) {
		if (test_resident() <= bytes)
			return true;
		for (int k = 0; traffic && k < 40; k++) {
			void *volatile p = malloc(200 * 1024);

			free(p);
			p = malloc(400 * 1024);
			free(p);
		}
		sleep_ms(10);
	}
	return false;
}

static void *objects[OBJECTS];
static size_t resident_full;            /* with all objects, of which nothing can go back */
static pthread_barrier_t filled, done;

static void *fill_and_sleep(void *arg)
{
	for (unsigned i = 0; i < OBJECTS; i++) {
		objects[i] = malloc(SIZE);
		memset(objects[i], (int)i, SIZE);
	}
	resident_full = test_resident();
	/* In long rows, so that there are whole pages of them. */
	for (unsigned i = 0; i < OBJECTS; i++)
		if (i / 64 % ALIVE_OF)
			free(objects[i]);
	pthread_barrier_wait(&filled);
	pthread_barrier_wait(&done);
	return NULL;
}

/* Objects of a thread that sleeps: what it has in magazines, its free slabs, and the pages of those
 * that are partly used. */
static void sleeper(bool traffic)
{
	size_t least;
	pthread_t id;

	census_release(SIZE_MAX, 0);
	least = test_resident();
	pthread_barrier_init(&filled, NULL, 2);
	pthread_barrier_init(&done, NULL, 2);
	assert_int_equal(pthread_create(&id, NULL, fill_and_sleep, NULL), 0);
	pthread_barrier_wait(&filled);
	assert_true(resident_full > least + OBJECTS * SIZE / 2);
	/* A page on either side of each row of objects. */
	assert_true(shrinks_to(least + OBJECTS / ALIVE_OF * (SIZE + 2 * OS_PAGE / 64) + MiB,
			       traffic));
	pthread_barrier_wait(&done);
	pthread_join(id, NULL);
	for (unsigned i = 0; i < OBJECTS; i++) {
		const unsigned char *p = objects[i];

		if (i / 64 % ALIVE_OF)
			continue;
		for (unsigned k = 0; k < SIZE; k++)
			assert_int_equal(p[k], i & 255);
		free(objects[i]);
	}
}

static void g14_memory_of_threads_that_sleep_goes_on_slow_paths(void **state)
{
	decay_set(200);
	sleeper(true);
}

static void g14_and_by_the_thread(void **state)
{
	decay_set(200);
	assert_int_equal(decay_background(true), 0);
	assert_int_equal(decay_background(true), 0);
	sleeper(false);
	assert_int_equal(decay_background(false), 0);
	assert_int_equal(decay_background(false), 0);
}

static void burst(void)
{
	static void *p[100];

	for (int i = 0; i < 100; i++) {
		p[i] = malloc(300 << 10);
		memset(p[i], 1, 300 << 10);
	}
	for (int i = 0; i < 100; i++)
		free(p[i]);
}

/* Bursts follow each other at a fraction of the decay time: their memory stays. */
static void g13_what_is_needed_again_stays(void **state)
{
	struct pages_stats before, after;

	census_release(SIZE_MAX, 0);
	decay_set(100000);
	assert_int_equal(decay_background(true), 0);
	burst();
	pages_stats(&before);
	for (int i = 0; i < 20; i++) {
		sleep_ms(20);
		burst();
	}
	pages_stats(&after);
	assert_int_equal(after.purged, before.purged);
	assert_int_equal(decay_background(false), 0);
	decay_set(200);
	assert_true(shrinks_to(test_resident() - 25 * MiB, true));
}

static void zero_is_never(void **state)
{
	struct pages_stats before, after;

	decay_set(0);
	census_release(SIZE_MAX, 0);
	burst();
	pages_stats(&before);
	sleep_ms(20);
	for (int i = 0; i < 1000; i++)
		free(malloc(400 << 10));
	pages_stats(&after);
	assert_int_equal(after.purged, before.purged);
}

/* A child of a fork has no thread, but gives back on slow paths, and can start one. */
static void g14_child_of_a_fork_decays(void **state)
{
	size_t least;
	int status;
	pid_t pid;

	census_release(SIZE_MAX, 0);
	least = test_resident();
	decay_set(100);
	assert_int_equal(decay_background(true), 0);
	burst();
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		if (!shrinks_to(least + 4 * MiB, true))
			_exit(1);
#if !HAS_TSAN            /* which starts no threads in the child of a fork */
		burst();
		if (decay_background(true))
			_exit(2);
		if (!shrinks_to(least + 4 * MiB, false))
			_exit(3);
#endif
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(decay_background(false), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(g14_memory_of_threads_that_sleep_goes_on_slow_paths),
		cmocka_unit_test(g14_and_by_the_thread),
		cmocka_unit_test(g13_what_is_needed_again_stays),
		cmocka_unit_test(zero_is_never),
		cmocka_unit_test(g14_child_of_a_fork_decays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
