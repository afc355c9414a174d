/* SPDX-License-Identifier: MIT */
#include "export/vub/test_host.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "drv/vub/vfe_msg.h"
#include "loop/work.h"

enum { PAGE = 4096 };

/* ---- the disk ---- */

struct mem_chan {
	struct chan chan;
	struct req *held, **held_tail;
	uint64_t turn, turn_bytes;
};

static struct host_disk *disk_of(const struct chan *ch)
{
	return container_of(ch->node, struct host_disk, node);
}

static int perform(struct host_disk *d, struct req *req)
{
	int fail = atomic_load(&d->fail_errno);

	if (fail && req->kind != REQ_READ)
		return -fail;
	if (req->flags & REQ_FUA)
		atomic_fetch_add(&d->fuas, 1);
	pthread_mutex_lock(&d->lock);
	switch (req->kind) {
	case REQ_READ:                          /* where it fails, half of it has come */
		req_copy_to(req, 0, d->data + req->off, fail ? req->len / 2 : req->len);
		break;
	case REQ_WRITE:
		atomic_fetch_add(&d->writes, 1);
		req_copy_from(req, 0, d->data + req->off, req->len);
		break;
	case REQ_ZERO:
		atomic_fetch_add(&d->zeros, 1);
		memset(d->data + req->off, 0, req->len);
		break;
	case REQ_DISCARD:
		atomic_fetch_add(&d->discards, 1);
		break;
	case REQ_FLUSH:
		atomic_fetch_add(&d->flushes, 1);
	}
	pthread_mutex_unlock(&d->lock);
	return -fail;
}

static void raise_to(_Atomic uint64_t *most, uint64_t n)
{
	uint64_t before = atomic_load(most);

	while (n > before && !atomic_compare_exchange_weak(most, &before, n))
		;
}

static void measure(struct mem_chan *mc, const struct req *req)
{
	struct host_disk *d = disk_of(&mc->chan);
	struct loop_stats stats;

	loop_get_stats(mc->chan.loop, &stats);
	if (stats.turns != mc->turn)
		mc->turn_bytes = 0;
	mc->turn = stats.turns;
	mc->turn_bytes += req->len;
	raise_to(&d->longest, req->len);
	raise_to(&d->most_a_turn, mc->turn_bytes);
}

static void submit(struct chan *ch, struct req *req)
{
	struct mem_chan *mc = container_of(ch, struct mem_chan, chan);

	measure(mc, req);
	if (atomic_load(&disk_of(ch)->is_holding)) {
		req->next = NULL;
		*mc->held_tail = req;
		mc->held_tail = &req->next;
		atomic_fetch_add(&disk_of(ch)->held, 1);
		return;
	}
	req_finish(ch, req, perform(disk_of(ch), req));
}

static int chan_open_wait(struct chan *ch, struct err *err)
{
	struct mem_chan *mc = container_of(ch, struct mem_chan, chan);

	mc->held_tail = &mc->held;
	return 0;
}

static void disk_free(struct node *n)
{
	struct host_disk *d = container_of(n, struct host_disk, node);

	pthread_mutex_destroy(&d->lock);
	free(d->data);
}

static const struct node_ops mem_ops = {
	.name = "mem",
	.chan_size = sizeof(struct mem_chan),
	.chan_open_wait = chan_open_wait,
	.submit = submit,
	.free = disk_free,
};

static int open_disk_wait(void *arg)
{
	struct host *h = arg;
	struct host_disk *d = &h->disk;

	d->data = calloc(1, HOST_DISK);
	assert_non_null(d->data);
	pthread_mutex_init(&d->lock, NULL);
	assert_int_equal(node_init(&d->node, &mem_ops, "mem", h->loops[0]), 0);
	d->node.align = 4096;
	d->node.can_discard = true;
	atomic_store(&d->node.size, HOST_DISK);
	assert_int_equal(node_open_home_wait(&d->node, NULL), 0);
	assert_int_equal(port_new(&d->node, false, &h->port, NULL), 0);
	return 0;
}

static int open_port_wait(void *arg)
{
	return port_open_wait(arg, NULL);
}

static int close_port_wait(void *arg)
{
	port_close_wait(arg);
	return 0;
}

static int close_disk_wait(void *arg)
{
	struct host *h = arg;

	port_free(h->port);
	node_put_wait(&h->disk.node);
	return 0;
}

static int release_here(void *arg)
{
	struct host *h = arg;
	struct chan *ch = port_here(h->port)->ch;
	struct mem_chan *mc = container_of(ch, struct mem_chan, chan);
	struct req *req = mc->held;

	mc->held = NULL;
	mc->held_tail = &mc->held;
	while (req) {
		struct req *next = req->next;

		atomic_fetch_sub(&h->disk.held, 1);
		req_finish(ch, req, perform(&h->disk, req));
		req = next;
	}
	return 0;
}

uint8_t host_byte(struct host *h, uint64_t off)
{
	uint8_t byte;

	pthread_mutex_lock(&h->disk.lock);
	byte = h->disk.data[off];
	pthread_mutex_unlock(&h->disk.lock);
	return byte;
}

