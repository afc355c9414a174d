/* SPDX-License-Identifier: MIT */
#include "export/vub/descriptor.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "base/bits.h"
#include "loop/fiber.h"
#include "loop/loop.h"
#include "loop/work.h"

/* ---- what they are ---- */

bool vub_fd_is_eventfd(int fd)
{
	char path[32], target[32] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, target, sizeof(target) - 1) > 0 &&
	       !strcmp(target, "anon_inode:[eventfd]");
}

/* The number behind @key in what the kernel says of @fd, or -1. */
static int fd_info(int fd, const char *key)
{
	char path[32], text[512], *at;
	ssize_t n;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return -1;
	n = read(info, text, sizeof(text) - 1);
	close(info);
	text[MAX(n, 0)] = '\0';
	at = strstr(text, key);
	return at ? atoi(at + strlen(key)) : -1;
}

int vub_fd_event_id(int fd)
{
	return fd_info(fd, "eventfd-id:");
}

/* Only shared memory has seals, and no file system is asked for them. */
static bool is_shared_memory(int fd)
{
	return fcntl(fd, F_GET_SEALS) >= 0;
}

/* A place in a file system, with nothing open (O_PATH)? Then whatever is asked of it, the file
 * system is. */
static bool is_place(int fd)
{
	return fcntl(fd, F_GETFL) & O_PATH;
}

/* Its type (S_IFMT), of what the kernel knows of the file by itself. */
static unsigned type_of(int fd)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx))
		return 0;
	return stx.stx_mode & S_IFMT;
}

/* Is @line, of mountinfo, that of a file system that the kernel itself runs? */
static bool is_in_kernel(const char *line)
{
	const char *type = strstr(line, " - ");

	return type && strncmp(type + 3, "fuse", 4);
}

/* Does the regular file @fd lie on a file system that we see mounted? Others could be built upon
 * whatever their owner has, unseen. */
static bool is_on_known_mount(int fd)
{
	int id = fd_info(fd, "mnt_id:");
	FILE *f = fopen("/proc/self/mountinfo", "re");
	bool is_known = false;
	char *line = NULL;
	size_t n = 0;

	while (f && !is_known && getline(&line, &n, f) > 0)
		is_known = atoi(line) == id && is_in_kernel(line);
	free(line);
	if (f)
		fclose(f);
	return is_known;
}

/* Of memory that is to be mapped: can nobody let us wait when it is looked at, or touched? What
 * else there is, like an epoll, has locks of its own, which who asks where it lies waits for. */
static bool is_known_memory(int fd)
{
	unsigned type = type_of(fd);

	return is_shared_memory(fd) || type == S_IFCHR ||
	       (type == S_IFREG && is_on_known_mount(fd));
}

static bool is_unix_socket(int fd)
{
	socklen_t len = sizeof(int);
	int domain;

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) && domain == AF_UNIX;
}

/* Is @fd a regular file of a file system that neither runs in user space nor may be built upon one
 * that does? Waits for whoever has it. */
static bool is_file_of_kernel(int fd)
{
	struct statfs fs;
	struct stat st;

	return !fstatfs(fd, &fs) && fs.f_type != FUSE_SUPER_MAGIC &&
	       fs.f_type != OVERLAYFS_SUPER_MAGIC && !fstat(fd, &st) && S_ISREG(st.st_mode);
}

size_t vub_fd_page_size(int fd)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return 0;
	if (fs.f_type == HUGETLBFS_MAGIC)
		page = (size_t)fs.f_bsize;
	return is_pow2(page) ? page : 0;
}

/* Can nobody let us wait when it is closed? With a Unix socket goes what nobody has received from
 * it, which may be anything. */
static bool is_harmless(int fd)
{
	return is_shared_memory(fd) || vub_fd_is_eventfd(fd);
}

/* ---- what may let us wait is left to a thread ---- */

enum { LEFT_MAX = 64 };                 /* threads that hang, and nobody waits for */

#define PATIENCE_NS (2 * NS_PER_SEC)

static atomic_uint nleft;

/* Its descriptors are the thread's, which closes them when it has looked at them. A fiber waits for
 * that, within limits. */
struct errand {
	int fds[VUB_FDS_MAX];
	unsigned n;
	bool is_question;               /* are they of the kernel? Or they are closed only. */
	int res;
	atomic_bool is_left;            /* by the fiber, or by the thread: the other one frees it */
	bool is_over, is_late;
	struct timer timer;
	struct loop *loop;
	struct fiber *waiter;
	struct task task;
};

