/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/refs.h - refcounts of an image that is written. Home loop.
 *
 * The refcount table is in memory as a whole (8 MiB at most); blocks are pages of meta.h. A
 * refcount in a page may be written at any time: increments are made before a cluster is
 * handed out, decrements only when nothing durable names it (alloc.h).
 *
 * Where the table's blocks cover no free cluster, they grow: several blocks at once, in
 * clusters that they cover themselves; they are durable, then the table's entries, all in one
 * sector, before a cluster of theirs is used (Q8). A full table moves to a larger place (Q7). Where
 * writes are in order (X5) its old place rests until the close: it would be free when a commit
 * ends, whenever that is.
 *
 * Specification: "Host cluster management". */
#ifndef FMT_QCOW2_REFS_H
#define FMT_QCOW2_REFS_H

#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/quarantine.h"

struct err;
struct writer;

/* Tables that moved, each to one at least twice as long. */
enum { REFS_OLD_MAX = 20 };

struct refs {
	struct writer *w;
	uint64_t *table;                /* host offsets of blocks, 0: none; as they were found;
					 * owned */
	uint64_t table_off;             /* where it is in the file */
	uint64_t table_entries;         /* all that its clusters hold */
	uint64_t table_used;            /* entries behind the last block */
	unsigned order;                 /* a refcount has 1 << order bits */
	unsigned block_bits;            /* a block covers 1 << block_bits clusters */
	uint64_t max;                   /* the highest refcount */
	uint64_t free_from;             /* no cluster below it is free */
	uint64_t nfreed;                /* clusters that became free, ever */
	uint64_t *full;                 /* owned: a bit a block that was seen without a free one */
	uint8_t *piece;                 /* owned: part of a block that is searched */
	bool is_still;                  /* the blocks must not grow now */
	struct cluster_run old[REFS_OLD_MAX];   /* X5: tables that rest until the close */
	unsigned nold;
};

/* Is @off, an entry of the table, the place of a block? */
bool refs_is_block(const struct refs *r, uint64_t off);
/* Reads the table. What is damaged in it is an error only to who needs it. */
int refs_open_wait(struct refs *r, struct writer *w, struct err *err);
void refs_fini(struct refs *r);

/* The refcount of @cluster; 0 where no block covers it. */
int refs_get_wait(struct refs *r, uint64_t cluster, uint64_t *ret);

/* One behind the last cluster from @from to @end that has a refcount, or holds metadata; @from:
 * none has. */
int refs_end_wait(struct refs *r, uint64_t from, uint64_t end, uint64_t *ret);

/* The lowest free clusters: the first run of free ones from r->free_from on, @want long at most;
 * it ends where a page of refcounts does. Grows the blocks where there are none. Does not take
 * them. In a fiber; only alloc.c calls it, one call at a time, after mark_set_wait().
 * 0, -EIO, -ENOMEM, -ENOSPC, -EFBIG, -EUCLEAN; -EAGAIN: they must not grow. */
int refs_find_wait(struct refs *r, uint64_t want, uint64_t *ret_first, uint64_t *ret_n);

/* Adds @delta (+1 or -1) to @n clusters from @first on; those that become free may lower free_from.
 * -ERANGE: a count would pass its limits, and none was changed: for +1 that is a shared cluster
 * with a full count, for -1 damage. Nobody else changes these clusters' counts meanwhile. Other
 * errors may leave a part of them changed. */
int refs_add_wait(struct refs *r, uint64_t first, uint64_t n, int delta);
/* Lowers the refcount of @cluster from @from to @to, however far that is; they may be the same.
 * -EAGAIN: it is not @from, and was not changed. */
int refs_lower_wait(struct refs *r, uint64_t cluster, uint64_t from, uint64_t to);

/* At close: frees the tables that rest; a commit is to follow. Was there one? */
bool refs_free_old(struct refs *r);

#endif
