/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc_impl.h - what the files of this folder share. Nobody else includes it, but tests.
 *
 *	nbdc.c         submit: which connection, what is out of range
 *	nbdc_conn.c    a connection: commands out, replies in, its loss
 *	nbdc_align.c   what the server does not take as it is: copies, read-modify-write
 *	nbdc_dial.c    from an address to a handle that is ready, in a fiber
 *	nbdc_open.c    the node and its chans
 *	nbdc_lib.c     libnbd, loaded
 *
 * Every loop has a connection of its own where the server says that a flush on one of them counts
 * for all (multi-conn). Otherwise, or where the server refuses another one, requests are posted to
 * the home loop.
 *
 * A request becomes one command for each piece of its memory, or of what the server takes at a
 * time; libnbd sends them from, and receives into, the request's own memory. libnbd has no thread:
 * the loop polls its socket, and libnbd goes on as far as that allows. It calls back with its lock
 * held, so nothing that is called back asks it for anything.
 *
 * Invariants:
 *	N10  a request has at most one answer, and none while libnbd may touch its memory;
 *	N11  what a server has not confirmed is not done: when the connection is lost every request
 *	     under way fails, or is sent again as a whole;
 *	N12  where the server has blocks, no two requests that are in flight write to one block if
 *	     one of them is read-modify-write;
 *	N13  whatever a server sends, only memory of requests under way is written to, and nothing
 *	     that was in it before is left where a READ succeeds;
 *	N14  a server that comes back as another disk is not used. */
#ifndef DRV_NBD_NBDC_IMPL_H
#define DRV_NBD_NBDC_IMPL_H

#include <stdatomic.h>

#include "base/bits.h"
#include "base/list.h"
#include "base/log.h"
#include "blk/blk.h"
#include "drv/nbd/nbdc.h"
#include "drv/nbd/nbdc_lib.h"

enum {
	NBDC_IN_FLIGHT_MAX = 128,       /* commands of a connection; libnbd looks replies up in a
					 * list, and servers take 16 to 64 at a time */
	NBDC_DATA_MAX = 32 << 20,       /* bytes of a READ or WRITE where the server has no limit */
	NBDC_BLOCK_MAX = 64 << 10,      /* the largest block that a server may ask for */
	NBDC_EXTENT_MAX = 1 << 30,      /* bytes of a ZERO, a DISCARD or a MAP at a time */
	NBDC_PIECE_MIN = 16 << 10,      /* smaller pieces of a request are gathered in a buffer */
	NBDC_BOUNCE_MAX = 1 << 20,
	NBDC_FIBERS_MAX = 16,           /* a connection */
	NBDC_NEGOTIATION_MAX_S = 60,
	NBDC_AGAIN_MAX_S = 3,           /* for one connection more: a server that has enough may
					 * just not accept it */
};

/* What a server says of an export. */
struct nbdc_info {
	uint64_t size;
	uint32_t block;                 /* offsets and lengths are multiples of it */
	uint32_t data_max;              /* bytes of a READ or WRITE; a multiple of block */
	bool is_read_only;
	bool can_flush, can_fua, can_trim, can_zero, can_fast_zero, can_multi_conn, can_map;
};

struct nbdc_node {
	struct node node;
	struct nbdc_server server;      /* owned; const after open, as are the next ones */
	const struct nbdc_lib *lib;
	struct nbdc_info info;
	bool is_writethrough, no_flush;
	bool leave_lock_out;            /* tests: shows that N12's test can fail */
	struct nbd_handle *first;       /* the open's, until the home chan takes it */
	atomic_bool has_enough;         /* the server gives no more connections. Set by any loop;
					 * who sees it late only tries in vain */
	struct log_limit log_limit;     /* any loop: of a server that goes and comes */
};

/* On its way to a handle. */
struct nbdc_dial {
	struct io io;
	struct timer timer;
	struct loop *loop;
	unsigned limit_s;               /* 0: NBDC_NEGOTIATION_MAX_S */
	bool is_polling, is_cancelled, is_late;
};

enum nbdc_state {
	NBDC_UP,
	NBDC_DOWN,                      /* lost; a fiber tries to get it back */
	NBDC_GONE,                      /* lost for good */
};

