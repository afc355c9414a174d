/* SPDX-License-Identifier: MIT */
/* tests/vub/replay.c - says what other front ends say (exchanges.c) to a back end, with a guest
 * behind it that writes and reads.
 *
 *	replay SOCKET
 *
 * The guest's memory is two regions of one file, as where memory has a hole below 4 GiB. Every
 * reply is looked at. The first thing that is wrong ends it with status 1. */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "drv/vub/vfe_link.h"
#include "drv/vub/vfe_mem.h"
#include "drv/vub/vfe_msg.h"
#include "exchanges.h"

enum {
	QUEUES = 2, SLOTS = 8, TIMEOUT_MS = 120000,
	LOW_BYTES = 2 << 20, MEMORY = 4 << 20,
	RINGS = 64 << 10, SLOT_BYTES = 64 << 10, SLOTS_AT = 1 << 20,
};
#define HIGH (4ULL << 30)

struct replay {
	const char *path;
	const struct exchange *x;
	const struct step *step;        /* being said */
	int sock, backend_req;
	bool asks, asks_all;
	uint64_t features, protocol;    /* offered */
	struct vfe_mem mem;
	struct vfe_queue queues[QUEUES];
	uint32_t bases[QUEUES];
	int inflight_fd, log_fd;
	struct vhost_user_inflight inflight;
	uint64_t writes;
};

static void die(const struct replay *r, const char *what, int rc)
{
	fprintf(stderr, "replay: %s, step %d (%u): %s: %s\n", r->x->name,
		r->step ? (int)(r->step - r->x->steps) : -1, r->step ? r->step->say : 0, what,
		strerror(-rc));
	exit(1);
}

static uint64_t guest(const struct replay *r, const void *at)
{
	uint64_t off = (uint64_t)((const char *)at - r->mem.map);

	return off < LOW_BYTES ? off : HIGH + off - LOW_BYTES;
}

static uint64_t chosen(const struct replay *r)
{
	return r->features & (r->x->features | r->x->device_features);
}

static bool holds(const struct replay *r, enum condition when)
{
	static const int bits[] = {
		[IF_MQ] = VHOST_USER_PROTOCOL_F_MQ, [IF_CONFIG] = VHOST_USER_PROTOCOL_F_CONFIG,
		[IF_INFLIGHT] = VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
		[IF_SLOTS] = VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
		[IF_BACKEND_REQ] = VHOST_USER_PROTOCOL_F_BACKEND_REQ,
		[IF_LOG] = VHOST_USER_PROTOCOL_F_LOG_SHMFD,
	};

	if (when == ALWAYS)
		return true;
	if (when == IF_WCE)
		return chosen(r) >> VIRTIO_BLK_F_CONFIG_WCE & 1;
	if (when == IF_LOG && !(r->features >> VHOST_USER_F_LOG_ALL & 1))
		return false;
	return (r->protocol & r->x->protocol) >> bits[when] & 1;
}

/* ---- messages ---- */

/* With the reply that belongs to it, if any. */
static void tell(struct replay *r, struct vhost_user_msg *m, int fd)
{
	bool asks = r->asks && r->protocol >> VHOST_USER_PROTOCOL_F_REPLY_ACK & 1;
	int rc = vfe_msg_tell(r->sock, m, &fd, fd >= 0, asks);

	if (rc)
		die(r, "it is refused", rc);
}

static void ask(struct replay *r, struct vhost_user_msg *m, uint32_t size, int *ret_fd)
{
	uint32_t wants = m->head.request;
	int rc;

	if (r->asks_all)
		m->head.flags |= VHOST_USER_NEED_REPLY;
	rc = vfe_msg_ask(r->sock, m, size, ret_fd);
	if (rc)
		die(r, "the reply", rc);
	if (m->head.request != wants || m->head.size != size)
		die(r, "the reply's size", -EPROTO);
}

