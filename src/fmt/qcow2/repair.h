/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/repair.h - a check that mends what it finds.
 *
 * What is mended, how it is counted, worded and ordered is as in qemu-img check -r. In which order
 * it is written is not: an image is never left worse than it was, wherever the repair ends.
 *
 * It needs no writer, whose rules a damaged image breaks, but a chan of the file, and the counts of
 * the check (check_impl.h), which say what every refcount should be. Nobody else has the image open
 * for writing. What is written, each step durable before the next begins:
 *
 *	snapshots left out   the number in the header, where the table is longer than any may be
 *	entries              while tables are walked: preallocated zeros at an impossible place
 *			     become zeros without one
 *	REF+                 refcounts that are too low go up, where they are
 *	COPIED off           flags go where a cluster will have more than one name
 *	REF-                 refcounts that are too high go down, where they are
 *	COPIED on            flags come back where the refcount is 1 now
 *	snapshot table       written anew beside the old one, then the header names it
 *	header               the dirty and the corrupt bit go, and the mark of an image in use
 *
 * Where refcount blocks are missing, lie nowhere or are used twice, REF+ is a rebuild: all blocks
 * and a new table go to clusters that nothing names, and then the header names the table. The old
 * ones are counted as used until then, and leak until REF-.
 *
 * REF+ before COPIED off: a cluster with two names, a refcount of 1 and the flag is written in
 * place, but without the flag it would be copied, and freed under the other name.
 *
 * Nothing but refcounts, flags and the entries above is changed in place, so nothing that a guest
 * or a snapshot reads is. What is written new lies where nothing is. A repair that was cut off is
 * done again from the start.
 *
 * Invariants, for every state that a crash may leave:
 *	Y11  no refcount is lower than before, unless it is at least the number of names that the
 *	     cluster has on disk;
 *	Y12  a COPIED flag is set only where the refcount is 1 on disk;
 *	Y13  the header names a refcount table and a snapshot table that are durable, old or new;
 *	     the change lies in one sector;
 *	Y14  what the guest and the snapshots read is as before, but for data that lies in a table;
 *	Y15  the bits that keep others from writing go only when nothing is left to mend. */
#ifndef FMT_QCOW2_REPAIR_H
#define FMT_QCOW2_REPAIR_H

#include <stdbool.h>

struct chan;
struct err;
struct node;
struct qcow2_check;
struct qcow2_check_say;
struct qcow2_header;

enum qcow2_repair {
	QCOW2_REPAIR_NOTHING,
	QCOW2_REPAIR_LEAKS,             /* refcounts that are too high; flags, if only these... */
	QCOW2_REPAIR_ALL,               /* ...and all that can be mended */
};

/* Rules to leave out, for tests that show that a broken rule is seen. */
enum repair_break {
	BREAK_Y11_EARLY_MINUS = 1 << 0, /* REF- does not wait for what took names away */
	BREAK_Y13_SWITCH = 1 << 1,      /* the header names a table that is not durable */
	BREAK_Y14_OVERWRITE = 1 << 2,   /* what is written new may lie anywhere */
	BREAK_Y15_BITS = 1 << 3,        /* the bits go first */
	BREAK_Y12_EARLY_COPIED = 1 << 4,        /* flags do not wait for REF- */
};

struct qcow2_repair_opts {
	enum qcow2_repair what;
	bool looks_behind;              /* a crash may lose the end of a file, but not the refcounts
					 * of what was there: they are too high */
	unsigned broken;                /* tests: enum repair_break */
};

/* As qcow2_check_wait() (check.h), of the image in @file with the header @h, which is kept as the
 * file's becomes. In a fiber of @file's loop; the file is open for writing. *@ret counts what is
 * left, and what was mended: those who want to be sure check again. */
int qcow2_repair_wait(struct chan *file, struct qcow2_header *h,
		      const struct qcow2_repair_opts *opts, const struct qcow2_check_say *say,
		      struct qcow2_check *ret, struct err *err);
/* The same of an open node, which has no writer. */
int qcow2_repair_node_wait(struct node *n, const struct qcow2_repair_opts *opts,
			   const struct qcow2_check_say *say, struct qcow2_check *ret,
			   struct err *err);

/* For an open for writing of an image whose refcounts were not written (the dirty bit of lazy
 * refcounts), before there is a writer: makes them right, and takes the bit away, in the file and
 * in @h. @name is for the log, which is told what was mended. -EUCLEAN: there is damage that cannot
 * be mended; the bit stays. In a fiber of @file's loop. */
int qcow2_repair_dirty_wait(struct chan *file, struct qcow2_header *h, const char *name,
			    struct err *err);

#endif
