/* SPDX-License-Identifier: MIT */
/* tests/malloc/early.c - before constructors, after destructors, and libraries that come and go. */
#include <dlfcn.h>
#include <pthread.h>

#include "case.h"

static void *before_constructors, *in_constructor;

static void allocate_first(int argc, char **argv, char **env)
{
	before_constructors = malloc(3000);
	if (before_constructors)
		fill(before_constructors, 3000, 9);
	free(malloc(10));
}

__attribute__((section(".preinit_array"), used))
static void (*const first)(int, char **, char **) = allocate_first;

__attribute__((constructor(101)))
static void construct(void)
{
	in_constructor = calloc(3, 1000);
}

__attribute__((destructor(101)))
static void destruct(void)
{
	free(in_constructor);
	free(malloc(100));
	free(malloc(10 << 20));
}

static void before_constructors_run(void)
{
	CHECK(before_constructors && is_filled(before_constructors, 3000, 9));
	CHECK(in_constructor && is_zero(in_constructor, 3000));
	before_constructors = realloc(before_constructors, 100000);
	CHECK(before_constructors && is_filled(before_constructors, 3000, 9));
	free(before_constructors);
}

/* The library of allocating.c, beside this program. */
static void *open_library(void)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 64);
	void *library;

	CHECK(n > 0);
	path[n] = '\0';
	strcpy(strrchr(path, '/') + 1, "liballocating.so");
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		CHECK(library);
	}
	return library;
}

/* What a library allocated outlives it, and its constructors, destructors and per-thread data
 * allocate as well. */
void *open_and_close_libraries(void *arg)
{
	for (unsigned i = 0; i < 50; i++) {
		void *library = open_library();
		void *(*get)(size_t) = dlsym(library, "library_get");
		void (*put)(void *) = dlsym(library, "library_put");
		void *p, *q = malloc(500);

		CHECK(get && put && q);
		p = get(777);
		CHECK(p && is_zero(p, 777));
		put(q);
		CHECK(!dlclose(library));
		free(p);
	}
	return NULL;
}

static void libraries_come_and_go(void)
{
	pthread_t threads[4];

	open_and_close_libraries(NULL);
	for (unsigned i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, open_and_close_libraries, NULL));
	for (unsigned i = 0; i < 4; i++)
		CHECK(!pthread_join(threads[i], NULL));
}

static void *use_opened(void *arg)
{
	void *(*opened_malloc)(size_t) = dlsym(arg, "malloc");
	void (*opened_free)(void *) = dlsym(arg, "free");
	void *held[100];

	CHECK(opened_malloc && opened_free);
	for (unsigned i = 0; i < 100; i++) {
		held[i] = opened_malloc(some_sizes[i % some_sizes_count]);
		CHECK(held[i]);
	}
	for (unsigned i = 0; i < 100; i++)
		opened_free(held[i]);
	return NULL;
}

/* A malloc opened when the program has long had another: $MALLOC_LATE names the library. */
static void malloc_opened_late(void)
{
	const char *path = getenv("MALLOC_LATE");

	if (!path || !*path)
		case_skip("there is no library to open");
	for (unsigned i = 0; i < 20; i++) {
		void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
		pthread_t t;

		if (!library) {
			fprintf(stderr, "%s\n", dlerror());
			CHECK(library);
		}
		use_opened(library);
		CHECK(!pthread_create(&t, NULL, use_opened, library) && !pthread_join(t, NULL));
		CHECK(!dlclose(library));
		free(malloc(100));
	}
}

const struct test_case cases_early[] = {
	{ .name = "before_constructors_run", .run = before_constructors_run },
	{ .name = "libraries_come_and_go", .run = libraries_come_and_go },
	{ .name = "malloc_opened_late", .run = malloc_opened_late },
	{ .name = NULL },
};