void host_release(struct host *h)
{
	atomic_store(&h->disk.is_holding, false);
	for (unsigned i = 0; i < HOST_LOOPS; i++)
		loop_call(h->loops[i], release_here, h);
}

static void *release_thread(void *arg)
{
	usleep(100000);
	host_release(arg);
	return NULL;
}

void host_release_later(struct host *h, pthread_t *ret)
{
	assert_int_equal(pthread_create(ret, NULL, release_thread, h), 0);
}

/* ---- the device ---- */

static int listen_at(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	unlink(path);
	assert_true(fd >= 0 && !bind(fd, (struct sockaddr *)&sa, sizeof(sa)) && !listen(fd, 4));
	return fd;
}

static int start_vub_wait(void *arg)
{
	struct err err = { 0 };

	assert_int_equal(vub_start_wait(arg, &err), 0);
	return 0;
}

static int stop_vub_wait(void *arg)
{
	vub_stop_wait(arg);
	return 0;
}

static void start_device(struct host *h, const struct vub_opts *opts)
{
	struct vub_opts vo = opts ? *opts : (struct vub_opts){ .queues = 2 };

	vo.loops = h->loops;
	vo.nloops = HOST_LOOPS;
	vo.port = h->port;
	vo.name = "a disk with a long name";
	vo.listen_fd = h->listen_fd;
	assert_int_equal(vub_new(&vo, &h->vub, NULL), 0);
	loop_call(vub_loop(h->vub), start_vub_wait, h->vub);
}

static void stop_device(struct host *h)
{
	loop_call(vub_loop(h->vub), stop_vub_wait, h->vub);
	vub_free(h->vub);
}

static void drop_line(enum log_level level, const char *line)
{
}

void host_start(struct host *h, const struct vub_opts *opts)
{
	struct err err = { 0 };

	*h = (struct host){ 0 };
	log_set_sink(drop_line);
	assert_int_equal(workers_new(0, &h->workers, &err), 0);
	for (unsigned i = 0; i < HOST_LOOPS; i++) {
		struct loop_opts lo = { .workers = h->workers, .iobuf_budget = 1 << 20 };

		assert_int_equal(loop_new(&lo, &h->loops[i], &err), 0);
		assert_int_equal(loop_thread_start(&h->threads[i], h->loops[i], "loop", &err), 0);
	}
	loop_call(h->loops[0], open_disk_wait, h);
	for (unsigned i = 0; i < HOST_LOOPS; i++)
		assert_int_equal(loop_call(h->loops[i], open_port_wait, h->port), 0);
	snprintf(h->path, sizeof(h->path), "/tmp/vub-test-%d.sock", (int)getpid());
	h->listen_fd = listen_at(h->path);
	start_device(h, opts);
}

void host_restart(struct host *h)
{
	stop_device(h);
	start_device(h, NULL);
}

void host_stop(struct host *h)
{
	stop_device(h);
	close(h->listen_fd);
	unlink(h->path);
	for (unsigned i = 0; i < HOST_LOOPS; i++)
		loop_call(h->loops[i], close_port_wait, h->port);
	loop_call(h->loops[0], close_disk_wait, h);
	for (unsigned i = 0; i < HOST_LOOPS; i++)
		loop_thread_stop(&h->threads[i]);
	workers_free(h->workers);
	log_set_sink(NULL);
}

uint64_t host_broken(const struct host *h)
{
	struct vub_stats st;

	vub_get_stats(h->vub, &st);
	return st.broken;
}

void host_await_broken(const struct host *h, uint64_t n)
{
	for (unsigned i = 0; i < HOST_PATIENCE_MS && host_broken(h) < n; i++)
		usleep(1000);
	assert_int_equal(host_broken(h), n);
}

/* ---- the guest ---- */

void guest_set_up(struct guest *g)
{
	struct err err = { 0 };

	assert_int_equal(vfe_link_set_features(&g->link, &err), 0);
	assert_int_equal(vfe_link_set_memory(&g->link, &g->mem, &err), 0);
	for (unsigned i = 0; i < g->link.nqueues; i++)
		assert_int_equal(vfe_link_set_queue(&g->link, i, &g->queues[i], &err), 0);
}

void guest_start(struct guest *g, const struct host *h, const struct vfe_want *want)
{
	struct err err = { 0 };

	*g = (struct guest){ .link = VFE_LINK_NONE };
	g->want = want ? *want : (struct vfe_want){ 0 };
	g->want.queue_size = RING_SIZE;
	g->want.timeout_ms = HOST_PATIENCE_MS;
	assert_int_equal(vfe_mem_init(&g->mem, GUEST_MEMORY), 0);
	assert_int_equal(vfe_link_open(&g->link, h->path, &g->want, &err), 0);
	for (unsigned i = 0; i < g->link.nqueues; i++)
		assert_int_equal(vfe_queue_init(&g->queues[i], &g->link,
						g->mem.map + i * GUEST_RING), 0);
	guest_set_up(g);
}

