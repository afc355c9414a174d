/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/track.h - what was changed: the persistent bitmaps of an image that is written.
 *
 * A bitmap that is enabled, and that was left valid, is *tracked*. One map in memory serves all of
 * them: a bit a granule of the finest among them, in pages that are made when they are first
 * needed. Whoever changes something, on any loop, first sets its bits there, without a lock.
 *
 * Before the first change all tracked bitmaps are marked on disk: they are in use. When the image
 * is closed, what was changed is added to the bits that each has on disk, in place; clusters that
 * it lacks come from the reserve. A commit makes that durable, with all else; then the tables name
 * the new clusters, and when these are durable the marks go. A bitmap that is found with a mark
 * lacks something for ever, and one that cannot be stored keeps its mark.
 *
 * Invariants:
 *	T31  a bitmap on disk that is not marked has a bit for every granule that differs from what
 *	     it was when the bitmap was empty: marks are durable before the first change, and
 *	     go when the bits are;
 *	T32  a bit is set in memory before the change is sent;
 *	T33  bitmaps that are disabled, or were marked when the image was opened, stay as they are;
 *	T34  a bitmap's table names a cluster only when it and its refcount are durable. */
#ifndef FMT_QCOW2_TRACK_H
#define FMT_QCOW2_TRACK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "loop/fiber.h"

struct err;
struct writer;

enum { TRACK_PAGE_BYTES = 4096, TRACK_PAGE_BITS = 8 * TRACK_PAGE_BYTES };

struct tracked {
	uint64_t entry_off;             /* of its entry in the directory */
	uint64_t table_off;
	uint32_t table_entries;
	uint32_t flags;                 /* as it has them while it is not in use */
	unsigned granularity_bits;
	char *name;                     /* owned */
	bool is_lost;                   /* not stored: the mark stays */
	/* From track_store_wait() to track_name_wait(), where there are new clusters. */
	uint64_t *table;                /* owned: with these */
	bool *is_new;                   /* owned: which entries they are */
};

struct track {
	struct writer *w;
	struct tracked *list;           /* owned; set at open */
	uint32_t n, room;
	uint64_t table_bytes;           /* of all tables that were read at open */
	/* [const] */
	unsigned granularity_bits;      /* of the map in memory */
	uint64_t npages;
	/* Any loop. A page is stored with release when it is zeroed; pairs with the acquire of who
	 * looks. */
	_Atomic(_Atomic uint64_t *) *pages;     /* owned, as each page is; NULL: no bit is set */
	atomic_bool is_lost;            /* there was no memory for a page */
	/* The home loop's. */
	bool is_marked;                 /* on disk, durably */
	bool is_busy;
	struct fiber_queue waiting;     /* for the marks */
};

/* In a fiber of the home loop, at open: finds the bitmaps, refuses what QEMU refuses. Where they
 * lie counts as metadata (Q6). */
int track_open_wait(struct track *t, struct writer *w, struct err *err);
void track_fini(struct track *t);

/* In a fiber of the home loop, before the first change: sets the marks. At once where that is
 * done. */
int track_begin_wait(struct track *t);

/* [@off, @off + @len) of the guest will be changed. Any loop, after track_begin_wait(). */
void track_set(struct track *t, uint64_t off, uint64_t len);
static inline void track_change(struct track *t, uint64_t off, uint64_t len)
{
	if (t->n && len)
		track_set(t, off, len);
}

/* At close, nobody changes anything: adds the bits to the bitmaps on disk, in clusters that a table
 * names or new ones. The next commit makes it durable. */
void track_store_wait(struct track *t);
/* It is (T34): tables name the new ones. As above. */
void track_name_wait(struct track *t);
/* All else is durable: the marks go. Who closes the file syncs it. */
int track_end_wait(struct track *t);

#endif
