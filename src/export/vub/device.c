/* SPDX-License-Identifier: MIT */
/* export/vub/device.c - a device: its two seats, each with its queues and one front end after the
 * other. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "export/vub/descriptor.h"
#include "export/vub/vub_impl.h"

#define ACCEPT_RETRY_NS (200 * NS_PER_MS)

/* ---- making ---- */

static void resize_run(struct task *t)
{
	struct vub *v = container_of(t, struct vub, resize_task);

	atomic_store(&v->resize_is_posted, false);
	v->is_resized = true;
	if (v->fiber)
		fiber_wake(v->fiber);
	if (v->stop_waiter)
		fiber_wake(v->stop_waiter);
}

static int make_queues(struct vub *v, const struct vub_opts *o)
{
	unsigned n = o->queues ? o->queues : MIN(o->nloops, (unsigned)VUB_QUEUES_MAX);

	for (; v->nqueues < n; v->nqueues++) {
		struct loop *l = o->loops[(o->first + v->nqueues) % o->nloops];
		int rc = vub_queue_new(v, v->nqueues, l, &v->queues[v->nqueues]);

		if (rc)
			return rc;
	}
	return 0;
}

static void main_run(struct task *t);

static void free_seat(struct vub *v)
{
	if (!v)
		return;
	assert(!v->is_started);
	for (unsigned i = 0; i < v->nqueues; i++)
		vub_queue_free(v->queues[i]);
	free(v->name);
	free(v);
}

/* NULL: no memory. */
static struct vub *new_seat(const struct vub_opts *o)
{
	const char *serial = o->serial ? o->serial : o->name;
	struct vub *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->loop = o->loops[o->first % o->nloops];
	v->port = o->port;
	v->read_only = o->read_only || o->port->read_only;
	v->poll_ns = o->poll_ns;
	v->listen_fd = o->listen_fd;
	v->fd = v->next_fd = v->backend_fd = -1;
	v->main_task.fn = main_run;
	v->resize_task.fn = resize_run;
	memcpy(v->serial, serial, MIN(strlen(serial), sizeof(v->serial)));
	v->name = strdup(o->name);
	if (v->name && !make_queues(v, o))
		return v;
	free_seat(v);
	return NULL;
}

int vub_new(const struct vub_opts *o, struct vub **ret, struct err *err)
{
	bool has_twin = o->listen_fd >= 0;
	struct vub *v, *twin = NULL;

	if (!o->nloops || o->queues > VUB_QUEUES_MAX)
		return err_set(err, EINVAL, "a vhost-user device needs a loop, and at most %d "
			       "queues", VUB_QUEUES_MAX);
	v = new_seat(o);
	if (v && has_twin)
		twin = new_seat(o);
	if (!v || (has_twin && !twin)) {
		free_seat(v);
		return err_set_errno(err, ENOMEM, "'%s'", o->name);
	}
	v->twin = twin;
	if (twin)
		twin->twin = v;
	*ret = v;
	return 0;
}

void vub_free(struct vub *v)
{
	if (v)
		free_seat(v->twin);
	free_seat(v);
}

struct loop *vub_loop(const struct vub *v)
{
	return v->loop;
}

/* ---- front ends ---- */

/* Of two free seats one waits for a front end, and then the other. */
static int accept_wait(struct vub *v)
{
	int fd;

	while (v->twin->is_accepting && !v->is_stopping)
		fiber_park();
	if (v->is_stopping)
		return -ECANCELED;
	v->is_accepting = true;
	fd = vub_io_wait(v, v->listen_fd, IO_ACCEPT, 0);
	v->is_accepting = false;
	if (v->twin->fiber)
		fiber_wake(v->twin->fiber);
	return fd;
}

/* The next front end's socket; -ECANCELED: none comes any more; or -errno. */
static int next_wait(struct vub *v)
{
	int fd;

	if (v->listen_fd >= 0)
		return accept_wait(v);
	while (v->next_fd < 0 && !v->is_stopping)
		fiber_park();
	fd = v->next_fd;
	v->next_fd = -1;
	if (v->is_stopping && fd >= 0)
		close(fd);
	return v->is_stopping ? -ECANCELED : fd;
}

