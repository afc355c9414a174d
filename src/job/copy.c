/* SPDX-License-Identifier: MIT */
#include "job/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "base/zero.h"
#include "blk/port.h"
#include "job/copy_plan.h"
#include "job/job_end.h"

enum { SECTOR = 512, WRITES_MAX = 16, HUGE_PAGE = 2 << 20 };

#define PACE_LOOK_NS (100 * NS_PER_MS)

/* What a fiber has in hand. */
struct piece {
	struct copy_chunk chunk;        /* that it is a part of */
	uint64_t off, len;              /* in the target */
	uint64_t seq;                   /* pieces are written in the order of this */
};

struct copy {
	const struct copy_opts *o;
	struct copy_plan plan;
	uint64_t piece_bytes;
	bool offloads;
	struct sharer {
		const struct node *file;        /* that a source lies in */
		uint64_t align;                 /* for sharing; 0: it cannot be */
	} sharers[COPY_SHARERS_MAX];            /* those that are known */
	unsigned nsharers;
	uint64_t work_bytes, begun_bytes;       /* progress */

	struct copy_chunk chunk;        /* being cut into pieces */
	uint64_t chunk_rest;
	bool is_cutting;                /* a fiber is at it, */
	struct fiber_queue cutters;     /* and these want to be */
	bool is_ended;                  /* there are no more pieces */
	uint64_t next_lap;              /* laps: where it begins */
	unsigned npieces;               /* that are under way */
	struct fiber *lapper;           /* waits until there are none */
	unsigned nstuck;                /* of them, that found no room; no more are begun, */
	struct fiber_queue stuck;       /* and all of these wait till there is some */
	unsigned nroom;                 /* how often there was, or not: */
	int room_rc;
	uint64_t next_seq, turn;        /* turn: of the piece whose writes are sent next */
	struct fiber *in_order[COPY_DEPTH_MAX]; /* who waits for its turn, by its piece's seq */

	uint64_t may_send_ns;           /* rate: not before */
	struct copy_result result;
	bool has_failed;

	void *bufs_map;                 /* owned */
	size_t bufs_bytes;
	uint8_t *bufs;                  /* all of them, in there */
	unsigned depth;
	unsigned nrunning;
	struct fiber *waiter;
};

struct write_req {
	struct req req;
	struct iovec iov;
	struct copier *copier;
	bool is_busy;
};

struct copier {
	struct copy *c;
	struct task task;
	struct fiber *fiber;
	uint8_t *buf;
	struct piece piece;
	struct write_req writes[WRITES_MAX];
	unsigned nbusy;
	int write_error;
	bool is_late;                   /* the piece is written once more: no order any longer */
};

/* ---- looking for zeros ---- */

/* Whole blocks from the start of @buf on that are all zero, or all not. */
static uint64_t alike(const uint8_t *buf, uint64_t len, uint64_t off, uint64_t align,
		      bool *ret_is_zero)
{
	uint64_t at = 0;

	while (at < len) {
		uint64_t n = MIN(len - at, align - ((off + at) & (align - 1)));
		bool is_zero = bytes_are_zero(buf + at, n);

		if (at && is_zero != *ret_is_zero)
			break;
		*ret_is_zero = is_zero;
		at += n;
	}
	return at;
}

uint64_t copy_run(const uint8_t *buf, uint64_t len, uint64_t off, uint64_t min_sparse,
		  uint64_t align, bool *ret_is_zero)
{
	uint64_t end = alike(buf, len, off, align, ret_is_zero), used = end;
	bool is_zero = false;

	if (*ret_is_zero)
		return end;
	while (end < len) {
		uint64_t n = alike(buf + end, len - end, off + end, align, &is_zero);

		end += n;
		if (!is_zero)
			used = end;
		else if (n >= min_sparse)
			break;
	}
	return used;
}

/* ---- failing ---- */

/* Of several pieces that fail the first counts, wherever the others are. To qemu-img a compressed
 * cluster is a chunk, and it fails as a whole. */
