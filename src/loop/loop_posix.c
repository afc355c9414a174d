/* SPDX-License-Identifier: MIT */
/* loop/loop_posix.c - the loop on epoll and worker threads, for systems that forbid io_uring.
 *
 * loop_submit() only queues. posix_reap() starts what was queued:
 *	sockets and polls   are tried without blocking; what would block waits for epoll and is
 *			    tried again when its descriptor has an event;
 *	eventfds of IO_EVENT  wait for epoll, and are not tried: epoll tells of each write once;
 *	files               go to the worker pool. Small buffered reads are first tried on the
 *			    loop's own thread, for what the page cache has (RWF_NOWAIT).
 *
 * An io is on one list at a time (backend_state says which): p->submitted; the bucket of its
 * descriptor in p->waiting; p->files, while all jobs are busy; none while a job has it; p->ended,
 * until this or the next reap answers it.
 *
 * Descriptors are armed one-shot, for the union of what their ios wait for; the descriptor's number
 * is all that epoll remembers for us. So an event for a number that means another file by
 * now costs one more try and does no harm. Listening sockets are made non-blocking, and stay so.
 * That of an IO_EVENT, which is its only io, is armed for good, edge-triggered: nothing is done to
 * the eventfd when we wake up, whose lock may still be held by who wrote to it (loop_uring.c).
 *
 * Invariants:
 *	X1  nothing is allocated for an io: jobs are a fixed number, what has none waits in order;
 *	X2  a descriptor with waiting ios is armed for all that they wait for whenever the
 *	    loop sleeps. */
#include "loop/loop_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"

enum {
	JOBS_MAX = 64,
	WORKERS_WANTED = 16,            /* each blocks for one operation */
	BUCKETS = 256,
	EVENTS_MAX = 128,               /* taken in one turn */
	CACHED_READ_MAX = 128 << 10,    /* bytes that are worth a copy on the loop's thread */
	RECV_MAX = 0x7ffff000,
};

enum state { IS_QUEUED = 1, IS_WAITING, HAS_JOB, HAS_ENDED, HAS_EVENT };

/* A file operation on its way through the worker pool. */
struct job {
	struct work work;
	struct loop *loop;
	struct io *io;
	struct job *next;               /* while free */
};

struct posix {
	int epoll_fd;
	int wake_fd;                    /* written by any thread */
	bool has_pwait2;
	unsigned waiters;               /* ios in all buckets */
	struct list_node submitted, files, ended;
	struct list_node waiting[BUCKETS];
	struct job *free_jobs;
	struct job jobs[JOBS_MAX];
};

/* ---- making and ending ---- */

static int fds_open(struct posix *p, struct err *err)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int rc;

	p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (p->epoll_fd < 0)
		return err_set_errno(err, errno, "cannot make an epoll descriptor");
	p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->wake_fd < 0) {
		rc = err_set_errno(err, errno, "cannot make an eventfd");
		close(p->epoll_fd);
		return rc;
	}
	ev.data.fd = p->wake_fd;
	if (epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->wake_fd, &ev) < 0) {
		rc = err_set_errno(err, errno, "cannot wait for an eventfd");
		close(p->wake_fd);
		close(p->epoll_fd);
		return rc;
	}
	return 0;
}

static int posix_init(struct loop *l, const struct loop_opts *opts, struct err *err)
{
	struct posix *p = calloc(1, sizeof(*p));
	int rc;

	if (!p)
		return err_set_errno(err, ENOMEM, "cannot make an epoll loop");
	rc = fds_open(p, err);
	if (rc < 0) {
		free(p);
		return rc;
	}
	p->has_pwait2 = true;
	list_init(&p->submitted);
	list_init(&p->files);
	list_init(&p->ended);
	for (unsigned i = 0; i < BUCKETS; i++)
		list_init(&p->waiting[i]);
	for (unsigned i = 0; i < JOBS_MAX; i++) {
		p->jobs[i].loop = l;
		p->jobs[i].next = p->free_jobs;
		p->free_jobs = &p->jobs[i];
	}
	l->backend = p;
	workers_raise(opts->workers, WORKERS_WANTED);
	return 0;
}

static void posix_fini(struct loop *l)
{
	struct posix *p = l->backend;

	close(p->wake_fd);
	close(p->epoll_fd);
	free(p);
}

static void posix_adopt(struct loop *l)
{
}

