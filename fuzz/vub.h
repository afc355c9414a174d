/* SPDX-License-Identifier: MIT */
/* fuzz/vub.h - for the targets about vhost-user: a device on the same thread's loop, over a disk
 * that checks what reaches it, and the socket of its front end. */
#ifndef FUZZ_VUB_H
#define FUZZ_VUB_H

#include "base/vhost_user.h"

enum { VUB_MEMORY = 64 << 10, VUB_DISK = 256 << 10 };

/* Begins a session; the front end's socket. */
int vub_fuzz_begin(void);
/* Lets the device run, and reads away what it says. False: it has closed the connection. */
bool vub_fuzz_pump(int sock);
/* Ends it: nothing of it may be left. */
void vub_fuzz_end(int sock);

void vub_fuzz_send(int sock, const void *bytes, size_t n, const int *fds, unsigned nfds);
/* Sends a request of @size bytes of payload. */
void vub_fuzz_say(int sock, uint32_t request, const void *payload, uint32_t size, int fd);

#endif
