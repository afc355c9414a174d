/* SPDX-License-Identifier: MIT */
#include "export/vub/message.h"

#include <errno.h>

#include "base/bits.h"

enum { NO_FEATURE = -1 };

/* What a request's message is made of. */
static const struct rule {
	const char *name;
	uint16_t size;                  /* payload; the least there may be */
	uint16_t size_max;              /* 0: size */
	uint8_t fds_max;                /* more are not looked at: rule_fds() */
	bool has_reply;
	int8_t feature;                 /* protocol feature that it needs */
} rules[VHOST_USER_REQUESTS] = {
	[VHOST_USER_GET_FEATURES] = { "GET_FEATURES", 0, 0, 0, true, NO_FEATURE },
	[VHOST_USER_SET_FEATURES] = { "SET_FEATURES", 8, 0, 0, false, NO_FEATURE },
	[VHOST_USER_SET_OWNER] = { "SET_OWNER", 0, 0, 0, false, NO_FEATURE },
	[VHOST_USER_RESET_OWNER] = { "RESET_OWNER", 0, 0, 0, false, NO_FEATURE },
	[VHOST_USER_SET_MEM_TABLE] = {
		"SET_MEM_TABLE", offsetof(struct vhost_user_mem_table, regions),
		sizeof(struct vhost_user_mem_table), VHOST_USER_FDS_MAX, false, NO_FEATURE,
	},
	[VHOST_USER_SET_LOG_BASE] = {
		"SET_LOG_BASE", sizeof(struct vhost_user_log), 0, 1, true,
		VHOST_USER_PROTOCOL_F_LOG_SHMFD,
	},
	[VHOST_USER_SET_LOG_FD] = { "SET_LOG_FD", 0, 8, 1, false, NO_FEATURE },
	[VHOST_USER_SET_VRING_NUM] = { "SET_VRING_NUM", 8, 0, 0, false, NO_FEATURE },
	[VHOST_USER_SET_VRING_ADDR] = {
		"SET_VRING_ADDR", sizeof(struct vhost_user_vring_addr), 0, 0, false, NO_FEATURE,
	},
	[VHOST_USER_SET_VRING_BASE] = { "SET_VRING_BASE", 8, 0, 0, false, NO_FEATURE },
	[VHOST_USER_GET_VRING_BASE] = { "GET_VRING_BASE", 8, 0, 0, true, NO_FEATURE },
	[VHOST_USER_SET_VRING_KICK] = { "SET_VRING_KICK", 8, 0, 1, false, NO_FEATURE },
	[VHOST_USER_SET_VRING_CALL] = { "SET_VRING_CALL", 8, 0, 1, false, NO_FEATURE },
	[VHOST_USER_SET_VRING_ERR] = { "SET_VRING_ERR", 8, 0, 1, false, NO_FEATURE },
	[VHOST_USER_GET_PROTOCOL_FEATURES] = {
		"GET_PROTOCOL_FEATURES", 0, 0, 0, true, NO_FEATURE,
	},
	[VHOST_USER_SET_PROTOCOL_FEATURES] = {
		"SET_PROTOCOL_FEATURES", 8, 0, 0, false, NO_FEATURE,
	},
	[VHOST_USER_GET_QUEUE_NUM] = {
		"GET_QUEUE_NUM", 0, 0, 0, true, VHOST_USER_PROTOCOL_F_MQ,
	},
	[VHOST_USER_SET_VRING_ENABLE] = { "SET_VRING_ENABLE", 8, 0, 0, false, NO_FEATURE },
	[VHOST_USER_SET_BACKEND_REQ_FD] = {
		"SET_BACKEND_REQ_FD", 0, 0, 1, false, VHOST_USER_PROTOCOL_F_BACKEND_REQ,
	},
	[VHOST_USER_GET_CONFIG] = {
		"GET_CONFIG", VHOST_USER_CONFIG_HEAD, sizeof(struct vhost_user_config), 0, true,
		VHOST_USER_PROTOCOL_F_CONFIG,
	},
	[VHOST_USER_SET_CONFIG] = {
		"SET_CONFIG", VHOST_USER_CONFIG_HEAD, sizeof(struct vhost_user_config), 0, false,
		VHOST_USER_PROTOCOL_F_CONFIG,
	},
	[VHOST_USER_GET_INFLIGHT_FD] = {
		"GET_INFLIGHT_FD", VHOST_USER_INFLIGHT_SIZE_MIN, sizeof(struct vhost_user_inflight),
		0, true, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
	},
	[VHOST_USER_SET_INFLIGHT_FD] = {
		"SET_INFLIGHT_FD", VHOST_USER_INFLIGHT_SIZE_MIN, sizeof(struct vhost_user_inflight),
		1, false, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
	},
	[VHOST_USER_RESET_DEVICE] = {
		"RESET_DEVICE", 0, 0, 0, false, VHOST_USER_PROTOCOL_F_RESET_DEVICE,
	},
	[VHOST_USER_GET_MAX_MEM_SLOTS] = {
		"GET_MAX_MEM_SLOTS", 0, 0, 0, true, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
	},
	[VHOST_USER_ADD_MEM_REG] = {
		"ADD_MEM_REG", sizeof(struct vhost_user_mem_reg), 0, 1, false,
		VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
	},
	/* The specification lets peers send the memory's descriptor here, which is not used. */
	[VHOST_USER_REM_MEM_REG] = {
		"REM_MEM_REG", sizeof(struct vhost_user_mem_reg), 0, 1, false,
		VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
	},
};

