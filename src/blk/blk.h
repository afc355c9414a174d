/* SPDX-License-Identifier: MIT */
/* blk/blk.h - requests, nodes and channels: all that drivers share.
 *
 * A *node* is a device in the graph: a file, a format over it, a filter. A *chan* is a node as one
 * loop sees it; only that loop's thread touches it. A *req* is owned by whoever started it
 * until done() runs, and is *lent* down the graph meanwhile. A driver does exactly one of three
 * things with a req:
 *	finish   req_finish(ch, req, res): the answer is known (deferred: L1);
 *	forward  rewrite req->off and chan_submit() the same req to a child. The driver will not
 *		 see it again, so it must have nothing to do on the way up;
 *	fiber    hand it to a fiber, which starts requests of its own and ends in req_finish() or in
 *		 submitting the request again from the top.
 * Only a driver that handed the req's own `io` (or a work) to the loop calls req_complete(), from
 * that io's done().
 *
 * Invariants:
 *	B1  off + len <= size for every req that enters through a port (port.h checks, nobody else);
 *	    lower nodes get what the node above computed, at most INT64_MAX;
 *	B2  res is 0 or -errno; there are no short completions. Reading past the end of a file
 *	    node gives zeros;
 *	B3  off, len, iov and everything below the line in struct req belong to the drivers until
 *	    done() runs: the owner finds them changed. kind and flags, too, where a filter turns a
 *	    WRITE of zeros into a ZERO;
 *	B4  done() never runs inside chan_submit(). */
#ifndef BLK_BLK_H
#define BLK_BLK_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "loop/fiber.h"
#include "loop/loop.h"

struct chan;
struct err;
struct node;
struct port_chan;

/* ---- requests ---- */

enum req_kind {
	REQ_READ,
	REQ_WRITE,
	REQ_ZERO,                       /* [off, off + len) reads as zeros afterwards */
	REQ_DISCARD,                    /* a hint: content undefined afterwards; 0 if ignored */
	REQ_FLUSH,                      /* what was done before is durable */
	REQ_MAP,                        /* fills req->map for a run that starts at off */
	REQ_COPY,                       /* [off, off + len) becomes what the node `from` has from
					 * from_off on, and the data does not come through here. A
					 * node may refuse at any time: any part may be done then */
	REQ_KINDS,
};

enum req_flags {
	REQ_FUA = 1,                    /* WRITE, ZERO, DISCARD: durable when done */
	REQ_MAY_UNMAP = 2,              /* ZERO: space may be given back */
	REQ_FAST_ONLY = 4,              /* ZERO: -ENOTSUP rather than writing zeros */
	REQ_FOREIGN = 8,                /* READ, WRITE: others see and change the data's memory
					 * meanwhile. It goes to the kernel as it is; what is read
					 * twice is copied first */
	REQ_COMPRESSED = 16,            /* WRITE: compressed, where the format can; elsewhere it is
					 * as any other */
	REQ_IN_ORDER = 32,              /* WRITE, ZERO, COPY: a format that allocates gives it its
					 * place after all that came before it with this flag */
	REQ_SHARE = 64,                 /* COPY: no data is moved, both ends share the space. For
					 * multiples of node_share_align_wait() */
};

/* What REQ_MAP says of a run of bytes. */
enum map_flags {
	MAP_DATA = 1,                   /* stored as data in some layer of the chain */
	MAP_ZERO = 2,                   /* reads as zeros; data, too, may be known to be zero */
	MAP_HOST = 4,                   /* host_off is its place in `file`; what lies there counts
					 * where it is data and not zero */
	MAP_COMPRESSED = 8,
	MAP_PRESENT = 16,               /* some layer of the chain has it (allocated): as data or
					 * as zeros; else it is zero because nobody has it */
};

struct map_run {
	uint64_t len;                   /* 1 .. the request's length */
	uint64_t host_off;
	const struct node *file;
	unsigned flags;                 /* enum map_flags */
	unsigned depth;                 /* layers below the node that was asked: of the one that
					 * has it, or where the chain ends for this run */
};

struct req {
	void (*done)(struct req *req, int res);
	uint64_t off;
	uint64_t len;
	/* The data: @len bytes that start @iov_skip bytes into @iov. What follows them in iov
	 * is not touched. Unused by ZERO, DISCARD, FLUSH and MAP. COPY: where it is, in a node that
	 * stays open; within its size. */
	union {
		const struct iovec *iov;
		const struct node *from;
	};
	uint32_t iovcnt;
	uint8_t kind;                   /* enum req_kind */
	uint8_t flags;                  /* enum req_flags */
	uint8_t epoch;                  /* the port's: which of the loop's counters it is in... */
	uint8_t asked_kind;             /* ...and what kind it was when it came */
	union {
		uint64_t iov_skip;
		uint64_t from_off;
	};
	struct port_chan *pc;           /* the port's, NULL for internal requests */
	uint64_t start_ns;              /* the port's */

