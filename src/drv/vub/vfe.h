/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe.h - a disk that is reached over vhost-user-blk: byre as the guest.
 *
 * Each loop that opens the node takes one of the back end's queues. Memory for the rings and for
 * data is one memfd. Requests whose data lies in what chan_memory_get() gave go as they are;
 * others are copied through buffers of the queue.
 *
 * Where the back end goes away, requests wait until it is back, as long as the `reconnect` option
 * allows; they are not failed meanwhile. With INFLIGHT_SHMFD the rings stay as they are and the
 * back end looks after what it had begun; without, everything unanswered is put into empty rings,
 * which the old one does not know, again.
 *
 * Writes are of whole sectors (512 bytes); reads are of anything. */
#ifndef DRV_VUB_VFE_H
#define DRV_VUB_VFE_H

#include <stdbool.h>

#include "drv/vub/vfe_link.h"

struct err;
struct loop;
struct node;

struct vfe_opts {
	char *path;                     /* owned */
	struct vfe_want want;
	unsigned reconnect_ms;          /* 0: a lost connection is an error */
	bool poll;                      /* looks for answers all the time, and is never called */
};

/* What stands behind "vhost-user:" in a name: SOCK[,OPTION=VALUE]..., a comma in SOCK doubled.
 * packed, event-idx, indirect, inflight, poll: on or off; queues, queue-size: numbers; reconnect:
 * seconds. 0 or -errno; *ret only on success, then vfe_opts_fini(). */
int vfe_opts_parse(const char *text, struct vfe_opts *ret, struct err *err);
void vfe_opts_fini(struct vfe_opts *o);

/* In a fiber of @home. Copies @opts. */
int vfe_open_wait(const struct vfe_opts *opts, bool read_only, struct loop *home, struct node **ret,
		  struct err *err);

#endif
