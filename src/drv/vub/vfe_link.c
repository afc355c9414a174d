/* SPDX-License-Identifier: MIT */
#include "drv/vub/vfe_link.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "drv/vub/vfe_msg.h"

#define BIT(n) (1ULL << (n))

/* What is of use here where the back end has it. */
static const uint64_t features_known = BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_RO) |
	BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_MQ) |
	BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
	BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_RING_F_EVENT_IDX) |
	BIT(VHOST_USER_F_PROTOCOL_FEATURES) | BIT(VIRTIO_F_VERSION_1);

static const uint64_t protocol_known = BIT(VHOST_USER_PROTOCOL_F_MQ) |
	BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) | BIT(VHOST_USER_PROTOCOL_F_CONFIG) |
	BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);

/* Older back ends refuse to be asked for more than this. */
enum { CONFIG_BYTES = offsetof(struct virtio_blk_config, max_secure_erase_sectors) };

static int ask_u64(int sock, enum vhost_user_request request, uint64_t *ret)
{
	struct vhost_user_msg m = vfe_msg(request, 0);
	int rc = vfe_msg_ask(sock, &m, sizeof(m.u64), NULL);

	if (!rc)
		*ret = m.u64;
	return rc;
}

static int tell_u64(struct vfe_link *k, enum vhost_user_request request, uint64_t v, bool wants_ack)
{
	struct vhost_user_msg m = vfe_msg(request, sizeof(m.u64));

	m.u64 = v;
	return vfe_msg_tell(k->sock, &m, NULL, 0, wants_ack);
}

static bool has_ack(const struct vfe_link *k)
{
	return vfe_link_speaks(k, VHOST_USER_PROTOCOL_F_REPLY_ACK);
}

static int fail(int rc, const char *what, struct err *err)
{
	return err_set_errno(err, -rc, "vhost-user: %s", what);
}

static int choose_features(struct vfe_link *k, const struct vfe_want *want, struct err *err)
{
	uint64_t features = 0, known = features_known, needed = BIT(VIRTIO_F_VERSION_1);
	int rc = ask_u64(k->sock, VHOST_USER_GET_FEATURES, &features);

	if (rc)
		return fail(rc, "GET_FEATURES", err);
	if (want->packed)
		needed |= BIT(VIRTIO_F_RING_PACKED);
	if (want->no_event_idx)
		known &= ~BIT(VIRTIO_RING_F_EVENT_IDX);
	if (want->no_indirect)
		known &= ~BIT(VIRTIO_RING_F_INDIRECT_DESC);
	if (needed & ~features)
		return err_set(err, ENOTSUP, "vhost-user: the back end has no %s",
			       features & BIT(VIRTIO_F_VERSION_1) ? "packed rings" : "virtio 1");
	k->features = (features & known) | needed;
	return 0;
}

static int choose_protocol(struct vfe_link *k, const struct vfe_want *want, struct err *err)
{
	uint64_t protocol = 0;
	int rc;

	k->protocol = 0;
	if (!vfe_link_has(k, VHOST_USER_F_PROTOCOL_FEATURES))
		return err_set(err, ENOTSUP, "vhost-user: the back end has no protocol features");
	rc = ask_u64(k->sock, VHOST_USER_GET_PROTOCOL_FEATURES, &protocol);
	if (rc)
		return fail(rc, "GET_PROTOCOL_FEATURES", err);
	protocol &= protocol_known | want->protocol;
	if (want->no_inflight)
		protocol &= ~BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);
	if (!(protocol & BIT(VHOST_USER_PROTOCOL_F_CONFIG)))
		return err_set(err, ENOTSUP, "vhost-user: the back end does not tell the "
			       "disk's size");
	rc = tell_u64(k, VHOST_USER_SET_PROTOCOL_FEATURES, protocol, false);
	if (rc)
		return fail(rc, "SET_PROTOCOL_FEATURES", err);
	k->protocol = protocol;
	return 0;
}

static int choose_queues(struct vfe_link *k, const struct vfe_want *want, struct err *err)
{
	uint64_t n = 1;
	int rc = 0;

	if (vfe_link_speaks(k, VHOST_USER_PROTOCOL_F_MQ))
		rc = ask_u64(k->sock, VHOST_USER_GET_QUEUE_NUM, &n);
	if (rc)
		return fail(rc, "GET_QUEUE_NUM", err);
	if (vfe_link_has(k, VIRTIO_BLK_F_MQ))
		n = MIN(n, (uint64_t)k->config.num_queues);
	else
		n = MIN(n, 1ULL);
	if (!n)
		return err_set(err, EPROTO, "vhost-user: the back end has no queues");
	n = MIN(n, (uint64_t)VFE_QUEUES_MAX);
	k->nqueues = want->queues ? (unsigned)MIN(n, (uint64_t)want->queues) : (unsigned)n;
	k->queue_size = want->queue_size ? want->queue_size : VFE_QUEUE_SIZE_DEFAULT;
	return 0;
}

