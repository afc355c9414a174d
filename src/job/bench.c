/* SPDX-License-Identifier: MIT */
/* job/bench.c - a request that is answered sends the next one from its own done(): the fiber only
 * waits for the end. */
#include "job/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/prng.h"
#include "blk/port.h"
#include "job/job_end.h"
#include "job/latency.h"

enum { BUFFER_ALIGN = 4096 };
#define BUFFERS_MAX (64 * GiB)          /* all of them together */

struct bench;

/* One of the requests under way, or idle. */
struct slot {
	struct req req;
	struct iovec iov;
	struct bench *bench;
	struct slot *next_idle;
	uint64_t start_ns;
};

struct bench {
	const struct bench_opts *o;
	struct port_chan *pc;
	struct fiber *fiber;
	struct slot *slots, *idle;
	uint64_t size;                  /* of the disk */
	uint64_t off;                   /* of the next request */
	struct prng prng;
	uint64_t sent, done, under_way; /* flushes are under way, too */
	uint64_t flush_at;              /* when so many are done */
	int res;                        /* the first error */
};

static void submit(struct slot *s, enum req_kind kind)
{
	struct bench *b = s->bench;

	s->req.kind = (uint8_t)kind;
	s->req.off = b->off;
	s->req.len = b->o->len;
	s->req.iov_skip = 0;
	s->start_ns = loop_now(b->pc->loop);
	b->under_way++;
	port_submit(b->pc, &s->req);
}

/* How many may have been sent now. */
static uint64_t limit(const struct bench *b)
{
	if (b->res)
		return 0;
	return b->o->drain ? MIN(b->flush_at, b->o->count) : b->o->count;
}

/* Where the request after this one goes. */
static void advance(struct bench *b)
{
	const struct bench_opts *o = b->o;

	if (o->random)
		b->off = prng_below(&b->prng, MAX(b->size / o->len, 1ULL)) * o->len;
	else
		b->off = (b->off + o->step) % b->size;
}

static void send_what_may(struct bench *b)
{
	uint64_t most = limit(b);

	while (b->idle && b->sent < most) {
		struct slot *s = b->idle;

		/* A port answers -ENOSPC or -EINVAL. */
		if (!range_within(b->off, b->o->len, b->size)) {
			b->res = -EIO;
			break;
		}
		b->idle = s->next_idle;
		b->sent++;
		submit(s, b->o->writes ? REQ_WRITE : REQ_READ);
		advance(b);
	}
}

/* Is it time for a flush? With drain the last one is left to the close of the image. */
static bool flush_is_due(const struct bench *b)
{
	return b->done == b->flush_at && !b->res && !(b->o->drain && b->done == b->o->count);
}

static void slot_done(struct req *req, int res)
{
	struct slot *s = container_of(req, struct slot, req);
	struct bench *b = s->bench;
	bool was_flush = req->kind == REQ_FLUSH;

	b->under_way--;
	b->done += !was_flush;
	if (b->o->latency && !was_flush)
		latency_add(b->o->latency, loop_now(b->pc->loop) - s->start_ns);
	if (res && !b->res)
		b->res = res;
	if (!was_flush && flush_is_due(b)) {
		if (!b->o->drain)
			b->flush_at += b->o->flush_interval;
		submit(s, REQ_FLUSH);
		return;
	}
	if (was_flush && b->o->drain)
		b->flush_at += b->o->flush_interval;
	s->next_idle = b->idle;
	b->idle = s;
	send_what_may(b);
	if (!b->under_way)
		fiber_wake(b->fiber);
}

static void slots_init(struct bench *b, char *buf, uint64_t n, uint64_t stride)
{
	for (uint64_t i = n; i-- > 0;) {
		struct slot *s = &b->slots[i];

		s->bench = b;
		s->iov = (struct iovec){ buf + i * stride, b->o->len };
		s->req.done = slot_done;
		s->req.iov = &s->iov;
		s->req.iovcnt = 1;
		s->next_idle = b->idle;
		b->idle = s;
	}
}

static uint64_t first_flush(const struct bench_opts *o)
{
	uint64_t n = o->flush_interval;

	if (!n)
		return UINT64_MAX;
	return o->count % n ? o->count % n : n;
}

int bench_run_wait(struct port_chan *pc, const struct bench_opts *o, uint64_t *ret_ns)
{
	uint64_t n = MIN(o->depth, o->count), stride = align_up(o->len, BUFFER_ALIGN), bytes;
	struct bench b = { .o = o, .pc = pc, .off = o->off, .size = port_size(pc->port),
			   .flush_at = first_flush(o), .fiber = fiber_self() };
	char *buf = NULL;
	uint64_t start;

	assert(n && o->len && (!o->flush_interval || o->flush_interval >= o->depth));
	if (!__builtin_mul_overflow(n, stride, &bytes) && bytes <= BUFFERS_MAX)
		buf = chan_memory_get(pc->ch, bytes);
	if (buf)
		b.slots = calloc(n, sizeof(*b.slots));
	if (!b.slots) {
		chan_memory_put(pc->ch, buf, bytes);
		return -ENOMEM;
	}
	if (o->writes)
		memset(buf, o->pattern, bytes);
	slots_init(&b, buf, n, stride);
	b.prng.state = o->seed;
	if (o->random)
		advance(&b);
	start = loop_now(pc->loop);
	send_what_may(&b);
	while (b.under_way)
		fiber_park();
	*ret_ns = loop_now(pc->loop) - start;
	free(b.slots);
	chan_memory_put(pc->ch, buf, bytes);
	job_end_wait(pc->loop, start);
	return b.res;
}
