/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/commit.h - makes what was written durable. Home loop.
 *
 * One commit runs at a time. It is started by a flush, FUA, a write in writethrough mode, too many
 * dirty pages, or COMMIT_AGE_NS after the first change, in every cache mode:
 *
 *	close    new clusters that hold acknowledged data are completed and mapped (pending.h); the
 *		 reserve is topped up
 *	cut      every dirty page is copied; from here on changes belong to the next commit. Who
 *		 asked before is answered by this commit, who asks later by the next
 *	A        refcounts and new or copied L2 tables are written; sync
 *	B        pages of L2 tables that something durable names, then of L1; sync
 *
 * A's sync is left out where nothing in B needs it: no cluster was mapped whose refcount is not
 * durable, no table is new, and every cluster mapped is fresh where the guest saw zeros before:
 * then even an entry that outruns its data shows zeros, which are the old content. So a commit is
 * 0, 1 or 2 syncs. The data writes of what is mapped have ended before the cut, but for fresh
 * clusters; either sync takes them along. An external data file is synced by itself, before all.
 *
 * With lazy refcounts an image is marked dirty before it is changed (mark.c), and refcounts stay in
 * memory until it is closed, or there are too many pages of them: who finds it dirty makes them
 * anew. All else is as above: even then a cluster is mapped only behind a sync that came after it
 * went into the reserve, so that the file is long enough for it (alloc.c).
 *
 * In a failed commit the pages stay dirty, whoever waits gets the error, and the next one
 * does all of it again, with A's sync. */
#ifndef FMT_QCOW2_COMMIT_H
#define FMT_QCOW2_COMMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "loop/loop.h"

struct fiber;

#define COMMIT_AGE_NS (5 * NS_PER_SEC)

struct commit_stats {
	uint64_t commits;
	uint64_t syncs;                 /* asked of the file */
	uint64_t skipped;               /* syncs of phase A that were left out */
	uint64_t meta_bytes, meta_writes;
};

/* A member of struct writer. */
struct commit {
	struct task task;
	struct timer timer;             /* metadata age */
	bool is_running;
	bool is_cut;                    /* the running one took its cut */
	bool is_wanted;                 /* another one shall follow */
	bool is_flush;                  /* the next cut is to have what is packed (pack.h), too */
	bool is_noted;                  /* something changed since the last cut */
	bool needs_a;                   /* and B must wait for A's sync */
	bool is_last;                   /* at close: even lazy refcounts are written, and no more
					 * clusters are reserved */
	bool is_file_written;           /* since the last cut, beside the pages: it must sync */
	struct list_node next;          /* struct commit_waiter: of the next cut */
	struct fiber *stopper;
	struct commit_stats stats;
};

void commit_init(struct commit *c);

/* Something was changed, or will be when a pending cluster is closed: a commit is due in
 * COMMIT_AGE_NS at the latest. */
void commit_note(struct commit *c);
/* Starts one in the background. */
void commit_kick(struct commit *c);
/* In a fiber: what was done before is durable. 0, or why it is not. */
int commit_wait(struct commit *c);
/* The same of what is in tables already; clusters that wait to be packed go on waiting. */
int commit_metadata_wait(struct commit *c);
/* Waits until none runs and stops the timer. */
void commit_stop_wait(struct commit *c);

#endif
