/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/l2.h - entries of L2 tables, for those who change them. Home loop.
 *
 * Wait for what is needed first, then decide and change without giving way:
 *
 *	rc = l2_get_wait(w, guest_off, true, &at);      the page is there, pinned
 *	pair = l2_pair(w, &at, guest_off);
 *	l2_set(w, &at, guest_off, new, needs_a);
 *	l2_put(w, &at);
 *
 * A table that is missing is made, and one that is shared (its L1 entry has no COPIED) copied, when
 * the page is asked for with @make. Specification: "Cluster mapping". */
#ifndef FMT_QCOW2_L2_H
#define FMT_QCOW2_L2_H

#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/units.h"

struct meta_page;
struct writer;

/* A slice of an L2 table. */
struct l2_at {
	uint64_t first;                 /* guest offset of its first entry */
	uint64_t end;                   /* and behind its last */
	uint64_t table;                 /* host offset of the slice's page; 0: no table */
	struct meta_page *page;         /* NULL: no table, all its entries are 0 */
};

/* The slice that maps @guest_off. 0, -EIO, -ENOMEM, -ENOSPC, -EUCLEAN. With @make, at->page is not
 * NULL and may be changed. */
int l2_get_wait(struct writer *w, uint64_t guest_off, bool make, struct l2_at *ret);
void l2_put(struct writer *w, struct l2_at *at);

/* @guest_off is within the slice. */
struct l2_pair l2_pair(const struct writer *w, const struct l2_at *at, uint64_t guest_off);
/* Changes it, in the page and in the mapping cache (U11). @needs_a: what it names may become
 * visible only behind a sync (of data that matters, of a new table): see commit.h. */
void l2_set(struct writer *w, struct l2_at *at, uint64_t guest_off, struct l2_pair new,
	    bool needs_a);

#endif
