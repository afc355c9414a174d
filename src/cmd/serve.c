/* SPDX-License-Identifier: MIT */
#include "cmd/serve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/port.h"
#include "ctl/image_name.h"
#include "export/nbd/nbd.h"
#include "export/vub/vub.h"
#include "loop/fiber.h"
#include "loop/work.h"

/* ---- loops ---- */

static int start_loop(struct serve *s, struct loop_thread *t, struct err *err)
{
	struct loop_opts lo = { .backend = s->opts->backend, .workers = s->workers };
	char name[16];
	struct loop *l;
	int rc = loop_new(&lo, &l, err);

	if (rc)
		return rc;
	s->nloops++;
	snprintf(name, sizeof(name), "byre-loop-%u", loop_id(l));
	return loop_thread_start(t, l, name, err);
}

static int start_loops(struct serve *s, struct err *err)
{
	int rc = workers_new(0, &s->workers, err);

	if (rc)
		return rc;
	s->loops = calloc(s->opts->loops, sizeof(*s->loops));
	if (!s->loops)
		return err_set_errno(err, ENOMEM, "cannot start");
	for (unsigned i = 0; i < s->opts->loops && !rc; i++)
		rc = start_loop(s, &s->loops[i], err);
	return rc;
}

static void stop_loops(struct serve *s)
{
	for (unsigned i = 0; i < s->nloops; i++)
		loop_thread_stop(&s->loops[i]);
	free(s->loops);
	workers_free(s->workers);
}

/* ---- disks ---- */

struct disk_call {                      /* arguments of what runs on a loop */
	struct serve *serve;
	struct serve_disk *disk;
	struct err *err;
};

static int open_graph_wait(void *arg)
{
	struct disk_call *c = arg;
	struct serve_disk *d = c->disk;
	const struct serve_opts *o = c->serve->opts;
	struct image_name name = { 0 };
	struct graph_opts go = {
		.path = d->image->path,
		.format = d->image->format,
		.snapshot = d->image->snapshot,
		.cache = d->image->cache,
		.read_only = d->image->read_only,
		.discard = !d->image->ignore_discard,
		.detect_zeroes = d->image->detect_zeroes,
		.compress = d->image->compress,
		.no_lock = d->image->force_share,
		.cache_bytes = o->cache_bytes,
		.allow = o->allow,
		.nallow = o->nallow,
	};
	int rc = 0;

	if (serve_is_described(go.path)) {
		rc = image_name_parse(go.path, &name, c->err);
		go.path = name.path;
		go.image = &name;
		if (!go.format)
			go.format = name.format;
		go.read_only |= name.is_read_only;
	}
	if (!rc)
		rc = graph_open_wait(&go, d->home, &d->graph, c->err);
	image_name_fini(&name);
	if (rc)
		return rc;
	rc = port_new(graph_head(&d->graph), d->image->read_only || d->graph.top->read_only,
		      &d->port, c->err);
	if (!rc)
		d->port->ignore_discard = d->image->ignore_discard;
	return rc;
}

static int open_port_wait(void *arg)
{
	struct disk_call *c = arg;
	int rc = port_open_wait(c->disk->port, c->err);

	if (!rc)
		c->disk->loops_open++;
	return rc;
}

static int close_port_wait(void *arg)
{
	struct serve_disk *d = arg;

	port_close_wait(d->port);
	return 0;
}

static int close_graph_wait(void *arg)
{
	struct disk_call *c = arg;

	return graph_close_wait(&c->disk->graph, c->err);
}

static int open_disk(struct serve *s, struct serve_disk *d, struct err *err)
{
	struct disk_call c = { .serve = s, .disk = d, .err = err };
	int rc = loop_call(d->home, open_graph_wait, &c);

	for (unsigned i = 0; i < s->nloops && !rc; i++)
		rc = loop_call(s->loops[i].loop, open_port_wait, &c);
	return rc;
}

static int open_disks(struct serve *s, struct err *err)
{
	int rc = 0;

	s->disks = calloc(s->opts->nimages, sizeof(*s->disks));
	if (!s->disks)
		return err_set_errno(err, ENOMEM, "cannot start");
	for (unsigned i = 0; i < s->opts->nimages && !rc; i++) {
		struct serve_disk *d = &s->disks[i];

		d->image = &s->opts->images[i];
		d->home = s->loops[i % s->nloops].loop;
		rc = open_disk(s, d, err);
	}
	return rc;
}

/* The first error of writing back, of all disks. */
static int close_disks(struct serve *s, struct err *err)
{
	int first = 0;

	for (unsigned i = 0; s->disks && i < s->opts->nimages; i++) {
		struct serve_disk *d = &s->disks[i];
		struct disk_call c = { .serve = s, .disk = d, .err = first ? NULL : err };
		int rc = 0;

		while (d->loops_open)
			loop_call(s->loops[--d->loops_open].loop, close_port_wait, d);
		port_free(d->port);
		if (d->graph.top)
			rc = loop_call(d->home, close_graph_wait, &c);
		if (rc && !first)
			first = err_wrap(err, rc, "closing '%s'", d->image->path);
	}
	free(s->disks);
	return first;
}

