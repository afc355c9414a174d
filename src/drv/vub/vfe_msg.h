/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_msg.h - messages to and from a back end, on a blocking socket.
 *
 * The socket has a time limit (vfe_msg_connect), so nothing here waits for ever; who calls is on a
 * worker or in a test. Sending knows nothing of what a message means: any request, flags and size,
 * any descriptors, so that tests can say nonsense. Receiving trusts nothing.
 *
 * Invariants:
 *	V34  a reply is taken only if it is one: the version, the reply flag, the request that was
 *	     asked, a size within what was expected; else it is -EPROTO, and descriptors that came
 *	     along are closed. */
#ifndef DRV_VUB_VFE_MSG_H
#define DRV_VUB_VFE_MSG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/vhost_user.h"

struct err;

/* 0 with the socket in *@ret, or -errno. @timeout_ms is of each call on it. */
int vfe_msg_connect(const char *path, unsigned timeout_ms, int *ret, struct err *err);

/* Sends m->head and m->head.size bytes behind it, with @nfds descriptors, which stay the caller's.
 * 0 or -errno; -EPIPE where nobody is there. */
int vfe_msg_send(int sock, const struct vhost_user_msg *m, const int *fds, unsigned nfds);
/* Takes one message. *@ret_fd: a descriptor that came along, or -1; the caller's. NULL: none may
 * come. 0, -ECONNRESET at the end, -ETIMEDOUT, -EPROTO. */
int vfe_msg_recv(int sock, struct vhost_user_msg *ret, int *ret_fd);

/* Sends @m, whose payload is @size bytes, and takes the reply to it over it; the reply's payload
 * is at least @min bytes. */
int vfe_msg_ask(int sock, struct vhost_user_msg *m, uint32_t min, int *ret_fd);
/* Sends @m with @fds. With @wants_ack, which REPLY_ACK must allow, waits for the answer: -EIO where
 * the back end says that it failed. */
int vfe_msg_tell(int sock, struct vhost_user_msg *m, const int *fds, unsigned nfds,
		 bool wants_ack);

/* A message with @size bytes of payload, zeroed. */
struct vhost_user_msg vfe_msg(enum vhost_user_request request, uint32_t size);

#endif
