/* SPDX-License-Identifier: MIT */
/* export/vub/queue.c - a virtqueue's life: kicks, requests, used entries, calls.
 *
 *	stopped   set up by messages, in the control fiber
 *	primed    the indices are right: from SET_VRING_BASE, or from the inflight region
 *	running   the kick is polled, requests are taken
 *	halted    primed, but memory or features are being changed; nothing is in flight
 *	broken    the driver has written nonsense: nothing is taken until the queue is stopped
 *
 * After a kick the end of each turn answers what has ended in it and then looks at the ring, and
 * the guest need not kick, until nothing is there. With poll_ns that goes on for a while longer:
 * for a window that grows where something was found, and shrinks where not. Kicks are asked for
 * last, and then the ring is looked at once more, so that none is missed.
 *
 * Where nothing is in flight a turn takes a few requests only. If they come out of the page cache
 * they have ended before the next turn: the guest has the first answers, and time to ask for more,
 * while the others are read, and in the end neither side sleeps. If they have not ended, a disk has
 * them, and gets all the others at once.
 *
 * The kick is an eventfd, which nobody reads while the queue runs: who kicks us holds its lock
 * until our processor has been told, and to read would be to wait for that. Some front ends have a
 * pipe instead; that is read, with RWF_NOWAIT, for the front end can drain it before us. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "export/vub/vub_impl.h"

enum {
	POLL_WINDOW_MIN = 1000,         /* ns */
	TAKE_FIRST = 8,                 /* requests, see the head */
};

/* ---- what depends on the kind of ring ---- */

static int next(struct vub_queue *q, struct vub_chain *c)
{
	return q->is_packed ? vub_packed_next(q, c) : vub_split_next(q, c);
}

static bool arm(struct vub_queue *q)
{
	return q->is_packed ? vub_packed_arm(q) : vub_split_arm(q);
}

static void disarm(struct vub_queue *q)
{
	if (q->is_packed)
		vub_packed_disarm(q);
	else
		vub_split_disarm(q);
}

static void publish(struct vub_queue *q, struct vub_req *list)
{
	if (q->is_packed)
		vub_packed_publish(q, list);
	else
		vub_split_publish(q, list);
}

static void log_ring(struct vub_queue *q)
{
	if (q->is_packed)
		vub_packed_log(q);
	else
		vub_split_log(q);
}

static bool wants_call(struct vub_queue *q)
{
	return q->is_packed ? vub_packed_wants_call(q) : vub_split_wants_call(q);
}

/* ---- notifications ---- */

static void call(struct vub_queue *q)
{
	vub_count(&q->counters.calls, 1);
	vub_notifier_signal(q->call);
}

/* V18 */
static void break_queue(struct vub_queue *q, const char *why)
{
	if (!q->is_broken) {
		log_warn("vhost-user: '%s': queue %u is stopped: %s", q->v->name, q->index, why);
		vub_count(&q->counters.broken, 1);
	}
	q->is_broken = true;
	q->is_running = false;
	vub_notifier_signal(q->err);
	if (q->kick_is_busy)
		loop_cancel(q->loop, &q->kick_io);
}

static bool is_memory_lost(struct vub_queue *q)
{
	if (!vub_memory_is_lost(&q->v->memory))
		return false;
	break_queue(q, "the front end has taken its memory away");
	return true;
}

/* ---- requests ---- */

static void start(struct vub_queue *q, struct vub_chain *c)
{
	c->vr->is_busy = true;
	c->vr->has_failed = false;
	q->in_flight++;
	vub_count(&q->counters.requests, 1);
	if (vub_request_start(c))
		return;
	c->vr->is_busy = false;
	q->in_flight--;
	break_queue(q, c->wrong);
}

static void do_at_turn_end(struct vub_queue *q)
{
	if (q->turn_is_queued)
		return;
	q->turn_is_queued = true;
	loop_at_turn_end(q->loop, &q->turn_task);
}

