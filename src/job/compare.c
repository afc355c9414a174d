/* SPDX-License-Identifier: MIT */
#include "job/compare.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/zero.h"
#include "blk/port.h"
#include "job/job_end.h"
#include "job/map.h"
#include "loop/work.h"

enum { SECTOR = 512, BUFFER_ALIGN = 4096 };

/* Part of a chunk, or all of one that is not read. */
struct piece {
	struct compare *c;
	uint64_t chunk_off;
	uint64_t off, len;
	bool ends_chunk;
	bool reads[2];                  /* the other disk is zero here */
	unsigned pending;               /* reads that are not answered (D3) */
	bool is_looked_at;
	struct work work;
	int res[2];
	uint64_t equal;                 /* bytes from off on; len: all */
	struct req req[2];
	struct iovec iov[2];
	uint8_t *buf[2];
};

/* One disk's side. */
struct side {
	struct map_cursor cursor;
	struct map_run run;             /* what is at `off` of the comparison, from there on */
	uint64_t size;
};

struct compare {
	const struct compare_opts *o;
	struct compare_result *result;
	struct fiber *fiber;
	struct side side[2];
	uint64_t common;                /* the shorter disk's size */
	uint64_t total;                 /* the longer disk's */
	struct piece pieces[COMPARE_PIECES];
	uint64_t sent, judged;          /* pieces, ever */
	uint64_t chunk_differs_at;      /* of the chunk being judged; UINT64_MAX: nowhere so far */
	int chunk_res[2];
	uint8_t *buffers;
};

/* ---- looking at bytes ---- */

uint64_t compare_bytes(const uint8_t *a, const uint8_t *b, uint64_t len)
{
	if (!len || (b ? !memcmp(a, b, len) : bytes_are_zero(a, len)))
		return len;
	for (uint64_t at = 0; at < len; at += SECTOR) {
		uint64_t n = MIN(len - at, (uint64_t)SECTOR);

		if (b ? memcmp(a + at, b + at, n) : !bytes_are_zero(a + at, n))
			return at;
	}
	return len;
}

/* ---- pieces ---- */

static void look(struct piece *p)
{
	p->equal = p->len;
	if (p->res[0] || p->res[1])
		return;
	if (p->reads[0] && p->reads[1])
		p->equal = compare_bytes(p->buf[0], p->buf[1], p->len);
	else
		p->equal = compare_bytes(p->buf[p->reads[1]], NULL, p->len);
}

static void look_work(struct work *w)
{
	look(container_of(w, struct piece, work));
}

static void looked(struct work *w)
{
	struct piece *p = container_of(w, struct piece, work);

	p->is_looked_at = true;
	fiber_wake(p->c->fiber);
}

/* The bytes are looked at by a worker: the loop goes on reading meanwhile. */
static void read_ended(struct piece *p, unsigned which, int res)
{
	p->res[which] = res;
	if (--p->pending)
		return;
	p->work = (struct work){ .fn = look_work, .done = looked };
	loop_work(p->c->o->pc[0]->loop, &p->work);
}

static void first_done(struct req *req, int res)
{
	read_ended(container_of(req, struct piece, req[0]), 0, res);
}

static void second_done(struct req *req, int res)
{
	read_ended(container_of(req, struct piece, req[1]), 1, res);
}

static void send_read(struct piece *p, unsigned which)
{
	p->iov[which] = (struct iovec){ p->buf[which], p->len };
	p->req[which] = (struct req){
		.done = which ? second_done : first_done,
		.kind = REQ_READ,
		.off = p->off,
		.len = p->len,
		.iov = &p->iov[which],
		.iovcnt = 1,
	};
	port_submit(p->c->o->pc[which], &p->req[which]);
}

static bool has_result(const struct compare *c)
{
	return c->result->verdict != COMPARE_SAME;
}

static void set_result(struct compare *c, enum compare_verdict verdict, uint64_t off,
		       unsigned which, int error)
{
	if (!has_result(c))
		*c->result = (struct compare_result){ verdict, off, which, error };
}

static void judge_chunk(struct compare *c, const struct piece *last)
{
	uint64_t done = last->off + last->len;

	for (unsigned i = 0; i < 2; i++)
		if (c->chunk_res[i])
			set_result(c, COMPARE_READ_FAILED, last->chunk_off, i, c->chunk_res[i]);
	if (c->chunk_differs_at != UINT64_MAX)
		set_result(c, COMPARE_DIFFERS, c->chunk_differs_at, 0, 0);
	if (!has_result(c) && c->o->on_progress)
		c->o->on_progress(c->o->arg, done, c->total);
	c->chunk_differs_at = UINT64_MAX;
	c->chunk_res[0] = c->chunk_res[1] = 0;
}

/* The oldest piece that is not judged; waits for it. (D2) */
static void judge_wait(struct compare *c)
{
	struct piece *p = &c->pieces[c->judged % COMPARE_PIECES];

	while (!p->is_looked_at)
		fiber_park();
	c->judged++;
	for (unsigned i = 0; i < 2; i++)
		if (p->res[i] && !c->chunk_res[i])
			c->chunk_res[i] = p->res[i];
	if (p->equal < p->len && c->chunk_differs_at == UINT64_MAX)
		c->chunk_differs_at = p->off + p->equal;
	if (p->ends_chunk)
		judge_chunk(c, p);
}

static void judge_all_wait(struct compare *c)
{
	while (c->judged < c->sent)
		judge_wait(c);
}

