/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe.c - opening a disk over vhost-user, and opening it again. Everything here runs in
 * fibers of the home loop, but for what says that it is a worker's. One fiber at a time has the
 * connection (is_busy); chans come and go under the same lock, so who looks after them all finds
 * them standing still. */
#include "drv/vub/vfe.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "drv/vub/vfe_impl.h"
#include "loop/work.h"

enum { PAGE = 4096, RETRY_MS = 50 };

static struct vfe_node *vfe_node(struct node *n)
{
	return container_of(n, struct vfe_node, node);
}

static void lock_wait(struct vfe_node *vn)
{
	while (vn->is_busy)
		fiber_queue_wait(&vn->idle);
	vn->is_busy = true;
}

static void unlock(struct vfe_node *vn)
{
	vn->is_busy = false;
	fiber_queue_wake(&vn->idle);
}

/* ---- the connection: workers ---- */

struct link_call {
	struct vfe_node *vn;
	struct err *err;
	int rc;
};

/* Everything after negotiation. */
static int start_session(struct vfe_node *vn, struct err *err)
{
	int rc = vfe_link_set_memory(&vn->link, &vn->mem, err);

	for (unsigned i = 0; i < vn->link.nqueues && !rc; i++)
		rc = vfe_link_set_queue(&vn->link, i, &vn->queues[i], err);
	return rc;
}

static void open_work(void *arg)
{
	struct link_call *c = arg;
	struct vfe_node *vn = c->vn;

	c->rc = vfe_link_open(&vn->link, vn->opts.path, &vn->opts.want, c->err);
	if (!c->rc)
		c->rc = vfe_link_set_features(&vn->link, c->err);
}

static void start_work(void *arg)
{
	struct link_call *c = arg;

	c->rc = start_session(c->vn, c->err);
}

static void reopen_work(void *arg)
{
	struct link_call *c = arg;
	struct vfe_node *vn = c->vn;

	c->rc = vfe_link_reopen(&vn->link, vn->opts.path, &vn->opts.want, c->err);
	if (!c->rc)
		c->rc = vfe_link_set_features(&vn->link, c->err);
	if (!c->rc)
		c->rc = start_session(vn, c->err);
	if (c->rc)
		vfe_link_disconnect(&vn->link);
}

/* The next two: with the socket is closed what waits in it, which may be anything (V38). */
static void disconnect_work(void *arg)
{
	struct link_call *c = arg;

	vfe_link_disconnect(&c->vn->link);
}

static void close_work(void *arg)
{
	struct link_call *c = arg;

	vfe_link_close(&c->vn->link);
}

static void config_work(void *arg)
{
	struct link_call *c = arg;

	c->rc = c->vn->link.sock < 0 ? err_set(c->err, ENOTCONN, "no connection") :
				       vfe_link_get_config(&c->vn->link, c->err);
}

/* Lets the back end end in its own time what it may still be doing, and says goodbye. */
static void end_work(void *arg)
{
	struct link_call *c = arg;
	struct vfe_link *k = &c->vn->link;
	uint32_t base;

	for (unsigned i = 0; i < k->nqueues && k->sock >= 0 && !c->rc; i++)
		c->rc = vfe_link_stop_queue(k, i, &base);
	vfe_link_close(k);
}

static int link_call_wait(struct vfe_node *vn, void (*fn)(void *arg), struct err *err)
{
	struct link_call c = { .vn = vn, .err = err };

	loop_work_wait(vn->node.home, fn, &c);
	return c.rc;
}

static void size_set(struct vfe_node *vn)
{
	atomic_store(&vn->node.size, vn->link.config.capacity * VFE_SECTOR);
}

/* ---- a connection that is lost ---- */

struct chan_call {
	struct vfe_chan *vc;
	void (*fn)(struct vfe_chan *vc, int rc);
	int rc;
};

static int chan_call(void *arg)
{
	struct chan_call *c = arg;

	c->fn(c->vc, c->rc);
	return 0;
}

