/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/reclaim.h - the walk after a crash: finds what leaked, and frees it. Home loop.
 *
 * A crash leaves leaks only: clusters with a refcount that nothing names. Where the in-use mark is
 * found at an open for writing, a fiber in the background counts all references on disk, in
 * bounded memory (check.h), slowly, while the disk is used. A cluster that leaked before the open
 * has a refcount, so nobody is given it, and no name, so nobody frees it. So what the count finds
 * leaked, and was neither handed out nor freed since the open, did leak. Of a shared cluster one
 * reference may have leaked and another been freed since, be it between the walk's look at the name
 * and at the refcount, which agree then: where that may be, the walk is repeated when nobody writes
 * any more.
 *
 * A snapshot that another program began to make, or to delete, and did not end leaves clusters with
 * one name, a higher refcount, and no COPIED flag in the entry that names them. Lowering the
 * refcount alone would make a leak an error: entries of refcount 1 must have the flag. Setting it
 * first would be worse, for a cluster with the flag is written in place, whatever else its refcount
 * stands for. So the last walk, when nobody writes, does both: the lower refcounts are durable,
 * then the flags are set. Until then the refcounts stay as they are, and what a crash leaves is a
 * leak; but between the two steps it is flags that are missing, and the next walk sets them. They
 * are set while nobody writes as entries that are about to be replaced must not become writable.
 * Compressed clusters have no flag, nor have the entries of snapshots: their refcounts are lowered
 * at once.
 *
 * Invariants:
 *	R4  a refcount is lowered by the walk only where its cluster was not touched since the open;
 *	R5  an image in which the walk finds damage is left as it is;
 *	R6  the mark is taken away only when the walk has ended well, and nothing leaked since;
 *	R7  the walk lowers a refcount to 1 only together with setting the COPIED flag of the
 *	    active entry that names the cluster, and the flag goes to disk behind the refcount;
 *	R8  what the walk reads as a table was one all the time since it saw its name. A guest that
 *	    writes has tables without the flag copied, and those that nobody shares become free,
 *	    and soon something else: then the walk is void. */
#ifndef FMT_QCOW2_RECLAIM_H
#define FMT_QCOW2_RECLAIM_H

#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/cluster_set.h"
#include "loop/fiber.h"

struct err;
struct writer;

#define RECLAIM_PAUSE_NS NS_PER_MS              /* between two tables */
enum {
	RECLAIM_LEAKS_MAX = 1 << 20,            /* clusters; the rest is left to a check */
	RECLAIM_CLUSTERS_MAX = INT32_MAX,       /* refcounts in an image; as a check's */
};

struct reclaim_leak;

struct reclaim {
	struct writer *w;
	struct task task;
	uint64_t *touched;              /* owned; a bit a cluster; NULL: no walk is on */
	uint64_t clusters;              /* of touched; what lies behind cannot have leaked */
	struct cluster_set left;        /* R8: tables that nothing in memory names any more */
	struct reclaim_leak *leaks;     /* owned */
	unsigned nleaks, room;
	uint64_t nexcused;              /* differences that look like damage and are none */
	uint64_t nunflagged;            /* of leaks: R7, flags that are still missing */
	bool is_running;
	bool is_hurried;                /* the image is to be closed, */
	bool is_urgent;                 /* or has no room: somebody waits for the end */
	bool is_last;                   /* nobody writes any more */
	bool is_void;                   /* a table moved or grew: the count is worth nothing */
	bool is_unsure;                 /* some of several references may have leaked, or flags
					 * are missing: there must be a last walk */
	bool is_more;                   /* there are more leaks than could be noted */
	bool is_owed;                   /* R6: the mark stays */
	struct fiber_queue waiting;     /* for its end */
};

/* Starts the walk, unless the image is larger than a check can look at. 0 or -ENOMEM. */
int reclaim_start(struct reclaim *r, struct writer *w);
/* These clusters were handed out or freed. */
void reclaim_touch(struct reclaim *r, uint64_t first, uint64_t n);
/* The active disk does not name the L2 table in @cluster any more, which will be freed. Where this
 * is not 0, it must not be. */
int reclaim_table_left(struct reclaim *r, uint64_t cluster);
/* In a fiber: these clusters lose @times references in a moment. */
void reclaim_release_wait(struct reclaim *r, uint64_t first, uint64_t n, uint64_t times);
/* A table moved, or refcount blocks were added. */
static inline void reclaim_void(struct reclaim *r)
{
	r->is_void |= r->is_running;
}

/* There is no room for what is written, but perhaps for what leaked: waits for the end of the walk,
 * which goes on without pauses. False: none was on. */
bool reclaim_room_wait(struct reclaim *r);
/* At close: the same, and a walk that is void does not begin again. */
void reclaim_finish_wait(struct reclaim *r);
/* Does all of it once more, where the walk was void or could not tell, or R7 asks for it, now that
 * everything is durable and nobody writes. What it could not do is owed (R6), and no error. */
int reclaim_again_wait(struct reclaim *r);
void reclaim_fini(struct reclaim *r);

#endif
