/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/quarantine.h - clusters that were freed, on their way to being free. Home loop.
 *
 *	freed     nothing in memory names them any more; on disk something may
 *	cut       the commit under way removes those names
 *	resting   it has; requests that began before may still use them
 *
 * A fiber takes what rests, waits until those requests have ended (blk/epoch.h), gives the space
 * back to the medium if that is wanted, and lowers the refcounts, in memory (REF-). Until then
 * a cluster's refcount keeps it from being found (Q4), so nothing is ever looked up here. What
 * goes wrong leaks clusters and does nothing else; the mark then stays, so that who opens the image
 * for writing next finds them (reclaim.h).
 *
 * Beyond QUARANTINE_BYTES a commit is started; meanwhile new clusters come from elsewhere.
 *
 * Where writes are in order (X5) nothing leaves by itself: it would be free when a commit ends,
 * whenever that is. It rests until whoever writes says that it is time (qcow2_reuse_wait()), or the
 * close; or until room is short: then it is better to have some than to be alike. */
#ifndef FMT_QCOW2_QUARANTINE_H
#define FMT_QCOW2_QUARANTINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop/fiber.h"

struct writer;

#define QUARANTINE_BYTES (256ULL << 20)

struct cluster_run {
	uint64_t first, n;
};

struct run_list {
	struct cluster_run *runs;       /* owned */
	size_t n, room;
};

struct quarantine {
	struct writer *w;
	struct run_list freed, cut, resting;
	uint64_t clusters;              /* in quarantine, whatever their state */
	struct task task;               /* the fiber that releases */
	bool is_releasing;
	bool is_held;                   /* X5: what rests goes on resting */
	bool is_let_go;                 /* for good */
	struct fiber_queue settled;     /* fibers that wait for that to end */
	bool is_leak_logged;
};

void quarantine_init(struct quarantine *q, struct writer *w);
/* Nothing rests. A zeroed @q is fine. */
void quarantine_fini(struct quarantine *q);

/* Never waits, never fails: see alloc_free(). */
void quarantine_add(struct quarantine *q, uint64_t first, uint64_t n);

/* As alloc_cut(), alloc_cut_end() and alloc_settle_wait(). */
void quarantine_cut(struct quarantine *q);
void quarantine_cut_end(struct quarantine *q, int res);
/* From now on, unless it was let go, what rests is held. */
void quarantine_hold(struct quarantine *q);
/* Nothing is held any more. */
void quarantine_let_go(struct quarantine *q);
/* What rests, held or not, is released; waits for the end of that. */
void quarantine_settle_wait(struct quarantine *q);

#endif
