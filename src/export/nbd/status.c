/* SPDX-License-Identifier: MIT */
/* export/nbd/status.c - NBD_CMD_BLOCK_STATUS for base:allocation.
 *
 * The request asks the graph for one run after the other (REQ_MAP), each from the completion of the
 * last, and gathers extents in its buffer as they will go on the wire. Neighbours with the same
 * flags are merged. It ends where the range ends, where the buffer is full, after STEPS_MAX runs
 * (the client asks again from there), or after one extent if REQ_ONE. An error behind the first
 * extent ends the reply there: the client meets it when it asks for what follows. (N9) */
#include <assert.h>

#include "export/nbd/nbd_impl.h"

enum {
	EXTENTS_MAX = 4096,
	STEPS_MAX = 65536,
};

uint32_t nbd_status_buffer(const struct nbd_ask *ask)
{
	return ask->flags & NBD_CMD_FLAG_REQ_ONE ? sizeof(struct nbd_extent)
						 : EXTENTS_MAX * sizeof(struct nbd_extent);
}

static uint32_t state_of(const struct map_run *run)
{
	uint32_t state = 0;

	if (!(run->flags & MAP_DATA))
		state |= NBD_STATE_HOLE;
	if (run->flags & MAP_ZERO)
		state |= NBD_STATE_ZERO;
	return state;
}

/* Adds @run. False where there is no room for another extent. */
static bool add(struct nbd_req *nr, const struct map_run *run)
{
	struct nbd_extent *extents = nr->buf;
	uint32_t room = nr->buf_size / sizeof(*extents);
	uint32_t state = state_of(run);
	struct nbd_extent *last = nr->status_extents ? &extents[nr->status_extents - 1] : NULL;

	if (last && be32_get(last->flags) == state) {
		last->len = be32_make(be32_get(last->len) + (uint32_t)run->len);
	} else if (nr->status_extents < room) {
		extents[nr->status_extents++] = (struct nbd_extent){
			.len = be32_make((uint32_t)run->len),
			.flags = be32_make(state),
		};
	} else {
		return false;
	}
	nr->status_len += run->len;
	return true;
}

static void ask_next(struct nbd_req *nr);

static void mapped(struct req *req, int res)
{
	struct nbd_req *nr = container_of(req, struct nbd_req, req);
	uint64_t left = nr->ask.len - nr->status_len;

	if (res < 0 && !nr->status_extents) {
		nbd_reply_errno(nr, res);
		return;
	}
	if (res == 0) {
		assert(req->map.len > 0 && req->map.len <= left);
		if (add(nr, &req->map) && req->map.len < left && ++nr->status_steps < STEPS_MAX &&
		    !nr->conn->is_dead) {
			ask_next(nr);
			return;
		}
	}
	nbd_reply_status(nr, nr->status_extents * (uint32_t)sizeof(struct nbd_extent));
}

static void ask_next(struct nbd_req *nr)
{
	struct req *req = &nr->req;

	req->done = mapped;
	req->off = nr->ask.off + nr->status_len;
	req->len = nr->ask.len - nr->status_len;
	req->iov = NULL;
	req->iovcnt = 0;
	req->iov_skip = 0;
	req->kind = REQ_MAP;
	req->flags = 0;
	port_submit(nr->conn->pc, req);
}

void nbd_status_start(struct nbd_req *nr)
{
	nr->status_len = 0;
	nr->status_extents = 0;
	nr->status_steps = 0;
	ask_next(nr);
}