/* How many it has taken; with *@ret_more there may be more. */
static unsigned take(struct vub_queue *q, bool *ret_more)
{
	unsigned max = q->in_flight ? UINT_MAX : TAKE_FIRST, n = 0;
	struct vub_chain c = { 0 };
	int rc = 0;

	while (q->is_running && n < max && (rc = next(q, &c)) > 0) {
		start(q, &c);
		n++;
	}
	if (rc < 0)
		break_queue(q, c.wrong);
	*ret_more = n == max;
	return n;
}

/* Looks at the ring at the end of this turn, and of others, until nothing is there. */
static void look_from_now_on(struct vub_queue *q)
{
	disarm(q);
	q->is_looking = true;
	q->look_until_ns = loop_now(q->loop) + q->poll_window_ns;
	do_at_turn_end(q);
}

static void look(struct vub_queue *q)
{
	uint64_t now = loop_now(q->loop);
	bool has_more;

	if (take(q, &has_more)) {
		q->poll_window_ns = MIN(q->poll_window_ns * 2, q->v->poll_ns);
		q->look_until_ns = now + q->poll_window_ns;
	}
	if (is_memory_lost(q) || !q->is_running)
		return;
	if (has_more || now < q->look_until_ns || q->kick_fd < 0) {
		do_at_turn_end(q);
		return;
	}
	q->poll_window_ns = MIN(MAX(q->poll_window_ns / 2, (uint64_t)POLL_WINDOW_MIN),
				q->v->poll_ns);
	q->is_looking = false;
	if (arm(q))
		look_from_now_on(q);
}

void vub_queue_done(struct vub_req *vr, uint8_t status)
{
	struct vub_queue *q = vr->q;

	*vr->status_at = status;
	if (status != VIRTIO_BLK_S_OK)
		vub_count(&q->counters.errors, 1);
	vr->next = NULL;
	*q->done_last = vr;
	q->done_last = &vr->next;
	do_at_turn_end(q);
}

/* The requests of @list are over. */
static void release(struct vub_queue *q, struct vub_req *list)
{
	while (list) {
		struct vub_req *vr = list;

		list = vr->next;
		vr->is_busy = false;
		assert(q->in_flight > 0);
		q->in_flight--;
		if (q->is_packed) {
			vr->next = q->packed.free;
			q->packed.free = vr;
		}
	}
}

/* Answers all that has ended in this turn. */
static void answer(struct vub_queue *q)
{
	struct vub_req *list = q->done_first;

	if (!list)
		return;
	q->done_first = NULL;
	q->done_last = &q->done_first;
	/* Also of a broken queue: its memory has the data, whether the guest hears of it or not. */
	if (q->is_logging)
		for (const struct vub_req *vr = list; vr; vr = vr->next)
			vub_log_request(q, vr);
	if (!q->is_broken && !is_memory_lost(q)) {
		publish(q, list);
		if (wants_call(q))
			call(q);
	}
	release(q, list);
}

static void turn_end(struct task *t)
{
	struct vub_queue *q = container_of(t, struct vub_queue, turn_task);

	q->turn_is_queued = false;
	answer(q);
	if (q->is_running && q->is_looking)
		look(q);
	if (q->waiter)
		fiber_wake(q->waiter);
}

/* ---- kicks ---- */

static void poll_kick(struct vub_queue *q)
{
	if (q->kick_fd < 0 || q->kick_is_busy)
		return;
	q->kick_is_busy = true;
	q->kick_io.op = q->kick_is_pipe ? IO_POLL : IO_EVENT;
	q->kick_io.fd = q->kick_fd;
	q->kick_io.mode = POLLIN;
	loop_submit(q->loop, &q->kick_io);
}

/* Takes all kicks from @fd. False: it is no descriptor to be kicked by. */
static bool read_kick(int fd)
{
	uint64_t count;
	struct iovec iov = { &count, sizeof(count) };
	ssize_t rc = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);

	if (rc < 0 && errno == EOPNOTSUPP)      /* a pipe, before Linux 6.4; it does not block */
		rc = read(fd, &count, sizeof(count));
	return rc > 0 || errno == EAGAIN;
}

