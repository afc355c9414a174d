/* SPDX-License-Identifier: MIT */
/* mem/os_test.c - the window: growing, what lies in the way, no memory; and large blocks, which are
 * the first to meet all that. */
#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "base/prng.h"
#include "mem/heap.h"
#include "mem/large.h"
#include "mem/os.h"
#include "mem/pages.h"

static void fill(unsigned char *p, size_t len, uint64_t seed)
{
	struct prng r = { seed };

	for (size_t i = 0; i < len; i += 512)
		p[i] = (unsigned char)prng_next(&r);
}

static bool is_filled(const unsigned char *p, size_t len, uint64_t seed)
{
	struct prng r = { seed };

	for (size_t i = 0; i < len; i += 512)
		if (p[i] != (unsigned char)prng_next(&r))
			return false;
	return true;
}

static bool is_zero(const unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i += 512)
		if (p[i])
			return false;
	return true;
}

/* Somebody else's memory where slices would come next: they come behind it. */
static void o11_nothing_is_mapped_over(void **state)
{
	char *next = (char *)os_base + os_size(OS_SLICES);
	size_t len = 3 * SLICE_BYTES, dirty;
	unsigned char *theirs = mmap(next + SLICE_BYTES, len, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	unsigned char *ours[20];

	assert_ptr_equal(theirs, next + SLICE_BYTES);
	fill(theirs, len, 1);
	for (unsigned i = 0; i < 20; i++) {
		ours[i] = large_alloc(1 * MiB, 1, &dirty);
		assert_non_null(ours[i]);
		assert_true(ours[i] + 1 * MiB <= theirs || ours[i] >= theirs + len);
		fill(ours[i], 1 * MiB, i + 2);
	}
	assert_true((char *)ours[19] > next);
	assert_int_equal(map_of(theirs), MAP_CLEAN);
	for (unsigned i = 0; i < 20; i++) {
		assert_true(is_filled(ours[i], 1 * MiB, i + 2));
		large_free(ours[i]);
	}
	assert_true(is_filled(theirs, len, 1));
	assert_null(pages_check());
	munmap(theirs, len);
}

static size_t address_space(void)
{
	size_t pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%zu", &pages), 1);
	fclose(f);
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void o12_what_fails_leaves_nothing(void **state)
{
	size_t before = os_size(OS_SLICES), metadata = os_size(OS_BITS), dirty, space;
	struct rlimit old, low;
	void *p;

	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	low = (struct rlimit){ address_space() + 64 * MiB, old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_AS, &low), 0);
	space = address_space();
	assert_int_equal(os_grow(OS_SLICES, before + 1 * GiB), -ENOMEM);
	assert_int_equal(os_size(OS_SLICES), before);
	assert_int_equal(address_space(), space);
	assert_int_equal(os_grow(OS_HEAPS, 16 * GiB), -ENOMEM);
	assert_null(large_alloc(1 * GiB, 1, &dirty));
	p = large_alloc(1 * MiB, 1, &dirty);
	assert_non_null(p);
	large_free(p);
	assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
	p = large_alloc(1 * GiB, 1, &dirty);
	assert_non_null(p);
	large_free(p);
	assert_true(os_size(OS_BITS) > metadata);
	assert_null(pages_check());
}

/* A block keeps its content however it gets its new size: in place, at the end, copied, moved. */
static void large_blocks_keep_their_content(void **state)
{
	struct prng r = { 7 };
	enum { N = 6 };
	unsigned char *p[N] = { 0 };
	size_t len[N] = { 0 }, dirty;

	for (unsigned step = 0; step < 300; step++) {
		unsigned i = (unsigned)prng_below(&r, N);
		size_t to = CLASS_MAX + 1 + prng_below(&r, step % 10 ? 2 * MiB : 24 * MiB);

		if (!p[i]) {
			p[i] = large_alloc(to, (size_t)1 << prng_below(&r, 22), &dirty);
			assert_non_null(p[i]);
			assert_true(dirty || is_zero(p[i], to));
		} else if (prng_below(&r, 4)) {
			unsigned char *q = large_resize(p[i], to) ? p[i] :
							       large_move(p[i], to);

			assert_non_null(q);
			assert_true(is_filled(q, MIN(len[i], to), i));
			p[i] = q;
		} else {
			large_free(p[i]);
			p[i] = NULL;
			continue;
		}
		len[i] = to;
		fill(p[i], to, i);
		assert_true(large_usable(p[i]) >= to);
		assert_null(pages_check());
	}
	for (unsigned i = 0; i < N; i++)
		if (p[i])
			large_free(p[i]);
	assert_null(pages_check());
	large_count(&len[0], &len[1]);
	assert_int_equal(len[0], 0);
	assert_int_equal(len[1], 0);
}

static void the_last_block_grows_where_it_is(void **state)
{
	size_t dirty;
	/* Larger than all that is free: it comes from the end. */
	unsigned char *p = large_alloc(os_size(OS_SLICES), 1, &dirty);

	assert_non_null(p);
	assert_true(large_resize(p, 4 * GiB));
	large_free(p);
	assert_null(pages_check());
}

static void free_memory_is_limited(void **state)
{
	void *p[12];
	size_t dirty;

	for (unsigned i = 0; i < 12; i++)
		p[i] = large_alloc(32 * MiB, 1, &dirty);
	for (unsigned i = 0; i < 12; i++)
		large_free(p[i]);
	assert_true(pages_dirty() <= large_dirty_max + 32 * MiB);
}

static void the_environment_is_found(void **state)
{
	setenv("BYRE_OS_TEST", "a=b", 1);
	assert_string_equal(os_getenv("BYRE_OS_TEST"), "a=b");
	assert_null(os_getenv("BYRE_OS_TES"));
	assert_null(os_getenv("BYRE_OS_TEST="));
}

/* The flags of the mapping that @p is in, as /proc/self/smaps has them. */
static void mapping_flags(const void *p, char *ret, int size)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long lo, hi;
	bool here = false;
	char line[512];

	assert_non_null(f);
	ret[0] = '\0';
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &lo, &hi) == 2)
			here = (uintptr_t)p >= lo && (uintptr_t)p < hi;
		else if (here && !strncmp(line, "VmFlags:", 8))
			snprintf(ret, (size_t)size, "%s", line);
	}
	fclose(f);
}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Where a kernel makes huge pages of what is touched (asked to, whatever the machine is set to), it
 * does not do so with slices: neither new ones nor holes in them. */
