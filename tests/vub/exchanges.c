/* SPDX-License-Identifier: MIT */
/* tests/vub/exchanges.c - facts from: Cloud Hypervisor, virtio-devices/src/vhost_user (blk,
 * vu_common_ctrl) over rust-vmm's vhost crate; crosvm, devices/src/virtio/vhost_user_frontend and,
 * as it was in 2023, devices/src/virtio/vhost/user/vmm (handler, block). */
#include "exchanges.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#define F(n) (1ULL << (n))
#define SAY(x) VHOST_USER_##x
#define HAS(x) F(VHOST_USER_PROTOCOL_F_##x)

/* All features are negotiated before the guest runs; once REPLY_ACK is, all messages carry
 * NEED_REPLY. The number of descriptors of all rings comes before the area of requests in flight,
 * and rings are enabled when all are set up. Pausing only disables them. */
#define CLOUD_HYPERVISOR_START(queues_come_back) \
	{ SAY(SET_FEATURES), 0, ALWAYS }, \
	{ SAY(SET_MEM_TABLE), 0, ALWAYS }, \
	{ EVERY_QUEUE, 0, ALWAYS }, \
	{ SAY(SET_VRING_NUM), 0, ALWAYS }, \
	{ NEXT_QUEUE, 0, ALWAYS }, \
	{ SAY(GET_INFLIGHT_FD), queues_come_back, IF_INFLIGHT }, \
	{ SAY(SET_INFLIGHT_FD), 0, IF_INFLIGHT }, \
	{ EVERY_QUEUE, 0, ALWAYS }, \
	{ SAY(SET_VRING_ADDR), 0, ALWAYS }, \
	{ SAY(SET_VRING_BASE), 0, ALWAYS }, \
	{ SAY(SET_VRING_CALL), 0, ALWAYS }, \
	{ SAY(SET_VRING_KICK), 0, ALWAYS }, \
	{ NEXT_QUEUE, 0, ALWAYS }, \
	{ EVERY_QUEUE, 0, ALWAYS }, \
	{ SAY(SET_VRING_ENABLE), 1, ALWAYS }, \
	{ NEXT_QUEUE, 0, ALWAYS }

#define CLOUD_HYPERVISOR_NEGOTIATE \
	{ CONNECT, 0, ALWAYS }, \
	{ SAY(SET_OWNER), 0, ALWAYS }, \
	{ SAY(GET_FEATURES), 0, ALWAYS }, \
	{ SAY(GET_PROTOCOL_FEATURES), 0, ALWAYS }, \
	{ SAY(SET_PROTOCOL_FEATURES), 0, ALWAYS }, \
	{ ASK_REPLIES, 1, ALWAYS }

static const struct step cloud_hypervisor[] = {
	CLOUD_HYPERVISOR_NEGOTIATE,
	{ SAY(GET_QUEUE_NUM), 0, IF_MQ },
	{ SAY(GET_CONFIG), CONFIG_AT(0, 60), ALWAYS },
	CLOUD_HYPERVISOR_START(0),
	{ REQUESTS, 0, ALWAYS },
	/* The guest writes the cache mode. */
	{ SAY(SET_CONFIG), CONFIG_AT(32, 1), IF_WCE },
	{ REQUESTS, 0, ALWAYS },
	/* Memory is plugged. */
	{ SAY(ADD_MEM_REG), 0, IF_SLOTS },
	{ REQUESTS, 0, ALWAYS },
	/* Paused, resumed. */
	{ EVERY_QUEUE, 0, ALWAYS },
	{ SAY(SET_VRING_ENABLE), 0, ALWAYS },
	{ NEXT_QUEUE, 0, ALWAYS },
	{ EVERY_QUEUE, 0, ALWAYS },
	{ SAY(SET_VRING_ENABLE), 1, ALWAYS },
	{ NEXT_QUEUE, 0, ALWAYS },
	{ REQUESTS, 0, ALWAYS },
	/* Migration: the log, then all rings with logging, from where they are. */
	{ SAY(SET_LOG_BASE), 0, IF_LOG },
	{ SAY(SET_FEATURES), F(VHOST_USER_F_LOG_ALL), IF_LOG },
	{ EVERY_QUEUE, 0, ALWAYS },
	{ SAY(SET_VRING_ADDR), VHOST_USER_VRING_F_LOG, IF_LOG },
	{ NEXT_QUEUE, 0, ALWAYS },
	{ REQUESTS, 0, ALWAYS },
	{ SAY(SET_FEATURES), 0, IF_LOG },
	{ EVERY_QUEUE, 0, ALWAYS },
	{ SAY(SET_VRING_ADDR), 0, IF_LOG },
	{ NEXT_QUEUE, 0, ALWAYS },
	{ REQUESTS, 0, ALWAYS },
	/* The device is reset: rings are disabled, and set up again by the next driver. */
	{ EVERY_QUEUE, 0, ALWAYS },
	{ SAY(SET_VRING_ENABLE), 0, ALWAYS },
	{ NEXT_QUEUE, 0, ALWAYS },
	{ 0, 0, ALWAYS },
};

