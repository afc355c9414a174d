/* SPDX-License-Identifier: MIT */
/* The repair of images that a writer with lazy refcounts left, a failure of every request of a
 * repair, and the header without a writer. What each damage is called and mended to is tested
 * against the reference (tests/img-repair.sh), what a power cut leaves in sim/. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/err.h"
#include "base/log.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/header_edit.h"
#include "fmt/qcow2/repair.h"
#include "fmt/qcow2/test_image.h"

enum { BITS = 9, CLUSTER = 1 << BITS, ROOM = 4 << 20, L2 = 4, DATA = 5, NDATA = 30, LEAK = 40,
       BEHIND = 60, AT_INCOMPATIBLE = 72, FAULTS_MAX = 400 };

static uint8_t *at(struct test_image *im, uint64_t cluster)
{
	return im->mem->bytes + cluster * CLUSTER;
}

static uint16_t refcount(struct test_image *im, uint64_t cluster)
{
	uint64_t block = be64_load(at(im, be64_load(im->mem->bytes + 48) / CLUSTER));

	return be16_load(im->mem->bytes + block + 2 * cluster);
}

/* A table and data whose refcounts were not written, some too high, and one that leaked. */
static void make_dirty(struct test_image *im, struct loop *l)
{
	test_image_make(im, l, BITS, 4, ROOM);
	be64_store(im->mem->bytes + AT_INCOMPATIBLE, QCOW2_INCOMPAT_DIRTY);
	be64_store(at(im, TEST_IMAGE_L1), L2 * CLUSTER | QCOW2_COPIED);
	for (uint64_t i = 0; i < NDATA; i++) {
		be64_store(at(im, L2) + 8 * i, (DATA + i) * CLUSTER | QCOW2_COPIED);
		memset(at(im, DATA + i), (int)i + 1, CLUSTER);
		be16_store(at(im, TEST_IMAGE_REFBLOCK) + 2 * (DATA + i), i % 3 ? 0 : 2);
	}
	be16_store(at(im, TEST_IMAGE_REFBLOCK) + 2 * LEAK, 1);
	atomic_store(&im->mem->node.size, (uint64_t)(LEAK + 1) * CLUSTER);
}

static void assert_content(struct test_image *im)
{
	for (uint64_t i = 0; i < NDATA; i++) {
		uint64_t entry = be64_load(at(im, L2) + 8 * i);

		assert_int_equal(entry, (DATA + i) * CLUSTER | QCOW2_COPIED);
		assert_int_equal(at(im, DATA + i)[CLUSTER - 1], i + 1);
	}
}

/* The header as the file has it now. */
static struct qcow2_header header(struct test_image *im)
{
	struct qcow2_header h;
	struct err err = { 0 };
	size_t need;

	if (qcow2_header_parse_for_check(im->mem->bytes, ROOM, &h, &need, &err))
		fail_msg("%s", err.text);
	return h;
}

static struct chan *file_chan_wait(struct test_image *im)
{
	struct chan *ch;

	assert_int_equal(chan_get_wait(&im->mem->node, &ch, NULL), 0);
	return ch;
}

/* ---- dirty images ---- */

static int dirty_body(void *arg)
{
	struct test_image im;
	struct err err = { 0 };
	struct qcow2_header h;
	struct chan *ch;

	make_dirty(&im, arg);
	ch = file_chan_wait(&im);
	h = header(&im);
	assert_int_equal(qcow2_repair_dirty_wait(ch, &h, "image", &err), 0);
	assert_int_equal(h.incompatible, 0);
	assert_int_equal(be64_load(im.mem->bytes + AT_INCOMPATIBLE), 0);
	assert_int_equal(be64_load(im.mem->bytes + 48), h.reftable_off);
	for (uint64_t k = 0; k < DATA + NDATA; k++)
		if (k != TEST_IMAGE_REFTABLE && k != TEST_IMAGE_REFBLOCK)
			assert_int_equal(refcount(&im, k), 1);
	assert_int_equal(refcount(&im, LEAK), 0);
	assert_content(&im);
	chan_put_wait(ch);
	/* And a writer takes it. */
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	test_image_free_wait(&im);
	return 0;
}

