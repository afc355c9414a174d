/* SPDX-License-Identifier: MIT */
#include "export/vub/test_fs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { ROOT = FUSE_ROOT_ID, FILE_ID = 2, DEVICE_ID = 3, BUFFER = 64 << 10, TICK_MS = 20 };

static uint32_t mode_of(uint64_t id)
{
	return id == ROOT ? S_IFDIR | 0755 : id == FILE_ID ? S_IFREG | 0666 : S_IFCHR | 0666;
}

static struct fuse_attr attr_of(uint64_t id)
{
	return (struct fuse_attr){
		.ino = id, .size = SLOW_FS_FILE, .nlink = 1, .blksize = 4096,
		.mode = mode_of(id),
	};
}

static void answer(const struct slow_fs *fs, uint64_t unique, int error, const void *data, size_t n)
{
	struct fuse_out_header head = { .len = (uint32_t)(sizeof(head) + n), .error = error,
					.unique = unique };
	struct iovec iov[2] = { { &head, sizeof(head) }, { (void *)(uintptr_t)data, n } };

	if (writev(fs->dev, iov, n ? 2 : 1) < 0)
		return;                 /* who asked has gone */
}

static void serve(struct slow_fs *fs, const struct fuse_in_header *in)
{
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION, .minor = 31,
				      .max_write = 4096 };
	uint64_t id = strcmp((const char *)(in + 1), "device") ? FILE_ID : DEVICE_ID;
	struct fuse_entry_out entry = { .nodeid = id, .attr = attr_of(id) };
	struct fuse_attr_out attr = { .attr = attr_of(in->nodeid) };
	struct fuse_open_out open_out = { .fh = 1 };

	switch (in->opcode) {
	case FUSE_INIT:
		answer(fs, in->unique, 0, &init, sizeof(init));
		return;
	case FUSE_LOOKUP:
		answer(fs, in->unique, 0, &entry, sizeof(entry));
		return;
	case FUSE_GETATTR:
		answer(fs, in->unique, 0, &attr, sizeof(attr));
		return;
	case FUSE_OPEN:
		answer(fs, in->unique, 0, &open_out, sizeof(open_out));
		return;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	default:
		answer(fs, in->unique, -EIO, NULL, 0);
	}
}

/* The child. */
static void run(struct slow_fs *fs)
{
	static char buf[BUFFER];
	const struct fuse_in_header *in = (const void *)buf;

	alarm(SLOW_FS_LIFE_S);
	for (;;) {
		struct pollfd p = { .fd = fs->dev, .events = POLLIN };

		while (!atomic_load(&fs->is_hanging) && atomic_load(&fs->waiters))
			answer(fs, fs->unique[atomic_fetch_sub(&fs->waiters, 1) - 1], -EIO, NULL,
			       0);
		if (poll(&p, 1, TICK_MS) != 1 || read(fs->dev, buf, BUFFER) < (ssize_t)sizeof(*in))
			continue;
		if (atomic_load(&fs->is_hanging) && in->opcode != FUSE_FORGET &&
		    in->opcode != FUSE_INTERRUPT && in->opcode != FUSE_RELEASE &&
		    atomic_load(&fs->waiters) < SLOW_FS_WAITERS_MAX)
			fs->unique[atomic_fetch_add(&fs->waiters, 1)] = in->unique;
		else
			serve(fs, in);
	}
}

static bool is_mounted(struct slow_fs *fs)
{
	char options[64];

	fs->dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fs->dev < 0)
		return false;
	assert_non_null(mkdtemp(fs->dir));
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=%u,group_id=%u", fs->dev,
		 (unsigned)getuid(), (unsigned)getgid());
	if (!mount("slow", fs->dir, "fuse", MS_NOSUID | MS_NODEV, options))
		return true;
	rmdir(fs->dir);
	close(fs->dev);
	return false;
}

struct slow_fs *slow_fs_start(void)
{
	struct slow_fs *fs = mmap(NULL, sizeof(*fs), PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child;

	assert_ptr_not_equal(fs, MAP_FAILED);
	*fs = (struct slow_fs){ .dir = "/tmp/byre-slow-fs.XXXXXX" };
	if (!is_mounted(fs)) {
		munmap(fs, sizeof(*fs));
		return NULL;
	}
	child = fork();
	assert_true(child >= 0);
	if (!child)
		run(fs);
	fs->child = child;
	close(fs->dev);
	return fs;
}

void slow_fs_stop(struct slow_fs *fs)
{
	kill(fs->child, SIGKILL);               /* with it goes the file system */
	waitpid(fs->child, NULL, 0);
	umount2(fs->dir, MNT_DETACH);
	rmdir(fs->dir);
	munmap(fs, sizeof(*fs));
}

static int open_in(const struct slow_fs *fs, const char *name, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", fs->dir, name);
	fd = open(path, flags | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

int slow_fs_open(const struct slow_fs *fs)
{
	return open_in(fs, "file", O_RDWR);
}

int slow_fs_open_device(const struct slow_fs *fs)
{
	return open_in(fs, "device", O_PATH);
}
