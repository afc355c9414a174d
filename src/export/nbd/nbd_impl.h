/* SPDX-License-Identifier: MIT */
/* export/nbd/nbd_impl.h - what the files of this folder share. Nobody else includes it.
 *
 *	listen.c     listening sockets
 *	server.c     exports, accepting, start and stop
 *	lane.c       what the server has on one loop: requests, memory, who waits for it
 *	conn.c       a connection's life
 *	handshake.c  the negotiation, in a fiber
 *	receive.c    bytes to requests
 *	request.c    requests to the port, checked, and back
 *	status.c     NBD_CMD_BLOCK_STATUS
 *	reply.c      replies to bytes
 *
 * The path of a read: receive.c takes it from the connection's buffer, request.c checks it and
 * lends it to the port; done() makes the reply's header, reply.c queues it; at the end of the
 * turn one sendmsg carries all the replies that the turn has brought. No allocation, no copy of
 * what is read, no fiber.
 *
 * Invariants:
 *	N1  a request that was taken from the stream is answered exactly once unless its connection
 *	    dies; its struct and buffer live until the reply has wholly been sent or dropped;
 *	N2  the stream stays in step: the payload of a refused write is taken off it before the next
 *	    header, and before the answer is sent;
 *	N3  at most one recv and one sendmsg of a connection are in flight; the memory that they
 *	    name is not touched meanwhile, and the connection outlives both;
 *	N4  a connection holds bounded memory: max_requests structs, connection_memory bytes (or one
 *	    request's payload), RX_BYTES. It waits for more only between two requests, holding
 *	    nothing that does not come back by itself or by N5;
 *	N5  each connection has a small share of the memory that no other can take; beyond it,
 *	    connections get memory in the order in which they asked for it. While one waits,
 *	    another that holds some and does not move for stall_ns is cut;
 *	N6  whatever a client sends, only what is in range and allowed reaches the port, and nothing
 *	    it sends is an assertion;
 *	N7  the handshake is bounded in time, options and memory;
 *	N8  a stop leaves no request unanswered that was taken from the stream, unless the peer does
 *	    not read its replies within stop_ns;
 *	N9  a block status reply has consecutive extents from the requested offset on, at least one,
 *	    no two neighbours alike, exactly one within the length for REQ_ONE. */
#ifndef EXPORT_NBD_NBD_IMPL_H
#define EXPORT_NBD_NBD_IMPL_H

#include <stdatomic.h>
#include <sys/socket.h>

#include "base/bits.h"
#include "base/list.h"
#include "base/log.h"
#include "blk/port.h"
#include "export/nbd/nbd.h"
#include "export/nbd/proto.h"
#include "loop/iobuf.h"

/* SO_PASSRIGHTS, as most architectures number it, whose headers may be older. */
enum { NBD_SO_PASSRIGHTS = 83 };

enum {
	RX_BYTES = 64 << 10,            /* a connection's receive buffer, and the longest option */
	RX_DIRECT_MIN = 16 << 10,       /* payload that is missing from the buffer and received in
					 * place; less is copied, with the requests after it */
	RX_BULK_MIN = 64 << 10,         /* writes from this length on have nothing copied */
	TX_IOV_MAX = 256,
	TX_BYTES_MAX = 2 << 20,
	LANE_REQS_CHUNK = 32,
	LANE_REQS_MAX = 16384,
	OPTIONS_MAX = 4096,
};

/* ---- requests ---- */

/* What a client asks for. */
struct nbd_ask {
	be64_t cookie;
	uint64_t off;
	uint32_t len;
	uint16_t type;                  /* enum nbd_cmd, or anything */
	uint16_t flags;                 /* enum nbd_cmd_flags, or anything */
};

struct nbd_refusal {
	uint32_t error;                 /* enum nbd_error; NBD_OK: no refusal */
	const char *why;
};

/* One request, from its header until its reply is sent. Belongs to its connection's loop. */
struct nbd_req {
	struct req req;
	struct iovec iov;               /* the payload, for req */
	struct nbd_conn *conn;
	struct nbd_req *next;           /* in the lane's free list or the connection's replies */
	void *buf;                      /* of the lane's memory, or NULL */
	uint32_t buf_size;

	struct nbd_ask ask;
	struct nbd_refusal refusal;

