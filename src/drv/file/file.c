/* SPDX-License-Identifier: MIT */
/* drv/file/file.c - reads and writes of a file: the data path.
 *
 * A READ or WRITE that the kernel can take as it is becomes one operation in the request's own io:
 * nothing is allocated, no fiber runs. What else there is:
 *	batch   a small WRITE through the page cache: file_batch.c, file_now.c;
 *	cut     the request's data is part of its iov, or longer than an operation may be: its
 *		iovecs are copied, CUT_IOVECS at a time, into an array of the chan's;
 *	bounce  O_DIRECT does not take its offset, length or addresses: file_bounce.c.
 *
 * A request of a direct node that changes the file is in the chan's in_flight list while the kernel
 * has it; file_range.c says why. Arrays are taken after that, so that a held request holds none.
 *
 * With O_DIRECT, FUA is RWF_DSYNC. Through the page cache it is the write and then a joined
 * fdatasync: a failed RWF_DSYNC would not tell the write's error from that of pages written long
 * ago, and would use up the one report of those that the next flush needs (Q9). */
#include <errno.h>
#include <limits.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "drv/file/file_impl.h"
#include "loop/iobuf.h"

void file_io_init(struct file_chan *fc, struct io *io, enum io_op op,
		  void (*done)(struct io *io, int res))
{
	io->done = done;
	io->op = (uint8_t)op;
	io->flags = 0;
	io->fd = fc->fd;
	io->fixed = fc->fixed;
}

void file_grown(struct file_node *fn, uint64_t end)
{
	uint64_t size = file_size(fn);

	if (fn->is_block_device)
		return;
	/* Release pairs with file_look(): who sees the size sees the length as well. */
	while (end > size && !atomic_compare_exchange_weak_explicit(&fn->node.size, &size, end,
								    memory_order_release,
								    memory_order_relaxed))
		continue;
}

/* ---- iov ---- */

enum fit { FIT_AS_IS, FIT_CUT, FIT_BOUNCE };

/* As fit() for several iovecs, or a part of them. */
static enum fit fit_vector(const struct file_node *fn, const struct req *req)
{
	uint64_t skip = req->iov_skip, left = req->len, all = 0;

	for (uint32_t i = 0; i < req->iovcnt; i++) {
		uint64_t n = req->iov[i].iov_len;

		all += n;
		if (skip >= n) {
			skip -= n;
			continue;
		}
		n = MIN(n - skip, left);
		if ((((uintptr_t)req->iov[i].iov_base + skip) & (fn->mem_align - 1)) ||
		    (n & (fn->block - 1)))
			return FIT_BOUNCE;
		skip = 0;
		left -= n;
		if (!left && i + 1 < req->iovcnt)
			return FIT_CUT;
	}
	assert(!left);
	return all == req->len && req->len <= FILE_IO_MAX && req->iovcnt <= IOV_MAX ? FIT_AS_IS :
										       FIT_CUT;
}

/* How @req's data can go to the kernel. */
static enum fit fit(const struct file_node *fn, const struct req *req)
{
	const struct iovec *iov = req->iov;

	if ((req->off | req->len) & (fn->block - 1))
		return FIT_BOUNCE;
	if (req->iovcnt == 1 && iov->iov_len == req->len && req->len <= FILE_IO_MAX)
		return (uintptr_t)iov->iov_base & (fn->mem_align - 1) ? FIT_BOUNCE : FIT_AS_IS;
	return fit_vector(fn, req);
}

static struct iov_cut *cut_get(struct file_chan *fc)
{
	struct iov_cut *cut = fc->cuts;

	if (cut) {
		fc->cuts = cut->next;
	} else if (fc->ncuts < CUTS_MAX) {
		cut = malloc(sizeof(*cut));
		fc->ncuts += cut != NULL;
	}
	return cut;
}

static void rw_send(struct file_chan *fc, struct req *req, bool as_is);

/* Gives @cut back, or on to the first request that waits for one. */
static void cut_put(struct file_chan *fc, struct iov_cut *cut)
{
	struct req *req = fc->starved;

	cut->next = fc->cuts;
	fc->cuts = cut;
	if (!req)
		return;
	fc->starved = req->next;
	if (!fc->starved)
		fc->starved_tail = &fc->starved;
	rw_send(fc, req, false);
}

/* ---- reads and writes ---- */

/* The kernel is done with @req, a READ or WRITE. */
static void rw_end(struct file_chan *fc, struct req *req, int res)
{
	struct file_req *fr = file_req(req);

	if (fr->cut) {
		struct iov_cut *cut = fr->cut;

		fr->cut = NULL;
		cut_put(fc, cut);
	}
	if (file_node(&fc->chan)->pages && !res)
		file_pages_touch(fc, req->off, req->len);
	if (req->kind == REQ_READ) {
		req_complete(req, res);
		return;
	}
	fc->nwrites--;
	if (!res)
		file_grown(file_node(&fc->chan), req->off + req->len);
	file_written(fc, req, res);
}

