/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/pack.h - compressed writing, and the write cache below it. Home loop.
 *
 * A write that is to be compressed is cut into *jobs*, one for each guest cluster (pack_jobs.c).
 * Workers compress them, many at a time; what comes of it is *placed* one by one, in the order in
 * which the requests came. So the same requests give the same bytes, however many threads there
 * are.
 *
 * Placing packs clusters byte behind byte into a *span*, adjacent host clusters of the reserve.
 * What goes there gathers in buffers that are written when they are full, whole, aligned and
 * once: the write cache (pack.c). A request is answered when its clusters are in a buffer: they
 * may be in this process's memory alone until a flush; where all that is new is compressed, until
 * a commit at the latest (commit.h). A flush pads the last buffer and has it written; what comes
 * next begins behind the padding, in the same host cluster.
 * What does not become smaller is stored as it is, in a cluster of its own.
 *
 * A guest's writes of less than a cluster *gather* (pack_gather.c): the cluster is opened, its old
 * content read, and then it stays in memory for a while, where more writes may come to it, before
 * it is compressed. So a stream of small writes compresses each cluster once.
 *
 * Until its buffers are written a guest cluster is pending (pending.h): whoever reads it has them
 * written first. A job that covers its cluster in part opens it before it reads the old content, so
 * that nobody changes it meanwhile.
 *
 * A host cluster has a reference for each compressed cluster in it. The one that it came with from
 * the reserve is the span's *hold*: it keeps the cluster from being given away while more may
 * be packed into it. Whoever is the last there inherits it. Others add theirs when they are
 * placed; where the count is full, the last one to fit inherits, and packing goes on in the next
 * cluster.
 *
 * A buffer whose write fails stays as it is, and so do its clusters: flushes fail, and so do more
 * writes, until it could be written. Reads find in it what they look for (pending_read.c).
 *
 * Invariants:
 *	Z5  no byte of the file is written twice by a span, and none read: each write is aligned;
 *	Z6  each compressed cluster is counted in all host clusters of which it has a byte, before
 *	    an entry names it (Q1);
 *	Z7  it is mapped when all of its bytes are written, not before (W6);
 *	Z8  what a flush was asked for is written when it ends, whatever it waits in;
 *	Z9  while a span may still be written to in a host cluster, it holds a reference to it;
 *	Z10 the same requests in the same order give the same bytes. */
#ifndef FMT_QCOW2_PACK_H
#define FMT_QCOW2_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "blk/blk.h"
#include "fmt/qcow2/codec.h"
#include "loop/fiber.h"

struct pack;
struct pending;
struct writer;

enum {
	PACK_BUFS = 4,
	PACK_BUF_BYTES = 256 << 10,     /* or a cluster, where that is more */
	PACK_ITEMS = 192,               /* clusters a buffer; all leave PENDING_MAX room */
	PACK_SPAN_BYTES = 1 << 20,      /* most that is taken from the reserve at a time; but for a
					 * buffer, it is no more than */
	PACK_SPAN_PART = 128,           /* this part of what is packed already: the rest of the
					 * last span may be followed by clusters stored as they are,
					 * and stays in the file as a hole */
	PACK_ALIGN = 4096,              /* or a cluster, where that is less */
	PACK_JOBS_MAX = 64,
	PACK_JOBS_BYTES = 4 << 20,      /* bounds the memory of jobs under way */
	PACK_GATHERED_MAX = 64,         /* clusters that gather before the oldest is closed, */
	PACK_GATHERED_BYTES = 4 << 20,  /* and their memory; while some are closed, twice that */
};

enum pack_buf_state { PACK_FREE, PACK_OPEN, PACK_WRITING, PACK_FAILED };

struct pack_buf {
	struct req req;
	struct iovec iov;
	struct pack *pack;
	enum pack_buf_state state;
	uint8_t *bytes;
	uint64_t host;                  /* where they go */
	size_t used;
	struct pending *items[PACK_ITEMS];      /* that have bytes in it */
	unsigned nitems;
	int res;                        /* PACK_FAILED: why */
};

/* The place of a job in their order; or of a request that is none, but gets clusters in the same
 * order (X5). */
struct pack_turn {
	struct list_node link;          /* in pack.turns */
	uint64_t off, end;              /* the guest clusters that it changes */
	struct fiber *fiber;            /* waits for its turn; or NULL */
};

struct pack {
	struct writer *w;
	struct codec codec;             /* [const] */
	bool is_for_all;                /* [const] whatever the guest writes to new clusters is
					 * compressed */
	struct pack_buf bufs[PACK_BUFS];
	struct pack_buf *open;          /* that is filled; or NULL */
	size_t buf_bytes;
	uint8_t *memory;                /* owned: of all buffers; NULL: not needed yet */
	bool is_pooled;                 /* and from the loop's pool */
	uint64_t pos, end;              /* host: where the next byte goes, where the span ends */
	uint64_t tail, tail_ntaken;     /* pos at the close, and alloc.ntaken; 0: no host cluster
					 * was left half full */
	bool is_placing;                /* somebody is; the open buffer must stay, */
	bool is_pushed;                 /* though somebody wants it written */
	struct fiber_queue room;        /* fibers that wait for a buffer, */
	struct fiber_queue placed;      /* or to place something */

