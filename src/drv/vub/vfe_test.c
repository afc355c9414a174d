/* SPDX-License-Identifier: MIT */
/* The driver against a back end in a thread of its own: content against a model, while connections
 * are lost, and a back end that lies or says nothing. */
#include "drv/vub/vfe.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "base/sanitizers.h"
#include "base/test_linger.h"
#include "drv/vub/test_backend.h"
#include "drv/vub/vfe_impl.h"
#include "drv/vub/vfe_msg.h"
#include "loop/loop_thread.h"
#include "loop/work.h"

enum { JOBS = 24, REGION = BACKEND_DISK / 2 / JOBS / VFE_SECTOR * VFE_SECTOR,
       OPS = HAS_TSAN ? 24 : 60, PATIENCE_S = 120 };

struct rig;

/* Requests one after the other, within a part of the disk that is the job's own. */
struct job {
	struct task task;
	struct rig *rig;
	struct chan *ch;
	struct prng prng;
	uint64_t start;
	uint8_t *model, *buf;
	bool is_shared;                 /* buf */
	int rc;                         /* what is to be expected of requests */
};

struct rig {
	struct backend be;
	struct vfe_opts opts;
	struct workers *workers;
	struct loop_thread loops[2];
	struct node *node;
	struct err err;
	int expect;
	unsigned ops, running;
	struct fiber *waiter;
	uint64_t seed;
	uint64_t base;                  /* where the jobs' parts start */
};

static void quiet(enum log_level level, const char *line)
{
}

/* ---- jobs ---- */

static int job_req(struct job *j, enum req_kind kind, uint64_t off, uint64_t len, uint8_t flags)
{
	/* In three pieces. */
	uint64_t a = len / 3, b = len / 5;
	struct iovec iov[4] = {
		{ NULL, 0 }, { j->buf, a }, { j->buf + a, b }, { j->buf + a + b, len - a - b },
	};
	struct req req = { .kind = (uint8_t)kind, .off = j->start + off, .len = len, .iov = iov,
			   .iovcnt = 4, .flags = flags };

	return chan_submit_wait(j->ch, &req);
}

static void job_write(struct job *j, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i += sizeof(uint64_t))
		memcpy(j->buf + i, &(uint64_t){ prng_next(&j->prng) }, sizeof(uint64_t));
	memcpy(j->model + off, j->buf, len);
	assert_int_equal(job_req(j, REQ_WRITE, off, len, prng_below(&j->prng, 4) ? 0 : REQ_FUA),
			 j->rc);
}

static void job_read(struct job *j, uint64_t off, uint64_t len)
{
	memset(j->buf, 0xee, len);
	assert_int_equal(job_req(j, REQ_READ, off, len, 0), j->rc);
	if (!j->rc)
		assert_memory_equal(j->buf, j->model + off, len);
}

static void job_zero(struct job *j, enum req_kind kind, uint64_t off, uint64_t len)
{
	int rc = job_req(j, kind, off, len, REQ_MAY_UNMAP);

	/* This back end's discards leave zeros; one that has none leaves what there was. */
	if (kind == REQ_ZERO || j->rig->be.features >> VIRTIO_BLK_F_DISCARD & 1)
		memset(j->model + off, 0, len);
	assert_true(rc == j->rc || (kind == REQ_DISCARD && !rc));
}

static void job_step(struct job *j)
{
	uint64_t max = prng_below(&j->prng, 4) ? 16 * KiB : REGION, len, off;

	len = 1 + prng_below(&j->prng, max);
	off = prng_below(&j->prng, REGION - len + 1);
	if (prng_below(&j->prng, 3)) {
		off = align_down(off, VFE_SECTOR);
		len = MIN(align_up(len, VFE_SECTOR), REGION - off);
	}
	if (!is_aligned(off | len, VFE_SECTOR)) {
		job_read(j, off, len);
		return;
	}
	switch (prng_below(&j->prng, 6)) {
	case 0:
		job_zero(j, REQ_ZERO, off, len);
		break;
	case 1:
		job_zero(j, REQ_DISCARD, off, len);
		break;
	case 2:
		assert_int_equal(job_req(j, REQ_FLUSH, 0, 0, 0), j->rc);
		break;
	case 3:
		job_read(j, off, len);
		break;
	default:
		job_write(j, off, len);
	}
}

