/* SPDX-License-Identifier: MIT */
#include "ctl/confine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"

struct root {
	char *path;                     /* resolved; "" for "/", so that path + "/" is a prefix */
	int fd;                         /* O_PATH (A3) */
};

struct confine {
	struct root *roots;
	unsigned nroots;
};

static bool openat2_masked;

void confine_without_openat2(bool on)
{
	openat2_masked = on;
}

struct confine *confine_new(void)
{
	return calloc(1, sizeof(struct confine));
}

void confine_free(struct confine *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->nroots; i++) {
		close(c->roots[i].fd);
		free(c->roots[i].path);
	}
	free(c->roots);
	free(c);
}

int confine_allow(struct confine *c, const char *dir, struct err *err)
{
	struct root *grown = realloc(c->roots, (c->nroots + 1) * sizeof(*grown));
	struct root r = { .fd = -1 };

	if (!grown)
		return err_set_errno(err, ENOMEM, "folder '%s'", dir);
	c->roots = grown;
	r.path = realpath(dir, NULL);
	if (!r.path)
		return err_set_errno(err, errno, "folder '%s'", dir);
	r.fd = open(r.path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (r.fd < 0) {
		int rc = err_set_errno(err, errno, "folder '%s'", dir);

		free(r.path);
		return rc;
	}
	if (!strcmp(r.path, "/"))
		r.path[0] = '\0';
	c->roots[c->nroots++] = r;
	return 0;
}

/* The part of @path below @r, or NULL. Both are resolved. */
static const char *below(const struct root *r, const char *path)
{
	size_t n = strlen(r->path);

	if (strncmp(path, r->path, n) || path[n] != '/' || !path[n + 1])
		return NULL;
	return path + n + 1;
}

/* A2 by the kernel. */
static int open_beneath(int root_fd, const char *rel, int flags)
{
	struct open_how how = {
		.flags = (unsigned)flags,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	long fd;

	if (openat2_masked)
		return -ENOSYS;
	do {
		fd = syscall(SYS_openat2, root_fd, rel, &how, sizeof(how));
	} while (fd < 0 && (errno == EAGAIN || errno == EINTR));
	return fd < 0 ? -errno : (int)fd;
}

/* A2 by hand: one component at a time, none of them a link or "..". */
static int open_stepwise(int root_fd, const char *rel, int flags)
{
	int at = root_fd, rc;

	for (;;) {
		char name[NAME_MAX + 1];
		size_t n = strcspn(rel, "/");
		bool is_last = !rel[n];
		int fd;

		if (!n || n > NAME_MAX) {
			rc = -ENAMETOOLONG;
			break;
		}
		memcpy(name, rel, n);
		name[n] = '\0';
		if (!strcmp(name, "..") || !strcmp(name, ".")) {
			rc = -EXDEV;
			break;
		}
		fd = openat(at, name, is_last ? flags | O_NOFOLLOW :
			    O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		rc = fd < 0 ? -errno : fd;
		if (is_last || fd < 0)
			break;
		if (at != root_fd)
			close(at);
		at = fd;
		rel += n + 1;
	}
	if (at != root_fd)
		close(at);
	return rc;
}

static int open_below(const struct root *r, const char *rel, int flags)
{
	int fd = open_beneath(r->fd, rel, flags);

	/* Some system call filters answer EPERM to what they do not know. */
	if (fd == -ENOSYS || fd == -EPERM)
		fd = open_stepwise(r->fd, rel, flags);
	return fd;
}

static int refuse(const char *path, const char *resolved, const char *what, const char *asker,
		  struct err *err)
{
	const char *slash = strrchr(resolved, '/');
	int n = (int)(slash - resolved);

	if (strcmp(path, resolved))
		err_set(err, EPERM, "%s '%s' of '%s' is '%s', outside the image's folder", what,
			path, asker, resolved);
	else
		err_set(err, EPERM, "%s '%s' of '%s' lies outside the image's folder", what, path,
			asker);
	err_hint(err, "use --allow DIR to permit it, here: --allow '%.*s'", n ? n : 1, resolved);
	return -EPERM;
}

/* What was opened without waiting is a file or device, on which I/O waits as it should. */
static int check_opened(int fd, const char *what, const char *path, const char *asker,
			struct err *err)
{
	struct stat st;
	int flags = fcntl(fd, F_GETFL);

	if (fstat(fd, &st) < 0 || flags < 0)
		return err_set_errno(err, errno, "%s '%s' of '%s'", what, path, asker);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return err_set(err, EINVAL, "%s '%s' of '%s' is neither a file nor a block device",
			       what, path, asker);
	if (fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
		return err_set_errno(err, errno, "%s '%s' of '%s'", what, path, asker);
	return 0;
}

int confine_open(const struct confine *c, const char *path, int flags, const char *what,
		 const char *asker, struct err *err)
{
	char *resolved = realpath(path, NULL);
	const struct root *root = NULL;
	const char *rel = NULL;
	int fd, rc = 0;

	assert(!(flags & O_CREAT));
	if (!resolved)
		return err_set_errno(err, errno, "%s '%s' of '%s'", what, path, asker);
	for (unsigned i = 0; i < c->nroots && !rel; i++) {
		root = &c->roots[i];
		rel = below(root, resolved);
	}
	if (!rel) {
		rc = refuse(path, resolved, what, asker, err);
		free(resolved);
		return rc;
	}
	/* A pipe must not make us wait for somebody to open its other end. */
	fd = open_below(root, rel, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	free(resolved);
	if (fd < 0)
		return err_set_errno(err, -fd, "cannot open %s '%s' of '%s'", what, path, asker);
	rc = check_opened(fd, what, path, asker, err);
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}
