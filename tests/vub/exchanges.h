/* SPDX-License-Identifier: MIT */
/* tests/vub/exchanges.h - what other front ends say, and in which order, as their sources and
 * documents have it. A table a front end; replay.c says it to a back end. */
#ifndef TESTS_VUB_EXCHANGES_H
#define TESTS_VUB_EXCHANGES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/vhost_user.h"

/* What is no message. */
enum pseudo {
	CONNECT = 1000,                 /* a connection, or another one; no NEED_REPLY */
	ASK_REPLIES,                    /* from here on NEED_REPLY is set, with arg 1 also on what
					 * has a reply of its own */
	EVERY_QUEUE,                    /* the steps up to NEXT_QUEUE for each queue */
	NEXT_QUEUE,
	REQUESTS,                       /* the guest writes and reads */
	LEAVE_REQUESTS,                 /* the guest makes requests available, and kicks nobody */
	TAKE_REQUESTS,                  /* and gets the answers */
};

/* Which it says only if ... */
enum condition {
	ALWAYS,
	IF_MQ, IF_CONFIG, IF_INFLIGHT, IF_SLOTS, IF_BACKEND_REQ, IF_LOG, IF_WCE,
};

struct step {
	unsigned say;                   /* enum vhost_user_request or pseudo */
	uint64_t arg;
	enum condition when;
};

/* The arg of GET_CONFIG and SET_CONFIG. */
#define CONFIG_AT(offset, size) ((uint64_t)(offset) << 32 | (size))

struct exchange {
	const char *name;
	uint64_t features;              /* it knows, without the device's own (below 24) */
	uint64_t device_features;
	uint64_t protocol;
	unsigned queue_size;
	uint32_t inflight_size;         /* of its payload */
	bool base_is_avail;             /* SET_VRING_BASE says where the driver is */
	const struct step *steps;       /* the last one says 0 */
};

/* The last one has no name. */
extern const struct exchange exchanges[];

#endif