static void job_run(struct task *t)
{
	struct job *j = container_of(t, struct job, task);

	for (unsigned i = 0; i < j->rig->ops; i++)
		job_step(j);
	if (!--j->rig->running)
		fiber_wake(j->rig->waiter);
}

static void job_init(struct job *j, struct rig *r, struct chan *ch, unsigned i)
{
	*j = (struct job){ .task.fn = job_run, .rig = r, .ch = ch, .prng = { r->seed * 1000 + i },
			   .start = r->base + (uint64_t)i * REGION, .rc = r->expect };
	j->is_shared = i % 2;
	j->model = calloc(1, REGION);
	j->buf = j->is_shared ? chan_memory_get(ch, REGION) : malloc(REGION);
	assert_true(j->model && j->buf);
}

static int run_jobs(void *arg)
{
	struct rig *r = arg;
	struct job *jobs = calloc(JOBS, sizeof(*jobs));
	struct chan *ch;

	assert_int_equal(chan_get_wait(r->node, &ch, &r->err), 0);
	r->waiter = fiber_self();
	r->running = JOBS;
	for (unsigned i = 0; i < JOBS; i++) {
		job_init(&jobs[i], r, ch, i);
		fiber_start(ch->loop, &jobs[i].task);
	}
	while (r->running)
		fiber_park();
	for (unsigned i = 0; i < JOBS; i++) {
		if (jobs[i].is_shared)
			chan_memory_put(ch, jobs[i].buf, REGION);
		else
			free(jobs[i].buf);
		free(jobs[i].model);
	}
	free(jobs);
	chan_put_wait(ch);
	return 0;
}

/* ---- the rig ---- */

static int open_node(void *arg)
{
	struct rig *r = arg;

	return vfe_open_wait(&r->opts, false, loop_current(), &r->node, &r->err);
}

static int close_node(void *arg)
{
	struct rig *r = arg;

	node_put_wait(r->node);
	return 0;
}

static void rig_start(struct rig *r, uint64_t seed)
{
	r->seed = seed;
	r->ops = OPS;
	assert_int_equal(backend_start(&r->be, seed), 0);
	r->opts.path = r->be.path;
	assert_int_equal(workers_new(2, &r->workers, NULL), 0);
	for (unsigned i = 0; i < 2; i++) {
		struct loop_opts lo = { .backend = LOOP_AUTO, .workers = r->workers };
		struct loop *l;

		assert_int_equal(loop_new(&lo, &l, NULL), 0);
		assert_int_equal(loop_thread_start(&r->loops[i], l, "vfe", NULL), 0);
	}
}

static void rig_open(struct rig *r)
{
	r->opts.want.timeout_ms = PATIENCE_S * 1000;
	if (loop_call(r->loops[0].loop, open_node, r))
		fail_msg("%s", r->err.text);
}

static void rig_stop(struct rig *r)
{
	if (r->node)
		loop_call(r->loops[0].loop, close_node, r);
	loop_thread_stop(&r->loops[0]);
	loop_thread_stop(&r->loops[1]);
	workers_free(r->workers);
	backend_stop(&r->be);
}

/* ---- tests ---- */

#define BIT(n) (1ULL << (n))

static void rig_vary(struct rig *r, unsigned variant)
{
	r->opts.want = (struct vfe_want){
		.packed = variant & 1,
		.no_indirect = variant & 2,
		.no_event_idx = variant & 4,
		.no_inflight = variant & 8,
		.queue_size = variant & 16 ? 32 : 0,
	};
	r->opts.poll = __builtin_parity(variant);
}

static void every_layout_carries_every_request(void **state)
{
	for (unsigned variant = 0; variant < 32; variant++) {
		struct rig r = { 0 };

		rig_vary(&r, variant);
		rig_start(&r, variant + 1);
		r.ops = OPS / 3;
		rig_open(&r);
		loop_call(r.loops[0].loop, run_jobs, &r);
		assert_int_equal(r.be.connections, 1);
		rig_stop(&r);
	}
}

