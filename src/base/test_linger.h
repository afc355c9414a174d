/* SPDX-License-Identifier: MIT */
/* base/test_linger.h - for tests: a descriptor whose last owner waits when he closes it. */
#ifndef BASE_TEST_LINGER_H
#define BASE_TEST_LINGER_H

#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* One end of a connection to *@ret_peer, with more on its way than that takes: who closes it last
 * waits until the peer does, @seconds at most. */
static inline int test_linger(int *ret_peer, int seconds)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct linger linger = { .l_onoff = 1, .l_linger = seconds };
	static const uint8_t bytes[64 << 10];
	socklen_t len = sizeof(sa);

	if (bind(listener, (void *)&sa, sizeof(sa)) || listen(listener, 1) ||
	    getsockname(listener, (void *)&sa, &len) || connect(sock, (void *)&sa, sizeof(sa)) ||
	    setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)))
		abort();
	*ret_peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (*ret_peer < 0)
		abort();
	close(listener);
	while (send(sock, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	return sock;
}

#endif
