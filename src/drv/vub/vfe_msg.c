/* SPDX-License-Identifier: MIT */
#include "drv/vub/vfe_msg.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"

union ancillary {
	char bytes[CMSG_SPACE(sizeof(int) * VHOST_USER_FDS_MAX)];
	struct cmsghdr align;
};

int vfe_msg_connect(const char *path, unsigned timeout_ms, int *ret, struct err *err)
{
	struct timeval tv = { .tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int sock, rc;

	if (strlen(path) >= sizeof(sa.sun_path))
		return err_set_errno(err, ENAMETOOLONG, "'%s'", path);
	strcpy(sa.sun_path, path);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return err_set_errno(err, errno, "cannot make a socket");
	if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) < 0 ||
	    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0 ||
	    connect(sock, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		rc = err_set_errno(err, errno, "cannot connect to '%s'", path);
		close(sock);
		return rc;
	}
	*ret = sock;
	return 0;
}

static int socket_error(void)
{
	return errno == EAGAIN ? -ETIMEDOUT : -errno;
}

int vfe_msg_send(int sock, const struct vhost_user_msg *m, const int *fds, unsigned nfds)
{
	const char *at = (const char *)m;
	size_t left = VHOST_USER_HEADER_SIZE +
		      MIN((size_t)m->head.size, (size_t)VHOST_USER_PAYLOAD_MAX);
	union ancillary anc = { 0 };

	while (left) {
		struct iovec iov = { (char *)(uintptr_t)at, left };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t n;

		if (nfds) {
			size_t bytes = sizeof(int) * MIN(nfds, (unsigned)VHOST_USER_FDS_MAX);
			struct cmsghdr *c;

			mh.msg_control = &anc;
			mh.msg_controllen = CMSG_SPACE(bytes);
			c = CMSG_FIRSTHDR(&mh);
			*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
					       .cmsg_len = CMSG_LEN(bytes) };
			memcpy(CMSG_DATA(c), fds, bytes);
		}
		n = sendmsg(sock, &mh, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return socket_error();
		at += n;
		left -= (size_t)n;
		nfds = 0;               /* they went with the first byte */
	}
	return 0;
}

/* Keeps the first descriptor of @mh in *@fd where there is none yet, and closes the others. */
static void take_fds(struct msghdr *mh, int *fd)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int got;

			memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (*fd < 0)
				*fd = got;
			else
				close(got);
		}
	}
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* How long one recvmsg() or sendmsg() may wait; UINT64_MAX: for ever. */
static uint64_t time_limit_ms(int sock)
{
	struct timeval tv = { 0 };
	socklen_t len = sizeof(tv);

	if (getsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &tv, &len) < 0 || (!tv.tv_sec && !tv.tv_usec))
		return UINT64_MAX;
	return (uint64_t)tv.tv_sec * 1000 + (uint64_t)tv.tv_usec / 1000;
}

/* Who sends a byte now and then has the worker no longer than who sends nothing, but for one more
 * limit (V38). */
static int recv_all(int sock, void *buf, size_t len, int *fd)
{
	uint64_t limit = time_limit_ms(sock), start = now_ms();
	char *at = buf;

	while (len) {
		union ancillary anc;
		struct iovec iov = { at, len };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &anc,
				     .msg_controllen = sizeof(anc) };
		ssize_t n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return socket_error();
		if (!n)
			return -ECONNRESET;
		take_fds(&mh, fd);
		at += n;
		len -= (size_t)n;
		if (len && now_ms() - start > limit)
			return -ETIMEDOUT;
	}
	return 0;
}

int vfe_msg_recv(int sock, struct vhost_user_msg *ret, int *ret_fd)
{
	struct vhost_user_msg m = { 0 };
	int fd = -1, rc;

	rc = recv_all(sock, &m.head, sizeof(m.head), &fd);
	if (!rc && m.head.size > VHOST_USER_PAYLOAD_MAX)
		rc = -EPROTO;
	if (!rc)
		rc = recv_all(sock, m.bytes, m.head.size, &fd);
	if (!rc && (m.head.flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION)
		rc = -EPROTO;
	if (!rc && fd >= 0 && !ret_fd)
		rc = -EPROTO;
	if (rc) {
		if (fd >= 0)
			close(fd);
		return rc;
	}
	*ret = m;
	if (ret_fd)
		*ret_fd = fd;
	return 0;
}

static int recv_reply(int sock, struct vhost_user_msg *m, uint32_t min, int *ret_fd)
{
	struct vhost_user_msg reply;
	int fd = -1, rc = vfe_msg_recv(sock, &reply, ret_fd ? &fd : NULL);

	if (rc)
		return rc;
	if (reply.head.request != m->head.request || !(reply.head.flags & VHOST_USER_REPLY) ||
	    reply.head.size < min) {
		if (fd >= 0)
			close(fd);
		return -EPROTO;
	}
	*m = reply;
	if (ret_fd)
		*ret_fd = fd;
	return 0;
}

int vfe_msg_ask(int sock, struct vhost_user_msg *m, uint32_t min, int *ret_fd)
{
	int rc = vfe_msg_send(sock, m, NULL, 0);

	return rc ? rc : recv_reply(sock, m, min, ret_fd);
}

int vfe_msg_tell(int sock, struct vhost_user_msg *m, const int *fds, unsigned nfds,
		 bool wants_ack)
{
	int rc;

	if (wants_ack)
		m->head.flags |= VHOST_USER_NEED_REPLY;
	rc = vfe_msg_send(sock, m, fds, nfds);
	if (!rc && wants_ack)
		rc = recv_reply(sock, m, sizeof(m->u64), NULL);
	if (!rc && wants_ack && m->u64)
		rc = -EIO;
	return rc;
}

struct vhost_user_msg vfe_msg(enum vhost_user_request request, uint32_t size)
{
	return (struct vhost_user_msg){
		.head = { .request = request, .flags = VHOST_USER_VERSION, .size = size },
	};
}
