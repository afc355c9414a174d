/* SPDX-License-Identifier: MIT */
/* drv/file/file_open.c - opening a file: what can go wrong, and what to do about it.
 *
 * Everything that may block runs in one visit to a worker. O_NONBLOCK keeps a FIFO or a device from
 * hanging us before fstat(2) has told what it is. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/err.h"
#include "drv/file/file_impl.h"
#include "loop/sim.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

enum { SIM_BLOCK = 512 };

static const char *const cache_names[] = {
	[FILE_CACHE_WRITEBACK] = "writeback",
	[FILE_CACHE_NONE] = "none",
	[FILE_CACHE_WRITETHROUGH] = "writethrough",
	[FILE_CACHE_DIRECTSYNC] = "directsync",
	[FILE_CACHE_UNSAFE] = "unsafe",
};

const char *file_cache_name(enum file_cache cache)
{
	return cache_names[cache];
}

int file_cache_parse(const char *text, enum file_cache *ret, struct err *err)
{
	if (!strcmp(text, "off"))
		text = "none";
	for (unsigned i = 0; i < ARRAY_SIZE(cache_names); i++) {
		if (strcmp(text, cache_names[i]))
			continue;
		*ret = (enum file_cache)i;
		return 0;
	}
	err_set(err, EINVAL, "'%s' is not a cache mode", text);
	err_hint(err, "it is one of writeback, none, writethrough, directsync, unsafe");
	return -EINVAL;
}

/* ---- on a worker ---- */

struct open_job {
	const struct file_opts *opts;
	struct file_node *fn;
	struct err *err;
	int res;
};

static int open_failed(const struct file_opts *o, int errnum, struct err *err)
{
	bool is_direct = o->cache == FILE_CACHE_NONE || o->cache == FILE_CACHE_DIRECTSYNC;

	if (errnum == EINVAL && is_direct) {
		err_set(err, errnum, "the file system of '%s' does not support cache=%s (O_DIRECT)",
			o->path, file_cache_name(o->cache));
		err_hint(err, "use --cache %s", o->cache == FILE_CACHE_NONE ? "writeback" :
									      "writethrough");
		return -errnum;
	}
	if (o->qemu_words)
		err_set_errno(err, errnum, "Could not open '%s'", o->path);
	else
		err_set_errno(err, errnum, "cannot open '%s'%s", o->path,
			      o->writable ? " for writing" : "");
	switch (errnum) {
	case ENOENT:
		err_hint(err, "check the path; nothing is created here");
		break;
	case EACCES:
	case EPERM:
		err_hint(err, "user id %u needs the right to %s the file%s", (unsigned)geteuid(),
			 o->writable ? "read and write" : "read",
			 o->writable ? "; or use it read-only" : "");
		break;
	case EROFS:
		err_hint(err, "use it read-only");
		break;
	case EISDIR:
		err_hint(err, "give the path of an image file or block device in it");
		break;
	}
	return -errnum;
}

static int open_path(const struct file_opts *o, bool is_direct, struct err *err)
{
	int flags = (o->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	int fd = open(o->path, flags | (is_direct ? O_DIRECT : 0));

	return fd >= 0 ? fd : open_failed(o, errno, err);
}

/* Is the caller's descriptor what opts ask for? */
static int adopt_fd(const struct file_opts *o, bool is_direct, struct err *err)
{
	int flags = fcntl(o->fd, F_GETFL);

	if (flags < 0)
		return err_set_errno(err, errno, "'%s': descriptor %d", o->path, o->fd);
	if ((flags & O_ACCMODE) == O_WRONLY || (o->writable && (flags & O_ACCMODE) != O_RDWR))
		return err_set(err, EBADF, "'%s': descriptor %d is not open for %s", o->path, o->fd,
			       o->writable ? "reading and writing" : "reading");
	if (is_direct != !!(flags & O_DIRECT) &&
	    fcntl(o->fd, F_SETFL, is_direct ? flags | O_DIRECT : flags & ~O_DIRECT) < 0)
		return open_failed(o, errno, err);
	return o->fd;
}

static int check_type(const struct file_opts *o, const struct stat *st, struct err *err)
{
	const char *what = S_ISDIR(st->st_mode) ? "a directory" :
			   S_ISFIFO(st->st_mode) ? "a FIFO" :
			   S_ISSOCK(st->st_mode) ? "a socket" :
			   S_ISCHR(st->st_mode) ? "a character device" : "something else";

	if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
		return 0;
	if (o->qemu_words)
		err_set(err, EINVAL, "'file' driver requires '%s' to be a regular file", o->path);
	else
		err_set(err, S_ISDIR(st->st_mode) ? EISDIR : EINVAL,
			"'%s' is %s, not a file or block device", o->path, what);
	err_hint(err, "give the path of an image file or a block device");
	return S_ISDIR(st->st_mode) ? -EISDIR : -EINVAL;
}

static int read_size(int fd, const struct stat *st, uint64_t *ret)
{
	if (!S_ISBLK(st->st_mode)) {
		*ret = (uint64_t)st->st_size;
		return 0;
	}
	return ioctl(fd, BLKGETSIZE64, ret) < 0 ? -errno : 0;
}

/* Can the device zero without being sent the zeros? A partition's queue is its disk's. */
static bool device_zeroes_fast(dev_t dev)
{
	static const char *const queues[] = { "queue", "../queue" };
	unsigned long long max = 0;
	char path[96];

	for (unsigned i = 0; i < ARRAY_SIZE(queues); i++) {
		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/write_zeroes_max_bytes",
			 major(dev), minor(dev), queues[i]);

		FILE *f = fopen(path, "re");

		if (!f)
			continue;
		if (fscanf(f, "%llu", &max) != 1)
			max = 0;
		fclose(f);
		break;
	}
	return max > 0;
}