void guest_stop(struct guest *g)
{
	for (unsigned i = 0; i < HOST_LOOPS; i++)
		vfe_queue_fini(&g->queues[i]);
	vfe_link_close(&g->link);
	vfe_mem_fini(&g->mem);
}

void guest_lay_out(struct guest *g, unsigned queue)
{
	struct vfe_ring *r = &g->queues[queue].ring;
	char *at = g->mem.map + queue * GUEST_RING;

	if (r->is_packed) {
		r->packed.desc = (void *)at;
		r->packed.driver = (void *)(at + PAGE);
		r->packed.device = (void *)(at + GUEST_EVENT);
		return;
	}
	vring_init(&r->split, r->size, at, sizeof(struct vring_desc));
	/* Of a split one it is the last of the used ring. */
	r->split.used = (void *)(at + GUEST_EVENT - offsetof(struct vring_used, ring[RING_SIZE]));
}

uint64_t guest_page(const struct guest_ask *a)
{
	return GUEST_PAGES + (a->queue * RING_SIZE + a->token) * (uint64_t)PAGE;
}

enum { STATUS_AT = 512, TABLE_AT = 1024 };

static unsigned fill_segs(const struct guest *g, const struct guest_ask *a, struct vfe_seg *segs)
{
	bool is_in = a->type == VIRTIO_BLK_T_IN || a->type == VIRTIO_BLK_T_GET_ID;
	uint64_t page = guest_page(a), at = a->at;
	uint32_t left = a->len, part = a->is_scattered && left > 600 ? left / 3 : left;
	unsigned n = 0;

	if (a->is_scattered) {
		segs[n++] = (struct vfe_seg){ guest_addr(g, page), 5, false };
		segs[n++] = (struct vfe_seg){ guest_addr(g, page + 5), 11, false };
	} else {
		segs[n++] = (struct vfe_seg){ guest_addr(g, page), 16, false };
	}
	while (left) {
		uint32_t len = MIN(part, left);

		segs[n++] = (struct vfe_seg){ guest_addr(g, at), len, is_in };
		at += len;
		left -= len;
	}
	for (unsigned i = 0; i < a->more; i++)
		segs[n++] = (struct vfe_seg){ guest_addr(g, a->at), a->len, is_in };
	segs[n++] = (struct vfe_seg){ guest_addr(g, page + STATUS_AT), 1, true };
	return n;
}

void guest_put(struct guest *g, const struct guest_ask *a)
{
	struct virtio_blk_outhdr *head = (void *)(g->mem.map + guest_page(a));
	struct vfe_table table = { g->mem.map + guest_page(a) + TABLE_AT,
				   guest_addr(g, guest_page(a) + TABLE_AT) };
	struct vfe_seg segs[16];
	unsigned n = fill_segs(g, a, segs);

	*head = (struct virtio_blk_outhdr){ .type = a->type, .sector = a->sector };
	g->mem.map[guest_page(a) + STATUS_AT] = (char)0xee;
	if (!a->is_indirect)
		table.at = NULL;
	assert_int_equal(vfe_ring_add(&g->queues[a->queue].ring, segs, n, &table, a->token), 0);
}

void guest_kick(struct guest *g, unsigned queue)
{
	vfe_ring_publish(&g->queues[queue].ring);
	vfe_signal(g->queues[queue].kick);
}

bool guest_has_answer(struct guest *g, unsigned queue)
{
	return vfe_ring_arm(&g->queues[queue].ring);
}

uint16_t guest_take(struct guest *g, unsigned queue, uint8_t *ret)
{
	struct vfe_queue *q = &g->queues[queue];
	struct guest_ask a = { .queue = queue };
	uint32_t len;
	int rc;

	while (!(rc = vfe_ring_take(&q->ring, &a.token, &len))) {
		struct pollfd p = { .fd = q->call, .events = POLLIN };
		eventfd_t count;

		if (vfe_ring_arm(&q->ring))
			continue;
		assert_int_equal(poll(&p, 1, HOST_PATIENCE_MS), 1);
		eventfd_read(q->call, &count);
	}
	assert_int_equal(rc, 1);
	*ret = (uint8_t)g->mem.map[guest_page(&a) + STATUS_AT];
	return a.token;
}

uint8_t guest_do(struct guest *g, const struct guest_ask *a)
{
	uint8_t status;

	guest_put(g, a);
	guest_kick(g, a->queue);
	assert_int_equal(guest_take(g, a->queue, &status), a->token);
	return status;
}

/* ---- other front ends ---- */

bool peer_is_closed(int sock)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	char c;

	return poll(&p, 1, HOST_PATIENCE_MS) == 1 && recv(sock, &c, 1, MSG_DONTWAIT) <= 0;
}

void peer_choose_answers(int sock)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_PROTOCOL_FEATURES, 8);

	m.u64 = 1ULL << VHOST_USER_PROTOCOL_F_BACKEND_REQ | 1ULL << VHOST_USER_PROTOCOL_F_REPLY_ACK;
	assert_int_equal(vfe_msg_tell(sock, &m, NULL, 0, false), 0);
}
