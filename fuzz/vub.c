/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "fuzz/vub.h"

#include "base/bits.h"
#include "base/log.h"
#include "blk/port.h"
#include "export/vub/vub.h"
#include "loop/work.h"

enum { PATIENCE = 20000 };              /* turns */

static uint8_t content[VUB_DISK];
static struct loop *loop;
static struct vub *device;
static struct node *disk;
static struct port *port;

static void submit(struct chan *ch, struct req *req)
{
	FUZZ_CHECK(req->kind == REQ_FLUSH || range_within(req->off, req->len, VUB_DISK),
		   "off %llu, len %llu", (unsigned long long)req->off,
		   (unsigned long long)req->len);
	switch (req->kind) {
	case REQ_READ: req_copy_to(req, 0, content + req->off, req->len); break;
	case REQ_WRITE: req_copy_from(req, 0, content + req->off, req->len); break;
	case REQ_ZERO: memset(content + req->off, 0, req->len); break;
	default: break;
	}
	req_finish(ch, req, req->off == 66 * KiB ? -EIO : 0);
}

static void disk_free(struct node *n)
{
	free(n);
}

static const struct node_ops ops = {
	.name = "mem", .chan_size = sizeof(struct chan), .submit = submit, .free = disk_free,
};

static void be_silent(enum log_level level, const char *line)
{
}

static int start(void *arg)
{
	struct vub_opts vo = { .loops = &loop, .nloops = 1, .queues = 2, .name = "fuzzed",
			       .listen_fd = -1 };

	disk = calloc(1, sizeof(*disk));
	FUZZ_CHECK(disk && !node_init(disk, &ops, "disk", loop), "no memory");
	atomic_store(&disk->size, VUB_DISK);
	disk->align = 1;
	disk->can_discard = true;
	FUZZ_CHECK(!node_open_home_wait(disk, NULL), "disk");
	FUZZ_CHECK(!port_new(disk, false, &port, NULL), "port");
	FUZZ_CHECK(!port_open_wait(port, NULL), "port");
	vo.port = port;
	FUZZ_CHECK(!vub_new(&vo, &device, NULL), "device");
	return vub_start_wait(device, NULL);
}

static int stop(void *arg)
{
	vub_stop_wait(device);
	port_close_wait(port);
	port_free(port);
	node_put_wait(disk);
	return 0;
}

static void end_device(void)
{
	struct workers *workers = loop_workers(loop);

	loop_call(loop, stop, NULL);
	vub_free(device);
	loop_free(loop);
	workers_free(workers);
}

static void start_device(void)
{
	struct loop_opts lo = { .backend = LOOP_POSIX };

	log_set_sink(be_silent);
	FUZZ_CHECK(!workers_new(1, &lo.workers, NULL), "workers");
	FUZZ_CHECK(!loop_new(&lo, &loop, NULL), "loop");
	FUZZ_CHECK(!loop_call(loop, start, NULL), "start");
	atexit(end_device);
}

int vub_fuzz_begin(void)
{
	int fds[2];

	if (!device)
		start_device();
	FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "socketpair");
	FUZZ_CHECK(!vub_serve(device, fds[1]), "serve");
	return fds[0];
}

bool vub_fuzz_pump(int sock)
{
	char rest[4096];
	ssize_t n;

	for (unsigned i = 0; i < 4; i++)
		while (loop_turn(loop, false))
			;
	do {
		char control[CMSG_SPACE(8 * sizeof(int))];
		struct iovec iov = { rest, sizeof(rest) };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
				      .msg_controllen = sizeof(control) };

		n = recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		for (struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL; c;
		     c = CMSG_NXTHDR(&msg, c)) {
			int fd;

			memcpy(&fd, CMSG_DATA(c), sizeof(fd));  /* it sends one at a time */
			close(fd);
		}
	} while (n > 0);
	return n < 0 && errno == EAGAIN;
}

void vub_fuzz_end(int sock)
{
	struct vub_stats st;
	struct port_stats ps;

	close(sock);
	for (unsigned i = 0; vub_get_stats(device, &st), st.sessions || !i; i++) {
		FUZZ_CHECK(i < PATIENCE, "the session does not end");
		/* A thread may have its connection to close (V27). */
		if (!loop_turn(loop, false))
			usleep(500);
	}
	port_get_stats(port, &ps);
	FUZZ_CHECK(!ps.in_flight, "%llu requests are left", (unsigned long long)ps.in_flight);
}

void vub_fuzz_send(int sock, const void *bytes, size_t n, const int *fds, unsigned nfds)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(VHOST_USER_FDS_MAX * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)bytes, n };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		struct cmsghdr *c = (void *)control;

		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	}
	while (sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EAGAIN)
		vub_fuzz_pump(sock);
}

void vub_fuzz_say(int sock, uint32_t request, const void *payload, uint32_t size, int fd)
{
	struct vhost_user_msg m = { .head = { request, VHOST_USER_VERSION, size } };

	memcpy((uint8_t *)&m + VHOST_USER_HEADER_SIZE, payload, size);
	vub_fuzz_send(sock, &m, VHOST_USER_HEADER_SIZE + size, &fd, fd >= 0);
}
