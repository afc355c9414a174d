/* SPDX-License-Identifier: MIT */
#include "ctl/systemd.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/size.h"

static const char *unusable_address(const char *path, struct notify *n)
{
	size_t len = strlen(path);

	if (path[0] != '/' && path[0] != '@')
		return "neither a path nor abstract";
	if (len < 2 || len >= sizeof(n->addr.sun_path))
		return "too short or too long";
	n->addr.sun_family = AF_UNIX;
	memcpy(n->addr.sun_path, path, len);
	if (path[0] == '@')
		n->addr.sun_path[0] = '\0';
	n->addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
	return NULL;
}

void notify_init(struct notify *n)
{
	const char *path = getenv("NOTIFY_SOCKET"), *wrong;

	*n = (struct notify) { .fd = -1 };
	if (!path)
		return;
	wrong = unusable_address(path, n);
	if (wrong)
		log_warn("NOTIFY_SOCKET '%s' is %s", path, wrong);
	else
		n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	unsetenv("NOTIFY_SOCKET");
}

void notify_send(const struct notify *n, const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	int len;

	if (n->fd < 0)
		return;
	va_start(ap, fmt);
	len = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (len < 0)
		return;
	if ((size_t)len >= sizeof(text))
		len = (int)sizeof(text) - 1;
	if (sendto(n->fd, text, (size_t)len, MSG_NOSIGNAL, (const struct sockaddr *)&n->addr,
		   n->addr_len) < 0)
		log_debug("service manager not told: %s", strerror(errno));
}

void notify_fini(struct notify *n)
{
	if (n->fd >= 0)
		close(n->fd);
	n->fd = -1;
}

static int socket_option(int fd, int option, int *ret)
{
	socklen_t len = sizeof(*ret);

	return getsockopt(fd, SOL_SOCKET, option, ret, &len) < 0 ? -errno : 0;
}

/* S2 */
static int check_listener(int fd, struct err *err)
{
	int type = 0, listens = 0, domain = 0;

	if (socket_option(fd, SO_TYPE, &type) || socket_option(fd, SO_ACCEPTCONN, &listens) ||
	    socket_option(fd, SO_DOMAIN, &domain))
		return err_set(err, EINVAL, "descriptor %d of LISTEN_FDS is not a socket", fd);
	if (type != SOCK_STREAM || !listens ||
	    (domain != AF_UNIX && domain != AF_INET && domain != AF_INET6)) {
		err_set(err, EINVAL, "descriptor %d of LISTEN_FDS is not a listening socket", fd);
		err_hint(err, "the socket unit needs ListenStream= and Accept=no");
		return -EINVAL;
	}
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return err_set_errno(err, errno, "descriptor %d of LISTEN_FDS", fd);
	return 0;
}

static int take_sockets(int first, int *fds, unsigned max, struct err *err)
{
	const char *pid_text = getenv("LISTEN_PID"), *n_text = getenv("LISTEN_FDS");
	uint64_t pid, n;
	int rc;

	if (!pid_text || !n_text)
		return 0;
	rc = number_parse(pid_text, "LISTEN_PID", 1, INT_MAX, &pid, err);
	if (rc)
		return rc;
	if ((pid_t)pid != getpid())
		return 0;               /* meant for a parent that did not clean up */
	rc = number_parse(n_text, "LISTEN_FDS", 0, max, &n, err);
	if (rc)
		return rc;
	for (int i = 0; i < (int)n; i++) {
		rc = check_listener(first + i, err);
		if (rc)
			return rc;
		fds[i] = first + i;
	}
	return (int)n;
}

int systemd_take_sockets(int first, int *fds, unsigned max, struct err *err)
{
	int rc = take_sockets(first, fds, max, err);

	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return rc;
}