	struct fiber_gate gate;         /* of jobs */
	unsigned ncompressing;          /* at most codec_at_once(); others wait here: */
	struct fiber_queue compressed;
	struct list_node turns;         /* struct pack_turn, in order; the first one is placed */
	struct fiber_queue moved;       /* fibers that wait until one is gone */

	unsigned nstoring;              /* host clusters taken for what is stored as it is, that
					 * nothing names yet */
	struct list_node gathered;      /* struct pack_gathered, oldest first */
	unsigned ngathered, gathered_max;
	struct fiber_queue closed;      /* fibers that wait until one of them was compressed */
	/* Counters that do not depend on the machine. */
	uint64_t nwrites, nbytes, nsmall, nplain, npacked, npacked_bytes, njoined;
};

void pack_init(struct pack *pk, struct writer *w);

/* Is @req to be compressed? */
bool pack_wants(const struct pack *pk, const struct req *req);
/* Serves it. In a fiber of the home loop. 0, -ENOTSUP or another error. */
int pack_write_wait(struct pack *pk, const struct req *req);

/* In a fiber, whose own @t is: takes the last place in the order for what changes [@off,
 * @off + @len), and waits until all that came before are placed, or never will be. */
void pack_turn_wait(struct pack *pk, struct pack_turn *t, uint64_t off, uint64_t len);
/* So is this one. */
void pack_turn_end(struct pack *pk, struct pack_turn *t);

/* Has all that is in buffers written, without waiting. */
void pack_push(struct pack *pk);
/* Reads bytes of the file: what is in buffers from there. */
int pack_read_wait(const struct pack *pk, uint64_t off, uint8_t *buf, uint64_t len);
/* Why a buffer could not be written, or 0. */
int pack_failure(const struct pack *pk);
/* The content of a cluster that gathers, or NULL. */
const uint8_t *pack_gathered_bytes(const struct pending *p);
/* Leaves the span, with nothing to be placed: what comes next goes to the lowest clusters. 0, or
 * why what is packed could not be written. */
int pack_leave_wait(struct pack *pk);
/* At close, when all is written: gives back what is left of the span. */
int pack_close_wait(struct pack *pk);
/* Behind that, and behind all that may take clusters: how much of host cluster @cluster has ever
 * been written, where that is known to be less than all of it. */
uint64_t pack_tail(const struct pack *pk, uint64_t cluster);
/* Waits until none of its writes is under way, whatever came of them. */
void pack_end_wait(struct pack *pk);
/* On the home loop's thread. What could not be written is lost. */
void pack_fini(struct pack *pk);

/* ---- between pack.c, pack_jobs.c and pack_gather.c ---- */

/* A cluster in memory: @plain compressed into @out, both of a cluster's size. */
struct pack_cluster {
	struct pack *pack;
	const uint8_t *plain;
	uint8_t *out;
	long len;                       /* in @out; 0: it does not become smaller */
};

/* 0 or -ENOMEM. */
int pack_compress_wait(struct pack_cluster *c);
/* Writes it as it is for @p, into a host cluster of its own that was taken: then that is its place.
 * If it fails, @p is left as it is. */
int pack_store_wait(struct pack *pk, struct pending *p, const uint8_t *plain, uint64_t host);
/* Takes one; it is to be stored to. */
int pack_take_wait(struct pack *pk, uint64_t *ret_host);

/* @p's cluster, opened, has the content @plain and waits for more writes; one of [@lo, @hi) has
 * just been made, and counts as done. Takes the memory of both; -ENOMEM: takes nothing. */
int pack_gather(struct pack *pk, struct pending *p, uint8_t *plain, uint8_t *out, uint64_t lo,
		uint64_t hi);
/* Waits until there is room for one more. 0 or why there will be none. */
int pack_gather_room_wait(struct pack *pk);
/* Adds @part to the cluster of @p, if it still gathers. */
bool pack_gather_join(struct pack *pk, struct pending *p, const struct req *part);
/* Has those compressed that somebody waits for. */
void pack_gather_push(struct pack *pk);
/* Waits until none is being compressed. */
void pack_gather_end_wait(struct pack *pk);
void pack_gather_fini(struct pack *pk);

/* Places @len bytes, less than a cluster's, for @p. Its entry comes when they are written. Who
 * wants an order waits for his turn first. */
int pack_place_wait(struct pack *pk, struct pending *p, const uint8_t *bytes, size_t len);
/* Tries once more to write what failed. */
int pack_retry_wait(struct pack *pk);

#endif