/* fn(vc, @rc) for all chans, each on its loop. The caller has the lock. */
static void for_chans_wait(struct vfe_node *vn, void (*fn)(struct vfe_chan *vc, int rc), int rc)
{
	for (unsigned i = 0; i < vn->link.nqueues; i++) {
		struct chan_call c = { .vc = vn->users[i], .fn = fn, .rc = rc };

		if (c.vc)
			loop_call_wait(c.vc->chan.loop, chan_call, &c);
	}
}

static void chan_stop(struct vfe_chan *vc, int rc)
{
	vfe_chan_stop(vc);
}

static void chan_refill(struct vfe_chan *vc, int rc)
{
	vfe_chan_refill(vc);
}

static void chan_resume(struct vfe_chan *vc, int rc)
{
	vfe_chan_resume(vc);
}

/* Tries until the time is over. */
static int reopen_wait(struct vfe_node *vn, struct err *err)
{
	uint64_t end = loop_now(vn->node.home) + vn->opts.reconnect_ms * NS_PER_MS;
	int rc = err_set(err, ECONNRESET, "vhost-user: the back end has gone");

	while (rc && !vn->is_closing && loop_now(vn->node.home) < end) {
		rc = link_call_wait(vn, reopen_work, err);
		if (rc)
			fiber_sleep_wait(RETRY_MS * NS_PER_MS);
	}
	return rc;
}

static void watch(struct vfe_node *vn)
{
	vn->watch.op = IO_POLL;
	vn->watch.fd = vn->link.sock;
	vn->watch.mode = POLLRDHUP;
	vn->is_watching = true;
	loop_submit(vn->node.home, &vn->watch);
}

/* In a fiber. */
static void lost(struct task *t)
{
	struct vfe_node *vn = container_of(t, struct vfe_node, lost);
	bool keeps_rings = vfe_link_speaks(&vn->link, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);
	struct err err = { 0 };
	int rc;

	lock_wait(vn);
	link_call_wait(vn, disconnect_work, NULL);
	for_chans_wait(vn, chan_stop, 0);
	if (!keeps_rings) {
		for_chans_wait(vn, chan_refill, 0);
		for (unsigned i = 0; i < vn->link.nqueues; i++)
			if (!vn->users[i])
				vfe_ring_renew(&vn->queues[i], &vn->areas[i]);
	}
	rc = vn->is_closing ? 0 : reopen_wait(vn, &err);
	if (rc) {
		log_error("'%s': %s", vn->node.name, err.text);
		vn->dead = -EIO;
		for_chans_wait(vn, vfe_chan_kill, -EIO);
	} else if (vn->link.sock >= 0) {
		size_set(vn);
		for_chans_wait(vn, chan_resume, 0);
		if (!vn->is_closing)
			watch(vn);
	}
	unlock(vn);
	vn->is_reviving = false;
	if (vn->close_waiter)
		fiber_wake(vn->close_waiter);
}

static void watch_done(struct io *io, int res)
{
	struct vfe_node *vn = container_of(io, struct vfe_node, watch);

	vn->is_watching = false;
	if (vn->close_waiter) {
		fiber_wake(vn->close_waiter);
	} else {
		vn->is_reviving = true;
		fiber_start(vn->node.home, &vn->lost);
	}
}

/* ---- chans ---- */

struct user_call {
	struct vfe_node *vn;
	struct vfe_chan *vc;
	int rc;
};

/* In a fiber of the home loop: a queue for vc. */
static int queue_take_wait(void *arg)
{
	struct user_call *c = arg;
	struct vfe_node *vn = c->vn;
	int rc = -EBUSY;

	lock_wait(vn);
	for (unsigned i = 0; i < vn->link.nqueues && rc && !vn->dead; i++) {
		if (vn->users[i])
			continue;
		vn->users[i] = c->vc;
		c->vc->index = i;
		c->vc->q = &vn->queues[i];
		c->vc->area = &vn->areas[i];
		rc = 0;
	}
	if (vn->dead)
		rc = vn->dead;
	unlock(vn);
	return rc;
}

