/* SPDX-License-Identifier: MIT */
/* tests/malloc/misuse.c - frees of what must not be freed. Each case must die.
 *
 * A pointer into memory that is not malloc's, or to where no object is, is refused at once. An
 * object freed twice is noticed when its magazine goes back to the slabs at the latest: these cases
 * allocate and free more until then. With checks switched on it is noticed at once, so there the
 * case ends right after. What is freed is a `void *' of which the compiler knows nothing. */
#include <pthread.h>
#include <sys/mman.h>

#include "case.h"

static char in_data[100] = "not from malloc";

/* Enough of the same size for whatever has gathered to go back; a thread that ends gives all. */
static void *use_much(void *arg)
{
	static _Thread_local void *held[20000];
	size_t size = (size_t)(uintptr_t)arg;

	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
			held[i] = malloc(size);
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
			free(held[i]);
	}
	malloc_trim(0);
	return NULL;
}

static void free_stack(void)
{
	char on_stack[64] = "";

	free(hide(on_stack + 16));
}

static void free_data(void)
{
	free(hide(in_data));
}

static void free_mapping(void)
{
	char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	free(hide(p + 4096));
}

static void free_wild(void)
{
	free(hide((void *)(uintptr_t)0x1234));
}

static void free_wild_noncanonical(void)
{
	free(hide((void *)(uintptr_t)0xdeadbeefdeadbeefULL));
}

static void free_never_allocated(void)
{
	char *p = malloc(64);

	CHECK(p);
	free(hide(p + (8 << 20)));
}

static void free_unaligned(void)
{
	char *p = malloc(64);

	free(hide(p + 1));
	use_much((void *)64);
}

static void free_inside_small(void)
{
	char *p = malloc(256);

	free(hide(p + 16));
	use_much((void *)256);
}

static void free_inside_medium(void)
{
	char *p = malloc(100000);

	free(hide(p + 4096));
	use_much((void *)100000);
}

static void free_inside_large(void)
{
	char *p = malloc(20 << 20);

	free(hide(p + (1 << 20)));
}

static void free_twice_large(void)
{
	void *p = hide(malloc(20 << 20)), *q = p;

	free(p);
	free(hide(q));
}

static void twice(size_t size)
{
	void *p = hide(malloc(size)), *q = p;

	free(p);
	free(hide(q));
}

static void free_twice_small(void)
{
	twice(64);
	use_much((void *)64);
}

static void free_twice_medium(void)
{
	twice(5000);
	use_much((void *)5000);
}

static void free_twice_page_run(void)
{
	twice(200000);
	for (unsigned i = 0; i < 2000; i++) {
		static void *held[300];

		held[i % 300] = malloc(200000);
		if (i % 300 == 299) {
			for (unsigned k = 0; k < 300; k++)
				free(held[k]);
		}
	}
	malloc_trim(0);
}

static void free_twice_apart(void)
{
	void *p[100], *again;

	for (unsigned i = 0; i < 100; i++)
		p[i] = hide(malloc(128));
	again = p[50];
	for (unsigned i = 0; i < 100; i++)
		free(p[i]);
	free(hide(again));
	use_much((void *)128);
}

static void free_twice_at_once(void)
{
	twice(64);
}

static void free_twice_apart_at_once(void)
{
	void *p[10], *again;

	for (unsigned i = 0; i < 10; i++)
		p[i] = hide(malloc(1000));
	again = p[5];
	for (unsigned i = 0; i < 10; i++)
		free(p[i]);
	free(hide(again));
}

static void free_inside_at_once(void)
{
	char *p = malloc(256);

	free(hide(p + 16));
}

static void *free_it(void *p)
{
	free(p);
	return NULL;
}

static void free_elsewhere(void *p)
{
	pthread_t t;

	CHECK(!pthread_create(&t, NULL, free_it, p) && !pthread_join(t, NULL));
}

static void free_twice_by_another(void)
{
	void *p = hide(malloc(64)), *q = p;

	free(p);
	free_elsewhere(hide(q));
	use_much((void *)64);
}

static void free_twice_by_others(void)
{
	void *p = hide(malloc(64)), *q = p;
	pthread_t t;

	free_elsewhere(p);
	free_elsewhere(hide(q));
	CHECK(!pthread_create(&t, NULL, use_much, (void *)64) && !pthread_join(t, NULL));
	use_much((void *)64);
}

static void realloc_stack(void)
{
	char on_stack[64] = "";

	free(realloc(hide(on_stack + 16), 1000));
}

static void realloc_freed(void)
{
	void *p = hide(malloc(20 << 20)), *q = p;

	free(p);
	free(realloc(hide(q), 30 << 20));
}

/* Written to after it was freed: neither dies nor gives out one block twice. */
static void write_after_free_spoils_nothing(void)
{
	enum { MANY = 2000 };
	static char *p[MANY];

	for (unsigned round = 0; round < 5; round++) {
		for (unsigned i = 0; i < MANY; i++)
			p[i] = hide(malloc(64));
		for (unsigned i = 0; i < MANY; i++) {
			char *stale = hide(p[i]);

			free(p[i]);
			memset(hide(stale), 0xff, 64);
		}
		for (unsigned i = 0; i < MANY; i++) {
			p[i] = malloc(64);
			CHECK(p[i]);
			fill(p[i], 64, i);
		}
		for (unsigned i = 0; i < MANY; i++) {
			CHECK(is_filled(p[i], 64, i));
			free(p[i]);
		}
	}
}

const struct test_case cases_misuse[] = {
	{ "free_stack", free_stack, DIES, "free" },
	{ "free_data", free_data, DIES, "free" },
	{ "free_mapping", free_mapping, DIES, "free" },
	{ "free_wild", free_wild, DIES, "1234" },
	{ "free_wild_noncanonical", free_wild_noncanonical, DIES, "deadbeefdeadbeef" },
	{ "free_never_allocated", free_never_allocated, DIES, "free" },
	{ "free_unaligned", free_unaligned, DIES, "free" },
	{ "free_inside_small", free_inside_small, DIES | BYRE_ONLY, "free" },
	{ "free_inside_medium", free_inside_medium, DIES | BYRE_ONLY, "free" },
	{ "free_inside_large", free_inside_large, DIES, "free" },
	{ "free_twice_large", free_twice_large, DIES, "free" },
	{ "free_twice_small", free_twice_small, DIES, "double free" },
	{ "free_twice_medium", free_twice_medium, DIES, "double free" },
	{ "free_twice_page_run", free_twice_page_run, DIES, "free" },
	{ "free_twice_apart", free_twice_apart, DIES | BYRE_ONLY, "double free" },
	{ "free_twice_by_another", free_twice_by_another, DIES | BYRE_ONLY, "double free" },
	{ "free_twice_by_others", free_twice_by_others, DIES | BYRE_ONLY, "double free" },
	{ "checked_free_twice", free_twice_at_once, DIES | BYRE_ONLY | CHECKED, "double free" },
	{ "checked_free_twice_apart", free_twice_apart_at_once, DIES | BYRE_ONLY | CHECKED,
	  "double free" },
	{ "checked_free_inside", free_inside_at_once, DIES | BYRE_ONLY | CHECKED, "free" },
	{ "realloc_stack", realloc_stack, DIES, "realloc" },
	{ "realloc_freed", realloc_freed, DIES, NULL },
	{ "write_after_free_spoils_nothing", write_after_free_spoils_nothing, BYRE_ONLY, NULL },
	{ .name = NULL },
};