int vfe_link_get_config(struct vfe_link *k, struct err *err)
{
	uint32_t size = VHOST_USER_CONFIG_HEAD + CONFIG_BYTES;
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_CONFIG, size);
	int rc;

	m.config.size = CONFIG_BYTES;
	rc = vfe_msg_ask(k->sock, &m, size, NULL);
	if (!rc && m.config.size != CONFIG_BYTES)
		rc = -EPROTO;
	if (rc)
		return fail(rc, "GET_CONFIG", err);
	memcpy(&k->config, m.config.data, CONFIG_BYTES);
	if (k->config.capacity > INT64_MAX / 512)
		return fail(-EPROTO, "the size of the disk", err);
	return 0;
}

static int set_owner(struct vfe_link *k, struct err *err)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_OWNER, 0);
	int rc = vfe_msg_tell(k->sock, &m, NULL, 0, false);

	return rc ? fail(rc, "SET_OWNER", err) : 0;
}

int vfe_link_open(struct vfe_link *k, const char *path, const struct vfe_want *want,
		  struct err *err)
{
	struct vfe_link new = VFE_LINK_NONE;
	unsigned timeout_ms = want->timeout_ms ? want->timeout_ms : VFE_TIMEOUT_MS;
	int rc = vfe_msg_connect(path, timeout_ms, &new.sock, err);

	if (!rc)
		rc = choose_features(&new, want, err);
	if (!rc)
		rc = choose_protocol(&new, want, err);
	if (!rc)
		rc = set_owner(&new, err);
	if (!rc)
		rc = vfe_link_get_config(&new, err);
	if (!rc)
		rc = choose_queues(&new, want, err);
	if (rc) {
		vfe_link_close(&new);
		return rc;
	}
	*k = new;
	return 0;
}

int vfe_link_reopen(struct vfe_link *k, const char *path, const struct vfe_want *want,
		    struct err *err)
{
	struct vfe_link new;
	int rc = vfe_link_open(&new, path, want, err);

	if (rc)
		return rc;
	if (new.features != k->features || new.protocol != k->protocol ||
	    new.nqueues != k->nqueues || new.config.capacity < k->config.capacity) {
		vfe_link_close(&new);
		return err_set(err, EPROTO, "vhost-user: another disk came back");
	}
	vfe_link_disconnect(k);
	k->sock = new.sock;
	k->config = new.config;
	return 0;
}

/* A new area; the back end makes it. */
static int get_inflight(struct vfe_link *k)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_INFLIGHT_FD, sizeof(m.inflight));
	int fd, rc;

	m.inflight.num_queues = (uint16_t)k->nqueues;
	m.inflight.queue_size = (uint16_t)k->queue_size;
	rc = vfe_msg_ask(k->sock, &m, VHOST_USER_INFLIGHT_SIZE_MIN, &fd);
	if (rc)
		return rc;
	if (fd < 0 || !m.inflight.mmap_size) {
		if (fd >= 0)
			close(fd);
		return -EPROTO;
	}
	k->inflight_fd = fd;
	k->inflight = m.inflight;
	k->inflight.num_queues = (uint16_t)k->nqueues;
	k->inflight.queue_size = (uint16_t)k->queue_size;
	return 0;
}

static int set_inflight(struct vfe_link *k)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_INFLIGHT_FD, sizeof(m.inflight));

	m.inflight = k->inflight;
	return vfe_msg_tell(k->sock, &m, &k->inflight_fd, 1, has_ack(k));
}

int vfe_link_set_features(struct vfe_link *k, struct err *err)
{
	int rc = tell_u64(k, VHOST_USER_SET_FEATURES, k->features, has_ack(k));

	if (rc)
		return fail(rc, "SET_FEATURES", err);
	if (!vfe_link_speaks(k, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD))
		return 0;
	rc = k->inflight_fd < 0 ? get_inflight(k) : 0;
	if (rc)
		return fail(rc, "GET_INFLIGHT_FD", err);
	rc = set_inflight(k);
	return rc ? fail(rc, "SET_INFLIGHT_FD", err) : 0;
}