/* The back end was away, and the guest has gone on meanwhile. Only protocol features are said
 * again; the area is the old one. The base is where the driver is, which is behind what nobody has
 * taken: only the area says what that is. */
static const struct step cloud_hypervisor_again[] = {
	CLOUD_HYPERVISOR_NEGOTIATE,
	{ SAY(GET_QUEUE_NUM), 0, IF_MQ },
	{ SAY(GET_CONFIG), CONFIG_AT(0, 60), ALWAYS },
	CLOUD_HYPERVISOR_START(0),
	{ REQUESTS, 0, ALWAYS },
	{ LEAVE_REQUESTS, 0, ALWAYS },
	{ CONNECT, 0, ALWAYS },
	{ SAY(SET_OWNER), 0, ALWAYS },
	{ SAY(GET_FEATURES), 0, ALWAYS },
	{ SAY(SET_PROTOCOL_FEATURES), 0, ALWAYS },
	{ ASK_REPLIES, 1, ALWAYS },
	CLOUD_HYPERVISOR_START(1),
	{ TAKE_REQUESTS, 0, ALWAYS },
	{ REQUESTS, 0, ALWAYS },
	{ 0, 0, ALWAYS },
};

/* Never asks for a reply, though REPLY_ACK is negotiated for the other direction. The guest's
 * driver reads the config in pieces. Rings are set up and enabled one by one. */
#define CROSVM_RING \
	{ SAY(SET_VRING_NUM), 0, ALWAYS }, \
	{ SAY(SET_VRING_ADDR), 0, ALWAYS }, \
	{ SAY(SET_VRING_BASE), 0, ALWAYS }, \
	{ SAY(SET_VRING_CALL), 0, ALWAYS }, \
	{ SAY(SET_VRING_KICK), 0, ALWAYS }, \
	{ SAY(SET_VRING_ENABLE), 1, ALWAYS }

static const struct step crosvm[] = {
	{ CONNECT, 0, ALWAYS },
	{ SAY(SET_OWNER), 0, ALWAYS },
	{ SAY(GET_FEATURES), 0, ALWAYS },
	{ SAY(GET_PROTOCOL_FEATURES), 0, ALWAYS },
	{ SAY(SET_PROTOCOL_FEATURES), 0, ALWAYS },
	{ SAY(SET_BACKEND_REQ_FD), 0, IF_BACKEND_REQ },
	{ SAY(GET_QUEUE_NUM), 0, IF_MQ },
	{ SAY(GET_CONFIG), CONFIG_AT(0, 8), IF_CONFIG },
	{ SAY(SET_FEATURES), 0, ALWAYS },
	{ SAY(GET_CONFIG), CONFIG_AT(0, 4), IF_CONFIG },
	{ SAY(GET_CONFIG), CONFIG_AT(4, 4), IF_CONFIG },
	{ SAY(GET_CONFIG), CONFIG_AT(12, 4), IF_CONFIG },
	{ SAY(GET_CONFIG), CONFIG_AT(20, 4), IF_CONFIG },
	{ SAY(GET_CONFIG), CONFIG_AT(24, 1), IF_CONFIG },
	{ SAY(GET_CONFIG), CONFIG_AT(26, 2), IF_CONFIG },
	{ SAY(GET_CONFIG), CONFIG_AT(34, 2), IF_CONFIG },
	{ SAY(GET_CONFIG), CONFIG_AT(56, 1), IF_CONFIG },
	{ SAY(SET_MEM_TABLE), 0, ALWAYS },
	{ EVERY_QUEUE, 0, ALWAYS },
	CROSVM_RING,
	{ NEXT_QUEUE, 0, ALWAYS },
	{ REQUESTS, 0, ALWAYS },
	/* Suspended: rings are stopped and say where they are; then set up again from there. */
	{ EVERY_QUEUE, 0, ALWAYS },
	{ SAY(SET_VRING_ENABLE), 0, ALWAYS },
	{ SAY(GET_VRING_BASE), 0, ALWAYS },
	{ NEXT_QUEUE, 0, ALWAYS },
	{ LEAVE_REQUESTS, 0, ALWAYS },
	{ SAY(SET_MEM_TABLE), 0, ALWAYS },
	{ EVERY_QUEUE, 0, ALWAYS },
	CROSVM_RING,
	{ NEXT_QUEUE, 0, ALWAYS },
	{ TAKE_REQUESTS, 0, ALWAYS },
	{ REQUESTS, 0, ALWAYS },
	/* Reset by the guest's driver, which starts anew. */
	{ EVERY_QUEUE, 0, ALWAYS },
	{ SAY(SET_VRING_ENABLE), 0, ALWAYS },
	{ SAY(GET_VRING_BASE), 0, ALWAYS },
	{ NEXT_QUEUE, 0, ALWAYS },
	{ 0, 0, ALWAYS },
};

