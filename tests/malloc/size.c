/* SPDX-License-Identifier: MIT */
/* tests/malloc/size.c - sizes, errno, contents. */
#include "case.h"

static void zero_sizes(void)
{
	void *a = malloc(hidden(0)), *b = malloc(hidden(0)), *c = calloc(0, 5), *d = calloc(5, 0);
	void *e = realloc(NULL, 0), *f = aligned_alloc(64, 0), *g;

	CHECK(a && b && c && d && e && f && a != b && c != d);
	CHECK((uintptr_t)f % 64 == 0);
	CHECK(!posix_memalign(&g, 32, 0) && (uintptr_t)g % 32 == 0);
	free(a);
	free(b);
	free(c);
	free(d);
	free(e);
	free(f);
	free(g);
	free(NULL);
}

/* As glibc has it: realloc to nothing is free, and says NULL without an error. */
static void realloc_to_zero_frees(void)
{
	size_t before;

	for (unsigned i = 0; i < 20; i++)
		CHECK(!realloc(malloc(4 << 20), hidden(0)));
	before = resident_bytes();
	for (unsigned i = 0; i < 2000; i++) {
		void *p = malloc(4 << 20), *q = malloc(100);

		CHECK(p && q);
		memset(p, 1, 64 << 10);
		errno = 0;
		CHECK(!realloc(p, hidden(0)) && !realloc(q, hidden(0)) && errno == 0);
	}
	CHECK(resident_bytes() < before + (32 << 20));
}

static void free_keeps_errno(void)
{
	for (unsigned i = 0; i < some_sizes_count; i++) {
		void *p = malloc(some_sizes[i]), *q = aligned_alloc(4096, some_sizes[i]);

		CHECK(p && q);
		errno = 1234;
		free(p);
		CHECK(errno == 1234);
		free(q);
		CHECK(errno == 1234);
	}
	free(NULL);
	CHECK(errno == 1234);
}

/* No object is larger than PTRDIFF_MAX, or differences of pointers into it would be wrong. */
static void too_large(void)
{
	static const size_t sizes[] = { (size_t)PTRDIFF_MAX + 1, PTRDIFF_MAX, SIZE_MAX,
					SIZE_MAX - 1, SIZE_MAX - 15, SIZE_MAX - 16, SIZE_MAX - 4095,
					SIZE_MAX - 4096, SIZE_MAX - 65535, SIZE_MAX / 2 + 4097,
					(size_t)PTRDIFF_MAX - 4095 };

	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		size_t size = hidden(sizes[i]);
		char *p = malloc(100);
		void *q = p;

		fill(p, 100, i);
		errno = 0;
		CHECK(!malloc(size) && errno == ENOMEM);
		errno = 0;
		CHECK(!calloc(size, 1) && errno == ENOMEM);
		errno = 0;
		CHECK(!calloc(1, size) && errno == ENOMEM);
		errno = 0;
		CHECK(!realloc(p, size) && errno == ENOMEM);
		errno = 0;
		CHECK(!reallocarray(p, 1, size) && errno == ENOMEM);
		CHECK(is_filled(p, 100, i));
		errno = 0;
		CHECK(!aligned_alloc(64, size) && errno == ENOMEM);
		errno = 0;
		CHECK(!memalign(4096, size) && errno == ENOMEM);
		errno = 0;
		CHECK(!valloc(size) && errno == ENOMEM);
		errno = 0;
		CHECK(!pvalloc(size) && errno == ENOMEM);
		errno = 0;
		CHECK(posix_memalign(&q, 64, size) == ENOMEM && q == p);
		free(p);
	}
}

