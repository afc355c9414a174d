/* SPDX-License-Identifier: MIT */
/* tests/malloc/fork.c - fork from a process whose threads allocate: the child goes on as one that
 * has all of the memory and none of the other threads. */
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "case.h"

enum { THREADS = 4, SHARED = 256, FORKS = 150 };

static atomic_bool stop;
static _Atomic(void *) shared[SHARED];          /* so that threads free each other's */

static void *allocate(void *arg)
{
	struct prng prng = { (uintptr_t)arg };

	while (!stop) {
		size_t size = 16 + prng_below(&prng, prng_below(&prng, 50) ? 2000 : 300000);
		void *p = malloc(size);

		CHECK(p);
		fill(p, 16, 1);
		free(atomic_exchange(&shared[prng_below(&prng, SHARED)], p));
	}
	return NULL;
}

static void *one_round(void *arg)
{
	void *held[100];

	for (unsigned i = 0; i < 100; i++) {
		held[i] = malloc(some_sizes[i % some_sizes_count]);
		CHECK(held[i]);
		memset(held[i], 1, 1);
	}
	for (unsigned i = 0; i < 100; i++)
		free(held[i]);
	return NULL;
}

/* In the child: frees what was its parent's, allocates, has a thread, gives back. */
static _Noreturn void be_child(void **mine, unsigned count)
{
	pthread_t t;

	alarm(60);
	for (unsigned i = 0; i < count; i++) {
		CHECK(is_filled(mine[i], 500, i));
		free(mine[i]);
	}
	for (unsigned i = 0; i < SHARED; i++)
		free(shared[i]);
	one_round(NULL);
	CHECK(!pthread_create(&t, NULL, one_round, NULL) && !pthread_join(t, NULL));
	malloc_trim(0);
	one_round(NULL);
	exit(0);
}

static void wait_for(pid_t pid)
{
	int status;

	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void fork_some(unsigned times)
{
	void *mine[50];

	for (unsigned i = 0; i < 50; i++) {
		mine[i] = malloc(500);
		CHECK(mine[i]);
		fill(mine[i], 500, i);
	}
	for (unsigned n = 0; n < times; n++) {
		pid_t pid = fork();

		if (pid == 0)
			be_child(mine, 50);
		wait_for(pid);
	}
	for (unsigned i = 0; i < 50; i++) {
		CHECK(is_filled(mine[i], 500, i));
		free(mine[i]);
	}
}

static void start_all(pthread_t *threads)
{
	for (unsigned i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, allocate, (void *)(uintptr_t)(i + 1)));
}

static void stop_all(pthread_t *threads)
{
	stop = true;
	for (unsigned i = 0; i < THREADS; i++)
		CHECK(!pthread_join(threads[i], NULL));
}

static void fork_while_others_allocate(void)
{
	pthread_t threads[THREADS];

	start_all(threads);
	fork_some(FORKS);
	stop_all(threads);
}

static void *fork_from_here(void *arg)
{
	fork_some(30);
	return NULL;
}

/* Several threads fork, beside those that allocate; none is the first thread. */
static void fork_from_threads(void)
{
	pthread_t threads[THREADS], forkers[3];

	start_all(threads);
	for (unsigned i = 0; i < 3; i++)
		CHECK(!pthread_create(&forkers[i], NULL, fork_from_here, NULL));
	for (unsigned i = 0; i < 3; i++)
		CHECK(!pthread_join(forkers[i], NULL));
	stop_all(threads);
}

static void fork_of_forks(void)
{
	for (unsigned depth = 0; depth < 30; depth++) {
		void *p = malloc(1000);
		pid_t pid = fork();

		CHECK(p);
		free(p);
		one_round(NULL);
		if (pid) {
			wait_for(pid);
			return;
		}
	}
}

/* posix_spawn shares the memory until exec. */
static void spawn_while_others_allocate(void)
{
	static char name[] = "true";
	char *argv[] = { name, NULL };
	pthread_t threads[THREADS];

	start_all(threads);
	for (unsigned i = 0; i < 50; i++) {
		pid_t pid;

		CHECK(!posix_spawnp(&pid, "true", NULL, NULL, argv, environ));
		wait_for(pid);
	}
	stop_all(threads);
}

const struct test_case cases_fork[] = {
	{ .name = "fork_while_others_allocate", .run = fork_while_others_allocate,
	  .flags = NATIVE },
	{ .name = "fork_from_threads", .run = fork_from_threads, .flags = NATIVE },
	{ .name = "fork_of_forks", .run = fork_of_forks },
	{ .name = "spawn_while_others_allocate", .run = spawn_while_others_allocate },
	{ .name = NULL },
};