/* ---- starting and ending ios ---- */

static void io_put(struct list_node *list, struct io *io, enum state state)
{
	io->backend_state = (uint8_t)state;
	list_add_tail(list, &io->link);
}

static void io_end_soon(struct posix *p, struct io *io, int res)
{
	io->res = res;
	io_put(&p->ended, io, HAS_ENDED);
}

static void posix_submit(struct loop *l, struct io *io)
{
	struct posix *p = l->backend;

	io_put(&p->submitted, io, IS_QUEUED);
}

static void posix_cancel(struct loop *l, struct io *io)
{
	struct posix *p = l->backend;

	if (io->backend_state != IS_QUEUED && io->backend_state != IS_WAITING &&
	    io->backend_state != HAS_EVENT)
		return;
	/* Its eventfd may live on elsewhere when it is closed here, and would wake us up. */
	if (io->op == IO_EVENT && io->backend_state != IS_QUEUED)
		epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, io->fd, NULL);
	p->waiters -= io->backend_state == IS_WAITING;
	list_del(&io->link);
	io_end_soon(p, io, -ECANCELED);
}

/* ---- files ---- */

/* The result of a system call; waits where the descriptor is non-blocking. Sets *@ret_again to
 * call again. On a worker. */
static int sys_result(const struct io *io, ssize_t n, bool *ret_again)
{
	struct pollfd pfd = { .fd = io->fd, .events = io->op == IO_READ ? POLLIN : POLLOUT };

	*ret_again = false;
	if (n >= 0)
		return (int)n;
	if (errno == EAGAIN) {
		poll(&pfd, 1, -1);
		*ret_again = true;
	} else if (errno == EINTR) {
		*ret_again = true;
	}
	return -errno;
}

static int file_io(const struct io *io)
{
	bool again;
	ssize_t n;
	int res;

	do {
		switch (io->op) {
		case IO_READ:
			n = preadv(io->fd, io->iov, (int)io->iovcnt, (off_t)io->off);
			break;
		case IO_WRITE:
			n = pwritev2(io->fd, io->iov, (int)io->iovcnt, (off_t)io->off,
				     io->flags & IO_DSYNC ? RWF_DSYNC : 0);
			break;
		case IO_SYNC:
			n = fdatasync(io->fd);
			break;
		default:
			n = fallocate(io->fd, io->mode, (off_t)io->off, (off_t)io->len);
			break;
		}
		res = sys_result(io, n, &again);
	} while (again);
	return res;
}

static void job_run(struct work *w)
{
	struct job *j = container_of(w, struct job, work);

	j->io->res = file_io(j->io);
}

static void job_start(struct posix *p, struct io *io);

static void job_done(struct work *w)
{
	struct job *j = container_of(w, struct job, work);
	struct loop *l = j->loop;
	struct posix *p = l->backend;
	struct list_node *n = list_pop(&p->files);
	struct io *io = j->io;

	j->next = p->free_jobs;
	p->free_jobs = j;
	if (n)
		job_start(p, list_entry(n, struct io, link));
	loop_io_end(l, io, io->res);
}

static void job_start(struct posix *p, struct io *io)
{
	struct job *j = p->free_jobs;

	if (!j) {
		io_put(&p->files, io, IS_QUEUED);
		return;
	}
	p->free_jobs = j->next;
	io->backend_state = HAS_JOB;
	j->io = io;
	j->work.fn = job_run;
	j->work.done = job_done;
	j->work.loop = j->loop;
	workers_submit(j->loop->workers, &j->work);
}

/* Reads @io from the page cache. False where it is not all there, or there is reason to let a
 * worker say what is wrong. O_DIRECT waits for the disk in spite of RWF_NOWAIT. */
static bool read_cached(struct io *io)
{
	size_t len = 0;
	ssize_t n;
	int flags;

	for (uint32_t i = 0; i < io->iovcnt; i++) {
		if (io->iov[i].iov_len > CACHED_READ_MAX - len)
			return false;
		len += io->iov[i].iov_len;
	}
	flags = fcntl(io->fd, F_GETFL);
	if (flags < 0 || flags & O_DIRECT)
		return false;
	n = preadv2(io->fd, io->iov, (int)io->iovcnt, (off_t)io->off, RWF_NOWAIT);
	if (n < 0 || (size_t)n != len)
		return false;
	io->res = (int)n;
	return true;
}

