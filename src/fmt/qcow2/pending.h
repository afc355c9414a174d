/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/pending.h - new clusters between their first write and their place in an L2 table.
 *
 * A write to a cluster that the image does not own takes a new one and opens a *pending* cluster.
 * The guest's data goes to the new cluster at once; the rest of it (copy on write) waits, for more
 * writes to the same cluster may come and cover it: a sequential stream of small writes costs no
 * copy at all. What is covered is one interval of bytes; a write that neither overlaps nor touches
 * it closes the cluster first.
 *
 * Closing: wait for the writes under way, fill what is not covered with the old content (fill.h),
 * then map it: the L2 entry changes and the old cluster is freed. A cluster is closed when it is
 * covered, when a commit is due, when it is read, or when there are too many. Where all of it is
 * zeroed or discarded, what was written is nobody's any more: it is not filled.
 *
 * With extended L2 entries only the subclusters (units.h) that are touched are filled and mapped,
 * and what the old place held besides moves along. A cluster that the image owns, but not these
 * subclusters of it, is *kept*: data goes there, next to what is there, as it does to a zero
 * cluster that has kept its place.
 *
 * A write that lies within one cluster and that no stream is likely to follow, or that must be
 * durable at once, is *merged*: the old content is read first, and one write takes all of the
 * cluster. A cluster whose new place is fresh (alloc.h) and whose old content is zero is never
 * pending: it is mapped before its first write, which is one in place then. So are subclusters of a
 * place that is kept if they are known never to have been written (fresh.h).
 *
 * While a cluster is pending, its entry in the mapping cache has the mark CACHE_PENDING, so that
 * every loop that looks it up asks the home loop (load.c), which closes it first. The page of its
 * L2 entry stays in memory, so mapping waits for nothing.
 *
 * Invariants:
 *	W5  a guest cluster has one pending cluster at most;
 *	W6  an entry is mapped only when all bytes of the units that it says are data are written:
 *	    data or fill (Q2);
 *	W7  a write that failed leaves no byte of another content behind: what it was the first to
 *	    cover is filled with the old content before the cluster is mapped. Where filling
 *	    fails the cluster stays pending and flushes fail, until it works (Q9). One that holds
 *	    nothing that was answered is dropped; but a raw data file shows it, so there it is
 *	    filled, too: each commit tries, and does not fail if that does;
 *	W8  whoever reads a pending cluster waits until it is closed. Where it cannot be, as on a
 *	    full disk, it is read as it would be closed (pending_read.c);
 *	W9  what could not be closed is tried again by commits, flushes and writes, each of which
 *	    has to write it; a read does not begin another try. */
#ifndef FMT_QCOW2_PENDING_H
#define FMT_QCOW2_PENDING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "fmt/qcow2/cache.h"
#include "fmt/qcow2/fill.h"
#include "fmt/qcow2/fresh.h"
#include "fmt/qcow2/l2.h"
#include "loop/fiber.h"

struct chan;
struct pack_gathered;
struct req;
struct writer;

enum {
	PENDING_MAX = 1024,             /* open ones; a write that needs more waits */
	PENDING_OPEN_MAX = 64,          /* that wait for more writes; then the oldest is closed */
	PENDING_RUN_MAX = 64,           /* opened by one write */
	PENDING_FAILED_MAX = 8,         /* ranges of a cluster that failed writes left */
	PENDING_READS_MAX = 16,         /* under way of what could not be closed */
	PENDING_BUCKETS = 256,
};

/* Bytes of a cluster. */
struct span {
	uint64_t lo, hi;
};

/* Adjacent guest clusters and the adjacent host clusters that shall be theirs. */
struct pending_run {
	uint64_t guest, host;           /* byte offsets */
	unsigned n;
	bool is_fresh;                  /* as in struct alloc_run; or these units of it are */
	bool is_kept;                   /* they have these places already, without the data, as all
					 * of a data file have */
};

struct pending {
	struct list_node bucket;
	struct list_node link;          /* in pendings.all */
	struct list_node open_link;     /* in pendings.open, or alone */
	struct pendings *ps;
	uint64_t seq;                   /* later ones have higher numbers */
	uint64_t guest, host;
	struct units old;               /* what will be replaced */
	struct l2_at at;                /* pinned */
	struct span covered;
	struct span failed[PENDING_FAILED_MAX];         /* W7 */
	unsigned nfailed;
	unsigned writes;                /* under way */
	bool is_fresh;                  /* as in struct alloc_run */
	bool is_kept;                   /* as in struct pending_run */
	bool is_packed;                 /* written as a whole, by pack.h: no host, nobody joins */
	unsigned parts;                 /* pack.c's: buffers that hold it and are not written */
	struct l2_pair packed;          /* and what its entry will be */
	struct pack_gathered *gathered; /* pack_gather.c's: it waits for more writes; or NULL */
	bool is_acked;                  /* a write to it has ended well */
	bool is_lost;                   /* more writes failed than can be remembered: it is never
					 * mapped, and flushes fail (W7) */
	bool is_closing;
	struct fiber *closer;           /* waits for the writes under way; or NULL */
	struct fiber_queue waiting;     /* fibers that wait until it is closed */
	int close_res;                  /* of the last time that it could not be */
	struct task task;
};