static void fail(struct copy *c, enum copy_fault fault, const struct copy_chunk *chunk,
		 uint64_t off, int error)
{
	bool is_alone = fault == COPY_READ_FAILED && chunk->is_compressed;
	uint64_t chunk_off = is_alone ? off : chunk->off;

	if (c->has_failed && chunk_off >= c->result.chunk_off)
		return;
	c->has_failed = true;
	c->result = (struct copy_result) { .fault = fault, .chunk_off = chunk_off, .off = off,
					   .error = error };
}

static bool is_over(struct copy *c)
{
	if (!c->has_failed && c->o->is_stopped && atomic_load(c->o->is_stopped)) {
		c->has_failed = true;
		c->result = (struct copy_result) { .chunk_off = UINT64_MAX, .error = -ECANCELED };
	}
	return c->has_failed;
}

/* ---- cutting ---- */

/* Is @chunk written as data? */
static bool is_data(const struct copy *c, const struct copy_chunk *chunk)
{
	return chunk->status == COPY_DATA || (chunk->status == COPY_ZERO && !c->o->min_sparse);
}

/* Does it ask for anything to be done? */
static bool is_work(const struct copy *c, const struct copy_chunk *chunk)
{
	return is_data(c, chunk) || (chunk->status == COPY_ZERO && !c->o->target_is_zero);
}

/* Bytes of it that count for progress. */
static uint64_t progress_of(const struct copy *c, const struct copy_chunk *chunk)
{
	return is_data(c, chunk) ? chunk->len : 0;
}

static void add_progress(struct copy *c, uint64_t bytes)
{
	c->begun_bytes += bytes;
	if (bytes && c->o->on_progress)
		c->o->on_progress(c->o->arg, c->begun_bytes, c->work_bytes);
}

static void next_chunk_wait(struct copy *c)
{
	uint64_t fault_off;
	int rc = plan_next_wait(&c->plan, &c->chunk, &fault_off);

	if (rc)
		fail(c, COPY_MAP_FAILED, &c->chunk, fault_off, rc);
	if (rc || !c->chunk.len) {
		c->is_ended = true;
		return;
	}
	c->chunk_rest = is_work(c, &c->chunk) ? c->chunk.len : 0;
	add_progress(c, progress_of(c, &c->chunk));
}

/* ---- in order ---- */

/* Waits until the writes of all pieces before @seq have been sent. There are no more of them than
 * copiers, so each has a place of its own in c->in_order. */
static void turn_wait(struct copy *c, uint64_t seq)
{
	struct fiber **place = &c->in_order[seq % COPY_DEPTH_MAX];

	while (!c->o->out_of_order && c->turn != seq) {
		*place = fiber_self();
		fiber_park();
	}
	*place = NULL;
}

static void turn_end(struct copy *c)
{
	struct fiber *next = c->in_order[++c->turn % COPY_DEPTH_MAX];

	if (next)
		fiber_wake(next);
}

/* ---- without room ---- */

/* Where all pieces that are under way have found no room: has some made (D11). */
static void make_room_wait(struct copy *c)
{
	if (!c->nstuck || c->nstuck < c->npieces)
		return;
	c->room_rc = is_over(c) ? -ECANCELED : c->o->on_no_room_wait(c->o->arg);
	c->nstuck = 0;
	c->nroom++;
	fiber_queue_wake(&c->stuck);
}

/* ---- sharing ---- */

/* NULL: there are too many. */
static struct sharer *sharer_wait(struct copy *c, const struct node *file)
{
	struct sharer *s;

	for (unsigned i = 0; i < c->nsharers; i++)
		if (c->sharers[i].file == file)
			return &c->sharers[i];
	if (c->nsharers == COPY_SHARERS_MAX)
		return NULL;
	s = &c->sharers[c->nsharers++];
	s->file = file;
	s->align = node_share_align_wait(c->o->target->port->node, file);
	return s;
}

