/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/writer.h - an image that is open for writing: what the files that change it share.
 *
 *	meta.c     metadata in memory, page by page; the one function that changes it
 *	l2.c       L1 and L2 entries: finding, making and copying tables
 *	units.c    what an L2 entry says of a cluster, or of its subclusters: pure
 *	refs.c     refcounts: their table and blocks, the search for free clusters
 *	alloc.c    clusters for the asking: the reserve; where metadata lies (cluster_set.c)
 *	quarantine.c  what is freed rests there
 *	commit.c   makes changes durable, in an order that no crash can hurt
 *	pending.c  new clusters between their first write and their place in an L2 table
 *	pending_cache.c  and what the mapping cache shows of them meanwhile
 *	pending_read.c  and reads of those that cannot be closed
 *	pending_raw.c  and what they have left in a raw data file
 *	pack.c     compressed clusters, and the write cache; pack_jobs.c, pack_gather.c
 *	fill.c     the old content of clusters that are replaced
 *	fresh.c    subclusters that were never written
 *	write.c    requests that write; zero.c: those that zero and discard
 *	track.c    persistent bitmaps: what was changed
 *	mark.c     the mark of an image in use; reclaim.c: the walk where it was left behind
 *	guard.c    damage, and what keeps metadata from being written as data
 *	writer.c   opening and closing
 *
 * All of a writer belongs to the image's home loop; its functions run there, in fibers where they
 * end in `_wait`. Other loops write in place what map_write_run() lets them, and post the rest.
 *
 * The asymmetry that all of it rests on: a refcount that is too high leaks a cluster, one that is
 * too low corrupts the image. So increments (REF+) are made ahead, a batch at a time, and are
 * durable before they are needed; decrements (REF-) wait until nothing durable names the cluster.
 *
 * Invariants, for every state that a crash may leave:
 *	Q1  every cluster that an L2 entry on disk names has a refcount on disk > 0, or the image
 *	    is marked dirty (lazy refcounts);
 *	Q2  data that was flushed is read back; unflushed sectors are old or new, never what else
 *	    was once in their cluster;
 *	Q3  COPIED is set on disk only where the refcount on disk is 1;
 *	Q4  a cluster in quarantine is neither written nor handed out;
 *	Q5  unknown header extensions survive; unknown autoclear bits are cleared before the first
 *	    change;
 *	Q6  damage is -EUCLEAN and latches the image read-only; no cluster that holds metadata
 *	    is ever handed out;
 *	Q7  a field of the header, of L1 or of the refcount table changes only after what it names
 *	    is durable; the old structure is freed only after that; the change lies in one sector;
 *	Q8  a new refcount block is durable, then its table entry, before a cluster that it covers
 *	    is used;
 *	Q9  a failed write or sync never counts as done;
 *	Q10 the file is cut only behind the last cluster that has a refcount, or within it where
 *	    nobody has ever written behind that (pack_tail()), and behind its end at the open
 *	    where nobody has checked that all clusters in use have one;
 *	Q11 an image that is created unfinished is opened by nobody else until all that it shall
 *	    hold is durable;
 *	Q12 the file is as long as all clusters ask for that an entry on disk names. */
#ifndef FMT_QCOW2_WRITER_H
#define FMT_QCOW2_WRITER_H

#include "fmt/qcow2/alloc.h"
#include "fmt/qcow2/commit.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/meta.h"
#include "fmt/qcow2/pack.h"
#include "fmt/qcow2/pending.h"
#include "fmt/qcow2/reclaim.h"
#include "fmt/qcow2/refs.h"
#include "fmt/qcow2/track.h"
#include "fmt/qcow2/write.h"