static void products_that_wrap(void)
{
	static const size_t pairs[][2] = { { SIZE_MAX / 2 + 1, 2 }, { 1UL << 32, 1UL << 32 },
					   { SIZE_MAX, SIZE_MAX }, { 3, SIZE_MAX / 3 + 1 },
					   { SIZE_MAX / 16 + 1, 16 }, { 65536, 1UL << 48 } };
	char *p = malloc(50);

	fill(p, 50, 1);
	for (unsigned i = 0; i < ARRAY_SIZE(pairs); i++) {
		size_t n = hidden(pairs[i][0]), size = hidden(pairs[i][1]);

		errno = 0;
		CHECK(!calloc(n, size) && errno == ENOMEM);
		errno = 0;
		CHECK(!calloc(size, n) && errno == ENOMEM);
		errno = 0;
		CHECK(!reallocarray(p, n, size) && errno == ENOMEM);
		errno = 0;
		CHECK(!reallocarray(NULL, n, size) && errno == ENOMEM);
		CHECK(is_filled(p, 50, 1));
	}
	p = reallocarray(p, 100, 7);
	CHECK(p && is_filled(p, 50, 1));
	free(p);
}

static void calloc_zeroes_what_was_used(void)
{
	for (unsigned i = 0; i < some_sizes_count; i++) {
		size_t size = some_sizes[i];
		unsigned n = size > 100000 ? 3 : 40;
		void *p[40];

		for (unsigned round = 0; round < 3; round++) {
			for (unsigned k = 0; k < n; k++) {
				p[k] = calloc(1, size);
				CHECK(p[k] && is_zero(p[k], size));
				memset(p[k], 0xff, malloc_usable_size(p[k]));
			}
			for (unsigned k = 0; k < n; k++)
				free(p[k]);
		}
	}
}

/* What malloc_usable_size promises may be written. */
static void usable_size_is_usable(void)
{
	CHECK(malloc_usable_size(NULL) == 0);
	for (unsigned i = 0; i < some_sizes_count; i++) {
		void *p[8];

		for (unsigned k = 0; k < 8; k++) {
			p[k] = malloc(some_sizes[i]);
			CHECK(p[k] && malloc_usable_size(p[k]) >= some_sizes[i]);
			fill(p[k], malloc_usable_size(p[k]), k);
		}
		for (unsigned k = 0; k < 8; k++) {
			CHECK(is_filled(p[k], malloc_usable_size(p[k]), k));
			free(p[k]);
		}
	}
}

static void every_size(void)
{
	enum { HELD = 64 };
	struct { unsigned char *p; size_t size; } held[HELD] = { { NULL, 0 } };

	for (size_t size = 1; size < 140000; size += size < 5000 ? 1 : 37) {
		unsigned k = (unsigned)(size % HELD);

		CHECK(!held[k].p || is_filled(held[k].p, held[k].size, held[k].size));
		free(held[k].p);
		held[k].p = malloc(size);
		held[k].size = size;
		CHECK(held[k].p && (uintptr_t)held[k].p % 16 == 0);
		fill(held[k].p, size, size);
	}
	for (unsigned k = 0; k < HELD; k++)
		free(held[k].p);
}

static void realloc_keeps_contents(void)
{
	for (unsigned i = 0; i < some_sizes_count; i++) {
		for (unsigned k = 0; k < some_sizes_count; k++) {
			size_t from = some_sizes[i], to = some_sizes[k];
			void *p;

			if (MAX(from, to) > 1 << 20 && (i + k) % 7)
				continue;
			p = malloc(from);
			CHECK(p);
			fill(p, from, i);
			p = realloc(p, to);
			CHECK(p && is_filled(p, MIN(from, to), i));
			fill(p, to, k);
			CHECK(malloc_usable_size(p) >= to);
			free(p);
		}
	}
}

static void realloc_in_steps(void)
{
	char *p = NULL;

	for (size_t size = 1; size < 8 << 20; size += size / 5 + 1) {
		size_t old = size == 1 ? 0 : malloc_usable_size(p);

		p = realloc(p, size);
		CHECK(p && (uintptr_t)p % 16 == 0);
		CHECK(is_filled(p, MIN(old, size), 3));
		fill(p, malloc_usable_size(p), 3);
	}
	for (size_t size = malloc_usable_size(p); size > 0; size -= size / 4 + 1) {
		p = realloc(p, size);
		CHECK(p && is_filled(p, size, 3));
	}
	free(p);
}