/* The file's new end was not durable, but the refcount of a cluster there. */
static int behind_body(void *arg)
{
	struct test_image im;
	struct err err = { 0 };
	struct qcow2_header h;
	struct chan *ch;

	test_image_make(&im, arg, BITS, 4, ROOM);
	be64_store(im.mem->bytes + AT_INCOMPATIBLE, QCOW2_INCOMPAT_DIRTY);
	be64_store(at(&im, TEST_IMAGE_L1), 0);
	be16_store(at(&im, TEST_IMAGE_REFBLOCK) + 2 * BEHIND, 1);
	atomic_store(&im.mem->node.size, (uint64_t)LEAK * CLUSTER);
	ch = file_chan_wait(&im);
	h = header(&im);
	assert_int_equal(qcow2_repair_dirty_wait(ch, &h, "image", &err), 0);
	assert_int_equal(refcount(&im, 0), 1);
	assert_int_equal(refcount(&im, BEHIND), 0);
	assert_int_equal(be64_load(im.mem->bytes + 48) / CLUSTER, TEST_IMAGE_REFTABLE);
	chan_put_wait(ch);
	qcow2_header_fini(&h);
	test_image_free_wait(&im);
	return 0;
}

static int undone_body(void *arg)
{
	struct test_image im;
	struct err err = { 0 };
	struct qcow2_header h;
	struct chan *ch;

	make_dirty(&im, arg);
	/* Data where none can be: nobody knows where it is. */
	be64_store(at(&im, L2) + 8 * NDATA, 1ULL << 40);
	ch = file_chan_wait(&im);
	h = header(&im);
	assert_int_equal(qcow2_repair_dirty_wait(ch, &h, "image", &err), -EUCLEAN);
	assert_int_equal(h.incompatible, QCOW2_INCOMPAT_DIRTY);
	assert_int_equal(be64_load(im.mem->bytes + AT_INCOMPATIBLE), QCOW2_INCOMPAT_DIRTY);
	chan_put_wait(ch);
	test_image_free_wait(&im);
	return 0;
}

/* ---- failing requests ---- */

/* Repairs while request @n fails with @error. False: there were fewer. */
static bool fail_once_wait(struct loop *l, int n, int error)
{
	struct test_image im;
	struct qcow2_header h;
	struct err err = { 0 };
	struct chan *ch;
	bool has_failed;
	int rc;

	make_dirty(&im, l);
	ch = file_chan_wait(&im);
	h = header(&im);
	atomic_store(&im.mem->fail_with, error);
	atomic_store(&im.mem->fail_after, n);
	rc = qcow2_repair_dirty_wait(ch, &h, "image", &err);
	has_failed = atomic_load(&im.mem->fail_after) < 0;
	atomic_store(&im.mem->fail_after, -1);
	assert_content(&im);
	if (has_failed) {
		/* Y15: what did not end well leaves the bit. */
		if (!rc)
			fail_msg("request %d fails, and nobody minds", n);
		assert_int_equal(h.incompatible, QCOW2_INCOMPAT_DIRTY);
	}
	qcow2_header_fini(&h);
	h = header(&im);
	if (h.incompatible)
		assert_int_equal(qcow2_repair_dirty_wait(ch, &h, "image", &err), 0);
	assert_int_equal(refcount(&im, DATA), 1);
	assert_content(&im);
	qcow2_header_fini(&h);
	chan_put_wait(ch);
	test_image_free_wait(&im);
	return has_failed;
}

static int faults_body(void *arg)
{
	static const int errors[] = { -EIO, -ENOSPC };

	for (unsigned e = 0; e < ARRAY_SIZE(errors); e++) {
		int n = 0;

		while (n < FAULTS_MAX && fail_once_wait(arg, n, errors[e]))
			n++;
		assert_in_range(n, 10, FAULTS_MAX - 1);
	}
	return 0;
}

