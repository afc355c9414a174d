/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/pack.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/writer.h"
#include "loop/iobuf.h"

enum { SMALL_BYTES = 64 << 10 };

static uint64_t alignment(const struct pack *pk)
{
	return MIN((uint64_t)PACK_ALIGN, pk->w->cluster);
}

/* One piece for all buffers. Who holds memory of the pool may wait for us, so nobody waits here. */
static int memory_get(struct pack *pk)
{
	size_t size;

	if (pk->memory)
		return 0;
	pk->buf_bytes = MAX((size_t)PACK_BUF_BYTES, pk->w->cluster);
	size = PACK_BUFS * pk->buf_bytes;
	pk->memory = iobuf_get(loop_iobufs(pk->w->home), size);
	pk->is_pooled = pk->memory;
	if (!pk->memory)
		pk->memory = aligned_alloc(PACK_ALIGN, size);
	if (!pk->memory)
		return -ENOMEM;
	for (unsigned i = 0; i < PACK_BUFS; i++)
		pk->bufs[i].bytes = pk->memory + i * pk->buf_bytes;
	return 0;
}

/* ---- buffers ---- */

static struct pack_buf *buf_in(struct pack *pk, enum pack_buf_state state)
{
	for (unsigned i = 0; i < PACK_BUFS; i++)
		if (pk->bufs[i].state == state)
			return &pk->bufs[i];
	return NULL;
}

int pack_failure(const struct pack *pk)
{
	for (unsigned i = 0; i < PACK_BUFS; i++)
		if (pk->bufs[i].state == PACK_FAILED)
			return pk->bufs[i].res;
	return 0;
}

static void written(struct req *req, int res)
{
	struct pack_buf *b = container_of(req, struct pack_buf, req);
	struct pack *pk = b->pack;

	b->res = res;
	b->state = res ? PACK_FAILED : PACK_FREE;
	for (unsigned i = 0; i < b->nitems; i++) {
		struct pending *p = b->items[i];

		if (res)
			pending_pack_failed(p, res);
		else if (!--p->parts)
			pending_packed(p);      /* Z7 */
	}
	fiber_queue_wake(&pk->room);
}

/* Writes it, or tries again. */
static void buf_write(struct pack_buf *b)
{
	struct pack *pk = b->pack;

	b->state = PACK_WRITING;
	b->iov = (struct iovec){ b->bytes, b->used };
	b->req = (struct req){ .done = written, .kind = REQ_WRITE, .off = b->host,
			       .len = b->used, .iov = &b->iov, .iovcnt = 1 };
	pk->nwrites++;
	pk->nbytes += b->used;
	pk->nsmall += b->used < SMALL_BYTES;
	chan_submit(pk->w->file, &b->req);
}

static void buf_open(struct pack *pk)
{
	struct pack_buf *b = buf_in(pk, PACK_FREE);

	assert(b && !pk->open && is_aligned(pk->pos, alignment(pk)));           /* Z5 */
	b->pack = pk;
	b->state = PACK_OPEN;
	b->host = pk->pos;
	b->used = 0;
	b->nitems = 0;
	pk->open = b;
}

/* Goes on at @to, in the host cluster of pk->pos or at its end; then nobody has inherited the
 * hold. */
static void skip_to(struct pack *pk, uint64_t to)
{
	uint64_t cluster = pk->w->cluster;

	if (!is_aligned(pk->pos, cluster) && to == align_up(pk->pos, cluster) &&
	    !(pk->w->broken & BREAK_Z9_NO_HOLD))
		alloc_free(&pk->w->alloc, pk->pos / cluster, 1);
	pk->pos = to;
}

/* Fills the open buffer with zeros up to @to. */
static void pad(struct pack *pk, uint64_t to)
{
	struct pack_buf *b = pk->open;

	memset(b->bytes + b->used, 0, to - b->host - b->used);
	b->used = to - b->host;
}

/* What is open goes out. */
static void send_open(struct pack *pk)
{
	struct pack_buf *b = pk->open;

	if (!b)
		return;
	pad(pk, align_up(b->host + b->used, alignment(pk)));
	pk->open = NULL;
	buf_write(b);
}

