/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/check.h - is an image what it says? Reads all metadata, and changes nothing: that is
 * for repair.h.
 *
 * The reference is qemu-img check: what is damage, how it is counted, worded and in which order it
 * is told. */
#ifndef FMT_QCOW2_CHECK_H
#define FMT_QCOW2_CHECK_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct node;

struct qcow2_check {
	uint64_t corruptions;
	uint64_t leaks;                 /* clusters */
	uint64_t check_errors;          /* what could not be looked at */
	uint64_t total_clusters;        /* of the guest's disk */
	uint64_t allocated, compressed, fragmented;     /* of these */
	uint64_t image_end;             /* bytes: behind it nothing is used */
	uint64_t corruptions_fixed, leaks_fixed;        /* by a repair; not counted above */
};

/* Told for each finding. @is_named: the program's name belongs in front. @text may be changed. Any
 * function may be NULL. */
struct qcow2_check_say {
	void (*fn)(void *arg, bool is_named, char *text);
	/* For a walk beside others that change the image. Told of each cluster whose refcount is
	 * not what it should be, or that lacks a COPIED flag (@is_unflagged): one entry names it,
	 * which has none and is an active table's. Else COPIED flags are not looked at then. */
	void (*differ)(void *arg, uint64_t cluster, uint64_t refcount, uint64_t references,
		       bool is_unflagged);
	/* Bytes: the file is looked at as if it were so long, at least. A crash may lose the end of
	 * a file, but not the refcounts of what was there. */
	uint64_t end_min;
	/* Called again and again while tables are read, so that it may take its time; -errno gives
	 * the check up. */
	int (*pace_wait)(void *arg);
	void *arg;
};

/* In a fiber of the home loop; @n is an open qcow2 image. 0, whatever was found; -errno where the
 * check had to be given up, with the reason in @err; *@ret is what was found until then. */
int qcow2_check_wait(struct node *n, const struct qcow2_check_say *say, struct qcow2_check *ret,
		     struct err *err);

#endif