static void over(struct task *t)
{
	struct errand *e = container_of(t, struct errand, task);

	e->is_over = true;
	fiber_wake(e->waiter);
}

static void late(struct timer *t)
{
	struct errand *e = container_of(t, struct errand, timer);

	e->is_late = true;
	fiber_wake(e->waiter);
}

static void *errand_thread(void *arg)
{
	struct errand *e = arg;

	for (unsigned i = 0; i < e->n; i++) {
		if (e->is_question && !e->res && !is_file_of_kernel(e->fds[i]))
			e->res = -EINVAL;
		close(e->fds[i]);
	}
	if (atomic_exchange(&e->is_left, true)) {
		atomic_fetch_sub(&nleft, 1);
		free(e);
	} else {
		loop_post(e->loop, &e->task);
	}
	return NULL;
}

/* For which nobody waits. */
static bool start_thread(struct errand *e)
{
	pthread_t thread;

	if (thread_start(&thread, errand_thread, e))
		return false;
	pthread_detach(thread);
	return true;
}

/* Adds @fd to *@e, which is made for the first one. False: there was no memory until the stop. */
static bool errand_add_wait(struct errand **e, int fd, const bool *is_stopping)
{
	while (!*e && !(*e = calloc(1, sizeof(**e))) && !*is_stopping)
		fiber_sleep_wait(100 * NS_PER_MS);
	if (!*e)
		return false;
	assert((*e)->n < VUB_FDS_MAX);
	(*e)->fds[(*e)->n++] = fd;
	return true;
}

/* Is the thread not to be waited for any more? */
static bool is_to_be_left(const struct errand *e, const bool *is_stopping)
{
	return *is_stopping || (e->is_late && atomic_load(&nleft) < LEFT_MAX);
}

/* Frees @e. 0; -EINVAL: the answer is no; -ECANCELED: the stop; or -ETIMEDOUT. */
static int errand_wait(struct errand *e, const bool *is_stopping)
{
	int rc;

	e->loop = loop_current();
	e->waiter = fiber_self();
	e->task.fn = over;
	e->timer.fn = late;
	while (!start_thread(e)) {              /* there may be one soon */
		if (*is_stopping) {             /* they are closed with the process */
			free(e);
			return -ECANCELED;
		}
		fiber_sleep_wait(100 * NS_PER_MS);
	}
	timer_set(e->loop, &e->timer, loop_now(e->loop) + PATIENCE_NS);
	while (!e->is_over && !is_to_be_left(e, is_stopping))
		fiber_park();
	timer_cancel(e->loop, &e->timer);
	if (!e->is_over) {
		rc = *is_stopping ? -ECANCELED : -ETIMEDOUT;
		atomic_fetch_add(&nleft, 1);
		if (!atomic_exchange(&e->is_left, true))
			return rc;
		atomic_fetch_sub(&nleft, 1);
	}
	while (!e->is_over)
		fiber_park();
	rc = e->res;
	free(e);
	return rc;
}

int vub_fds_vet_wait(const int *fds, unsigned n, const bool *is_stopping)
{
	struct errand *e = NULL;
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++) {
		int copy;

		if (fds[i] < 0)
			continue;
		if (is_place(fds[i])) {
			rc = -EINVAL;
			continue;
		}
		if (is_harmless(fds[i]) || is_unix_socket(fds[i]) || is_known_memory(fds[i]))
			continue;
		copy = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		if (copy < 0)
			rc = -errno;
		else if (!errand_add_wait(&e, copy, is_stopping))
			rc = -ECANCELED;        /* and closed with the process */
	}
	if (!e)
		return rc;
	e->is_question = true;
	e->res = rc;
	return errand_wait(e, is_stopping);
}

int vub_fds_close_wait(const int *fds, unsigned n, const bool *is_stopping)
{
	struct errand *e = NULL;

	for (unsigned i = 0; i < n; i++) {
		if (fds[i] < 0)
			continue;
		if (is_harmless(fds[i]))
			close(fds[i]);
		else
			errand_add_wait(&e, fds[i], is_stopping);
	}
	return e ? errand_wait(e, is_stopping) : 0;
}

int vub_connection_close_wait(int fd, const bool *is_stopping)
{
	int waiting = 1;

	/* Behind that nothing comes any more. */
	if (!shutdown(fd, SHUT_RDWR) && !ioctl(fd, SIOCINQ, &waiting) && !waiting) {
		close(fd);
		return 0;
	}
	return vub_fds_close_wait(&fd, 1, is_stopping);
}
