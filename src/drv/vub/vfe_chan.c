/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_chan.c - the data path: requests into the queue, answers out of it. */
#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/log.h"
#include "drv/vub/vfe_impl.h"
#include "drv/vub/vfe_part.h"

static struct vfe_chan *vfe_chan(struct chan *ch)
{
	return container_of(ch, struct vfe_chan, chan);
}

/* ---- slots ---- */

static void slot_put(struct vfe_chan *vc, uint16_t token)
{
	struct vfe_slot *s = &vc->slots[token];

	if (s->bounce >= 0)
		vc->bounce_idle[vc->nbounces++] = (uint8_t)s->bounce;
	s->req = NULL;
	s->next_idle = vc->idle_slot;
	vc->idle_slot = token;
	vc->busy_slots--;
}

static void set_turn_end(struct vfe_chan *vc)
{
	if (vc->is_turn_end_set)
		return;
	vc->is_turn_end_set = true;
	loop_at_turn_end(vc->chan.loop, &vc->turn_end);
}

/* Sends the next part of @req. False: there is no room for it now. */
static bool send(struct vfe_chan *vc, struct req *req)
{
	uint16_t token = vc->idle_slot, next;

	if (vc->is_stopped || token == vc->q->ring.size)
		return false;
	next = vc->slots[token].next_idle;
	if (!vfe_part_choose(vc, &vc->slots[token], req)) {
		vc->slots[token] = (struct vfe_slot){ .next_idle = next, .bounce = -1 };
		return false;
	}
	vc->idle_slot = next;
	vc->busy_slots++;
	if (vfe_part_put(vc, token)) {
		slot_put(vc, token);
		return false;
	}
	set_turn_end(vc);
	return true;
}

static void wait_first(struct vfe_chan *vc, struct req *req)
{
	req->next = vc->waiting;
	if (!vc->waiting)
		vc->waiting_tail = &req->next;
	vc->waiting = req;
}

static void wait_last(struct vfe_chan *vc, struct req *req)
{
	req->next = NULL;
	*vc->waiting_tail = req;
	vc->waiting_tail = &req->next;
}

static void send_waiting(struct vfe_chan *vc)
{
	while (vc->waiting) {
		struct req *req = vc->waiting;
		struct req *next = req->next;

		if (!send(vc, req))
			return;
		vc->waiting = next;
		if (!next)
			vc->waiting_tail = &vc->waiting;
	}
}

void vfe_chan_submit(struct chan *ch, struct req *req)
{
	struct vfe_chan *vc = vfe_chan(ch);
	int rc = vfe_part_admit(vc, req);

	if (rc > 0 && vc->dead)
		rc = vc->dead;
	if (rc <= 0)
		req_finish(ch, req, rc);
	else if (vc->waiting || !send(vc, req))
		wait_last(vc, req);
}

/* ---- answers ---- */

/* A part is done: the next one, or the request's answer. */
static void part_done(struct vfe_chan *vc, uint16_t token)
{
	struct req *req = vc->slots[token].req;
	bool has_more;
	int rc = vfe_part_end(vc, token, &has_more);

	slot_put(vc, token);
	if (!has_more)
		req_complete(req, rc);
	else if (!send(vc, req))
		wait_first(vc, req);
}

/* Takes what was used, and no more than the ring holds: a back end that answers as fast as we ask
 * would never let us go (V38). *@ret_more: there may be more. -EPROTO where it makes no sense. */
static int take_used(struct vfe_chan *vc, bool *ret_more)
{
	unsigned left = vc->q->ring.size;
	uint16_t token;
	uint32_t len;
	int rc = 1;

	while (left && (rc = vfe_ring_take(&vc->q->ring, &token, &len)) > 0) {
		part_done(vc, token);
		left--;
	}
	if (rc < 0)
		return rc;
	send_waiting(vc);
	*ret_more = !left;
	return 0;
}

static void take_failed(struct vfe_chan *vc, int rc)
{
	log_error("'%s': queue %u is damaged: %s", vc->chan.node->name, vc->index,
		  rc == -EPROTO ? "the back end answers what was not asked" :
				  "its eventfd fails");
	vfe_chan_kill(vc, -EIO);
}

/* Asks for calls, where they are wanted. True: there is something already. */
static bool arm(struct vfe_chan *vc)
{
	if (!vc->vn->opts.poll)
		return vfe_ring_arm(&vc->q->ring);
	vfe_ring_disarm(&vc->q->ring);
	return false;
}

/* Takes answers, and asks to be called for the next one; or looks again at the end of a turn. */
static void look(struct vfe_chan *vc)
{
	bool has_more = false;
	int rc = take_used(vc, &has_more);

	if (rc) {
		take_failed(vc, rc);
	} else if (has_more || arm(vc)) {
		vc->must_look = true;
		set_turn_end(vc);
	}
}

/* Who polls never asks. */
static void look_by_polling(struct vfe_chan *vc)
{
	int rc = take_used(vc, &(bool){ false });

	if (rc)
		take_failed(vc, rc);
	else if (vc->busy_slots)
		set_turn_end(vc);
}

/* One kick a turn, whatever was added; answers are looked for before that. */
static void turn_end(struct task *t)
{
	struct vfe_chan *vc = container_of(t, struct vfe_chan, turn_end);
	bool must_look = vc->must_look;

	vc->is_turn_end_set = vc->must_look = false;
	if (vc->is_stopped || vc->is_closing)
		return;
	if (vc->vn->opts.poll && vc->busy_slots && !vc->dead)
		look_by_polling(vc);
	else if (must_look && !vc->dead)
		look(vc);
	if (vfe_ring_publish(&vc->q->ring))
		loop_event_signal(vc->chan.loop, vc->q->kick);
}

