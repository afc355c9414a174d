/* SPDX-License-Identifier: MIT */
/* blk/port.h - where an export or a job holds the graph.
 *
 * A port is one user's view of a disk: rights and statistics. What enters is counted by loop and
 * epoch (epoch.h). It has a port_chan a loop; requests enter through port_submit() and nowhere
 * else.
 *
 * Invariants:
 *	P1  a request is counted in (loop, epoch) when it enters and counted out there when it
 *	    completes, before its done() runs;
 *	P2  only a port checks ranges and rights (B1): what enters is within the disk;
 *	P3  a port that closes lets nothing in, and waits for what is in flight. */
#ifndef BLK_PORT_H
#define BLK_PORT_H

#include "blk/blk.h"

/* Written by the chan's loop with relaxed stores, summed by port_get_stats() from any thread. */
struct port_stats {
	uint64_t ops[REQ_KINDS];
	uint64_t bytes[REQ_KINDS];      /* FLUSH: 0 */
	uint64_t errors;
	uint64_t latency_ns;            /* summed over all requests */
	uint64_t in_flight;
};

struct port_chan {
	struct port *port;
	struct chan *ch;
	struct loop *loop;
	struct epoch_loop *epochs;      /* borrowed: the loop's counts (P1) */
	unsigned in_flight;             /* this port's on this loop, in either epoch */
	struct fiber *closer;           /* waits until nothing is in flight; or NULL */
	struct port_stats stats;
};

struct port {
	struct node *node;              /* borrowed */
	bool read_only;
	bool ignore_discard;            /* --discard ignore */
	struct port_chan *pcs[LOOPS_MAX];
};

/* In a fiber of any loop; opens nothing yet. */
int port_new(struct node *n, bool read_only, struct port **ret, struct err *err);
/* All port_chans are closed. */
void port_free(struct port *p);

/* In a fiber of @p's future user's loop: opens the port there. Once a loop. */
int port_open_wait(struct port *p, struct err *err);
/* In a fiber of that loop; nobody submits any more. Waits for what is in flight and closes. */
void port_close_wait(struct port *p);

/* The port on the current loop; port_open_wait() has run there. */
struct port_chan *port_here(const struct port *p);

/* Checks and starts @req: -EPERM for writes to a read-only port, -EINVAL out of range, through
 * done() as everything else. On pc->loop. */
void port_submit(struct port_chan *pc, struct req *req);

/* In a fiber of pc->loop: sends a request like @req (but for done) and waits for its answer. */
int port_submit_wait(struct port_chan *pc, const struct req *req);

uint64_t port_size(const struct port *p);
void port_get_stats(const struct port *p, struct port_stats *ret);

/* blk's: counts @req out (P1). */
void port_req_end(struct req *req, int res);

#endif