/* Who looks by itself is called by nobody; an event index that is passed may count once. */
static void who_polls_is_not_called(void **state)
{
	for (unsigned variant = 0; variant < 16; variant++) {
		struct rig r = { 0 };

		rig_vary(&r, variant);
		r.opts.poll = variant & 8;
		rig_start(&r, variant + 1);
		r.ops = 10;
		rig_open(&r);
		loop_call(r.loops[0].loop, run_jobs, &r);
		assert_true(r.be.requests > 100);
		assert_true(r.opts.poll ? r.be.calls <= 1 : r.be.calls > 5);
		rig_stop(&r);
	}
}

static void what_the_back_end_lacks_is_done_without(void **state)
{
	struct rig r = { .be.features = ~(BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_MQ) |
					  BIT(VIRTIO_BLK_F_WRITE_ZEROES) | BIT(VIRTIO_BLK_F_FLUSH) |
					  BIT(VIRTIO_BLK_F_SEG_MAX)),
			 .be.protocol = BIT(VHOST_USER_PROTOCOL_F_CONFIG) };

	rig_start(&r, 5);
	rig_open(&r);
	loop_call(r.loops[0].loop, run_jobs, &r);
	rig_stop(&r);
	r = (struct rig){ .be.features = ~BIT(VIRTIO_F_RING_PACKED), .opts.want.packed = true };
	rig_start(&r, 5);
	assert_int_equal(loop_call(r.loops[0].loop, open_node, &r), -ENOTSUP);
	rig_stop(&r);
	r = (struct rig){ .be.protocol = BIT(VHOST_USER_PROTOCOL_F_MQ) };
	rig_start(&r, 5);
	assert_int_equal(loop_call(r.loops[0].loop, open_node, &r), -ENOTSUP);
	rig_stop(&r);
}

static void a_loop_has_a_queue_of_its_own(void **state)
{
	struct rig r = { 0 };

	rig_start(&r, 9);
	rig_open(&r);
	loop_call(r.loops[0].loop, run_jobs, &r);
	r.base = BACKEND_DISK / 2;
	loop_call(r.loops[1].loop, run_jobs, &r);
	rig_stop(&r);
}

static int get_chan(void *arg)
{
	struct rig *r = arg;
	struct chan *ch;
	int rc = chan_get_wait(r->node, &ch, &r->err);

	if (!rc)
		chan_put_wait(ch);
	return rc;
}

static void more_loops_than_queues_are_refused(void **state)
{
	struct rig r = { .opts.want.queues = 1 };

	rig_start(&r, 9);
	rig_open(&r);
	assert_int_equal(loop_call(r.loops[1].loop, get_chan, &r), -EBUSY);
	assert_int_equal(loop_call(r.loops[0].loop, get_chan, &r), 0);
	rig_stop(&r);
}

static void v35_v36_v37_nothing_is_lost_with_connections(void **state)
{
	unsigned connections = 0;

	for (unsigned variant = 0; variant < 16; variant++) {
		struct rig r = { .be.die_after = 60, .opts.reconnect_ms = 60000 };

		rig_vary(&r, variant);
		rig_start(&r, variant + 100);
		r.ops = 12;
		rig_open(&r);
		loop_call(r.loops[0].loop, run_jobs, &r);
		connections += r.be.connections;
		assert_int_equal(r.be.strangers, 0);
		rig_stop(&r);
	}
	assert_true(connections > 16 * 3);
}

static void v35_another_disk_is_not_taken(void **state)
{
	struct rig r = { 0 };
	struct vfe_link k = VFE_LINK_NONE;
	struct err err;

	rig_start(&r, 3);
	assert_int_equal(vfe_link_open(&k, r.be.path, &r.opts.want, &err), 0);
	vfe_link_disconnect(&k);
	assert_int_equal(vfe_link_reopen(&k, r.be.path, &r.opts.want, &err), 0);
	vfe_link_disconnect(&k);
	k.config.capacity++;
	assert_int_equal(vfe_link_reopen(&k, r.be.path, &r.opts.want, &err), -EPROTO);
	k.config.capacity--;
	k.features ^= BIT(VIRTIO_BLK_F_FLUSH);
	assert_int_equal(vfe_link_reopen(&k, r.be.path, &r.opts.want, &err), -EPROTO);
	vfe_link_close(&k);
	rig_stop(&r);
}

