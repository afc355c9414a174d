/* SPDX-License-Identifier: MIT */
/* cmd/serve.h - the running daemon behind `byre serve`: loops on threads of their own, disks, one
 * NBD server, a vhost-user device for each disk that has a socket of its own. Control thread (main)
 * only; it reaches the loops by loop_call().
 *
 * Order, and the reverse at the end: loops; disks (a graph, and a port that is open on every loop);
 * sockets; server and devices. Sockets come after the disks, so that nobody connects to what cannot
 * be served, and a failed start leaves no socket file behind. */
#ifndef CMD_SERVE_H
#define CMD_SERVE_H

#include "cmd/serve_listen.h"
#include "cmd/serve_opts.h"
#include "ctl/graph.h"
#include "loop/loop_thread.h"

struct err;
struct nbd_server;
struct port;
struct vub;
struct workers;

struct serve_disk {
	const struct serve_image *image;
	struct loop *home;
	struct graph graph;
	struct port *port;
	unsigned loops_open;            /* the port is open on that many, from the first on */
	struct vub *vub;                /* where it is served to a virtual machine; or NULL */
	bool is_vub_started;
};

struct serve {
	const struct serve_opts *opts;  /* borrowed */
	struct workers *workers;
	struct loop_thread *loops;      /* opts->loops of them */
	unsigned nloops;                /* set up so far */
	struct serve_disk *disks;       /* opts->nimages of them */
	struct serve_listen listen;
	struct nbd_server *server;      /* NULL: no disk is served over NBD */
	bool is_serving;
};

/* Brings all up, as the head says. 0 or -errno with @err set and nothing left behind. @s is
 * zeroed. */
int serve_start(struct serve *s, const struct serve_opts *opts, struct err *err);
/* Asks for the size of every disk again, and tells virtual machines of those that have changed. The
 * first error. */
int serve_reload(struct serve *s, struct err *err);
/* Takes all down: what clients were answered for stays answered, what they sent is finished. The
 * first error of writing back. */
int serve_stop(struct serve *s, struct err *err);

#endif
