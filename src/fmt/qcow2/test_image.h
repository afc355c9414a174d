/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/test_image.h - a small image in memory, open for writing, for tests of the writer. */
#ifndef FMT_QCOW2_TEST_IMAGE_H
#define FMT_QCOW2_TEST_IMAGE_H

#include "fmt/qcow2/test_mem.h"
#include "fmt/qcow2/writer.h"

/* Where things are in a new image: clusters, one each. */
enum {
	TEST_IMAGE_REFTABLE = 1,
	TEST_IMAGE_REFBLOCK = 2,
	TEST_IMAGE_L1 = 3,
	TEST_IMAGE_USED = 4,            /* clusters with a refcount of 1 */
};

struct test_image {
	struct loop *loop;
	struct test_mem *mem;           /* the file; the image's node owns it */
	struct qcow2_cache *cache;
	struct node *node;
	struct writer *w;
	uint64_t broken;                /* enum writer_break, for the next open */
	bool discard;                   /* for the next open */
};

/* Calls @body with a simulated loop, in a fiber of that, once for each of a few seeds; it must
 * return 0. */
void test_image_run(int (*body)(void *l));
/* Writes an empty image of 64 KiB. In a fiber of @l. */
void test_image_make(struct test_image *im, struct loop *l, unsigned cluster_bits,
		     unsigned refcount_order, uint64_t room);
/* Opens it for writing, fills im->node and im->w. */
int test_image_open_wait(struct test_image *im);
/* Settles and closes; the file stays. */
int test_image_close_wait(struct test_image *im);
/* The refcount of @cluster in memory. */
uint64_t test_count_wait(struct test_image *im, uint64_t cluster);
/* Up to @want clusters, filling the reserve where it is empty; must succeed. */
struct alloc_run test_take_wait(struct test_image *im, uint64_t want);
/* Is the header's corrupt bit set? Clears it. */
bool test_image_was_corrupt(struct test_image *im);
/* Frees the file. */
void test_image_free_wait(struct test_image *im);

#endif
