/* SPDX-License-Identifier: MIT */
/* export/nbd/server.c - exports, accepting, start and stop.
 *
 * loops[0] accepts; connections go to the lanes in turn. Exports do not change once the server
 * has been started, so all loops read them without locks. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "export/nbd/nbd_impl.h"

enum { ACCEPT_RETRY_MS = 200 };

/* ---- making ---- */

static void fill_defaults(struct nbd_server_opts *o)
{
	o->max_connections = o->max_connections ? o->max_connections : 256;
	o->max_requests = o->max_requests ? o->max_requests : 1024;
	o->loop_memory = o->loop_memory ? o->loop_memory : 128 * MiB;
	o->connection_memory = o->connection_memory ? o->connection_memory : NBD_PAYLOAD_MAX;
	o->handshake_ns = o->handshake_ns ? o->handshake_ns : 10 * NS_PER_SEC;
	o->connection_share = o->connection_share ? o->connection_share : 256 * KiB;
	o->stall_ns = o->stall_ns ? o->stall_ns : 30 * NS_PER_SEC;
	o->stop_ns = o->stop_ns ? o->stop_ns : 5 * NS_PER_SEC;
}

static void accepted(struct io *io, int res);
static void accept_again(struct timer *t);

/* Who connects to a Unix socket @fd may send descriptors along. Nobody receives them, so the kernel
 * closes them on the spot. Where that is to wait for somebody (a TCP socket that lingers, a pipe
 * that is locked), a loop waits as long as the client likes. Since Linux 6.16 they can be refused,
 * and connections inherit that. Of other sockets it means nothing. */
static void refuse_descriptors(int fd)
{
	static const int no;

	setsockopt(fd, SOL_SOCKET, NBD_SO_PASSRIGHTS, &no, sizeof(no));
}

static void init_listener(struct nbd_server *s, int fd)
{
	struct nbd_listener *li = &s->listeners[s->nlisteners++];

	li->server = s;
	li->fd = fd;
	li->timer.fn = accept_again;
	refuse_descriptors(fd);
	li->io = (struct io){ .op = IO_ACCEPT, .fd = fd, .fixed = -1, .done = accepted };
}

int nbd_server_new(const struct nbd_server_opts *opts, struct nbd_server **ret, struct err *err)
{
	if (!opts->nloops || opts->nlisten > NBD_LISTEN_MAX)
		return err_set(err, EINVAL, "an NBD server needs a loop, and at most %d listening "
			       "sockets", NBD_LISTEN_MAX);

	struct nbd_server *s = calloc(1, sizeof(*s));

	if (s)
		s->lanes = calloc(opts->nloops, sizeof(*s->lanes));
	if (!s || !s->lanes) {
		free(s);
		return err_set(err, ENOMEM, "out of memory");
	}
	s->opts = *opts;
	fill_defaults(&s->opts);
	s->nlanes = opts->nloops;
	for (unsigned i = 0; i < s->nlanes; i++)
		nbd_lane_init(&s->lanes[i], s, opts->loops[i]);
	for (unsigned i = 0; i < opts->nlisten; i++)
		init_listener(s, opts->listen_fds[i]);
	*ret = s;
	return 0;
}

static void free_export(const struct nbd_export *e)
{
	free((void *)(uintptr_t)e->name);
	free((void *)(uintptr_t)e->description);
}

void nbd_server_free(struct nbd_server *s)
{
	if (!s)
		return;
	assert(!s->is_started);
	for (unsigned i = 0; i < s->nexports; i++)
		free_export(&s->exports[i]);
	for (unsigned i = 0; i < s->nlanes; i++)
		nbd_lane_fini(&s->lanes[i]);
	free(s->exports);
	free(s->lanes);
	free(s);
}

static bool is_name(const struct nbd_export *e, const char *name, size_t len)
{
	return strlen(e->name) == len && !memcmp(e->name, name, len);
}

const struct nbd_export *nbd_server_find(const struct nbd_server *s, const char *name, size_t len)
{
	for (unsigned i = 0; i < s->nexports; i++)
		if (is_name(&s->exports[i], name, len))
			return &s->exports[i];
	return len || !s->nexports ? NULL : &s->exports[0];
}

int nbd_server_add(struct nbd_server *s, const struct nbd_export *e, struct err *err)
{
	assert(!s->is_started);
	if (strlen(e->name) > NBD_STRING_MAX ||
	    (e->description && strlen(e->description) > NBD_STRING_MAX))
		return err_set(err, ENAMETOOLONG, "an export's name or description is longer than "
			       "%d bytes", NBD_STRING_MAX);
	for (unsigned i = 0; i < s->nexports; i++)
		if (is_name(&s->exports[i], e->name, strlen(e->name)))
			return err_set(err, EEXIST, "there are two exports named '%s'", e->name);

	struct nbd_export *list = realloc(s->exports, (s->nexports + 1) * sizeof(*list));

	if (!list)
		return err_set(err, ENOMEM, "out of memory");
	s->exports = list;

	struct nbd_export copy = *e;

	copy.name = strdup(e->name);
	copy.description = e->description ? strdup(e->description) : NULL;
	if (!copy.name || (e->description && !copy.description)) {
		free_export(&copy);
		return err_set(err, ENOMEM, "out of memory");
	}
	list[s->nexports++] = copy;
	return 0;
}