/* Rules to leave out, for tests that show that a broken rule is seen. */
enum writer_break {
	BREAK_Q1_NO_REFS = 1 << 0,      /* phase A writes no refcounts */
	BREAK_Q1_EARLY_REF_MINUS = 1 << 1,      /* REF- without waiting for the commit */
	BREAK_Q2_NO_SYNC_A = 1 << 2,    /* phase B does not wait for phase A */
	BREAK_Q2_ALWAYS_ZERO = 1 << 3,  /* every new cluster is taken for zero */
	BREAK_Q2_EARLY_MAP = 1 << 4,    /* mapped before its data is written */
	BREAK_Q2_JOIN_LATE = 1 << 5,    /* a flush joins a commit that is cut already */
	BREAK_Q3_COPIED = 1 << 6,       /* shared clusters are written in place */
	BREAK_Q4_NO_COMMIT = 1 << 7,    /* quarantine does not wait for the commit */
	BREAK_Q4_NO_EPOCH = 1 << 8,     /* nor for the requests that began before */
	BREAK_Q5_AUTOCLEAR = 1 << 9,    /* unknown autoclear bits stay */
	BREAK_Q6_OVERLAP = 1 << 10,     /* metadata may be handed out */
	BREAK_Q7_SWITCH = 1 << 11,      /* the header names a table that is not durable */
	BREAK_Q8_GROW = 1 << 12,        /* a refcount block is used before it is durable */
	BREAK_Q9_IGNORE = 1 << 13,      /* a failed metadata write is taken for done */
	BREAK_X4_VOLATILE = 1 << 14,    /* a write in place never needs a commit to be durable */
	BREAK_Q1_PACKED = 1 << 15,      /* a compressed cluster that is left drops two references */
	BREAK_Q2_NO_SYNC_DATA = 1 << 16,        /* phase B does not wait for the data file */
	BREAK_T31_NO_MARK = 1 << 17,    /* bitmaps are not marked before the first change */
	BREAK_T31_EARLY = 1 << 18,      /* their marks go before their bits are durable */
	BREAK_T34_EARLY = 1 << 19,      /* their tables name clusters without a commit */
	BREAK_Q2_KEPT_FRESH = 1 << 20,  /* what is kept is taken for fresh */
	BREAK_Q10_CUT = 1 << 21,        /* the file is cut before the last cluster in use */
	BREAK_Q1_NOT_DIRTY = 1 << 22,   /* lazy refcounts, and the image is not marked dirty */
	BREAK_Z3_STALE = 1 << 23,       /* what was inflated is found for ever */
	BREAK_Z6_UNCOUNTED = 1 << 24,   /* clusters that share a packed cluster are not counted */
	BREAK_Z7_EARLY_MAP = 1 << 25,   /* packed ones are mapped before they are written */
	BREAK_Z8_NO_PUSH = 1 << 26,     /* a flush leaves what is packed in its buffer */
	BREAK_Z9_NO_HOLD = 1 << 27,     /* the first cluster that is packed inherits at once */
	BREAK_X5_ANY_ORDER = 1 << 28,   /* one in two lets others go first, in order or not */
	BREAK_Q12_SHORT = 1 << 29,      /* the file becomes longer when data is written only */
	BREAK_X5_ANY_GROWTH = 1 << 30,  /* refcount blocks and tables come and go at any time */
	BREAK_Q11_EARLY = 1LL << 31,    /* a finished image can be opened before its last commit, */
	BREAK_Q11_AT_ONCE = 1LL << 32,  /* or before the first change */
	BREAK_R7_EARLY = 1LL << 33,     /* COPIED flags do not wait for the lower refcounts */
	BREAK_I3_LATE = 1LL << 34,      /* a commit writes what pages have become since its cut */
	BREAK_R4_TOUCHED = 1LL << 35,   /* the walk frees what was handed out since the open */
	BREAK_R5_DAMAGED = 1LL << 36,   /* and frees and mends in a damaged image */
	BREAK_R6_ANYWAY = 1LL << 37,    /* the mark goes, whatever became of the walk */
	BREAK_T33_ALL = 1LL << 38,      /* all bitmaps are tracked */
	BREAK_R8_GOES_ON = 1LL << 39,   /* the walk goes on where its tables became free */
	BREAK_W7_NO_FILL = 1LL << 40,   /* what a failed write has left is not filled */
	BREAK_W8_UNSEEN = 1LL << 41,    /* readers are not told of pending clusters */
	BREAK_W8_AS_WRITTEN = 1LL << 42,        /* of those, failed writes are read, too */
	BREAK_W9_RETRY = 1LL << 43,     /* reads try to close what could not be closed */
	BREAK_R6_SHARED = 1LL << 44,    /* the walk takes no notice of references that are freed */
	BREAK_I2_STALE = 1LL << 45,     /* who reads a table sees what is on disk */
	BREAK_X5_ANY_REUSE = 1LL << 46, /* what was freed is used again at any time */
	BREAK_T32_LATE = 1LL << 47,     /* bits of bitmaps are set when the change is made */
	BREAK_U11_APART = 1LL << 48,    /* the words of a pair go into the cache one by one */
	BREAK_U12_ALL = 1LL << 49,      /* all units of a cluster that is written become data */
	BREAK_X3_MAPPED = 1LL << 50,    /* what a failed write covers is mapped as if it had not */
	BREAK_Z2_KEPT = 1LL << 51,      /* what did not inflate is kept */
	BREAK_Q7_APART = 1LL << 52,     /* refcount blocks are named in two sectors at once */
	BREAK_W7_RAW = 1LL << 53,       /* what a failed write has left in a raw data file stays, */
	BREAK_W7_ONCE = 1LL << 54,      /* or does so where filling it failed once */
};