static void kicked(struct io *io, int res)
{
	struct vub_queue *q = container_of(io, struct vub_queue, kick_io);

	if (q->kick_is_pipe || res < 0)
		q->kick_is_busy = false;
	if (!q->is_running) {
		if (q->waiter)
			fiber_wake(q->waiter);
		return;
	}
	if (res < 0 || (q->kick_is_pipe && !(res & POLLIN))) {
		break_queue(q, "its kick descriptor is of no use");
		return;
	}
	if (q->kick_is_pipe && !read_kick(q->kick_fd)) {
		break_queue(q, "its kick descriptor cannot be read");
		return;
	}
	vub_count(&q->counters.kicks, 1);
	if (!q->is_looking)
		look_from_now_on(q);
	poll_kick(q);
}

/* ---- running and halting, on the queue's loop ---- */

static void drop_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static size_t many_bytes(const struct vub_queue *q)
{
	return (size_t)q->num * VUB_IOV_MAX * sizeof(struct iovec);
}

static void free_requests(struct vub_queue *q)
{
	free(q->reqs);
	if (q->many)
		munmap(q->many, many_bytes(q));
	q->reqs = NULL;
	q->many = NULL;
}

/* Memory for as many requests as the ring has descriptors. */
static int alloc_requests(struct vub_queue *q)
{
	void *many = mmap(NULL, many_bytes(q), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	q->many = many == MAP_FAILED ? NULL : many;
	q->reqs = calloc(q->num, sizeof(*q->reqs));
	if (!q->many || !q->reqs) {
		free_requests(q);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < q->num; i++)
		q->reqs[i].q = q;
	return 0;
}

/* This queue's part of the inflight area, or NULL where there is none, or none that fits. */
static void *inflight_region(const struct vub_queue *q)
{
	const struct vub *v = q->v;

	if (!v->inflight_at || q->index >= v->inflight_queues || q->num > v->inflight_num)
		return NULL;
	return v->inflight_at + q->index * vub_inflight_bytes(v->inflight_num);
}

/* Takes again what was in flight when we, or who was here before us, stopped (V21). */
static int resubmit(struct vub_queue *q)
{
	struct vub_pending *list;
	unsigned n;

	if (!q->inflight)
		return 0;
	list = malloc(q->num * sizeof(*list));
	if (!list)
		return -ENOMEM;
	n = vub_inflight_list(q, list, q->num);
	for (unsigned i = 0; i < n && q->is_running; i++) {
		struct vub_chain c = { 0 };
		int rc = q->is_packed ? vub_packed_again(q, list[i].entry, &c)
				      : vub_split_again(q, list[i].entry, &c);

		if (rc > 0)
			start(q, &c);
		else
			break_queue(q, c.wrong);
	}
	free(list);
	return 0;
}

static int prime(struct vub_queue *q)
{
	int rc = alloc_requests(q);

	if (rc)
		return rc;
	if (q->is_packed)
		vub_packed_prime(q);
	else
		vub_split_prime(q);
	q->inflight = inflight_region(q);
	if (q->inflight)
		rc = q->is_packed ? vub_inflight_prime_packed(q) : vub_inflight_prime_split(q);
	if (rc) {
		free_requests(q);
		return rc;
	}
	q->is_primed = true;
	return 0;
}

static void take_features(struct vub_queue *q)
{
	uint64_t f = q->v->features;
	bool has_cache = vub_has_bit(f, VIRTIO_BLK_F_FLUSH) ||
			 vub_has_bit(f, VIRTIO_BLK_F_CONFIG_WCE);

	q->is_packed = vub_has_bit(f, VIRTIO_F_RING_PACKED);
	q->has_event_idx = vub_has_bit(f, VIRTIO_RING_F_EVENT_IDX);
	q->has_indirect = vub_has_bit(f, VIRTIO_RING_F_INDIRECT_DESC);
	q->is_logging = vub_has_bit(f, VHOST_USER_F_LOG_ALL) && q->v->log.bits;
	q->write_flags = !has_cache || q->v->is_write_through ? REQ_FUA : 0;
}

static int run(void *arg)
{
	struct vub_queue *q = arg;
	bool is_new = !q->is_primed;
	int rc;

	if (q->is_running || !q->is_started || !q->is_enabled)
		return 0;
	if (q->is_broken || !q->has_addr || !q->num)
		return -EINVAL;
	take_features(q);
	rc = q->is_packed ? vub_packed_map(q) : vub_split_map(q);
	if (!rc && is_new)
		rc = prime(q);
	if (rc)
		return rc;
	log_ring(q);                            /* who was here before us may have been killed */
	q->pc = port_here(q->v->port);
	q->is_running = true;
	q->is_looking = false;
	q->poll_window_ns = q->v->poll_ns;
	if (is_new) {
		rc = resubmit(q);
		if (rc) {
			q->is_running = false;
			return rc;
		}
		call(q);                        /* V22 */
	}
	look_from_now_on(q);
	poll_kick(q);
	return 0;
}

/* Takes the kicks off that we have been told of, so that who has the descriptor next need not look
 * for them, and what they stand for off the ring. A later kick stays where it is. */
static void take_last(struct vub_queue *q)
{
	bool has_more = true;

	if (!q->is_running || q->kick_fd < 0 || q->kick_is_pipe)
		return;
	(void)read_kick(q->kick_fd);
	while (has_more && q->is_running)
		take(q, &has_more);
}

static int halt(void *arg)
{
	struct vub_queue *q = arg;

	take_last(q);
	q->is_running = false;
	q->waiter = fiber_self();
	if (q->kick_is_busy)
		loop_cancel(q->loop, &q->kick_io);
	while (q->in_flight || q->kick_is_busy || q->turn_is_queued)
		fiber_park();
	q->waiter = NULL;
	return 0;
}

int vub_queue_run_wait(struct vub_queue *q)
{
	return loop_call_wait(q->loop, run, q);
}

void vub_queue_halt_wait(struct vub_queue *q)
{
	loop_call_wait(q->loop, halt, q);
}

struct exchange {
	struct vub_notifier **which, *n;
};

static int exchange(void *arg)
{
	struct exchange *x = arg;
	struct vub_notifier *before = *x->which;

	*x->which = x->n;
	x->n = before;
	return 0;
}

void vub_queue_set_notifier_wait(struct vub_queue *q, struct vub_notifier **which,
				 struct vub_notifier *n)
{
	struct exchange x = { which, n };

	loop_call_wait(q->loop, exchange, &x);
	vub_notifier_free(x.n);
}

/* What GET_VRING_BASE says. */
static uint32_t queue_base(const struct vub_queue *q)
{
	if (!q->is_primed)
		return q->base;
	return q->is_packed ? vub_packed_base(q) : vub_split_base(q);
}

/* ---- making ---- */

void vub_queue_stop(struct vub_queue *q)
{
	assert(!q->in_flight && !q->is_running && !q->kick_is_busy);
	q->base = queue_base(q);
	free_requests(q);
	drop_fd(&q->kick_fd);
	q->is_started = q->is_primed = q->is_broken = false;
	q->inflight = NULL;
}

void vub_queue_reset(struct vub_queue *q)
{
	vub_queue_stop(q);
	vub_notifier_free(q->call);
	vub_notifier_free(q->err);
	q->call = q->err = NULL;
	q->num = 0;
	q->base = 0;
	q->has_addr = q->is_enabled = false;
}

int vub_queue_new(struct vub *v, unsigned index, struct loop *loop, struct vub_queue **ret)
{
	struct vub_queue *q = calloc(1, sizeof(*q));

	if (!q)
		return -ENOMEM;
	q->v = v;
	q->loop = loop;
	q->index = index;
	q->kick_fd = -1;
	q->done_last = &q->done_first;
	q->turn_task.fn = turn_end;
	q->kick_io.fixed = -1;
	q->kick_io.done = kicked;
	*ret = q;
	return 0;
}

void vub_queue_free(struct vub_queue *q)
{
	if (!q)
		return;
	vub_queue_reset(q);
	free(q);
}