static void poll_call(struct vfe_chan *vc)
{
	vc->poll.op = IO_EVENT;
	vc->poll.fd = vc->q->call;
	vc->is_polling = true;
	loop_submit(vc->chan.loop, &vc->poll);
}

static void called(struct io *io, int res)
{
	struct vfe_chan *vc = container_of(io, struct vfe_chan, poll);

	vc->is_polling = res > 0;
	if (vc->is_closing)
		fiber_wake(vc->close_waiter);
	else if (!vc->dead && res < 0)
		take_failed(vc, res);
	else if (!vc->dead && !vc->is_stopped)
		look(vc);
}

/* ---- a connection that goes and comes ---- */

void vfe_chan_stop(struct vfe_chan *vc)
{
	if (!vc->dead && take_used(vc, &(bool){ false }))
		vfe_chan_kill(vc, -EIO);
	/* What is added but not shown is shown now: the next back end takes it from the ring. */
	vfe_ring_publish(&vc->q->ring);
	vc->is_stopped = true;
}

void vfe_ring_renew(struct vfe_queue *q, struct vfe_area *a)
{
	a->ring = (a->ring + 1) % VFE_RINGS;
	vfe_ring_move(&q->ring, a->rings + a->ring * a->ring_bytes);
}

void vfe_chan_refill(struct vfe_chan *vc)
{
	vfe_ring_renew(vc->q, vc->area);
	for (unsigned i = 0; i < vc->q->ring.size; i++) {
		int rc = vc->slots[i].req ? vfe_part_put(vc, (uint16_t)i) : 0;

		assert(!rc);            /* they all were in it before */
	}
}

void vfe_chan_resume(struct vfe_chan *vc)
{
	vc->is_stopped = false;
	vfe_ring_publish(&vc->q->ring);
	arm(vc);
	if (vc->busy_slots)
		set_turn_end(vc);
	send_waiting(vc);
	/* Nobody told this back end what is there, and perhaps nobody told us what the one before
	 * it had used. */
	loop_event_signal(vc->chan.loop, vc->q->kick);
	if (!vc->dead)
		look(vc);
}

void vfe_chan_kill(struct vfe_chan *vc, int rc)
{
	struct req *req = vc->waiting;

	vc->dead = rc;
	vc->waiting = NULL;
	vc->waiting_tail = &vc->waiting;
	while (req) {
		struct req *next = req->next;

		req_complete(req, rc);
		req = next;
	}
	for (unsigned i = 0; i < vc->q->ring.size; i++) {
		req = vc->slots[i].req;
		if (!req)
			continue;
		slot_put(vc, (uint16_t)i);
		req_complete(req, rc);
	}
}

/* ---- memory ---- */

static bool chunk_is_used(const struct vfe_chan *vc, unsigned i)
{
	return vc->chunks[i / 64] >> i % 64 & 1;
}

static void chunks_flip(struct vfe_chan *vc, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		vc->chunks[i / 64] ^= 1ULL << i % 64;
}

void *vfe_chan_memory_get(struct chan *ch, size_t bytes)
{
	struct vfe_chan *vc = vfe_chan(ch);
	size_t n = div_round_up(bytes, VFE_DATA_CHUNK), run = 0;

	for (unsigned i = 0; i < VFE_DATA_CHUNKS && n; i++) {
		run = chunk_is_used(vc, i) ? 0 : run + 1;
		if (run == n) {
			unsigned first = i + 1 - (unsigned)n;

			chunks_flip(vc, first, (unsigned)n);
			return vc->area->data + (size_t)first * VFE_DATA_CHUNK;
		}
	}
	return NULL;
}

bool vfe_chan_memory_put(struct chan *ch, void *mem, size_t bytes)
{
	struct vfe_chan *vc = vfe_chan(ch);
	uintptr_t off = (uintptr_t)mem - (uintptr_t)vc->area->data;

	if (off >= VFE_DATA_BYTES)
		return false;
	chunks_flip(vc, (unsigned)(off / VFE_DATA_CHUNK),
		    (unsigned)div_round_up(bytes, VFE_DATA_CHUNK));
	return true;
}

/* ---- beginning and end ---- */

int vfe_chan_init(struct vfe_chan *vc)
{
	unsigned n = vc->vn->link.queue_size;

	vc->slots = calloc(n, sizeof(*vc->slots));
	if (!vc->slots)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++)
		vc->slots[i] = (struct vfe_slot){ .next_idle = (uint16_t)(i + 1), .bounce = -1 };
	for (unsigned i = 0; i < VFE_BOUNCES; i++)
		vc->bounce_idle[vc->nbounces++] = (uint8_t)i;
	vc->waiting_tail = &vc->waiting;
	vc->turn_end.fn = turn_end;
	vc->poll.done = called;
	return 0;
}

void vfe_chan_fini(struct vfe_chan *vc)
{
	free(vc->slots);
}

void vfe_chan_start(struct vfe_chan *vc)
{
	arm(vc);
	poll_call(vc);
}

void vfe_chan_finish_wait(struct vfe_chan *vc)
{
	assert(!vc->busy_slots && !vc->waiting);
	vc->is_closing = true;
	vc->close_waiter = fiber_self();
	if (vc->is_polling)
		loop_cancel(vc->chan.loop, &vc->poll);
	while (vc->is_polling)
		fiber_park();
	while (vc->is_turn_end_set)
		fiber_yield_wait();
}
