/* SPDX-License-Identifier: MIT */
/* Images that map their own metadata as the guest's, and what a guest can do with that: read it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/log.h"
#include "fmt/qcow2/test_image.h"

/* The image's own L2 table, a refcount block, an L1 table of a snapshot's, and the snapshot. */
enum { BITS = 9, CLUSTER = 1 << BITS, ROOM = 1 << 20, L2 = 10, BLOCK = 11, SNAPSHOTS = 12,
       SNAPSHOT_L1 = 13, DATA = 14, USED = 16 };

static const uint64_t metadata[] = { 0, TEST_IMAGE_REFTABLE, TEST_IMAGE_REFBLOCK, TEST_IMAGE_L1,
				     L2, BLOCK, SNAPSHOTS, SNAPSHOT_L1 };

static uint8_t *at(struct test_image *im, uint64_t cluster)
{
	return im->mem->bytes + cluster * CLUSTER;
}

/* Guest cluster 0 is mapped by @entry, guest cluster 1 is as it should be. */
static void make(struct test_image *im, struct loop *l, uint64_t entry)
{
	struct qcow2_snapshot_disk s = { .l1_table_offset = be64_make(SNAPSHOT_L1 * CLUSTER),
					 .l1_size = be32_make(16) };
	struct qcow2_header_disk *h;

	test_image_make(im, l, BITS, 4, ROOM);
	h = (void *)im->mem->bytes;
	h->nb_snapshots = be32_make(1);
	h->snapshots_offset = be64_make(SNAPSHOTS * CLUSTER);
	memcpy(at(im, SNAPSHOTS), &s, sizeof(s));
	be64_store(at(im, TEST_IMAGE_REFTABLE) + 8, BLOCK * CLUSTER);
	be64_store(at(im, TEST_IMAGE_L1), L2 * CLUSTER | QCOW2_COPIED);
	be64_store(at(im, L2), entry);
	be64_store(at(im, L2) + 8, DATA * CLUSTER | QCOW2_COPIED);
	for (unsigned i = 0; i < USED; i++)
		be16_store(at(im, TEST_IMAGE_REFBLOCK) + 2 * i, 1);
	atomic_store(&im->mem->node.size, USED * CLUSTER);
}

static int ask_wait(struct test_image *im, enum req_kind kind, unsigned flags, uint64_t off,
		    uint64_t len)
{
	uint8_t buf[2 * CLUSTER];
	struct iovec iov = { buf, len };
	struct req req = { .kind = (uint8_t)kind, .flags = (uint8_t)flags, .off = off, .len = len,
			   .iov = &iov, .iovcnt = 1 };

	memset(buf, 0x5a, sizeof(buf));
	return chan_submit_wait(im->node->home_chan, &req);
}

/* What a guest may ask for, of clusters 0 and 1. */
static const struct ask {
	enum req_kind kind;
	unsigned flags;
	uint64_t off, len;
} asks[] = {
	{ REQ_WRITE, 0, 0, CLUSTER },
	{ REQ_WRITE, REQ_FUA, 8, 8 },
	{ REQ_WRITE, 0, CLUSTER - 8, 16 },
	{ REQ_ZERO, 0, 0, CLUSTER },
	{ REQ_ZERO, REQ_MAY_UNMAP, 0, 2 * CLUSTER },
	{ REQ_ZERO, REQ_FAST_ONLY, 8, 100 },
	{ REQ_ZERO, 0, 8, 100 },
	{ REQ_DISCARD, 0, 0, CLUSTER },
};

/* Nothing of @im's first USED clusters changes but the corrupt bit. */
static void refused_wait(struct test_image *im, const struct ask *k, bool is_loaded)
{
	uint8_t before[USED * CLUSTER];

	memcpy(before, im->mem->bytes, sizeof(before));
	assert_int_equal(test_image_open_wait(im), 0);
	if (is_loaded)
		assert_int_equal(ask_wait(im, REQ_READ, 0, 0, 2 * CLUSTER), 0);
	assert_int_equal(ask_wait(im, k->kind, k->flags, k->off, k->len), -EUCLEAN);
	/* Nothing is written from now on, but all can be read. */
	assert_int_equal(ask_wait(im, REQ_WRITE, 0, CLUSTER, CLUSTER), -EUCLEAN);
	assert_int_equal(ask_wait(im, REQ_FLUSH, 0, 0, 0), -EUCLEAN);
	assert_int_equal(ask_wait(im, REQ_READ, 0, 0, 2 * CLUSTER), 0);
	test_image_close_wait(im);
	assert_int_equal(test_image_open_wait(im), -EROFS);
	assert_true(test_image_was_corrupt(im));
	/* A guest's own cluster may have been zeroed before. */
	memset(before + DATA * CLUSTER, 0, CLUSTER);
	memset(at(im, DATA), 0, CLUSTER);
	/* And its mark may be there. */
	memset(im->mem->bytes + QCOW2_HEADER_V3_BYTES, 0, 8);
	assert_memory_equal(before, im->mem->bytes, sizeof(before));
}

static int metadata_body(void *arg)
{
	/* Also without COPIED, which a write would replace; also as zeros that keep their place. */
	static const uint64_t bits[] = { QCOW2_COPIED, 0, QCOW2_COPIED | QCOW2_ZERO };

	for (unsigned i = 1; i < ARRAY_SIZE(metadata); i++) {
		for (unsigned j = 0; j < ARRAY_SIZE(asks) * 2; j++) {
			const struct ask *k = &asks[j / 2];
			struct test_image im;

			for (unsigned n = 0; n < ARRAY_SIZE(bits); n++) {
				/* What reads as zeros need not be changed. */
				if (bits[n] & QCOW2_ZERO && k->kind == REQ_ZERO)
					continue;
				make(&im, arg, metadata[i] * CLUSTER | bits[n]);
				refused_wait(&im, k, j % 2);
				test_image_free_wait(&im);
			}
		}
	}
	return 0;
}