static uint64_t get_u64(struct replay *r, enum vhost_user_request request)
{
	struct vhost_user_msg m = vfe_msg(request, 0);

	ask(r, &m, sizeof(m.u64), NULL);
	return m.u64;
}

static void set_u64(struct replay *r, enum vhost_user_request request, uint64_t v, int fd)
{
	struct vhost_user_msg m = vfe_msg(request, sizeof(m.u64));

	m.u64 = v;
	tell(r, &m, fd);
}

static void set_state(struct replay *r, enum vhost_user_request request, unsigned q, uint32_t num)
{
	struct vhost_user_msg m = vfe_msg(request, sizeof(m.state));

	m.state = (struct vhost_user_vring_state){ q, num };
	tell(r, &m, -1);
}

static void set_memory(struct replay *r)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_MEM_TABLE,
					  offsetof(struct vhost_user_mem_table, regions[2]));
	int fds[2] = { r->mem.fd, r->mem.fd }, rc;
	bool asks = r->asks && r->protocol >> VHOST_USER_PROTOCOL_F_REPLY_ACK & 1;

	m.table.nregions = 2;
	m.table.regions[0] = (struct vhost_user_region){ 0, LOW_BYTES, (uintptr_t)r->mem.map, 0 };
	m.table.regions[1] = (struct vhost_user_region){
		HIGH, MEMORY - LOW_BYTES, (uintptr_t)r->mem.map + LOW_BYTES, LOW_BYTES,
	};
	rc = vfe_msg_tell(r->sock, &m, fds, 2, asks);
	if (rc)
		die(r, "memory", rc);
}

static void add_memory(struct replay *r)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_ADD_MEM_REG, sizeof(m.reg));
	int fd = memfd_create("plugged", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, 1 << 20))
		die(r, "a memfd", -errno);
	m.reg.region = (struct vhost_user_region){ 2 * HIGH, 1 << 20, 1ULL << 46, 0 };
	tell(r, &m, fd);
	close(fd);
}

static void set_addr(struct replay *r, unsigned q, uint32_t flags)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_ADDR, sizeof(m.addr));
	const void *parts[3];

	vfe_ring_parts(&r->queues[q].ring, parts);
	m.addr = (struct vhost_user_vring_addr){
		.index = q, .flags = flags, .descriptor = (uintptr_t)parts[0],
		.available = (uintptr_t)parts[1], .used = (uintptr_t)parts[2],
		.log = flags ? guest(r, parts[2]) : 0,
	};
	tell(r, &m, -1);
}

/* Cloud Hypervisor says where the driver is, crosvm where the back end stopped. */
static void set_base(struct replay *r, unsigned q)
{
	const struct vfe_ring *ring = &r->queues[q].ring;

	set_state(r, VHOST_USER_SET_VRING_BASE, q,
		  r->x->base_is_avail ? ring->split.avail->idx : r->bases[q]);
}

static void get_base(struct replay *r, unsigned q)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_VRING_BASE, sizeof(m.state));

	m.state.index = q;
	ask(r, &m, sizeof(m.state), NULL);
	if (m.state.num != r->queues[q].ring.used_idx)
		die(r, "the base is not where the ring was used up to", -EPROTO);
	r->bases[q] = m.state.num;
}

static void config(struct replay *r, enum vhost_user_request request, uint64_t at)
{
	uint32_t size = (uint32_t)at;
	struct vhost_user_msg m = vfe_msg(request, VHOST_USER_CONFIG_HEAD + size);

	m.config.offset = (uint32_t)(at >> 32);
	m.config.size = size;
	if (request == VHOST_USER_GET_CONFIG) {
		ask(r, &m, VHOST_USER_CONFIG_HEAD + size, NULL);
	} else {
		m.config.data[0] = 1;
		tell(r, &m, -1);
	}
}