/* Its loop's alone. */
struct nbdc_conn {
	struct nbdc_node *nn;
	struct chan *chan;              /* whose it is */
	struct loop *loop;              /* the chan's */
	struct nbd_handle *h;           /* NULL: while there is none */
	enum nbdc_state state;
	bool has_given_up;              /* DOWN for longer than requests wait */
	bool is_closing;
	unsigned in_flight;             /* commands */
	struct req *queue, **queue_tail;        /* wait for room, or for the server */
	struct io in, out;              /* polls */
	bool is_in, is_out;             /* under way */
	struct task turn_end;           /* to look at the socket */
	bool is_due;
	struct fiber *waiter;           /* for the polls to end, or its sleep */
	struct task reconnect;
	bool is_reconnecting;
	struct fiber_queue reconnected; /* who waits for the end of that */
	struct nbdc_dial dial;
	struct timer timer;             /* end of the wait for the server */
	struct timer nap;
	/* nbdc_align.c */
	struct fiber_gate gate;
	void *reserve;                  /* buffer for when the loop's pool is empty */
	bool is_reserve_used;
	struct fiber_queue reserve_free;
	struct list_node writes;        /* of req.io.link: under way, where the server has blocks */
	struct list_node locks;
	struct fiber_queue write_ended;
	struct req *held, **held_tail;  /* writes that a lock keeps back */
};

struct nbdc_chan {
	struct chan chan;
	struct nbdc_conn *conn;         /* its own; NULL: the home loop's is used */
};

enum nbdc_stage {
	NBDC_DATA,                      /* what the request asks for */
	NBDC_SYNC,                      /* then a flush: FUA where the server has none */
};

/* What lies in req->priv while the driver has the request. */
struct nbdc_req {
	struct nbdc_conn *conn;
	union {
		uint64_t rel;           /* bytes that have been sent */
		uint64_t align;         /* MAP: bytes asked for before the request's */
	};
	uint32_t missing;               /* commands without an answer */
	uint16_t error;                 /* the first one's errno */
	uint8_t stage;                  /* enum nbdc_stage */
	bool is_sent : 1;               /* nothing is left to be sent */
	bool is_inner : 1;              /* a part of one that holds the lock */
	bool is_write : 1;              /* req->io.link is in conn->writes */
};
_Static_assert(sizeof(struct nbdc_req) <= sizeof(((struct req *)0)->priv), "req->priv");

static inline struct nbdc_req *nbdc_req(struct req *req)
{
	return (struct nbdc_req *)(void *)req->priv;
}

static inline struct nbdc_chan *nbdc_chan(struct chan *ch)
{
	return container_of(ch, struct nbdc_chan, chan);
}

static inline struct nbdc_node *nbdc_node(const struct chan *ch)
{
	return container_of(ch->node, struct nbdc_node, node);
}

/* nbdc_dial.c: in a fiber of @d->loop: a handle that is ready, and what the server says. The rest
 * of a zeroed @d is the callee's. -ECANCELED from nbdc_dial_cancel() on, for good. */
int nbdc_dial_wait(struct nbdc_node *nn, struct nbdc_dial *d, struct nbd_handle **ret,
		   struct nbdc_info *ret_info, struct err *err);
void nbdc_dial_cancel(struct nbdc_dial *d);
/* Says good-bye, if there is somebody, and closes. NULL is fine. */
void nbdc_hang_up(const struct nbdc_lib *lib, struct nbd_handle *h);

/* nbdc_conn.c */
/* Takes @h on success. */
int nbdc_conn_new(struct chan *ch, struct nbd_handle *h, struct nbdc_conn **ret);
/* In a fiber of its loop, with no request under way. NULL is fine. */
void nbdc_conn_free_wait(struct nbdc_conn *c);
/* Starts @req, whose nbdc_req has conn alone and which the server takes as it is. */
void nbdc_conn_send(struct nbdc_conn *c, struct req *req);
/* Answers @req. */
void nbdc_finish(struct nbdc_conn *c, struct req *req, int res);

/* nbdc_align.c */
/* Starts @req on its connection, by way of a fiber where it has to be copied. */
void nbdc_start(struct nbdc_conn *c, struct req *req);
/* Writes zeros where REQ_ZERO @req wants them and the server has no command for that. */
void nbdc_write_zeros(struct nbdc_conn *c, struct req *req);
/* A write of @c's has ended (N12). */
void nbdc_write_end(struct nbdc_conn *c, struct req *req);
int nbdc_align_init(struct nbdc_conn *c);
void nbdc_align_fini(struct nbdc_conn *c);

/* nbdc.c */
void nbdc_submit(struct chan *ch, struct req *req);

extern const struct node_ops nbdc_ops;

#endif