	/* ---- the drivers' while lent (B3) ---- */
	struct chan *ch;                /* where a deferred step goes on */
	struct req *next;               /* queue link of whoever holds it */
	struct task task;               /* deferred finish, fiber start, post to another loop */
	struct io io;                   /* of the driver at the bottom */
	struct map_run map;             /* REQ_MAP's answer, valid in done() when res is 0 */
	uint64_t priv[4];               /* of the driver that holds it */
	int res;
};

/* Answers @req later in this turn (B4). The chan's loop only. */
void req_finish(struct chan *ch, struct req *req, int res);
/* Answers @req now. Only from the loop's own callbacks (io->done, task->fn), never below
 * chan_submit(). */
void req_complete(struct req *req, int res);
/* As req_finish() from another thread than the chan's loop. */
void req_post_finish(struct chan *ch, struct req *req, int res);

/* Sets up @child as the part [@rel, @rel + @len) of @req, sharing its iov. done, pc are left 0. */
void req_part(const struct req *req, uint64_t rel, uint64_t len, struct req *child);
/* Fills the part [@rel, @rel + @len) of a READ's data with zeros. */
void req_zero_part(const struct req *req, uint64_t rel, uint64_t len);
/* Copies between the request's data at @rel and @buf. */
void req_copy_to(const struct req *req, uint64_t rel, const void *buf, uint64_t len);
void req_copy_from(const struct req *req, uint64_t rel, void *buf, uint64_t len);
/* The data as one pointer if it lies in one iovec, else NULL. */
void *req_flat(const struct req *req);
/* Cuts req's data [@rel, @rel + @len) into @out; returns the iovecs used, at most @max; *@ret_len
 * is what they hold (less than @len where @max was reached). */
unsigned req_iov_cut(const struct req *req, uint64_t rel, uint64_t len, struct iovec *out,
		     unsigned max, uint64_t *ret_len);

/* ---- nodes ---- */

enum node_child { CHILD_FILE, CHILD_DATA, CHILD_BACKING, CHILDREN };

struct node_ops {
	const char *name;               /* "file", "qcow2": what -f and messages call it */
	size_t chan_size;               /* bytes; struct chan is the first member */
	/* Optional. In a fiber of ch->loop; children's chans are there. May wait. */
	int (*chan_open_wait)(struct chan *ch, struct err *err);
	/* Optional. In a fiber of ch->loop; no request is in flight. May wait. */
	void (*chan_close_wait)(struct chan *ch);
	/* The data path: see the head. Runs on ch->loop, in a fiber or not; never waits. */
	void (*submit)(struct chan *ch, struct req *req);
	/* Optional. In a fiber of the home loop, when the last chan is gone except the home loop's:
	 * write back, mark clean. Errors are reported, the node is gone all the same. */
	int (*settle_wait)(struct node *n, struct err *err);
	/* Optional. Frees what the driver holds, in the control thread or home loop's fiber. */
	void (*free)(struct node *n);
	/* Optional. In a fiber of the home loop: reads the size again (a file may have grown). */
	int (*resize_wait)(struct node *n, struct err *err);
	/* Optional. In a fiber of the home loop: the node ends at @size, which is less than its
	 * size; nothing behind that is in use. What comes there later finds zeros. */
	int (*truncate_wait)(struct node *n, uint64_t size);
	/* Optional. In a fiber of the home loop: the node is @size long or longer, without a write:
	 * what is new reads as zeros. A flush makes that durable. @is_dense: all of it is to be
	 * written, so it may get its place now. -ENOTSUP: write there instead. */
	int (*grow_wait)(struct node *n, uint64_t size, bool is_dense);
	/* Optional. In a fiber of any loop: the bytes that the node takes of its medium. */
	int (*allocated_wait)(struct node *n, uint64_t *ret);
	/* Optional. As node_share_align_wait() says. */
	uint32_t (*share_align_wait)(struct node *n, const struct node *from);
	/* Optional, both or none. On ch->loop: memory whose content @ch need not copy to send it,
	 * aligned to pages; NULL: there is not so much. The chan outlives it. False: it is not
	 * @ch's. */
	void *(*memory_get)(struct chan *ch, size_t bytes);
	bool (*memory_put)(struct chan *ch, void *mem, size_t bytes);
};

