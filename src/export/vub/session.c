/* SPDX-License-Identifier: MIT */
/* export/vub/session.c - messages from the socket, replies to it.
 *
 * One message at a time: the next is not looked at before the last was answered. What a front end
 * does wrong is an answer where it asks for one and a line in the log otherwise; a message that
 * cannot be understood ends the session, for what follows it cannot be either. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "export/vub/descriptor.h"
#include "export/vub/vub_impl.h"

enum { MESSAGES_A_TURN = 16 };          /* V28 */

/* ---- waiting ---- */

static void io_done(struct io *io, int res)
{
	struct vub *v = container_of(io, struct vub, io);

	io->res = res;
	v->io_is_busy = false;
	fiber_wake(v->fiber);
}

/* Nothing that the peer must answer, and nothing that may wait for it. */
static void tell_resized(struct vub *v)
{
	struct vhost_user_header head = {
		.request = VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
		.flags = VHOST_USER_VERSION,
	};

	v->is_resized = false;
	if (v->backend_fd < 0 ||
	    !vub_has_bit(v->protocol_features, VHOST_USER_PROTOCOL_F_CONFIG))
		return;
	if (send(v->backend_fd, &head, sizeof(head), MSG_DONTWAIT | MSG_NOSIGNAL) !=
	    (ssize_t)sizeof(head))
		log_limited(&v->log_limit, LOG_LEVEL_WARN, "vhost-user: '%s': cannot tell the "
			    "front end of the new size", v->name);
}

int vub_io_wait(struct vub *v, int fd, enum io_op op, int events)
{
	bool is_cancelled = false;

	v->io = (struct io){ .op = (uint8_t)op, .fd = fd, .fixed = -1, .mode = events,
			     .done = io_done };
	v->io_is_busy = true;
	loop_submit(v->loop, &v->io);
	while (v->io_is_busy) {
		if (v->is_stopping && !is_cancelled) {
			is_cancelled = true;
			loop_cancel(v->loop, &v->io);
		}
		if (v->is_resized)
			tell_resized(v);
		if (v->is_our_turn) {
			vub_handle_turn_wait(v);
			continue;               /* it has waited: see what there is */
		}
		fiber_park();
	}
	if (v->is_stopping) {
		if (op == IO_ACCEPT && v->io.res >= 0)
			close(v->io.res);
		return -ECANCELED;
	}
	return v->io.res;
}

static void turn_over(struct task *t)
{
	struct vub *v = container_of(t, struct vub, turn_task);

	v->has_turned = true;
	fiber_wake(v->fiber);
}

void vub_turn_wait(struct vub *v)
{
	v->has_turned = false;
	v->turn_task.fn = turn_over;
	loop_at_turn_end(v->loop, &v->turn_task);
	while (!v->has_turned)
		fiber_park();
}

/* ---- receiving ---- */

struct incoming {
	struct vhost_user_msg msg;
	int fds[VUB_FDS_MAX];
	unsigned nfds;
};

/* Keeps the descriptors that came with @msg, VHOST_USER_FDS_MAX at most. */
static void take_fds(struct incoming *in, struct msghdr *msg)
{
	static_assert(VUB_FDS_MAX >= 2 * VHOST_USER_FDS_MAX, "all that come in one are kept");

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		unsigned n = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		assert(in->nfds + n <= VUB_FDS_MAX);
		memcpy(in->fds + in->nfds, CMSG_DATA(c), n * sizeof(int));
		in->nfds += n;
	}
}

/* Looks at what recv() would return, and takes copies of the descriptors that come with it.
 * -EPROTO: one is missing. */
