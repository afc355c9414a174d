/* SPDX-License-Identifier: MIT */
/* Persistent bitmaps of an image that is written: bits in memory before the change, on disk at
 * close; those that are nobody's business; disks and memory that end at every place; damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/log.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/test_image.h"

enum { BITS = 9, CLUSTER = 1 << BITS, ROOM = 1 << 20, ENTRY = 32, GRAIN = 1024,
       DIRECTORY = TEST_IMAGE_USED, TABLES, DATA = TABLES + 3, USED = DATA + 2 };

/* In the directory. */
enum { EMPTY, DISABLED, IN_USE, BITMAPS };

/* ---- memory that ends ---- */

static int allocations_left = -1;       /* < 0: any number */

static bool may_allocate(void)
{
	if (allocations_left < 0)
		return true;
	return allocations_left-- > 0 || (allocations_left = 0);
}

void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

void *__wrap_calloc(size_t n, size_t size)
{
	return may_allocate() ? __real_calloc(n, size) : NULL;
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	return may_allocate() ? __real_aligned_alloc(align, size) : NULL;
}

/* ---- helpers ---- */

static uint8_t *cluster_at(const struct test_image *im, unsigned k)
{
	return im->mem->bytes + k * CLUSTER;
}

static uint32_t flags_of(const struct test_image *im, unsigned i)
{
	return be32_load(cluster_at(im, DIRECTORY) + i * ENTRY + 12);
}

static void put_bitmap(struct test_image *im, unsigned i, uint32_t flags, uint64_t entry)
{
	uint8_t *e = cluster_at(im, DIRECTORY) + i * ENTRY;

	be64_store(e, (TABLES + i) * CLUSTER);
	be32_store(e + 8, 1);
	be32_store(e + 12, flags);
	e[16] = 1;
	e[17] = 10;
	be16_store(e + 18, 1);
	e[24] = (uint8_t)('a' + i);
	be64_store(cluster_at(im, TABLES + i), entry);
}

/* An image of 64 KiB with three bitmaps, of 1 KiB a bit. */
static void make(struct test_image *im, struct loop *l)
{
	struct { struct qcow2_ext_disk head; struct qcow2_ext_bitmaps_disk b; } ext = {
		{ be32_make(QCOW2_EXT_BITMAPS), be32_make(sizeof(ext.b)) },
		{ .nb_bitmaps = be32_make(BITMAPS), .directory_size = be64_make(BITMAPS * ENTRY),
		  .directory_offset = be64_make(DIRECTORY * CLUSTER) },
	};

	test_image_make(im, l, BITS, 4, ROOM);
	memcpy(im->mem->bytes + QCOW2_HEADER_V3_BYTES, &ext, sizeof(ext));
	be64_store(im->mem->bytes + 88, QCOW2_AUTOCLEAR_BITMAPS);
	put_bitmap(im, EMPTY, BITMAP_AUTO, 0);
	put_bitmap(im, DISABLED, 0, DATA * CLUSTER);
	put_bitmap(im, IN_USE, BITMAP_AUTO | BITMAP_IN_USE, (DATA + 1) * CLUSTER);
	for (unsigned k = TEST_IMAGE_USED; k < USED; k++)
		be16_store(cluster_at(im, TEST_IMAGE_REFBLOCK) + 2 * k, 1);
	atomic_store(&im->mem->node.size, USED * CLUSTER);
}

static int write_wait(struct test_image *im, uint64_t off, uint64_t len)
{
	uint8_t buf[4096];

	memset(buf, 'x', sizeof(buf));
	return chan_write_wait(im->node->home_chan, off, buf, len);
}

/* The bits of the first bitmap; 0: it has none. */
static uint64_t bits_of(const struct test_image *im)
{
	uint64_t host = be64_load(cluster_at(im, TABLES)), bits = 0;

	for (unsigned i = 0; host && i < 8; i++)
		bits |= (uint64_t)im->mem->bytes[host + i] << 8 * i;
	return bits;
}

/* ---- bits ---- */

static bool is_set(const struct track *t, uint64_t bit)
{
	return t->pages[0] && t->pages[0][bit / 64] >> bit % 64 & 1;
}

struct watched {
	struct test_image *im;
	unsigned nwrites, nlate;
};

/* Data on its way: its bits are set, and the mark is there. */
static void watch(void *arg, const struct req *req)
{
	struct watched *wd = arg;
	const struct track *t = &wd->im->w->track;

	if (req->kind != REQ_WRITE || req->len < 8 || ((uint8_t *)req->iov->iov_base)[0] != 'x')
		return;
	wd->nwrites++;
	wd->nlate += !is_set(t, 5) || !is_set(t, 6);
	assert_true(flags_of(wd->im, EMPTY) & BITMAP_IN_USE);
}

