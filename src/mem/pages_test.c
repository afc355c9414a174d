/* SPDX-License-Identifier: MIT */
/* mem/pages_test.c - runs of slices beside a list of who has which. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "mem/heap.h"
#include "mem/sweep.h"

enum { RUNS = 64, SLICES = 1 << 14, STEPS = 2000 };

struct run {
	size_t first, n;
};

static struct run runs[RUNS];
static unsigned char owner[SLICES];     /* of each slice; 0: nobody */

static bool is_zero(size_t slice)
{
	const uint64_t *w = slice_at(slice);

	for (size_t i = 0; i < SLICE_BYTES / sizeof(*w); i++)
		if (w[i])
			return false;
	return true;
}

static void own(size_t first, size_t n, unsigned from, unsigned to)
{
	assert_true(first > 0 && first + n <= SLICES);
	for (size_t i = first; i < first + n; i++) {
		assert_int_equal(owner[i], from);
		owner[i] = (unsigned char)to;
	}
}

static uint32_t word(size_t slice)
{
	return atomic_load(map_at(slice));
}

static void map_agrees(const struct run *r)
{
	assert_int_equal(word(r->first), MAP_RUN);
	for (size_t i = 1; i < r->n; i++)
		assert_int_equal(word(r->first + i), MAP_INNER);
	assert_int_equal(pages_run(r->first), r->n);
}

static void take(struct run *r, unsigned id, struct prng *p)
{
	size_t align = (size_t)1 << prng_below(p, 6);
	size_t dirty = 0, used = 0;

	r->n = 1 + prng_below(p, prng_below(p, 4) ? 8 : 200);
	r->first = pages_alloc(r->n, align, &dirty);
	assert_true(r->first > 0);
	assert_int_equal(((uintptr_t)slice_at(r->first) >> SLICE_LOG2) % align, 0);
	own(r->first, r->n, 0, id);
	map_agrees(r);
	for (size_t i = 0; i < r->n; i++)
		used += !is_zero(r->first + i);
	assert_true(used <= dirty && dirty <= r->n);
	/* One word for each slice will do to see whether zeros are promised falsely. */
	for (size_t i = 0; i < r->n; i++)
		*(uint64_t *)slice_at(r->first + i) = id;
}

static void release(struct run *r, unsigned id)
{
	for (size_t i = 0; i < r->n; i++)
		assert_int_equal(*(uint64_t *)slice_at(r->first + i), id);
	own(r->first, r->n, id, 0);
	pages_free(r->first, false);
	for (size_t i = 0; i < r->n; i++)
		assert_true(word(r->first + i) <= MAP_DIRTY);
	r->n = 0;
}

static void resize(struct run *r, unsigned id, struct prng *p)
{
	size_t n = 1 + prng_below(p, r->n * 2);

	if (!pages_resize(r->first, n)) {
		assert_true(n > r->n);
		return;
	}
	if (n > r->n)
		own(r->first + r->n, n - r->n, 0, id);
	else
		own(r->first + n, r->n - n, id, 0);
	for (size_t i = r->n; i < n; i++)
		*(uint64_t *)slice_at(r->first + i) = id;
	r->n = n;
	map_agrees(r);
}

static void p11_p12_runs_do_not_overlap_and_zeros_are_zeros(void **state)
{
	struct prng p = { 11 };
	const char *wrong;

	assert_true(heap_start());
	for (int step = 0; step < STEPS; step++) {
		unsigned i = (unsigned)prng_below(&p, RUNS);

		if (prng_below(&p, 100) == 0)
			sweep_round(SWEEP_SLICES,
				    prng_below(&p, 2) ? SIZE_MAX : prng_below(&p, 8 << 20));
		else if (!runs[i].n)
			take(&runs[i], i + 1, &p);
		else if (prng_below(&p, 3) == 0)
			resize(&runs[i], i + 1, &p);
		else
			release(&runs[i], i + 1);
		wrong = pages_check();
		if (wrong)
			fail_msg("step %d: %s", step, wrong);
	}
	for (unsigned i = 0; i < RUNS; i++)
		if (runs[i].n)
			release(&runs[i], i + 1);
	assert_null(pages_check());
}

static void all_free_pages_go_back(void **state)
{
	struct pages_stats stats;
	size_t dirty = pages_dirty();

	assert_true(dirty > 0);
	assert_true(sweep_round(SWEEP_SLICES, SIZE_MAX) >= dirty);
	assert_int_equal(pages_dirty(), 0);
	pages_stats(&stats);
	assert_int_equal(stats.used, 0);
	assert_true(stats.purged >= dirty && stats.peak > 0);
	assert_null(pages_check());
}

static void purge_keeps_to_its_budget(void **state)
{
	size_t dirty, first = pages_alloc(64, 1, &dirty), gone;

	assert_true(first > 0);
	pages_free(first, false);
	assert_int_equal(pages_dirty(), 64 << SLICE_LOG2);
	gone = sweep_round(SWEEP_SLICES, 1 << SLICE_LOG2);
	assert_true(gone >= 1 << SLICE_LOG2);
	assert_int_equal(pages_dirty(), (64 << SLICE_LOG2) - gone);
	sweep_round(SWEEP_SLICES, SIZE_MAX);
	assert_int_equal(pages_dirty(), 0);
}

static void what_is_not_ours_has_no_owner(void **state)
{
	int here;

	assert_true(map_of(&here) <= MAP_DIRTY);
	assert_true(map_of(NULL) <= MAP_DIRTY);
	assert_true(map_of((void *)UINTPTR_MAX) <= MAP_DIRTY);
	assert_true(map_of((void *)(os_base - 1)) <= MAP_DIRTY);
	assert_true(map_of((void *)(os_base + (SLICES_MAX << SLICE_LOG2))) <= MAP_DIRTY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p11_p12_runs_do_not_overlap_and_zeros_are_zeros),
		cmocka_unit_test(all_free_pages_go_back),
		cmocka_unit_test(purge_keeps_to_its_budget),
		cmocka_unit_test(what_is_not_ours_has_no_owner),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
