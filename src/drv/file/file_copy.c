/* SPDX-License-Identifier: MIT */
/* drv/file/file_copy.c - COPY: from file to file without a way through this program.
 *
 * With REQ_SHARE both files have the same blocks afterwards, by FICLONERANGE: XFS, btrfs and others
 * can, which costs no more than an entry for each extent, however much it is. The kernel writes
 * back first what of the source is in memory only, and drops the target's old pages; it brings none
 * in. Without, copy_file_range(2) does as well as it can, which may be no better than reading and
 * writing through the page cache.
 *
 * Both may block for long, and hold both files' locks: a worker does it, one request at a time.
 * Whether two files can share shows only at a try, of something that changes nothing; and even then
 * a file system may refuse.
 *
 * Invariants:
 *	F18  a COPY that is answered with 0 is in the file from end to end; with an error, each byte
 *	     is what it was or what it was to be. */
#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "drv/file/file_impl.h"

struct copy {
	const struct file_node *fn;
	int from_fd, to_fd;
	off_t from, to;
	uint64_t len;
	int res;
};

int file_clone(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t len)
{
	struct file_clone_range range = { .src_fd = from_fd, .src_offset = from,
					  .src_length = len, .dest_offset = to };

	return ioctl(to_fd, FICLONERANGE, &range) < 0 ? -errno : 0;
}

static void share(void *arg)
{
	struct copy *c = arg;

	do
		c->res = c->fn->clone(c->from_fd, (uint64_t)c->from, c->to_fd, (uint64_t)c->to,
				      c->len);
	while (c->res == -EINTR);
}

static void move(void *arg)
{
	struct copy *c = arg;

	while (c->len) {
		ssize_t n = copy_file_range(c->from_fd, &c->from, c->to_fd, &c->to,
					    MIN(c->len, (uint64_t)FILE_IO_MAX), 0);

		if (n > 0) {
			c->len -= (uint64_t)n;
		} else if (!n) {
			c->res = -EIO;          /* the source has been cut */
			return;
		} else if (errno != EINTR) {
			c->res = -errno;
			return;
		}
	}
}

void file_share_open(struct file_node *fn, int fd)
{
	struct statfs fs;

	if (!fstatfs(fd, &fs) && fs.f_bsize > 0 && fs.f_bsize <= FILE_IO_MAX &&
	    is_pow2((uint64_t)fs.f_bsize))
		fn->share_align = (uint32_t)fs.f_bsize;
}

/* Are both files that the kernel knows? */
static bool are_files(const struct file_node *fn, const struct node *from)
{
	const struct file_node *source;

	if (from->ops != &file_ops)
		return false;
	source = file_node(from->home_chan);
	return !fn->is_sim && !source->is_sim && !fn->is_block_device && !source->is_block_device;
}

/* On a worker. What lies behind the end of any file cannot be shared; but whether that is said, or
 * that there is no sharing, tells what the file system can. And btrfs shares nothing between files
 * with checksums and files without. */
static void probe(void *arg)
{
	struct copy *c = arg;
	uint64_t end = align_down((uint64_t)INT64_MAX, c->len);
	int from_flags = 0, to_flags = 0;

	c->res = c->fn->clone(c->from_fd, end - c->len, c->to_fd, 0, c->len);
	if (c->res == -EINVAL)
		c->res = 0;
	if (!ioctl(c->from_fd, FS_IOC_GETFLAGS, &from_flags) &&
	    !ioctl(c->to_fd, FS_IOC_GETFLAGS, &to_flags) && (from_flags ^ to_flags) & FS_NOCOW_FL)
		c->res = -ENOTSUP;
}

uint32_t file_share_align_wait(struct node *n, const struct node *from)
{
	const struct file_node *fn = file_node(n->home_chan);
	struct copy c = { .fn = fn, .to_fd = fn->fd, .len = fn->share_align };

	if (!fn->share_align || !are_files(fn, from))
		return 0;
	c.from_fd = file_node(from->home_chan)->fd;
	loop_work_wait(loop_current(), probe, &c);
	return c.res ? 0 : fn->share_align;
}

/* 0, or why @req cannot be done. */
static int judge(const struct file_node *fn, const struct req *req)
{
	uint64_t all = req->off | req->from_off | req->len;

	if (!are_files(fn, req->from))
		return -ENOTSUP;
	if (req->flags & REQ_SHARE)
		return !fn->share_align ? -ENOTSUP :
		       all & (fn->share_align - 1) ? -EINVAL : 0;
	return all & (MAX(fn->block, file_node(req->from->home_chan)->block) - 1) ? -EINVAL : 0;
}

/* Their pages came through the cache. */
static void touch_pages(struct file_chan *fc, const struct req *req)
{
	struct file_chan *source = file_chan(req->from->home_chan);

	if (file_node(&fc->chan)->pages)
		file_pages_touch(fc, req->off, req->len);
	if (file_node(&source->chan)->pages && source->chan.loop == fc->chan.loop)
		file_pages_touch(source, req->from_off, req->len);
}

static int copy_wait(struct file_chan *fc, const struct req *req)
{
	struct file_node *fn = file_node(&fc->chan);
	bool shares = req->flags & REQ_SHARE;
	struct copy c = { .fn = fn, .from_fd = file_node(req->from->home_chan)->fd, .to_fd = fc->fd,
			  .from = (off_t)req->from_off, .to = (off_t)req->off, .len = req->len };

	loop_work_wait(fc->chan.loop, shares ? share : move, &c);
	if (!c.res)
		file_grown(fn, req->off + req->len);
	if (!shares)
		touch_pages(fc, req);
	return c.res;
}

static void copy_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct file_chan *fc = file_chan(req->ch);
	const struct file_node *fn = file_node(&fc->chan);
	int res;

	if (fn->is_direct && file_range_hold(fc, req)) {        /* only now: K2 */
		fiber_gate_leave(fc->chan.loop, &fc->gate);
		return;
	}
	res = copy_wait(fc, req);
	if (fn->is_direct)
		file_range_done(fc, req);
	if (!res && ((req->flags & REQ_FUA) || fn->is_dsync))
		res = chan_flush_wait(&fc->chan);
	req_finish(&fc->chan, req, res);
	fiber_gate_leave(fc->chan.loop, &fc->gate);
}

void file_copy_start(struct file_chan *fc, struct req *req)
{
	int res = judge(file_node(&fc->chan), req);

	if (res) {
		req_finish(&fc->chan, req, res);
		return;
	}
	req->task.fn = copy_task;
	fiber_gate_start(fc->chan.loop, &fc->gate, &req->task);
}