/* ---- the server ---- */

static int make_server(struct serve *s, struct err *err)
{
	struct loop *loops[LOOPS_MAX];
	struct nbd_server_opts so = {
		.loops = loops,
		.nloops = s->nloops,
		.listen_fds = s->listen.fds,
		.nlisten = s->listen.n,
	};
	int rc;

	for (unsigned i = 0; i < s->nloops; i++)
		loops[i] = s->loops[i].loop;
	rc = nbd_server_new(&so, &s->server, err);
	for (unsigned i = 0; i < s->opts->nimages && !rc; i++) {
		if (s->disks[i].image->vhost_user)
			continue;
		struct nbd_export e = {
			.name = s->disks[i].image->name,
			.port = s->disks[i].port,
			.read_only = s->disks[i].port->read_only,
		};

		rc = nbd_server_add(s->server, &e, err);
	}
	return rc;
}

struct server_call {
	struct nbd_server *server;
	struct err *err;
};

static int start_server_wait(void *arg)
{
	struct server_call *c = arg;

	return nbd_server_start_wait(c->server, c->err);
}

static int stop_server_wait(void *arg)
{
	nbd_server_stop_wait(arg);
	return 0;
}

static int start_server(struct serve *s, struct err *err)
{
	int rc = make_server(s, err);
	struct server_call c = { .server = s->server, .err = err };

	if (!rc)
		rc = loop_call(s->loops[0].loop, start_server_wait, &c);
	s->is_serving = !rc;
	return rc;
}

/* ---- virtual machines ---- */

static int start_vub_wait(void *arg)
{
	struct disk_call *c = arg;

	return vub_start_wait(c->disk->vub, c->err);
}

static int stop_vub_wait(void *arg)
{
	vub_stop_wait(arg);
	return 0;
}

static int start_vub(struct serve *s, unsigned i, struct err *err)
{
	struct serve_disk *d = &s->disks[i];
	struct disk_call c = { .serve = s, .disk = d, .err = err };
	struct loop *loops[LOOPS_MAX];
	struct vub_opts vo = {
		.loops = loops,
		.nloops = s->nloops,
		.first = i,
		.queues = d->image->queues,
		.port = d->port,
		.name = d->image->name,
		.listen_fd = s->listen.vub_fds[i],
		.poll_ns = s->opts->poll_ns,
	};
	int rc;

	for (unsigned j = 0; j < s->nloops; j++)
		loops[j] = s->loops[j].loop;
	rc = vub_new(&vo, &d->vub, err);
	if (!rc)
		rc = loop_call(vub_loop(d->vub), start_vub_wait, &c);
	d->is_vub_started = !rc;
	return rc;
}

static int start_vubs(struct serve *s, struct err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < s->opts->nimages && !rc; i++)
		if (s->disks[i].image->vhost_user)
			rc = start_vub(s, i, err);
	return rc;
}

static void stop_vubs(struct serve *s)
{
	for (unsigned i = 0; s->disks && i < s->opts->nimages; i++) {
		struct serve_disk *d = &s->disks[i];

		if (d->is_vub_started)
			loop_call(vub_loop(d->vub), stop_vub_wait, d->vub);
		vub_free(d->vub);
		d->vub = NULL;
	}
}

static int resize_wait(void *arg)
{
	struct disk_call *c = arg;
	struct node *n = graph_head(&c->disk->graph);

	return n->ops->resize_wait ? n->ops->resize_wait(n, c->err) : 0;
}

int serve_reload(struct serve *s, struct err *err)
{
	int first = 0;

	for (unsigned i = 0; i < s->opts->nimages; i++) {
		struct serve_disk *d = &s->disks[i];
		struct disk_call c = { .serve = s, .disk = d, .err = first ? NULL : err };
		uint64_t before = port_size(d->port);
		int rc = loop_call(d->home, resize_wait, &c);

		if (rc && !first)
			first = err_wrap(err, rc, "'%s'", d->image->path);
		if (d->vub && port_size(d->port) != before)
			vub_resized(d->vub);
	}
	return first;
}

/* ---- all ---- */

int serve_start(struct serve *s, const struct serve_opts *opts, struct err *err)
{
	int rc;

	s->opts = opts;
	rc = start_loops(s, err);
	if (!rc)
		rc = open_disks(s, err);
	if (!rc)
		rc = serve_listen_open(opts, &s->listen, err);
	if (!rc && serve_opts_need_nbd(opts))
		rc = start_server(s, err);
	if (!rc)
		rc = start_vubs(s, err);
	if (rc)
		serve_stop(s, NULL);
	return rc;
}

int serve_stop(struct serve *s, struct err *err)
{
	int rc;

	/* Who is cut off and comes back at once is to find nobody: some, QEMU 7.2 among them, never
	 * try again if a second connection ends in the middle of the handshake. */
	serve_listen_withdraw(&s->listen);
	if (s->is_serving)
		loop_call(s->loops[0].loop, stop_server_wait, s->server);
	nbd_server_free(s->server);
	stop_vubs(s);
	serve_listen_close(&s->listen);
	rc = close_disks(s, err);
	stop_loops(s);
	*s = (struct serve) { 0 };
	return rc;
}