static void o14_slices_are_not_for_huge_pages(void **state)
{
	enum { HUGE = 2 << 20 };
	size_t dirty, first = pages_alloc(6 * HUGE / SLICE_BYTES, HUGE / SLICE_BYTES, &dirty);
	char flags[512], *p = slice_at(first), *other;

	assert_true(first > 0);
	memset(p, 1, 6 * HUGE);
	mapping_flags(p, flags, sizeof(flags));
	if (!strstr(flags, " "))
		skip();                 /* a kernel that does not tell */
	other = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(other, MAP_FAILED);
	other = (char *)align_up((uintptr_t)other, HUGE);
	memset(other, 1, HUGE);
	if (madvise(other, HUGE, MADV_COLLAPSE))
		skip();                 /* none at all */
	assert_non_null(strstr(flags, " nh"));
	os_drop(p + HUGE, HUGE / 2);
	assert_int_equal(madvise(p + HUGE, HUGE, MADV_COLLAPSE), -1);
	assert_int_equal(os_renew(p + 2 * HUGE, HUGE), 0);
	assert_int_equal(madvise(p + 2 * HUGE, HUGE, MADV_COLLAPSE), -1);
	mapping_flags(p + 2 * HUGE, flags, sizeof(flags));
	assert_non_null(strstr(flags, " nh"));
	pages_free(first, false);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(o11_nothing_is_mapped_over),
		cmocka_unit_test(o12_what_fails_leaves_nothing),
		cmocka_unit_test(large_blocks_keep_their_content),
		cmocka_unit_test(the_last_block_grows_where_it_is),
		cmocka_unit_test(free_memory_is_limited),
		cmocka_unit_test(o14_slices_are_not_for_huge_pages),
		cmocka_unit_test(the_environment_is_found),
	};

	if (!heap_start())
		return 1;
	return cmocka_run_group_tests_name("os", tests, NULL, NULL);
}
