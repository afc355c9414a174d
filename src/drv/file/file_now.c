/* SPDX-License-Identifier: MIT */
/* drv/file/file_now.c - a few small writes through the page cache, done by the loop itself.
 *
 * Where a file system can promise not to block (xfs, btrfs), io_uring does such a write at once.
 * ext4 and tmpfs make no promise; yet they block for a few reasons only, and to copy some KiB is
 * less work than to wake up a worker and to be woken up by it: a guest that waits for each write
 * has its answer in half the time. So the loop does what is very unlikely to block, and bounds what
 * it costs to have been wrong:
 *	bytes     whole pages, so that none is read first; inside of the file, so that it does not
 *	          grow; and no more in a turn than other requests may well wait for;
 *	locks     no other write of the chan is under way, no other loop writes so, and no worker
 *	          is at a batch of any chan's: a file takes one write at a time;
 *	dirty     the kernel holds up who writes while too much of the memory is dirty, pages that
 *	pages     wait to be written back. The loop looks how much there is, and takes a small part
 *	          of what is missing to the point where write-back begins, which is well below the
 *	          one where anybody is held up;
 *	the rest  (a commit of the journal that has just the inode's block, a limit on dirty pages
 *	          for a cgroup) cannot be seen. Who was held up leaves it alone for a multiple of
 *	          that time.
 *
 * Invariants:
 *	F16  such writes are small, of whole pages and inside of the file, alone in their file,
 *	     and are done only while less is dirty than starts write-back;
 *	F17  of a loop's time at most one part in FILE_NOW_SHARE is spent held up by them. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "drv/file/file_impl.h"

enum {
	BYTES_MAX = 128 << 10,          /* of all at a time: 50 us, if all goes well */
	VMSTAT_MAX = 8192,              /* bytes: about 4000 as of Linux 6.18 */
	ROOM_PART = 16,                 /* of what may still become dirty, until the next look */
};

static const uint64_t look_ns = 100 * NS_PER_MS;
static const uint64_t slow_ns = NS_PER_MS / 2;  /* shorter ones are not worth a rest */
static const uint64_t turn_ns = NS_PER_MS / 10; /* about this, for all of a turn */

/* ---- where ---- */

void file_now_open(struct file_node *fn, int fd)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0 || !is_pow2((uint64_t)fs.f_bsize))
		return;
	if (fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != TMPFS_MAGIC)
		return;
	fn->now_align = MAX(page, (uint64_t)fs.f_bsize);
	fn->vmstat_fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
}

/* ---- whether ---- */

/* The number behind @name, at the beginning of a whole line of @text. */
static bool find_number(const char *text, const char *name, uint64_t *ret)
{
	size_t len = strlen(name);

	for (const char *end; (end = strchr(text, '\n')); text = end + 1)
		if (!strncmp(text, name, len) && text[len] == ' ')
			return sscanf(text + len, "%" SCNu64, ret) == 1;
	return false;
}

uint64_t file_now_room(const char *vmstat)
{
	uint64_t dirty, writeback, limit;

	if (!find_number(vmstat, "nr_dirty", &dirty) ||
	    !find_number(vmstat, "nr_writeback", &writeback) ||
	    !find_number(vmstat, "nr_dirty_background_threshold", &limit))
		return 0;
	if (dirty >= limit || writeback >= limit - dirty)
		return 0;
	return (limit - dirty - writeback) / ROOM_PART * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t look(int fd)
{
	char text[VMSTAT_MAX];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	if (n < 0)
		return 0;
	text[n] = 0;
	return file_now_room(text);
}

/* May it be the write @io? */
static bool fits(const struct file_node *fn, const struct io *io)
{
	return !((io->off | io->len) & (fn->now_align - 1)) &&
	       range_within(io->off, io->len, file_size(fn));
}

uint64_t file_now_may(struct file_now *n, const struct file_node *fn, uint64_t now)
{
	if (now < n->rest_until_ns)
		return 0;
	if (now - n->looked_ns >= look_ns) {
		n->looked_ns = now;
		n->room = look(fn->vmstat_fd);
	}
	return MIN(n->room, (uint64_t)BYTES_MAX);
}

/* ---- the write ---- */

void file_now_took(struct file_now *n, uint64_t from, uint64_t to)
{
	if (to - from > slow_ns)
		n->rest_until_ns = to + (to - from) * FILE_NOW_SHARE;
}

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* Does those of @list that fit, at most @may bytes; they go to @done. How many. */
static unsigned write_some(struct file_now *n, const struct file_node *fn, struct list_node *list,
			   uint64_t may, struct list_node *done)
{
	uint64_t start = clock_ns(), from = start, to;
	unsigned count = 0;

	list_for_each(node, list) {
		struct io *io = list_entry(node, struct io, link);

		if (io->len > may || !fits(fn, io))
			continue;
		list_del(node);
		list_add_tail(done, node);
		io->res = file_batch_write(io);
		count++;
		may -= io->len;
		n->room -= io->len;
		to = clock_ns();
		file_now_took(n, from, to);
		if (to - start > turn_ns)
			break;
		from = to;
	}
	n->writes += count;
	return count;
}

unsigned file_now_write(struct file_now *n, struct file_node *fn, struct list_node *list,
			uint64_t now, struct list_node *done)
{
	uint64_t may = file_now_may(n, fn, now);
	unsigned count;

	/* These two order nothing. A worker may begin meanwhile: then one waits a little. */
	if (!may || atomic_load_explicit(&fn->batches, memory_order_relaxed) ||
	    atomic_exchange_explicit(&fn->is_writing_now, true, memory_order_relaxed))
		return 0;
	count = write_some(n, fn, list, may, done);
	atomic_store_explicit(&fn->is_writing_now, false, memory_order_relaxed);
	return count;
}