/* The same, and what comes next begins behind its padding. */
static void send_padded(struct pack *pk)
{
	send_open(pk);
	skip_to(pk, align_up(pk->pos, alignment(pk)));
}

static void resend(struct pack *pk)
{
	for (unsigned i = 0; i < PACK_BUFS; i++)
		if (pk->bufs[i].state == PACK_FAILED)
			buf_write(&pk->bufs[i]);
}

void pack_push(struct pack *pk)
{
	pack_gather_push(pk);
	if (pk->is_placing) {
		pk->is_pushed = true;
		return;
	}
	resend(pk);
	send_padded(pk);
}

/* Where the first byte from @off on is that a buffer holds, and which one; NULL: none does. */
static const struct pack_buf *buf_from(const struct pack *pk, uint64_t off)
{
	const struct pack_buf *found = NULL;

	for (unsigned i = 0; i < PACK_BUFS; i++) {
		const struct pack_buf *b = &pk->bufs[i];

		if (b->state != PACK_FREE && b->host + b->used > off &&
		    (!found || b->host < found->host))
			found = b;
	}
	return found;
}

int pack_read_wait(const struct pack *pk, uint64_t off, uint8_t *buf, uint64_t len)
{
	struct { uint64_t at, len; } rest[PACK_BUFS + 1];
	uint64_t end, to;
	unsigned n = 0;
	int rc = 0;

	/* All buffers first: one may be written, and used again, while the file is read. What is
	 * in none by now is in the file. */
	for (uint64_t at = off; at < off + len; at = to) {
		const struct pack_buf *b = buf_from(pk, at);

		if (b && b->host <= at) {
			end = b->host + b->used;
			to = MIN(end, off + len);
			memcpy(buf + (at - off), b->bytes + (at - b->host), to - at);
		} else {
			to = b ? MIN(b->host, off + len) : off + len;
			rest[n].at = at;
			rest[n++].len = to - at;
		}
	}
	for (unsigned i = 0; i < n && !rc; i++)
		rc = chan_read_wait(pk->w->file, rest[i].at, buf + (rest[i].at - off), rest[i].len);
	return rc;
}

/* Waits until what was sent again has ended. */
int pack_retry_wait(struct pack *pk)
{
	if (!buf_in(pk, PACK_FAILED))
		return 0;
	resend(pk);
	while (buf_in(pk, PACK_WRITING))
		fiber_queue_wait(&pk->room);
	return pack_failure(pk);
}

/* Buffers for @len bytes more; what is open stays so. */
static int bufs_wait(struct pack *pk, size_t len)
{
	if (pk->open && pk->open->nitems == PACK_ITEMS)
		send_padded(pk);
	if (pk->open && len <= pk->buf_bytes - pk->open->used)
		return 0;
	while (!buf_in(pk, PACK_FREE)) {
		if (buf_in(pk, PACK_WRITING)) {
			fiber_queue_wait(&pk->room);
		} else {
			int rc = pack_retry_wait(pk);

			if (rc)
				return rc;
		}
	}
	return 0;
}

/* ---- the span ---- */

/* Leaves the rest of it. */
static void span_leave(struct pack *pk)
{
	struct alloc *a = &pk->w->alloc;
	uint64_t cluster = pk->w->cluster;

	send_padded(pk);
	if (!is_aligned(pk->pos, cluster))
		skip_to(pk, align_up(pk->pos, cluster));
	if (pk->pos < pk->end)
		alloc_untake(a, pk->pos / cluster, (pk->end - pk->pos) / cluster, false);
	pk->pos = pk->end = 0;
}

static int reserve_wait(struct pack *pk)
{
	struct alloc *a = &pk->w->alloc;
	int rc = 0;

	while (!rc && !alloc_next(a)) {
		alloc_expect(a);
		a->is_dense = true;
		rc = alloc_fill_wait(a);
	}
	return rc;
}

