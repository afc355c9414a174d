/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/create_refs.h - which clusters of an image in the making are used.
 *
 * In a new image a cluster is used once or not at all, so its refcounts are a few runs of used
 * clusters in memory. Blocks of refcounts exist as numbers only until create_refs_write_wait()
 * makes their bytes from the runs, one after the other: memory does not grow with the image.
 *
 * Where things come to lie is what QEMU 10 does, step by step, so that both make the same image:
 * the lowest free clusters from where the last search ended; a block of refcounts is made when the
 * first cluster that it counts is taken, in a cluster behind what is being taken, and then the
 * search starts again; a full table moves to the start of the next block that does not exist. */
#ifndef FMT_QCOW2_CREATE_REFS_H
#define FMT_QCOW2_CREATE_REFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chan;

/* Clusters [first, end). */
struct cluster_range {
	uint64_t first, end;
};

struct create_refs {
	struct chan *file;              /* borrowed */
	unsigned cluster_bits;
	unsigned order;                 /* a refcount has 1 << order bits */
	unsigned block_bits;            /* a block counts 1 << block_bits clusters */
	struct cluster_range *used;     /* owned; sorted, they neither overlap nor touch */
	size_t nused, used_room;
	uint64_t search_from;           /* the next search starts here */
	uint64_t *table;                /* owned; the cluster of each block, 0: none */
	uint64_t table_entries;
	uint64_t table_first;           /* its first cluster */
};

/* The header, a table of one cluster and one block are there. 0 or -ENOMEM. A zeroed @r may be
 * ended. */
int create_refs_init(struct create_refs *r, struct chan *file, unsigned cluster_bits,
		     unsigned order);
void create_refs_fini(struct create_refs *r);

/* Takes @n adjacent clusters. In a fiber. 0, -ENOMEM, -EFBIG (the table is at its limit), or an I/O
 * error of writing a table that moves. */
int create_refs_take_wait(struct create_refs *r, uint64_t n, uint64_t *ret_first);
/* Takes up to @n clusters from @first on, as many as are free: *@ret_n, perhaps 0. */
int create_refs_take_at_wait(struct create_refs *r, uint64_t first, uint64_t n, uint64_t *ret_n);
/* Moves the table behind all that is used, with blocks enough for @n more clusters behind it:
 * *@ret_first is where they may start. */
int create_refs_move_wait(struct create_refs *r, uint64_t n, uint64_t *ret_first);
/* The cluster behind the last one used. */
uint64_t create_refs_end(const struct create_refs *r);
/* Writes the blocks and the table. */
int create_refs_write_wait(struct create_refs *r);

#endif
