/* SPDX-License-Identifier: MIT */
/* bench/malloc/bursts.c - what stays resident after bursts of work.
 *
 *	bursts [quiet|background]
 *
 * A server with LIVE bytes of its own gets a burst: four threads allocate 512 MiB of objects of 64
 * bytes to 16 KiB and larger buffers, pass a part of them on, free all, and sleep. Then a thread
 * answers a few small requests a millisecond for as long as the pause is; with "quiet" nobody does
 * anything; with "background" neither, but an allocator that has a thread for that is told to use
 * it. Ten times. A JSON line a burst: what is resident beyond what the process had at first, with
 * only the live objects, at the burst's end, and each 100 ms thereafter. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/prng.h"

enum { THREADS = 4, BURSTS = 10, SAMPLES = 12, SAMPLE_MS = 100, OBJECTS_MAX = 1 << 19 };
#define BURST (512 * MiB)
#define LIVE (64 * MiB)

struct worker {
	pthread_t id;
	struct prng prng;
	void **objects;                 /* of the one before: freed by this one */
	size_t n;
};

static struct worker workers[THREADS];
static pthread_barrier_t begun, filled, freed;

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "bursts: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *allocate(struct prng *p, size_t *ret_size)
{
	size_t size = 64ULL << prng_below(p, 8);
	void *at;

	if (prng_below(p, 100) == 0)
		size = 64 * KiB << prng_below(p, 5);
	size += prng_below(p, size);
	at = malloc(size);
	if (!at)
		die("malloc");
	memset(at, 1, size);
	*ret_size = size;
	return at;
}

static void fill(struct worker *w, size_t bytes)
{
	size_t size;

	for (w->n = 0; bytes && w->n < OBJECTS_MAX; bytes -= MIN(bytes, size))
		w->objects[w->n++] = allocate(&w->prng, &size);
}

/* Most by the thread that allocated them, one in eight by the next one. */
static void free_some(struct worker *w, bool passed)
{
	for (size_t i = 0; i < w->n; i++)
		if ((i % 8 == 0) == passed)
			free(w->objects[i]);
}

static void *work(void *arg)
{
	struct worker *w = arg, *next = &workers[(w - workers + 1) % THREADS];

	for (;;) {
		pthread_barrier_wait(&begun);
		fill(w, BURST / THREADS);
		pthread_barrier_wait(&filled);
		free_some(w, false);
		free_some(next, true);
		pthread_barrier_wait(&freed);
	}
	return NULL;
}

static size_t resident(void)
{
	char text[100];
	unsigned long long all, here;
	int fd = open("/proc/self/statm", O_RDONLY);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	close(fd);
	if (n <= 0)
		die("statm");
	text[n] = '\0';
	if (sscanf(text, "%llu %llu", &all, &here) != 2)
		die("statm");
	return here * (size_t)sysconf(_SC_PAGESIZE);
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Requests that come in while nothing much happens. */
static void answer(struct prng *p)
{
	static void *held[500];

	for (unsigned i = 0; i < 20; i++) {
		void **at = &held[prng_below(p, ARRAY_SIZE(held))];

		free(*at);
		*at = malloc(16 + prng_below(p, 2000));
	}
}

static void pause_for(unsigned ms, struct prng *p, bool quiet)
{
	const struct timespec one = { .tv_nsec = 1000000 };

	for (uint64_t end = now_ms() + ms; now_ms() < end;) {
		if (!quiet)
			answer(p);
		nanosleep(&one, NULL);
	}
}

static void ask_for_background(void)
{
	int (*byre)(int) = (int (*)(int))dlsym(RTLD_DEFAULT, "byre_malloc_background");
	int (*ctl)(const char *, void *, size_t *, void *, size_t) =
		(int (*)(const char *, void *, size_t *, void *, size_t))
		dlsym(RTLD_DEFAULT, "mallctl");
	bool yes = true;

	if (byre)
		byre(1);
	else if (ctl)
		ctl("background_thread", NULL, NULL, &yes, sizeof(yes));
}

static double mib(size_t bytes, size_t base)
{
	return ((double)bytes - (double)base) / (double)MiB;
}

static void burst(unsigned number, size_t base, size_t live, struct prng *p, bool quiet)
{
	size_t at_end, samples[SAMPLES];

	pthread_barrier_wait(&begun);
	pthread_barrier_wait(&filled);
	pthread_barrier_wait(&freed);
	at_end = resident();
	for (unsigned i = 0; i < SAMPLES; i++) {
		pause_for(SAMPLE_MS, p, quiet);
		samples[i] = resident();
	}
	printf("{\"burst\": %u, \"live_mib\": %.1f, \"end_mib\": %.1f, \"after_mib\": [", number,
	       mib(live, base), mib(at_end, base));
	for (unsigned i = 0; i < SAMPLES; i++)
		printf("%s%.1f", i ? ", " : "", mib(samples[i], base));
	printf("]}\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	bool background = argc == 2 && !strcmp(argv[1], "background");
	bool quiet = background || (argc == 2 && !strcmp(argv[1], "quiet"));
	static void *objects[THREADS][OBJECTS_MAX];
	struct prng prng = { 1 };
	size_t size, base, with_live;

	if (argc > 2 || (argc == 2 && !quiet)) {
		fprintf(stderr, "usage: bursts [quiet|background]\n");
		return 2;
	}
	/* What the program needs for itself is not the allocator's. */
	memset(objects, 1, sizeof(objects));
	if (background)
		ask_for_background();
	base = resident();
	for (size_t live = 0; live < LIVE; live += size)
		allocate(&prng, &size);
	/* What the answers hold is live, too. */
	pause_for(SAMPLE_MS, &prng, false);
	with_live = resident();
	pthread_barrier_init(&begun, NULL, THREADS + 1);
	pthread_barrier_init(&filled, NULL, THREADS + 1);
	pthread_barrier_init(&freed, NULL, THREADS + 1);
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i].prng.state = i + 2;
		workers[i].objects = objects[i];
		if (pthread_create(&workers[i].id, NULL, work, &workers[i]))
			die("pthread_create");
	}
	for (unsigned i = 0; i < BURSTS; i++)
		burst(i, base, with_live, &prng, quiet);
	return 0;
}