static ssize_t look(struct vub *v, struct incoming *in, void *buf, size_t len)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(VHOST_USER_FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { buf, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(v->fd, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n <= 0)
		return n < 0 ? -errno : 0;
	take_fds(in, &msg);
	return msg.msg_flags & MSG_CTRUNC ? -EPROTO : n;
}

/* As recv(), with the descriptors, which may be too many after that. What the kernel cannot hand
 * out it closes, here and now, and waits for whoever stands behind it (V27). So this looks first,
 * and where a descriptor is missing all of them stay in the socket, too. The ones that recv() drops
 * afterwards are not the last. */
static ssize_t receive_some_wait(struct vub *v, struct incoming *in, void *buf, size_t len)
{
	unsigned before = in->nfds;
	struct iovec iov = { buf, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n = look(v, in, buf, len);
	int rc;

	if (n <= 0)
		return n;
	iov.iov_len = (size_t)n;
	if (recvmsg(v->fd, &msg, MSG_DONTWAIT) != n)
		return -EPROTO;
	if (msg.msg_flags & MSG_CTRUNC || in->nfds == before)
		return n;
	/* They come with what is behind that: who looks is shown them too early. */
	rc = vub_fds_close_wait(in->fds + before, in->nfds - before, &v->is_stopping);
	in->nfds = before;
	return rc ? rc : n;
}

/* Receives @len bytes to @buf. 0, -ECONNRESET (the end), or -errno. */
static int receive_wait(struct vub *v, struct incoming *in, void *buf, size_t len)
{
	while (len) {
		ssize_t n = receive_some_wait(v, in, buf, len);

		if (n > 0) {
			if (in->nfds > VHOST_USER_FDS_MAX)
				return -EPROTO;
			buf = (uint8_t *)buf + n;
			len -= (size_t)n;
		} else if (!n) {
			return -ECONNRESET;
		} else if (n == -EAGAIN) {
			int rc = vub_io_wait(v, v->fd, IO_POLL, POLLIN);

			if (rc < 0)
				return rc;
		} else if (n != -EINTR) {
			return (int)n;
		}
	}
	return 0;
}

/* ---- replying ---- */

/* Sends @m, with @fd if it is not -1. 0 or -errno. */
static int reply_wait(struct vub *v, struct vhost_user_msg *m, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	uint8_t *from = (uint8_t *)m;
	size_t left = VHOST_USER_HEADER_SIZE + m->head.size;

	m->head.flags = VHOST_USER_VERSION | VHOST_USER_REPLY;
	while (left) {
		struct iovec iov = { from, left };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t n;

		if (fd >= 0) {
			msg.msg_control = &control;
			msg.msg_controllen = sizeof(control);
			control.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
							  .cmsg_level = SOL_SOCKET,
							  .cmsg_type = SCM_RIGHTS };
			memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
		}
		n = sendmsg(v->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n >= 0) {
			fd = -1;
			from += n;
			left -= (size_t)n;
		} else if (errno == EAGAIN) {
			int rc = vub_io_wait(v, v->fd, IO_POLL, POLLOUT);

			if (rc < 0)
				return rc;
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

/* ---- one message ---- */

/* What repeats is logged once a session. */
static void complain(struct vub *v, uint32_t request, const char *why)
{
	if (!v->has_complained)
		log_limited(&v->log_limit, LOG_LEVEL_WARN,
			    "vhost-user: '%s': the front end's %s (%u) is refused: %s", v->name,
			    vub_message_name(request), request, why);
	v->has_complained = true;
}

/* Answers @in, which has been handled with @rc. 0, or -errno for the end. */
static int answer_wait(struct vub *v, struct incoming *in, int rc, bool wants_reply, int fd)
{
	struct vhost_user_msg *m = &in->msg;

	if (rc < 0)
		complain(v, m->head.request, strerrordesc_np(-rc));
	if (vub_message_has_reply(m->head.request)) {
		if (!rc)
			return reply_wait(v, m, fd);
		if (m->head.request != VHOST_USER_GET_INFLIGHT_FD)
			return rc;              /* there is no answer that says so */
		memset(&m->inflight, 0, sizeof(m->inflight));
		return reply_wait(v, m, -1);
	}
	if (!wants_reply || !vub_has_bit(v->protocol_features, VHOST_USER_PROTOCOL_F_REPLY_ACK))
		return 0;
	m->u64 = rc < 0;
	m->head.size = sizeof(m->u64);
	return reply_wait(v, m, -1);
}

static int handle_wait(struct vub *v, struct incoming *in)
{
	struct vhost_user_msg *m = &in->msg;
	bool wants_reply = m->head.flags & VHOST_USER_NEED_REPLY;
	const char *why = NULL;
	int fd = -1, rc;

	for (unsigned i = in->nfds; i < VHOST_USER_FDS_MAX; i++)
		in->fds[i] = -1;
	rc = vub_message_check(m, in->nfds, v->protocol_features, &why);
	if (rc < 0)
		complain(v, m->head.request, why);
	if (rc == -EPROTO || (rc == -EOPNOTSUPP && !wants_reply))
		return rc;
	if (!rc)
		rc = vub_fds_vet_wait(in->fds, in->nfds, &v->is_stopping);
	if (rc == -ETIMEDOUT || rc == -ECANCELED)
		return rc;
	if (!rc)
		rc = vub_handle_wait(v, m, in->fds, &fd);
	rc = answer_wait(v, in, rc, wants_reply, fd);
	if (fd >= 0)
		close(fd);
	return rc;
}

static int message_wait(struct vub *v, struct incoming *in)
{
	struct vhost_user_msg *m = &in->msg;
	const char *why;
	int rc = receive_wait(v, in, &m->head, sizeof(m->head));

	if (rc < 0)
		return rc;
	rc = vub_message_check_head(&m->head, &why);
	if (rc < 0) {
		complain(v, m->head.request, why);
		return rc;
	}
	rc = receive_wait(v, in, (uint8_t *)m + sizeof(m->head), m->head.size);
	return rc < 0 ? rc : handle_wait(v, in);
}

void vub_session_wait(struct vub *v)
{
	int rc = 0, one = 1;

	/* A byte out of band is passed over, and closed what came with it, by who receives. */
	setsockopt(v->fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one));
	for (unsigned n = 1; !rc && !v->is_stopping; n++) {
		struct incoming in = { 0 };
		int close_rc;

		if (n % MESSAGES_A_TURN == 0)
			vub_turn_wait(v);
		rc = message_wait(v, &in);
		close_rc = vub_fds_close_wait(in.fds, in.nfds, &v->is_stopping);
		rc = rc ? rc : close_rc;
	}
	if (rc != -ECONNRESET && rc != -ECANCELED && rc)
		log_limited(&v->log_limit, LOG_LEVEL_WARN,
			    "vhost-user: '%s': the session ends: %s", v->name,
			    strerrordesc_np(-rc));
}
