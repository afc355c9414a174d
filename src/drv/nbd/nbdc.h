/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc.h - a node over an export of an NBD server.
 *
 * The protocol is libnbd's, which is loaded when the first such node is opened: who uses files only
 * does not need it. Names begin with nbdc_, for libnbd has nbd_. */
#ifndef DRV_NBD_NBDC_H
#define DRV_NBD_NBDC_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct loop;
struct node;

/* Which export of which server. All strings owned, or NULL. */
struct nbdc_server {
	char *path;                     /* a Unix socket; NULL: host and port */
	char *host, *port;
	char *export;                   /* NULL: the default one, "" */
	char *map_context;              /* what REQ_MAP asks for; NULL: base:allocation */
	bool has_tls;                   /* TLS or nothing */
	char *tls_certificates;         /* a folder; NULL: the system's authorities */
	char *tls_psk_file, *tls_username;
	bool tls_trusts_anybody;        /* the server's certificate is not looked at */
	uint32_t reconnect_delay_s;     /* how long requests wait for a lost server; 0: not at all,
					 * they fail from then on */
	uint32_t open_timeout_s;        /* how long to try when it is opened; 0: once */
};

void nbdc_server_fini(struct nbdc_server *s);
/* The address as messages show it: "host:port", or the path. */
void nbdc_server_show(const struct nbdc_server *s, char *text, unsigned n);

struct nbdc_opts {
	const char *name;               /* what messages call it */
	const struct nbdc_server *server;
	bool writable;
	bool discard;                   /* REQ_DISCARD and REQ_MAY_UNMAP reach the server */
	bool writethrough;              /* every write is durable when done */
	bool no_flush;                  /* flushes do nothing */
};

/* In a fiber of @home. 0, or -errno with QEMU's words. */
int nbdc_open_wait(const struct nbdc_opts *opts, struct loop *home, struct node **ret,
		   struct err *err);

#endif