/* How much from the start of @next, which lies in @s->file, may be shared. */
static uint64_t shareable(const struct sharer *s, const struct copy_chunk *next)
{
	uint64_t size;

	if (!s->align || !is_aligned(next->off | next->host_off, s->align))
		return 0;
	/* What is said to be behind the end of the file reads as zeros. */
	size = atomic_load(&next->file->size);
	if (next->host_off >= size)
		return 0;
	size = MIN(next->len, size - next->host_off);
	return align_down(MIN(size, (uint64_t)COPY_SHARE_BYTES), s->align);
}

/* Shares what comes next, if that can be. One at a time: the file system would not do more. */
static bool share_next_wait(struct copy *c)
{
	struct copy_chunk next;
	struct req req = { .kind = REQ_COPY, .flags = REQ_SHARE };
	struct sharer *sharer;
	uint64_t fault_off;
	int rc;

	/* An error there is met again when it is to be read. */
	if (!c->o->shares || plan_look_wait(&c->plan, &next, &fault_off) || !next.file)
		return false;
	sharer = sharer_wait(c, next.file);
	req.len = sharer ? shareable(sharer, &next) : 0;
	if (!req.len)
		return false;
	req.off = next.off;
	req.from = next.file;
	req.from_off = next.host_off;
	if (!c->o->out_of_order)
		req.flags |= REQ_IN_ORDER;
	while (c->nstuck)
		fiber_queue_wait(&c->stuck);
	c->npieces++;
	turn_wait(c, c->next_seq++);
	rc = is_over(c) ? -ECANCELED : port_submit_wait(c->o->target, &req);
	turn_end(c);
	c->npieces--;
	make_room_wait(c);
	if (rc) {
		/* Once is enough (D9): where a file cannot be read, or there is no room, those who
		 * read and write will tell. */
		sharer->align = 0;
		return false;
	}
	plan_pass(&c->plan, req.len);
	add_progress(c, req.len);
	return true;
}

/* ---- pieces ---- */

/* How much of the chunk the next piece is: no more than a buffer, unless no buffer is needed.
 * Pieces end where zeros may begin. */
static uint64_t piece_len(const struct copy *c, uint64_t off)
{
	uint64_t n = c->piece_bytes;

	if (!is_data(c, &c->chunk))
		return c->chunk_rest;
	if (c->o->cluster || c->piece_bytes != COPY_CHUNK_BYTES)
		n -= off % c->piece_bytes;
	return MIN(n, c->chunk_rest);
}

/* Where a lap begins with what comes next: has all that comes before done, and says so (D10). */
static void lap_wait(struct copy *c)
{
	struct copy_chunk next = { .off = c->plan.off };
	int rc;

	if (!c->o->on_lap_wait || c->plan.off < c->next_lap || c->plan.off == c->plan.total)
		return;
	c->next_lap = (c->plan.off / c->o->lap + 1) * c->o->lap;
	c->lapper = fiber_self();
	while (c->npieces)
		fiber_park();
	c->lapper = NULL;
	rc = is_over(c) ? 0 : c->o->on_lap_wait(c->o->arg);
	if (rc)
		fail(c, COPY_WRITE_FAILED, &next, next.off, rc);
}

/* The next piece, in @p. False: there is none, or something has failed. */
static bool take_piece_wait(struct copy *c, struct piece *p)
{
	bool has_one = false;

	while (c->is_cutting)
		fiber_queue_wait(&c->cutters);
	c->is_cutting = true;
	while (!c->is_ended && !c->chunk_rest && !is_over(c)) {
		lap_wait(c);
		if (!share_next_wait(c))
			next_chunk_wait(c);
	}
	while (c->nstuck)
		fiber_queue_wait(&c->stuck);
	if (!c->is_ended && !is_over(c)) {
		p->chunk = c->chunk;
		p->off = c->chunk.off + c->chunk.len - c->chunk_rest;
		p->len = piece_len(c, p->off);
		p->seq = c->next_seq++;
		c->chunk_rest -= p->len;
		c->npieces++;
		has_one = true;
	}
	c->is_cutting = false;
	fiber_queue_wake(&c->cutters);
	return has_one;
}