	/* BLOCK_STATUS: see status.c */
	uint64_t status_len;            /* what the extents cover so far */
	uint32_t status_extents;
	uint32_t status_steps;

	/* the reply: head, then body */
	uint32_t head_len;
	uint32_t body_len;
	const void *body;
	union {
		struct nbd_simple_reply simple;
		struct nbd_chunk chunk;
		struct nbd_chunk_data data;
		struct nbd_chunk_error fail;
		struct nbd_chunk_status status;
	} head;
};

/* ---- lanes ---- */

/* Counters: written by the lane's loop alone, relaxed; read by any thread. */
struct nbd_counters {
	_Atomic uint64_t handshake_failed, cut, requests, request_errors;
	_Atomic uint64_t bytes_in, bytes_out, receives, sends;
};

static inline void nbd_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

/* What the server has on one loop; touched by that loop's thread but for nconns and counters. */
struct nbd_lane {
	struct nbd_server *server;
	struct loop *loop;
	struct list_node conns;         /* all connections that have begun here */
	atomic_uint nconns;             /* of those sent here: the accepting loop counts up before
					 * it posts one, this loop counts down when it is gone */
	struct nbd_req *free_reqs;
	struct nbd_chunk_of_reqs *chunks;
	unsigned reqs, reqs_used;
	size_t memory_used;             /* of opts.loop_memory */

	struct list_node waiting;       /* connections that wait for memory, by mem_link */
	struct nbd_conn *served;        /* the one whose turn it is */
	struct task wake_task;
	bool wake_is_queued;
	struct task notify_task;        /* the iobuf pool's while notify_is_set */
	bool notify_is_set;
	struct timer stall_timer;

	bool is_stopping;
	struct timer stop_timer;
	struct fiber *stop_waiter;
	struct nbd_counters counters;
};

void nbd_lane_init(struct nbd_lane *lane, struct nbd_server *s, struct loop *loop);
void nbd_lane_fini(struct nbd_lane *lane);

enum nbd_got {
	NBD_GOT,
	NBD_GOT_LATER,                  /* @c was put on a waiting list and will be resumed */
	NBD_GOT_NEVER,                  /* there is no memory at all */
};

/* A request of @c with @size bytes of buffer (0: none). The rest of it is as its last user left
 * it. */
enum nbd_got nbd_lane_get_req(struct nbd_conn *c, uint32_t size, struct nbd_req **ret);
void nbd_lane_put_req(struct nbd_req *nr);
/* @c waits no longer. */
void nbd_lane_forget(struct nbd_conn *c);

/* In a fiber of the lane's loop. Begins the stop; then waits for the last connection. */
void nbd_lane_stop(struct nbd_lane *lane);
void nbd_lane_stopped_wait(struct nbd_lane *lane);
/* @c is gone from @lane. */
void nbd_lane_conn_gone(struct nbd_lane *lane);

/* ---- connections ---- */

enum nbd_wait {
	NBD_WAIT_NOT,
	NBD_WAIT_SELF,                  /* for requests of its own to end */
	NBD_WAIT_LANE,                  /* for the lane's memory */
};

/* Belongs to the lane's loop from begin_task on. */
struct nbd_conn {
	struct nbd_lane *lane;
	struct loop *loop;
	struct list_node link;          /* in lane->conns */
	int fd;
	int fixed;                      /* loop_fd_register()'s slot */
	struct task begin_task;
	struct timer timer;             /* the handshake's end; later the linger's */

	/* Chosen in the handshake. */
	const struct nbd_export *export;
	struct port_chan *pc;           /* NULL until the transmission phase */
	const struct port *port;
	bool is_read_only;
	bool is_structured;
	bool has_allocation;            /* base:allocation was selected */

	/* What is in use: N4. */
	unsigned live;                  /* requests taken and not yet freed */
	size_t memory_used;

	/* Receiving: receive.c. */
	uint8_t *rx_buf;
	uint32_t rx_head, rx_tail;      /* what lies in rx_buf and was not yet taken */
	struct nbd_req *rx_req;         /* a write whose payload is coming */
	uint32_t rx_left;               /* bytes of it still to come */
	bool rx_is_direct;              /* the recv in flight goes to rx_req->buf */
	bool rx_is_bulk;                /* the last request was RX_BULK_MIN or longer */
	bool rx_busy;                   /* a recv is in flight */
	bool rx_ended;                  /* nothing more will be taken */
	bool rx_is_queued;              /* rx_task is */
	uint8_t rx_wait;                /* enum nbd_wait */
	struct io rx_io;
	struct task rx_task;
	struct list_node mem_link;