/* Clusters were taken: what was read from them once must not be found any more (Z3). */
static void took(struct pack *pk, const struct alloc_run *run)
{
	struct writer *w = pk->w;

	if (!run->is_fresh && !(w->broken & BREAK_Z3_STALE))
		atomic_fetch_add_explicit(&w->q->packed_before, 1, memory_order_release);
	pk->end = (run->first + run->n) * w->cluster;
}

/* How many clusters at a time. */
static uint64_t span_clusters(const struct pack *pk)
{
	uint64_t bytes = MAX((uint64_t)PACK_BUF_BYTES, pk->npacked_bytes / PACK_SPAN_PART);

	return MAX(1ULL, MIN(bytes, (uint64_t)PACK_SPAN_BYTES) / pk->w->cluster);
}

/* More clusters: adjacent ones, or a new span elsewhere. */
static int span_grow_wait(struct pack *pk)
{
	struct alloc *a = &pk->w->alloc;
	uint64_t cluster = pk->w->cluster, want = span_clusters(pk), got;
	struct alloc_run run;
	int rc = reserve_wait(pk);

	if (rc)
		return rc;
	if (!pk->end || !alloc_take_at(a, pk->end / cluster, want, &run)) {
		span_leave(pk);
		if (!alloc_take(a, want, &run))
			return -EAGAIN;
		pk->pos = run.first * cluster;
	}
	took(pk, &run);
	/* As many as are to be had in a row: how the reserve was filled does not matter (Z10). */
	for (got = run.n; got < want; got += run.n) {
		rc = reserve_wait(pk);
		if (rc || !alloc_take_at(a, pk->end / cluster, want - got, &run))
			break;
		took(pk, &run);
	}
	return 0;
}

/* Room for @len bytes in one piece, all of the span at places that an entry can name. */
static int span_wait(struct pack *pk, size_t len)
{
	unsigned off_bits = 62 - (pk->w->q->cluster_bits - 8);
	int rc = 0;

	while (!rc && pk->end - pk->pos < len) {
		rc = span_grow_wait(pk);
		rc = rc == -EAGAIN ? 0 : rc;
	}
	if (!rc && (pk->end - 1) >> MIN(off_bits, 56u))
		rc = -EFBIG;
	return rc;
}

/* ---- placing ---- */

/* The entry of @len bytes at @host. */
static uint64_t entry_of(const struct pack *pk, uint64_t host, size_t len)
{
	unsigned off_bits = 62 - (pk->w->q->cluster_bits - 8);
	uint64_t sectors = (host + len - 1) / 512 - host / 512;

	return QCOW2_COMPRESSED | sectors << off_bits | host;
}

/* Counts the item that comes next in its last host cluster; in others that it leaves it inherits
 * the hold. *@is_full: in the last one, too. */
static int count_wait(struct pack *pk, size_t len, bool *is_full)
{
	uint64_t end = pk->pos + len, last = (end - 1) / pk->w->cluster;
	int rc;

	*is_full = false;
	if (is_aligned(end, pk->w->cluster) || pk->w->broken & BREAK_Z6_UNCOUNTED)
		return 0;
	if (pk->w->broken & BREAK_Z9_NO_HOLD && pk->pos <= last * pk->w->cluster)
		return 0;
	rc = refs_add_wait(&pk->w->refs, last, 1, 1);                           /* Z6 */
	if (rc == -ERANGE) {
		*is_full = true;
		rc = 0;
	}
	return rc;
}

/* Never waits: buffers are there. */
static void append(struct pack *pk, struct pending *p, const uint8_t *bytes, size_t len)
{
	while (len) {
		struct pack_buf *b;
		size_t part;

		if (!pk->open)
			buf_open(pk);
		b = pk->open;
		part = MIN(len, pk->buf_bytes - b->used);
		memcpy(b->bytes + b->used, bytes, part);
		b->used += part;
		b->items[b->nitems++] = p;
		p->parts++;
		pk->pos += part;
		bytes += part;
		len -= part;
		if (b->used == pk->buf_bytes)
			send_open(pk);
	}
}

