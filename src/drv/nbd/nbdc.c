/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc.c - submit: what the export has and what not, and which connection serves it.
 *
 * Requests that lie behind the export's end are answered here: reads and maps find zeros, as behind
 * the end of a file; writes find no room. */
#include <errno.h>
#include <stdatomic.h>

#include "drv/nbd/nbdc_impl.h"

static void posted(struct task *t)
{
	struct req *req = container_of(t, struct req, task);

	nbdc_start(nbdc_req(req)->conn, req);
}

static void send_on(struct chan *ch, struct req *req)
{
	struct nbdc_chan *nc = nbdc_chan(ch);
	struct nbdc_req *nr = nbdc_req(req);

	*nr = (struct nbdc_req){ .conn = nc->conn };
	if (nc->conn) {
		nbdc_start(nc->conn, req);
		return;
	}
	nr->conn = nbdc_chan(ch->node->home_chan)->conn;
	req->task.fn = posted;
	loop_post(ch->node->home, &req->task);
}

static bool is_change(const struct req *req)
{
	return req->kind == REQ_WRITE || req->kind == REQ_ZERO || req->kind == REQ_DISCARD;
}

static void answer_map(struct req *req, uint64_t len, unsigned flags)
{
	req->map = (struct map_run){
		.len = len,
		.host_off = req->off,
		.file = req->ch->node,
		.flags = MAP_HOST | MAP_PRESENT | flags,
	};
	req_finish(req->ch, req, 0);
}

/* @req reaches over the end, which is at @size. True: it was answered. */
static bool cut_at_end(struct chan *ch, struct req *req, uint64_t size)
{
	uint64_t left = size > req->off ? size - req->off : 0;

	if (req->kind == REQ_WRITE || req->kind == REQ_ZERO) {
		req_finish(ch, req, -ENOSPC);
		return true;
	}
	if (req->kind == REQ_MAP && !left) {
		answer_map(req, req->len, MAP_ZERO);
		return true;
	}
	if (req->kind == REQ_READ)
		req_zero_part(req, left, req->len - left);
	req->len = left;
	if (!left)
		req_finish(ch, req, 0);
	return !left;
}

void nbdc_submit(struct chan *ch, struct req *req)
{
	const struct nbdc_node *nn = nbdc_node(ch);
	uint64_t size = nn->info.size;

	req->ch = ch;
	if (req->kind == REQ_FLUSH) {
		/* Nothing was written through a read-only node. */
		if (ch->node->read_only || nn->no_flush || !nn->info.can_flush)
			req_finish(ch, req, 0);
		else
			send_on(ch, req);
		return;
	}
	if (req->kind == REQ_DISCARD && !ch->node->can_discard && !ch->node->read_only) {
		req_finish(ch, req, 0);
		return;
	}
	if (!req->len) {
		req_finish(ch, req, 0);
		return;
	}
	if (ch->node->read_only && is_change(req)) {
		req_finish(ch, req, -EROFS);
		return;
	}
	if (req->kind == REQ_COPY) {
		req_finish(ch, req, -ENOTSUP);
		return;
	}
	if (!range_within(req->off, req->len, size) && cut_at_end(ch, req, size))
		return;
	if (req->kind == REQ_MAP && !nn->info.can_map)
		answer_map(req, req->len, MAP_DATA);
	else if (req->kind == REQ_ZERO && (req->flags & REQ_FAST_ONLY) && !nn->info.can_fast_zero)
		req_finish(ch, req, -ENOTSUP);
	else
		send_on(ch, req);
}