static void read_done(struct file_chan *fc, struct req *req, uint64_t n)
{
	const struct file_node *fn = file_node(&fc->chan);
	struct file_req *fr = file_req(req);

	/* With O_DIRECT only the end of the file is off alignment. */
	fr->rel += n;
	if (!n || (fr->rel & (fn->block - 1))) {
		if (req->off + fr->rel < MIN(file_size(fn), req->off + req->len) &&
		    !fn->is_block_device) {
			file_end_ask(fc, req);          /* F11 */
			return;
		}
		req_zero_part(req, fr->rel, req->len - fr->rel);
		fr->rel = req->len;
	}
	if (fr->rel < req->len)
		rw_send(fc, req, false);
	else
		rw_end(fc, req, 0);
}

void file_read_looked(struct file_chan *fc, struct req *req, int res)
{
	struct file_req *fr = file_req(req);

	/* It may have grown just then; but what reads nothing twice is as good as lost. */
	if (!res && fr->rel == fr->looked)
		res = -EIO;
	if (res) {
		rw_end(fc, req, res);
		return;
	}
	fr->looked = fr->rel;
	fr->rel = align_down(fr->rel, file_node(&fc->chan)->block);
	rw_send(fc, req, false);
}

static void write_done(struct file_chan *fc, struct req *req, uint64_t n)
{
	struct file_req *fr = file_req(req);

	/* Where the kernel stopped inside a block, the block goes again. */
	n = align_down(n, file_node(&fc->chan)->block);
	fr->rel += n;
	if (fr->rel == req->len)
		rw_end(fc, req, 0);
	else if (n)
		rw_send(fc, req, false);
	else
		rw_end(fc, req, -EIO);
}

static void rw_done(struct io *io, int res)
{
	struct req *req = container_of(io, struct req, io);
	struct file_chan *fc = file_chan(req->ch);

	if (res < 0) {
		if ((io->flags & IO_DSYNC) && res == -EIO)
			file_sync_failed(file_node(&fc->chan), res);
		rw_end(fc, req, res);
	} else if (req->kind == REQ_READ) {
		read_done(fc, req, (unsigned)res);
	} else {
		write_done(fc, req, (unsigned)res);
	}
}

static bool is_fua(const struct file_node *fn, const struct req *req)
{
	return ((req->flags & REQ_FUA) || fn->is_dsync) && fn->cache != FILE_CACHE_UNSAFE;
}

/* Sends what is left of @req to the kernel. */
static void rw_send(struct file_chan *fc, struct req *req, bool as_is)
{
	const struct file_node *fn = file_node(&fc->chan);
	struct file_req *fr = file_req(req);
	struct io *io = &req->io;
	uint64_t len = MIN(req->len - fr->rel, (uint64_t)FILE_IO_MAX);

	if (as_is) {
		io->iov = req->iov;
		io->iovcnt = req->iovcnt;
	} else {
		if (!fr->cut)
			fr->cut = cut_get(fc);
		if (!fr->cut) {
			req->next = NULL;
			*fc->starved_tail = req;
			fc->starved_tail = &req->next;
			return;
		}
		io->iov = fr->cut->iov;
		io->iovcnt = req_iov_cut(req, fr->rel, len, fr->cut->iov, CUT_IOVECS, &len);
	}
	file_io_init(fc, io, req->kind == REQ_READ ? IO_READ : IO_WRITE, rw_done);
	if (fn->is_direct)
		io->flags = IO_DIRECT;
	if (req->kind == REQ_WRITE && fn->is_direct && is_fua(fn, req))
		io->flags |= IO_DSYNC;
	io->off = req->off + fr->rel;
	if (req->kind == REQ_READ || fn->is_direct || fn->is_sim ||
	    !file_batch_take(&fc->batch, io, len))
		loop_submit(fc->chan.loop, io);
}

void file_written(struct file_chan *fc, struct req *req, int res)
{
	const struct file_node *fn = file_node(&fc->chan);

	if (fn->is_direct)
		file_range_done(fc, req);
	/* DISCARD is a hint: only who asks for FUA waits for it. */
	if (!res && is_fua(fn, req) && !(req->kind == REQ_WRITE && fn->is_direct) &&
	    (req->kind != REQ_DISCARD || (req->flags & REQ_FUA)))
		file_sync_join(fc, req);
	else
		req_complete(req, res);
}

static void rw_start(struct file_chan *fc, struct req *req)
{
	const struct file_node *fn = file_node(&fc->chan);
	enum fit f = fit(fn, req);

	if (f == FIT_BOUNCE) {
		file_bounce_start(fc, req);
		return;
	}
	if (req->kind == REQ_WRITE && fn->is_direct && file_range_hold(fc, req))
		return;
	fc->nwrites += req->kind == REQ_WRITE;
	rw_send(fc, req, f == FIT_AS_IS);
}

