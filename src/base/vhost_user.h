/* SPDX-License-Identifier: MIT */
/* base/vhost_user.h - the vhost-user protocol's numbers, messages and shared areas, as both sides
 * see them.
 *
 * Names and numbers are those of the specification (QEMU's docs/interop/vhost-user.rst), whose
 * section each part names. All numbers are in the machine's byte order. What virtio says of
 * rings and block requests stands in the kernel's linux/virtio_ring.h and linux/virtio_blk.h. */
#ifndef BASE_VHOST_USER_H
#define BASE_VHOST_USER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

/* ---- "Header" ---- */

enum vhost_user_flags {
	VHOST_USER_VERSION = 1,
	VHOST_USER_VERSION_MASK = 3,
	VHOST_USER_REPLY = 1 << 2,              /* on every reply */
	VHOST_USER_NEED_REPLY = 1 << 3,         /* "VHOST_USER_PROTOCOL_F_REPLY_ACK" */
};

struct vhost_user_header {
	uint32_t request;                       /* enum vhost_user_request */
	uint32_t flags;
	uint32_t size;                          /* bytes of payload that follow */
};

/* ---- "Front-end message types" ---- */

enum vhost_user_request {
	VHOST_USER_NONE = 0,
	VHOST_USER_GET_FEATURES = 1,
	VHOST_USER_SET_FEATURES = 2,
	VHOST_USER_SET_OWNER = 3,
	VHOST_USER_RESET_OWNER = 4,
	VHOST_USER_SET_MEM_TABLE = 5,
	VHOST_USER_SET_LOG_BASE = 6,
	VHOST_USER_SET_LOG_FD = 7,
	VHOST_USER_SET_VRING_NUM = 8,
	VHOST_USER_SET_VRING_ADDR = 9,
	VHOST_USER_SET_VRING_BASE = 10,
	VHOST_USER_GET_VRING_BASE = 11,
	VHOST_USER_SET_VRING_KICK = 12,
	VHOST_USER_SET_VRING_CALL = 13,
	VHOST_USER_SET_VRING_ERR = 14,
	VHOST_USER_GET_PROTOCOL_FEATURES = 15,
	VHOST_USER_SET_PROTOCOL_FEATURES = 16,
	VHOST_USER_GET_QUEUE_NUM = 17,
	VHOST_USER_SET_VRING_ENABLE = 18,
	VHOST_USER_SET_BACKEND_REQ_FD = 21,
	VHOST_USER_GET_CONFIG = 24,
	VHOST_USER_SET_CONFIG = 25,
	VHOST_USER_GET_INFLIGHT_FD = 31,
	VHOST_USER_SET_INFLIGHT_FD = 32,
	VHOST_USER_RESET_DEVICE = 34,
	VHOST_USER_GET_MAX_MEM_SLOTS = 36,
	VHOST_USER_ADD_MEM_REG = 37,
	VHOST_USER_REM_MEM_REG = 38,
	VHOST_USER_SET_STATUS = 39,
	VHOST_USER_GET_STATUS = 40,
	VHOST_USER_REQUESTS = 44,               /* all that are known are below this */
};

/* ---- "Back-end message types" ---- */

enum vhost_user_backend_request {
	VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2,
};

/* ---- feature bits ---- */

/* "Communication": in GET_FEATURES and SET_FEATURES, beside the device's virtio features. */
enum { VHOST_USER_F_PROTOCOL_FEATURES = 30 };

/* "Migration": likewise; log what is written to the guest's memory. */
enum { VHOST_USER_F_LOG_ALL = 26 };

/* "Protocol features" */
enum vhost_user_protocol_feature {
	VHOST_USER_PROTOCOL_F_MQ = 0,
	VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1,
	VHOST_USER_PROTOCOL_F_REPLY_ACK = 3,
	VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5,
	VHOST_USER_PROTOCOL_F_CONFIG = 9,
	VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10,
	VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12,
	VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13,
	VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14,
	VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15,
	VHOST_USER_PROTOCOL_F_STATUS = 16,
};

/* ---- "Payload" ---- */

/* "A vring state description", "A vring descriptor index …": SET_VRING_NUM, _BASE, _ENABLE and
 * GET_VRING_BASE. */
struct vhost_user_vring_state {
	uint32_t index;
	uint32_t num;
};

/* GET_ and SET_VRING_BASE of a packed ring: `num` has the next available index and its wrap
 * counter in the lower half, the used index and its wrap counter in the upper one. */
enum { VHOST_USER_PACKED_WRAP = 1 << 15 };

/* "A vring address description": ring addresses are the front end's user addresses. */
struct vhost_user_vring_addr {
	uint32_t index;
	uint32_t flags;                         /* enum vhost_user_vring_flags */
	uint64_t descriptor;                    /* the descriptor area of a packed ring */
	uint64_t used;                          /* its device event suppression area */
	uint64_t available;                     /* its driver event suppression area */
	uint64_t log;                           /* where the used ring is in the dirty log */
};

enum vhost_user_vring_flags {
	VHOST_USER_VRING_F_LOG = 1 << 0,        /* log writes to the used ring */
};

