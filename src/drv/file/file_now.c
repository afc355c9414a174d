/* SPDX-License-Identifier: MIT */
/* drv/file/file_now.c - a lone small write through the page cache, done by the loop itself.
 *
 * Where a file system can promise not to block (xfs, btrfs), io_uring does such a write at once.
 * ext4 and tmpfs make no promise; yet they block for a few reasons only, and to copy some KiB is
 * less work than to wake up a worker and to be woken up by it: a guest that waits for each write
 * has its answer in half the time. So the loop does what is very unlikely to block, and bounds what
 * it costs to have been wrong:
 *	bytes     whole pages, so that none is read first; inside of the file, so that it does not
 *	          grow; and few of them;
 *	locks     no other write of the chan is under way, and no batch of any chan;
 *	dirty     the kernel holds up who writes while too much of the memory is dirty, pages that
 *	pages     wait to be written back. The loop looks how much there is, and takes a small part
 *	          of what is missing to the point where write-back begins, which is well below the
 *	          one where anybody is held up;
 *	the rest  (a commit of the journal that has just the inode's block, a limit on dirty pages
 *	          for a cgroup) cannot be seen. Who was held up leaves it alone for a multiple of
 *	          that time.
 *
 * Invariants:
 *	F16  such a write is alone, small, of whole pages and inside of the file, and is done only
 *	     while less is dirty than starts write-back;
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
	BYTES_MAX = 16 << 10,           /* more is better copied elsewhere */
	VMSTAT_MAX = 8192,              /* bytes: about 4000 as of Linux 6.18 */
	ROOM_PART = 16,                 /* of what may still become dirty, until the next look */
};

static const uint64_t look_ns = 100 * NS_PER_MS;
static const uint64_t slow_ns = NS_PER_MS / 2;  /* shorter ones are not worth a rest */

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

bool file_now_may(struct file_now *n, const struct file_node *fn, const struct io *io, uint64_t now)
{
	if (io->len > BYTES_MAX || ((io->off | io->len) & (fn->now_align - 1)) ||
	    !range_within(io->off, io->len, file_size(fn)))
		return false;
	if (now < n->rest_until_ns || atomic_load_explicit(&fn->batches, memory_order_relaxed))
		return false;
	if (now - n->looked_ns >= look_ns) {
		n->looked_ns = now;
		n->room = look(fn->vmstat_fd);
	}
	return n->room >= io->len;
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

int file_now_write(struct file_now *n, const struct io *io)
{
	uint64_t from = clock_ns();
	int res = file_batch_write(io);

	file_now_took(n, from, clock_ns());
	n->room -= io->len;
	n->writes++;
	return res;
}