/* In a fiber of the home loop. What is left in the ring of a queue that failed nobody knows. */
static int queue_put_wait(void *arg)
{
	struct user_call *c = arg;

	lock_wait(c->vn);
	c->vn->users[c->vc->index] = NULL;
	if (c->vc->dead)
		c->vn->dead = c->vc->dead;
	unlock(c->vn);
	return 0;
}

static int vfe_chan_open_wait(struct chan *ch, struct err *err)
{
	struct vfe_chan *vc = container_of(ch, struct vfe_chan, chan);
	struct user_call c = { .vn = vfe_node(ch->node), .vc = vc };
	int rc;

	vc->vn = c.vn;
	rc = vfe_chan_init(vc);
	if (!rc)
		rc = loop_call_wait(ch->node->home, queue_take_wait, &c);
	if (rc) {
		vfe_chan_fini(vc);
		if (rc == -EBUSY)
			return err_set(err, EBUSY, "'%s' has no more than %u queues",
				       ch->node->name, c.vn->link.nqueues);
		return err_set_errno(err, -rc, "'%s'", ch->node->name);
	}
	vfe_chan_start(vc);
	return 0;
}

/* The home loop's chan is the last; it was closed. Then the connection goes, too. */
static void link_close_wait(struct vfe_node *vn)
{
	vn->close_waiter = fiber_self();
	if (vn->is_watching)
		loop_cancel(vn->node.home, &vn->watch);
	while (vn->is_watching || vn->is_reviving)
		fiber_park();
	lock_wait(vn);
	link_call_wait(vn, end_work, NULL);
	unlock(vn);
}

static void vfe_chan_close_wait(struct chan *ch)
{
	struct vfe_chan *vc = container_of(ch, struct vfe_chan, chan);
	struct user_call c = { .vn = vc->vn, .vc = vc };
	bool is_last = ch->loop == ch->node->home;

	if (is_last)
		vc->vn->is_closing = true;
	vfe_chan_finish_wait(vc);
	loop_call_wait(ch->node->home, queue_put_wait, &c);
	vfe_chan_fini(vc);
	if (is_last)
		link_close_wait(vc->vn);
}

/* ---- the node ---- */

static int vfe_resize_wait(struct node *n, struct err *err)
{
	struct vfe_node *vn = vfe_node(n);
	int rc;

	lock_wait(vn);
	rc = link_call_wait(vn, config_work, err);
	if (!rc)
		size_set(vn);
	unlock(vn);
	return rc;
}

static void vfe_free(struct node *n)
{
	struct vfe_node *vn = vfe_node(n);

	assert(vn->link.sock < 0 && vn->link.inflight_fd < 0);
	for (unsigned i = 0; vn->queues && i < vn->link.nqueues; i++)
		vfe_queue_fini(&vn->queues[i]);
	vfe_mem_fini(&vn->mem);
	vfe_opts_fini(&vn->opts);
	free(vn->queues);
	free(vn->areas);
	free(vn->users);
	free(vn);
}

const struct node_ops vfe_ops = {
	.name = "vhost-user",
	.chan_size = sizeof(struct vfe_chan),
	.chan_open_wait = vfe_chan_open_wait,
	.chan_close_wait = vfe_chan_close_wait,
	.submit = vfe_chan_submit,
	.free = vfe_free,
	.resize_wait = vfe_resize_wait,
	.memory_get = vfe_chan_memory_get,
	.memory_put = vfe_chan_memory_put,
};

static size_t ring_bytes(const struct vfe_link *k)
{
	bool is_packed = vfe_link_has(k, VIRTIO_F_RING_PACKED);

	return align_up(vfe_ring_bytes(k->queue_size, is_packed), PAGE);
}

static size_t area_bytes(const struct vfe_link *k)
{
	return VFE_RINGS * ring_bytes(k) +
	       align_up(k->queue_size * sizeof(struct vfe_place), PAGE) +
	       (size_t)VFE_BOUNCES * VFE_BOUNCE_BYTES + VFE_DATA_BYTES;
}