/* A device in the graph. Made and freed by the control path; fields marked [const] are set before
 * the first chan but the home loop's own is opened and never change. */
struct node {
	const struct node_ops *ops;     /* [const] */
	char *name;                     /* [const] what messages call it: the file's name */
	_Atomic uint64_t size;          /* bytes, as the node above or the guest sees it */
	struct node *child[CHILDREN];   /* [const] owned, a reference each; or NULL */
	struct loop *home;              /* [const] owns metadata */
	struct chan *home_chan;         /* [const] owned; the node's own I/O goes through it */
	uint32_t align;                 /* [const] what off, len and memory should be multiples of
					 * to be fast; 1: anything. Others are handled, slower */
	bool read_only;                 /* [const] */
	bool can_discard;               /* [const] REQ_DISCARD may do something */
	bool zero_is_fast;              /* [const] REQ_ZERO does not write data */
	bool holes_read_zero;           /* [const] what was never written reads as zeros, behind the
					 * end too, whatever a crash does: a regular file */
	_Atomic int refs;
	bool is_settled;                /* home loop: for node_close_wait() */
	struct chan *chans[LOOPS_MAX];  /* by loop_id(); each touched by its own loop only */
};

/* Sets up a node inside a driver's struct; takes @name's copy. refs is 1. 0 or -ENOMEM. */
int node_init(struct node *n, const struct node_ops *ops, const char *name, struct loop *home);
struct node *node_get(struct node *n);
/* Opens n->home_chan; the last step of a driver's open. In a fiber of n->home. On failure the
 * caller frees the node by node_put_wait(). */
int node_open_home_wait(struct node *n, struct err *err);
/* Drops a reference; the last settles, closes the home chan and frees it and its children.
 * In a fiber of n->home. NULL is fine. */
void node_put_wait(struct node *n);
/* In a fiber of the home loop. The first error of the whole chain below, after settling all. */
int node_settle_wait(struct node *n, struct err *err);
/* Both: what nobody else has a reference to is settled once. NULL is fine. */
int node_close_wait(struct node *n, struct err *err);

/* As node_ops says; -ENOTSUP where the node cannot. */
int node_truncate_wait(struct node *n, uint64_t size);
int node_grow_wait(struct node *n, uint64_t size, bool is_dense);
/* In a fiber of any loop: what off, from_off and len of a COPY from @from with REQ_SHARE have to be
 * multiples of, a power of two; 0: @n cannot share with @from. Elsewhere it may refuse all the
 * same. Nothing is changed. */
uint32_t node_share_align_wait(struct node *n, const struct node *from);

/* ---- channels ---- */

struct chan {
	struct node *node;
	struct loop *loop;
	const struct node_ops *ops;     /* node->ops, one load less on the data path */
	struct chan *child[CHILDREN];
	unsigned refs;
	bool is_opening;
	struct fiber_queue opened;      /* who waits until it is, or cannot be */
};

/* The chan of @n on the loop of the calling fiber, opened with its children's when it is not yet
 * there. A reference is returned owned. Any depth of chain; may wait. */
int chan_get_wait(struct node *n, struct chan **ret, struct err *err);
void chan_put_wait(struct chan *ch);
/* Connects home chans after a child was attached to an open node. In a fiber of n->home. */
int node_attach_wait(struct node *n, enum node_child which, struct node *child, struct err *err);

/* Lends @req to @ch. Never answers before it returns (B4). */
static inline void chan_submit(struct chan *ch, struct req *req)
{
	ch->ops->submit(ch, req);
}

/* Submits @req (done is set here) and waits for it in a fiber of ch->loop. Returns its result. */
int chan_submit_wait(struct chan *ch, struct req *req);
int chan_read_wait(struct chan *ch, uint64_t off, void *buf, uint64_t len);
int chan_write_wait(struct chan *ch, uint64_t off, const void *buf, uint64_t len);
int chan_flush_wait(struct chan *ch);
/* Writes, and makes all that was written durable. */
int chan_write_sync_wait(struct chan *ch, uint64_t off, const void *buf, uint64_t len);

/* Memory for the data of requests to @ch, aligned to IOBUF_ALIGN: that of the driver at the bottom
 * where it has some (node_ops.memory_get), else from malloc. NULL: there is none. On ch->loop. */
void *chan_memory_get(struct chan *ch, size_t bytes);
/* @bytes as they were asked for. NULL is fine. */
void chan_memory_put(struct chan *ch, void *mem, size_t bytes);

#endif
