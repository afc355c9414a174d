/* SPDX-License-Identifier: MIT */
/* drv/file/file_alloc.c - zero and discard, mostly by fallocate(2).
 *
 * ZERO takes the first way that the file has, and remembers what it has not:
 *	punch a hole                        where space may be given back;
 *	ZERO_RANGE                          zeros in place, allocated;
 *	punch a hole, allocate it again     the same for file systems without ZERO_RANGE (tmpfs);
 *	write zeros                         in a fiber; -ENOTSUP for REQ_FAST_ONLY.
 * A hole never makes a file longer, so where the range ends behind the end of the file the last
 * byte is allocated after it. (Truncating to the new length would be shorter, and would lose what
 * another loop appends at the same time.)
 *
 * DISCARD punches, or sends BLKDISCARD to a block device. It is a hint: where the file cannot do
 * it, it is answered with success. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "drv/file/file_impl.h"

enum zero_step { STEP_NONE, STEP_PUNCH, STEP_ALLOCATE, STEP_ZERO_RANGE };

enum { PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE };

bool file_is_unsupported(int res)
{
	return res == -EOPNOTSUPP || res == -ENOSYS || res == -ENOTTY || res == -ENODEV;
}

static bool has(const atomic_bool *flag)
{
	return atomic_load_explicit(flag, memory_order_relaxed);
}

static void set(atomic_bool *flag)
{
	atomic_store_explicit(flag, true, memory_order_relaxed);
}

static void allocate(struct file_chan *fc, struct req *req, int mode, uint64_t off, uint64_t len,
		     void (*done)(struct io *, int))
{
	struct io *io = &req->io;

	file_io_init(fc, io, IO_ALLOCATE, done);
	io->mode = mode;
	io->off = off;
	io->len = len;
	loop_submit(fc->chan.loop, io);
}

/* ---- zero ---- */

static void write_zeros_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct file_chan *fc = file_chan(req->ch);
	int rc = file_write_any_wait(fc, NULL, req->off, req->len);

	if (!rc && (req->flags & REQ_FUA))
		rc = chan_flush_wait(&fc->chan);
	req_finish(&fc->chan, req, rc);
	fiber_gate_leave(fc->chan.loop, &fc->gate);
}

/* No quick way is left. @req is in flight. */
static void zero_slowly(struct file_chan *fc, struct req *req)
{
	if (file_node(&fc->chan)->is_direct)
		file_range_done(fc, req);       /* K2: what waits for a fiber is not in flight */
	if (req->flags & REQ_FAST_ONLY) {
		req_finish(&fc->chan, req, -ENOTSUP);
		return;
	}
	req->task.fn = write_zeros_task;
	fiber_gate_start(fc->chan.loop, &fc->gate, &req->task);
}

static bool may_unmap(const struct file_node *fn, const struct req *req)
{
	return (req->flags & REQ_MAY_UNMAP) && fn->node.can_discard;
}

static void zero_done(struct io *io, int res);

static void zero_step(struct file_chan *fc, struct req *req, enum zero_step step, int mode,
		      uint64_t off, uint64_t len)
{
	file_req(req)->rel = step;
	allocate(fc, req, mode, off, len, zero_done);
}

static void zero_choose(struct file_chan *fc, struct req *req)
{
	const struct file_node *fn = file_node(&fc->chan);
	/* A block device's ZERO_RANGE falls back to writing, inside the kernel. */
	bool range_ok = !has(&fn->no_zero_range) &&
			!(fn->is_block_device && (req->flags & REQ_FAST_ONLY) &&
			  !fn->node.zero_is_fast);
	bool punch_ok = !has(&fn->no_punch) && (may_unmap(fn, req) ||
						(!range_ok && !fn->is_block_device));

	if (punch_ok)
		zero_step(fc, req, STEP_PUNCH, PUNCH, req->off, req->len);
	else if (range_ok)
		zero_step(fc, req, STEP_ZERO_RANGE, FALLOC_FL_ZERO_RANGE, req->off, req->len);
	else
		zero_slowly(fc, req);
}

