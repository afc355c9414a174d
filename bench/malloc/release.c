/* SPDX-License-Identifier: MIT */
/* bench/malloc/release.c - how much memory goes back when the process's malloc is asked to.
 *
 *	release CASE            own, idle, scattered, passed or large
 *
 * own        everything was freed by the thread that allocated it, and asks
 * idle       freed by threads that now sleep, and never call malloc again
 * scattered  the same, with one object in 20 still alive
 * passed     allocated by such threads, freed by another: their inboxes are full
 * large      blocks of 1 to 8 MiB, freed: they are in a cache, if there is one
 *
 * Counted are the pages of freed objects on which nothing is alive: which of them does the kernel
 * still have after the call? Meanwhile a thread allocates and frees small objects; its slowest call
 * counts, less the time that it was ready to run and did not. The bare madvise of as many bytes is
 * measured, too. Prints a JSON line. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/prng.h"

enum { THREADS = 4, PAGE = 4096, ALIVE_OF = 20, OBJECTS_MAX = 1 << 19 };
#define TOTAL (256 * MiB)
#define TOTAL_LARGE (512 * MiB)

struct object {
	char *p;
	size_t size;
};

/* Not from malloc: this must not be in what is measured. */
static struct object *objects;
static pthread_barrier_t allocated, freed;

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "release: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static uint64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * NS_PER_SEC + (uint64_t)t.tv_nsec;
}

/* ---- objects ---- */

static bool is_alive(size_t i, bool scattered)
{
	return scattered && mix64(i) % ALIVE_OF == 0;
}

static struct object allocate(uint64_t random, bool large)
{
	size_t doubling = 64ULL << random % 7;          /* up to 8 KiB */
	size_t size = large ? MiB << random % 4 : doubling + (random >> 32) % doubling;
	struct object o = { malloc(size), size };

	if (!o.p)
		die("malloc");
	memset(o.p, 1, size);
	return o;
}

/* Objects @from to before @to, of a thread. */
struct part {
	size_t from, to, bytes;
	bool large, frees, scattered;
};

static void fill_part(struct part *part)
{
	struct prng prng = { part->from + 1 };

	for (size_t left = part->bytes; part->to < part->from + OBJECTS_MAX / THREADS;) {
		struct object *o = &objects[part->to++];

		*o = allocate(prng_next(&prng), part->large);
		if (o->size >= left)
			break;
		left -= o->size;
	}
}

static void free_part(const struct part *part)
{
	for (size_t i = part->from; i < part->to; i++) {
		if (!is_alive(i, part->scattered))
			free(objects[i].p);
	}
}

static void *own_thread(void *arg)
{
	struct part *part = arg;

	fill_part(part);
	pthread_barrier_wait(&allocated);
	if (part->frees)
		free_part(part);
	pthread_barrier_wait(&freed);
	pause();
	return NULL;
}

/* By the thread that asks. */
static bool is_own(const char *name)
{
	return !strcmp(name, "own") || !strcmp(name, "large");
}

/* All that was allocated is freed as the case wants it. */
static void prepare(const char *name, struct part *parts, unsigned n)
{
	bool large = !strcmp(name, "large"), own = is_own(name);

	pthread_barrier_init(&allocated, NULL, n + 1);
	pthread_barrier_init(&freed, NULL, n + 1);
	for (unsigned i = 0; i < n; i++) {
		pthread_t t;

		parts[i] = (struct part){
			.from = (size_t)i * (OBJECTS_MAX / THREADS),
			.to = (size_t)i * (OBJECTS_MAX / THREADS),
			.bytes = (large ? TOTAL_LARGE : TOTAL) / n,
			.large = large,
			.frees = own || strcmp(name, "passed"),
			.scattered = !strcmp(name, "scattered"),
		};
		if (own)
			fill_part(&parts[i]);
		else if (pthread_create(&t, NULL, own_thread, &parts[i]))
			die("pthread_create");
	}
	for (unsigned i = 0; own && i < n; i++)
		free_part(&parts[i]);
	if (own)
		return;
	pthread_barrier_wait(&allocated);
	for (unsigned i = 0; i < n; i++) {
		if (!parts[i].frees)
			free_part(&parts[i]);
	}
	pthread_barrier_wait(&freed);
	usleep(20000);
}