struct pendings {
	/* Any loop reads it. A cluster is mapped, for all to see, whose entry may not be durable: a
	 * write to it that must be durable is more than one in place. */
	atomic_bool is_volatile;
	struct writer *w;
	struct list_node buckets[PENDING_BUCKETS];
	struct list_node all;           /* oldest first */
	struct list_node open;          /* that wait for more writes; the one that waits longest is
					 * the first */
	unsigned n, nopen;
	uint64_t seq;
	uint64_t nmapped;               /* entries that were made volatile */
	struct fiber_gate gate;         /* of those that close, */
	struct fiber_gate read_gate;    /* and of reads of what could not be closed */
	struct fiber_queue room;        /* fibers that wait until one is gone */
	struct fills fills;
	struct fresh fresh;
	uint8_t slice[CACHE_SLICE_BYTES_MAX];   /* on its way into the cache */
	/* Counters that do not depend on the machine. */
	uint64_t nopened, njoined, nmerged;
};

void pendings_init(struct pendings *ps, struct writer *w);
/* Those that could not be closed are lost. */
void pendings_fini(struct pendings *ps);

/* Closes those of [@guest_off, @guest_off + @len) and waits until they are mapped. In a fiber. */
int pendings_close_wait(struct pendings *ps, uint64_t guest_off, uint64_t len);
/* The same for who wants to read them (W9). */
int pendings_close_to_read_wait(struct pendings *ps, uint64_t guest_off, uint64_t len);
/* All that there are now and hold what was answered, packed ones only with @is_flush; for a commit.
 * 0 or an error that the commit must report. */
int pendings_close_all_wait(struct pendings *ps, bool is_flush);
/* No request is under way: waits for what goes on in the background. */
void pendings_stop_wait(struct pendings *ps);
/* Is any cluster of the range pending? Never waits. */
bool pendings_any(const struct pendings *ps, uint64_t guest_off, uint64_t len);

/* ---- for load.c ---- */

/* Marks those whose entries are in @words, big-endian: the slice that begins at guest @first. */
void pendings_mark_slice(const struct pendings *ps, uint64_t first, uint8_t *words);

/* ---- for read.c ---- */

/* On @ch's loop: answers @req, a read within a cluster that could not be closed a moment ago. */
void pendings_submit_read(struct chan *ch, struct req *req);

/* ---- for pending.c itself ---- */

/* Begins to close it, if nobody has. */
void pending_close_start(struct pending *p);
/* Tries, from now on, to close those that hold nothing that was answered, but what failed writes
 * have left in a raw data file. If that fails, nobody has lost anything. */
void pendings_restore_wait(struct pendings *ps);

/* Lets the mapping cache show of @n clusters that they are pending, or what @pair of one says. */
void pendings_show(struct pendings *ps, const struct l2_at *at, uint64_t guest, unsigned n,
		   const struct l2_pair *pair);

/* ---- for write.c and zero.c; all but pending_merge_wait() never wait ---- */

/* Has the slice of @at in the mapping cache, with its marks. */
void pendings_cache_slice(struct pendings *ps, const struct l2_at *at);
/* The one of guest offset @guest, a cluster's first, or NULL. */
struct pending *pending_find(const struct pendings *ps, uint64_t guest);
/* Opens @run's clusters, whose entries are in @at; a write to [@lo, @hi) of their bytes begins. The
 * caller has seen that there is room for them. -ENOMEM: none was opened. */
int pendings_open(struct pendings *ps, const struct l2_at *at, const struct pending_run *run,
		  uint64_t lo, uint64_t hi);
/* The write to [@off, @off + @len) of the guest, whose clusters it opened, has ended. */
void pendings_written(struct pendings *ps, uint64_t off, uint64_t len, int res);
/* May a write to bytes [@s.lo, @s.hi) of @p's cluster begin? Then it has, and *@ret says what it is
 * the first to cover. */
bool pending_join(struct pending *p, struct span s, struct span ret[2]);
/* It has ended. */
void pending_joined(struct pending *p, const struct span first[2], int res);

/* Instead of writing the data of @req, which lies in @p's cluster and has just opened it: writes it
 * and the rest of the cluster at once, and maps it. False: it cannot be done that way. */
bool pending_can_merge(const struct pending *p, const struct req *req);
int pending_merge_wait(struct pending *p, const struct req *req);

/* Is a write or a closing under way in any cluster of the range? */
bool pendings_busy(const struct pendings *ps, uint64_t guest_off, uint64_t len);
/* The cluster at @guest reads as zeros from now on, if it is pending; none is busy. With @keep, its
 * new place is its own; else its entry is what it was before the write. */
void pendings_zero(struct pendings *ps, uint64_t guest, bool keep);

/* Maps @run's clusters for a write to bytes [@lo, @hi) of them, where all that becomes data shows
 * zeros and is fresh. */
void pendings_map_zero(struct pendings *ps, struct l2_at *at, const struct pending_run *run,
		       uint64_t lo, uint64_t hi);

/* Makes room for another pending cluster. In a fiber; it may have to be done again. */
int pendings_room_wait(struct pendings *ps);

/* ---- for pack.c; none waits ---- */

/* Opens the cluster at @guest, whose entry is in @at, for a write of all of it. There is room.
 * NULL: no memory. */
struct pending *pending_open_packed(struct pendings *ps, const struct l2_at *at, uint64_t guest);
/* All of it is written, compressed, at the host cluster of p->packed or at @host as it is: that is
 * its place from now on. */
void pending_packed(struct pending *p);
void pending_stored(struct pending *p, uint64_t host);
/* It is not written, and nobody was told that it is. */
void pending_not_packed(struct pending *p);
/* Writing it failed with @res: whoever waits is told. It stays. */
void pending_pack_failed(struct pending *p, int res);

/* Nothing names the clusters of @entry any more: frees them. */
void pendings_free_old(struct pendings *ps, uint64_t entry);

#endif
