/* SPDX-License-Identifier: MIT */
/* tests/malloc/align.c - alignment in all forms. */
#include "case.h"

static bool is_at(const void *p, size_t align)
{
	return p && (uintptr_t)p % align == 0;
}

static void posix_memalign_aligns(void)
{
	static const size_t sizes[] = { 0, 1, 7, 16, 100, 4095, 4096, 5000, 70000, 1 << 20 };

	for (size_t align = 8; align <= 256 << 20; align *= 2) {
		for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
			void *p = NULL, *q = NULL;

			CHECK(!posix_memalign(&p, align, sizes[i]) && is_at(p, align));
			CHECK(!posix_memalign(&q, align, sizes[i]) && is_at(q, align) && p != q);
			CHECK(malloc_usable_size(p) >= sizes[i]);
			fill(p, sizes[i], 1);
			fill(q, sizes[i], 2);
			CHECK(is_filled(p, sizes[i], 1));
			free(p);
			CHECK(is_filled(q, sizes[i], 2));
			free(q);
		}
	}
}

static void posix_memalign_refuses(void)
{
	static const size_t wrong[] = { 0, 1, 2, 3, 4, 7, 9, 12, 24, 48, 100, 4095, 4097,
					SIZE_MAX, ((size_t)1 << 63) + 8 };
	int mark;
	void *p = &mark;

	for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
		errno = 1234;
		CHECK(posix_memalign(&p, hidden(wrong[i]), 64) == EINVAL);
		CHECK(p == &mark && errno == 1234);
	}
}

/* Not a power of two: refused, as newer C libraries do, or rounded up, as older ones. */
static void odd_alignments(void)
{
	static const size_t odd[] = { 3, 5, 6, 7, 12, 24, 33, 48, 100, 1000, 4097, 70000 };

	for (unsigned i = 0; i < ARRAY_SIZE(odd); i++) {
		size_t rounded = (size_t)1 << log2_ceil(odd[i]);
		void *p[2];

		errno = 0;
		p[0] = aligned_alloc(hidden(odd[i]), 64);
		CHECK(p[0] || errno == EINVAL);
		errno = 0;
		p[1] = memalign(hidden(odd[i]), 64);
		CHECK(p[1] || errno == EINVAL);
		for (unsigned k = 0; k < 2; k++) {
			CHECK(!p[k] || is_at(p[k], rounded));
			free(p[k]);
		}
	}
	for (size_t align = 1; align <= 4; align *= 2) {        /* less than anybody needs */
		void *p = memalign(hidden(align), 10), *q = aligned_alloc(hidden(align), 10);

		CHECK(is_at(p, 8) && is_at(q, 8));
		free(p);
		free(q);
	}
}

static void huge_alignments(void)
{
	for (unsigned log2 = 28; log2 < 64; log2++) {
		size_t align = hidden((size_t)1 << log2);
		void *p = NULL;
		int rc = posix_memalign(&p, align, 100);

		CHECK(rc == 0 || rc == ENOMEM || (log2 == 63 && rc == EINVAL));
		CHECK(rc || is_at(p, align));
		CHECK(rc == 0 || log2 > 32);
		if (!rc)
			fill(p, 100, log2);
		free(p);
		errno = 0;
		p = memalign(align, 5000);
		CHECK(is_at(p, align) || errno == ENOMEM || errno == EINVAL);
		free(p);
		errno = 0;
		CHECK(!aligned_alloc(align, hidden(SIZE_MAX - align + 1)) &&
		      (errno == ENOMEM || errno == EINVAL));
	}
}

static void aligned_alloc_of_any_size(void)
{
	for (size_t align = 16; align <= 64 << 10; align *= 2) {
		for (unsigned i = 0; i < some_sizes_count; i++) {
			size_t size = MIN(some_sizes[i], (size_t)1 << 20);
			char *p = aligned_alloc(align, size);

			CHECK(is_at(p, align));
			fill(p, size, align);
			CHECK(is_filled(p, size, align));
			free(p);
		}
	}
}

static void pages(void)
{
	for (unsigned i = 0; i < some_sizes_count; i++) {
		void *p = valloc(some_sizes[i]), *q = pvalloc(some_sizes[i]);

		CHECK(is_at(p, PAGE) && is_at(q, PAGE));
		CHECK(malloc_usable_size(q) >= align_up(some_sizes[i], PAGE));
		fill(q, align_up(some_sizes[i], PAGE), 1);
		fill(p, some_sizes[i], 2);
		free(p);
		free(q);
	}
	free(pvalloc(0));
}

/* Many at once, freed in another order: nothing overlaps. */
static void many_alignments_at_once(void)
{
	enum { MANY = 600 };
	static struct { void *p; size_t size; } blocks[MANY];
	struct prng prng = { 5 };

	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < MANY; i++) {
			size_t align = (size_t)8 << prng_below(&prng, 14);

			if (blocks[i].p) {
				CHECK(is_filled(blocks[i].p, blocks[i].size, i));
				free(blocks[i].p);
				blocks[i].p = NULL;
			}
			if (prng_below(&prng, 3) == 0)
				continue;
			blocks[i].size = prng_below(&prng, 3 * align + 100);
			CHECK(!posix_memalign(&blocks[i].p, align, blocks[i].size));
			CHECK(is_at(blocks[i].p, align));
			fill(blocks[i].p, blocks[i].size, i);
		}
	}
	for (unsigned i = 0; i < MANY; i++)
		free(blocks[i].p);
}

static void realloc_of_aligned_keeps_contents(void)
{
	for (size_t align = 32; align <= 64 << 10; align *= 2) {
		void *p = aligned_alloc(align, 1000);

		fill(p, 1000, align);
		p = realloc(p, 200);
		CHECK(p && is_filled(p, 200, align));
		p = realloc(p, 90000);
		CHECK(p && is_filled(p, 200, align));
		free(p);
	}
}

/* More than C promises: what was aligned stays so, larger or smaller. */
static void realloc_keeps_alignment(void)
{
	static const size_t sizes[] = { 100, 5000, 64, 70000, 300000, 9 << 20, 200, 4097 };

	for (size_t align = 32; align <= 8 << 10; align *= 2) {
		for (unsigned first = 0; first < ARRAY_SIZE(sizes); first++) {
			void *p = aligned_alloc(align, sizes[first]);

			for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
				p = realloc(p, sizes[(first + i) % ARRAY_SIZE(sizes)]);
				CHECK(is_at(p, align));
			}
			free(p);
		}
	}
}

const struct test_case cases_align[] = {
	{ .name = "posix_memalign_aligns", .run = posix_memalign_aligns },
	{ .name = "posix_memalign_refuses", .run = posix_memalign_refuses },
	{ .name = "odd_alignments", .run = odd_alignments },
	{ .name = "huge_alignments", .run = huge_alignments },
	{ .name = "aligned_alloc_of_any_size", .run = aligned_alloc_of_any_size },
	{ .name = "pages", .run = pages },
	{ .name = "many_alignments_at_once", .run = many_alignments_at_once },
	{ .name = "realloc_of_aligned_keeps_contents", .run = realloc_of_aligned_keeps_contents },
	{ .name = "realloc_keeps_alignment", .run = realloc_keeps_alignment, .flags = BYRE_ONLY },
	{ .name = NULL },
};