/* ---- reading ---- */

/* Reads [@off, @off + @len) of what the sources are together. */
static int read_wait(const struct copy *c, uint64_t off, uint8_t *buf, uint64_t len)
{
	int rc = 0;

	while (len && !rc) {
		uint64_t source_off;
		const struct plan_source *s = plan_source_at(&c->plan, off, &source_off);
		uint64_t n = MIN(len, s->end - off);
		struct iovec iov = { buf, n };
		struct req req = { .kind = REQ_READ, .off = source_off, .len = n, .iov = &iov,
				   .iovcnt = 1 };

		rc = port_submit_wait(s->pc, &req);
		off += n;
		buf += n;
		len -= n;
	}
	return rc;
}

/* What could not be read at once is read a sector at a time: to find out where it cannot be read,
 * or, in a salvage, to get what there is. */
static int read_sectors_wait(struct copy *c, const struct piece *p, uint8_t *buf)
{
	for (uint64_t at = 0; at < p->len; at += SECTOR) {
		uint64_t n = MIN((uint64_t)SECTOR, p->len - at), source_off;
		int rc = read_wait(c, p->off + at, buf + at, n);

		if (!rc)
			continue;
		plan_source_at(&c->plan, p->off + at, &source_off);
		if (!c->o->salvage) {
			fail(c, COPY_READ_FAILED, &p->chunk, p->off + at, rc);
			return rc;
		}
		memset(buf + at, 0, n);
		if (c->o->on_lost)
			c->o->on_lost(c->o->arg, COPY_READ_FAILED, p->off + at, rc);
	}
	return 0;
}

static int read_piece_wait(struct copier *w)
{
	const struct piece *p = &w->piece;
	int rc;

	if (p->chunk.status == COPY_ZERO) {
		memset(w->buf, 0, p->len);
		return 0;
	}
	rc = read_wait(w->c, p->off, w->buf, p->len);
	return rc ? read_sectors_wait(w->c, p, w->buf) : 0;
}

/* ---- writing ---- */

static void written(struct req *req, int res)
{
	struct write_req *wr = container_of(req, struct write_req, req);
	struct copier *w = wr->copier;

	wr->is_busy = false;
	w->nbusy--;
	if (res && !w->write_error)
		w->write_error = res;
	fiber_wake(w->fiber);
}

static struct write_req *free_write_wait(struct copier *w)
{
	while (w->nbusy == WRITES_MAX)
		fiber_park();
	for (unsigned i = 0;; i++)
		if (!w->writes[i].is_busy)
			return &w->writes[i];
}

/* Waits until @len more bytes may be sent. That may be long: a stop ends it. */
static void pace_wait(struct copy *c, uint64_t len)
{
	uint64_t now = loop_now(loop_current()), rate = c->o->rate;

	if (!rate)
		return;
	while (c->may_send_ns > now && !is_over(c)) {
		fiber_sleep_wait(MIN(c->may_send_ns - now, PACE_LOOK_NS));
		now = loop_now(loop_current());
	}
	now = MAX(now, c->may_send_ns);
	c->may_send_ns = now + (uint64_t)((double)len * (double)NS_PER_SEC / (double)rate);
}

/* Sends a write of @buf, or of zeros where it is NULL. */
static void send_wait(struct copier *w, uint64_t off, uint8_t *buf, uint64_t len)
{
	const struct copy_opts *o = w->c->o;
	struct write_req *wr;

	pace_wait(w->c, len);
	wr = free_write_wait(w);
	wr->copier = w;
	wr->is_busy = true;
	wr->iov = (struct iovec) { buf, len };
	wr->req = (struct req) {
		.done = written, .kind = buf ? REQ_WRITE : REQ_ZERO, .off = off, .len = len,
		.iov = buf ? &wr->iov : NULL, .iovcnt = buf ? 1 : 0,
	};
	if (!buf && o->min_sparse)
		wr->req.flags = REQ_MAY_UNMAP;
	else if (buf && o->cluster)
		wr->req.flags = REQ_COMPRESSED;
	if (!o->out_of_order && !w->is_late)
		wr->req.flags |= REQ_IN_ORDER;
	w->nbusy++;
	port_submit(o->target, &wr->req);
}