void file_submit(struct chan *ch, struct req *req)
{
	struct file_chan *fc = file_chan(ch);
	const struct file_node *fn = file_node(ch);
	struct file_req *fr = file_req(req);

	req->ch = ch;
	fr->rel = 0;
	fr->looked = UINT64_MAX;
	fr->cut = NULL;
	if (req->kind == REQ_FLUSH) {
		/* Nothing was written through a read-only node. */
		if (ch->node->read_only || (fn->cache == FILE_CACHE_UNSAFE && !file_is_cut(fn)))
			req_finish(ch, req, 0);
		else
			file_sync_join(fc, req);
		return;
	}
	if (!req->len) {
		req_finish(ch, req, 0);
		return;
	}
	if (ch->node->read_only && req->kind != REQ_READ && req->kind != REQ_MAP) {
		req_finish(ch, req, -EROFS);
		return;
	}
	if (file_is_cut(fn) && file_end_refuses(fn, req)) {
		req_finish(ch, req, -EIO);
		return;
	}
	switch (req->kind) {
	case REQ_READ:
	case REQ_WRITE:
		rw_start(fc, req);
		return;
	case REQ_ZERO:
		file_zero_start(fc, req);
		return;
	case REQ_DISCARD:
		file_discard_start(fc, req);
		return;
	case REQ_MAP:
		file_map_start(fc, req);
		return;
	case REQ_COPY:
		file_copy_start(fc, req);
		return;
	default:
		req_finish(ch, req, -ENOTSUP);
	}
}

/* ---- chans ---- */

struct reopen {
	const struct file_node *fn;
	int fd;
};

static void reopen(void *arg)
{
	struct reopen *r = arg;
	char path[32];
	int flags = r->fn->node.read_only ? O_RDONLY : O_RDWR;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", r->fn->fd);
	r->fd = open(path, flags | O_CLOEXEC | (r->fn->is_direct ? O_DIRECT : 0));
}

/* Linux reports a failed write-back once for each open file: a chan with one of its own hears of
 * each failure, whoever else syncs. Where it cannot have that (no /proc, rights given up), it
 * shares. */
static void open_own_fd_wait(struct file_chan *fc, const struct file_node *fn)
{
	struct reopen r = { .fn = fn, .fd = -1 };

	fc->fd = fn->fd;
	if (fn->is_sim || fc->chan.loop == fn->node.home)
		return;
	loop_work_wait(fc->chan.loop, reopen, &r);
	if (r.fd >= 0)
		fc->fd = r.fd;
}

static void close_fd(void *arg)
{
	close(*(int *)arg);
}

static void free_chan_wait(struct file_chan *fc)
{
	const struct file_node *fn = file_node(&fc->chan);
	struct iov_cut *cut;

	while ((cut = fc->cuts)) {
		fc->cuts = cut->next;
		free(cut);
	}
	free(fc->reserve);
	if (fc->fixed >= 0)
		loop_fd_unregister(fc->chan.loop, fc->fixed);
	if (fc->fd != fn->fd)
		loop_work_wait(fc->chan.loop, close_fd, &fc->fd);
}

int file_chan_open_wait(struct chan *ch, struct err *err)
{
	struct file_chan *fc = file_chan(ch);
	struct file_node *fn = file_node(ch);

	fc->starved_tail = &fc->starved;
	fc->sync_next_tail = &fc->sync_next;
	list_init(&fc->reserve_waiters);
	list_init(&fc->in_flight);
	list_init(&fc->registered);
	fiber_gate_init(&fc->gate, FILE_FIBERS_MAX);
	file_batch_init(&fc->batch, ch->loop);
	file_end_init(&fc->end);
	for (unsigned i = 0; i < RANGE_LOCKS_MAX; i++)
		fc->locks[i].fc = fc;
	open_own_fd_wait(fc, fn);
	fc->fixed = fn->is_sim ? -1 : loop_fd_register(ch->loop, fc->fd);
	for (; fc->ncuts < CUTS_KEPT; fc->ncuts++) {
		struct iov_cut *cut = malloc(sizeof(*cut));

		if (!cut)
			goto fail;
		cut->next = fc->cuts;
		fc->cuts = cut;
	}
	fc->reserve = aligned_alloc(IOBUF_ALIGN, BOUNCE_RESERVE);
	if (!fc->reserve)
		goto fail;
	if (fn->is_direct)
		file_range_register_wait(fc);
	return 0;
fail:
	free_chan_wait(fc);
	return err_set_errno(err, ENOMEM, "'%s'", fn->node.name);
}

void file_chan_close_wait(struct chan *ch)
{
	struct file_chan *fc = file_chan(ch);

	assert(list_is_empty(&fc->in_flight) && !fc->is_syncing && !fc->starved);
	assert(!fc->end.is_looking);
	file_pages_idle_wait(fc);
	assert(!fc->nwrites && !fc->batch.ngathered && !fc->batch.is_running);
	assert(!fc->batch.is_due && !fc->batch.now_is_due);
	if (file_node(ch)->is_direct)
		file_range_unregister_wait(fc);
	free_chan_wait(fc);
}
