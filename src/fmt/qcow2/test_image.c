/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/test_image.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "fmt/qcow2/qcow2.h"

void test_image_run(int (*body)(void *l))
{
	for (uint64_t seed = 1; seed <= 5; seed++) {
		struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = seed };
		struct loop *l;
		int rc = loop_new(&o, &l, NULL);

		assert(rc == 0);
		rc = loop_call(l, body, l);
		assert(rc == 0);
		loop_free(l);
	}
}

void test_image_make(struct test_image *im, struct loop *l, unsigned cluster_bits,
		     unsigned refcount_order, uint64_t room)
{
	uint64_t cluster = 1ULL << cluster_bits;
	uint64_t table_bytes = cluster / 8 << cluster_bits;     /* that one L2 table maps */
	struct qcow2_header_disk h = {
		.magic = be32_make(QCOW2_MAGIC), .version = be32_make(3),
		.cluster_bits = be32_make(cluster_bits), .size = be64_make(64 * KiB),
		.l1_size = be32_make((uint32_t)div_round_up(64 * KiB, table_bytes)),
		.l1_table_offset = be64_make(TEST_IMAGE_L1 * cluster),
		.refcount_table_offset = be64_make(TEST_IMAGE_REFTABLE * cluster),
		.refcount_table_clusters = be32_make(1),
		.refcount_order = be32_make(refcount_order),
		.header_length = be32_make(QCOW2_HEADER_V3_BYTES),
	};
	uint8_t *bytes;

	*im = (struct test_image){ .loop = l, .mem = test_mem_new(l, room) };
	im->mem->node.holes_read_zero = true;
	bytes = im->mem->bytes;
	memcpy(bytes, &h, QCOW2_HEADER_V3_BYTES);
	be64_store(bytes + TEST_IMAGE_REFTABLE * cluster, TEST_IMAGE_REFBLOCK * cluster);
	for (unsigned i = 0; i < TEST_IMAGE_USED; i++) {
		uint8_t *block = bytes + TEST_IMAGE_REFBLOCK * cluster;

		if (refcount_order < 3)
			block[i << refcount_order >> 3] |=
				(uint8_t)(1U << (i << refcount_order & 7));
		else
			block[((i + 1) << refcount_order >> 3) - 1] = 1;
	}
	atomic_store(&im->mem->node.size, TEST_IMAGE_USED * cluster);
}

int test_image_open_wait(struct test_image *im)
{
	struct qcow2_opts opts = { .writable = true, .broken = im->broken,
				   .discard = im->discard };
	struct err err = { 0 };
	int rc;

	im->cache = qcow2_cache_new(0, im->loop);
	if (!im->cache)
		return -ENOMEM;
	opts.cache = im->cache;
	rc = qcow2_open_wait(node_get(&im->mem->node), &opts, &im->node, &err);
	if (rc) {
		node_put_wait(&im->mem->node);
		qcow2_cache_free(im->cache);
		return rc;
	}
	im->w = container_of(im->node, struct qcow2, node)->writer;
	return 0;
}

int test_image_close_wait(struct test_image *im)
{
	int rc = node_settle_wait(im->node, NULL);

	node_put_wait(im->node);
	qcow2_cache_free(im->cache);
	im->node = NULL;
	im->w = NULL;
	return rc;
}

bool test_image_was_corrupt(struct test_image *im)
{
	struct qcow2_header_disk *h = (void *)im->mem->bytes;
	uint64_t bits = be64_get(h->incompatible_features);

	h->incompatible_features = be64_make(bits & ~(uint64_t)QCOW2_INCOMPAT_CORRUPT);
	return bits & QCOW2_INCOMPAT_CORRUPT;
}

void test_image_free_wait(struct test_image *im)
{
	node_put_wait(&im->mem->node);
}

uint64_t test_count_wait(struct test_image *im, uint64_t cluster)
{
	uint64_t count = 0;
	int rc = refs_get_wait(&im->w->refs, cluster, &count);

	assert(rc == 0);
	return count;
}

struct alloc_run test_take_wait(struct test_image *im, uint64_t want)
{
	struct alloc_run run;

	while (!alloc_take(&im->w->alloc, want, &run)) {
		int rc = alloc_fill_wait(&im->w->alloc);

		assert(rc == 0);
	}
	return run;
}
