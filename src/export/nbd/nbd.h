/* SPDX-License-Identifier: MIT */
/* export/nbd/nbd.h - serves ports to NBD clients: fixed newstyle, structured replies,
 * base:allocation, several exports and any number of connections to each.
 *
 * The server spreads its connections over the loops it is given. An export's port must be open on
 * each of them. All connections to an export share its port, so a flush on one covers what
 * was completed on any (NBD_FLAG_CAN_MULTI_CONN).
 *
 * Life: nbd_server_new(), nbd_server_add() for each export, nbd_server_start_wait(),
 * nbd_server_stop_wait(), nbd_server_free(). Each is called once. */
#ifndef EXPORT_NBD_NBD_H
#define EXPORT_NBD_NBD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct loop;
struct nbd_server;
struct port;

struct nbd_export {
	const char *name;               /* "" is what clients get that name none */
	const char *description;        /* for people; NULL: none */
	struct port *port;              /* borrowed; open on every loop of the server */
	bool read_only;                 /* a read-only port is served read-only in any case */
};

/* All limits: 0 stands for the default. */
struct nbd_server_opts {
	struct loop **loops;            /* borrowed; loops[0] accepts */
	unsigned nloops;
	const int *listen_fds;          /* borrowed: the caller closes them after the stop */
	unsigned nlisten;               /* at most NBD_LISTEN_MAX */

	unsigned max_connections;       /* more are closed at once; 256 */
	unsigned max_requests;          /* in flight a connection; 1024 */
	size_t loop_memory;             /* bytes of payload buffers a loop; 128 MiB. Leaves the
					 * rest of the loop's iobufs to the drivers below */
	size_t connection_memory;       /* of these, what one connection may hold; 32 MiB */
	size_t connection_share;        /* of these, what others cannot take from it; 256 KiB */
	uint64_t handshake_ns;          /* time a client has to choose an export; 10 s */
	uint64_t stall_ns;              /* while others wait for memory, a connection that holds
					 * some and has not moved for this long is cut; 30 s */
	uint64_t stop_ns;               /* how long a stop waits for peers before it cuts; 5 s */
};

enum { NBD_LISTEN_MAX = 16, NBD_PAYLOAD_MAX = 32 << 20, NBD_STRING_MAX = 4096 };

/* Copies @opts' arrays. 0, -EINVAL or -ENOMEM. */
int nbd_server_new(const struct nbd_server_opts *opts, struct nbd_server **ret, struct err *err);
/* Stopped, or never started. NULL is fine. */
void nbd_server_free(struct nbd_server *s);

/* Copies @e's strings. The first export is also the default one, "", unless one has that name.
 * Before the start. 0, -EEXIST, -ENAMETOOLONG or -ENOMEM. */
int nbd_server_add(struct nbd_server *s, const struct nbd_export *e, struct err *err);

/* In a fiber of loops[0], once: begins to accept. 0 or -EINVAL (no export, or a port that is
 * not open). */
int nbd_server_start_wait(struct nbd_server *s, struct err *err);
/* In a fiber of loops[0]: accepts no more, lets requests in flight finish and their replies go
 * out, within opts.stop_ns, and closes all connections. Waits for the drivers however long
 * they take: what they hold cannot be freed. */
void nbd_server_stop_wait(struct nbd_server *s);

/* On loops[0], started: serves the connected stream socket @fd, which is taken. -EUSERS (too many
 * connections), -ENOMEM or -ESHUTDOWN: @fd is closed all the same. */
int nbd_server_serve(struct nbd_server *s, int fd);

struct nbd_server_stats {
	uint64_t connections;           /* now */
	uint64_t connections_total;     /* ever taken */
	uint64_t refused;               /* closed at once, for want of room */
	uint64_t handshake_failed;
	uint64_t cut;                   /* by this side: violations, stalls, stop_ns over */
	uint64_t requests;
	uint64_t request_errors;        /* answered with an error */
	uint64_t bytes_in;              /* of the transmission phase, headers and all */
	uint64_t bytes_out;
	uint64_t receives;              /* system calls' worth: recv and sendmsg operations */
	uint64_t sends;
};

/* Any thread. */
void nbd_server_get_stats(const struct nbd_server *s, struct nbd_server_stats *ret);

/* ---- listening sockets ---- */

/* A listening Unix socket at @path with @mode (0: 0600). The socket file of a dead server is
 * replaced; a live one is -EADDRINUSE. Returns the descriptor or -errno. */
int nbd_listen_unix(const char *path, unsigned mode, struct err *err);

/* Listens on each address of @host (NULL or "": all interfaces; brackets around an IPv6 address are
 * allowed) at @port (NULL: 10809). Fills @fds, at most @max; returns how many or -errno. */
int nbd_listen_tcp(const char *host, const char *port, int *fds, unsigned max, struct err *err);

#endif