/* ---- the header ---- */

/* Extensions of @n bytes each, by their types, behind the header; the list ends. */
static void put_extensions(struct test_image *im, const uint32_t *types, const uint32_t *lens,
			   unsigned n)
{
	uint8_t *p = im->mem->bytes + QCOW2_HEADER_V3_BYTES;

	memset(p, 0, CLUSTER - QCOW2_HEADER_V3_BYTES);
	for (unsigned i = 0; i < n; i++) {
		be32_store(p, types[i]);
		be32_store(p + 4, lens[i]);
		memset(p + 8, (int)i + 1, lens[i]);
		p += 8 + align_up(lens[i], 8);
	}
}

static bool has(struct test_image *im, uint32_t type)
{
	struct qcow2_header h = header(im);
	uint64_t where;
	bool found = header_find_extension(&h, im->mem->bytes, CLUSTER, type, &where);

	qcow2_header_fini(&h);
	return found;
}

static int header_body(void *arg)
{
	enum { OTHER = 0x12345678, LAST = 0x23456789 };
	const uint32_t types[] = { OTHER, QCOW2_EXT_BITMAPS, LAST, QCOW2_EXT_IN_USE };
	const uint32_t lens[] = { 12, 24, 5, 0 };
	struct test_image im;
	struct qcow2_header h;
	struct chan *ch;

	test_image_make(&im, arg, BITS, 4, ROOM);
	ch = file_chan_wait(&im);
	be64_store(im.mem->bytes + 88, 1ULL << 40 | QCOW2_AUTOCLEAR_DATA_FILE_RAW);
	for (unsigned n = 2; n <= 4; n++) {
		put_extensions(&im, types, lens, n);
		h = header(&im);
		assert_true(h.has_void_bitmaps);
		assert_int_equal(header_drop_bitmaps_wait(ch, &h), 0);
		assert_false(h.has_void_bitmaps || has(&im, QCOW2_EXT_BITMAPS));
		assert_true(has(&im, OTHER));
		assert_int_equal(has(&im, LAST), n > 2);
		assert_int_equal(has(&im, QCOW2_EXT_IN_USE), n > 3);
		assert_int_equal(header_drop_mark_wait(ch, &h), 0);
		assert_false(has(&im, QCOW2_EXT_IN_USE));
		assert_true(has(&im, OTHER));
	}
	assert_int_equal(header_clear_autoclear_wait(ch, &h), 0);
	assert_int_equal(be64_load(im.mem->bytes + 88), QCOW2_AUTOCLEAR_DATA_FILE_RAW);
	chan_put_wait(ch);
	test_image_free_wait(&im);
	return 0;
}

/* ---- */

static void run(int (*body)(void *arg))
{
	struct loop_opts o = { .backend = LOOP_SIM };
	struct loop *l;

	assert_int_equal(loop_new(&o, &l, NULL), 0);
	assert_int_equal(loop_call(l, body, l), 0);
	loop_free(l);
}

static void what_leaked_behind_the_end_is_free_again(void **state)
{
	run(behind_body);
}

static void a_dirty_image_is_made_right(void **state)
{
	run(dirty_body);
}

static void y15_a_dirty_image_with_other_damage_stays_dirty(void **state)
{
	run(undone_body);
}

static void y15_a_repair_that_fails_anywhere_can_be_done_again(void **state)
{
	run(faults_body);
}

static void q7_the_header_is_changed_a_sector_at_a_time(void **state)
{
	run(header_body);
}

static void silent(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_dirty_image_is_made_right),
		cmocka_unit_test(what_leaked_behind_the_end_is_free_again),
		cmocka_unit_test(y15_a_dirty_image_with_other_damage_stays_dirty),
		cmocka_unit_test(y15_a_repair_that_fails_anywhere_can_be_done_again),
		cmocka_unit_test(q7_the_header_is_changed_a_sector_at_a_time),
	};

	log_set_sink(silent);
	return cmocka_run_group_tests_name("qcow2_repair", tests, NULL, NULL);
}
