/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/bitmap.h - the directory of persistent bitmaps (specification: "Bitmaps"), read and
 * judged in QEMU's words. */
#ifndef FMT_QCOW2_BITMAP_H
#define FMT_QCOW2_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/header.h"

struct chan;
struct err;
struct node;

enum {
	BITMAP_TYPE_DIRTY = 1,
	BITMAP_IN_USE = 1,
	BITMAP_AUTO = 2,
	BITMAP_NAME_MAX = 1023,
	BITMAP_GRANULARITY_BITS_MIN = 9,
	BITMAP_GRANULARITY_BITS_MAX = 31,
};

struct qcow2_bitmap {
	uint64_t entry_off;             /* in the file: of its entry in the directory */
	uint64_t table_off;
	uint32_t table_entries;
	uint32_t flags;                 /* BITMAP_* */
	unsigned granularity_bits;
	char name[BITMAP_NAME_MAX + 1];
};

/* Calls fn(arg, bitmap) for each bitmap of the image, in order, until one returns not 0, which is
 * what this returns then. In a fiber of @file's loop. -EINVAL with @err: a broken directory.
 * An image whose bitmaps are inconsistent (qcow2_header) has none. */
int qcow2_bitmaps_each_wait(struct chan *file, const struct qcow2_header *h,
			    int (*fn)(void *arg, const struct qcow2_bitmap *b), void *arg,
			    struct err *err);

/* Reads the table of @b: its entries, in the machine's order, returned owned (free()) in @ret.
 * -EINVAL: an entry that cannot be; -EIO, -ENOMEM. */
int qcow2_bitmap_table_wait(struct chan *file, const struct qcow2_header *h,
			    const struct qcow2_bitmap *b, uint64_t **ret);

/* Reads the bitmaps of the open image @n as QEMU does when it opens one, and refuses what it
 * refuses, in its words. In a fiber of the home loop. */
int qcow2_bitmaps_judge_wait(struct node *n, struct err *err);

/* Bitmaps on their way into an image. */
struct qcow2_bitmaps_copy {
	uint32_t n;
	uint64_t directory_off, directory_bytes;
	bool breaks_t35;                /* tests: the header changes in one write of many sectors */
};

/* bitmap_copy.c. In a fiber of the home loop of both: copies the bitmaps of @from that are not in
 * use into clusters of @to, which is open for writing, of the same size, and has none. On success
 * they are durable, and nothing names them yet. */
int qcow2_bitmaps_copy_wait(struct node *from, struct node *to, struct qcow2_bitmaps_copy *ret,
			    struct err *err);
/* Then, when @to was closed: names them in the header of the image in @file, which has room. */
int qcow2_bitmaps_name_wait(struct node *file, const struct qcow2_bitmaps_copy *c,
			    struct err *err);

/* What an opener of @n is to be warned of, or NULL. */
const char *qcow2_bitmaps_warning(const struct node *n);

#endif