/* No more goes into the host cluster of the last byte. */
static void leave_cluster(struct pack *pk)
{
	uint64_t to = align_up(pk->pos, pk->w->cluster);

	/* A small rest is written along, or every cluster would be a write of its own. */
	if (pk->open && to - pk->pos < SMALL_BYTES && to - pk->open->host < pk->buf_bytes)
		pad(pk, to);
	else
		send_open(pk);
	pk->pos = to;
}

static int place_wait(struct pack *pk, struct pending *p, const uint8_t *bytes, size_t len)
{
	bool is_full;
	int rc = memory_get(pk);

	if (!rc)
		rc = span_wait(pk, len);
	if (!rc)
		rc = bufs_wait(pk, len);
	/* That may have padded. */
	if (!rc && pk->end - pk->pos < len)
		return -EAGAIN;
	if (!rc)
		rc = count_wait(pk, len, &is_full);
	if (rc)
		return rc;
	p->packed = (struct l2_pair){ .entry = entry_of(pk, pk->pos, len) };
	p->is_acked = true;
	if (pk->w->broken & BREAK_Z7_EARLY_MAP)
		l2_set(pk->w, &p->at, p->guest, p->packed, false);
	append(pk, p, bytes, len);
	if (is_full)
		leave_cluster(pk);
	pk->npacked++;
	pk->npacked_bytes += len;
	commit_note(&pk->w->commit);
	return 0;
}

int pack_place_wait(struct pack *pk, struct pending *p, const uint8_t *bytes, size_t len)
{
	int rc;

	assert(len && len < pk->w->cluster);
	while (pk->is_placing)
		fiber_queue_wait(&pk->placed);
	pk->is_placing = true;
	do
		rc = place_wait(pk, p, bytes, len);
	while (rc == -EAGAIN);
	pk->is_placing = false;
	fiber_queue_wake(&pk->placed);
	if (pk->is_pushed || (!rc && p->is_closing)) {
		pk->is_pushed = false;
		pack_push(pk);
	}
	return rc;
}

int pack_leave_wait(struct pack *pk)
{
	int rc = pk->end ? pack_retry_wait(pk) : 0;

	if (!rc && pk->end)
		span_leave(pk);
	return rc;
}

int pack_close_wait(struct pack *pk)
{
	struct writer *w = pk->w;
	uint64_t cluster = w->cluster, first = align_up(pk->pos, cluster) / cluster;
	int rc = w->dead;

	assert(!pk->open && list_is_empty(&pk->turns));
	if (!rc && !is_aligned(pk->pos, cluster) && !(w->broken & BREAK_Z9_NO_HOLD))
		rc = refs_add_wait(&w->refs, pk->pos / cluster, 1, -1);
	w->has_leaked |= rc != 0;
	if (first < pk->end / cluster)
		alloc_untake(&w->alloc, first, pk->end / cluster - first, false);
	/* Up to now the hold kept everybody else out of it (Z9). */
	pk->tail = is_aligned(pk->pos, cluster) ? 0 : pk->pos;
	pk->tail_ntaken = w->alloc.ntaken;
	pk->pos = pk->end = 0;
	return rc;
}

uint64_t pack_tail(const struct pack *pk, uint64_t cluster)
{
	bool is_known = pk->tail && pk->tail / pk->w->cluster == cluster &&
			pk->tail_ntaken == pk->w->alloc.ntaken;

	return is_known ? align_up(pk->tail % pk->w->cluster, alignment(pk)) : pk->w->cluster;
}

void pack_end_wait(struct pack *pk)
{
	pack_gather_end_wait(pk);
	while (buf_in(pk, PACK_WRITING))
		fiber_queue_wait(&pk->room);
}

void pack_fini(struct pack *pk)
{
	pack_gather_fini(pk);
	if (pk->is_pooled)
		iobuf_put(loop_iobufs(pk->w->home), pk->memory, PACK_BUFS * pk->buf_bytes);
	else
		free(pk->memory);
	pk->is_pooled = false;
	pk->memory = NULL;
}
