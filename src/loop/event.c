/* SPDX-License-Identifier: MIT */
/* loop/event.c - writing to eventfds of others without ever waiting for them.
 *
 * Who writes to an eventfd waits while its counter is full, unless O_NONBLOCK is set; but that is a
 * flag of the open file, which the other side shares and can clear at any time, and it can fill the
 * counter as well. All that the loop serves would stand still, disks of other machines too.
 *
 * The kernel's own way to add to an eventfd never waits. It does so where asynchronous I/O
 * (io_submit(2)) ends, so an event is a read of nothing, which ends in the call that submits it:
 * one system call, as a write is. An io_uring with the eventfd registered would do it too, and a
 * fifth of a microsecond faster; but it would take a ring for each eventfd, and the kernel marks
 * what comes from a ring: who waits with a ring of its own has its multishot poll ended by each
 * (EPOLL_URING_WAKE). It then polls again while we hold the eventfd's lock, which is until the
 * processor that we wake up has been told: where that is a virtual one, in each hundredth answer,
 * for most of a millisecond.
 *
 * A loop has one context for all eventfds. It is set up when it is first needed, and kept for the
 * next loop of the same id: the kernel ends one after a grace period of RCU, 30 ms. So there are
 * never more than LOOPS_MAX of them, whoever comes and goes.
 *
 * Where there is no context (asynchronous I/O is forbidden, or others have all that fs.aio-max-nr
 * allows) the eventfd is looked at and then written to. No event is lost by that, but the other
 * side could win a race against it, so the log says so once, and the loop asks for a context again
 * now and then. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/log.h"
#include "loop/loop_impl.h"

/* What the kernel shows of a context, at its address (fs/aio.c): who has taken an event moves the
 * head. */
struct aio_ring {
	unsigned id, nr, head, tail, magic, compat_features, incompat_features, header_length;
};

enum { AIO_RING_MAGIC = 0xa10a10a1 };

#define RETRY_NS NS_PER_SEC

/* The context of the loop of that id. The loop's thread alone; the next one of the same id comes
 * after loop_free(). */
static struct bell {
	aio_context_t context;          /* 0: there is none */
	int nothing;                    /* to read from, while there is one */
	uint64_t retry_ns;              /* on loop_now()'s clock: not before */
} bells[LOOPS_MAX];

static int set_up(struct bell *b)
{
	aio_context_t context = 0;
	const struct aio_ring *ring;
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	rc = syscall(SYS_io_setup, 1, &context) < 0 ? -errno : 0;
	ring = (const struct aio_ring *)context;
	if (!rc && (ring->magic != (unsigned)AIO_RING_MAGIC || ring->incompat_features)) {
		syscall(SYS_io_destroy, context);
		rc = -ENOSYS;
	}
	if (rc) {
		close(fd);
		return rc;
	}
	*b = (struct bell){ .context = context, .nothing = fd };
	return 0;
}

static bool has_context(struct loop *l, struct bell *b)
{
	static atomic_bool is_logged;
	int rc;

	if (b->context)
		return true;
	if (l->now_ns < b->retry_ns)
		return false;
	rc = set_up(b);
	if (!rc)
		return true;
	b->retry_ns = rc == -ENOSYS || rc == -EPERM ? UINT64_MAX : l->now_ns + RETRY_NS;
	if (!atomic_exchange(&is_logged, true))
		log_warn("no asynchronous I/O to notify others by (%s%s): who is notified could "
			 "hold up what this process serves", strerrordesc_np(-rc),
			 rc == -EAGAIN ? ", see fs.aio-max-nr" : "");
	return false;
}

static int ring_bell(struct bell *b, int fd)
{
	struct aio_ring *ring = (struct aio_ring *)b->context;
	struct iocb io = {
		.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)b->nothing,
		.aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)fd,
	};
	struct iocb *list = &io;

	if (syscall(SYS_io_submit, b->context, 1, &list) < 0)
		return -errno;
	__atomic_store_n(&ring->head, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE),
			 __ATOMIC_RELEASE);
	return 0;
}

/* Where its counter is full, the other side has enough to wake up for. */
static int write_event(int fd)
{
	static const uint64_t one = 1;
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
		return -errno;
	if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
		return 0;
	return write(fd, &one, sizeof(one)) < 0 && errno != EAGAIN ? -errno : 0;
}

void loop_event_signal(struct loop *l, int fd)
{
	struct bell *b = &bells[l->id];
	int rc = -ENOSYS;

	loop_assert(l);
	if (has_context(l, b))
		rc = ring_bell(b, fd);
	if (rc < 0)                     /* or there was no memory: this one must not be lost */
		rc = write_event(fd);
	if (rc < 0)
		log_debug("cannot notify: %s", strerrordesc_np(-rc));
}
