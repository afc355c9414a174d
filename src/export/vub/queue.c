/* SPDX-License-Identifier: MIT */
/* export/vub/queue.c - a virtqueue's life: kicks, requests, used entries, calls.
 *
 *	            run                        nothing there
 *	stopped ---------> looking ------------------------------> idle
 *	   ^                |   ^ <-------------------------------- |
 *	   |           halt |   | run          a kick               | halt
 *	   |  stop          v   |                                   |
 *	   +-------------- halted <---------------------------------+
 *
 *	looking, idle, halted ----------------------------------> broken ---------> stopped
 *	                       nonsense, or memory is gone (V18)           stop
 *
 *	stopped   halted and not primed: where its indices are is set up by messages
 *	looking   at the ring, at the end of each turn; the guest need not kick
 *	idle      kicks are asked for, and waited for
 *	halted    primed, but memory or features are being changed; nothing is in flight
 *	broken    the driver has written nonsense: nothing is taken any more
 *
 *	run       the last one of SET_VRING_ADDR, _KICK and _ENABLE, or the other seat's letting
 *	          go of the disk; and each message that has halted a queue and not disabled it
 *	halt      a message that changes what queues read while they run: memory, features, the log,
 *	          the queue's own address or kick; SET_VRING_ENABLE of 0; and ahead of each stop
 *	stop      GET_VRING_BASE, RESET_DEVICE, the end of the session
 *
 * What broke while it was being halted stays broken. A queue is primed by its first run: its
 * indices are those of SET_VRING_BASE, or the inflight region's.
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
 * What is copied in a turn holds up all others on the loop. So what is to be read and written
 * beyond so many bytes waits for the next one (V29), in the order in which it came.
 *
 * The kick is an eventfd, which nobody reads while the queue runs: who kicks us holds its lock
 * until our processor has been told, and to read would be to wait for that. A halt empties it, but
 * where the front end kicks several queues by it: what it holds may be meant for another one, which
 * somebody else may have by then. */
#include <errno.h>
#include <limits.h>
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

/* ---- notifications ---- */

/* V25: loop_event_signal() never waits. */
static void notify(struct vub_queue *q, int fd)
{
	if (fd >= 0)
		loop_event_signal(q->loop, fd);
}

static void call(struct vub_queue *q)
{
	vub_count(&q->counters.calls, 1);
	notify(q, q->call_fd);
}

static bool is_running(const struct vub_queue *q)
{
	return q->state == VUB_QUEUE_IDLE || q->state == VUB_QUEUE_LOOKING;
}