/* Sends what the buffer holds, run after run. */
static void send_runs_wait(struct copier *w)
{
	const struct copy_opts *o = w->c->o;
	const struct piece *p = &w->piece;

	for (uint64_t at = 0; at < p->len && !w->write_error;) {
		uint64_t n = p->len - at;
		bool is_zero = false;

		if (o->min_sparse && o->cluster)
			is_zero = bytes_are_zero(w->buf + at, n);
		else if (o->min_sparse)
			n = copy_run(w->buf + at, n, p->off + at, o->min_sparse, o->align,
				     &is_zero);
		if (!is_zero)
			send_wait(w, p->off + at, w->buf + at, n);
		else if (!o->target_is_zero)
			send_wait(w, p->off + at, NULL, n);
		at += n;
	}
}

/* True: it is there now, and nothing is left to do. */
static bool offload_wait(struct copier *w)
{
	struct copy *c = w->c;
	const struct piece *p = &w->piece;
	struct req req = { .kind = REQ_COPY, .off = p->off, .len = p->len, .from = p->chunk.file };

	if (!c->offloads || !p->chunk.file || p->chunk.status != COPY_DATA)
		return false;
	req.from_off = p->chunk.host_off + p->off - p->chunk.off;
	pace_wait(c, p->len);
	if (port_submit_wait(c->o->target, &req))
		c->offloads = false;
	return c->offloads;
}

/* What is left to be sent of a piece. */
enum rest { REST_NOTHING, REST_ZEROS, REST_BUFFER };

static enum rest fetch_piece_wait(struct copier *w)
{
	if (is_over(w->c))
		return REST_NOTHING;
	if (!is_data(w->c, &w->piece.chunk))
		return REST_ZEROS;
	if (offload_wait(w) || read_piece_wait(w))
		return REST_NOTHING;
	return REST_BUFFER;
}

/* The piece found no room. 0: there may be some now. */
static int room_wait(struct copy *c)
{
	unsigned before = c->nroom;

	c->nstuck++;
	make_room_wait(c);
	while (c->nroom == before)
		fiber_queue_wait(&c->stuck);
	return c->room_rc;
}

static void send_rest_wait(struct copier *w, enum rest rest)
{
	const struct piece *p = &w->piece;

	w->write_error = 0;
	if (rest == REST_ZEROS)
		send_wait(w, p->off, NULL, p->len);
	else if (rest == REST_BUFFER)
		send_runs_wait(w);
}

static void copy_piece_wait(struct copier *w)
{
	struct copy *c = w->c;
	const struct piece *p = &w->piece;
	enum rest rest = fetch_piece_wait(w);

	w->is_late = false;
	turn_wait(c, p->seq);
	send_rest_wait(w, is_over(c) ? REST_NOTHING : rest);
	turn_end(c);
	while (w->nbusy)
		fiber_park();
	if (w->write_error == -ENOSPC && c->o->on_no_room_wait && !room_wait(c)) {
		w->is_late = true;
		send_rest_wait(w, rest);
		while (w->nbusy)
			fiber_park();
	}
	if (w->write_error)
		fail(c, COPY_WRITE_FAILED, &p->chunk, p->off, w->write_error);
}

/* ---- the whole ---- */

static void copier_main(struct task *t)
{
	struct copier *w = container_of(t, struct copier, task);
	struct copy *c = w->c;

	w->fiber = fiber_self();
	while (take_piece_wait(c, &w->piece)) {
		copy_piece_wait(w);
		if (!--c->npieces && c->lapper)
			fiber_wake(c->lapper);
		make_room_wait(c);
	}
	if (--c->nrunning == 0)
		fiber_wake(c->waiter);
}