static void v36_a_liar_fails_requests_once(void **state)
{
	for (unsigned packed = 0; packed < 2; packed++) {
		struct rig r = { .expect = -EIO, .opts.want.packed = packed };

		rig_start(&r, 11);
		rig_open(&r);
		r.be.lies = true;
		loop_call(r.loops[0].loop, run_jobs, &r);
		rig_stop(&r);
	}
}

static void v36_a_lost_connection_fails_requests_once(void **state)
{
	for (unsigned ms = 0; ms <= 200; ms += 200) {
		struct rig r = { .expect = -EIO, .opts.reconnect_ms = ms, .be.is_silent = true };

		rig_start(&r, 12);
		rig_open(&r);
		/* Its listener goes, too. */
		shutdown(r.be.listener, SHUT_RDWR);
		unlink(r.be.path);
		shutdown(r.be.sock, SHUT_RDWR);
		loop_call(r.loops[0].loop, run_jobs, &r);
		rig_stop(&r);
	}
}

/* ---- back ends that hold others up ---- */

static void v38_full_counters_hold_nobody_up(void **state)
{
	for (unsigned variant = 0; variant < 16; variant += 5) {
		struct rig r = { .be.die_after = 60, .opts.reconnect_ms = 60000,
				 .be.fills_counters = true };

		rig_vary(&r, variant);
		rig_start(&r, variant + 200);
		r.ops = 6;
		rig_open(&r);
		alarm(PATIENCE_S);
		loop_call(r.loops[0].loop, run_jobs, &r);
		assert_true(r.be.connections > 1);
		rig_stop(&r);
		alarm(0);
	}
}

static void *jobs_thread(void *arg)
{
	struct rig *r = arg;

	loop_call(r->loops[0].loop, run_jobs, r);
	return NULL;
}

static void *open_thread(void *arg)
{
	struct rig *r = arg;

	assert_int_equal(loop_call(r->loops[0].loop, open_node, r), -EIO);
	return NULL;
}

static int nothing(void *arg)
{
	return 0;
}

/* What waits in a connection that is closed is closed with it: by no loop. */
static void v38_gifts_hold_nobody_up(void **state)
{
	for (unsigned at_open = 0; at_open < 2; at_open++) {
		struct rig r = { .expect = -EIO, .be.refuses_memory = at_open };
		pthread_t thread;
		int peer;

		rig_start(&r, 15);
		r.ops = 6;
		r.be.gift = test_linger(&peer, 2 * PATIENCE_S);
		if (!at_open)
			rig_open(&r);
		assert_int_equal(pthread_create(&thread, NULL, at_open ? open_thread : jobs_thread,
						&r), 0);
		alarm(PATIENCE_S);
		while (r.be.gift)
			usleep(1000);
		usleep(100000);                 /* it is in the socket that is closed */
		loop_call(r.loops[0].loop, nothing, NULL);
		alarm(0);
		close(peer);
		pthread_join(thread, NULL);
		rig_stop(&r);
	}
}

static void v38_memory_stays(void **state)
{
	struct rig r = { 0 };
	const struct vfe_node *vn;

	rig_start(&r, 13);
	rig_open(&r);
	vn = container_of(r.node, struct vfe_node, node);
	assert_int_equal(ftruncate(vn->mem.fd, 0), -1);
	assert_int_equal(errno, EPERM);
	rig_stop(&r);
}

/* Requests one after the other, each of them answered as soon as it is in the ring. */
struct chain {
	struct req req;
	struct chan *ch;
	struct dev dev;
	struct fiber *waiter;
	struct task turn_task;
	unsigned done, turns;
	bool is_counting;
};

enum { CHAIN = 20000 };

static void chain_next(struct chain *c)
{
	struct dev_req q;

	chan_submit(c->ch, &c->req);
	assert_true(dev_pop(&c->dev, &q));
	*(uint8_t *)dev_at(&c->dev, q.segs[q.n - 1].addr) = VIRTIO_BLK_S_OK;
	dev_push(&c->dev, &q, 1);
}