static void get_inflight(struct replay *r, bool has_one)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_INFLIGHT_FD, r->x->inflight_size);

	if (has_one)
		return;
	m.inflight.num_queues = QUEUES;
	m.inflight.queue_size = (uint16_t)r->x->queue_size;
	ask(r, &m, r->x->inflight_size, &r->inflight_fd);
	if (r->inflight_fd < 0 || !m.inflight.mmap_size)
		die(r, "no area", -EPROTO);
	r->inflight = m.inflight;
}

static void set_inflight(struct replay *r)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_INFLIGHT_FD, r->x->inflight_size);

	m.inflight = r->inflight;
	tell(r, &m, r->inflight_fd);
}

/* The reply is no acknowledgement but the log's own. */
static void set_log(struct replay *r)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_LOG_BASE, sizeof(m.log));
	uint64_t pages = (HIGH + MEMORY) / VHOST_USER_LOG_PAGE;
	int rc;

	r->log_fd = memfd_create("log", MFD_CLOEXEC);
	m.log.size = align_up(pages / 8, 4096);
	if (r->log_fd < 0 || ftruncate(r->log_fd, (off_t)m.log.size))
		die(r, "a memfd", -errno);
	if (r->asks_all)
		m.head.flags |= VHOST_USER_NEED_REPLY;
	rc = vfe_msg_send(r->sock, &m, &r->log_fd, 1);
	if (!rc)
		rc = vfe_msg_recv(r->sock, &m, NULL);
	if (rc || m.head.request != VHOST_USER_SET_LOG_BASE || (m.head.size && m.u64))
		die(r, "the log", rc ? rc : -EPROTO);
}

static void set_backend_req(struct replay *r)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_BACKEND_REQ_FD, 0);
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		die(r, "a socket", -errno);
	tell(r, &m, sv[1]);
	close(sv[1]);
	r->backend_req = sv[0];
}

/* ---- the guest ---- */

static char *slot_at(const struct replay *r, unsigned q, unsigned i)
{
	return r->mem.map + SLOTS_AT + (q * SLOTS + i) * SLOT_BYTES;
}

static void add(struct replay *r, unsigned q, unsigned i, uint32_t type, uint64_t sector)
{
	char *at = slot_at(r, q, i);
	struct virtio_blk_outhdr *h = (void *)at;
	struct vfe_table none = { 0 };
	struct vfe_seg segs[3] = {
		{ guest(r, at), sizeof(*h), false },
		{ guest(r, at + 4096), 8192, type == VIRTIO_BLK_T_IN },
		{ guest(r, at + 64), 1, true },
	};

	*h = (struct virtio_blk_outhdr){ .type = type, .sector = sector };
	at[64] = (char)0xff;
	if (vfe_ring_add(&r->queues[q].ring, segs, 3, &none, (uint16_t)i))
		die(r, "the ring is full", -EAGAIN);
}

static void take_all(struct replay *r, unsigned q, unsigned n)
{
	struct vfe_queue *v = &r->queues[q];
	struct pollfd pfd = { .fd = v->call, .events = POLLIN };
	uint16_t token;
	uint32_t len;
	uint64_t count;

	while (n) {
		int rc = vfe_ring_take(&v->ring, &token, &len);

		if (rc < 0)
			die(r, "the used ring", rc);
		if (rc && slot_at(r, q, token)[64])
			die(r, "a request failed", -EIO);
		n -= (unsigned)rc;
		if (rc || vfe_ring_arm(&v->ring))
			continue;
		if (poll(&pfd, 1, TIMEOUT_MS) != 1)
			die(r, "no answer", -ETIMEDOUT);
		if (read(v->call, &count, sizeof(count)) < 0 && errno != EAGAIN)
			die(r, "the call", -errno);
	}
}

static uint64_t sector_of(unsigned q, unsigned i)
{
	return 64 + (q * SLOTS + i) * 16ULL;
}

/* What was written there last. */
static uint8_t pattern(const struct replay *r, unsigned q, unsigned i)
{
	return (uint8_t)(r->writes * 31 + q * SLOTS + i);
}

