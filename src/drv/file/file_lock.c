/* SPDX-License-Identifier: MIT */
/* drv/file/file_lock.c - image locks, the same as QEMU's.
 *
 * A program that has an image open says with read locks on single bytes what it does and what
 * others may not do: byte 100 + p for each permission p it uses, byte 200 + p for each that it does
 * not share. Then it looks for locks of others that contradict: on 100 + p for what it does not
 * share, on 200 + p for what it uses. The locks belong to the open file (F_OFD_SETLK), so they go
 * when it is closed for the last time; as a ring may hold on to it for a while, they are given back
 * before.
 *
 *	permission             reader   writer
 *	0 consistent read      uses     uses
 *	1 write                refuses  uses, refuses
 *	2 write unchanged
 *	3 resize               refuses  uses, refuses
 *
 * A reader that shares refuses nothing.
 *
 * While QEMU opens an image it refuses everything for a moment, even if it will only read. So what
 * is in use is tried again, for less than a tenth of a second. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "drv/file/file_impl.h"

enum {
	PERM_READ = 1 << 0,
	PERM_WRITE = 1 << 1,
	PERM_RESIZE = 1 << 3,
	PERMS = 4,
	TRIES = 4,
	RETRY_NS = 25000000,
	USED_BASE = 100,
	REFUSED_BASE = 200,
};

/* ---- who has it ---- */

struct holder {
	int pid;
	char name[64];
};

/* Does @line of a fdinfo file tell of an OFD lock on byte @at of the inode?
 * "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10952996 100 101" */
static bool is_our_lock(const char *line, const struct stat *st, unsigned at)
{
	unsigned maj, min;
	unsigned long long ino, from, to;
	char last[32];

	if (sscanf(line, "lock: %*s OFDLCK %*s %*s %*s %x:%x:%llu %llu %31s", &maj, &min, &ino,
		   &from, last) != 5)
		return false;
	to = isdigit((unsigned char)last[0]) ? strtoull(last, NULL, 10) : UINT64_MAX;   /* "EOF" */
	return maj == major(st->st_dev) && min == minor(st->st_dev) && ino == st->st_ino &&
	       from <= at && at <= to;
}

static bool fd_has_lock(const char *path, const struct stat *st, unsigned at)
{
	FILE *f = fopen(path, "re");
	char line[256];
	bool found = false;

	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f))
		found = is_our_lock(line, st, at);
	fclose(f);
	return found;
}

/* Looks through the descriptors of process @pid, but for our own @skip. */
static bool process_has_lock(const char *pid, int skip, const struct stat *st, unsigned at)
{
	char path[600];
	struct dirent *d;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fdinfo", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (!found && (d = readdir(dir))) {
		if (!isdigit((unsigned char)d->d_name[0]) || atoi(d->d_name) == skip)
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/fdinfo/%s", pid, d->d_name);
		found = fd_has_lock(path, st, at);
	}
	closedir(dir);
	return found;
}

static void read_name(const char *pid, char *name, size_t n)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	f = fopen(path, "re");
	if (f && fgets(name, (int)n, f))
		name[strcspn(name, "\n")] = '\0';
	if (f)
		fclose(f);
}

/* Finds a process that has locked byte @at of @fd's file, as far as we may look. /proc/locks would
 * be one file to read, but it has no process for such locks. */
static bool find_holder(int fd, unsigned at, struct holder *ret)
{
	struct dirent *d;
	struct stat st;
	bool found = false;
	DIR *dir;

	if (fstat(fd, &st) < 0)
		return false;
	dir = opendir("/proc");
	if (!dir)
		return false;
	while (!found && (d = readdir(dir))) {
		if (!isdigit((unsigned char)d->d_name[0]))
			continue;

		int pid = atoi(d->d_name);

		found = process_has_lock(d->d_name, pid == getpid() ? fd : -1, &st, at);
		if (found) {
			*ret = (struct holder){ .pid = pid };
			snprintf(ret->name, sizeof(ret->name), "a program");
			read_name(d->d_name, ret->name, sizeof(ret->name));
		}
	}
	closedir(dir);
	return found;
}

/* ---- locks ---- */

static bool is_unsupported(int errnum)
{
	return errnum == EINVAL || errnum == ENOLCK || errnum == EOPNOTSUPP || errnum == ENOSYS;
}

/* 0 or a positive errno. */
static int lock_byte(int fd, int cmd, short type, unsigned at, bool *ret_is_locked)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };

	if (fcntl(fd, cmd, &fl) < 0)
		return errno;
	if (ret_is_locked)
		*ret_is_locked = fl.l_type != F_UNLCK;
	return 0;
}

static int conflict(int fd, const char *name, unsigned at, struct err *err)
{
	bool is_writer = at == USED_BASE + 1 || at == USED_BASE + 3;
	const char *how = is_writer ? "which holds it for writing" :
			  at >= REFUSED_BASE ? "which lets nobody else write" :
					       "which has locked it";
	struct holder h;

	bool is_known = err && find_holder(fd, at, &h);

	if (is_known && h.pid == getpid())
		err_set(err, EBUSY, "'%s' is in use by this process already", name);
	else if (is_known)
		err_set(err, EBUSY, "'%s' is in use by %s (pid %d), %s", name, h.name, h.pid, how);
	else
		err_set(err, EBUSY, "'%s' is in use by another program, %s", name, how);
	err_hint(err, "end that program first; to read it all the same and see what may be half "
		 "written, share it by force (-U)");
	return -EBUSY;
}

