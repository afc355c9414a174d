/* SPDX-License-Identifier: MIT */
/* region/steps_test.c - how many instructions one call takes at most, counted by single-stepping.
 *
 * The processor's trap flag is set around each call, and a handler counts the traps; what calling
 * costs by itself is measured on an empty function and subtracted. The order of the calls is meant
 * to be bad. No hooks are set, and resizing does not move. Limits are for x86-64 and a build that
 * is optimized and has no sanitizers; elsewhere the test is skipped.
 *
 * usage: steps_test [ROUNDS], 1 unless told: how often the scenes are played. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <byre/region.h>

#include "base/bits.h"
#include "base/prng.h"
#include "base/sanitizers.h"

#if defined(__x86_64__) && defined(__OPTIMIZE__) && !HAS_ASAN && !HAS_TSAN
#define TRAP_ON() __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq" : : : "memory", "cc")
#define TRAP_OFF() __asm__ volatile("pushfq; andl $~0x100, (%%rsp); popfq" : : : "memory", "cc")
#else
#define TRAP_ON() ((void)0)             /* then there are 0 traps, and the test is skipped */
#define TRAP_OFF() ((void)0)
#endif

enum { SKIPPED = 77, MEMORY = 16 << 20, SLOTS = 2000, PAGE = 4096 };
enum op { OP_NOTHING, OP_ALLOC, OP_FREE, OP_ALIGNED, OP_RESIZE, OPS };

static struct count {
	const char *name;
	unsigned limit, table_limit, most;
	unsigned long calls;
	const char *scene;              /* where it took the most */
} counts[OPS] = {
	{ .name = "nothing" },
	{ .name = "allocate", .limit = 120, .table_limit = 150 },
	{ .name = "free", .limit = 120, .table_limit = 150 },
	{ .name = "allocate aligned", .limit = 250, .table_limit = 250 },
	{ .name = "resize in place", .limit = 250, .table_limit = 250 },
};

static volatile unsigned traps;
static const char *scene;
static struct byre_region *region;
static void *slots[SLOTS];
static struct prng rng = { 1 };

static void on_trap(int sig)
{
	traps++;
}

/* The scenes misuse nothing. */
static void on_fault(void *cookie, const struct byre_region_fault *fault)
{
	fprintf(stderr, "%s: %s\n", scene, fault->what);
	abort();
}

static void note(enum op op)
{
	struct count *c = &counts[op];

	c->calls++;
	if (traps > c->most) {
		c->most = traps;
		c->scene = scene;
	}
}

/* In the middle of this nothing may be added that the empty function does not have, too. */
#define COUNTED(op, call) do { \
	traps = 0; \
	TRAP_ON(); \
	call; \
	TRAP_OFF(); \
	note(op); \
} while (0)

static void *__attribute__((noinline)) nothing(struct byre_region *r, size_t a, size_t b)
{
	__asm__ volatile("" : : : "memory");
	return r;
}

static void *get(size_t size)
{
	void *p;

	COUNTED(OP_ALLOC, p = byre_region_alloc(region, size, 0));
	return p;
}

static void put(void *p)
{
	if (p)
		COUNTED(OP_FREE, byre_region_free(region, p));
}

static void *get_aligned(size_t size, size_t align)
{
	void *p;

	COUNTED(OP_ALIGNED, p = byre_region_alloc(region, size, align));
	if (p && (uintptr_t)p % align)
		abort();
	return p;
}

static void resize(void *p, size_t size)
{
	if (p)
		COUNTED(OP_RESIZE, byre_region_resize_in_place(region, p, size));
}

static void put_one(unsigned i)
{
	put(slots[i]);
	slots[i] = NULL;
}

static void put_every(unsigned n, unsigned from, unsigned step)
{
	for (unsigned i = from; i < n; i += step)
		put_one(i);
}

/* Every other block of many sizes is free, alone in its list; then the ones between come free. */
static void checkerboard(void)
{
	unsigned n = 120;

	scene = "checkerboard";
	for (unsigned i = 0; i < n; i++)
		slots[i] = get(i % 2 ? 100 + i : 32 + (size_t)i * i / 8);
	put_every(n, 0, 2);
	put_every(n, 1, 4);
	put_every(n, 3, 4);
}

/* Freeing blocks whose neighbours on both sides are free and each the only one of its level. */
static void both_sides(void)
{
	scene = "coalescing on both sides";
	for (unsigned a = 5; a < 20; a += 4) {
		for (unsigned b = 6; b < 20; b += 4) {
			void *p[5];
			size_t sizes[5] = { (size_t)1 << a, 500, ((size_t)1 << b) * 3 / 2, 16, 16 };

			for (unsigned i = 0; i < 5; i++)
				p[i] = get(sizes[i]);
			put(p[0]);
			put(p[2]);
			put(p[1]);
			put(p[4]);
			put(p[3]);
		}
	}
}

/* The same where each neighbour has others before and behind it in its list. */
static void both_sides_of_full_lists(void)
{
	void *p[2][3][4];

	scene = "coalescing on both sides, in full lists";
	for (unsigned i = 0; i < 3; i++) {
		for (unsigned j = 0; j < 4; j++) {
			p[0][i][j] = get(j == 0 ? 5000 : j == 1 ? 40000 : j == 2 ? 90000 : 16);
			p[1][i][j] = get(j == 0 ? 300 : j == 1 ? 4000 : j == 2 ? 300 : 16);
		}
	}
	for (unsigned k = 0; k < 2; k++) {
		for (unsigned i = 0; i < 3; i++) {
			put(p[k][i][0]);
			put(p[k][i][2]);
		}
		put(p[k][1][1]);
		put(p[k][2][1]);
		put(p[k][0][1]);
	}
	for (unsigned k = 0; k < 2; k++) {
		for (unsigned i = 0; i < 3; i++)
			put(p[k][i][3]);
	}
}