static void chain_done(struct req *req, int res)
{
	struct chain *c = container_of(req, struct chain, req);

	assert_int_equal(res, 0);
	if (++c->done < CHAIN)
		chain_next(c);
	else
		fiber_wake(c->waiter);
}

static void count_turn(struct task *t)
{
	struct chain *c = container_of(t, struct chain, turn_task);

	c->turns++;
	c->is_counting = c->done < CHAIN;
	if (c->is_counting)
		loop_at_turn_end(c->ch->loop, t);
}

static int run_chain(void *arg)
{
	struct rig *r = arg;
	struct chain c = { .req = { .kind = REQ_FLUSH, .done = chain_done },
			   .turn_task.fn = count_turn, .is_counting = true,
			   .waiter = fiber_self() };
	const struct vfe_node *vn = container_of(r->node, struct vfe_node, node);
	const struct vfe_chan *vc;

	assert_int_equal(chan_get_wait(r->node, &c.ch, &r->err), 0);
	vc = container_of(c.ch, struct vfe_chan, chan);
	c.dev = dev_on(&vc->q->ring, vn->mem.map, VFE_MEM_GUEST);
	loop_at_turn_end(c.ch->loop, &c.turn_task);
	chain_next(&c);
	vfe_signal(vc->q->call);
	while (c.done < CHAIN)
		fiber_park();
	while (c.is_counting)
		fiber_yield_wait();
	assert_true(c.turns >= CHAIN / VFE_QUEUE_SIZE_DEFAULT);
	chan_put_wait(c.ch);
	return 0;
}

/* Others have the loop meanwhile. */
static void v38_answers_without_end_leave_turns_to_others(void **state)
{
	struct rig r = { .be.is_silent = true, .opts.want.packed = true };

	for (unsigned poll = 0; poll < 2; poll++) {
		r.opts.poll = poll;
		rig_start(&r, 14);
		rig_open(&r);
		loop_call(r.loops[0].loop, run_chain, &r);
		rig_stop(&r);
		r = (struct rig){ .be.is_silent = true, .opts.want.packed = true };
	}
}

static void *dribble(void *arg)
{
	int sock = *(int *)arg;
	struct vhost_user_header h = {
		VHOST_USER_GET_FEATURES, VHOST_USER_VERSION | VHOST_USER_REPLY,
		VHOST_USER_PAYLOAD_MAX,
	};

	assert_int_equal(send(sock, &h, sizeof(h), 0), sizeof(h));
	while (send(sock, &h, 1, MSG_NOSIGNAL) == 1)
		usleep(20000);
	return NULL;
}

static void v38_a_reply_in_bits_is_not_waited_for(void **state)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);
	struct timeval tv = { .tv_usec = 300000 };
	pthread_t thread;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)), 0);
	assert_int_equal(pthread_create(&thread, NULL, dribble, &sv[1]), 0);
	assert_int_equal(vfe_msg_ask(sv[0], &m, sizeof(m.u64), NULL), -ETIMEDOUT);
	close(sv[0]);
	pthread_join(thread, NULL);
	close(sv[1]);
}

/* ---- messages ---- */

static void send_raw(int sock, uint32_t request, uint32_t flags, uint32_t size, uint32_t sent,
		     bool with_fd)
{
	struct vhost_user_msg m = { .head = { request, flags, size } };
	struct iovec iov = { &m, VHOST_USER_HEADER_SIZE + sent };
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (with_fd) {
		struct cmsghdr *c = (void *)control;
		int fd = 0;

		*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
				       .cmsg_len = CMSG_LEN(sizeof(fd)) };
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
		mh.msg_control = control;
		mh.msg_controllen = sizeof(control);
	}
	assert_true(sendmsg(sock, &mh, 0) > 0);
}

