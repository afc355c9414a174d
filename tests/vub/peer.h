/* SPDX-License-Identifier: MIT */
/* tests/vub/peer.h - a front end with one queue that waits for everything, for tests that attack a
 * back end: it is built from the parts of drv/vub, and everything in it may be overwritten.
 *
 * Its memory: the ring at 0, then at PEER_SCRATCH what requests are made of. */
#ifndef TESTS_VUB_PEER_H
#define TESTS_VUB_PEER_H

#include "drv/vub/vfe_link.h"

enum {
	PEER_QUEUE_SIZE = 64,
	PEER_MEMORY = 4 << 20,
	PEER_SCRATCH = 64 << 10,
	PEER_HEAD = PEER_SCRATCH,               /* struct virtio_blk_outhdr */
	PEER_RANGE = PEER_SCRATCH + 64,         /* struct virtio_blk_discard_write_zeroes */
	PEER_STATUS = PEER_SCRATCH + 128,
	PEER_TABLE = PEER_SCRATCH + 4096,       /* of an indirect descriptor */
	PEER_DATA = PEER_SCRATCH + 8192,
	PEER_DATA_BYTES = 1 << 20,
};

struct peer {
	struct vfe_link link;
	struct vfe_mem mem;
	struct vfe_queue q;
	char *at;                       /* mem.map */
};

/* Connects, negotiates, starts the queue. 0 or -errno. */
int peer_open(struct peer *p, const char *path, const struct vfe_want *want);
/* A connection with features set and nothing else. */
int peer_connect(struct peer *p, const char *path, const struct vfe_want *want);
void peer_close(struct peer *p);

/* A request with @len bytes at PEER_DATA. Its status; -ETIMEDOUT, -EPROTO. */
int peer_request(struct peer *p, uint32_t type, uint64_t sector, uint32_t len);
/* Waits for the next used request: 0, -ETIMEDOUT, -EPROTO. */
int peer_wait(struct peer *p, unsigned timeout_ms);

#endif