static void near_pages(void)
{
	unsigned n = 0;

	scene = "near-page sizes";
	for (int d = -40; d <= 40; d += 16) {
		for (size_t pages = 1; pages <= 3; pages++) {
			slots[n++] = get(pages * PAGE + (size_t)d);
			slots[n++] = get_aligned(PAGE + (size_t)d, PAGE);
		}
	}
	put_every(n, 1, 3);
	put_every(n, 0, 3);
	for (unsigned i = 2; i < n; i += 3) {
		resize(slots[i], 2 * PAGE);
		resize(slots[i], 100);
	}
	put_every(n, 2, 3);
}

/* Until nothing is left, the largest each time; just above it fails. */
static void largest(void)
{
	unsigned n = 0;
	size_t size;

	scene = "largest-block probes";
	for (unsigned i = 0; i < 60; i++)
		slots[n++] = get(prng_below(&rng, 60000));
	put_every(n, 0, 2);
	while ((size = byre_region_largest(region)) > 0 && n < 200) {
		if (get(size + (size >> 4) + 16))
			abort();
		slots[n] = get(size);
		if (!slots[n++])
			abort();
	}
	put_every(n, 0, 1);
}

/* First, middle and last of lists with several blocks. */
static void lists(void)
{
	scene = "first and last of a list";
	for (unsigned log2 = 5; log2 < 16; log2 += 3) {
		unsigned n = 0;

		for (unsigned i = 0; i < 8; i++) {
			slots[n++] = get((size_t)1 << log2);
			slots[n++] = get(40);
		}
		for (unsigned i = 0; i < 8; i++)
			put_one((i * 3 % 8) * 2);
		for (unsigned i = 0; i < 8; i++)
			put_one((i * 5 % 8) * 2 + 1);
	}
}

static size_t odd_size(void)
{
	uint64_t kind = prng_below(&rng, 4);

	if (kind == 0)
		return prng_below(&rng, 64);
	if (kind == 1)
		return prng_below(&rng, 3 * PAGE);
	if (kind == 2)
		return ((size_t)1 << prng_below(&rng, 19)) + prng_below(&rng, 17) - 8;
	return PAGE - prng_below(&rng, 32);
}

static void at_random(void)
{
	unsigned n = 100;

	scene = "at random";
	for (unsigned i = 0; i < 500; i++) {
		void **p = &slots[prng_below(&rng, n)];

		if (!*p && prng_below(&rng, 3))
			*p = get(odd_size());
		else if (!*p)
			*p = get_aligned(odd_size(), (size_t)32 << prng_below(&rng, 9));
		else if (prng_below(&rng, 3))
			put_one((unsigned)(p - slots));
		else
			resize(*p, odd_size());
	}
	put_every(n, 0, 1);
}

/* A region so large that its smallest and largest lists are far apart. */
static void small_and_huge(void)
{
	scene = "small requests from one huge block";
	for (unsigned i = 0; i < 50; i++)
		slots[i] = get(1 + i * 16);
	put_every(50, 1, 2);
	put_every(50, 0, 2);
	slots[0] = get(MEMORY);
	slots[1] = get(SIZE_MAX);
	slots[2] = get(byre_region_largest(region));
	put_every(3, 0, 1);
}

static void play(void)
{
	static void (*const scenes[])(void) = { checkerboard, both_sides,
						both_sides_of_full_lists, near_pages, largest,
						lists, at_random, small_and_huge };
	void *p;

	COUNTED(OP_NOTHING, p = nothing(region, 0, 0));
	for (unsigned i = 0; i < ARRAY_SIZE(scenes); i++) {
		scenes[i]();
		if (p != region || !byre_region_check(region, NULL))
			abort();
	}
}

/* Is a call in a region of this granule above its limit? */
static bool over_limit(size_t granule, unsigned rounds, void *memory)
{
	struct byre_region_config config = { .granule = granule, .hooks.report = on_fault };
	bool over = false;

	region = byre_region_init(memory, MEMORY, &config);
	for (unsigned i = 0; i < rounds; i++)
		play();
	for (enum op op = OP_ALLOC; op < OPS; op++) {
		struct count *c = &counts[op];
		unsigned most = c->most - counts[OP_NOTHING].most;
		unsigned limit = granule == BYRE_REGION_GRANULE ? c->limit : c->table_limit;

		printf("granule %4zu  %-16s  at most %3u instructions of %3u, in %lu calls (%s)\n",
		       granule, c->name, most, limit, c->calls, c->scene);
		over |= most > limit;
		c->most = 0;
		c->calls = 0;
	}
	return over;
}

int main(int argc, char **argv)
{
	unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
	void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    0);
	bool over;

	if (memory == MAP_FAILED || signal(SIGTRAP, on_trap) == SIG_ERR)
		return 1;
	COUNTED(OP_NOTHING, nothing(NULL, 0, 0));
	if (!traps) {
		puts("skipped: cannot count instructions on this machine, or in this build");
		return SKIPPED;
	}
	over = over_limit(BYRE_REGION_GRANULE, rounds, memory);
	over |= over_limit(PAGE, rounds, memory);
	return over;
}