int vfe_link_set_memory(struct vfe_link *k, const struct vfe_mem *m, struct err *err)
{
	uint32_t size = offsetof(struct vhost_user_mem_table, regions[1]);
	struct vhost_user_msg msg = vfe_msg(VHOST_USER_SET_MEM_TABLE, size);
	int rc;

	msg.table.nregions = 1;
	msg.table.regions[0] = (struct vhost_user_region){
		.guest_addr = VFE_MEM_GUEST, .size = m->size, .user_addr = (uintptr_t)m->map,
	};
	rc = vfe_msg_tell(k->sock, &msg, &m->fd, 1, has_ack(k));
	return rc ? fail(rc, "SET_MEM_TABLE", err) : 0;
}

static int set_state(struct vfe_link *k, enum vhost_user_request request, unsigned i, uint32_t num)
{
	struct vhost_user_msg m = vfe_msg(request, sizeof(m.state));

	m.state = (struct vhost_user_vring_state){ .index = i, .num = num };
	return vfe_msg_tell(k->sock, &m, NULL, 0, has_ack(k));
}

static int set_fd(struct vfe_link *k, enum vhost_user_request request, unsigned i, int fd)
{
	struct vhost_user_msg m = vfe_msg(request, sizeof(m.u64));

	m.u64 = i;
	return vfe_msg_tell(k->sock, &m, &fd, 1, has_ack(k));
}

static int set_addr(struct vfe_link *k, unsigned i, const struct vfe_ring *r)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_ADDR, sizeof(m.addr));
	const void *parts[3];

	vfe_ring_parts(r, parts);
	m.addr = (struct vhost_user_vring_addr){
		.index = i,
		.descriptor = (uintptr_t)parts[0],
		.available = (uintptr_t)parts[1],
		.used = (uintptr_t)parts[2],
	};
	return vfe_msg_tell(k->sock, &m, NULL, 0, has_ack(k));
}

int vfe_link_set_queue(struct vfe_link *k, unsigned i, const struct vfe_queue *q, struct err *err)
{
	int rc = set_state(k, VHOST_USER_SET_VRING_NUM, i, q->ring.size);

	if (rc)
		return fail(rc, "SET_VRING_NUM", err);
	rc = set_state(k, VHOST_USER_SET_VRING_BASE, i, vfe_ring_base(&q->ring));
	if (rc)
		return fail(rc, "SET_VRING_BASE", err);
	rc = set_addr(k, i, &q->ring);
	if (rc)
		return fail(rc, "SET_VRING_ADDR", err);
	rc = set_fd(k, VHOST_USER_SET_VRING_CALL, i, q->call);
	if (rc)
		return fail(rc, "SET_VRING_CALL", err);
	rc = set_fd(k, VHOST_USER_SET_VRING_KICK, i, q->kick);
	if (rc)
		return fail(rc, "SET_VRING_KICK", err);
	rc = set_state(k, VHOST_USER_SET_VRING_ENABLE, i, 1);
	return rc ? fail(rc, "SET_VRING_ENABLE", err) : 0;
}

int vfe_link_stop_queue(struct vfe_link *k, unsigned i, uint32_t *ret_base)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_VRING_BASE, sizeof(m.state));
	int rc;

	m.state.index = i;
	rc = vfe_msg_ask(k->sock, &m, sizeof(m.state), NULL);
	if (!rc)
		*ret_base = m.state.num;
	return rc;
}

void vfe_link_disconnect(struct vfe_link *k)
{
	if (k->sock >= 0)
		close(k->sock);
	k->sock = -1;
}

void vfe_link_close(struct vfe_link *k)
{
	vfe_link_disconnect(k);
	if (k->inflight_fd >= 0)
		close(k->inflight_fd);
	k->inflight_fd = -1;
}

int vfe_queue_init(struct vfe_queue *q, const struct vfe_link *k, void *mem)
{
	int rc;

	*q = (struct vfe_queue){
		.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		.call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	};
	rc = q->kick < 0 || q->call < 0 ? -errno :
		vfe_ring_init(&q->ring, mem, k->queue_size,
			      vfe_link_has(k, VIRTIO_F_RING_PACKED),
			      vfe_link_has(k, VIRTIO_RING_F_EVENT_IDX));
	if (rc)
		vfe_queue_fini(q);
	return rc;
}

void vfe_queue_fini(struct vfe_queue *q)
{
	if (q->kick > 0)
		close(q->kick);
	if (q->call > 0)
		close(q->call);
	vfe_ring_fini(&q->ring);
	*q = (struct vfe_queue){ 0 };
}

void vfe_signal(int fd)
{
	uint64_t one = 1;

	/* EAGAIN: the counter is full, and whoever polls it is told already. */
	if (write(fd, &one, sizeof(one)) < 0)
		return;
}
