/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_link.h - a connection to a back end: who can do what, memory, rings.
 *
 * All calls block (with the time limit of vfe_msg_connect) and are for workers and tests; one
 * thread at a time. The steps of a session are calls of their own, in the order in which they are
 * declared, so that tests can leave one out or say it twice.
 *
 * Invariants:
 *	V35  a back end that comes back must be the same disk (features, queues, no smaller); with
 *	     INFLIGHT_SHMFD it gets the same area again, and rings are left as they are. */
#ifndef DRV_VUB_VFE_LINK_H
#define DRV_VUB_VFE_LINK_H

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/vhost_user.h"
#include "drv/vub/vfe_mem.h"
#include "drv/vub/vfe_ring.h"

struct err;

enum { VFE_QUEUES_MAX = 64, VFE_QUEUE_SIZE_DEFAULT = 256, VFE_TIMEOUT_MS = 10000 };

/* What to ask a back end for; zeroed it is all that both sides can. */
struct vfe_want {
	unsigned queues;                /* at most; 0: all */
	unsigned queue_size;            /* 0: VFE_QUEUE_SIZE_DEFAULT */
	unsigned timeout_ms;            /* of an answer; 0: VFE_TIMEOUT_MS */
	bool packed;                    /* must */
	bool no_event_idx, no_indirect, no_inflight;
	uint64_t protocol;              /* features to negotiate that are of no use here */
};

/* A queue, as both sides share it. */
struct vfe_queue {
	struct vfe_ring ring;
	int kick, call;                 /* eventfds, non-blocking */
};

struct vfe_link {
	int sock;                       /* -1: no connection */
	uint64_t features;              /* negotiated */
	uint64_t protocol;              /* negotiated */
	unsigned nqueues, queue_size;
	struct virtio_blk_config config;
	int inflight_fd;                /* -1: none */
	struct vhost_user_inflight inflight;
};

#define VFE_LINK_NONE { .sock = -1, .inflight_fd = -1 }

static inline bool vfe_link_has(const struct vfe_link *k, unsigned feature)
{
	return k->features >> feature & 1;
}

static inline bool vfe_link_speaks(const struct vfe_link *k, enum vhost_user_protocol_feature f)
{
	return k->protocol >> f & 1;
}

/* Connects and negotiates; the config and the number of queues are known then. 0 or -errno. */
int vfe_link_open(struct vfe_link *k, const char *path, const struct vfe_want *want,
		  struct err *err);
/* As vfe_link_open() for @k, which lost its connection (V35). */
int vfe_link_reopen(struct vfe_link *k, const char *path, const struct vfe_want *want,
		    struct err *err);
/* SET_FEATURES, and the area of INFLIGHT_SHMFD, a new one or the one that there is. */
int vfe_link_set_features(struct vfe_link *k, struct err *err);
/* SET_MEM_TABLE with one region. */
int vfe_link_set_memory(struct vfe_link *k, const struct vfe_mem *m, struct err *err);
/* All of queue @i; it is enabled then. */
int vfe_link_set_queue(struct vfe_link *k, unsigned i, const struct vfe_queue *q, struct err *err);
/* GET_CONFIG again. */
int vfe_link_get_config(struct vfe_link *k, struct err *err);
/* GET_VRING_BASE: the queue is stopped. */
int vfe_link_stop_queue(struct vfe_link *k, unsigned i, uint32_t *ret_base);
/* Closes the connection, and keeps what vfe_link_reopen() needs. */
void vfe_link_disconnect(struct vfe_link *k);
void vfe_link_close(struct vfe_link *k);

/* Eventfds and an empty ring at @mem. */
int vfe_queue_init(struct vfe_queue *q, const struct vfe_link *k, void *mem);
void vfe_queue_fini(struct vfe_queue *q);       /* a zeroed one is fine */
/* Tells whoever polls @fd. For tests: it waits where the other side has seen to that; on a loop
 * there is loop_event_signal(). */
void vfe_signal(int fd);

#endif
