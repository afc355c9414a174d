/* SPDX-License-Identifier: MIT */
#include "drv/vub/test_backend.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bits.h"
#include "drv/vub/vfe_msg.h"

#define BIT(n) (1ULL << (n))

enum { SECTOR = 512 };

static const uint64_t features_all = BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_FLUSH) |
	BIT(VIRTIO_BLK_F_MQ) | BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
	BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_RING_F_EVENT_IDX) |
	BIT(VHOST_USER_F_PROTOCOL_FEATURES) | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_RING_PACKED);
static const uint64_t protocol_all = BIT(VHOST_USER_PROTOCOL_F_MQ) |
	BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) | BIT(VHOST_USER_PROTOCOL_F_CONFIG) |
	BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);

/* ---- messages ---- */

static void set_memory(struct backend *b, const struct vhost_user_msg *m, int fd)
{
	assert(m->table.nregions == 1 && fd >= 0);
	if (b->map)
		munmap(b->map, b->region.size);
	b->region = m->table.regions[0];
	b->map = mmap(NULL, b->region.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert(b->map != MAP_FAILED);
	close(fd);
}

static void *user_at(const struct backend *b, uint64_t addr)
{
	return b->map + (addr - b->region.user_addr);
}

static void set_addr(struct backend *b, const struct vhost_user_msg *m)
{
	struct vhost_user_vring_addr addr = m->addr, *a = &addr;
	struct backend_queue *q = &b->queues[a->index];
	struct dev *d = &q->dev;
	bool is_packed = b->chosen >> VIRTIO_F_RING_PACKED & 1;

	d->desc = user_at(b, a->descriptor);
	d->driver = user_at(b, a->available);
	d->device = user_at(b, a->used);
	d->size = q->size;
	d->is_packed = is_packed;
	d->has_event_idx = b->chosen >> VIRTIO_RING_F_EVENT_IDX & 1;
	d->base = b->map;
	d->base_addr = b->region.guest_addr;
	if (q->nheld || (b->has_area && b->connections > 1))
		return;                 /* it goes on where it was */
	d->avail = (uint16_t)(q->base & (is_packed ? 0x7fff : 0xffff));
	d->avail_wrap = q->base >> 15 & 1;
	d->used = is_packed ? q->base >> 16 & 0x7fff : d->avail;
	d->used_wrap = q->base >> 31;
	d->told = is_packed ? 0 : d->used;
}

static void reply(struct backend *b, struct vhost_user_msg *m, const int *fd)
{
	m->head.flags = VHOST_USER_VERSION | VHOST_USER_REPLY;
	vfe_msg_send(b->sock, m, fd, fd ? 1 : 0);
}

static void reply_u64(struct backend *b, struct vhost_user_msg *m, uint64_t v)
{
	m->head.size = sizeof(m->u64);
	m->u64 = v;
	reply(b, m, NULL);
}

static void get_config(struct backend *b, struct vhost_user_msg *m)
{
	struct virtio_blk_config c = {
		.capacity = BACKEND_DISK / SECTOR, .seg_max = 16, .num_queues = BACKEND_QUEUES,
		.max_discard_sectors = 100, .max_discard_seg = 1,
		.max_write_zeroes_sectors = 70, .max_write_zeroes_seg = 1,
	};

	memcpy(m->config.data, &c, MIN((size_t)m->config.size, sizeof(c)));
	reply(b, m, NULL);
}

static void get_inflight(struct backend *b, struct vhost_user_msg *m)
{
	if (b->area >= 0)
		close(b->area);
	b->area = memfd_create("area", MFD_CLOEXEC);
	assert(b->area >= 0 && !ftruncate(b->area, 4096));
	b->has_area = true;
	m->inflight.mmap_size = 4096;
	reply(b, m, &b->area);
}

static void set_inflight(struct backend *b, int fd)
{
	struct stat ours, theirs;

	assert(fd >= 0 && !fstat(b->area, &ours) && !fstat(fd, &theirs));
	if (ours.st_ino != theirs.st_ino)
		b->strangers++;
	close(fd);
}

static void set_fd(int *where, int fd)
{
	if (*where >= 0)
		close(*where);
	*where = fd;
}

/* True: it has had its reply. */
static bool take_message(struct backend *b, struct vhost_user_msg *m, int fd)
{
	struct backend_queue *q = &b->queues[m->state.index % BACKEND_QUEUES];

	switch (m->head.request) {
	case VHOST_USER_GET_FEATURES:
		reply_u64(b, m, b->features);
		return true;
	case VHOST_USER_GET_PROTOCOL_FEATURES:
		reply_u64(b, m, b->protocol);
		return true;
	case VHOST_USER_GET_QUEUE_NUM:
		reply_u64(b, m, BACKEND_QUEUES);
		return true;
	case VHOST_USER_GET_CONFIG:
		get_config(b, m);
		return true;
	case VHOST_USER_GET_INFLIGHT_FD:
		get_inflight(b, m);
		return true;
	case VHOST_USER_GET_VRING_BASE:
		q->is_enabled = false;
		reply(b, m, NULL);
		return true;
	case VHOST_USER_SET_FEATURES:
		b->chosen = m->u64;
		break;
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		b->spoken = m->u64;
		break;
	case VHOST_USER_SET_INFLIGHT_FD:
		set_inflight(b, fd);
		break;
	case VHOST_USER_SET_MEM_TABLE:
		set_memory(b, m, fd);
		break;
	case VHOST_USER_SET_VRING_NUM:
		q->size = m->state.num;
		break;
	case VHOST_USER_SET_VRING_BASE:
		q->base = m->state.num;
		break;
	case VHOST_USER_SET_VRING_ADDR:
		set_addr(b, m);
		break;
	case VHOST_USER_SET_VRING_CALL:
		set_fd(&b->queues[m->u64 % BACKEND_QUEUES].call, fd);
		break;
	case VHOST_USER_SET_VRING_KICK:
		set_fd(&b->queues[m->u64 % BACKEND_QUEUES].kick, fd);
		break;
	case VHOST_USER_SET_VRING_ENABLE:
		q->is_enabled = m->state.num;
		break;
	default:
		break;
	}
	return false;
}

static int one_message(struct backend *b)
{
	struct vhost_user_msg m;
	int fd, rc = vfe_msg_recv(b->sock, &m, &fd);
	bool wants_ack, refuses;

	if (rc)
		return rc;
	wants_ack = m.head.flags & VHOST_USER_NEED_REPLY;
	refuses = b->refuses_memory && m.head.request == VHOST_USER_SET_MEM_TABLE;
	if (!take_message(b, &m, fd) && wants_ack)
		reply_u64(b, &m, refuses);
	return refuses ? -EPERM : 0;
}

/* ---- requests ---- */

static uint32_t move_data(struct backend *b, const struct dev_req *q, uint64_t at, bool is_in)
{
	uint32_t moved = 0;

	for (unsigned i = 1; i + 1 < q->n; i++) {
		char *mem = dev_at(&b->queues[0].dev, q->segs[i].addr);

		assert(range_within(at, q->segs[i].len, BACKEND_DISK));
		assert(q->segs[i].is_in == is_in);
		if (is_in)
			memcpy(mem, b->disk + at, q->segs[i].len);
		else
			memcpy(b->disk + at, mem, q->segs[i].len);
		at += q->segs[i].len;
		moved += q->segs[i].len;
	}
	return moved;
}

static void run_range(struct backend *b, const struct dev_req *q, uint32_t sectors_max)
{
	struct virtio_blk_discard_write_zeroes *r = dev_at(&b->queues[0].dev, q->segs[1].addr);

	assert(q->n == 3 && q->segs[1].len == sizeof(*r) && r->num_sectors <= sectors_max);
	assert(range_within(r->sector * SECTOR, (uint64_t)r->num_sectors * SECTOR, BACKEND_DISK));
	memset(b->disk + r->sector * SECTOR, 0, (size_t)r->num_sectors * SECTOR);
}

static uint32_t run_request(struct backend *b, const struct dev_req *q)
{
	struct virtio_blk_outhdr *h = dev_at(&b->queues[0].dev, q->segs[0].addr);
	uint8_t *status = dev_at(&b->queues[0].dev, q->segs[q->n - 1].addr);
	uint32_t len = 1;

	assert(q->n >= 2 && q->segs[0].len == sizeof(*h) && !q->segs[0].is_in);
	assert(q->segs[q->n - 1].len == 1 && q->segs[q->n - 1].is_in);
	switch (h->type) {
	case VIRTIO_BLK_T_IN:
		len += move_data(b, q, h->sector * SECTOR, true);
		break;
	case VIRTIO_BLK_T_OUT:
		move_data(b, q, h->sector * SECTOR, false);
		break;
	case VIRTIO_BLK_T_DISCARD:
		run_range(b, q, 100);
		break;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		run_range(b, q, 70);
		break;
	default:
		assert(h->type == VIRTIO_BLK_T_FLUSH);
	}
	*status = VIRTIO_BLK_S_OK;
	return len;
}

static void call(struct backend *b, struct backend_queue *q)
{
	if (!dev_must_call(&q->dev))
		return;
	b->calls++;
	if (b->fills_counters)
		return;                 /* that calls, too */
	if (eventfd_write(q->call, 1))
		return;                 /* full: it is told already */
}

/* Takes some, answers some. True: the end of this connection has come. */
static bool work(struct backend *b, struct backend_queue *q)
{
	bool is_armed = false;

	while (q->nheld < BACKEND_HELD_MAX) {
		if (!dev_pop(&q->dev, &q->held[q->nheld])) {
			if (is_armed)
				break;
			dev_arm(&q->dev);       /* then look again: it was not kicked yet */
			is_armed = true;
			continue;
		}
		is_armed = false;
		q->nheld++;
		b->requests++;
		if (b->die_after && !b->until_death--) {
			run_request(b, &q->held[0]);    /* done, and nobody is told */
			return true;
		}
	}
	while (q->nheld && prng_below(&b->prng, 8)) {
		unsigned i = (unsigned)prng_below(&b->prng, q->nheld);
		uint32_t len = run_request(b, &q->held[i]);

		if (b->lies)
			q->held[i].id = (uint16_t)(q->held[i].id + 77);
		dev_push(&q->dev, &q->held[i], len);
		q->held[i] = q->held[--q->nheld];
	}
	call(b, q);
	return false;
}

/* ---- a connection ---- */

static void disconnect(struct backend *b)
{
	close(b->sock);
	b->sock = -1;
	for (unsigned i = 0; i < BACKEND_QUEUES; i++) {
		struct backend_queue *q = &b->queues[i];

		set_fd(&q->kick, -1);
		set_fd(&q->call, -1);
		q->is_enabled = false;
		if (!b->has_area)
			q->nheld = 0;
	}
}

static bool is_busy(const struct backend *b)
{
	for (unsigned i = 0; i < BACKEND_QUEUES; i++)
		if (b->queues[i].is_enabled && b->queues[i].nheld)
			return true;
	return false;
}

/* Who writes to @fd waits from now on. */
static void fill(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	eventfd_t count;

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	eventfd_read(fd, &count);
	eventfd_write(fd, UINT64_MAX - 1);
	fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

static void fill_counters(struct backend *b)
{
	for (unsigned i = 0; i < BACKEND_QUEUES; i++)
		if (b->queues[i].kick >= 0 && b->queues[i].call >= 0) {
			fill(b->queues[i].kick);
			fill(b->queues[i].call);
		}
}

static void serve(struct backend *b)
{
	uint64_t count;

	b->until_death = b->die_after ? (unsigned)prng_below(&b->prng, 2 * b->die_after) : 0;
	for (;;) {
		struct pollfd p[2 + BACKEND_QUEUES] = {
			{ .fd = b->stop, .events = POLLIN }, { .fd = b->sock, .events = POLLIN },
		};
		for (unsigned i = 0; i < BACKEND_QUEUES; i++)
			p[2 + i] = (struct pollfd){ .fd = b->queues[i].kick, .events = POLLIN };
		if (b->fills_counters)
			fill_counters(b);
		poll(p, ARRAY_SIZE(p), is_busy(b) ? 0 : -1);
		if (p[0].revents || (p[1].revents && one_message(b)))
			return;
		for (unsigned i = 0; i < BACKEND_QUEUES; i++) {
			struct backend_queue *q = &b->queues[i];
			bool was_kicked = q->kick >= 0 && p[2 + i].revents;

			if (was_kicked && read(q->kick, &count, sizeof(count)) < 0)
				continue;
			if (was_kicked && b->gift)
				return;
			if (q->is_enabled && !b->is_silent && (was_kicked || q->nheld) &&
			    work(b, q))
				return;
		}
	}
}

/* Something that nobody has asked for. */
static void give(struct backend *b)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);
	int fd = b->gift;

	if (!fd)
		return;
	vfe_msg_send(b->sock, &m, &fd, 1);
	b->gift = 0;
	close(fd);                      /* it waits where the other side has hung up already */
}