static void write_all(struct replay *r)
{
	r->writes++;
	for (unsigned q = 0; q < QUEUES; q++)
		for (unsigned i = 0; i < SLOTS; i++) {
			memset(slot_at(r, q, i) + 4096, pattern(r, q, i), 8192);
			add(r, q, i, VIRTIO_BLK_T_OUT, sector_of(q, i));
		}
}

static void show_all(struct replay *r, bool kick)
{
	for (unsigned q = 0; q < QUEUES; q++)
		if (vfe_ring_publish(&r->queues[q].ring) && kick)
			vfe_signal(r->queues[q].kick);
}

static void read_all(struct replay *r)
{
	for (unsigned q = 0; q < QUEUES; q++)
		for (unsigned i = 0; i < SLOTS; i++) {
			memset(slot_at(r, q, i) + 4096, 0, 8192);
			add(r, q, i, VIRTIO_BLK_T_IN, sector_of(q, i));
		}
	show_all(r, true);
	for (unsigned q = 0; q < QUEUES; q++)
		take_all(r, q, SLOTS);
	for (unsigned q = 0; q < QUEUES; q++)
		for (unsigned i = 0; i < SLOTS; i++) {
			const uint8_t *at = (const uint8_t *)slot_at(r, q, i) + 4096;

			for (unsigned k = 0; k < 8192; k++)
				if (at[k] != pattern(r, q, i))
					die(r, "what was written is not there", -EIO);
		}
}

static void guest_step(struct replay *r, enum pseudo what)
{
	if (what != TAKE_REQUESTS)
		write_all(r);
	show_all(r, what == REQUESTS);
	if (what == LEAVE_REQUESTS)
		return;
	/* Who sets rings up again kicks, as drivers that wake up do. */
	for (unsigned q = 0; q < QUEUES; q++) {
		if (what == TAKE_REQUESTS)
			vfe_signal(r->queues[q].kick);
		take_all(r, q, SLOTS);
	}
	read_all(r);
}

/* ---- steps ---- */

static void connect_step(struct replay *r)
{
	struct err err;

	if (r->sock >= 0)
		close(r->sock);
	r->asks = r->asks_all = false;
	if (vfe_msg_connect(r->path, TIMEOUT_MS, &r->sock, &err))
		die(r, err.text, -err.code);
}

static void set_features(struct replay *r, uint64_t arg)
{
	uint64_t f = chosen(r) | arg;

	if (arg == UINT64_MAX)
		f = 1ULL << VHOST_USER_F_PROTOCOL_FEATURES;
	set_u64(r, VHOST_USER_SET_FEATURES, f, -1);
}

static void device_step(struct replay *r, const struct step *s)
{
	struct vhost_user_msg m;

	switch (s->say) {
	case CONNECT:
		connect_step(r);
		break;
	case ASK_REPLIES:
		r->asks = true;
		r->asks_all = s->arg;
		break;
	case VHOST_USER_SET_OWNER:
		m = vfe_msg(VHOST_USER_SET_OWNER, 0);
		tell(r, &m, -1);
		break;
	case VHOST_USER_GET_FEATURES:
		r->features = get_u64(r, VHOST_USER_GET_FEATURES);
		break;
	case VHOST_USER_GET_PROTOCOL_FEATURES:
		r->protocol = get_u64(r, VHOST_USER_GET_PROTOCOL_FEATURES);
		break;
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		set_u64(r, VHOST_USER_SET_PROTOCOL_FEATURES, r->protocol & r->x->protocol, -1);
		break;
	case VHOST_USER_SET_FEATURES:
		set_features(r, s->arg);
		break;
	case VHOST_USER_GET_QUEUE_NUM:
		if (get_u64(r, VHOST_USER_GET_QUEUE_NUM) < QUEUES)
			die(r, "too few queues", -EPROTO);
		break;
	case VHOST_USER_GET_CONFIG:
	case VHOST_USER_SET_CONFIG:
		config(r, (enum vhost_user_request)s->say, s->arg);
		break;
	case VHOST_USER_SET_MEM_TABLE:
		set_memory(r);
		break;
	case VHOST_USER_ADD_MEM_REG:
		add_memory(r);
		break;
	case VHOST_USER_GET_INFLIGHT_FD:
		get_inflight(r, s->arg);
		break;
	case VHOST_USER_SET_INFLIGHT_FD:
		set_inflight(r);
		break;
	case VHOST_USER_SET_LOG_BASE:
		set_log(r);
		break;
	case VHOST_USER_SET_BACKEND_REQ_FD:
		set_backend_req(r);
		break;
	default:
		guest_step(r, (enum pseudo)s->say);
	}
}

