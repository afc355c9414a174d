/* SPDX-License-Identifier: MIT */
/* export/vub/notify.c - notifications to the front end, none of which can make us wait (V25).
 *
 * The descriptors are eventfds of the front end's. Who writes to one waits while its counter is
 * full, unless O_NONBLOCK is set; but that is a flag of the open file, which the front end shares
 * and can clear at any time, and it can fill the counter as well. All that its loop serves would
 * stand still, disks of other machines too.
 *
 * The kernel's own way to add to an eventfd never waits. It does so where asynchronous I/O
 * (io_submit(2)) ends, so a notification is a read of nothing, which ends in the call that submits
 * it: one system call, as a write is. An io_uring with the eventfd registered would do it too, and
 * a fifth of a microsecond faster; but the kernel marks what comes from a ring, and a front end
 * that waits with a ring of its own has its multishot poll ended by each (EPOLL_URING_WAKE). It
 * then polls again while we hold the eventfd's lock, which is until the processor that we wake up
 * has been told: where that is a virtual one, in each hundredth answer, for most of a millisecond.
 *
 * The kernel ends such a context after a grace period of RCU, 30 ms in which the loop would stand
 * still for each notifier that is replaced: what has one is kept, and used again.
 *
 * Where asynchronous I/O is forbidden the descriptor is looked at and then written to, which a
 * front end could win a race against. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "export/vub/vub_impl.h"

/* What the kernel shows of a context, at its address (fs/aio.c): who has taken an event moves the
 * head. */
struct aio_ring {
	unsigned id, nr, head, tail, magic, compat_features, incompat_features, header_length;
};

enum { AIO_RING_MAGIC = 0xa10a10a1 };

struct vub_notifier {
	int fd;
	int nothing;                    /* to read from; -1: there is no context */
	aio_context_t context;          /* one thread at a time */
	struct vub_notifier *next;      /* while idle */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;        /* of the next */
static struct vub_notifier *idle;       /* with a context each, and no fd; never freed */

static void open_context(struct vub_notifier *n)
{
	const struct aio_ring *ring;

	if (syscall(SYS_io_setup, 1, &n->context) < 0)
		return;
	ring = (const struct aio_ring *)n->context;
	if (ring->magic == (unsigned)AIO_RING_MAGIC && !ring->incompat_features)
		n->nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (n->nothing < 0)
		syscall(SYS_io_destroy, n->context);
}

static struct vub_notifier *take_idle(void)
{
	struct vub_notifier *n;

	pthread_mutex_lock(&lock);
	n = idle;
	if (n)
		idle = n->next;
	pthread_mutex_unlock(&lock);
	return n;
}

struct vub_notifier *vub_notifier_new(int fd)
{
	struct vub_notifier *n = take_idle();

	if (!n) {
		n = calloc(1, sizeof(*n));
		if (!n)
			return NULL;
		n->nothing = -1;
		open_context(n);
	}
	n->fd = fd;
	return n;
}

void vub_notifier_free(struct vub_notifier *n)
{
	if (!n)
		return;
	close(n->fd);
	if (n->nothing < 0) {
		free(n);
		return;
	}
	pthread_mutex_lock(&lock);
	n->next = idle;
	idle = n;
	pthread_mutex_unlock(&lock);
}

static int signal_context(struct vub_notifier *n)
{
	struct aio_ring *ring = (struct aio_ring *)n->context;
	struct iocb io = {
		.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)n->nothing,
		.aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)n->fd,
	};
	struct iocb *list = &io;

	if (syscall(SYS_io_submit, n->context, 1, &list) < 0)
		return -errno;
	__atomic_store_n(&ring->head, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE),
			 __ATOMIC_RELEASE);
	return 0;
}

/* Where its counter is full, the other side has enough to wake up for. */
static int signal_fd(int fd)
{
	static const uint64_t one = 1;
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
		return 0;
	return write(fd, &one, sizeof(one)) < 0 && errno != EAGAIN ? -errno : 0;
}

void vub_notifier_signal(struct vub_notifier *n)
{
	int rc;

	if (!n)
		return;
	rc = n->nothing >= 0 ? signal_context(n) : -ENOSYS;
	if (rc < 0)                     /* or there was no memory: this one must not be lost */
		rc = signal_fd(n->fd);
	if (rc < 0)
		log_debug("vhost-user: cannot notify: %s", strerrordesc_np(-rc));
}
