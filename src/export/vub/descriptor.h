/* SPDX-License-Identifier: MIT */
/* export/vub/descriptor.h - descriptors that a front end has sent, and that may be anything.
 *
 * Behind some of them stands somebody who can let us wait as long as he likes, which may be the
 * front end: a file system in user space (FUSE) whose file is looked at, mapped and touched, or no
 * more than closed; a pipe whose lock another of its users has; a TCP socket that lingers; a Unix
 * socket out of which nobody has received one of these. So what they are is found out without
 * asking whoever stands behind them, and all but the known kinds are closed by a thread of their
 * own, the front end's connection among them: messages may wait in it. From there nothing is
 * received but what there is room for, as the kernel would close the rest on the spot (session.c).
 *
 * Invariants:
 *	V27  whatever a front end sends a descriptor of, no loop waits for it. */
#ifndef EXPORT_VUB_DESCRIPTOR_H
#define EXPORT_VUB_DESCRIPTOR_H

#include <stdbool.h>
#include <stddef.h>

bool vub_fd_is_eventfd(int fd);
/* What tells the eventfd @fd from others; -1 where the kernel (before Linux 5.2) does not say. */
int vub_fd_event_id(int fd);
/* What mappings of @fd, which was vetted, have to be aligned to; 0: it is not to be mapped. */
size_t vub_fd_page_size(int fd);

/* The next two run in a fiber, which others may wake. They take up to VUB_FDS_MAX descriptors, and
 * pass over those that are -1. -ETIMEDOUT: one hangs, and so the front end has lost its right to be
 * served (others wait for its seat); -ECANCELED, at once: *@is_stopping. */
enum { VUB_FDS_MAX = 32 };

/* May they be looked at, mapped and touched? Eventfds, Unix sockets, shared memory (memfds, tmpfs,
 * hugetlbfs) and devices may; so may files of file systems that we see mounted, but for those in
 * user space. What is mounted elsewhere, as in a namespace of the front end's, a thread looks at:
 * what user space runs, or may run from below (overlayfs), may not. 0; -EINVAL: they may not; or
 * -EMFILE. */
int vub_fds_vet_wait(const int *fds, unsigned n, const bool *is_stopping);
/* Closes them. 0 or an error of the above. */
int vub_fds_close_wait(const int *fds, unsigned n, const bool *is_stopping);
/* The same of the device's own end of a connection, which mostly needs no thread. */
int vub_connection_close_wait(int fd, const bool *is_stopping);

#endif