static void send_piece_wait(struct compare *c, struct piece what)
{
	struct piece *p = &c->pieces[c->sent % COMPARE_PIECES];

	if (c->sent - c->judged == COMPARE_PIECES)
		judge_wait(c);
	what.c = c;
	what.buf[0] = p->buf[0];
	what.buf[1] = p->buf[1];
	what.equal = what.len;
	what.pending = (unsigned)what.reads[0] + what.reads[1];
	what.is_looked_at = !what.pending;
	*p = what;
	c->sent++;
	for (unsigned i = 0; i < 2; i++)
		if (p->reads[i])
			send_read(p, i);
}

static void send_chunk_wait(struct compare *c, uint64_t off, uint64_t len, const bool reads[2])
{
	bool any = reads[0] || reads[1];

	for (uint64_t at = 0; at < len;) {
		uint64_t n = any ? MIN(len - at, (uint64_t)COMPARE_PIECE_BYTES) : len;

		send_piece_wait(c, (struct piece){
			.chunk_off = off, .off = off + at, .len = n, .ends_chunk = at + n == len,
			.reads = { reads[0], reads[1] } });
		at += n;
	}
}

/* ---- the walk ---- */

/* Makes side @i's run begin at @off. */
static int run_at_wait(struct compare *c, unsigned i, uint64_t off)
{
	struct side *s = &c->side[i];
	int rc;

	if (s->run.len)
		return 0;
	assert(s->cursor.off == off);
	rc = map_next_wait(&s->cursor, &s->run);
	if (!rc)
		return 0;
	judge_all_wait(c);
	set_result(c, COMPARE_MAP_FAILED, off, i, rc);
	return rc;
}

static void advance(struct side *s, uint64_t n)
{
	if (s->run.len)
		s->run.len -= n;
}

/* What strict mode wants to be alike: the flags, and whether the run reaches the end of the layer
 * that it is in. */
static unsigned status(const struct compare *c, unsigned i, uint64_t off)
{
	enum { ENDS = 1 << 16 };
	const struct map_run *run = &c->side[i].run;
	const struct node *n = c->o->pc[i]->port->node;

	for (unsigned depth = run->depth; depth && n->child[CHILD_BACKING]; depth--)
		n = n->child[CHILD_BACKING];
	return run->flags | (off + run->len == atomic_load(&n->size) ? ENDS : 0);
}

/* Compares the chunk at @off, where both disks are, and says how long it is; 0: there is a
 * result. */
static uint64_t both_wait(struct compare *c, uint64_t off)
{
	const struct map_run *a = &c->side[0].run, *b = &c->side[1].run;
	uint64_t len;
	bool reads[2];

	if (run_at_wait(c, 0, off) || run_at_wait(c, 1, off))
		return 0;
	if (c->o->is_strict && status(c, 0, off) != status(c, 1, off)) {
		judge_all_wait(c);
		set_result(c, COMPARE_STATUS_DIFFERS, off, 0, 0);
		return 0;
	}
	len = MIN(a->len, b->len);
	reads[0] = !(a->flags & MAP_ZERO);
	reads[1] = !(b->flags & MAP_ZERO);
	if (reads[0] || reads[1])
		len = MIN(len, (uint64_t)COMPARE_CHUNK_BYTES);
	send_chunk_wait(c, off, len, reads);
	return len;
}

/* The same where only the longer disk is. */
static uint64_t rest_wait(struct compare *c, uint64_t off)
{
	unsigned i = c->side[1].size > c->side[0].size;
	const struct map_run *run = &c->side[i].run;
	bool reads[2] = { false, false };
	uint64_t len;

	if (run_at_wait(c, i, off))
		return 0;
	reads[i] = !(run->flags & MAP_ZERO);
	len = reads[i] ? MIN(run->len, (uint64_t)COMPARE_CHUNK_BYTES) : run->len;
	send_chunk_wait(c, off, len, reads);
	return len;
}

static void walk_wait(struct compare *c, uint64_t from, uint64_t to,
		      uint64_t (*step_wait)(struct compare *c, uint64_t off))
{
	uint64_t len;

	for (uint64_t off = from; off < to && !has_result(c); off += len) {
		len = step_wait(c, off);
		if (!len)
			break;
		advance(&c->side[0], len);
		advance(&c->side[1], len);
	}
	judge_all_wait(c);
}

static int init(struct compare *c)
{
	c->buffers = aligned_alloc(BUFFER_ALIGN, 2UL * COMPARE_PIECES * COMPARE_PIECE_BYTES);
	if (!c->buffers)
		return -ENOMEM;
	for (unsigned i = 0; i < 2UL * COMPARE_PIECES; i++)
		c->pieces[i / 2].buf[i % 2] = c->buffers + (size_t)i * COMPARE_PIECE_BYTES;
	for (unsigned i = 0; i < 2; i++) {
		struct side *s = &c->side[i];

		s->size = port_size(c->o->pc[i]->port);
		map_cursor_init(&s->cursor, c->o->pc[i], 0, s->size);
	}
	c->common = MIN(c->side[0].size, c->side[1].size);
	c->total = MAX(c->side[0].size, c->side[1].size);
	c->chunk_differs_at = UINT64_MAX;
	return 0;
}

int compare_run_wait(const struct compare_opts *o, struct compare_result *ret)
{
	struct compare *c = calloc(1, sizeof(*c));
	struct compare_result result = { 0 };
	uint64_t start = loop_now(o->pc[0]->loop);
	int rc;

	if (!c)
		return -ENOMEM;
	c->o = o;
	c->result = &result;
	c->fiber = fiber_self();
	rc = init(c);
	if (!rc) {
		walk_wait(c, 0, c->common, both_wait);
		if (!has_result(c) && c->common < c->total) {
			if (o->on_longer)
				o->on_longer(o->arg);
			walk_wait(c, c->common, c->total, rest_wait);
		}
		*ret = result;
	}
	free(c->buffers);
	free(c);
	job_end_wait(o->pc[0]->loop, start);
	return rc;
}