/* There is a hole now, as far as the file goes. */
static void zero_punched(struct file_chan *fc, struct req *req)
{
	const struct file_node *fn = file_node(&fc->chan);
	uint64_t end = req->off + req->len;

	if (fn->is_block_device)
		file_written(fc, req, 0);
	else if (!may_unmap(fn, req))
		zero_step(fc, req, STEP_ALLOCATE, 0, req->off, req->len);
	else if (end > file_size(fn))
		zero_step(fc, req, STEP_ALLOCATE, 0, end - 1, 1);
	else
		file_written(fc, req, 0);
}

static void zero_done(struct io *io, int res)
{
	struct req *req = container_of(io, struct req, io);
	struct file_chan *fc = file_chan(req->ch);
	struct file_node *fn = file_node(&fc->chan);
	enum zero_step step = (enum zero_step)file_req(req)->rel;

	if (res == -EINVAL && fn->is_block_device) {
		zero_slowly(fc, req);           /* not whole sectors */
	} else if (file_is_unsupported(res)) {
		if (step == STEP_PUNCH)
			set(&fn->no_punch);
		else if (step == STEP_ZERO_RANGE)
			set(&fn->no_zero_range);
		if (step == STEP_ALLOCATE)
			zero_slowly(fc, req);
		else
			zero_choose(fc, req);
	} else if (res < 0) {
		file_written(fc, req, res);
	} else if (step == STEP_PUNCH) {
		zero_punched(fc, req);
	} else {
		file_grown(fn, req->off + req->len);
		file_written(fc, req, 0);
	}
}

void file_zero_start(struct file_chan *fc, struct req *req)
{
	if (file_node(&fc->chan)->is_direct && file_range_hold(fc, req))
		return;
	zero_choose(fc, req);
}

/* ---- discard ---- */

struct blkdiscard {
	int fd;
	uint64_t range[2];              /* offset, length */
	int res;
};

static void blkdiscard(void *arg)
{
	struct blkdiscard *b = arg;

	b->res = ioctl(b->fd, BLKDISCARD, b->range) < 0 ? -errno : 0;
}

/* What is discarded of a device: whole blocks, of 4096 bytes where it does not say. */
static void discard_device_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct file_chan *fc = file_chan(req->ch);
	struct file_node *fn = file_node(&fc->chan);
	uint64_t block = MAX(fn->block, 4096u);
	uint64_t off = align_up(req->off, block);
	uint64_t end = align_down(req->off + req->len, block);
	struct blkdiscard b = { .fd = fc->fd, .range = { off, end - off } };

	if (fn->is_direct && file_range_hold(fc, req)) {        /* only now: K2 */
		fiber_gate_leave(fc->chan.loop, &fc->gate);
		return;
	}
	if (off < end)
		loop_work_wait(fc->chan.loop, blkdiscard, &b);
	if (file_is_unsupported(b.res))
		set(&fn->no_discard);
	if (file_is_unsupported(b.res) || b.res == -EINVAL)
		b.res = 0;
	if (fn->is_direct)
		file_range_done(fc, req);
	if (!b.res && (req->flags & REQ_FUA))
		b.res = chan_flush_wait(&fc->chan);
	req_finish(&fc->chan, req, b.res);
	fiber_gate_leave(fc->chan.loop, &fc->gate);
}

static void discard_done(struct io *io, int res)
{
	struct req *req = container_of(io, struct req, io);
	struct file_chan *fc = file_chan(req->ch);

	if (file_is_unsupported(res)) {
		set(&file_node(&fc->chan)->no_discard);
		res = 0;
	}
	file_written(fc, req, res);
}

void file_discard_start(struct file_chan *fc, struct req *req)
{
	const struct file_node *fn = file_node(&fc->chan);

	if (!fn->node.can_discard || has(&fn->no_discard)) {
		req_finish(&fc->chan, req, 0);
		return;
	}
	if (fn->is_block_device) {
		req->task.fn = discard_device_task;
		fiber_gate_start(fc->chan.loop, &fc->gate, &req->task);
		return;
	}
	if (fn->is_direct && file_range_hold(fc, req))
		return;
	allocate(fc, req, PUNCH, req->off, req->len, discard_done);
}