static void queue_step(struct replay *r, const struct step *s, unsigned q)
{
	switch (s->say) {
	case VHOST_USER_SET_VRING_NUM:
		set_state(r, VHOST_USER_SET_VRING_NUM, q, r->x->queue_size);
		break;
	case VHOST_USER_SET_VRING_ADDR:
		set_addr(r, q, (uint32_t)s->arg);
		break;
	case VHOST_USER_SET_VRING_BASE:
		set_base(r, q);
		break;
	case VHOST_USER_GET_VRING_BASE:
		get_base(r, q);
		break;
	case VHOST_USER_SET_VRING_CALL:
		set_u64(r, VHOST_USER_SET_VRING_CALL, q, r->queues[q].call);
		break;
	case VHOST_USER_SET_VRING_KICK:
		set_u64(r, VHOST_USER_SET_VRING_KICK, q, r->queues[q].kick);
		break;
	default:
		set_state(r, VHOST_USER_SET_VRING_ENABLE, q, (uint32_t)s->arg);
	}
}

/* From EVERY_QUEUE to NEXT_QUEUE, which is returned. */
static const struct step *each_queue(struct replay *r, const struct step *first)
{
	const struct step *s = first;

	for (unsigned q = 0; q < QUEUES; q++)
		for (s = first + 1; s->say != NEXT_QUEUE; s++) {
			r->step = s;
			if (holds(r, s->when))
				queue_step(r, s, q);
		}
	return s;
}

static void replay(const struct exchange *x, const char *path)
{
	struct replay r = { .path = path, .x = x, .sock = -1, .backend_req = -1,
			    .inflight_fd = -1, .log_fd = -1 };
	struct vfe_link k = { .features = x->features & ~(1ULL << VIRTIO_F_RING_PACKED),
			      .queue_size = x->queue_size };

	if (vfe_mem_init(&r.mem, MEMORY))
		die(&r, "memory", -ENOMEM);
	for (unsigned q = 0; q < QUEUES; q++)
		if (vfe_queue_init(&r.queues[q], &k, r.mem.map + q * RINGS))
			die(&r, "a queue", -ENOMEM);
	for (const struct step *s = x->steps; s->say; s++) {
		r.step = s;
		if (s->say == EVERY_QUEUE)
			s = each_queue(&r, s);
		else if (holds(&r, s->when))
			device_step(&r, s);
	}
	for (unsigned q = 0; q < QUEUES; q++)
		vfe_queue_fini(&r.queues[q]);
	vfe_mem_fini(&r.mem);
	for (unsigned i = 0; i < 4; i++) {
		int fds[] = { r.sock, r.backend_req, r.inflight_fd, r.log_fd };

		if (fds[i] >= 0)
			close(fds[i]);
	}
	printf("%s: %llu times %u writes and reads\n", x->name, (unsigned long long)r.writes,
	       QUEUES * SLOTS);
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: replay SOCKET\n");
		return 2;
	}
	for (const struct exchange *x = exchanges; x->name; x++)
		replay(x, argv[1]);
	return 0;
}