/* The u64 of SET_VRING_KICK, _CALL and _ERR. */
enum vhost_user_vring_fd {
	VHOST_USER_VRING_INDEX_MASK = 0xff,
	VHOST_USER_VRING_NOFD = 1 << 8,
};

/* "Memory region description" */
struct vhost_user_region {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t user_addr;
	uint64_t mmap_offset;
};

enum {
	VHOST_USER_TABLE_REGIONS_MAX = 8,       /* of one SET_MEM_TABLE */
	VHOST_USER_FDS_MAX = 8,                 /* of one message */
};

/* "Multiple Memory regions description": SET_MEM_TABLE. Only nregions of them are on the wire. */
struct vhost_user_mem_table {
	uint32_t nregions;
	uint32_t padding;
	struct vhost_user_region regions[VHOST_USER_TABLE_REGIONS_MAX];
};

/* "Single memory region description": ADD_MEM_REG, REM_MEM_REG. */
struct vhost_user_mem_reg {
	uint64_t padding;
	struct vhost_user_region region;
};

/* "Log description": SET_LOG_BASE. */
struct vhost_user_log {
	uint64_t size;
	uint64_t offset;
};

/* "Virtio device config space": GET_CONFIG, SET_CONFIG. `size` bytes of data are on the wire. */
enum { VHOST_USER_CONFIG_MAX = 256 };

struct vhost_user_config {
	uint32_t offset;
	uint32_t size;
	uint32_t flags;                         /* enum vhost_user_config_flags */
	uint8_t data[VHOST_USER_CONFIG_MAX];
};

enum { VHOST_USER_CONFIG_HEAD = offsetof(struct vhost_user_config, data) };

enum vhost_user_config_flags {
	VHOST_USER_CONFIG_WRITABLE = 0,
	VHOST_USER_CONFIG_MIGRATION = 1,
};

/* "Inflight description": GET_INFLIGHT_FD, SET_INFLIGHT_FD. Some peers send the padding of the
 * struct in C, some do not: both sizes are right, and a reply has the size of its request. */
struct vhost_user_inflight {
	uint64_t mmap_size;
	uint64_t mmap_offset;
	uint16_t num_queues;
	uint16_t queue_size;
	uint32_t padding;
};

enum { VHOST_USER_INFLIGHT_SIZE_MIN = offsetof(struct vhost_user_inflight, padding) };

/* A whole message. */
struct vhost_user_msg {
	struct vhost_user_header head;
	union {
		uint64_t u64;
		struct vhost_user_vring_state state;
		struct vhost_user_vring_addr addr;
		struct vhost_user_mem_table table;
		struct vhost_user_mem_reg reg;
		struct vhost_user_log log;
		struct vhost_user_config config;
		struct vhost_user_inflight inflight;
		uint8_t bytes[1];
	};
} __attribute__((packed, aligned(4)));

enum {
	VHOST_USER_HEADER_SIZE = sizeof(struct vhost_user_header),
	VHOST_USER_PAYLOAD_MAX = sizeof(struct vhost_user_msg) - VHOST_USER_HEADER_SIZE,
};

/* ---- "Migration": the dirty log is a bit for each page of guest addresses ---- */

enum { VHOST_USER_LOG_PAGE = 4096 };

/* ---- "Inflight I/O tracking": the shared area is a region for each queue ---- */

enum { VHOST_USER_INFLIGHT_VERSION = 1 };

/* A descriptor's state; only those that are heads count. */
struct vhost_user_inflight_split_desc {
	uint8_t inflight;
	uint8_t padding[5];
	uint16_t next;                          /* of the last batch of used descriptors */
	uint64_t counter;                       /* the order in which they were taken */
};

struct vhost_user_inflight_split {
	uint64_t features;
	uint16_t version;                       /* 0: not yet initialized */
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_idx;
	struct vhost_user_inflight_split_desc desc[];
};

struct vhost_user_inflight_packed_desc {
	uint8_t inflight;
	uint8_t padding;
	uint16_t next;                          /* free entry */
	uint16_t last;                          /* entry of this request; of heads only */
	uint16_t num;                           /* entries of this request; of heads only */
	uint64_t counter;
	uint16_t id;
	uint16_t flags;
	uint32_t len;
	uint64_t addr;
};

struct vhost_user_inflight_packed {
	uint64_t features;
	uint16_t version;
	uint16_t desc_num;
	uint16_t free_head;
	uint16_t old_free_head;
	uint16_t used_idx;
	uint16_t old_used_idx;
	uint8_t used_wrap_counter;
	uint8_t old_used_wrap_counter;
	uint8_t padding[7];
	struct vhost_user_inflight_packed_desc desc[];
};

static_assert(sizeof(struct vhost_user_header) == 12, "wire format");
static_assert(sizeof(struct vhost_user_vring_addr) == 40, "wire format");
static_assert(sizeof(struct vhost_user_region) == 32, "wire format");
static_assert(sizeof(struct vhost_user_mem_reg) == 40, "wire format");
static_assert(offsetof(struct vhost_user_msg, config) == 12, "wire format");
static_assert(sizeof(struct vhost_user_inflight) == 24, "wire format");
static_assert(sizeof(struct vhost_user_inflight_split_desc) == 16, "shared format");
static_assert(sizeof(struct vhost_user_inflight_packed_desc) == 32, "shared format");

#endif
