/* SPDX-License-Identifier: MIT */
#include "job/map.h"

#include "base/bits.h"
#include "blk/port.h"
#include "job/job_end.h"

void map_cursor_init(struct map_cursor *c, struct port_chan *pc, uint64_t off, uint64_t end)
{
	assert(off <= end);
	*c = (struct map_cursor){ .pc = pc, .off = off, .end = end };
}

static void mapped(struct req *req, int res)
{
	struct map_cursor *c = container_of(req, struct map_cursor, req);

	c->res = res;
	c->is_done = true;
	fiber_wake(c->waiter);
}

int map_next_wait(struct map_cursor *c, struct map_run *ret)
{
	assert(c->off < c->end);
	c->req = (struct req){ .done = mapped, .kind = REQ_MAP, .off = c->off,
			       .len = c->end - c->off };
	c->waiter = fiber_self();
	c->is_done = false;
	port_submit(c->pc, &c->req);
	while (!c->is_done)
		fiber_park();
	if (c->res)
		return c->res;
	assert(c->req.map.len > 0 && c->req.map.len <= c->end - c->off);
	*ret = c->req.map;
	c->off += ret->len;
	return 0;
}

bool map_is_more(const struct map_run *a, const struct map_run *b)
{
	return a->flags == b->flags && a->depth == b->depth && a->file == b->file &&
	       (!(a->flags & MAP_HOST) || a->host_off + a->len == b->host_off);
}

int map_walk_wait(struct port_chan *pc, uint64_t off, uint64_t end, map_take_fn take, void *arg)
{
	struct map_run run = { 0 }, next;
	struct map_cursor c;
	uint64_t start = off, begun = loop_now(pc->loop);

	map_cursor_init(&c, pc, off, end);
	while (c.off < end) {
		int rc = map_next_wait(&c, &next);

		if (rc)
			return rc;
		if (run.len && map_is_more(&run, &next)) {
			run.len += next.len;
			continue;
		}
		if (run.len) {
			rc = take(arg, start, &run, false);
			if (rc)
				return rc;
			start += run.len;
		}
		run = next;
	}
	job_end_wait(pc->loop, begun);
	return take(arg, start, &run, true);
}
