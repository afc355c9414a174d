/* SPDX-License-Identifier: MIT */
/* drv/file/file_bounce.c - what O_DIRECT does not take as it is. In fibers.
 *
 * A READ reads the blocks around it into a buffer. A WRITE is cut in three: whole blocks go through
 * a buffer as an ordinary write; the parts of blocks at either end are read-modify-write, on the
 * home loop, under a range lock (file_range.c).
 *
 * A file's last block may be a part: reading it is short, and writing it whole would make the file
 * longer. So the lock of a block that reaches over the end covers everything behind it too, and the
 * length is put right before the lock goes: nobody can have appended in between.
 *
 * Buffers come from the loop's pool; where that has none now, from the chan's own reserve, for
 * those who submitted the request may hold the pool's last buffer while they wait for us. A buffer
 * is taken before a lock, never after it: whoever holds a lock waits for the kernel alone. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "drv/file/file_impl.h"
#include "loop/iobuf.h"

/* ---- buffers ---- */

struct bounce {
	void *buf;
	uint64_t size;
	bool is_reserve;
	struct list_node link;          /* fc->reserve_waiters */
	struct fiber *fiber;
};

/* Of at least one block, at most @want bytes. */
static void bounce_get_wait(struct file_chan *fc, uint64_t want, struct bounce *b)
{
	b->size = MIN(want, (uint64_t)BOUNCE_MAX);
	b->is_reserve = false;
	b->buf = iobuf_get(loop_iobufs(fc->chan.loop), b->size);
	if (b->buf)
		return;
	b->size = MIN(want, (uint64_t)BOUNCE_RESERVE);
	b->is_reserve = true;
	b->fiber = fiber_self();
	list_add_tail(&fc->reserve_waiters, &b->link);
	while (fc->is_reserve_used || fc->reserve_waiters.next != &b->link)
		fiber_park();
	list_del(&b->link);
	fc->is_reserve_used = true;
	b->buf = fc->reserve;
}

static void bounce_put(struct file_chan *fc, struct bounce *b)
{
	if (!b->is_reserve) {
		iobuf_put(loop_iobufs(fc->chan.loop), b->buf, b->size);
		return;
	}
	fc->is_reserve_used = false;
	if (!list_is_empty(&fc->reserve_waiters))
		fiber_wake(list_entry(fc->reserve_waiters.next, struct bounce, link)->fiber);
}

/* ---- read-modify-write ---- */

struct rmw {
	struct file_node *fn;
	const struct req *src;          /* NULL: zeros */
	uint64_t rel;                   /* of the data in @src */
	uint64_t off, len;              /* within one block */
};

struct cut_tail {
	int fd;
	uint64_t size;                  /* what it should be */
	uint64_t written;               /* where the block that was written ends */
	int res;
};

static void cut_tail(void *arg)
{
	struct cut_tail *c = arg;
	struct stat st;

	if (fstat(c->fd, &st) < 0)
		c->res = -errno;
	else if ((uint64_t)st.st_size == c->written)    /* else another program made it longer */
		c->res = ftruncate(c->fd, (off_t)c->size) < 0 ? -errno : 0;
}

/* Writes one block under its lock, past the chan's own hold. */
static int write_block_wait(struct file_chan *fc, uint64_t off, void *buf, uint64_t len)
{
	struct iovec iov = { buf, len };
	struct io io = { 0 };
	int n;

	file_io_init(fc, &io, IO_WRITE, NULL);
	io.iov = &iov;
	io.iovcnt = 1;
	io.off = off;
	n = loop_io_wait(fc->chan.loop, &io);
	if (n < 0)
		return n;
	return (uint64_t)n == len ? 0 : -EIO;
}

/* Under the lock: does [@off, @off + @len) of block @at. */
static int modify_wait(struct file_chan *fc, const struct rmw *m, uint64_t at, char *buf)
{
	struct file_node *fn = m->fn;
	uint64_t size = file_size(fn);
	int rc = chan_read_wait(&fc->chan, at, buf, fn->block);

	if (rc)
		return rc;
	if (m->src)
		req_copy_from(m->src, m->rel, buf + (m->off - at), m->len);
	else
		memset(buf + (m->off - at), 0, m->len);
	rc = write_block_wait(fc, at, buf, fn->block);
	if (rc)
		return rc;
	size = MAX(size, m->off + m->len);
	if (at + fn->block > size && !fn->is_block_device && !fn->is_sim) {
		struct cut_tail c = { .fd = fc->fd, .size = size, .written = at + fn->block };

		loop_work_wait(fc->chan.loop, cut_tail, &c);
		rc = c.res;
	}
	file_grown(fn, size);
	return rc;
}