/* File systems that have ZERO_RANGE, or holes that can be allocated again. What they turn out not
 * to do after all is found out at the first try; this is what the node promises. */
static bool fs_zeroes_fast(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	switch ((unsigned long)fs.f_type) {
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case TMPFS_MAGIC:
		return true;
	}
	return false;
}

static int take_locks(const struct file_opts *o, int fd, bool share, struct err *err)
{
	int rc = file_lock_take(fd, o->path, o->writable, share, err);

	if (rc == -EBUSY && o->qemu_words)
		file_lock_qemu_words(fd, o->path, o->writable, err);
	return rc;
}

/* Everything about an open descriptor. */
static int inspect(const struct file_opts *o, struct file_node *fn, int fd, struct err *err)
{
	struct stat st;
	uint64_t size;
	int rc;

	if (fstat(fd, &st) < 0)
		return err_set_errno(err, errno, "'%s'", o->path);
	rc = check_type(o, &st, err);
	if (rc)
		return rc;
	rc = read_size(fd, &st, &size);
	if (rc)
		return err_set_errno(err, -rc, "cannot tell the size of '%s'", o->path);
	atomic_store(&fn->node.size, size);
	fn->is_block_device = S_ISBLK(st.st_mode);
	fn->node.holes_read_zero = S_ISREG(st.st_mode);
	if (!o->no_lock) {
		rc = take_locks(o, fd, o->share_writes, err);
		if (rc < 0)
			return rc;
		fn->is_locked = !rc;
		fn->refuses_writers = !rc && !o->share_writes;
	}
	if (o->writable && !fn->is_direct && !fn->is_block_device)
		file_now_open(fn, fd);
	if (o->writable && !fn->is_block_device)
		file_share_open(fn, fd);
	if (o->writable)
		fn->node.zero_is_fast = fn->is_block_device ? device_zeroes_fast(st.st_rdev) :
							      fs_zeroes_fast(fd);
	return fn->is_direct ? file_align_find(fn, fd, err) : 0;
}

/* O_DIRECT for what is open without it. False: it cannot be. */
static bool go_direct(struct file_node *fn)
{
	int flags = fcntl(fn->fd, F_GETFL);

	if (flags < 0 || fcntl(fn->fd, F_SETFL, flags | O_DIRECT) < 0)
		return false;
	fn->is_direct = true;
	if (!file_align_find(fn, fn->fd, NULL))
		return true;
	fn->is_direct = false;
	fn->block = fn->mem_align = 1;
	(void)fcntl(fn->fd, F_SETFL, flags);
	return false;
}

/* The page cache stays as it is where it is not used at all; but what is there is read from it. */
static void spare_page_cache(struct file_node *fn)
{
	if (fn->node.read_only && !fn->is_block_device && file_pages_is_cold(fn) && go_direct(fn))
		return;
	/* Without memory for it, the pages stay. */
	(void)file_pages_new(fn, &fn->pages);
}