static void *run(void *arg)
{
	struct backend *b = arg;

	for (;;) {
		struct pollfd p[2] = {
			{ .fd = b->stop, .events = POLLIN },
			{ .fd = b->listener, .events = POLLIN },
		};

		poll(p, 2, -1);
		if (p[0].revents)
			return NULL;
		b->sock = accept4(b->listener, NULL, NULL, SOCK_CLOEXEC);
		b->connections++;
		serve(b);
		give(b);
		disconnect(b);
	}
}

int backend_start(struct backend *b, uint64_t seed)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	static atomic_uint number;

	b->features = b->features ? b->features & features_all : features_all;
	b->protocol = b->protocol ? b->protocol & protocol_all : protocol_all;
	b->prng.state = seed;
	b->sock = b->area = -1;
	for (unsigned i = 0; i < BACKEND_QUEUES; i++)
		b->queues[i].kick = b->queues[i].call = -1;
	snprintf(b->path, sizeof(b->path), "/tmp/byre-backend.%d.%u", (int)getpid(), number++);
	strcpy(sa.sun_path, b->path);
	b->disk = calloc(1, BACKEND_DISK);
	b->stop = eventfd(0, EFD_CLOEXEC);
	b->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!b->disk || b->stop < 0 || b->listener < 0 ||
	    bind(b->listener, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
	    listen(b->listener, 8) < 0)
		return -errno;
	return -pthread_create(&b->thread, NULL, run, b);
}

void backend_stop(struct backend *b)
{
	eventfd_write(b->stop, 1);
	pthread_join(b->thread, NULL);
	if (b->map)
		munmap(b->map, b->region.size);
	if (b->area >= 0)
		close(b->area);
	close(b->stop);
	close(b->listener);
	unlink(b->path);
	free(b->disk);
}
