/* SPDX-License-Identifier: MIT */
/* cmd/serve_listen.h - where `byre serve` listens: addresses as people write them, listening
 * sockets, and what to tell clients to connect to. */
#ifndef CMD_SERVE_LISTEN_H
#define CMD_SERVE_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "export/nbd/nbd.h"

struct err;
struct serve_opts;

/* The listening sockets of a server. */
struct serve_listen {
	int fds[NBD_LISTEN_MAX];
	struct {
		dev_t dev;
		ino_t ino;
	} files[NBD_LISTEN_MAX];        /* of the Unix sockets that were made here */
	unsigned n;
	unsigned inherited;             /* the first of them came from the service manager */
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

/* Takes what the service manager hands over, then opens every --nbd. 0 or -errno with nothing
 * left open; -EDESTADDRREQ where there is neither. */
int serve_listen_open(const struct serve_opts *opts, struct serve_listen *ret, struct err *err);
/* Closes all; removes the files of the Unix sockets that were made here, unless another server has
 * put its own in their place. */
void serve_listen_close(struct serve_listen *l);

/* The NBD URI of the export @name at the listening socket @fd. Returns @buf. */
char *serve_listen_uri(int fd, const char *name, char *buf, size_t n);

#endif
