/* SPDX-License-Identifier: MIT */
/* Images written at random, by many at a time, and compared with a model byte by byte: at once,
 * after a reopen for reading, and by the check, which must find nothing. Versions, clusters,
 * backing files and errors in all combinations; on a simulated loop and on two real ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fmt/qcow2/test_disk.h"

static const uint64_t sizes[] = {
	[9] = 200 * 1000, [10] = 400 * 1000, [12] = 1000 * 1000, [16] = 3 * 1000 * 1000,
	[21] = (TEST_SCALE > 1 ? 7 : 13) * 1000 * 1000,
};

static void w5_w6_w8_x4_y4_writes_agree_with_the_model(void **state)
{
	static const unsigned bits[] = { 9, 12, 16, 21 };
	static const unsigned refcount_bits[] = { 16, 1, 64, 8 };
	uint64_t seed = 1;

	for (unsigned version = 2; version <= 3; version++) {
		for (unsigned i = 0; i < ARRAY_SIZE(bits); i++) {
			for (enum test_backing b = BACK_NONE; b <= BACK_QCOW2; b++, seed++) {
				struct test_cell c = { .version = version, .cluster_bits = bits[i],
					.backing = b, .discard = seed % 2,
					.writethrough = seed % 5 == 0,
					.size = align_up(sizes[bits[i]], 512),
					.refcount_bits = version == 3 ? refcount_bits[seed % 4]
								      : 16 };

				test_disk_random(&c, seed, 60 / TEST_SCALE + 5);
			}
		}
	}
}

/* Subclusters: the same images, in units of a 32nd. */
static void u12_w6_y4_subclusters_agree_with_the_model(void **state)
{
	static const unsigned bits[] = { 14, 16, 21 };
	uint64_t seed = 300;

	for (unsigned i = 0; i < ARRAY_SIZE(bits); i++) {
		for (unsigned n = 0; n < 6; n++, seed++) {
			struct test_cell c = { .version = 3, .cluster_bits = bits[i],
				.is_extended = true, .backing = n % 3, .discard = seed % 2,
				.writethrough = seed % 5 == 0,
				.size = align_up(sizes[bits[i] == 14 ? 12 : bits[i]], 512) };

			test_disk_random(&c, seed, 60 / TEST_SCALE + 5);
		}
	}
}

/* What is copied from another file, beside what is written. */
static void w6_w8_x4_copies_agree_with_the_model(void **state)
{
	static const unsigned bits[] = { 9, 12, 16, 14 };
	uint64_t seed = 700;

	for (unsigned i = 0; i < 4; i++) {
		for (enum test_backing b = BACK_NONE; b <= BACK_QCOW2; b++, seed++) {
			struct test_cell c = { .version = 3, .cluster_bits = bits[i], .backing = b,
				.is_extended = bits[i] == 14, .copies_every = 2,
				.writethrough = seed % 5 == 0, .discard = seed % 2,
				.size = align_up(sizes[bits[i] == 14 ? 12 : bits[i]], 512) };

			c.packs_every = seed % 3 == 0 ? 2 : 0;
			c.packs_all = seed % 4 == 0;    /* refused there, and nothing changes */
			test_disk_random(&c, seed, 60 / TEST_SCALE + 5);
		}
	}
}

/* A COPY that fails has changed a part. */
static void q9_w7_x3_failed_copies_leave_old_or_new(void **state)
{
	static const unsigned bits[] = { 9, 12, 16, 14 };

	for (unsigned i = 0; i < 120 / TEST_SCALE; i++) {
		struct test_cell c = { .version = 3, .cluster_bits = bits[i % 4],
				       .backing = i / 4 % 3, .writethrough = i % 7 == 0,
				       .is_extended = i % 4 == 3, .copies_every = 2 };

		c.size = align_up(i % 4 == 3 ? 300 * 1000 : sizes[bits[i % 4]] / 4, 512);
		test_disk_faults(&c, 2000 + i, (int)(i * 7 % 97), 1 << REQ_COPY);
	}
}

static void q9_w7_x3_errors_leave_old_or_new(void **state)
{
	static const unsigned kinds[] = { 0, 1 << REQ_WRITE, 1 << REQ_READ, 1 << REQ_FLUSH,
					  1 << REQ_WRITE | 1 << REQ_ZERO };
	static const unsigned bits[] = { 9, 12, 16, 14 };

	for (unsigned i = 0; i < 320 / TEST_SCALE_FAULTS; i++) {
		struct test_cell c = { .version = 3, .cluster_bits = bits[i % 4],
				  .backing = i / 4 % 3, .writethrough = i % 7 == 0,
				  .is_extended = i % 4 == 3 || (i % 4 == 2 && i % 8 > 4) };

		c.size = align_up(i % 4 == 3 ? 300 * 1000 : sizes[bits[i % 4]] / 4, 512);

		test_disk_faults(&c, 1000 + i, (int)(i * 7 % 97), kinds[i % 5]);
	}
}

/* ---- two loops ---- */

/* Writes in place on either loop, misses and faults by post, reads of clusters that are replaced
 * and used again meanwhile. */
static void two_loops_write_one_disk(void **state)
{
	for (unsigned i = 0; i < 8; i++) {
		struct test_cell c = { .version = 3, .cluster_bits = i % 2 && i < 6 ? 12 : 16,
				  .is_extended = i > 5,
				  .backing = i % 3, .discard = i % 2, .copies_every = i % 4 * 2,
				  .writethrough = i == 4, .size = 600 * 1024 };

		test_disk_two_loops(&c, 500 + i);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(w5_w6_w8_x4_y4_writes_agree_with_the_model),
		cmocka_unit_test(u12_w6_y4_subclusters_agree_with_the_model),
		cmocka_unit_test(w6_w8_x4_copies_agree_with_the_model),
		cmocka_unit_test(q9_w7_x3_failed_copies_leave_old_or_new),
		cmocka_unit_test(q9_w7_x3_errors_leave_old_or_new),
		cmocka_unit_test(two_loops_write_one_disk),
	};

	return cmocka_run_group_tests_name("qcow2_write", tests, NULL, NULL);
}