static const struct rule *rule_of(uint32_t request)
{
	const struct rule *r = request < ARRAY_SIZE(rules) ? &rules[request] : NULL;

	return r && r->name ? r : NULL;
}

static int refuse(const char *why, const char **ret_why)
{
	*ret_why = why;
	return -EPROTO;
}

int vub_message_check_head(const struct vhost_user_header *head, const char **ret_why)
{
	if ((head->flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION)
		return refuse("it is of another version of the protocol", ret_why);
	if (head->flags & VHOST_USER_REPLY)
		return refuse("it is a reply to nothing", ret_why);
	if (head->size > VHOST_USER_PAYLOAD_MAX)
		return refuse("its payload is too long", ret_why);
	return 0;
}

/* The payload's own numbers. */
static bool is_size_right(const struct vhost_user_msg *m)
{
	uint32_t size = m->head.size;

	switch (m->head.request) {
	case VHOST_USER_SET_MEM_TABLE:
		return m->table.nregions <= VHOST_USER_TABLE_REGIONS_MAX &&
		       size == offsetof(struct vhost_user_mem_table, regions) +
			       m->table.nregions * sizeof(struct vhost_user_region);
	case VHOST_USER_GET_CONFIG:
	case VHOST_USER_SET_CONFIG:
		return range_within(m->config.offset, m->config.size, VHOST_USER_CONFIG_MAX) &&
		       size == VHOST_USER_CONFIG_HEAD + m->config.size;
	case VHOST_USER_GET_INFLIGHT_FD:
	case VHOST_USER_SET_INFLIGHT_FD:
		return size == VHOST_USER_INFLIGHT_SIZE_MIN ||
		       size == sizeof(struct vhost_user_inflight);
	case VHOST_USER_SET_LOG_FD:
		return size == 0 || size == sizeof(uint64_t);
	default:
		return true;
	}
}

static bool are_fds_right(const struct vhost_user_msg *m, const struct rule *r, unsigned nfds)
{
	switch (m->head.request) {
	case VHOST_USER_SET_MEM_TABLE:
		return nfds == m->table.nregions;
	case VHOST_USER_SET_VRING_KICK:
	case VHOST_USER_SET_VRING_CALL:
	case VHOST_USER_SET_VRING_ERR:
		return nfds == (m->u64 & VHOST_USER_VRING_NOFD ? 0 : 1);
	case VHOST_USER_REM_MEM_REG:
		return nfds <= 1;
	default:
		return nfds == r->fds_max;
	}
}

int vub_message_check(const struct vhost_user_msg *m, unsigned nfds, uint64_t features,
		      const char **ret_why)
{
	const struct rule *r = rule_of(m->head.request);
	uint32_t size = m->head.size, max;

	if (!r) {
		*ret_why = "it is not known";
		return -EOPNOTSUPP;
	}
	max = r->size_max ? r->size_max : r->size;
	if (size < r->size || size > max || !is_size_right(m))
		return refuse("its payload has the wrong size", ret_why);
	if (!are_fds_right(m, r, nfds))
		return refuse("it carries the wrong number of descriptors", ret_why);
	if (r->feature != NO_FEATURE && !vub_has_bit(features, (unsigned)r->feature))
		return refuse("its protocol feature was not negotiated", ret_why);
	return 0;
}

bool vub_message_has_reply(uint32_t request)
{
	const struct rule *r = rule_of(request);

	return r && r->has_reply;
}

const char *vub_message_name(uint32_t request)
{
	const struct rule *r = rule_of(request);

	return r ? r->name : "a message";
}