/* ---- pages ---- */

static int by_page(const void *a, const void *b)
{
	uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;

	return x < y ? -1 : x > y;
}

/* Pages of objects, sorted, each with 1 in its lowest bit if something on it is alive. */
static uintptr_t *pages;
static size_t page_count;

static void collect_pages(const struct part *parts, unsigned n)
{
	size_t room = (TOTAL_LARGE + TOTAL) / PAGE + 3 * (size_t)OBJECTS_MAX, kept = 0;

	pages = map(room * sizeof(*pages));
	for (unsigned t = 0; t < n; t++) {
		for (size_t i = parts[t].from; i < parts[t].to; i++) {
			uintptr_t p = (uintptr_t)objects[i].p, end = p + objects[i].size;

			for (p = align_down(p, PAGE); p < end; p += PAGE)
				pages[page_count++] = p | is_alive(i, parts[t].scattered);
		}
	}
	qsort(pages, page_count, sizeof(*pages), by_page);
	for (size_t i = 0; i < page_count; i++) {
		if (kept && (pages[kept - 1] & ~(uintptr_t)1) == (pages[i] & ~(uintptr_t)1))
			pages[kept - 1] |= pages[i];
		else
			pages[kept++] = pages[i];
	}
	page_count = kept;
}

/* How many free pages there are, and how many of them are resident. */
static size_t count_free(size_t *ret_resident)
{
	size_t n = 0;

	*ret_resident = 0;
	for (size_t i = 0; i < page_count; i++) {
		unsigned char there = 0;

		if (pages[i] & 1)
			continue;
		n++;
		if (!mincore((char *)pages[i], PAGE, &there))
			*ret_resident += there & 1;
	}
	return n;
}

/* ---- somebody else, who goes on ---- */

static atomic_bool warm, goes, over, stop;
static uint64_t worst_ns;

/* How long this thread has been ready to run and did not. */
static uint64_t waited_ns(int fd)
{
	char text[100];
	unsigned long long ran, waited;
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		die("schedstat");
	text[n] = '\0';
	if (sscanf(text, "%llu %llu", &ran, &waited) != 2)
		die("schedstat");
	return waited;
}

/* It has its memory before there are freed objects, or it would sit on their pages. */
static void *go_on(void *arg)
{
	enum { HELD = 1000, GROUP = 64, WARM = 1000 };
	static void *held[HELD];
	int fd = open("/proc/thread-self/schedstat", O_RDONLY);
	struct prng prng = { 3 };

	for (unsigned groups = 0; !stop; groups++) {
		uint64_t slowest = 0, waited = waited_ns(fd);

		for (unsigned i = 0; i < GROUP; i++) {
			void **p = &held[prng_below(&prng, HELD)];
			size_t size = 16 + prng_below(&prng, 1000);
			uint64_t start = now_ns(CLOCK_MONOTONIC);

			free(*p);
			*p = malloc(size);
			slowest = MAX(slowest, now_ns(CLOCK_MONOTONIC) - start);
		}
		waited = waited_ns(fd) - waited;
		if (goes && !over && slowest > waited)
			worst_ns = MAX(worst_ns, slowest - waited);
		if (groups < WARM)
			continue;
		warm = true;
		while (!goes)
			usleep(1000);
	}
	return NULL;
}

/* ---- the call ---- */

