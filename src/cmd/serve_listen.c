/* SPDX-License-Identifier: MIT */
#include "cmd/serve_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/err.h"
#include "cmd/serve_opts.h"
#include "ctl/systemd.h"

static int parse_tcp(const char *text, struct listen_address *ret, struct err *err)
{
	const char *rest = text + 4, *colon = strrchr(rest, ':');
	size_t host_len = strlen(rest);

	if (colon && !strchr(colon, ']')) {     /* not inside "[::1]" */
		host_len = (size_t)(colon - rest);
		if (!colon[1] || strlen(colon + 1) > LISTEN_PORT_MAX)
			return err_set(err, EINVAL, "--nbd: '%s' has no valid port", text);
		strcpy(ret->port, colon + 1);
		/* The resolver takes larger numbers modulo 65536. */
		if (ret->port[strspn(ret->port, "0123456789")] == '\0' &&
		    (strlen(ret->port) > 5 || atoi(ret->port) > UINT16_MAX))
			return err_set(err, EINVAL, "--nbd: '%s' has no valid port", text);
	}
	if (!host_len) {
		err_set(err, EINVAL, "--nbd: '%s' names no host", text);
		err_hint(err, "0.0.0.0 and [::] stand for all interfaces");
		return -EINVAL;
	}
	if (host_len > LISTEN_HOST_MAX)
		return err_set(err, EINVAL, "--nbd: the host in '%s' is too long", text);
	memcpy(ret->host, rest, host_len);
	ret->host[host_len] = '\0';
	return 0;
}

int listen_address_parse(const char *text, struct listen_address *ret, struct err *err)
{
	*ret = (struct listen_address) { 0 };
	if (!strncmp(text, "unix:", 5) && text[5]) {
		ret->path = text + 5;
		return 0;
	}
	if (!strncmp(text, "tcp:", 4))
		return parse_tcp(text, ret, err);
	err_set(err, EINVAL, "--nbd: '%s' is not an address", text);
	err_hint(err, "write unix:PATH or tcp:HOST:PORT");
	return -EINVAL;
}

/* Listens at @path. The descriptor, or -errno. */
static int open_unix(const char *path, struct listen_file *ret, struct err *err)
{
	struct stat st = { 0 };
	int fd = nbd_listen_unix(path, 0, err);

	*ret = (struct listen_file){ 0 };
	if (fd >= 0 && !lstat(path, &st)) {
		ret->dev = st.st_dev;
		ret->ino = st.st_ino;
	}
	return fd;
}

static int open_address(const char *text, struct serve_listen *l, struct err *err)
{
	struct listen_address a;
	int rc = listen_address_parse(text, &a, err);

	if (rc)
		return rc;
	if (l->n >= NBD_LISTEN_MAX)
		return err_set(err, E2BIG, "more than %d sockets to listen on", NBD_LISTEN_MAX);
	if (a.path) {
		rc = open_unix(a.path, &l->files[l->n], err);
		if (rc >= 0)
			l->fds[l->n++] = rc;
	} else {
		rc = nbd_listen_tcp(a.host, a.port[0] ? a.port : NULL, l->fds + l->n,
				    NBD_LISTEN_MAX - l->n, err);
		for (int i = 0; i < rc; i++)
			l->files[l->n++] = (struct listen_file){ 0 };
	}
	return rc < 0 ? rc : 0;
}

/* Is @fd a Unix socket that was bound to @path? */
static bool is_bound_to(int fd, const char *path)
{
	struct sockaddr_un un = { 0 };
	socklen_t len = sizeof(un) - 1;

	return !getsockname(fd, (struct sockaddr *)&un, &len) && un.sun_family == AF_UNIX &&
	       !strcmp(un.sun_path, path);
}

/* The socket for @image, handed over or opened here; or -errno. */
static int open_vhost_user(struct serve_listen *l, const struct serve_image *image,
			   struct listen_file *ret, struct err *err)
{
	for (unsigned i = 0; i < l->n; i++) {
		int fd = l->fds[i];

		if (!l->files[i].is_inherited || !is_bound_to(fd, image->vhost_user))
			continue;
		*ret = l->files[i];
		l->n--;
		l->fds[i] = l->fds[l->n];
		l->files[i] = l->files[l->n];
		return fd;
	}
	return open_unix(image->vhost_user, ret, err);
}