/* Features are set twice: the protocol's bit alone, and later what the guest takes. */
static const struct step crosvm_2023[] = {
	{ CONNECT, 0, ALWAYS },
	{ SAY(SET_OWNER), 0, ALWAYS },
	{ SAY(GET_FEATURES), 0, ALWAYS },
	{ SAY(SET_FEATURES), UINT64_MAX, ALWAYS },
	{ SAY(GET_PROTOCOL_FEATURES), 0, ALWAYS },
	{ SAY(SET_PROTOCOL_FEATURES), 0, ALWAYS },
	{ SAY(SET_BACKEND_REQ_FD), 0, IF_BACKEND_REQ },
	{ SAY(GET_QUEUE_NUM), 0, IF_MQ },
	{ SAY(GET_CONFIG), CONFIG_AT(0, 8), IF_CONFIG },
	{ SAY(SET_FEATURES), 0, ALWAYS },
	{ SAY(SET_MEM_TABLE), 0, ALWAYS },
	{ EVERY_QUEUE, 0, ALWAYS },
	CROSVM_RING,
	{ NEXT_QUEUE, 0, ALWAYS },
	{ REQUESTS, 0, ALWAYS },
	{ 0, 0, ALWAYS },
};

enum { KNOWN_RING = 24 };               /* device features are below */

#define BLK_ALL (F(VIRTIO_BLK_F_SIZE_MAX) | F(VIRTIO_BLK_F_SEG_MAX) | F(VIRTIO_BLK_F_GEOMETRY) | \
	F(VIRTIO_BLK_F_RO) | F(VIRTIO_BLK_F_BLK_SIZE) | F(VIRTIO_BLK_F_FLUSH) | \
	F(VIRTIO_BLK_F_TOPOLOGY) | F(VIRTIO_BLK_F_DISCARD) | F(VIRTIO_BLK_F_WRITE_ZEROES) | \
	F(VIRTIO_BLK_F_MQ))
#define RING_ALL (F(VIRTIO_F_VERSION_1) | F(VIRTIO_RING_F_INDIRECT_DESC) | \
	F(VIRTIO_RING_F_EVENT_IDX) | F(VHOST_USER_F_PROTOCOL_FEATURES))

const struct exchange exchanges[] = {
	{ "Cloud Hypervisor", RING_ALL, BLK_ALL | F(VIRTIO_BLK_F_CONFIG_WCE),
	  HAS(CONFIG) | HAS(MQ) | HAS(CONFIGURE_MEM_SLOTS) | HAS(REPLY_ACK) | HAS(INFLIGHT_SHMFD) |
	  HAS(LOG_SHMFD), 128, 20, true, cloud_hypervisor },
	{ "Cloud Hypervisor, connected again", RING_ALL, BLK_ALL | F(VIRTIO_BLK_F_CONFIG_WCE),
	  HAS(CONFIG) | HAS(MQ) | HAS(CONFIGURE_MEM_SLOTS) | HAS(REPLY_ACK) | HAS(INFLIGHT_SHMFD) |
	  HAS(LOG_SHMFD), 128, 20, true, cloud_hypervisor_again },
	{ "crosvm", RING_ALL, F(KNOWN_RING) - 1,
	  HAS(CONFIG) | HAS(MQ) | HAS(BACKEND_REQ) | HAS(REPLY_ACK), 256, 20, false, crosvm },
	{ "crosvm of 2023", RING_ALL & ~F(VIRTIO_RING_F_EVENT_IDX), BLK_ALL,
	  HAS(CONFIG) | HAS(MQ) | HAS(BACKEND_REQ), 256, 20, false, crosvm_2023 },
	{ NULL, 0, 0, 0, 0, 0, false, NULL },
};