static void release_all(void)
{
	size_t (*byre)(size_t) = (size_t (*)(size_t))dlsym(RTLD_DEFAULT, "byre_malloc_release");
	void (*collect)(bool) = (void (*)(bool))dlsym(RTLD_DEFAULT, "mi_collect");
	int (*ctl)(const char *, void *, size_t *, void *, size_t) =
		(int (*)(const char *, void *, size_t *, void *, size_t))
		dlsym(RTLD_DEFAULT, "mallctl");
	void (*extension)(void) =
		(void (*)(void))dlsym(RTLD_DEFAULT, "MallocExtension_ReleaseFreeMemory");

	if (byre)
		byre(SIZE_MAX);
	else if (collect)
		collect(true);
	else if (ctl)
		ctl("arena.4096.purge", NULL, NULL, NULL, 0);   /* 4096: all arenas */
	else if (extension)
		extension();
	else
		malloc_trim(0);
}

struct filling {
	char *at;
	size_t bytes;
};

static void *fill_bare(void *arg)
{
	const struct filling *f = arg;

	memset(f->at, 1, f->bytes);
	return NULL;
}

/* CPU time of giving as much back by hand, in one piece that as many threads have filled as the
 * allocator's. */
static uint64_t bare_ns(size_t bytes, unsigned threads)
{
	struct filling f[THREADS];
	pthread_t t[THREADS];
	char *p = map(bytes);
	uint64_t start;

	madvise(p, bytes, MADV_NOHUGEPAGE);
	for (unsigned i = 0; i < threads; i++) {
		f[i] = (struct filling){ p + bytes / threads * i, bytes / threads };
		if (pthread_create(&t[i], NULL, fill_bare, &f[i]))
			die("pthread_create");
	}
	for (unsigned i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	start = now_ns(CLOCK_THREAD_CPUTIME_ID);
	if (madvise(p, bytes, MADV_DONTNEED) < 0)
		die("madvise");
	start = now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
	munmap(p, bytes);
	return start;
}

/* Argument 1 is one of the cases. */
static bool is_known(int argc, char **argv)
{
	static const char *const names[] = { "own", "idle", "scattered", "passed", "large" };

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (argc == 2 && !strcmp(argv[1], names[i]))
			return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	struct part parts[THREADS];
	size_t n, before, after;
	uint64_t wall, cpu, bare;
	pthread_t other;

	if (!is_known(argc, argv)) {
		fprintf(stderr, "usage: release own|idle|scattered|passed|large\n");
		return 2;
	}
	objects = map(sizeof(*objects) * OBJECTS_MAX);
	if (pthread_create(&other, NULL, go_on, NULL))
		die("pthread_create");
	while (!warm)
		usleep(1000);
	prepare(argv[1], parts, THREADS);
	collect_pages(parts, THREADS);
	count_free(&before);
	goes = true;
	usleep(20000);
	wall = now_ns(CLOCK_MONOTONIC);
	cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
	release_all();
	cpu = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	wall = now_ns(CLOCK_MONOTONIC) - wall;
	over = true;
	n = count_free(&after);
	/* Beside the same other thread. */
	bare = bare_ns(before > after ? (before - after) * PAGE : PAGE * THREADS,
		       is_own(argv[1]) ? 1 : THREADS);
	stop = true;
	pthread_join(other, NULL);
	printf("{\"case\": \"%s\", \"free_mib\": %.1f, \"before_mib\": %.1f, \"after_mib\": %.1f, "
	       "\"back_percent\": %.2f, \"cpu_ms\": %.2f, \"wall_ms\": %.2f, "
	       "\"stall_ms\": %.3f, \"bare_ms\": %.2f}\n",
	       argv[1], (double)n * PAGE / (double)MiB, (double)before * PAGE / (double)MiB,
	       (double)after * PAGE / (double)MiB, 100.0 - 100.0 * (double)after / (double)n,
	       (double)cpu / 1e6, (double)wall / 1e6, (double)worst_ns / 1e6, (double)bare / 1e6);
	return 0;
}