/* Two that grow in turn are in each other's way, so they must move again and again; and what was
 * grown in place moves as a whole. */
static void realloc_in_turn(void)
{
	for (size_t step = 4; step <= 32; step *= 2) {
		char *p[2] = { NULL, NULL };
		size_t old[2] = { 0, 0 };

		for (size_t size = 100; size < 5 << 20; size += size / step) {
			for (unsigned k = 0; k < 2; k++) {
				p[k] = realloc(p[k], size);
				CHECK(p[k] && is_filled(p[k], old[k], k));
				fill(p[k] + old[k] / 8 * 8, size - old[k] / 8 * 8, k + old[k] / 8);
				old[k] = size;
			}
		}
		free(p[0]);
		free(p[1]);
	}
}

static void free_sized_frees(void)
{
	void (*free_sized)(void *, size_t) = must_find("free_sized");
	void (*free_aligned_sized)(void *, size_t, size_t) = must_find("free_aligned_sized");
	size_t before = 0;

	for (unsigned round = 0; round < 200; round++) {
		for (unsigned i = 0; i < some_sizes_count; i++) {
			void *p = malloc(some_sizes[i]), *q = aligned_alloc(256, some_sizes[i]);

			CHECK(p && q);
			errno = 1234;
			free_sized(p, some_sizes[i]);
			free_aligned_sized(q, 256, some_sizes[i]);
			free_sized(NULL, 5);
			free_aligned_sized(NULL, 64, 64);
			CHECK(errno == 1234);
		}
		if (round == 10)
			before = resident_bytes();
	}
	CHECK(resident_bytes() < before + (16 << 20));
}

/* What the C library allocated is freed by the program, and the other way round. */
static void shared_with_libc(void)
{
	char *line = malloc(1), *text = NULL, *path = realpath(".", NULL);
	size_t room = 1, len;
	FILE *f = tmpfile(), *m = open_memstream(&text, &len);

	CHECK(line && path && f && m);
	for (unsigned i = 0; i < 1000; i++) {
		fprintf(f, "%0*u\n", (int)i + 1, 7);
		fprintf(m, "%u ", i);
	}
	rewind(f);
	for (unsigned i = 0; i < 1000; i++)
		CHECK(getline(&line, &room, f) == (ssize_t)i + 2 && room >= i + 2);
	CHECK(!fclose(m) && len == strlen(text) && !fclose(f));
	free(line);
	free(text);
	free(path);
	CHECK(asprintf(&text, "%s", "x") == 1);
	free(text);
	text = strdup("y");
	free(text);
}

const struct test_case cases_size[] = {
	{ .name = "zero_sizes", .run = zero_sizes },
	{ .name = "realloc_to_zero_frees", .run = realloc_to_zero_frees },
	{ .name = "free_keeps_errno", .run = free_keeps_errno },
	{ .name = "too_large", .run = too_large },
	{ .name = "products_that_wrap", .run = products_that_wrap },
	{ .name = "calloc_zeroes_what_was_used", .run = calloc_zeroes_what_was_used },
	{ .name = "usable_size_is_usable", .run = usable_size_is_usable },
	{ .name = "every_size", .run = every_size },
	{ .name = "realloc_keeps_contents", .run = realloc_keeps_contents },
	{ .name = "realloc_in_steps", .run = realloc_in_steps },
	{ .name = "realloc_in_turn", .run = realloc_in_turn },
	{ .name = "free_sized_frees", .run = free_sized_frees },
	{ .name = "shared_with_libc", .run = shared_with_libc },
	{ .name = NULL },
};
