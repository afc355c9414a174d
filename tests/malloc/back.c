/* SPDX-License-Identifier: MIT */
/* tests/malloc/back.c - memory is given back beside all that can happen meanwhile: threads that
 * allocate, pass on and end, forks, libraries that come and go. $MALLOC_SECONDS is how long. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

#include "case.h"

enum { LIVES = 3, SHARED = 512, SECONDS = 2 };

struct block {
	size_t size;
	uint64_t seed;
};

static atomic_bool stop;
static _Atomic(struct block *) shared[SHARED];
static size_t (*release)(size_t);
static void (*decay)(unsigned);
static int (*background)(int);

static struct block *make(struct prng *prng)
{
	size_t size = sizeof(struct block) +
		prng_below(prng, prng_below(prng, 40) ? 3000 : 600000);
	struct block *b = malloc(size);

	CHECK(b);
	*b = (struct block){ size, prng_next(prng) };
	fill(b + 1, size - sizeof(*b), b->seed);
	return b;
}

static void drop(struct block *b)
{
	if (!b)
		return;
	CHECK(is_filled(b + 1, b->size - sizeof(*b), b->seed));
	free(b);
}

/* A short one: it leaves what it has to others, and ends. */
static void *life(void *arg)
{
	struct prng prng = { (uintptr_t)arg };

	for (unsigned i = 0; i < 2000 && !stop; i++)
		drop(atomic_exchange(&shared[prng_below(&prng, SHARED)], make(&prng)));
	return NULL;
}

static void *lives(void *arg)
{
	for (uintptr_t i = 0; !stop; i++) {
		pthread_t t;

		CHECK(!pthread_create(&t, NULL, life, (void *)((uintptr_t)arg + i * LIVES)));
		CHECK(!pthread_join(t, NULL));
	}
	return NULL;
}

static void *give_back(void *arg)
{
	struct prng prng = { (uintptr_t)arg };

	while (!stop) {
		if (!release || prng_below(&prng, 3) == 0)
			malloc_trim(prng_below(&prng, 2) * 100000);
		else
			release(prng_below(&prng, 2) ? SIZE_MAX : prng_below(&prng, 300000));
		if (background && prng_below(&prng, 10) == 0)
			CHECK(!background((int)prng_below(&prng, 2)));
		usleep((useconds_t)prng_below(&prng, 3000));
	}
	return NULL;
}

static void *libraries(void *arg)
{
	while (!stop)
		open_and_close_libraries(arg);
	return NULL;
}

static void fork_once(void)
{
	struct prng prng = { 9 };
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		alarm(60);
		for (unsigned i = 0; i < SHARED; i++)
			drop(atomic_exchange(&shared[i], make(&prng)));
		for (unsigned i = 0; i < SHARED; i++)
			drop(shared[i]);
		malloc_trim(0);
		/* The child has nobody who could have locked anything. */
		CHECK(!background || (!background(1) && !background(0)));
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && !status);
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void find_functions(void)
{
	if (!is_byre())
		return;
	release = (size_t (*)(size_t))must_find("byre_malloc_release");
	decay = (void (*)(unsigned))must_find("byre_malloc_decay");
	background = (int (*)(int))must_find("byre_malloc_background");
	decay(8);
}

static void given_back_beside_all_else(void)
{
	const char *told = getenv("MALLOC_SECONDS");
	uint64_t end = now_ms() + 1000 * (told ? strtoull(told, NULL, 10) : SECONDS);
	pthread_t threads[LIVES + 3];
	unsigned n = 0;

	find_functions();
	alarm(told ? 0 : 300);
	for (uintptr_t i = 0; i < LIVES; i++)
		CHECK(!pthread_create(&threads[n++], NULL, lives, (void *)(i + 1)));
	for (uintptr_t i = 0; i < 2; i++)
		CHECK(!pthread_create(&threads[n++], NULL, give_back, (void *)(i + 1)));
	CHECK(!pthread_create(&threads[n++], NULL, libraries, NULL));
	do {
		fork_once();
		usleep(10000);
	} while (now_ms() < end);
	stop = true;
	while (n)
		CHECK(!pthread_join(threads[--n], NULL));
	for (unsigned i = 0; i < SHARED; i++)
		drop(shared[i]);
	CHECK(!background || !background(0));
}

/* What was allocated and freed goes back without anybody's asking. */
static void bursts_go_by_themselves(void)
{
	enum { BLOCKS = 400, BYTES = 100000 };
	static void *held[BLOCKS];
	size_t before;

	find_functions();
	if (!decay)
		case_skip("others have other rules");
	decay(100);
	before = resident_bytes();
	for (unsigned i = 0; i < BLOCKS; i++) {
		held[i] = malloc(BYTES);
		CHECK(held[i]);
		memset(held[i], 1, BYTES);
	}
	CHECK(resident_bytes() > before + (size_t)BLOCKS * BYTES * 9 / 10);
	for (unsigned i = 0; i < BLOCKS; i++)
		free(held[i]);
	CHECK(!background(1));
	for (unsigned i = 0; i < 6000 && resident_bytes() > before + BLOCKS * BYTES / 10; i++)
		usleep(10000);
	CHECK(resident_bytes() <= before + BLOCKS * BYTES / 10);
}

const struct test_case cases_back[] = {
	{ .name = "given_back_beside_all_else", .run = given_back_beside_all_else },
	{ .name = "bursts_go_by_themselves", .run = bursts_go_by_themselves },
	{ .name = NULL },
};
