/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/bits.h"
#include "base/prng.h"
#include "fmt/qcow2/counts.h"

enum { CLUSTERS = 3 * COUNTS_CHUNK + 77 };

static void add(struct counts *c, uint64_t *model, uint64_t k, uint64_t n, unsigned marks)
{
	uint64_t count = model[k] >> COUNTS_MARK_BITS, more = MIN(n, c->max - count), over = 0;

	if (n != 1 || !counts_add_quick(c, k, marks))
		assert_int_equal(counts_add(c, k, n, marks, &over), 0);
	assert_int_equal(over, n - more);
	model[k] = ((count + more) << COUNTS_MARK_BITS) | (model[k] & 15) | marks;
}

/* H1: against an array of 64-bit values, with every limit that refcounts have, few clusters and
 * many, small steps and large. */
static void h1_counts_are_those_of_a_plain_array(void **state)
{
	static uint64_t model[CLUSTERS];

	for (unsigned order = 0; order <= 6; order++) {
		uint64_t max = order == 6 ? UINT64_MAX >> 4 : (1ULL << (1U << order)) - 1;
		struct prng p = { order };
		struct counts c;

		memset(model, 0, sizeof(model));
		counts_init(&c, CLUSTERS, max);
		for (unsigned i = 0; i < 60000; i++) {
			uint64_t k = prng_below(&p, i % 3 ? CLUSTERS : 40);
			uint64_t n = i % 100 ? 1 : 1ULL << prng_below(&p, 40);
			unsigned marks = (unsigned)prng_below(&p, 16);

			if (i % 7) {
				add(&c, model, k, n, marks);
			} else {
				assert_int_equal(counts_mark(&c, k, marks), 0);
				model[k] |= marks;
			}
			assert_int_equal(counts_value(&c, k), model[k]);
		}
		for (uint64_t k = 0; k < CLUSTERS; k++)
			assert_int_equal(counts_value(&c, k), model[k]);
		counts_fini(&c);
	}
}

/* H2: a large file of which little is known. */
static void h2_memory_follows_what_was_read(void **state)
{
	const uint64_t clusters = 1ULL << 31;
	uint64_t over, k;
	struct counts c;
	int rc = 0;

	counts_init(&c, clusters, UINT16_MAX);
	for (k = 0; k < clusters && !rc; k += 200)
		rc = counts_add(&c, k, 1, 0, &over);
	assert_int_equal(rc, -ENOMEM);
	assert_true(c.bytes <= COUNTS_FREE_BYTES);
	counts_credit(&c, 1000);
	assert_int_equal(counts_add(&c, k, 1, 0, &over), 0);
	assert_true(c.bytes <= COUNTS_FREE_BYTES + 1000 * COUNTS_CREDIT_BYTES);
	counts_fini(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(h1_counts_are_those_of_a_plain_array),
		cmocka_unit_test(h2_memory_follows_what_was_read),
	};

	return cmocka_run_group_tests_name("qcow2_counts", tests, NULL, NULL);
}
