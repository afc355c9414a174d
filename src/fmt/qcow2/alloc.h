/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/alloc.h - clusters for the asking. Home loop.
 *
 * The *reserve* holds clusters whose refcounts are 1 already, first in memory, then by the next
 * commit durably (REF+ ahead). Taking one changes nothing and waits for nothing. Its target
 * follows the rate of writes: it doubles when a commit finds it used up and halves when it
 * was hardly touched, within ALLOC_RESERVE_MIN clusters and ALLOC_RESERVE_BYTES. It is filled
 * with the lowest free clusters. What is left goes back at close. How far ahead it is filled
 * depends on when commits come; so where writes are in order (X5) refcount blocks are not made for
 * it, but when a cluster is asked for and there is none, and nothing becomes free but when it is
 * empty (alloc_reuse_wait()).
 *
 * A cluster that is freed goes into *quarantine*: the commit that makes durable that nothing names
 * it any more must end, and every request of any loop that had begun before then (blk/epoch.h).
 * Only then its refcount goes down (REF-), in memory; if it is taken again before that was
 * written, the two cancel (quarantine.h).
 *
 * A cluster is *fresh* where it was never used: it lies behind the end that the file had when it
 * was opened and was not handed out since. In a regular file it reads as zeros, whatever a
 * crash does. The file is made to reach to its end when it comes into the reserve. */
#ifndef FMT_QCOW2_ALLOC_H
#define FMT_QCOW2_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "fmt/qcow2/cluster_set.h"
#include "fmt/qcow2/quarantine.h"
#include "loop/fiber.h"

struct err;
struct writer;

enum { ALLOC_RESERVE_MIN = 16, ALLOC_RUNS_MAX = 64 };
#define ALLOC_RESERVE_BYTES (16ULL << 20)

/* Adjacent clusters. */
struct alloc_run {
	uint64_t first;                 /* cluster number: host offset / cluster size */
	uint64_t n;
	bool is_durable;                /* so is their refcount */
	bool is_fresh;                  /* and they read as zeros, after a crash too */
	bool is_cut;                    /* in the reserve: durable when the commit under way ends */
};

struct alloc {
	struct writer *w;
	struct alloc_run runs[ALLOC_RUNS_MAX];  /* the reserve, lowest first */
	unsigned nruns;
	uint64_t reserved;              /* clusters in runs */
	uint64_t target;
	uint64_t taken;                 /* since the last cut */
	bool ran_out;                   /* since the last cut: somebody had to wait for clusters */
	bool needs_a;                   /* what alloc_cut() will answer */
	uint64_t fresh_from;            /* clusters from here on were never used; else UINT64_MAX */
	uint64_t fresh_first;           /* what that was at the open */
	uint64_t cut_floor;             /* bytes: the file is not cut below (Q10) */
	bool is_dense;                  /* who asked last writes all of what it gets */
	bool is_in_order;               /* X5: so were requests */
	bool is_reusing;                /* X5: the reserve stays empty */
	unsigned nasking;               /* fibers that wait for clusters */
	bool is_filling;
	int fill_rc;                    /* how the last filling ended */
	struct fiber_queue waiting;     /* for that to end */
	struct quarantine quarantine;
	struct cluster_set metadata;    /* clusters that tables occupy (Q6); guard.c says which */
	struct cluster_set overlaps;    /* those that two tables share, by damage or design */
	/* Counters that do not depend on the machine. */
	uint64_t ntaken, nfreed, nfilled;
};

int alloc_open_wait(struct alloc *a, struct writer *w, struct err *err);
void alloc_fini(struct alloc *a);

/* How many clusters alloc_take() would give at most; 0: the reserve is empty. */
uint64_t alloc_next(const struct alloc *a);
/* Up to @want adjacent clusters of the reserve, at least 1: the lowest ones, but such first whose
 * refcount is durable. False: it is empty; call alloc_fill_wait() and look again. Never waits. */
bool alloc_take(struct alloc *a, uint64_t want, struct alloc_run *ret);
/* The same from the cluster @first on. False: that is not in the reserve. */
bool alloc_take_at(struct alloc *a, uint64_t first, uint64_t want, struct alloc_run *ret);
/* Clusters are taken one after the other, and so they will be: fills the reserve with more at a
 * time the more there were. */
void alloc_expect(struct alloc *a);
/* Back into the reserve: never named by anything, not even in memory. @is_fresh: as alloc_take()
 * said, and nothing was written there. */
void alloc_untake(struct alloc *a, uint64_t first, uint64_t n, bool is_fresh);
/* Fills the reserve up to its target, at least by one. In a fiber; joins a filling under way.
 * 0, -ENOSPC, -EFBIG, -EIO, -ENOMEM, -EUCLEAN. */
int alloc_fill_wait(struct alloc *a);

/* Nothing in memory names these clusters any more, by one reference each: into quarantine. A
 * shared cluster's count goes down by one, the same way. Never waits, never fails: where there is
 * no memory to remember it, they leak, which is logged once. */
void alloc_free(struct alloc *a, uint64_t first, uint64_t n);

/* Q6: a table lies in these clusters now, or no longer. */
int alloc_metadata_add(struct alloc *a, uint64_t first, uint64_t n);
void alloc_metadata_del(struct alloc *a, uint64_t first, uint64_t n);
bool alloc_is_metadata(const struct alloc *a, uint64_t first, uint64_t n);
/* Does an L2 table in @cluster share it with another table? Then it stays metadata for good. */
bool alloc_is_shared_table(const struct alloc *a, uint64_t cluster);
/* guard.c: an entry of the image names @cluster, be it by damage: it is not fresh. */
void alloc_named(struct alloc *a, uint64_t cluster);

/* refs.c: clusters below @end may have been written to. */
void alloc_not_fresh(struct alloc *a, uint64_t end);

/* ---- for commit.c ---- */

/* Before the cut, may wait: tops the reserve up, if it is due. Errors do not matter: who needs
 * clusters will get them. */
void alloc_topup_wait(struct alloc *a);
/* At the cut: what is in the reserve, and what was freed so far, belongs to this commit. Does any
 * cluster that was taken since the last commit have a refcount that is not durable? Then A needs
 * its sync. */
bool alloc_cut(struct alloc *a);
/* The commit has ended: @res 0: what was cut is durable. Else it belongs to the next one. */
void alloc_cut_end(struct alloc *a, int res);
/* Waits until all that was cut and is durable has left quarantine: REF- are in the pages. */
void alloc_settle_wait(struct alloc *a);
/* At close, after a commit: gives the reserve back: REF- in the pages. */
int alloc_close_wait(struct alloc *a);
/* X5. In a fiber, with no request in flight that changes the image: what was freed may be used
 * again, the lowest cluster first. */
int alloc_reuse_wait(struct alloc *a);
/* After the last one: gives back what the file holds behind the last cluster in use (Q10). If that
 * fails, the file is longer than it has to be. */
void alloc_cut_file_wait(struct alloc *a);

#endif