struct mark {
	struct task corrupt;            /* guard.c: sets the header's corrupt bit */
	bool is_corrupting;
	bool is_set;                    /* the image may be changed: the mark is durable, or there
					 * is no room for one; the dirty bit is, if it is wanted */
	bool is_busy;
	uint64_t off;                   /* of the mark in the file; 0: none */
	struct fiber_queue waiting;
};

struct writer {
	struct qcow2 *q;
	struct chan *file;              /* the home loop's chan of the image file */
	struct loop *home;
	uint64_t cluster;               /* bytes */
	bool writethrough;              /* [const] a write is answered when it is durable; any
					 * loop may look */
	bool is_lazy;                   /* [const] refcounts may lag behind (commit.h) */
	bool discard;                   /* freed clusters are given back to the file's medium */
	uint64_t broken;                /* enum writer_break; tests */
	_Atomic int dead;               /* 0, or why nothing can be changed any more (-EUCLEAN); any
					 * loop looks, the home loop sets */
	bool has_leaked;                /* R6: clusters, with nobody to name them */

	struct meta meta;
	struct refs refs;
	struct alloc alloc;
	struct commit commit;
	unsigned ntables;               /* clusters that were taken for L2 tables which nothing
					 * names yet */
	struct pendings pendings;
	struct writes writes;
	struct pack pack;

	struct mark mark;
	struct reclaim reclaim;
	struct track track;
};

/* Where the guest's data lies: the image file, or its data file, which is attached only after the
 * open. */
static inline struct chan *writer_data(const struct writer *w)
{
	return w->q->node.home_chan->child[w->q->data_child];
}

/* In a fiber of the home loop, at open: reads what allocation needs. *@ret is owned. The image is
 * not changed before the first write needs it. -ENOTSUP: written images may not have that. */
struct qcow2_opts;
int writer_open_wait(struct qcow2 *q, const struct qcow2_opts *opts, struct writer **ret,
		     struct err *err);
/* In a fiber of the home loop; nobody uses the image. Commits, gives the reserve back, takes the
 * mark away. The first error; the image is then as after a crash. One that was not changed is not
 * touched. */
int writer_settle_wait(struct writer *w, struct err *err);
void writer_free(struct writer *w);

/* ---- mark.c ---- */

/* Before the first change of the image: clears what must be cleared (Q5), sets the mark, syncs.
 * Returns at once where that is done. */
int mark_set_wait(struct writer *w);
/* All else is durable. Who closes the file syncs it; until then the mark may be found. */
int mark_clear_wait(struct writer *w);

/* ---- guard.c ---- */

/* Q6: the image is damaged where it is to be changed, as qcow2_corrupt() has said. Nothing is
 * changed any more but the corrupt bit, which is set in the background. Returns @rc, -EUCLEAN. */
int writer_latch(struct writer *w, int rc);
/* Waits until it is. */
void writer_latch_wait(struct writer *w);
/* @words of a slice are on their way into the mapping cache. */
void guard_slice(struct writer *w, uint8_t *words);
/* May what L2 entry @entry names be written or freed? */
bool guard_allows(const struct writer *w, uint64_t entry);
/* The same, of guest offset @off: 0, or -EUCLEAN and the image is latched. */
int guard_entry(struct writer *w, uint64_t entry, uint64_t off);
/* A table is to lie in these clusters, which were used before: does an entry in the cache name
 * them? 0 or -EUCLEAN. */
int guard_table(struct writer *w, uint64_t first, uint64_t n);

#endif