/* How large pieces are. Zeros are looked for within one; so one that may hold a part of a stretch
 * of zeros that counts is as large as a chunk. */
static uint64_t choose_piece_bytes(const struct copy_opts *o)
{
	if (o->cluster)
		return MAX(o->cluster, (uint64_t)SECTOR);
	if (o->min_sparse > o->align || o->align > COPY_SLOW_PIECE_BYTES)
		return COPY_CHUNK_BYTES;
	return o->rate ? COPY_SLOW_PIECE_BYTES : COPY_PIECE_BYTES;
}

/* In huge pages where there are some: past the page cache the kernel looks every page up, and what
 * a device takes in one go is counted in pieces of memory. */
static int bufs_map(struct copy *c)
{
	bool is_packed = c->o->cluster;
	uint64_t least = is_packed ? COPY_PACKED_DEPTH_MIN : COPY_DEPTH_MIN;
	uint64_t bytes = is_packed ? COPY_PACKED_BYTES : COPY_BUFFER_BYTES;
	uint64_t most = MAX(least, bytes / c->piece_bytes);
	size_t size;
	void *p;

	c->depth = (unsigned)MIN((uint64_t)c->o->depth, most);                  /* D7 */
	size = align_up(c->depth * c->piece_bytes, HUGE_PAGE);
	p = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	c->bufs_map = p;
	c->bufs_bytes = size + HUGE_PAGE;
	c->bufs = (uint8_t *)align_up((uintptr_t)p, HUGE_PAGE);
	madvise(c->bufs, size, MADV_HUGEPAGE);
	return 0;
}

static void bufs_unmap(struct copy *c)
{
	if (c->bufs_map)
		munmap(c->bufs_map, c->bufs_bytes);
}

/* Maps all, and counts what is to be done. */
static int survey_wait(struct copy *c)
{
	struct copy_chunk chunk;
	uint64_t fault_off;
	int rc;

	do {
		rc = plan_next_wait(&c->plan, &chunk, &fault_off);
		c->work_bytes += rc ? 0 : progress_of(c, &chunk);
	} while (!rc && chunk.len && !is_over(c));
	if (rc)
		fail(c, COPY_MAP_FAILED, &chunk, fault_off, rc);
	plan_restart(&c->plan);
	return rc;
}

static void run_copiers_wait(struct copy *c, struct copier *copiers)
{
	c->waiter = fiber_self();
	c->nrunning = c->depth;
	for (unsigned i = 0; i < c->depth; i++) {
		copiers[i].c = c;
		copiers[i].buf = c->bufs + i * c->piece_bytes;
		copiers[i].task.fn = copier_main;
		fiber_start(loop_current(), &copiers[i].task);
	}
	while (c->nrunning)
		fiber_park();
}

int copy_run_wait(const struct copy_opts *o, struct copy_result *ret)
{
	struct copy c = { .o = o, .piece_bytes = choose_piece_bytes(o), .offloads = o->offloads,
			  .next_lap = o->lap };
	struct copier *copiers = calloc(o->depth, sizeof(*copiers));
	uint64_t start = loop_now(o->target->loop);
	int rc;

	assert(o->depth && o->depth <= COPY_DEPTH_MAX && is_pow2(o->align));
	assert(!o->cluster || !(o->shares || o->offloads));
	rc = copiers ? plan_init(&c.plan, o) : -ENOMEM;
	if (!rc)
		rc = bufs_map(&c);
	if (!rc && !survey_wait(&c) && !is_over(&c))
		run_copiers_wait(&c, copiers);
	bufs_unmap(&c);
	plan_fini(&c.plan);
	free(copiers);
	job_end_wait(o->target->loop, start);
	if (rc)
		return rc;
	*ret = c.result;
	return c.has_failed ? c.result.error : 0;
}
