/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/sparse.c - a guess whether the file has holes where the image has clusters, because
 * they were preallocated and never written.
 *
 * As QEMU guesses: by the number of clusters in use, which must be two and a ninth more than the
 * file's blocks can hold. What is in use is counted in the refcounts, as far as needed. A damaged
 * table makes the guess worse and nothing else. */
#include <stdlib.h>

#include "fmt/qcow2/image.h"

/* The entries above 0 among the first @n of a refcount block. */
static uint64_t count_used(const uint8_t *block, uint64_t n, unsigned order)
{
	uint64_t used = 0;
	unsigned bytes = order < 3 ? 1 : 1U << (order - 3);

	for (uint64_t i = 0; i < n; i++) {
		if (order < 3) {
			unsigned bits = 1U << order, per_byte = 8 / bits;
			unsigned shift = (unsigned)(i % per_byte) * bits;

			used += block[i / per_byte] >> shift & ((1U << bits) - 1) ? 1 : 0;
			continue;
		}
		for (unsigned b = 0; b < bytes; b++) {
			if (block[i * bytes + b]) {
				used++;
				break;
			}
		}
	}
	return used;
}

/* Are at least @wanted of the file's first @clusters clusters in use? @block: of a cluster. */
static bool has_used_wait(struct chan *ch, uint64_t clusters, uint64_t wanted, uint8_t *block)
{
	const struct qcow2_header *h = &qcow2_of(ch->node)->header;
	uint64_t cluster = qcow2_cluster_size(h), used = 0;
	uint64_t per_block = cluster * 8 >> h->refcount_order;
	uint64_t entries = (uint64_t)h->reftable_clusters * cluster / 8;
	struct chan *file = ch->child[CHILD_FILE];
	uint8_t page[512];

	for (uint64_t i = 0; i < entries && clusters && used < wanted; i++) {
		uint64_t n = MIN(clusters, per_block), at;

		if (i % (sizeof(page) / 8) == 0 &&
		    chan_read_wait(file, h->reftable_off + i * 8, page, sizeof(page)))
			return false;
		at = be64_load(page + i % (sizeof(page) / 8) * 8) & ~511ULL;
		clusters -= n;
		if (!at || !is_aligned(at, cluster) || at > INT64_MAX - cluster)
			continue;
		if (chan_read_wait(file, at, block, cluster))
			return false;
		used += count_used(block, n, h->refcount_order);
	}
	return used >= wanted;
}

bool sparse_wait(struct chan *ch)
{
	struct qcow2 *q = qcow2_of(ch->node);
	struct node *file = q->node.child[CHILD_FILE];
	uint64_t cluster = qcow2_cluster_size(&q->header), bytes, real, wanted;
	uint64_t clusters = div_round_up(atomic_load(&file->size), cluster);
	uint8_t *block;
	bool is_sparse;

	if (!file->ops->allocated_wait || file->ops->allocated_wait(file, &bytes))
		return false;
	real = bytes / cluster;
	wanted = MAX(real * 10 / 9, real + 2);
	if (clusters < wanted)
		return false;
	block = aligned_alloc(MAX(cluster, (uint64_t)4096), MAX(cluster, (uint64_t)4096));
	if (!block)
		return false;
	is_sparse = has_used_wait(ch, clusters, wanted, block);
	free(block);
	return is_sparse;
}