static void v34_only_a_reply_is_taken_as_one(void **state)
{
	enum { REQ = VHOST_USER_GET_FEATURES, OK = VHOST_USER_VERSION | VHOST_USER_REPLY };
	static const struct {
		uint32_t request, flags, size, sent;
		bool with_fd;
		int rc;
	} cases[] = {
		{ REQ, OK, 8, 8, false, 0 },
		{ REQ, OK, 8, 8, true, -EPROTO },
		{ REQ, OK, 4, 4, false, -EPROTO },
		{ REQ, OK, 0, 0, true, -EPROTO },
		{ REQ + 1, OK, 8, 8, false, -EPROTO },
		{ REQ, VHOST_USER_VERSION, 8, 8, false, -EPROTO },
		{ REQ, VHOST_USER_REPLY, 8, 8, false, -EPROTO },
		{ REQ, VHOST_USER_REPLY | 2, 8, 8, false, -EPROTO },
		{ REQ, OK, VHOST_USER_PAYLOAD_MAX, VHOST_USER_PAYLOAD_MAX, false, 0 },
		{ REQ, OK, VHOST_USER_PAYLOAD_MAX + 1, 8, false, -EPROTO },
		{ REQ, OK, UINT32_MAX, 8, false, -EPROTO },
		{ REQ, OK, 8, 7, false, -ECONNRESET },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);
		int sv[2], first, last;

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		first = dup(0);
		send_raw(sv[1], cases[i].request, cases[i].flags, cases[i].size, cases[i].sent,
			 cases[i].with_fd);
		shutdown(sv[1], SHUT_WR);
		assert_int_equal(vfe_msg_ask(sv[0], &m, sizeof(m.u64), NULL), cases[i].rc);
		last = dup(0);
		assert_int_equal(last, first + 1);      /* what came along is closed */
		close(first);
		close(last);
		close(sv[0]);
		close(sv[1]);
	}
}

/* ---- names ---- */

static void names_say_what_is_wanted(void **state)
{
	static const char *const wrong[] = {
		"", ",packed=on", "s,", "s,packed", "s,packed=1", "s,queues=0", "s,queues=x",
		"s,queue-size=100", "s,queue-size=2048", "s,queues=-1", "s,foo=on", "s,reconnect=",
		"s,packed=on,", "s,queues=4294967297",
	};
	struct vfe_opts o;
	struct err err;

	assert_int_equal(vfe_opts_parse("/a,,b,packed=on,queues=3,queue-size=64,event-idx=off,"
					"indirect=off,inflight=off,poll=on,reconnect=7", &o, &err),
			 0);
	assert_string_equal(o.path, "/a,b");
	assert_true(o.want.packed && o.want.no_event_idx && o.want.no_indirect);
	assert_true(o.want.no_inflight && o.want.queues == 3 && o.want.queue_size == 64);
	assert_true(o.poll);
	assert_int_equal(o.reconnect_ms, 7000);
	vfe_opts_fini(&o);
	assert_int_equal(vfe_opts_parse("x", &o, &err), 0);
	assert_string_equal(o.path, "x");
	assert_false(o.want.packed || o.want.no_indirect || o.poll || o.reconnect_ms);
	vfe_opts_fini(&o);
	for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++)
		assert_int_equal(vfe_opts_parse(wrong[i], &o, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_layout_carries_every_request),
		cmocka_unit_test(who_polls_is_not_called),
		cmocka_unit_test(what_the_back_end_lacks_is_done_without),
		cmocka_unit_test(a_loop_has_a_queue_of_its_own),
		cmocka_unit_test(more_loops_than_queues_are_refused),
		cmocka_unit_test(v35_v36_v37_nothing_is_lost_with_connections),
		cmocka_unit_test(v35_another_disk_is_not_taken),
		cmocka_unit_test(v36_a_liar_fails_requests_once),
		cmocka_unit_test(v36_a_lost_connection_fails_requests_once),
		cmocka_unit_test(v38_full_counters_hold_nobody_up),
		cmocka_unit_test(v38_gifts_hold_nobody_up),
		cmocka_unit_test(v38_memory_stays),
		cmocka_unit_test(v38_answers_without_end_leave_turns_to_others),
		cmocka_unit_test(v38_a_reply_in_bits_is_not_waited_for),
		cmocka_unit_test(v34_only_a_reply_is_taken_as_one),
		cmocka_unit_test(names_say_what_is_wanted),
	};

	log_set_sink(quiet);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