/* How many writes of data were sent too early. */
static unsigned early_writes_wait(struct test_image *im)
{
	struct watched wd = { .im = im };

	im->mem->watch = watch;
	im->mem->watch_arg = &wd;
	assert_int_equal(write_wait(im, 5 * GRAIN + 100, GRAIN), 0);
	assert_int_equal(write_wait(im, 5 * GRAIN + 100, GRAIN), 0);    /* in place */
	im->mem->watch = NULL;
	assert_true(wd.nwrites >= 2);
	return wd.nlate;
}

static int before_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_false(flags_of(&im, EMPTY) & BITMAP_IN_USE);
	assert_int_equal(early_writes_wait(&im), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(flags_of(&im, EMPTY), BITMAP_AUTO);
	assert_int_equal(bits_of(&im), 0x60);
	/* The next time its cluster is there. */
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(write_wait(&im, 63 * GRAIN, 1), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(bits_of(&im), 0x8000000000000060);
	test_image_free_wait(&im);
	return 0;
}

/* A writer that sets them when a request is served. */
static int late_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	im.broken = BREAK_T32_LATE;
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_true(early_writes_wait(&im) > 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	test_image_free_wait(&im);
	return 0;
}

static void t32_bits_are_set_before_the_change(void **state)
{
	test_image_run(before_body);
	test_image_run(late_body);
}

/* A writer that tracks all does not leave them as they are. */
static int all_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	im.broken = BREAK_T33_ALL;
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(write_wait(&im, 0, 4096), 0);
	assert_true(flags_of(&im, DISABLED) & BITMAP_IN_USE);
	assert_int_equal(test_image_close_wait(&im), 0);
	test_image_free_wait(&im);
	return 0;
}

