/* SPDX-License-Identifier: MIT */
/* ctl/systemd.h - what a service manager is told and what it hands over.
 *
 * The two protocols are a datagram and three environment variables, so they are written out here
 * instead of being linked from a library. Both take their variables out of the environment: they
 * were meant for this process alone. Control thread only.
 *
 * Invariants:
 *	S1  without NOTIFY_SOCKET nothing is sent; a message that cannot be sent is dropped,
 *	    it never blocks and never fails the service;
 *	S2  a descriptor is taken over only where LISTEN_PID is this process and the descriptor
 *	    is a listening stream socket. */
#ifndef CTL_SYSTEMD_H
#define CTL_SYSTEMD_H

#include <sys/socket.h>
#include <sys/un.h>

struct err;

enum { SYSTEMD_LISTEN_FD = 3 };         /* where handed-over descriptors start */

/* Where messages go. */
struct notify {
	int fd;                         /* -1: nowhere */
	struct sockaddr_un addr;
	socklen_t addr_len;
};

/* Takes NOTIFY_SOCKET; an unusable one is logged and then as good as none. */
void notify_init(struct notify *n);
/* Sends lines such as "READY=1\nSTATUS=…". */
void notify_send(const struct notify *n, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void notify_fini(struct notify *n);

/* Takes the listening sockets that a service manager opened, at most @max, @first being the
 * lowest descriptor (SYSTEMD_LISTEN_FD; tests use others). Returns their number, 0 where there
 * are none, or -errno with @err set. The descriptors become the caller's and close on exec. */
int systemd_take_sockets(int first, int *fds, unsigned max, struct err *err);

#endif
