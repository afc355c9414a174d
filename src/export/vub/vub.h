/* SPDX-License-Identifier: MIT */
/* export/vub/vub.h - serves a port to a virtual machine as a vhost-user-blk device.
 *
 * A device has one listening socket and two seats for front ends (QEMU, for instance), so that a
 * machine can move from one to the other; only one of the two has queues that run. Who comes
 * meanwhile waits in the socket's queue until one of them has gone. The queues are spread over
 * the loops that it is given, in turn; a queue belongs to one of them. The front ends' messages
 * are handled by fibers of loops[first].
 *
 * Life: vub_new(), vub_start_wait(), vub_stop_wait(), vub_free(). Each is called once. */
#ifndef EXPORT_VUB_VUB_H
#define EXPORT_VUB_VUB_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct loop;
struct port;
struct vub;

enum {
	VUB_QUEUES_MAX = 64,
	VUB_SERIAL_MAX = 20,            /* what a guest can be told of it */
};

struct vub_opts {
	struct loop **loops;            /* borrowed during vub_new() */
	unsigned nloops;
	unsigned first;                 /* queue i belongs to loops[(first + i) % nloops] */
	unsigned queues;                /* how many a front end may use; 0: as many as loops */
	struct port *port;              /* borrowed; open on every loop */
	bool read_only;                 /* a read-only port is served read-only in any case */
	const char *name;               /* for messages; copied */
	const char *serial;             /* what GET_ID tells the guest, cut; NULL: the name */
	int listen_fd;                  /* borrowed until the stop; -1: none, and one seat */
	uint64_t poll_ns;               /* how long a loop looks for requests before it sleeps */
};

/* 0, -EINVAL or -ENOMEM. */
int vub_new(const struct vub_opts *opts, struct vub **ret, struct err *err);
/* Stopped, or never started. NULL is fine. */
void vub_free(struct vub *v);

/* The loop that the next two run on. */
struct loop *vub_loop(const struct vub *v);
/* In a fiber of vub_loop(): begins to accept front ends. */
int vub_start_wait(struct vub *v, struct err *err);
/* In a fiber of vub_loop(): accepts no more, lets requests in flight finish, and closes. */
void vub_stop_wait(struct vub *v);

/* For fuzzing. In a fiber of vub_loop(), started: serves the connected stream socket @fd, which is
 * taken, as the next front end. -EBUSY while there is one. */
int vub_serve(struct vub *v, int fd);

/* Any thread: the port's size has changed; the front end is told. */
void vub_resized(struct vub *v);

struct vub_stats {
	uint64_t sessions;              /* front ends now: 0, 1 or 2 */
	uint64_t sessions_total;
	uint64_t requests;              /* taken from the rings */
	uint64_t request_errors;        /* answered with an error */
	uint64_t kicks;                 /* notifications from the guest */
	uint64_t calls;                 /* notifications to it */
	uint64_t broken;                /* queues that were stopped for what was on their ring */
	uint64_t logged;                /* pages marked in the dirty logs of migrations */
};

/* Any thread. */
void vub_get_stats(const struct vub *v, struct vub_stats *ret);

#endif
