/* SPDX-License-Identifier: MIT */
/* cmd/serve_listen.h - where `byre serve` listens: addresses as people write them, listening
 * sockets, and what to tell clients to connect to. */
#ifndef CMD_SERVE_LISTEN_H
#define CMD_SERVE_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "cmd/serve_opts.h"
#include "export/nbd/nbd.h"

struct err;
struct serve_opts;

enum { SERVE_SOCKETS_MAX = NBD_LISTEN_MAX + SERVE_IMAGES_MAX };

/* A listening socket's origin. */
struct listen_file {
	dev_t dev;
	ino_t ino;                      /* of the Unix socket's file that was made here */
	bool is_inherited;              /* it came from the service manager */
};

/* The listening sockets of a server. */
struct serve_listen {
	int fds[SERVE_SOCKETS_MAX];     /* the NBD server's */
	struct listen_file files[SERVE_SOCKETS_MAX];
	unsigned n;
	int vub_fds[SERVE_IMAGES_MAX];  /* of each image in turn; -1: none */
	struct listen_file vub_files[SERVE_IMAGES_MAX];
	unsigned nvub;
};

enum { LISTEN_HOST_MAX = 255, LISTEN_PORT_MAX = 31 };

/* "unix:PATH" or "tcp:HOST[:PORT]", taken apart. */
struct listen_address {
	const char *path;               /* unix: within the text; NULL: tcp */
	char host[LISTEN_HOST_MAX + 1];
	char port[LISTEN_PORT_MAX + 1]; /* "": the default */
};

/* Pure. 0 or -EINVAL. */
int listen_address_parse(const char *text, struct listen_address *ret, struct err *err);

/* Takes what the service manager hands over, then opens every --nbd and --vhost-user. What was
 * handed over and lies at the path of a --vhost-user is for that; the rest is for NBD. 0 or -errno
 * with nothing left open; -EDESTADDRREQ where images to be served over NBD have no socket. */
int serve_listen_open(const struct serve_opts *opts, struct serve_listen *ret, struct err *err);
/* Removes the files of the Unix sockets that were made here, unless another server has put its own
 * in their place: nobody connects any more. Sockets that were handed over stay, and who connects to
 * them waits for the next server. */
void serve_listen_withdraw(const struct serve_listen *l);
/* Withdraws and closes all. */
void serve_listen_close(struct serve_listen *l);

/* The NBD URI of the export @name at the listening socket @fd. Returns @buf. */
char *serve_listen_uri(int fd, const char *name, char *buf, size_t n);

#endif
