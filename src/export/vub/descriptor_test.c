/* SPDX-License-Identifier: MIT */
/* V27: front ends that send descriptors of what lets others wait, in every way that there is. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/test_linger.h"
#include "drv/vub/vfe_msg.h"
#include "export/vub/test_fs.h"
#include "export/vub/test_host.h"

/* Has the device look at @fd, and close it. */
static void send_descriptor(int sock, unsigned i, int fd)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_MEM_TABLE,
					  offsetof(struct vhost_user_mem_table, regions[1]));

	m.table.nregions = 1;
	m.table.regions[0] = (struct vhost_user_region){ .size = GUEST_MEMORY };
	if (i == 1)
		m = vfe_msg(VHOST_USER_SET_VRING_CALL, sizeof(m.u64));
	else if (i == 2)                        /* which has none */
		m = vfe_msg(VHOST_USER_GET_FEATURES, 0);
	assert_int_equal(vfe_msg_send(sock, &m, &fd, 1), 0);
}

enum { DESCRIPTOR_CASES = 3, PATIENCE_S = SLOW_FS_LIFE_S / 2 };

/* Both loops answer requests, and that of the control fibers messages, too. */
static void check_others(struct guest *g)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 4096 };
	struct err err = { 0 };

	for (a.queue = 0; a.queue < HOST_LOOPS; a.queue++) {
		assert_int_equal(guest_do(g, &a), VIRTIO_BLK_S_OK);
		assert_int_equal(vfe_link_stop_queue(&g->link, a.queue, &(uint32_t){ 0 }), 0);
		assert_int_equal(vfe_link_set_queue(&g->link, a.queue, &g->queues[a.queue], &err),
				 0);
	}
}

static void v27_a_file_that_hangs_holds_nobody_up(void **state)
{
	struct slow_fs *fs = slow_fs_start();
	struct host h;
	struct guest g;

	if (!fs)
		skip();
	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	for (unsigned i = 0; i < DESCRIPTOR_CASES; i++) {
		int fd = slow_fs_open(fs), sock;

		assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
		atomic_store(&fs->is_hanging, true);
		alarm(PATIENCE_S);
		send_descriptor(sock, i, fd);
		while (!atomic_load(&fs->waiters))
			usleep(1000);
		check_others(&g);
		alarm(0);
		if (i == 0)                     /* its seat is somebody else's, before long */
			assert_true(peer_is_closed(sock));
		if (i == DESCRIPTOR_CASES - 1) {        /* nor is an end of the device held up */
			alarm(PATIENCE_S);
			guest_stop(&g);
			host_stop(&h);
			alarm(0);
		}
		atomic_store(&fs->is_hanging, false);
		close(fd);
		close(sock);
	}
	slow_fs_stop(fs);
}

/* ---- memory in files that are mounted elsewhere ---- */

struct elsewhere {
	char dir[40];
	int plain, layered;             /* -1: there is none */
};

/* In a mount namespace of this thread's. */
static void *open_elsewhere(void *arg)
{
	struct elsewhere *e = arg;
	char path[64], options[192];

	e->plain = e->layered = -1;
	if (unshare(CLONE_FS | CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return NULL;
	for (unsigned i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "%s/%u", e->dir, i);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	snprintf(options, sizeof(options), "lowerdir=%s/0,upperdir=%s/1,workdir=%s/2", e->dir,
		 e->dir, e->dir);
	if (!mount("over", path, "overlay", 0, options)) {
		strcat(path, "/file");
		e->layered = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	}
	snprintf(path, sizeof(path), "%s/file", e->dir);
	e->plain = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	return NULL;
}

/* What the device says of memory in @fd, which is closed. */
static int offer_memory(int sock, int fd)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_MEM_TABLE,
					  offsetof(struct vhost_user_mem_table, regions[1]));
	int rc;

	m.table.nregions = 1;
	m.table.regions[0] = (struct vhost_user_region){ .size = GUEST_MEMORY };
	assert_int_equal(ftruncate(fd, GUEST_MEMORY), 0);
	rc = vfe_msg_tell(sock, &m, &fd, 1, true);
	close(fd);
	return rc;
}

/* What a front end's own namespace has is not to be seen in ours; libvirt's QEMU has its memory
 * there, where that is in files. */
static void v27_memory_of_another_namespace(void **state)
{
	struct elsewhere e = { .dir = "/tmp/byre-elsewhere.XXXXXX" };
	char command[64];
	pthread_t thread;
	struct host h;
	int sock;

	assert_non_null(mkdtemp(e.dir));
	assert_int_equal(pthread_create(&thread, NULL, open_elsewhere, &e), 0);
	pthread_join(thread, NULL);
	snprintf(command, sizeof(command), "rm -r %s", e.dir);
	assert_int_equal(system(command), 0);
	if (e.plain < 0)
		skip();
	host_start(&h, NULL);
	assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
	peer_choose_answers(sock);
	assert_int_equal(offer_memory(sock, e.plain), 0);
	if (e.layered >= 0)
		assert_int_equal(offer_memory(sock, e.layered), -EIO);
	close(sock);
	host_stop(&h);
}