static int others_body(void *arg)
{
	struct test_image im;
	uint8_t before[USED * CLUSTER];

	make(&im, arg);
	memcpy(before, im.mem->bytes, sizeof(before));
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_memory_equal(before, im.mem->bytes, sizeof(before));
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(write_wait(&im, 0, 4096), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_memory_equal(before + DIRECTORY * CLUSTER + ENTRY,
			    cluster_at(&im, DIRECTORY) + ENTRY, CLUSTER - ENTRY);
	assert_memory_equal(before + (TABLES + 1) * CLUSTER, cluster_at(&im, TABLES + 1),
			    (USED - TABLES - 1) * CLUSTER);
	assert_int_equal(be64_load(im.mem->bytes + 88), QCOW2_AUTOCLEAR_BITMAPS);
	test_image_free_wait(&im);
	return 0;
}

static void t33_bitmaps_that_are_not_tracked_stay_as_they_are(void **state)
{
	test_image_run(others_body);
	test_image_run(all_body);
}

/* ---- what a close costs ---- */

/* How often the file is synced by a close, where so many bitmaps are tracked, all without clusters;
 * whoever has the file syncs it once more then. */
static uint64_t close_syncs_wait(struct loop *l, unsigned ntracked, bool flushes)
{
	struct test_image im;
	uint64_t syncs;

	make(&im, l);
	for (unsigned i = 0; i < BITMAPS; i++) {
		put_bitmap(&im, i, i < ntracked ? BITMAP_AUTO : 0, 0);
		be16_store(cluster_at(&im, TEST_IMAGE_REFBLOCK) + 2 * (USED - 1 - i % 2), 0);
	}
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(write_wait(&im, 5 * GRAIN + 100, GRAIN), 0);
	if (flushes)
		assert_int_equal(chan_flush_wait(im.node->home_chan), 0);
	syncs = im.mem->ops[REQ_FLUSH];
	assert_int_equal(test_image_close_wait(&im), 0);
	syncs = im.mem->ops[REQ_FLUSH] - syncs;
	for (unsigned i = 0; i < ntracked; i++)
		assert_int_equal(flags_of(&im, i), BITMAP_AUTO);
	test_image_free_wait(&im);
	return syncs;
}

/* Refcounts, new tables and bits; then what names these, and the bitmaps' tables; the marks go with
 * the file's last sync. What was flushed before has no entries to wait for. */
static int syncs_body(void *arg)
{
	assert_int_equal(close_syncs_wait(arg, 0, false), 2);
	assert_int_equal(close_syncs_wait(arg, 0, true), 1);
	for (unsigned n = 1; n <= BITMAPS; n++) {
		assert_int_equal(close_syncs_wait(arg, n, false), 3);
		assert_int_equal(close_syncs_wait(arg, n, true), 2);
	}
	return 0;
}

static void a_close_syncs_no_more_than_it_must(void **state)
{
	test_image_run(syncs_body);
}

/* ---- failures ---- */

/* What is left counts, or has its mark. */
static void judge(const struct test_image *im, int written)
{
	if (flags_of(im, EMPTY) & BITMAP_IN_USE)
		return;
	if (!written)
		assert_int_equal(bits_of(im) & 0x60, 0x60);
}

static int fail_once(struct loop *l, int nth, unsigned kinds, bool goes_on)
{
	struct test_image im;
	int rc, left;

	make(&im, l);
	assert_int_equal(test_image_open_wait(&im), 0);
	im.mem->fail_with = kinds == 1U << REQ_WRITE ? -ENOSPC : -EIO;
	im.mem->fail_kinds = kinds;
	im.mem->fails_on = goes_on;
	atomic_store(&im.mem->fail_after, nth);
	rc = write_wait(&im, 5 * GRAIN + 100, GRAIN);
	test_image_close_wait(&im);
	left = atomic_load(&im.mem->fail_after);
	atomic_store(&im.mem->fail_after, -1);
	judge(&im, rc);
	test_image_free_wait(&im);
	return left > 0 || kinds == 0;
}

static int faults_body(void *arg)
{
	static const unsigned kinds[] = { 1 << REQ_WRITE, 1 << REQ_FLUSH, 1 << REQ_READ };

	for (unsigned i = 0; i < 2 * ARRAY_SIZE(kinds); i++)
		for (int nth = 0; !fail_once(arg, nth, kinds[i / 2], i % 2); nth++)
			assert_in_range(nth, 0, 200);
	return 0;
}

static void t31_after_any_fault_a_bitmap_is_right_or_marked(void **state)
{
	test_image_run(faults_body);
}

static int memory_body(void *arg)
{
	for (int n = 0, is_last = false; !is_last; n++) {
		struct test_image im;
		int rc;

		make(&im, arg);
		assert_int_equal(test_image_open_wait(&im), 0);
		allocations_left = n;
		rc = write_wait(&im, 5 * GRAIN + 100, GRAIN);
		node_settle_wait(im.node, NULL);
		is_last = allocations_left > 0;
		allocations_left = -1;
		test_image_close_wait(&im);
		judge(&im, rc);
		test_image_free_wait(&im);
		assert_in_range(n, 0, 200);
	}
	return 0;
}

static void t31_without_memory_a_bitmap_is_right_or_marked(void **state)
{
	test_image_run(memory_body);
}

/* ---- damage ---- */

static int damage_body(void *arg)
{
	/* Where a bitmap would have its bits, or its table. */
	static const unsigned places[] = { 0, TEST_IMAGE_REFTABLE, TEST_IMAGE_REFBLOCK,
					   TEST_IMAGE_L1, DIRECTORY, TABLES, TABLES + 1, DATA };
	struct test_image im;

	for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
		make(&im, arg);
		be64_store(cluster_at(&im, TABLES), (uint64_t)places[i] * CLUSTER);
		assert_int_equal(test_image_open_wait(&im), places[i] ? -EUCLEAN : 0);
		if (!places[i])
			test_image_close_wait(&im);
		test_image_free_wait(&im);
	}
	make(&im, arg);
	be64_store(cluster_at(&im, DIRECTORY), TEST_IMAGE_L1 * CLUSTER);
	assert_int_equal(test_image_open_wait(&im), -EUCLEAN);
	test_image_free_wait(&im);
	make(&im, arg);
	be64_store(cluster_at(&im, TABLES), 0xffULL << 56);
	assert_int_equal(test_image_open_wait(&im), -EINVAL);
	test_image_free_wait(&im);
	return 0;
}

static void q6_bitmaps_over_other_metadata_are_refused(void **state)
{
	test_image_run(damage_body);
}

static void silent(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(t32_bits_are_set_before_the_change),
		cmocka_unit_test(t33_bitmaps_that_are_not_tracked_stay_as_they_are),
		cmocka_unit_test(a_close_syncs_no_more_than_it_must),
		cmocka_unit_test(t31_after_any_fault_a_bitmap_is_right_or_marked),
		cmocka_unit_test(t31_without_memory_a_bitmap_is_right_or_marked),
		cmocka_unit_test(q6_bitmaps_over_other_metadata_are_refused),
	};

	log_set_sink(silent);
	return cmocka_run_group_tests_name("qcow2_track", tests, NULL, NULL);
}