	/* Sending: reply.c. */
	struct nbd_req *tx_first, **tx_last;    /* replies, oldest first */
	size_t tx_skip;                 /* bytes of the first that are sent */
	bool tx_busy;                   /* a sendmsg is in flight */
	bool tx_is_queued;              /* tx_task is */
	struct io tx_io;
	struct task tx_task;
	struct msghdr tx_msg;

	/* The end: conn.c. */
	bool is_stopping;               /* the server's: take nothing more, finish what is here */
	bool is_dead;                   /* replies are dropped */
	bool is_closing;                /* close_task is queued, or the linger runs */
	struct task close_task;
	uint64_t moved_ns;              /* when bytes last went in or out */

	struct iovec tx_iov[TX_IOV_MAX];
};

/* Takes @fd. Any thread: the connection begins with nbd_conn_begin(), on the lane's loop. */
int nbd_conn_new(struct nbd_lane *lane, int fd, struct nbd_conn **ret);
void nbd_conn_begin(struct nbd_conn *c);
/* Cuts the connection: what is in flight ends, nothing more is sent. Any number of times. */
void nbd_conn_kill(struct nbd_conn *c);
/* The server stops: see N8. */
void nbd_conn_stop(struct nbd_conn *c);
/* To be called whenever something ended: closes the connection if it was the last. */
void nbd_conn_check_end(struct nbd_conn *c);

/* handshake.c: in the connection's fiber. 0: c->export and what goes with it are set. */
int nbd_handshake_wait(struct nbd_conn *c);

/* receive.c */
void nbd_receive(struct nbd_conn *c);           /* takes what is buffered, then receives more */
void nbd_receive_resume(struct nbd_conn *c);    /* the same, soon: what it waited for is there */
void nbd_receive_end(struct nbd_conn *c);       /* no recv is in flight */
void nbd_receive_init(struct nbd_conn *c);

/* request.c */
struct nbd_refusal nbd_request_check(const struct nbd_conn *c, const struct nbd_ask *ask);
uint32_t nbd_request_buffer(const struct nbd_ask *ask); /* bytes of buffer that it needs */
void nbd_request_start(struct nbd_req *nr);     /* its payload is there */

/* status.c */
uint32_t nbd_status_buffer(const struct nbd_ask *ask);
void nbd_status_start(struct nbd_req *nr);

/* reply.c */
void nbd_reply_init(struct nbd_conn *c);
void nbd_reply_ok(struct nbd_req *nr);
void nbd_reply_read(struct nbd_req *nr);
void nbd_reply_status(struct nbd_req *nr, uint32_t body_len);
void nbd_reply_error(struct nbd_req *nr, uint32_t error, const char *text);
void nbd_reply_errno(struct nbd_req *nr, int res);      /* negative */
void nbd_reply_drop_all(struct nbd_conn *c);            /* no sendmsg is in flight */

/* ---- the server ---- */

struct nbd_listener {
	struct nbd_server *server;
	int fd;
	bool is_busy;                   /* an accept is in flight */
	bool is_failing;                /* and the log says so */
	struct io io;
	struct timer timer;             /* after errors: try again */
};

/* Constant between start and stop but for what says otherwise. */
struct nbd_server {
	struct nbd_server_opts opts;    /* with the defaults filled in; its arrays are not used */
	struct nbd_lane *lanes;
	unsigned nlanes;
	struct nbd_export *exports;     /* with copied strings */
	unsigned nexports;
	bool is_started;

	/* loops[0]'s alone. */
	struct nbd_listener listeners[NBD_LISTEN_MAX];
	unsigned nlisteners;
	unsigned next_lane;
	bool is_stopping;
	struct fiber *stop_waiter;
	_Atomic uint64_t connections_total, refused;    /* read by any thread */
	struct log_limit log_limit;     /* any thread: of what clients can bring about */
};

/* The export of that name, "" being the default one; or NULL. */
const struct nbd_export *nbd_server_find(const struct nbd_server *s, const char *name, size_t len);

#endif