/* In a fiber of the home loop. */
static int rmw_wait(void *arg)
{
	const struct rmw *m = arg;
	struct file_node *fn = m->fn;
	struct file_chan *fc = file_chan(fn->node.home_chan);
	uint64_t at = align_down(m->off, fn->block);
	uint64_t end = at + fn->block;
	struct range_lock lk;
	struct bounce b;
	int rc;

	bounce_get_wait(fc, fn->block, &b);
	if (end > file_size(fn))
		file_range_lock_wait(fn, &lk, file_last_page(fn, at), UINT64_MAX);
	else
		file_range_lock_wait(fn, &lk, at, end);
	rc = modify_wait(fc, m, at, b.buf);
	file_range_unlock_wait(fn, &lk);
	bounce_put(fc, &b);
	return rc;
}

/* Writes a part of one block. In a fiber of the chan's loop, which holds no buffer. */
static int write_part_wait(struct file_chan *fc, const struct req *src, uint64_t rel, uint64_t off,
			   uint64_t len)
{
	struct file_node *fn = file_node(&fc->chan);
	struct rmw m = { .fn = fn, .src = src, .rel = rel, .off = off, .len = len };

	if (fc->chan.loop == fn->node.home)
		return rmw_wait(&m);
	return loop_call_wait(fn->node.home, rmw_wait, &m);
}

/* ---- reads and writes ---- */

/* Whole blocks, through a buffer. */
static int write_blocks_wait(struct file_chan *fc, const struct req *src, uint64_t rel,
			     uint64_t off, uint64_t len)
{
	struct bounce b;
	int rc = 0;

	bounce_get_wait(fc, len, &b);
	if (!src)
		memset(b.buf, 0, b.size);
	for (uint64_t part; len && !rc; off += part, rel += part, len -= part) {
		part = MIN(len, b.size);
		if (src)
			req_copy_from(src, rel, b.buf, part);
		rc = chan_write_wait(&fc->chan, off, b.buf, part);
	}
	bounce_put(fc, &b);
	return rc;
}

int file_write_any_wait(struct file_chan *fc, const struct req *src, uint64_t off, uint64_t len)
{
	const struct file_node *fn = file_node(&fc->chan);
	uint64_t mask = fn->block - 1;
	uint64_t head = MIN(-off & mask, len);
	uint64_t tail = (len - head) & mask;
	uint64_t blocks = len - head - tail;
	int rc = 0;

	if (head)
		rc = write_part_wait(fc, src, 0, off, head);
	if (!rc && blocks)
		rc = write_blocks_wait(fc, src, head, off + head, blocks);
	if (!rc && tail)
		rc = write_part_wait(fc, src, head + blocks, off + head + blocks, tail);
	/* Read-modify-write is not durable of itself. */
	if (!rc && fn->is_dsync && (head || tail))
		rc = chan_flush_wait(&fc->chan);
	return rc;
}

static int read_any_wait(struct file_chan *fc, const struct req *req)
{
	const struct file_node *fn = file_node(&fc->chan);
	uint64_t at = align_down(req->off, fn->block);
	uint64_t end = align_up(req->off + req->len, fn->block);
	struct bounce b;
	int rc = 0;

	bounce_get_wait(fc, end - at, &b);
	for (uint64_t part; at < end && !rc; at += part) {
		part = MIN(end - at, b.size);
		rc = chan_read_wait(&fc->chan, at, b.buf, part);
		if (rc)
			break;

		uint64_t from = MAX(at, req->off);
		uint64_t to = MIN(at + part, req->off + req->len);

		req_copy_to(req, from - req->off, (char *)b.buf + (from - at), to - from);
	}
	bounce_put(fc, &b);
	return rc;
}

static void bounce_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct file_chan *fc = file_chan(req->ch);
	int rc;

	if (req->kind == REQ_READ)
		rc = read_any_wait(fc, req);
	else
		rc = file_write_any_wait(fc, req, req->off, req->len);
	if (!rc && req->kind == REQ_WRITE && (req->flags & REQ_FUA))
		rc = chan_flush_wait(&fc->chan);
	req_finish(&fc->chan, req, rc);
	fiber_gate_leave(fc->chan.loop, &fc->gate);
}

void file_bounce_start(struct file_chan *fc, struct req *req)
{
	req->task.fn = bounce_task;
	fiber_gate_start(fc->chan.loop, &fc->gate, &req->task);
}
