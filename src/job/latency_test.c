/* SPDX-License-Identifier: MIT */
#include "job/latency.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"

enum { N = 5000 };

static int by_size(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void percentiles_are_close_to_a_sorted_list(void **state)
{
	static const unsigned asked[] = { 0, 1, 500, 900, 990, 999 };
	static uint64_t all[N];

	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct prng prng = { seed };
		struct latency l = { 0 };

		for (unsigned i = 0; i < N; i++) {
			all[i] = prng_next(&prng) >> prng_below(&prng, 64);
			latency_add(&l, all[i]);
		}
		qsort(all, N, sizeof(all[0]), by_size);
		for (unsigned i = 0; i < ARRAY_SIZE(asked); i++) {
			uint64_t is = all[(uint64_t)N * asked[i] / 1000];
			uint64_t got = latency_at(&l, asked[i]);

			assert_true(got >= is && got - is <= is / LATENCY_STEPS);
		}
		assert_int_equal(latency_at(&l, 1000), all[N - 1]);
		assert_int_equal(l.most_ns, all[N - 1]);
	}
}

static void nothing_took_no_time(void **state)
{
	struct latency l = { 0 };

	assert_int_equal(latency_at(&l, 500), 0);
	latency_add(&l, UINT64_MAX);
	assert_true(latency_at(&l, 500) == UINT64_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(percentiles_are_close_to_a_sorted_list),
		cmocka_unit_test(nothing_took_no_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
