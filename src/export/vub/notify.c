/* SPDX-License-Identifier: MIT */
/* export/vub/notify.c - notifications to the front end, none of which can make us wait (V25).
 *
 * The descriptors are eventfds of the front end's. Who writes to one waits while its counter is
 * full, unless O_NONBLOCK is set; but that is a flag of the open file, which the front end shares
 * and can clear at any time, and it can fill the counter as well. All that its loop serves would
 * stand still, disks of other machines too.
 *
 * The kernel's own way to add to an eventfd never waits. A ring of io_uring uses it for each
 * completion, so a notifier is a ring of its own with the descriptor registered, and a request that
 * does nothing is a notification: one system call, as a write is. Where io_uring is forbidden the
 * descriptor is looked at and then written to, which a front end could win a race against. */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "export/vub/vub_impl.h"

struct vub_notifier {
	int fd;
	bool has_ring;
	struct io_uring ring;           /* one thread at a time */
};

static bool open_ring(struct vub_notifier *n)
{
	if (io_uring_queue_init(1, &n->ring, 0) < 0)
		return false;
	if (!io_uring_register_eventfd(&n->ring, n->fd))
		return true;
	io_uring_queue_exit(&n->ring);
	return false;
}

struct vub_notifier *vub_notifier_new(int fd, const struct loop *loop)
{
	struct vub_notifier *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->fd = fd;
	n->has_ring = !strcmp(loop_backend_name(loop), "uring") && open_ring(n);
	return n;
}

void vub_notifier_free(struct vub_notifier *n)
{
	if (!n)
		return;
	if (n->has_ring)
		io_uring_queue_exit(&n->ring);
	close(n->fd);
	free(n);
}

static int signal_ring(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	int rc;

	/* It is full where the last submission failed: then that one is still in it. */
	if (sqe)
		io_uring_prep_nop(sqe);
	rc = io_uring_submit(ring);
	io_uring_cq_advance(ring, io_uring_cq_ready(ring));
	return rc < 0 ? rc : 0;
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
	rc = n->has_ring ? signal_ring(&n->ring) : signal_fd(n->fd);
	if (rc < 0)
		log_debug("vhost-user: cannot notify: %s", strerrordesc_np(-rc));
}