/* The same image, if nobody looks. */
static int broken_body(void *arg)
{
	struct test_image im;

	make(&im, arg, TEST_IMAGE_L1 * CLUSTER | QCOW2_COPIED);
	im.broken = BREAK_Q6_OVERLAP;
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(ask_wait(&im, REQ_READ, 0, 0, CLUSTER), 0);
	assert_int_equal(ask_wait(&im, REQ_WRITE, 0, 0, CLUSTER), 0);
	assert_int_equal(*at(&im, TEST_IMAGE_L1), 0x5a);
	test_image_close_wait(&im);
	test_image_free_wait(&im);
	return 0;
}

/* The cluster is free by its refcount, so that a table could be made there after the slice that
 * names it was loaded; within the old file, or behind its end. */
static int later_body(void *arg)
{
	for (uint64_t host = USED - 1; host <= USED; host++) {
		struct test_image im;
		int rc;

		make(&im, arg, host * CLUSTER | QCOW2_COPIED);
		be16_store(at(&im, TEST_IMAGE_REFBLOCK) + 2 * (USED - 1), 0);
		for (uint64_t c = 4; c < L2; c++)       /* the lowest one is taken first */
			be16_store(at(&im, TEST_IMAGE_REFBLOCK) + 2 * c, 1);
		if (host == USED)
			be16_store(at(&im, TEST_IMAGE_REFBLOCK) + 2 * (USED - 1), 1);
		assert_int_equal(test_image_open_wait(&im), 0);
		assert_int_equal(ask_wait(&im, REQ_READ, 0, 0, CLUSTER), 0);
		/* The second L2 table. */
		rc = ask_wait(&im, REQ_WRITE, 0, CLUSTER * CLUSTER / 8, CLUSTER);
		assert_int_equal(rc, -EUCLEAN);
		test_image_close_wait(&im);
		assert_true(test_image_was_corrupt(&im));
		test_image_free_wait(&im);
	}
	return 0;
}

/* L1 names as an L2 table what is another table. */
static int table_body(void *arg)
{
	for (unsigned i = 1; i < ARRAY_SIZE(metadata); i++) {
		uint64_t table = metadata[i];
		uint8_t before[CLUSTER];
		struct test_image im;

		if (table == SNAPSHOTS || table == SNAPSHOT_L1)
			continue;               /* only the check knows */
		make(&im, arg, 0);
		be64_store(at(&im, TEST_IMAGE_L1) + 8, table * CLUSTER | QCOW2_COPIED);
		memcpy(before, at(&im, table), CLUSTER);
		assert_int_equal(test_image_open_wait(&im), 0);
		assert_int_equal(ask_wait(&im, REQ_WRITE, 0, CLUSTER * CLUSTER / 8, CLUSTER),
				 -EUCLEAN);
		test_image_close_wait(&im);
		assert_true(test_image_was_corrupt(&im));
		if (table != TEST_IMAGE_REFBLOCK)
			assert_memory_equal(before, at(&im, table), CLUSTER);
		test_image_free_wait(&im);
	}
	return 0;
}

/* Two L1 entries share a table, with two references: nothing is wrong with that. */
static int twice_body(void *arg)
{
	struct test_image im;
	uint8_t byte;

	make(&im, arg, 0);
	be64_store(at(&im, TEST_IMAGE_L1), L2 * CLUSTER);
	be64_store(at(&im, TEST_IMAGE_L1) + 8, L2 * CLUSTER);
	be64_store(at(&im, L2) + 8, DATA * CLUSTER);
	be16_store(at(&im, TEST_IMAGE_REFBLOCK) + 2 * L2, 2);
	be16_store(at(&im, TEST_IMAGE_REFBLOCK) + 2 * DATA, 2);
	*at(&im, DATA) = 0x17;
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(ask_wait(&im, REQ_WRITE, 0, CLUSTER, CLUSTER), 0);
	assert_int_equal(ask_wait(&im, REQ_FLUSH, 0, 0, 0), 0);
	assert_int_equal(chan_read_wait(im.node->home_chan, CLUSTER * CLUSTER / 8 + CLUSTER, &byte,
					1), 0);
	assert_int_equal(byte, 0x17);
	assert_true(alloc_is_metadata(&im.w->alloc, L2, 1));
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_false(test_image_was_corrupt(&im));
	assert_true(be16_load(at(&im, TEST_IMAGE_REFBLOCK) + 2 * L2) >= 1);
	test_image_free_wait(&im);
	return 0;
}

static void q6_a_guest_never_writes_metadata(void **state)
{
	test_image_run(metadata_body);
}

static void q6_and_would_if_nobody_looked(void **state)
{
	test_image_run(broken_body);
}

static void q6_nor_tables_that_are_made_later(void **state)
{
	test_image_run(later_body);
}

static void q6_tables_are_not_written_as_other_tables(void **state)
{
	test_image_run(table_body);
}

static void a_table_that_is_named_twice_is_left(void **state)
{
	test_image_run(twice_body);
}

static void drop(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(q6_a_guest_never_writes_metadata),
		cmocka_unit_test(q6_and_would_if_nobody_looked),
		cmocka_unit_test(q6_nor_tables_that_are_made_later),
		cmocka_unit_test(q6_tables_are_not_written_as_other_tables),
		cmocka_unit_test(a_table_that_is_named_twice_is_left),
	};

	log_set_sink(drop);
	return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}