/* V18 */
static void break_queue(struct vub_queue *q, const char *why)
{
	if (q->state != VUB_QUEUE_BROKEN) {
		log_limited(&q->v->log_limit, LOG_LEVEL_WARN,
			    "vhost-user: '%s': queue %u is stopped: %s", q->v->name, q->index, why);
		vub_count(&q->counters.broken, 1);
	}
	q->state = VUB_QUEUE_BROKEN;
	notify(q, q->err_fd);
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

	while (q->state == VUB_QUEUE_LOOKING && n < max && (rc = q->ops->next(q, &c)) > 0) {
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
	q->ops->disarm(q);
	q->state = VUB_QUEUE_LOOKING;
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
	if (is_memory_lost(q) || q->state != VUB_QUEUE_LOOKING)
		return;
	if (has_more || now < q->look_until_ns || q->kick_fd < 0) {
		do_at_turn_end(q);
		return;
	}
	q->poll_window_ns = MIN(MAX(q->poll_window_ns / 2, (uint64_t)POLL_WINDOW_MIN),
				q->v->poll_ns);
	q->state = VUB_QUEUE_IDLE;
	if (q->ops->arm(q))
		look_from_now_on(q);
}

/* Adds @vr to the end of a list of @vr's queue, which is looked at when the turn ends. */
static void append(struct vub_req ***last, struct vub_req *vr)
{
	vr->next = NULL;
	**last = vr;
	*last = &vr->next;
	do_at_turn_end(vr->q);
}

void vub_queue_done(struct vub_req *vr, uint8_t status)
{
	struct vub_queue *q = vr->q;

	*vr->status_at = status;
	if (status != VIRTIO_BLK_S_OK)
		vub_count(&q->counters.errors, 1);
	append(&q->done_last, vr);
}

void vub_queue_send_later(struct vub_req *vr)
{
	append(&vr->q->waiting_last, vr);
}

void vub_queue_send(struct vub_req *vr)
{
	struct vub_queue *q = vr->q;

	if (q->turn_bytes >= VUB_TURN_BYTES) {
		vub_queue_send_later(vr);
		return;
	}
	q->turn_bytes += MIN(vr->len - vr->sent, (uint64_t)VUB_PART_MAX);
	vub_request_send(vr);
}

/* Sends what waits, as much of it as there may be in a turn. */
static void send_waiting(struct vub_queue *q)
{
	q->turn_bytes = 0;
	while (q->waiting_first && q->turn_bytes < VUB_TURN_BYTES) {
		struct vub_req *vr = q->waiting_first;

		q->waiting_first = vr->next;
		if (!q->waiting_first)
			q->waiting_last = &q->waiting_first;
		vub_queue_send(vr);
	}
	if (q->waiting_first)
		do_at_turn_end(q);
}

/* The requests of @list are over. */
static void release(struct vub_queue *q, struct vub_req *list)
{
	for (struct vub_req *vr = list; vr; vr = vr->next) {
		vr->is_busy = false;
		assert(q->in_flight > 0);
		q->in_flight--;
	}
	if (q->ops->release)
		q->ops->release(q, list);
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
	if (q->state != VUB_QUEUE_BROKEN && !is_memory_lost(q)) {
		q->ops->publish(q, list);
		if (q->ops->wants_call(q))
			call(q);
	}
	release(q, list);
}

static void turn_end(struct task *t)
{
	struct vub_queue *q = container_of(t, struct vub_queue, turn_task);

	q->turn_is_queued = false;
	answer(q);
	send_waiting(q);
	if (q->state == VUB_QUEUE_LOOKING)
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
	q->kick_io.op = IO_EVENT;
	q->kick_io.fd = q->kick_fd;
	loop_submit(q->loop, &q->kick_io);
}

static void kicked(struct io *io, int res)
{
	struct vub_queue *q = container_of(io, struct vub_queue, kick_io);

	q->kick_is_busy = res >= 0;
	if (!is_running(q)) {
		if (q->waiter)
			fiber_wake(q->waiter);
		return;
	}
	if (res < 0) {
		break_queue(q, "its kick descriptor is of no use");
		return;
	}
	vub_count(&q->counters.kicks, 1);
	if (q->state == VUB_QUEUE_IDLE)
		look_from_now_on(q);
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
	for (unsigned i = 0; i < n && is_running(q); i++) {
		struct vub_chain c = { 0 };

		if (q->ops->again(q, list[i].entry, &c) > 0)
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
	q->inflight = inflight_region(q);
	rc = q->ops->prime(q);
	if (rc) {
		free_requests(q);
		return rc;
	}
	q->is_primed = true;
	return 0;
}

static void unprime(struct vub_queue *q)
{
	free_requests(q);
	q->is_primed = false;
	q->inflight = NULL;
}

static void take_features(struct vub_queue *q)
{
	uint64_t f = q->v->features;
	bool has_cache = vub_has_bit(f, VIRTIO_BLK_F_FLUSH) ||
			 vub_has_bit(f, VIRTIO_BLK_F_CONFIG_WCE);

	q->ops = vub_has_bit(f, VIRTIO_F_RING_PACKED) ? &vub_packed_ops : &vub_split_ops;
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

	if (is_running(q) || !q->is_started || !q->is_enabled)
		return 0;
	if (q->state == VUB_QUEUE_BROKEN || !q->has_addr || !q->num)
		return -EINVAL;
	take_features(q);
	rc = q->ops->map(q);
	if (!rc && is_new)
		rc = prime(q);
	if (rc)
		return rc;
	q->ops->log(q);                         /* who was here before us may have been killed */
	q->pc = port_here(q->v->port);
	q->state = VUB_QUEUE_IDLE;
	q->poll_window_ns = q->v->poll_ns;
	if (is_new) {
		rc = resubmit(q);
		if (rc) {
			q->state = VUB_QUEUE_HALTED;
			unprime(q);             /* the next run takes them again */
			return rc;
		}
		call(q);                        /* V22 */
	}
	if (!is_running(q))                     /* what it was to take again is damaged */
		return 0;
	look_from_now_on(q);
	poll_kick(q);
	return 0;
}

/* Takes the kicks off that we have been told of, so that who has the descriptor next need not look
 * for them, and what they stand for off the ring. A later kick stays where it is. The front end can
 * let readers wait, and be faster than we are. */
static void take_last(struct vub_queue *q)
{
	uint64_t count;
	struct iovec iov = { &count, sizeof(count) };
	bool has_more = true;

	if (!is_running(q) || q->kick_fd < 0)
		return;
	if (!q->kick_is_shared)
		(void)preadv2(q->kick_fd, &iov, 1, -1, RWF_NOWAIT);
	while (has_more && is_running(q))
		take(q, &has_more);
}

static int halt(void *arg)
{
	struct vub_queue *q = arg;

	take_last(q);
	if (is_running(q))
		q->state = VUB_QUEUE_HALTED;
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
	int *which, fd;
};

static int exchange(void *arg)
{
	struct exchange *x = arg;
	int before = *x->which;

	*x->which = x->fd;
	x->fd = before;
	return 0;
}

void vub_queue_set_notifier_wait(struct vub_queue *q, int *which, int fd)
{
	struct exchange x = { which, fd };

	loop_call_wait(q->loop, exchange, &x);
	drop_fd(&x.fd);
}

/* What GET_VRING_BASE says. */
static uint32_t queue_base(const struct vub_queue *q)
{
	return q->is_primed ? q->ops->base(q) : q->base;
}

/* ---- making ---- */

void vub_queue_stop(struct vub_queue *q)
{
	assert(!q->in_flight && !is_running(q) && !q->kick_is_busy);
	q->base = queue_base(q);
	unprime(q);
	drop_fd(&q->kick_fd);
	q->is_started = false;
	q->state = VUB_QUEUE_HALTED;
}

void vub_queue_reset(struct vub_queue *q)
{
	vub_queue_stop(q);
	drop_fd(&q->call_fd);
	drop_fd(&q->err_fd);
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
	q->kick_fd = q->call_fd = q->err_fd = -1;
	q->done_last = &q->done_first;
	q->waiting_last = &q->waiting_first;
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