static void area_set(struct vfe_area *a, const struct vfe_link *k, char *at)
{
	a->rings = at;
	a->ring_bytes = ring_bytes(k);
	at += VFE_RINGS * ring_bytes(k);
	a->places = (void *)at;
	at += align_up(k->queue_size * sizeof(struct vfe_place), PAGE);
	a->bounces = at;
	a->data = at + (size_t)VFE_BOUNCES * VFE_BOUNCE_BYTES;
}

static int make_queues(struct vfe_node *vn)
{
	struct vfe_link *k = &vn->link;
	int rc = vfe_mem_init(&vn->mem, area_bytes(k) * k->nqueues);

	if (!rc)
		rc = vfe_mem_seal(&vn->mem);
	if (rc)
		return rc;
	vn->queues = calloc(k->nqueues, sizeof(*vn->queues));
	vn->areas = calloc(k->nqueues, sizeof(*vn->areas));
	vn->users = calloc(k->nqueues, sizeof(struct vfe_chan *));
	if (!vn->queues || !vn->areas || !vn->users)
		return -ENOMEM;
	for (unsigned i = 0; i < k->nqueues && !rc; i++) {
		area_set(&vn->areas[i], k, vn->mem.map + i * area_bytes(k));
		rc = vfe_queue_init(&vn->queues[i], k, vn->areas[i].rings);
	}
	return rc;
}

/* What the back end said, in the node's words. */
static void describe(struct vfe_node *vn, bool read_only)
{
	const struct vfe_link *k = &vn->link;
	struct node *n = &vn->node;
	unsigned most = k->queue_size - 2;

	vn->features = k->features;
	vn->config = k->config;
	if (vfe_link_has(k, VIRTIO_BLK_F_SEG_MAX))
		most = MIN(most, vn->config.seg_max);
	vn->segs_max = MAX(1u, MIN(most, (unsigned)VFE_SEGS_MAX));
	n->read_only = read_only || vfe_link_has(k, VIRTIO_BLK_F_RO);
	n->align = VFE_SECTOR;
	n->can_discard = vfe_link_has(k, VIRTIO_BLK_F_DISCARD);
	n->zero_is_fast = vfe_link_has(k, VIRTIO_BLK_F_WRITE_ZEROES);
	size_set(vn);
}

static int copy_opts(struct vfe_node *vn, const struct vfe_opts *opts)
{
	vn->opts = *opts;
	vn->opts.path = strdup(opts->path);
	return vn->opts.path ? 0 : -ENOMEM;
}

static int connect_wait(struct vfe_node *vn, bool read_only, struct err *err)
{
	int rc = link_call_wait(vn, open_work, err);

	if (rc)
		return rc;
	rc = make_queues(vn);
	if (rc)
		return err_set_errno(err, -rc, "vhost-user: shared memory");
	describe(vn, read_only);
	if (vn->node.read_only && !read_only)
		return err_set(err, EROFS, "vhost-user: the disk is read-only");
	return link_call_wait(vn, start_work, err);
}

int vfe_open_wait(const struct vfe_opts *opts, bool read_only, struct loop *home, struct node **ret,
		  struct err *err)
{
	struct vfe_node *vn = calloc(1, sizeof(*vn));
	int rc;

	if (!vn || node_init(&vn->node, &vfe_ops, opts->path, home) < 0) {
		free(vn);
		return err_set_errno(err, ENOMEM, "'%s'", opts->path);
	}
	vn->link = (struct vfe_link)VFE_LINK_NONE;
	vn->lost.fn = lost;
	vn->watch.done = watch_done;
	rc = copy_opts(vn, opts);
	if (rc)
		err_set_errno(err, -rc, "'%s'", opts->path);
	if (!rc)
		rc = connect_wait(vn, read_only, err);
	if (!rc)
		rc = node_open_home_wait(&vn->node, err);
	if (rc) {
		link_call_wait(vn, close_work, NULL);
		node_put_wait(&vn->node);
		return rc;
	}
	watch(vn);
	*ret = &vn->node;
	return 0;
}
