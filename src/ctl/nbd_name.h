/* SPDX-License-Identifier: MIT */
/* ctl/nbd_name.h - an NBD export as somebody names it. Pure; the words of errors are QEMU's.
 *
 *	nbd://HOST[:PORT]/[EXPORT]              nbd+tcp:// is the same
 *	nbd+unix:///[EXPORT]?socket=PATH
 *	nbds://, nbds+tcp://, nbds+unix://      over TLS: byre's own, as other NBD clients have them
 *	nbd:HOST:PORT[:exportname=EXPORT]       QEMU's older ones
 *	nbd:unix:PATH[:exportname=EXPORT]
 *
 * or by options: driver=nbd,server.type=unix,server.path=PATH,export=EXPORT. In a URI what is
 * written as %XX is that byte; over TLS its query may have tls-certificates=FOLDER,
 * tls-psk-file=FILE and tls-verify-peer=0, and a user's name stands before the host. */
#ifndef CTL_NBD_NAME_H
#define CTL_NBD_NAME_H

#include <stdbool.h>

#include "drv/nbd/nbdc.h"

struct err;
struct option_list;

/* Does @name begin with one of these protocols? */
bool nbd_name_is(const char *name);
/* 0, or -errno. *@ret only on success, then nbdc_server_fini(). */
int nbd_name_parse(const char *name, struct nbdc_server *ret, struct err *err);
/* Takes the options that begin with @prefix. */
int nbd_name_take(struct option_list *list, const char *prefix, struct nbdc_server *ret,
		  struct err *err);
/* The one name of the export that listings show, and that means the same again where @s has
 * nothing that only options can say. Returned owned; NULL without memory. */
char *nbd_name_show(const struct nbdc_server *s);

#endif
