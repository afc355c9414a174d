/* SPDX-License-Identifier: MIT */
/* Sets of clusters against an array. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>

#include "base/bits.h"
#include "base/prng.h"
#include "fmt/qcow2/cluster_set.h"

static void sets_agree_with_a_model(void **state)
{
	enum { N = 5000 };
	struct cluster_set s = { 0 };
	static bool model[N];
	struct prng p = { 4 };

	for (unsigned round = 0; round < 20000; round++) {
		uint64_t first = prng_below(&p, N), n = prng_below(&p, prng_below(&p, 9) ? 4 : 300);
		unsigned what = (unsigned)prng_below(&p, 3);
		bool any = false;

		n = MIN(n, N - first);
		for (uint64_t i = first; i < first + n; i++)
			any |= model[i];
		if (what == 2)
			assert_int_equal(cluster_set_has(&s, first, n), any);
		else if (what)
			assert_int_equal(cluster_set_add(&s, first, n), 0);
		else
			cluster_set_del(&s, first, n);
		for (uint64_t i = first; i < first + n && what < 2; i++)
			model[i] = what;
	}
	assert_int_equal(cluster_set_add(&s, 0, 1ULL << 60), -EFBIG);
	assert_true(s.nslots <= 256);
	cluster_set_fini(&s);
}

static void what_left_takes_no_room(void **state)
{
	struct cluster_set s = { 0 };

	for (uint64_t i = 0; i < 100000; i++) {
		assert_int_equal(cluster_set_add(&s, i * 1000, 1), 0);
		assert_true(cluster_set_has(&s, i * 1000, 1));
		if (i >= 10)
			cluster_set_del(&s, (i - 10) * 1000, 1);
	}
	assert_true(s.nslots <= 256);
	cluster_set_fini(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sets_agree_with_a_model),
		cmocka_unit_test(what_left_takes_no_room),
	};

	return cmocka_run_group_tests_name("cluster_set", tests, NULL, NULL);
}