static void warn_once(const char *name, int errnum)
{
	static atomic_bool warned;

	if (!atomic_exchange(&warned, true))
		log_warn("'%s': this file system has no locks (%s): nothing keeps other programs "
			 "from using the image at the same time", name, strerror(errnum));
}

/* Looks for what others hold on @base + p, for each p in @perms. */
static int look(int fd, const char *name, unsigned base, unsigned perms, struct err *err)
{
	for (unsigned p = 0; p < PERMS; p++) {
		bool is_locked = false;

		if (!(perms & (1u << p)))
			continue;
		if (!lock_byte(fd, F_OFD_GETLK, F_WRLCK, base + p, &is_locked) && is_locked)
			return conflict(fd, name, base + p, err);
	}
	return 0;
}

void file_lock_release(int fd)
{
	struct flock fl = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = USED_BASE,
			    .l_len = REFUSED_BASE + PERMS - USED_BASE };

	(void)fcntl(fd, F_OFD_SETLK, &fl);
}

/* Takes all locks. 0, -EBUSY, or 1 where there are no locks; @err as it may be. */
static int take(int fd, const char *name, unsigned used, unsigned refused, struct err *err)
{
	for (unsigned at = 0; at < 2 * PERMS; at++) {
		unsigned p = at % PERMS;
		unsigned byte = (at < PERMS ? USED_BASE : REFUSED_BASE) + p;
		int rc;

		if (!((at < PERMS ? used : refused) & (1u << p)))
			continue;
		rc = lock_byte(fd, F_OFD_SETLK, F_RDLCK, byte, NULL);
		if (is_unsupported(rc)) {
			warn_once(name, rc);
			return 1;
		}
		if (rc == EAGAIN || rc == EACCES)
			return conflict(fd, name, byte, err);
		if (rc)
			return err_set_errno(err, rc, "cannot lock '%s'", name);
	}
	return 0;
}

static int look_all(int fd, const char *name, unsigned used, unsigned refused, struct err *err)
{
	int rc = look(fd, name, USED_BASE, refused, err);

	return rc ? rc : look(fd, name, REFUSED_BASE, used, err);
}

/* Looks before it locks as well, so that an attempt without hope disturbs nobody. */
static int try_once(int fd, const char *name, unsigned used, unsigned refused, struct err *err)
{
	int rc = look_all(fd, name, used, refused, err);

	if (rc)
		return rc;
	rc = take(fd, name, used, refused, err);
	if (!rc)
		rc = look_all(fd, name, used, refused, err);
	if (rc < 0)
		file_lock_release(fd);  /* the descriptor may be its caller's */
	return rc;
}

int file_lock_take(int fd, const char *name, bool writable, bool share, struct err *err)
{
	unsigned used = PERM_READ | (writable ? PERM_WRITE | PERM_RESIZE : 0);
	unsigned refused = share ? 0 : PERM_WRITE | PERM_RESIZE;
	int rc;

	for (unsigned tries = 1;; tries++) {
		rc = try_once(fd, name, used, refused, err);
		if (rc != -EBUSY || tries == TRIES)
			return rc;
		nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
	}
}

/* The first byte on which somebody contradicts us, or 101: whoever it was may be gone by now. A
 * writer looks at what others refuse first: QEMU's tools refuse nothing themselves. */
static unsigned find_conflict(int fd, unsigned used, unsigned refused)
{
	bool is_writer = used & PERM_WRITE;

	for (unsigned at = 0; at < 2 * PERMS; at++) {
		unsigned p = at % PERMS;
		bool by_use = (at < PERMS) != is_writer;
		unsigned byte = (by_use ? USED_BASE : REFUSED_BASE) + p;
		bool is_locked = false;

		if (((by_use ? refused : used) & (1u << p)) &&
		    !lock_byte(fd, F_OFD_GETLK, F_WRLCK, byte, &is_locked) && is_locked)
			return byte;
	}
	return USED_BASE + 1;
}

void file_lock_qemu_words(int fd, const char *name, bool writable, struct err *err)
{
	static const char *const perms[PERMS] = {
		"consistent read", "write", "write unchanged", "resize",
	};
	unsigned used = PERM_READ | (writable ? PERM_WRITE | PERM_RESIZE : 0);
	unsigned at = find_conflict(fd, used, PERM_WRITE | PERM_RESIZE);
	bool is_shared = at < REFUSED_BASE;

	if (!err)
		return;
	snprintf(err->hint, sizeof(err->hint), "%.250s", err->text);
	snprintf(err->text, sizeof(err->text),
		 "Failed to get %s\"%s\" lock\nIs another process using the image [%s]?",
		 is_shared ? "shared " : "", perms[at - (is_shared ? USED_BASE : REFUSED_BASE)],
		 name);
}