static void file_start(struct posix *p, struct io *io)
{
	if (io->op == IO_READ && read_cached(io))
		io_end_soon(p, io, io->res);
	else
		job_start(p, io);
}

/* ---- sockets and polls ---- */

static uint32_t io_events(const struct io *io)
{
	switch (io->op) {
	case IO_SENDMSG:
		return EPOLLOUT;
	case IO_POLL:
		return (uint32_t)io->mode;
	default:
		return EPOLLIN;
	}
}

static int try_accept(const struct io *io)
{
	struct pollfd pfd = { .fd = io->fd, .events = POLLIN };
	int flags = fcntl(io->fd, F_GETFL), fd;

	if (flags < 0)
		return -1;
	/* An event may be stale, and accept4() has no flag for not waiting. */
	if (!(flags & O_NONBLOCK) && fcntl(io->fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -1;
	fd = accept4(io->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0 || errno != EAGAIN)
		return fd;
	/* An AF_UNIX listener that was shut down answers EAGAIN for ever. */
	errno = poll(&pfd, 1, 0) > 0 && pfd.revents & POLLHUP ? EINVAL : EAGAIN;
	return -1;
}

static int try_poll(const struct io *io)
{
	struct pollfd pfd = { .fd = io->fd, .events = (short)io->mode };
	int n = poll(&pfd, 1, 0);

	if (n > 0 && pfd.revents & POLLNVAL) {
		errno = EBADF;
		return -1;
	}
	if (n == 0) {
		errno = EAGAIN;
		return -1;
	}
	return n < 0 ? n : pfd.revents;
}

/* One try that does not block. The result, -EAGAIN for not yet. */
static int io_try(const struct io *io)
{
	ssize_t n;

	do {
		switch (io->op) {
		case IO_RECV:
			n = recv(io->fd, io->buf, MIN(io->len, (uint64_t)RECV_MAX), MSG_DONTWAIT);
			break;
		case IO_SENDMSG:
			n = sendmsg(io->fd, io->msg, MSG_DONTWAIT | MSG_NOSIGNAL);
			break;
		case IO_ACCEPT:
			n = try_accept(io);
			break;
		default:
			n = try_poll(io);
			break;
		}
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (int)n;
}

static struct list_node *bucket(struct posix *p, int fd)
{
	return &p->waiting[(unsigned)fd % BUCKETS];
}

/* Arms @fd for all that wait for it (X2). */
static int fd_arm(struct posix *p, int fd)
{
	struct epoll_event ev = { .events = 0, .data.fd = fd };
	bool is_waited_for = false;

	list_for_each(n, bucket(p, fd)) {
		const struct io *io = list_entry(n, struct io, link);

		if (io->fd == fd) {
			ev.events |= io_events(io);
			ev.events |= io->op == IO_EVENT ? EPOLLET : EPOLLONESHOT;
			is_waited_for = true;
		}
	}
	if (!is_waited_for || epoll_ctl(p->epoll_fd, EPOLL_CTL_MOD, fd, &ev) == 0)
		return 0;
	if (errno != ENOENT || epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
		return -errno;
	return 0;
}

static void io_wait(struct posix *p, struct io *io)
{
	io_put(bucket(p, io->fd), io, IS_WAITING);
	p->waiters++;
}

/* Tries @io and lets it wait, unarmed, if it must. */
static bool io_try_or_wait(struct posix *p, struct io *io)
{
	int res = io->op == IO_EVENT ? -EAGAIN : io_try(io);

	if (res == -EAGAIN)
		io_wait(p, io);
	else
		io_end_soon(p, io, res);
	return res == -EAGAIN;
}

/* @fd cannot be waited for: all that wait for it end with @res. */
static void fd_fail(struct posix *p, int fd, int res)
{
	list_for_each(n, bucket(p, fd)) {
		struct io *io = list_entry(n, struct io, link);

		if (io->fd != fd)
			continue;
		list_del(n);
		p->waiters--;
		io_end_soon(p, io, res);
	}
}

static void socket_start(struct posix *p, struct io *io)
{
	int fd = io->fd, rc;

	if (!io_try_or_wait(p, io))
		return;
	rc = fd_arm(p, fd);
	if (rc < 0)
		fd_fail(p, fd, rc);
}

/* Tries what waits for @events on @fd, in order. */
static void fd_event(struct posix *p, int fd, uint32_t events)
{
	struct list_node tries;
	struct list_node *n;
	int rc;

	list_init(&tries);
	list_for_each(it, bucket(p, fd)) {
		struct io *io = list_entry(it, struct io, link);

		if (io->fd != fd || !(events & (io_events(io) | EPOLLERR | EPOLLHUP)))
			continue;
		list_del(it);
		p->waiters--;
		if (io->op == IO_EVENT)
			io_put(&p->ended, io, HAS_EVENT);
		else
			list_add_tail(&tries, it);
	}
	while ((n = list_pop(&tries)))
		io_try_or_wait(p, list_entry(n, struct io, link));
	rc = fd_arm(p, fd);
	if (rc < 0)
		fd_fail(p, fd, rc);
}

/* ---- the turn's end ---- */

static void submitted_start(struct posix *p)
{
	struct list_node *n;

	while ((n = list_pop(&p->submitted))) {
		struct io *io = list_entry(n, struct io, link);

		if (io->op <= IO_ALLOCATE)
			file_start(p, io);
		else
			socket_start(p, io);
	}
}

static int wait_ms(uint64_t ns)
{
	if (ns > (uint64_t)INT32_MAX * NS_PER_MS)
		return INT32_MAX;
	return (int)div_round_up(ns, NS_PER_MS);
}

/* Events until the clock reaches @until_ns. The count, or -1. */
static int events_wait(struct loop *l, struct posix *p, struct epoll_event *ev, uint64_t until_ns)
{
	uint64_t now, ns = 0;
	int n;

	if (until_ns == UINT64_MAX)
		return epoll_wait(p->epoll_fd, ev, EVENTS_MAX, -1);
	if (until_ns) {
		now = l->ops->clock(l);
		ns = until_ns > now ? until_ns - now : 0;
	}
	if (p->has_pwait2 && ns) {
		struct timespec ts = {
			.tv_sec = (time_t)(ns / NS_PER_SEC), .tv_nsec = (long)(ns % NS_PER_SEC),
		};

		n = epoll_pwait2(p->epoll_fd, ev, EVENTS_MAX, &ts, NULL);
		if (n >= 0 || (errno != ENOSYS && errno != EPERM))
			return n;
		p->has_pwait2 = false;  /* before Linux 5.11: whole milliseconds */
	}
	return epoll_wait(p->epoll_fd, ev, EVENTS_MAX, wait_ms(ns));
}

static void events_take(struct loop *l, struct posix *p, uint64_t until_ns)
{
	struct epoll_event ev[EVENTS_MAX];
	uint64_t count;
	int n;

	if (until_ns == 0 && p->waiters == 0)
		return;
	loop_stat_add(&l->stats.enters, 1);
	n = events_wait(l, p, ev, until_ns);
	if (n < 0 && errno != EINTR) {
		log_error("epoll fails with %d: cannot go on", errno);
		abort();
	}
	for (int i = 0; i < n; i++) {
		if (ev[i].data.fd != p->wake_fd)
			fd_event(p, ev[i].data.fd, ev[i].events);
		else if (read(p->wake_fd, &count, sizeof(count)) < 0)
			assert(errno == EAGAIN || errno == EINTR);
	}
}

static void posix_reap(struct loop *l, uint64_t until_ns)
{
	struct posix *p = l->backend;
	struct list_node *n;

	submitted_start(p);
	events_take(l, p, list_is_empty(&p->ended) ? until_ns : 0);
	loop_awake(l);
	while ((n = list_pop(&p->ended))) {
		struct io *io = list_entry(n, struct io, link);

		if (io->backend_state == HAS_EVENT) {
			io_wait(p, io);
			loop_io_event(l, io);
		} else {
			loop_io_end(l, io, io->res);
		}
	}
}

static void posix_wake(struct loop *l)
{
	struct posix *p = l->backend;
	ssize_t n;

	do
		n = write(p->wake_fd, &(uint64_t){ 1 }, sizeof(uint64_t));
	while (n < 0 && errno == EINTR);
	assert(n == sizeof(uint64_t));
}

static uint64_t posix_clock(struct loop *l)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

const struct loop_ops loop_posix_ops = {
	.name = "posix",
	.init = posix_init,
	.fini = posix_fini,
	.adopt = posix_adopt,
	.submit = posix_submit,
	.cancel = posix_cancel,
	.reap = posix_reap,
	.wake = posix_wake,
	.clock = posix_clock,
};