/* Memory whose first access waits for let_page_go(). -1: this process may not have any. */
static int make_slow_page(void **ret)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register r = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (fd < 0)
		return -1;
	*ret = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(*ret, MAP_FAILED);
	r.range = (struct uffdio_range){ (uintptr_t)*ret, page };
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &r), 0);
	return fd;
}

static void let_page_go(int fd, void *at)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct uffdio_zeropage z = { .range = { (uintptr_t)at, page } };

	ioctl(fd, UFFDIO_ZEROPAGE, &z);
	close(fd);
}

struct receiver {
	int fd;
	void *to;
};

static void *receive_thread(void *arg)
{
	struct receiver *r = arg;

	return recv(r->fd, r->to, 8, 0) == 8 ? r : NULL;
}

/* Who receives from the way back has its lock, for as long as his memory lets him wait. */
static void v27_a_way_back_that_is_busy_holds_nobody_up(void **state)
{
	struct receiver r;
	int sock, pair[2], faults = make_slow_page(&r.to);
	struct vhost_user_msg m;
	struct host h;
	struct guest g;
	pthread_t thread;

	if (faults < 0)
		skip();
	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(send(pair[0], "8 bytes", 8, 0), 8);
	r.fd = pair[1];
	assert_int_equal(pthread_create(&thread, NULL, receive_thread, &r), 0);
	usleep(100000);                         /* it waits by now */
	assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
	alarm(PATIENCE_S);
	peer_choose_answers(sock);
	m = vfe_msg(VHOST_USER_SET_BACKEND_REQ_FD, 0);
	assert_int_equal(vfe_msg_tell(sock, &m, &pair[1], 1, true), -EIO);
	check_others(&g);
	alarm(0);
	let_page_go(faults, r.to);
	pthread_join(thread, NULL);
	close(pair[0]);
	close(pair[1]);
	close(sock);
	guest_stop(&g);
	host_stop(&h);
}

/* A pipe out of which nobody can read, for somebody has its lock: not even to be asked. */
static void v27_pipes_are_no_kicks(void **state)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_KICK, 8);
	struct host h;
	struct guest g;
	int fds[2];

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	assert_int_equal(pipe2(fds, O_NONBLOCK | O_CLOEXEC), 0);
	assert_int_equal(vfe_msg_tell(g.link.sock, &m, &fds[0], 1, true), -EIO);
	check_others(&g);
	close(fds[0]);
	close(fds[1]);
	guest_stop(&g);
	host_stop(&h);
}

/* ---- descriptors that the device itself never sees ---- */

/* Sends @len bytes of @m with @n descriptors, the last of which is @fd; or nothing where the device
 * has hung up. */
static void send_with(int sock, const struct vhost_user_msg *m, size_t len, int fd, unsigned n,
		      int flags)
{
	enum { MOST = 16 };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(MOST * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)m, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			     .msg_controllen = CMSG_SPACE(n * sizeof(int)) };

	assert_true(n <= MOST);
	control.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(n * sizeof(int)),
					  .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	for (unsigned i = 0; i < n; i++)
		memcpy(CMSG_DATA(&control.align) + i * sizeof(int), i == n - 1 ? &fd : &sock,
		       sizeof(int));
	if (sendmsg(sock, &mh, MSG_NOSIGNAL | flags) != (ssize_t)len)
		assert_true(errno == EPIPE || errno == ECONNRESET);
}

/* Behind a message that ends the session, which nobody receives any more; and many before it, so
 * that it is there in time, but where this thread has to wait for a processor meanwhile. */
static void put_behind_the_end(int sock, int fd)
{
	enum { MESSAGES = 4000 };
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_OWNER, 0);
	struct vhost_user_header *heads = calloc(MESSAGES, sizeof(*heads));

	for (unsigned i = 0; i < MESSAGES; i++)
		heads[i] = m.head;
	heads[MESSAGES - 1].flags = 0;          /* of no version */
	assert_int_equal(send(sock, heads, MESSAGES * sizeof(*heads), MSG_NOSIGNAL),
			 MESSAGES * sizeof(*heads));
	send_with(sock, &m, 1, fd, 1, 0);
	free(heads);
}

/* In another Unix socket, which is sent. */
static void put_into_a_socket(int sock, int fd)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_CALL, sizeof(m.u64));
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	send_with(pair[0], &m, 1, fd, 1, 0);
	assert_int_equal(vfe_msg_send(sock, &m, &pair[1], 1), 0);
	close(pair[0]);
	close(pair[1]);
}

