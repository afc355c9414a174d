/* SPDX-License-Identifier: MIT */
/* The mark of an image in use where the backing file's name stands in its way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/zero.h"
#include "fmt/qcow2/test_image.h"

enum { BITS = 9, CLUSTER = 1 << BITS, MARK_OFF = QCOW2_HEADER_V3_BYTES, EXT = 8,
       NEW_PLACE = CLUSTER - 16 };
static const char NAME[] = "base1.img";         /* 16 bytes at NEW_PLACE, with zeros behind */
enum { NAME_LEN = sizeof(NAME) - 1, LAST_OLD = MARK_OFF + 2 * EXT - 1 };

/* The name stands at @from, closer behind the list's end than the mark is long. */
static void make(struct test_image *im, struct loop *l, uint64_t from)
{
	struct qcow2_header_disk *d;

	test_image_make(im, l, BITS, 4, 1 << 20);
	d = (void *)im->mem->bytes;
	d->backing_file_offset = be64_make(from);
	d->backing_file_size = be32_make(NAME_LEN);
	memcpy(im->mem->bytes + from, NAME, NAME_LEN);
}

static bool is_named(const struct test_image *im)
{
	const struct qcow2_header_disk *d = (void *)im->mem->bytes;

	return !memcmp(im->mem->bytes + be64_get(d->backing_file_offset), NAME, NAME_LEN);
}

static void assert_marked(const struct test_image *im)
{
	const struct qcow2_header_disk *d = (void *)im->mem->bytes;
	const uint8_t *at = im->mem->bytes + MARK_OFF;

	assert_int_equal(be32_load(at), QCOW2_EXT_IN_USE);
	assert_true(bytes_are_zero(at + 4, 2 * EXT - 4));
	assert_int_equal(be64_get(d->backing_file_offset), NEW_PLACE);
	assert_true(is_named(im));
}

/* Whether it failed. */
static bool fail_at(struct loop *l, uint64_t from, int nth, unsigned kinds, bool reopens)
{
	struct test_image im;
	bool failed;

	make(&im, l, from);
	assert_int_equal(test_image_open_wait(&im), 0);
	im.mem->fail_with = -EIO;
	im.mem->fail_kinds = kinds;
	atomic_store(&im.mem->fail_after, nth);
	failed = mark_set_wait(im.w) != 0;
	atomic_store(&im.mem->fail_after, -1);
	assert_true(is_named(&im));
	if (failed && reopens) {
		assert_int_equal(test_image_close_wait(&im), 0);
		assert_int_equal(test_image_open_wait(&im), 0);
	}
	assert_int_equal(mark_set_wait(im.w), 0);
	assert_marked(&im);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_true(bytes_are_zero(im.mem->bytes + MARK_OFF, NEW_PLACE - MARK_OFF));
	assert_true(is_named(&im));
	test_image_free_wait(&im);
	return failed;
}

static int faults_body(void *arg)
{
	static const unsigned kinds[] = { 1 << REQ_WRITE, 1 << REQ_FLUSH, 1 << REQ_READ };

	for (uint64_t from = MARK_OFF + EXT; from <= LAST_OLD; from++)
		for (unsigned i = 0; i < 2 * ARRAY_SIZE(kinds); i++) {
			int nth = 0;

			while (fail_at(arg, from, nth, kinds[i / 2], i % 2))
				nth++;
			/* Each of the three steps, and the mark. */
			assert_int_equal(nth, kinds[i / 2] == 1 << REQ_READ ? 1 : 4);
		}
	return 0;
}

static void q7_what_failed_is_begun_again(void **state)
{
	test_image_run(faults_body);
}

/* A power cut may leave any part of a copy, or of what was to be zeroed. */
static int torn_body(void *arg)
{
	for (unsigned bits = 0; bits < 1U << NAME_LEN; bits += 5) {
		for (int moved = 0; moved < 2; moved++) {
			uint64_t from = MARK_OFF + EXT, torn = moved ? from : NEW_PLACE;
			struct test_image im;

			make(&im, arg, moved ? NEW_PLACE : from);
			for (unsigned i = 0; i < NAME_LEN; i++)
				if (bits >> i & 1)
					im.mem->bytes[torn + i] = (uint8_t)NAME[i];
			assert_int_equal(test_image_open_wait(&im), 0);
			assert_int_equal(mark_set_wait(im.w), 0);
			assert_marked(&im);
			assert_int_equal(test_image_close_wait(&im), 0);
			test_image_free_wait(&im);
		}
	}
	return 0;
}

static void q7_torn_copies_of_the_name_are_told_by_their_bytes(void **state)
{
	test_image_run(torn_body);
}

/* What is not a copy of the name belongs to somebody: it stays, and the image has no mark. */
static int foreign_body(void *arg)
{
	static const uint64_t places[] = { MARK_OFF + EXT, NEW_PLACE, NEW_PLACE + NAME_LEN };

	for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
		struct test_image im;

		make(&im, arg, places[i] == MARK_OFF + EXT ? NEW_PLACE : MARK_OFF + EXT);
		im.mem->bytes[places[i]] = 0xee;
		assert_int_equal(test_image_open_wait(&im), 0);
		assert_int_equal(mark_set_wait(im.w), 0);
		assert_int_equal(im.w->mark.off, 0);
		assert_int_equal(im.mem->bytes[places[i]], 0xee);
		assert_true(is_named(&im));
		assert_int_equal(test_image_close_wait(&im), 0);
		test_image_free_wait(&im);
	}
	return 0;
}

static void q7_what_is_not_ours_stays(void **state)
{
	test_image_run(foreign_body);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(q7_what_failed_is_begun_again),
		cmocka_unit_test(q7_torn_copies_of_the_name_are_told_by_their_bytes),
		cmocka_unit_test(q7_what_is_not_ours_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