static void serve_wait(struct vub *v, int fd)
{
	v->fd = fd;
	vub_count(&v->sessions, 1);
	vub_count(&v->sessions_total, 1);
	vub_session_wait(v);
	vub_handle_end_wait(v);
	vub_connection_close_wait(fd, &v->is_stopping);
	v->fd = -1;
	vub_count(&v->sessions, (uint64_t)-1);
}

/* The control fiber. */
static void main_run(struct task *t)
{
	struct vub *v = container_of(t, struct vub, main_task);
	bool is_failing = false;

	v->fiber = fiber_self();
	while (!v->is_stopping) {
		int fd = next_wait(v);

		if (fd >= 0) {
			is_failing = false;
			serve_wait(v, fd);
			continue;
		}
		if (fd == -ECANCELED || fd == -ECONNABORTED)
			continue;
		/* No descriptors or no memory, for instance: some may be free again soon. */
		if (!is_failing)
			log_limited(&v->log_limit, LOG_LEVEL_WARN, "vhost-user: '%s': cannot "
				    "accept front ends: %s", v->name, strerrordesc_np(-fd));
		is_failing = true;
		fiber_sleep_wait(ACCEPT_RETRY_NS);
	}
	v->fiber = NULL;
	if (v->stop_waiter)
		fiber_wake(v->stop_waiter);
}

static bool is_open_everywhere(const struct vub *v)
{
	for (unsigned i = 0; i < v->nqueues; i++)
		if (!v->port->pcs[loop_id(v->queues[i]->loop)])
			return false;
	return true;
}

static void start_seat_wait(struct vub *v)
{
	assert(!v->is_started && !v->is_stopping);
	v->is_started = true;
	fiber_start(v->loop, &v->main_task);
	while (!v->fiber)
		fiber_yield_wait();
}

int vub_start_wait(struct vub *v, struct err *err)
{
	loop_assert(v->loop);
	if (!is_open_everywhere(v))
		return err_set(err, EINVAL, "'%s' is not open on every loop", v->name);
	start_seat_wait(v);
	if (v->twin)
		start_seat_wait(v->twin);
	return 0;
}

static void stop_seat(struct vub *v)
{
	v->is_stopping = true;
	v->stop_waiter = fiber_self();
	if (v->fiber)
		fiber_wake(v->fiber);
}

static void stop_seat_wait(struct vub *v)
{
	while (v->fiber || atomic_load(&v->resize_is_posted))
		fiber_park();
	v->stop_waiter = NULL;
	v->is_started = false;
}

void vub_stop_wait(struct vub *v)
{
	loop_assert(v->loop);
	if (!v->is_started)
		return;
	stop_seat(v);
	if (v->twin) {
		stop_seat(v->twin);
		stop_seat_wait(v->twin);
	}
	stop_seat_wait(v);
}

int vub_serve(struct vub *v, int fd)
{
	loop_assert(v->loop);
	if (!v->is_started || v->is_stopping || v->fd >= 0 || v->next_fd >= 0) {
		close(fd);
		return -EBUSY;
	}
	v->next_fd = fd;
	fiber_wake(v->fiber);
	return 0;
}

void vub_resized(struct vub *v)
{
	for (struct vub *seat = v; seat; seat = seat == v ? v->twin : NULL)
		if (!atomic_exchange(&seat->resize_is_posted, true))
			loop_post(seat->loop, &seat->resize_task);
}

/* ---- statistics ---- */

static uint64_t load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

static void add_stats(const struct vub *v, struct vub_stats *st)
{
	st->sessions += load(&v->sessions);
	st->sessions_total += load(&v->sessions_total);
	for (unsigned i = 0; i < v->nqueues; i++) {
		const struct vub_counters *n = &v->queues[i]->counters;

		st->requests += load(&n->requests);
		st->request_errors += load(&n->errors);
		st->kicks += load(&n->kicks);
		st->calls += load(&n->calls);
		st->broken += load(&n->broken);
		st->logged += load(&n->logged);
	}
}

void vub_get_stats(const struct vub *v, struct vub_stats *ret)
{
	*ret = (struct vub_stats){ 0 };
	add_stats(v, ret);
	if (v->twin)
		add_stats(v->twin, ret);
}