/* ---- accepting ---- */

static unsigned count_connections(const struct nbd_server *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < s->nlanes; i++)
		n += atomic_load_explicit(&s->lanes[i].nconns, memory_order_relaxed);
	return n;
}

int nbd_server_serve(struct nbd_server *s, int fd)
{
	struct nbd_lane *lane = &s->lanes[s->next_lane];
	struct nbd_conn *c;
	int rc;

	loop_assert(s->lanes[0].loop);
	if (!s->is_started || s->is_stopping)
		rc = -ESHUTDOWN;
	else if (count_connections(s) >= s->opts.max_connections)
		rc = -EUSERS;
	else
		rc = nbd_conn_new(lane, fd, &c);
	if (rc < 0) {
		close(fd);
		nbd_count(&s->refused, 1);
		return rc;
	}
	s->next_lane = (s->next_lane + 1) % s->nlanes;
	nbd_count(&s->connections_total, 1);
	nbd_conn_begin(c);
	return 0;
}

static void accept_next(struct nbd_listener *li)
{
	li->is_busy = true;
	loop_submit(li->server->lanes[0].loop, &li->io);
}

static void accept_again(struct timer *t)
{
	accept_next(container_of(t, struct nbd_listener, timer));
}

static void accepted(struct io *io, int res)
{
	struct nbd_listener *li = container_of(io, struct nbd_listener, io);
	struct nbd_server *s = li->server;
	struct loop *l = s->lanes[0].loop;

	li->is_busy = false;
	if (res >= 0) {
		li->is_failing = false;
		nbd_server_serve(s, res);
	}
	if (s->is_stopping) {
		if (s->stop_waiter)
			fiber_wake(s->stop_waiter);
		return;
	}
	if (res >= 0 || res == -ECONNABORTED) {
		accept_next(li);
		return;
	}
	/* No descriptors or no memory, for instance: some may be free again soon. */
	if (!li->is_failing)
		log_limited(&s->log_limit, LOG_LEVEL_WARN, "nbd: cannot accept connections: %s",
			    strerrordesc_np(-res));
	li->is_failing = true;
	timer_set(l, &li->timer, loop_now(l) + ACCEPT_RETRY_MS * NS_PER_MS);
}

/* ---- start and stop ---- */

static bool is_open_everywhere(const struct nbd_server *s, const struct port *p)
{
	for (unsigned i = 0; i < s->nlanes; i++)
		if (!p->pcs[loop_id(s->lanes[i].loop)])
			return false;
	return true;
}

int nbd_server_start_wait(struct nbd_server *s, struct err *err)
{
	loop_assert(s->lanes[0].loop);
	assert(!s->is_started && !s->is_stopping);
	if (!s->nexports)
		return err_set(err, EINVAL, "there is nothing to export");
	for (unsigned i = 0; i < s->nexports; i++)
		if (!is_open_everywhere(s, s->exports[i].port))
			return err_set(err, EINVAL, "export '%s' is not open on every loop",
				       s->exports[i].name);
	s->is_started = true;
	for (unsigned i = 0; i < s->nlisteners; i++)
		accept_next(&s->listeners[i]);
	return 0;
}

static bool is_accepting(const struct nbd_server *s)
{
	for (unsigned i = 0; i < s->nlisteners; i++)
		if (s->listeners[i].is_busy)
			return true;
	return false;
}

static int stop_lane(void *arg)
{
	nbd_lane_stop(arg);
	return 0;
}

static int await_lane(void *arg)
{
	nbd_lane_stopped_wait(arg);
	return 0;
}

void nbd_server_stop_wait(struct nbd_server *s)
{
	struct loop *l = s->lanes[0].loop;

	loop_assert(l);
	if (!s->is_started)
		return;
	s->is_stopping = true;
	s->stop_waiter = fiber_self();
	for (unsigned i = 0; i < s->nlisteners; i++) {
		timer_cancel(l, &s->listeners[i].timer);
		if (s->listeners[i].is_busy)
			loop_cancel(l, &s->listeners[i].io);
	}
	while (is_accepting(s))
		fiber_park();
	s->stop_waiter = NULL;

	for (unsigned i = 0; i < s->nlanes; i++)
		loop_call_wait(s->lanes[i].loop, stop_lane, &s->lanes[i]);
	for (unsigned i = 0; i < s->nlanes; i++)
		loop_call_wait(s->lanes[i].loop, await_lane, &s->lanes[i]);
	s->is_started = false;
}

static uint64_t load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

void nbd_server_get_stats(const struct nbd_server *s, struct nbd_server_stats *ret)
{
	struct nbd_server_stats st = {
		.connections = count_connections(s),
		.connections_total = load(&s->connections_total),
		.refused = load(&s->refused),
	};

	for (unsigned i = 0; i < s->nlanes; i++) {
		const struct nbd_counters *n = &s->lanes[i].counters;

		st.handshake_failed += load(&n->handshake_failed);
		st.cut += load(&n->cut);
		st.requests += load(&n->requests);
		st.request_errors += load(&n->request_errors);
		st.bytes_in += load(&n->bytes_in);
		st.bytes_out += load(&n->bytes_out);
		st.receives += load(&n->receives);
		st.sends += load(&n->sends);
	}
	*ret = st;
}