static int open_all(const struct serve_opts *opts, struct serve_listen *l, struct err *err)
{
	int rc = systemd_take_sockets(SYSTEMD_LISTEN_FD, l->fds, SERVE_SOCKETS_MAX, err);

	if (rc < 0)
		return rc;
	l->n = (unsigned)rc;
	for (unsigned i = 0; i < l->n; i++)
		l->files[i].is_inherited = true;
	for (unsigned i = 0; i < opts->nimages; i++) {
		rc = -1;
		if (opts->images[i].vhost_user) {
			rc = open_vhost_user(l, &opts->images[i], &l->vub_files[i], err);
			if (rc < 0)
				return rc;
		}
		l->vub_fds[l->nvub++] = rc;
	}
	if (l->n > NBD_LISTEN_MAX)
		return err_set(err, E2BIG, "more than %d sockets to listen on", NBD_LISTEN_MAX);
	if (!l->n && !opts->nlisten && serve_opts_need_nbd(opts)) {
		err_set(err, EDESTADDRREQ, "the service manager handed over no socket");
		err_hint(err, "say where to listen: --nbd unix:PATH or --nbd tcp:HOST:PORT");
		return -EDESTADDRREQ;
	}
	rc = 0;
	for (unsigned i = 0; i < opts->nlisten && !rc; i++)
		rc = open_address(opts->listen[i], l, err);
	return rc;
}

int serve_listen_open(const struct serve_opts *opts, struct serve_listen *ret, struct err *err)
{
	int rc;

	*ret = (struct serve_listen) { 0 };
	rc = open_all(opts, ret, err);
	if (rc)
		serve_listen_close(ret);
	return rc;
}

/* Removes the file of Unix socket @fd, if it was made here and is still the same. */
static void withdraw(int fd, const struct listen_file *file)
{
	struct sockaddr_un un = { 0 };
	socklen_t len = sizeof(un) - 1;
	struct stat st;

	if (fd < 0 || file->is_inherited || getsockname(fd, (struct sockaddr *)&un, &len) ||
	    un.sun_family != AF_UNIX)
		return;
	if (!lstat(un.sun_path, &st) && st.st_dev == file->dev && st.st_ino == file->ino)
		unlink(un.sun_path);
}

void serve_listen_withdraw(const struct serve_listen *l)
{
	for (unsigned i = 0; i < l->n; i++)
		withdraw(l->fds[i], &l->files[i]);
	for (unsigned i = 0; i < l->nvub; i++)
		withdraw(l->vub_fds[i], &l->vub_files[i]);
}

void serve_listen_close(struct serve_listen *l)
{
	serve_listen_withdraw(l);
	for (unsigned i = 0; i < l->n; i++)
		close(l->fds[i]);
	for (unsigned i = 0; i < l->nvub; i++)
		if (l->vub_fds[i] >= 0)
			close(l->vub_fds[i]);
	l->n = l->nvub = 0;
}

/* Appends @text, or as much of it as there is room for, in a URI's spelling. */
static void append_escaped(char *buf, size_t n, const char *text)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				    "0123456789-._~/";
	size_t at = strlen(buf);

	for (; *text && at + 4 <= n; text++) {
		if (strchr(plain, *text))
			buf[at++] = *text;
		else
			at += (size_t)snprintf(buf + at, n - at, "%%%02X", (unsigned char)*text);
	}
	buf[at] = '\0';
}

static void append(char *buf, size_t n, const char *text)
{
	size_t at = strlen(buf);

	snprintf(buf + at, n - at, "%s", text);
}

static void append_unix(char *buf, size_t n, const struct sockaddr_un *un, const char *name)
{
	append(buf, n, "nbd+unix:///");
	append_escaped(buf, n, name);
	append(buf, n, "?socket=");
	append_escaped(buf, n, un->sun_path);
}

char *serve_listen_uri(int fd, const char *name, char *buf, size_t n)
{
	struct sockaddr_storage ss = { 0 };
	/* Zeros follow the address: a path that fills it is terminated all the same. */
	socklen_t len = sizeof(ss) - 1;
	char host[NI_MAXHOST], port[NI_MAXSERV];
	bool v6;

	buf[0] = '\0';
	if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0) {
		append(buf, n, "?");
		return buf;
	}
	if (ss.ss_family == AF_UNIX) {
		append_unix(buf, n, (const struct sockaddr_un *)&ss, name);
		return buf;
	}
	if (getnameinfo((struct sockaddr *)&ss, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV)) {
		append(buf, n, "?");
		return buf;
	}
	v6 = strchr(host, ':');
	append(buf, n, v6 ? "nbd://[" : "nbd://");
	append(buf, n, host);
	append(buf, n, v6 ? "]:" : ":");
	append(buf, n, port);
	append(buf, n, "/");
	append_escaped(buf, n, name);
	return buf;
}
