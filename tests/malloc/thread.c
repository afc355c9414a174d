/* SPDX-License-Identifier: MIT */
/* tests/malloc/thread.c - threads that come and go, free what others allocated, are interrupted. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>

#include "case.h"

static pthread_t start(void *(*fn)(void *), void *arg)
{
	pthread_attr_t attr;
	pthread_t t;

	CHECK(!pthread_attr_init(&attr) && !pthread_attr_setstacksize(&attr, 256 << 10));
	CHECK(!pthread_create(&t, &attr, fn, arg));
	pthread_attr_destroy(&attr);
	return t;
}

/* ---- thousands of threads ---- */

enum { AT_A_TIME = 32, GENERATIONS = 150, LEFT = 20, USED = 300 };

struct life {
	void *left[LEFT];
	unsigned seed;
};

static void *live(void *arg)
{
	struct life *life = arg;
	struct prng prng = { life->seed };
	void *used[USED];

	for (unsigned i = 0; i < LEFT; i++)             /* of a thread that is gone */
		free(life->left[i]);
	for (unsigned i = 0; i < USED; i++) {
		size_t size = 1 + prng_below(&prng, i % 50 ? 1500 : 100000);

		used[i] = malloc(size);
		CHECK(used[i]);
		memset(used[i], 1, size);
	}
	memcpy(life->left, used, sizeof(life->left));
	for (unsigned i = LEFT; i < USED; i++)
		free(used[i]);
	return NULL;
}

/* What ended threads held is used again. */
static void threads_by_the_thousand(void)
{
	static struct life lives[AT_A_TIME];
	pthread_t threads[AT_A_TIME];
	size_t early = 0;

	for (unsigned g = 0; g < GENERATIONS; g++) {
		for (unsigned i = 0; i < AT_A_TIME; i++) {
			lives[i].seed = g * AT_A_TIME + i;
			threads[i] = start(live, &lives[i]);
		}
		for (unsigned i = 0; i < AT_A_TIME; i++)
			CHECK(!pthread_join(threads[i], NULL));
		if (g == GENERATIONS / 3)
			early = resident_bytes();
	}
	CHECK(resident_bytes() < early + early / 2 + (8 << 20));
}

/* ---- a thread that only frees ---- */

enum { PASSED = 4000, PASSES = 600 };

static struct {
	pthread_barrier_t barrier;
	void *blocks[PASSED];
} passing;

static void *only_free(void *arg)
{
	for (unsigned pass = 0; pass < PASSES; pass++) {
		pthread_barrier_wait(&passing.barrier);
		for (unsigned i = 0; i < PASSED; i++)
			free(passing.blocks[i]);
		pthread_barrier_wait(&passing.barrier);
	}
	return NULL;
}

/* 1 MiB is alive at most; what is freed elsewhere comes back to be used. */
static void thread_that_only_frees(void)
{
	size_t early = resident_bytes();
	pthread_t t;

	CHECK(!pthread_barrier_init(&passing.barrier, NULL, 2));
	t = start(only_free, NULL);
	for (unsigned pass = 0; pass < PASSES; pass++) {
		for (unsigned i = 0; i < PASSED; i++) {
			passing.blocks[i] = malloc(256);
			CHECK(passing.blocks[i]);
			memset(passing.blocks[i], 1, 256);
		}
		pthread_barrier_wait(&passing.barrier);
		pthread_barrier_wait(&passing.barrier);
	}
	CHECK(!pthread_join(t, NULL));
	CHECK(resident_bytes() < early + (24 << 20));
}

/* ---- destructors of threads' data ---- */

static pthread_key_t keys[3];
static atomic_uint destroyed;

/* The first two times it sets itself again, so that it runs after others, too. */
static void destroy(void *arg)
{
	unsigned *rounds = arg;
	void *p = malloc(1000);

	CHECK(p);
	free(p);
	if (--*rounds == 0) {
		free(rounds);
		destroyed++;
		return;
	}
	CHECK(!pthread_setspecific(keys[*rounds % 3], rounds));
}