static void open_job(void *arg)
{
	struct open_job *j = arg;
	const struct file_opts *o = j->opts;
	struct file_node *fn = j->fn;
	int fd, flags;

	fd = o->fd >= 0 ? adopt_fd(o, fn->is_direct, j->err) : open_path(o, fn->is_direct, j->err);
	if (fd < 0) {
		j->res = fd;
		return;
	}
	j->res = inspect(o, fn, fd, j->err);
	if (j->res) {
		if (o->fd < 0)
			close(fd);
		return;
	}
	/* io_uring would answer -EAGAIN where it has to wait. */
	flags = fcntl(fd, F_GETFL);
	if (flags >= 0 && (flags & O_NONBLOCK))
		(void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
	fn->fd = fd;
	if (o->drop_pages && !fn->is_direct)
		spare_page_cache(fn);
}

struct refuse_job {
	const struct file_opts *opts;
	struct file_node *fn;
	struct err *err;
	int res;
};

static void refuse_job(void *arg)
{
	struct refuse_job *j = arg;

	j->res = take_locks(j->opts, j->fn->fd, false, j->err);
	j->fn->refuses_writers = !j->res;
	j->res = MIN(j->res, 0);
}

int file_refuse_writers_wait(struct node *file, const struct file_opts *opts, struct err *err)
{
	struct refuse_job j = {
		.opts = opts,
		.fn = container_of(file, struct file_node, node),
		.err = err,
	};

	loop_assert(file->home);
	if (opts->no_lock || opts->sim || !opts->share_writes)
		return 0;
	loop_work_wait(file->home, refuse_job, &j);
	return j.res;
}

bool file_refuses_writers(struct node *n)
{
	return n->ops == &file_ops && container_of(n, struct file_node, node)->refuses_writers;
}

/* ---- the node ---- */

struct size_job {
	int fd;
	uint64_t size;
	int res;
};

static void size_job(void *arg)
{
	struct size_job *j = arg;
	struct stat st;

	j->res = fstat(j->fd, &st) < 0 ? -errno : read_size(j->fd, &st, &j->size);
}

struct allocated_job {
	int fd;
	int res;
	uint64_t bytes;
};

static void allocated_job(void *arg)
{
	struct allocated_job *j = arg;
	struct stat st;

	j->res = fstat(j->fd, &st) < 0 ? -errno : 0;
	if (!j->res)
		j->bytes = (uint64_t)st.st_blocks * 512;
}

/* A block device takes all of itself. */
static int file_allocated_wait(struct node *n, uint64_t *ret)
{
	struct file_node *fn = container_of(n, struct file_node, node);
	struct allocated_job j = { .fd = fn->fd };

	if (fn->is_sim || fn->is_block_device) {
		*ret = atomic_load(&n->size);
		return 0;
	}
	loop_work_wait(loop_current(), allocated_job, &j);
	if (!j.res)
		*ret = j.bytes;
	return j.res;
}

/* What was written is durable when the disk is let go, as if its user had flushed it last. */
static int file_settle_wait(struct node *n, struct err *err)
{
	const struct file_node *fn = container_of(n, struct file_node, node);
	int rc;

	if (n->read_only || fn->cache == FILE_CACHE_UNSAFE || !n->home_chan)
		return 0;
	rc = chan_flush_wait(n->home_chan);
	return rc ? err_set_errno(err, -rc, "'%s': what was written may be lost", n->name) : 0;
}

static int file_resize_wait(struct node *n, struct err *err)
{
	struct file_node *fn = container_of(n, struct file_node, node);
	struct size_job j = { .fd = fn->fd };

	loop_assert(n->home);
	if (fn->is_sim)
		j.size = sim_file_size(n->home, fn->fd);
	else
		loop_work_wait(n->home, size_job, &j);
	if (j.res)
		return err_set_errno(err, -j.res, "cannot tell the size of '%s'", n->name);
	atomic_store(&n->size, j.size);
	return 0;
}

static void file_free(struct node *n)
{
	struct file_node *fn = container_of(n, struct file_node, node);

	file_pages_free(fn->pages);
	if (fn->vmstat_fd >= 0)
		close(fn->vmstat_fd);
	if (fn->owns_fd) {
		if (fn->is_locked)
			file_lock_release(fn->fd);
		close(fn->fd);
	}
	free(fn);
}

struct truncate {
	struct file_look look;
	uint64_t size;
	bool is_dense;                  /* longer: with the space that it takes */
	int res;
};

static void truncate_work(void *arg)
{
	struct truncate *t = arg;

	file_look(&t->look);
	if (t->look.res || t->look.size < t->look.known)
		return;
	/* The node's size never says more than there is: F13. */
	atomic_store(&t->look.fn->node.size, t->size);
	t->res = ftruncate(t->look.fd, (off_t)t->size) < 0 ? -errno : 0;
	if (t->res)
		atomic_store(&t->look.fn->node.size, t->look.known);
}

static int file_truncate_wait(struct node *n, uint64_t size)
{
	struct file_node *fn = container_of(n, struct file_node, node);
	struct truncate t = { .look = { .fn = fn, .fd = fn->fd }, .size = size };
	int res;

	if (n->read_only)
		return -EROFS;
	if (fn->is_block_device || fn->is_sim)
		return -ENOTSUP;
	loop_work_wait(n->home, truncate_work, &t);
	res = file_look_judge(&t.look);
	return res ? res : t.res;
}

static void grow_work(void *arg)
{
	struct truncate *t = arg;

	file_look(&t->look);
	if (t->look.res || t->look.size < t->look.known || t->look.size >= t->size)
		return;
	if (t->is_dense && !fallocate(t->look.fd, 0, (off_t)t->look.size,
				      (off_t)(t->size - t->look.size)))
		return;
	t->res = ftruncate(t->look.fd, (off_t)t->size) < 0 ? -errno : 0;
	/* POSIX lets a file system know no such thing. */
	if (t->res == -EINVAL || t->res == -EPERM)
		t->res = -ENOTSUP;
}

/* With O_DIRECT nobody writes meanwhile where it ended: who writes a part of a block cuts what that
 * has made too long again (file_bounce.c). And there it matters what a write finds: while the
 * kernel gives one that falls into a hole its place, it lets no other write to the file begin. */
static int file_grow_wait(struct node *n, uint64_t size, bool is_dense)
{
	struct file_node *fn = container_of(n, struct file_node, node);
	struct truncate t = { .look = { .fn = fn, .fd = fn->fd }, .size = size,
			      .is_dense = is_dense && fn->is_direct };
	struct range_lock lk;
	int res;

	if (n->read_only)
		return -EROFS;
	if (fn->is_block_device || fn->is_sim)
		return -ENOTSUP;
	if (file_is_cut(fn))
		return -EIO;
	if (fn->is_direct)
		file_range_lock_wait(fn, &lk, file_last_page(fn, file_size(fn)), UINT64_MAX);
	loop_work_wait(n->home, grow_work, &t);
	res = file_look_judge(&t.look);
	res = res ? res : t.res;
	if (!res)
		file_grown(fn, size);
	if (fn->is_direct)
		file_range_unlock_wait(fn, &lk);
	return res;
}

const struct node_ops file_ops = {
	.name = "file",
	.chan_size = sizeof(struct file_chan),
	.chan_open_wait = file_chan_open_wait,
	.chan_close_wait = file_chan_close_wait,
	.submit = file_submit,
	.free = file_free,
	.settle_wait = file_settle_wait,
	.resize_wait = file_resize_wait,
	.truncate_wait = file_truncate_wait,
	.grow_wait = file_grow_wait,
	.allocated_wait = file_allocated_wait,
	.share_align_wait = file_share_align_wait,
};

static int new_node(const struct file_opts *o, struct loop *home, struct file_node **ret)
{
	struct file_node *fn = calloc(1, sizeof(*fn));
	int rc;

	if (!fn)
		return -ENOMEM;
	rc = node_init(&fn->node, &file_ops, o->path, home);
	if (rc) {
		free(fn);
		return rc;
	}
	fn->fd = -1;
	fn->vmstat_fd = -1;
	fn->clone = file_clone;
	atomic_init(&fn->cut_to, FILE_NOT_CUT);
	fn->cache = o->cache;
	fn->block = 1;
	fn->mem_align = 1;
	fn->is_direct = o->cache == FILE_CACHE_NONE || o->cache == FILE_CACHE_DIRECTSYNC;
	fn->is_dsync = o->cache == FILE_CACHE_WRITETHROUGH || o->cache == FILE_CACHE_DIRECTSYNC;
	fn->is_sim = o->sim;
	fn->node.read_only = !o->writable;
	fn->node.can_discard = o->writable && o->discard;
	list_init(&fn->chans);
	list_init(&fn->ranges);
	*ret = fn;
	return 0;
}

static int open_sim(struct file_node *fn, const struct file_opts *o)
{
	fn->fd = o->fd;
	fn->node.zero_is_fast = true;
	fn->node.holes_read_zero = true;
	atomic_store(&fn->node.size, sim_file_size(fn->node.home, o->fd));
	if (fn->is_direct) {
		fn->block = SIM_BLOCK;
		fn->mem_align = SIM_BLOCK;
	}
	return 0;
}

int file_open_wait(const struct file_opts *o, struct loop *home, struct node **ret, struct err *err)
{
	struct open_job j = { .opts = o, .err = err };
	struct file_node *fn;
	int rc;

	loop_assert(home);
	rc = new_node(o, home, &fn);
	if (rc)
		return err_set_errno(err, -rc, "'%s'", o->path);
	j.fn = fn;
	if (o->sim)
		j.res = open_sim(fn, o);
	else
		loop_work_wait(home, open_job, &j);
	rc = j.res;
	if (rc)
		goto fail;
	fn->node.align = MAX(fn->block, fn->mem_align);
	fn->owns_fd = !o->sim && o->fd < 0;
	rc = node_open_home_wait(&fn->node, err);
	if (rc)
		goto fail;
	fn->owns_fd = !o->sim;
	*ret = &fn->node;
	return 0;
fail:
	node_put_wait(&fn->node);
	return rc;
}
