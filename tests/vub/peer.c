/* SPDX-License-Identifier: MIT */
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "base/err.h"

enum { TIMEOUT_MS = 120000 };

int peer_connect(struct peer *p, const char *path, const struct vfe_want *want)
{
	struct vfe_want w = *want;
	struct err err;
	int rc;

	*p = (struct peer){ .link = VFE_LINK_NONE };
	w.queues = 1;
	if (!w.queue_size)
		w.queue_size = PEER_QUEUE_SIZE;
	rc = vfe_link_open(&p->link, path, &w, &err);
	if (!rc)
		rc = vfe_link_set_features(&p->link, &err);
	if (!rc)
		rc = vfe_mem_init(&p->mem, PEER_MEMORY);
	p->at = p->mem.map;
	if (!rc)
		rc = vfe_queue_init(&p->q, &p->link, p->at);
	if (rc)
		peer_close(p);
	return rc;
}

int peer_open(struct peer *p, const char *path, const struct vfe_want *want)
{
	int rc = peer_connect(p, path, want);

	if (!rc)
		rc = vfe_link_set_memory(&p->link, &p->mem, NULL);
	if (!rc)
		rc = vfe_link_set_queue(&p->link, 0, &p->q, NULL);
	if (rc)
		peer_close(p);
	return rc;
}

void peer_close(struct peer *p)
{
	vfe_link_close(&p->link);
	vfe_queue_fini(&p->q);
	vfe_mem_fini(&p->mem);
}

int peer_wait(struct peer *p, unsigned timeout_ms)
{
	struct pollfd pfd = { .fd = p->q.call, .events = POLLIN };
	uint16_t token;
	uint32_t len;
	uint64_t count;

	for (;;) {
		int rc = vfe_ring_take(&p->q.ring, &token, &len);

		if (rc)
			return rc < 0 ? rc : 0;
		if (vfe_ring_arm(&p->q.ring))
			continue;
		if (poll(&pfd, 1, (int)timeout_ms) != 1)
			return -ETIMEDOUT;
		if (read(p->q.call, &count, sizeof(count)) < 0 && errno != EAGAIN)
			return -errno;
	}
}

int peer_request(struct peer *p, uint32_t type, uint64_t sector, uint32_t len)
{
	struct virtio_blk_outhdr *h = (void *)(p->at + PEER_HEAD);
	struct vfe_table none = { 0 };
	bool is_in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct vfe_seg segs[3] = {
		{ VFE_MEM_GUEST + PEER_HEAD, sizeof(*h), false },
		{ VFE_MEM_GUEST + PEER_DATA, len, is_in },
		{ VFE_MEM_GUEST + PEER_STATUS, 1, true },
	};
	int rc;

	*h = (struct virtio_blk_outhdr){ .type = type, .sector = sector };
	p->at[PEER_STATUS] = (char)0xff;
	if (!len)
		segs[1] = segs[2];
	rc = vfe_ring_add(&p->q.ring, segs, len ? 3 : 2, &none, 0);
	if (rc)
		return rc;
	if (vfe_ring_publish(&p->q.ring))
		vfe_signal(p->q.kick);
	rc = peer_wait(p, TIMEOUT_MS);
	return rc ? rc : (uint8_t)p->at[PEER_STATUS];
}
