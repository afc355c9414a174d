/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc_open.c - the node over an export, and its chans. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "drv/nbd/nbdc_impl.h"

/* ---- servers ---- */

void nbdc_server_fini(struct nbdc_server *s)
{
	free(s->path);
	free(s->host);
	free(s->port);
	free(s->export);
	free(s->map_context);
	free(s->tls_certificates);
	free(s->tls_psk_file);
	free(s->tls_username);
	*s = (struct nbdc_server) { 0 };
}

static bool copy_text(const char *from, char **to)
{
	*to = from ? strdup(from) : NULL;
	return *to || !from;
}

static int server_copy(const struct nbdc_server *from, struct nbdc_server *ret)
{
	struct nbdc_server s = *from;
	bool is_whole = copy_text(from->path, &s.path);

	is_whole &= copy_text(from->host, &s.host);
	is_whole &= copy_text(from->port, &s.port);
	is_whole &= copy_text(from->export, &s.export);
	is_whole &= copy_text(from->map_context, &s.map_context);
	is_whole &= copy_text(from->tls_certificates, &s.tls_certificates);
	is_whole &= copy_text(from->tls_psk_file, &s.tls_psk_file);
	is_whole &= copy_text(from->tls_username, &s.tls_username);
	if (!is_whole) {
		nbdc_server_fini(&s);
		return -ENOMEM;
	}
	*ret = s;
	return 0;
}

void nbdc_server_show(const struct nbdc_server *s, char *text, unsigned n)
{
	if (s->path)
		snprintf(text, n, "%s", s->path);
	else
		snprintf(text, n, "%s:%s", s->host, s->port);
}

/* ---- chans ---- */

/* Another connection, or none where the server does not give one: then the home loop's does. */
static int connect_again_wait(struct nbdc_node *nn, struct chan *ch, struct nbd_handle **ret)
{
	struct nbdc_dial d = { .loop = ch->loop, .limit_s = NBDC_AGAIN_MAX_S };
	struct nbdc_info info;
	struct err err = { 0 };
	int rc;

	if (atomic_load(&nn->has_enough))
		return -ENOTCONN;
	rc = nbdc_dial_wait(nn, &d, ret, &info, &err);
	if (!rc && info.size == nn->info.size && info.can_multi_conn)
		return 0;
	if (!rc)
		nbdc_hang_up(nn->lib, *ret);
	atomic_store(&nn->has_enough, true);
	log_debug("'%s': one connection serves several loops (%s)", nn->node.name,
		  rc ? err.text : "it is another disk there");
	return -ENOTCONN;
}

static int chan_open_wait(struct chan *ch, struct err *err)
{
	struct nbdc_node *nn = nbdc_node(ch);
	struct nbd_handle *h = nn->first;
	int rc;

	if (ch->loop == ch->node->home)
		nn->first = NULL;
	else if (!nn->info.can_multi_conn || nn->info.block > 1 || connect_again_wait(nn, ch, &h))
		return 0;
	rc = nbdc_conn_new(ch, h, &nbdc_chan(ch)->conn);
	if (!rc)
		return 0;
	nbdc_hang_up(nn->lib, h);
	return err_set_errno(err, -rc, "'%s'", nn->node.name);
}

static void chan_close_wait(struct chan *ch)
{
	nbdc_conn_free_wait(nbdc_chan(ch)->conn);
}

/* ---- the node ---- */

/* What was written is durable when the disk is let go, as if its user had flushed it last. */
static int settle_wait(struct node *n, struct err *err)
{
	int rc = n->home_chan ? chan_flush_wait(n->home_chan) : 0;

	return rc ? err_set_errno(err, -rc, "'%s': what was written may be lost", n->name) : 0;
}

static void free_node(struct node *n)
{
	struct nbdc_node *nn = container_of(n, struct nbdc_node, node);

	if (nn->first)
		nbdc_hang_up(nn->lib, nn->first);
	nbdc_server_fini(&nn->server);
	free(nn);
}

const struct node_ops nbdc_ops = {
	.name = "nbd",
	.chan_size = sizeof(struct nbdc_chan),
	.chan_open_wait = chan_open_wait,
	.chan_close_wait = chan_close_wait,
	.submit = nbdc_submit,
	.settle_wait = settle_wait,
	.free = free_node,
};

static int new_node(const struct nbdc_opts *o, struct loop *home, struct nbdc_node **ret)
{
	struct nbdc_node *nn = calloc(1, sizeof(*nn));

	if (!nn)
		return -ENOMEM;
	if (server_copy(o->server, &nn->server)) {
		free(nn);
		return -ENOMEM;
	}
	if (node_init(&nn->node, &nbdc_ops, o->name, home)) {
		nbdc_server_fini(&nn->server);
		free(nn);
		return -ENOMEM;
	}
	nn->is_writethrough = o->writethrough;
	nn->no_flush = o->no_flush;
	*ret = nn;
	return 0;
}

/* The first dial, and more of them for as long as the server may take to be there. */
static int connect_wait(struct nbdc_node *nn, struct loop *home, struct err *err)
{
	struct nbdc_dial d = { .loop = home };
	uint64_t end_ns = loop_now(home) + nn->server.open_timeout_s * NS_PER_SEC;
	int rc;

	for (;;) {
		rc = nbdc_dial_wait(nn, &d, &nn->first, &nn->info, err);
		if (!rc || rc == -ENOPKG || loop_now(home) >= end_ns)
			return rc;
		fiber_sleep_wait(MIN(NS_PER_SEC, end_ns - loop_now(home)));
	}
}

static void take_info(struct nbdc_node *nn, const struct nbdc_opts *o)
{
	const struct nbdc_info *info = &nn->info;
	struct node *n = &nn->node;

	n->read_only = !o->writable;
	n->align = info->block;
	n->can_discard = o->writable && o->discard && info->can_trim;
	n->zero_is_fast = o->writable && info->can_zero;
	atomic_store(&n->size, info->size);
}

int nbdc_open_wait(const struct nbdc_opts *o, struct loop *home, struct node **ret,
		   struct err *err)
{
	struct nbdc_node *nn;
	int rc;

	loop_assert(home);
	rc = new_node(o, home, &nn);
	if (rc)
		return err_set_errno(err, -rc, "'%s'", o->name);
	rc = connect_wait(nn, home, err);
	if (!rc && o->writable && nn->info.is_read_only) {
		rc = err_set_errno(err, EACCES, "Could not open image");
		err_hint(err, "the server has it for reading only: use it read-only");
	}
	if (!rc) {
		take_info(nn, o);
		rc = node_open_home_wait(&nn->node, err);
	}
	if (rc) {
		node_put_wait(&nn->node);
		return rc;
	}
	*ret = &nn->node;
	return 0;
}
