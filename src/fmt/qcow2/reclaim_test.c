/* SPDX-License-Identifier: MIT */
/* The walk after a crash: leaks go, what is used meanwhile stays, damage is left alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>

#include "base/log.h"
#include "fmt/qcow2/test_image.h"

enum { BITS = 9, CLUSTER = 1 << BITS, ROOM = 4 << 20, LEAK = 20, LEAKS = 30,
       MARK_OFF = QCOW2_HEADER_V3_BYTES };

static uint8_t *refcount(struct test_image *im, uint64_t cluster)
{
	return im->mem->bytes + TEST_IMAGE_REFBLOCK * CLUSTER + 2 * cluster;
}

static bool is_marked(struct test_image *im)
{
	return be32_load(im->mem->bytes + MARK_OFF) == QCOW2_EXT_IN_USE;
}

/* An image that a crash has left: with the mark, and clusters that nothing names. */
static void make(struct test_image *im, struct loop *l)
{
	test_image_make(im, l, BITS, 4, ROOM);
	be32_store(im->mem->bytes + MARK_OFF, QCOW2_EXT_IN_USE);
	for (unsigned i = 0; i < LEAKS; i++)
		be16_store(refcount(im, LEAK + i), (uint16_t)(1 + i % 3));
	atomic_store(&im->mem->node.size, (uint64_t)(LEAK + LEAKS) * CLUSTER);
}

static unsigned leaks(struct test_image *im)
{
	unsigned n = 0;

	for (unsigned i = 0; i < LEAKS; i++)
		n += be16_load(refcount(im, LEAK + i)) != 0;
	return n;
}

/* @takes: clusters are taken, and freed, while the walk is on. */
static void use_wait(struct test_image *im, bool takes)
{
	assert_int_equal(test_image_open_wait(im), 0);
	if (takes) {
		struct alloc_run run = test_take_wait(im, 8);

		/* The leaks are not handed out: they have refcounts. */
		assert_true(run.first + run.n <= LEAK || run.first >= LEAK + LEAKS);
		fiber_yield_wait();
		alloc_free(&im->w->alloc, run.first, run.n);
	}
}

static int leaks_body(void *arg)
{
	for (int takes = 0; takes < 2; takes++) {
		struct test_image im;

		make(&im, arg);
		use_wait(&im, takes);
		assert_int_equal(test_image_close_wait(&im), 0);
		assert_int_equal(leaks(&im), 0);
		assert_false(is_marked(&im));
		for (unsigned i = 0; i < TEST_IMAGE_USED; i++)
			assert_int_equal(be16_load(refcount(&im, i)), 1);
		test_image_free_wait(&im);
	}
	return 0;
}

/* A cluster that looks leaked, and is taken and named while the walk is on, keeps its refcount. */
static int touched_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	assert_int_equal(test_image_open_wait(&im), 0);
	reclaim_touch(&im.w->reclaim, LEAK + 3, 1);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), 1);
	assert_int_equal(be16_load(refcount(&im, LEAK + 3)), 1);
	test_image_free_wait(&im);
	return 0;
}

/* Of several references one may have leaked, and another been freed since: in the end it is looked
 * at again. */
static int shared_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(be16_load(refcount(&im, LEAK + 4)), 2);
	alloc_free(&im.w->alloc, LEAK + 4, 1);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), 0);
	assert_false(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

static int damage_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	/* A table that has no refcount. */
	be64_store(im.mem->bytes + TEST_IMAGE_L1 * CLUSTER, (LEAK - 1) * CLUSTER | QCOW2_COPIED);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), LEAKS);
	test_image_free_wait(&im);
	return 0;
}

static int error_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	assert_int_equal(test_image_open_wait(&im), 0);
	im.mem->fail_kinds = 1U << REQ_READ;
	im.mem->fail_after = 1;
	while (im.w->reclaim.is_running)        /* asleep, or the clock would creep */
		fiber_queue_wait(&im.w->reclaim.waiting);
	im.mem->fail_after = -1;
	test_image_close_wait(&im);
	assert_true(is_marked(&im));
	/* The next open finds it, and makes it good. */
	use_wait(&im, false);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), 0);
	assert_false(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

static void what_leaked_is_freed(void **state)
{
	test_image_run(leaks_body);
}

static void r4_what_was_touched_is_left(void **state)
{
	test_image_run(touched_body);
}

static void what_leaked_of_a_shared_cluster_is_freed(void **state)
{
	test_image_run(shared_body);
}

static void r5_damage_is_left(void **state)
{
	test_image_run(damage_body);
}

static void r6_the_mark_stays_until_the_walk_was_good(void **state)
{
	test_image_run(error_body);
}

static void drop(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_leaked_is_freed),
		cmocka_unit_test(r4_what_was_touched_is_left),
		cmocka_unit_test(what_leaked_of_a_shared_cluster_is_freed),
		cmocka_unit_test(r5_damage_is_left),
		cmocka_unit_test(r6_the_mark_stays_until_the_walk_was_good),
	};

	log_set_sink(drop);
	return cmocka_run_group_tests_name("reclaim", tests, NULL, NULL);
}