static void *use_keys(void *arg)
{
	for (unsigned i = 0; i < 3; i++) {
		unsigned *rounds = malloc(sizeof(*rounds));

		CHECK(rounds);
		*rounds = i == 0 ? 3 : 1;
		CHECK(!pthread_setspecific(keys[i], rounds));
	}
	return malloc(100);
}

static void destructors_free(void)
{
	for (unsigned i = 0; i < 3; i++)
		CHECK(!pthread_key_create(&keys[i], destroy));
	for (unsigned i = 0; i < 500; i++) {
		void *p;

		CHECK(!pthread_join(start(use_keys, NULL), &p));
		free(p);
	}
	/* Some are set to a key whose round is over: the system may then forget them. */
	CHECK(destroyed >= 1000);
}

/* ---- signals ---- */

static volatile sig_atomic_t ticks, stop_ticks;

static void on_tick(int sig)
{
	ticks = ticks + 1;
	errno = 77;
}

static void *allocate_until_told(void *arg)
{
	struct prng prng = { (uintptr_t)arg };
	void *held[200] = { NULL };

	while (!stop_ticks) {
		unsigned i = (unsigned)prng_below(&prng, 200);
		size_t size = 1 + prng_below(&prng, 3000);

		free(held[i]);
		held[i] = malloc(size);
		CHECK(held[i]);
		fill(held[i], MIN(size, (size_t)64), i);
	}
	for (unsigned i = 0; i < 200; i++)
		free(held[i]);
	return NULL;
}

static void signals_interrupt(void)
{
	struct itimerval often = { { 0, 500 }, { 0, 500 } };
	struct sigaction sa = { .sa_handler = on_tick };        /* no SA_RESTART */
	pthread_t threads[3];

	CHECK(!sigaction(SIGPROF, &sa, NULL) && !setitimer(ITIMER_PROF, &often, NULL));
	for (unsigned i = 0; i < 3; i++)
		threads[i] = start(allocate_until_told, (void *)(uintptr_t)(i + 1));
	while (ticks < 100)
		usleep(1000);
	stop_ticks = 1;
	for (unsigned i = 0; i < 3; i++)
		CHECK(!pthread_join(threads[i], NULL));
}

static void on_alarm(int sig)
{
	void *p = malloc(5000), *q = realloc(malloc(10), 100000);

	CHECK(p && q);
	free(p);
	free(q);
	ticks = ticks + 1;
}

/* Allowed where the signal comes while the program is not in malloc. */
static void handlers_allocate(void)
{
	sigset_t block, none;

	signal(SIGUSR1, on_alarm);
	sigemptyset(&none);
	sigemptyset(&block);
	sigaddset(&block, SIGUSR1);
	sigprocmask(SIG_BLOCK, &block, NULL);
	for (int i = 0; i < 1000; i++) {
		raise(SIGUSR1);
		sigsuspend(&none);
		free(malloc(100));
	}
	CHECK(ticks == 1000);
}

/* ---- an end while others allocate ---- */

static void *late;

static void free_late(void)
{
	free(late);
	late = malloc(100);
	CHECK(late);
	free(late);
}

static void exit_while_others_allocate(void)
{
	late = malloc(100);
	CHECK(!atexit(free_late));
	for (unsigned i = 0; i < 4; i++)
		start(allocate_until_told, (void *)(uintptr_t)(i + 1));
	usleep(20000);
	exit(0);
}

const struct test_case cases_thread[] = {
	{ .name = "threads_by_the_thousand", .run = threads_by_the_thousand, .flags = NATIVE },
	{ .name = "thread_that_only_frees", .run = thread_that_only_frees },
	{ .name = "destructors_free", .run = destructors_free },
	{ .name = "signals_interrupt", .run = signals_interrupt },
	{ .name = "handlers_allocate", .run = handlers_allocate },
	{ .name = "exit_while_others_allocate", .run = exit_while_others_allocate },
	{ .name = NULL },
};
