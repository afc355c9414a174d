/* SPDX-License-Identifier: MIT */
/* export/nbd/listen.c - listening sockets.
 *
 * A Unix socket's file outlives its server. Whether the server is alive is found by connecting:
 * a refusal means that nobody listens, and the file may go. Its mode is set between bind()
 * and listen(), when nobody can connect yet. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "export/nbd/nbd.h"

enum {
	BACKLOG = 128,
	HOST_MAX = 256,
	DYING_TRIES = 10,               /* how often, and how long in all, a dying server is */
	DYING_NS = 500000000,           /* waited for */
};

/* 0: somebody listens; else the errno of connect(2). */
static int try_connect(const struct sockaddr_un *sa)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (fd < 0)
		return errno;
	rc = connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 ? errno : 0;
	close(fd);
	return rc;
}

/* Removes the socket file at @sa if nobody listens there. */
static int remove_stale(const struct sockaddr_un *sa, struct err *err)
{
	struct stat st;

	if (lstat(sa->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : err_set_errno(err, errno, "cannot look at '%s'",
							   sa->sun_path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(err, EADDRINUSE, "'%s' exists and is not a socket", sa->sun_path);

	int rc = try_connect(sa);

	/* The kernel takes down the ring of a server that was killed a moment after its death, and
	 * with it the listening socket. Who starts it anew should not have to know. */
	for (unsigned tries = 0; (rc == 0 || rc == EAGAIN) && tries < DYING_TRIES; tries++) {
		nanosleep(&(struct timespec){ .tv_nsec = DYING_NS / DYING_TRIES }, NULL);
		rc = try_connect(sa);
	}
	if (rc == ENOENT)
		return 0;
	if (rc != ECONNREFUSED)
		return err_set(err, EADDRINUSE, "another server listens on '%s'", sa->sun_path);
	if (unlink(sa->sun_path) < 0 && errno != ENOENT)
		return err_set_errno(err, errno, "cannot remove the stale socket '%s'",
				     sa->sun_path);
	return 0;
}

int nbd_listen_unix(const char *path, unsigned mode, struct err *err)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	if (!*path || strlen(path) >= sizeof(sa.sun_path))
		return err_set(err, *path ? ENAMETOOLONG : EINVAL,
			       "'%s' cannot be a socket's path: it must have 1 to %zu bytes", path,
			       sizeof(sa.sun_path) - 1);
	memcpy(sa.sun_path, path, strlen(path));

	int rc = remove_stale(&sa, err);

	if (rc < 0)
		return rc;

	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return err_set_errno(err, errno, "cannot make a socket");
	if (bind(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0) {
		rc = err_set_errno(err, errno, "cannot bind to '%s'", sa.sun_path);
		close(fd);
		return rc;
	}
	if (chmod(sa.sun_path, mode ? mode : 0600) < 0 || listen(fd, BACKLOG) < 0) {
		rc = err_set_errno(err, errno, "cannot listen on '%s'", sa.sun_path);
		unlink(sa.sun_path);
		close(fd);
		return rc;
	}
	return fd;
}

/* A listening socket at @ai, or -errno. */
static int listen_at(const struct addrinfo *ai)
{
	static const int on = 1, off = 0;
	int fd = socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC, ai->ai_protocol);

	if (fd < 0)
		return -errno;

	const struct sockaddr_in6 *in6 = (const void *)ai->ai_addr;
	bool is_any6 = ai->ai_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (ai->ai_family == AF_INET6)          /* "::" takes IPv4 as well */
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, is_any6 ? &off : &on, sizeof(on));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

/* Writes @host without the brackets of an IPv6 address to @buf. False where it is too long. */
static bool strip_brackets(const char *host, char *buf, size_t n)
{
	size_t len = strlen(host);

	if (len >= 2 && host[0] == '[' && host[len - 1] == ']') {
		host++;
		len -= 2;
	}
	if (len >= n)
		return false;
	memcpy(buf, host, len);
	buf[len] = '\0';
	return true;
}

/* An address of a kind that this machine does not have is no reason to give up the others. */
static bool is_family_missing(int rc)
{
	return rc == -EAFNOSUPPORT || rc == -EADDRNOTAVAIL;
}

int nbd_listen_tcp(const char *host, const char *port, int *fds, unsigned max, struct err *err)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	struct addrinfo *list;
	char name[HOST_MAX];
	bool is_any = !host || !*host;
	unsigned n = 0;
	int rc = 0;

	port = port ? port : "10809";
	if (!is_any && !strip_brackets(host, name, sizeof(name)))
		return err_set(err, ENAMETOOLONG, "the host name '%s' is too long", host);

	int gai = is_any ? getaddrinfo("::", port, &hints, &list)
			 : getaddrinfo(name, port, &hints, &list);

	if (gai && is_any)
		gai = getaddrinfo(NULL, port, &hints, &list);
	if (gai)
		return err_set(err, EINVAL, "cannot resolve '%s' port '%s': %s",
			       is_any ? "*" : host, port,
			       gai == EAI_SYSTEM ? strerrordesc_np(errno) : gai_strerror(gai));

	for (const struct addrinfo *ai = list; ai && n < max; ai = ai->ai_next) {
		int fd = listen_at(ai);

		if (fd >= 0)
			fds[n++] = fd;
		else if (!rc || is_family_missing(rc))  /* the first that matters */
			rc = fd;
	}
	freeaddrinfo(list);
	if (rc && !is_family_missing(rc))
		while (n)
			close(fds[--n]);
	if (!n && is_any && rc == -EAFNOSUPPORT)        /* a kernel without IPv6 */
		return nbd_listen_tcp("0.0.0.0", port, fds, max, err);
	if (!n)
		return err_set_errno(err, rc ? -rc : EINVAL, "cannot listen on '%s' port '%s'",
				     is_any ? "*" : host, port);
	return (int)n;
}