/* Behind as many as a message may have. */
static void put_behind_others(int sock, int fd)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);

	send_with(sock, &m, VHOST_USER_HEADER_SIZE, fd, VHOST_USER_FDS_MAX + 1, 0);
}

/* With a byte out of band, which is passed over by who does not ask for it. */
static void put_out_of_band(int sock, int fd)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_GET_FEATURES, 0);

	assert_int_equal(send(sock, &m, VHOST_USER_HEADER_SIZE, MSG_NOSIGNAL),
			 VHOST_USER_HEADER_SIZE);
	send_with(sock, &m, 1, fd, 1, MSG_OOB);
	assert_int_equal(send(sock, (const char *)&m + 1, VHOST_USER_HEADER_SIZE - 1,
			      MSG_NOSIGNAL), VHOST_USER_HEADER_SIZE - 1);
}

/* It waits where the device came first: what it was sent is closed already, or was refused. */
static void *close_thread(void *fd)
{
	close(*(int *)fd);
	return NULL;
}

static void v27_what_is_never_received_holds_nobody_up(void **state)
{
	static void (*const put[])(int sock, int fd) = {
		put_behind_the_end, put_into_a_socket, put_behind_others, put_out_of_band,
	};
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(put); i++) {
		int sock, peer, fd = test_linger(&peer, 2 * PATIENCE_S);
		pthread_t thread;

		assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
		alarm(PATIENCE_S);
		put[i](sock, fd);
		assert_int_equal(pthread_create(&thread, NULL, close_thread, &fd), 0);
		usleep(100000);                 /* the device has it by now */
		check_others(&g);
		close(peer);
		pthread_join(thread, NULL);
		alarm(0);
		close(sock);
	}
	guest_stop(&g);
	host_stop(&h);
}

/* ---- descriptors that only look harmless ---- */

/* A character device is no file system's, but one that nobody has opened is: whoever asks how large
 * its pages are asks the file system. */
static void v27_a_device_that_is_not_open_holds_nobody_up(void **state)
{
	struct slow_fs *fs = slow_fs_start();
	struct host h;
	struct guest g;
	int fd, sock;

	if (!fs)
		skip();
	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	fd = slow_fs_open_device(fs);
	assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
	peer_choose_answers(sock);
	atomic_store(&fs->is_hanging, true);
	alarm(PATIENCE_S);
	send_descriptor(sock, 0, fd);
	usleep(100000);
	check_others(&g);
	alarm(0);
	atomic_store(&fs->is_hanging, false);
	close(fd);
	close(sock);
	guest_stop(&g);
	host_stop(&h);
	slow_fs_stop(fs);
}

static void *poll_thread(void *arg)
{
	struct receiver *r = arg;

	return epoll_wait(r->fd, r->to, 1, -1) == 1 ? r : NULL;
}

/* Who takes events out of an epoll has its lock, for as long as his memory lets him wait; and so
 * does whoever asks the kernel what it holds. */
static void v27_an_epoll_that_is_busy_holds_nobody_up(void **state)
{
	struct epoll_event always = { .events = EPOLLOUT };
	struct receiver r;
	int sock, faults = make_slow_page(&r.to), ready = eventfd(0, EFD_CLOEXEC);
	struct host h;
	struct guest g;
	pthread_t thread;

	if (faults < 0)
		skip();
	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	r.fd = epoll_create1(EPOLL_CLOEXEC);
	assert_int_equal(epoll_ctl(r.fd, EPOLL_CTL_ADD, ready, &always), 0);
	assert_int_equal(pthread_create(&thread, NULL, poll_thread, &r), 0);
	usleep(100000);                         /* it waits by now */
	assert_int_equal(vfe_msg_connect(h.path, HOST_PATIENCE_MS, &sock, NULL), 0);
	alarm(PATIENCE_S);
	send_descriptor(sock, 0, r.fd);
	usleep(100000);
	check_others(&g);
	alarm(0);
	let_page_go(faults, r.to);
	pthread_join(thread, NULL);
	close(ready);
	close(r.fd);
	close(sock);
	guest_stop(&g);
	host_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v27_a_file_that_hangs_holds_nobody_up),
		cmocka_unit_test(v27_memory_of_another_namespace),
		cmocka_unit_test(v27_a_way_back_that_is_busy_holds_nobody_up),
		cmocka_unit_test(v27_pipes_are_no_kicks),
		cmocka_unit_test(v27_what_is_never_received_holds_nobody_up),
		cmocka_unit_test(v27_a_device_that_is_not_open_holds_nobody_up),
		cmocka_unit_test(v27_an_epoll_that_is_busy_holds_nobody_up),
	};

	return cmocka_run_group_tests_name("vub_descriptor", tests, NULL, NULL);
}
