/* SPDX-License-Identifier: MIT */
/* loop/loop_net_test.c - sockets, polls and cancelling; over every backend that has descriptors. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "loop/loop_ground.h"

/* A connected pair; its second end may be non-blocking. */
struct pair {
	int a, b;
};

static struct pair pair_open(int type)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(fcntl(fds[1], F_SETFL, type & SOCK_NONBLOCK ? O_NONBLOCK : 0), 0);
	return (struct pair){ fds[0], fds[1] };
}

static void pair_close(struct pair p)
{
	close(p.a);
	close(p.b);
}

/* A listening socket and where it is. */
struct place {
	int fd;
	struct sockaddr_un addr;
	socklen_t len;
};

static struct place listen_somewhere(int type)
{
	struct place p = { .addr.sun_family = AF_UNIX, .len = sizeof(p.addr) };

	p.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | type, 0);
	/* Without a name: the kernel finds an abstract one. */
	assert_int_equal(bind(p.fd, (struct sockaddr *)&p.addr, sizeof(sa_family_t)), 0);
	assert_int_equal(listen(p.fd, 5), 0);
	assert_int_equal(getsockname(p.fd, (struct sockaddr *)&p.addr, &p.len), 0);
	return p;
}

static int connect_to(const struct place *p)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (const struct sockaddr *)&p->addr, p->len), 0);
	return fd;
}

/* Has @op not ended, although the loop had every chance? */
static bool still_waits(struct loop *l, const struct op *op)
{
	for (int i = 0; i < 5 && !op->calls; i++) {
		loop_turn(l, false);
		usleep(500);
	}
	return !op->calls;
}

static void accept_receive_send(struct ground *g, int type)
{
	struct place p = listen_somewhere(type);
	struct op acc, rcv, snd;
	char buf[8];
	int peer, fd;

	op_submit(g->l, op_simple(&acc, IO_ACCEPT, p.fd, 0));
	assert_true(still_waits(g->l, &acc));
	peer = connect_to(&p);
	fd = op_wait(g->l, &acc);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(fcntl(fd, F_SETFL, type & SOCK_NONBLOCK ? O_NONBLOCK : 0), 0);

	op_submit(g->l, op_recv(&rcv, fd, buf, sizeof(buf)));
	assert_true(still_waits(g->l, &rcv));
	assert_int_equal(write(peer, "hello", 5), 5);
	assert_int_equal(op_wait(g->l, &rcv), 5);
	assert_memory_equal(buf, "hello", 5);

	assert_int_equal(op_run(g->l, op_send(&snd, fd, "world", 5)), 5);
	assert_int_equal(read(peer, buf, 8), 5);
	assert_memory_equal(buf, "world", 5);

	/* Data that is there, then the end. */
	assert_int_equal(write(peer, "x", 1), 1);
	close(peer);
	assert_int_equal(op_run(g->l, op_recv(&rcv, fd, buf, sizeof(buf))), 1);
	assert_int_equal(op_run(g->l, op_recv(&rcv, fd, buf, sizeof(buf))), 0);
	assert_int_equal(op_run(g->l, op_send(&snd, fd, "world", 5)), -EPIPE);
	close(fd);
	close(p.fd);
}

static void blocking_sockets(void **state)
{
	accept_receive_send(ground_of(state), 0);
}

static void non_blocking_sockets(void **state)
{
	accept_receive_send(ground_of(state), SOCK_NONBLOCK);
}

/* One recv, one sendmsg that waits for room, and a poll, on the same descriptor. */
static void three_wait_on_one_descriptor(struct ground *g, int type)
{
	struct pair p = pair_open(type);
	struct op rcv, snd, pol;
	char *big = test_calloc(1, 1 << 20), c;
	ssize_t n, got = 0;
	int sent = 0;

	do
		sent += (int)MAX(n = send(p.b, big, 4096, MSG_DONTWAIT), 0);
	while (n > 0);
	op_submit(g->l, op_simple(&pol, IO_POLL, p.b, POLLIN));
	op_submit(g->l, op_recv(&rcv, p.b, &c, 1));
	op_submit(g->l, op_send(&snd, p.b, big, 4096));
	assert_true(still_waits(g->l, &snd));
	assert_int_equal(rcv.calls + pol.calls, 0);
	while (!snd.calls) {
		n = recv(p.a, big, 1 << 20, MSG_DONTWAIT);
		got += MAX(n, 0);
		loop_turn(g->l, false);
	}
	assert_in_range(snd.res, 1, 4096);
	assert_int_equal(rcv.calls + pol.calls, 0);
	assert_int_equal(write(p.a, "cd", 2), 2);
	assert_int_equal(op_wait(g->l, &rcv), 1);
	assert_int_equal(op_wait(g->l, &pol), POLLIN);
	while (got < sent + snd.res)
		got += recv(p.a, big, 1 << 20, 0);
	assert_int_equal(got, sent + snd.res);
	test_free(big);
	pair_close(p);
}

static void x2_three_on_a_blocking_descriptor(void **state)
{
	three_wait_on_one_descriptor(ground_of(state), 0);
}

static void x2_three_on_a_non_blocking_descriptor(void **state)
{
	three_wait_on_one_descriptor(ground_of(state), SOCK_NONBLOCK);
}

static void large_messages_arrive_in_pieces(void **state)
{
	struct ground *g = ground_of(state);
	struct pair p = pair_open(SOCK_NONBLOCK);
	enum { N = 3 << 20 };
	uint8_t *in = test_calloc(1, N), *out = test_calloc(1, N);
	struct op snd, rcv;
	size_t sent = 0, got = 0;

	for (size_t i = 0; i < N; i++)
		in[i] = (uint8_t)(i * 31 >> 3);
	op_submit(g->l, op_send(&snd, p.a, in, N));
	op_submit(g->l, op_recv(&rcv, p.b, out, N));
	while (got < N) {
		loop_turn(g->l, true);
		if (snd.calls && sent < N) {
			assert_true(snd.res > 0);
			sent += (size_t)snd.res;
			if (sent < N)
				op_submit(g->l, op_send(&snd, p.a, in + sent, N - sent));
		}
		if (rcv.calls) {
			assert_true(rcv.res > 0);
			got += (size_t)rcv.res;
			if (got < N)
				op_submit(g->l, op_recv(&rcv, p.b, out + got, N - got));
		}
	}
	assert_int_equal(op_wait(g->l, &snd) > 0, true);
	assert_memory_equal(in, out, N);
	test_free(in);
	test_free(out);
	pair_close(p);
}

static void poll_says_what_happened(void **state)
{
	struct ground *g = ground_of(state);
	struct pair p = pair_open(0);
	struct op pol;

	assert_int_equal(op_run(g->l, op_simple(&pol, IO_POLL, p.a, POLLIN | POLLOUT)), POLLOUT);
	op_submit(g->l, op_simple(&pol, IO_POLL, p.a, POLLIN));
	assert_true(still_waits(g->l, &pol));
	close(p.b);
	assert_int_equal(op_wait(g->l, &pol) & (POLLIN | POLLHUP), POLLIN | POLLHUP);
	close(p.a);
}

/* Turns until @op has been called back @calls times. */
static void await_calls(struct loop *l, const struct op *op, unsigned calls)
{
	for (int i = 0; i < 2000 && op->calls < calls; i++) {
		loop_turn(l, false);
		usleep(500);
	}
	assert_int_equal(op->calls, calls);
}

static void notify(int fd)
{
	uint64_t one = 1;

	assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

/* Each write is told of once, whatever the counter is, until the end. */
static void events_are_told_one_by_one(void **state)
{
	struct ground *g = ground_of(state);
	int fd = eventfd(3, EFD_CLOEXEC | EFD_NONBLOCK);
	unsigned calls;
	struct op op;

	op_submit(g->l, op_simple(&op, IO_EVENT, fd, 0));
	await_calls(g->l, &op, 1);              /* what was written before */
	assert_int_equal(op.res, 1);
	for (unsigned i = 2; i < 20; i++) {
		turns(g->l, 5);
		assert_int_equal(op.calls, i - 1);
		notify(fd);
		await_calls(g->l, &op, i);
		assert_int_equal(op.res, 1);
	}
	notify(fd);
	notify(fd);                             /* may be told of as one */
	for (unsigned i = 0; i < 20 && op.calls < 21; i++)
		turns(g->l, 1);
	calls = op.calls;
	assert_in_range(calls, 20, 21);
	loop_cancel(g->l, &op.io);
	await_calls(g->l, &op, calls + 1);
	assert_int_equal(op.res, -ECANCELED);
	notify(fd);
	turns(g->l, 5);
	assert_int_equal(op.calls, calls + 1);

	/* Again, and cancelled while something has happened that nobody has been told of. */
	op_submit(g->l, op_simple(&op, IO_EVENT, fd, 0));
	await_calls(g->l, &op, 1);
	notify(fd);
	loop_cancel(g->l, &op.io);
	while (op.res == 1)
		turns(g->l, 1);
	assert_int_equal(op.res, -ECANCELED);
	close(fd);
}

/* Two that cancel each other from what they are told. */
static void l2_cancel_from_an_event(void **state)
{
	struct ground *g = ground_of(state);
	int a = eventfd(0, EFD_CLOEXEC), b = eventfd(0, EFD_CLOEXEC);

	for (int i = 0; i < 50; i++) {
		struct op ops[2];

		op_simple(&ops[0], IO_EVENT, a, 0);
		op_simple(&ops[1], IO_EVENT, b, 0);
		ops[0].cancels = &ops[i % 2];
		op_submit(g->l, &ops[0]);
		op_submit(g->l, &ops[1]);
		turns(g->l, 3);
		notify(a);
		notify(b);
		for (int n = 0; n < 2000 && ops[i % 2].res != -ECANCELED; n++)
			turns(g->l, 1);
		assert_int_equal(ops[i % 2].res, -ECANCELED);
		loop_cancel(g->l, &ops[!(i % 2)].io);
		for (int n = 0; n < 2000 && ops[!(i % 2)].res != -ECANCELED; n++)
			turns(g->l, 1);
		assert_int_equal(ops[!(i % 2)].res, -ECANCELED);
	}
	close(a);
	close(b);
}

/* Far more than fit the kernel's queue, and nobody asks for them meanwhile. */
static void events_are_not_lost_in_a_crowd(void **state)
{
	enum { MANY = 300 };
	struct ground *g = ground_of(state);
	struct op *ops = test_calloc(MANY, sizeof(*ops));
	int fds[MANY];

	for (unsigned i = 0; i < MANY; i++) {
		fds[i] = eventfd(0, EFD_CLOEXEC);
		op_submit(g->l, op_simple(&ops[i], IO_EVENT, fds[i], 0));
	}
	turns(g->l, 3);
	for (unsigned round = 1; round < 40; round++) {
		for (unsigned i = 0; i < MANY; i++)
			notify(fds[i]);
		for (unsigned i = 0; i < MANY; i++)
			await_calls(g->l, &ops[i], round);
	}
	for (unsigned i = 0; i < MANY; i++)
		loop_cancel(g->l, &ops[i].io);
	for (unsigned i = 0; i < MANY; i++) {
		await_calls(g->l, &ops[i], 40);
		assert_int_equal(ops[i].res, -ECANCELED);
		close(fds[i]);
	}
	test_free(ops);
}

/* A ring notifies its eventfd in a way that ends the multishot polls of others. */
static void events_from_another_ring(void **state)
{
	struct ground *g = ground_of(state);
	int fd = eventfd(0, EFD_CLOEXEC);
	struct io_uring ring;
	struct op op;

	if (io_uring_queue_init(1, &ring, 0) < 0)
		return;                         /* it is forbidden here */
	assert_int_equal(io_uring_register_eventfd(&ring, fd), 0);
	op_submit(g->l, op_simple(&op, IO_EVENT, fd, 0));
	for (unsigned i = 0; i < 200; i++) {
		unsigned calls = op.calls;

		if (i % 4 == 3) {
			notify(fd);
		} else {
			io_uring_prep_nop(io_uring_get_sqe(&ring));
			assert_int_equal(io_uring_submit(&ring), 1);
			io_uring_cq_advance(&ring, 1);
		}
		for (int n = 0; n < 2000 && op.calls == calls; n++) {
			loop_turn(g->l, false);
			usleep(500);
		}
		assert_true(op.calls > calls && op.res == 1);
		turns(g->l, i % 3);
	}
	/* The end of the poll and the end of the io at once. */
	io_uring_prep_nop(io_uring_get_sqe(&ring));
	assert_int_equal(io_uring_submit(&ring), 1);
	loop_cancel(g->l, &op.io);
	while (op.res == 1)
		turns(g->l, 1);
	assert_int_equal(op.res, -ECANCELED);
	io_uring_queue_exit(&ring);
	close(fd);
}

/* Who else has the eventfd may write to it when it is closed here and its number is another's. */
static void event_of_a_closed_descriptor(void **state)
{
	struct ground *g = ground_of(state);
	int fd = eventfd(0, EFD_CLOEXEC), kept = dup(fd), other = eventfd(0, EFD_CLOEXEC);
	struct op op;

	op_submit(g->l, op_simple(&op, IO_EVENT, fd, 0));
	notify(kept);
	await_calls(g->l, &op, 1);
	loop_cancel(g->l, &op.io);
	await_calls(g->l, &op, 2);
	assert_int_equal(dup2(other, fd), fd);
	op_submit(g->l, op_simple(&op, IO_EVENT, fd, 0));
	turns(g->l, 2);
	notify(kept);
	turns(g->l, 5);
	assert_int_equal(op.calls, 0);
	notify(other);
	await_calls(g->l, &op, 1);
	loop_cancel(g->l, &op.io);
	await_calls(g->l, &op, 2);
	close(fd);
	close(kept);
	close(other);
}

/* A counter that can take no more is an event, and so is what the kernel still adds to it; a
 * semaphore is told of as any other. */
static void events_of_odd_counters(void **state)
{
	struct ground *g = ground_of(state);
	int full = eventfd(0, EFD_CLOEXEC), sem = eventfd(7, EFD_CLOEXEC | EFD_SEMAPHORE);
	uint64_t most = UINT64_MAX - 1;
	struct op ops[2];

	assert_int_equal(write(full, &most, sizeof(most)), sizeof(most));
	op_submit(g->l, op_simple(&ops[0], IO_EVENT, full, 0));
	op_submit(g->l, op_simple(&ops[1], IO_EVENT, sem, 0));
	await_calls(g->l, &ops[0], 1);
	await_calls(g->l, &ops[1], 1);
	turns(g->l, 5);
	assert_int_equal(ops[0].calls, 1);      /* and then nothing, however high they are */
	assert_int_equal(ops[1].calls, 1);
	notify(sem);
	await_calls(g->l, &ops[1], 2);
	for (unsigned i = 0; i < 2; i++) {
		loop_cancel(g->l, &ops[i].io);
		await_calls(g->l, &ops[i], 2 + i);
		assert_int_equal(ops[i].res, -ECANCELED);
	}
	close(full);
	close(sem);
}

static void event_of_no_descriptor(void **state)
{
	struct ground *g = ground_of(state);
	int fd = eventfd(0, EFD_CLOEXEC);
	struct op op;

	close(fd);
	assert_int_equal(op_run(g->l, op_simple(&op, IO_EVENT, fd, 0)), -EBADF);
}

static void shutdown_ends_accept_and_recv(void **state)
{
	struct ground *g = ground_of(state);
	struct place blocking = listen_somewhere(0), other = listen_somewhere(SOCK_NONBLOCK);
	struct pair p = pair_open(0);
	struct op acc[2], rcv;
	char c;

	op_submit(g->l, op_simple(&acc[0], IO_ACCEPT, blocking.fd, 0));
	op_submit(g->l, op_simple(&acc[1], IO_ACCEPT, other.fd, 0));
	op_submit(g->l, op_recv(&rcv, p.b, &c, 1));
	assert_true(still_waits(g->l, &rcv));
	assert_int_equal(acc[0].calls + acc[1].calls, 0);
	shutdown(blocking.fd, SHUT_RDWR);
	shutdown(other.fd, SHUT_RDWR);
	shutdown(p.b, SHUT_RDWR);
	assert_int_equal(op_wait(g->l, &acc[0]), -EINVAL);
	assert_int_equal(op_wait(g->l, &acc[1]), -EINVAL);
	assert_int_equal(op_wait(g->l, &rcv), 0);
	close(blocking.fd);
	close(other.fd);
	pair_close(p);
}

static void cancel_ends_what_waits(struct ground *g, int type, bool is_handed_over)
{
	struct pair p = pair_open(type);
	struct place here = listen_somewhere(type);
	struct op ops[4];
	char *big = test_calloc(1, 1 << 20), c;

	while (send(p.b, big, 4096, MSG_DONTWAIT) > 0)
		;
	op_submit(g->l, op_simple(&ops[0], IO_POLL, p.b, POLLIN));
	op_submit(g->l, op_recv(&ops[1], p.b, &c, 1));
	op_submit(g->l, op_send(&ops[2], p.b, big, 1));
	op_submit(g->l, op_simple(&ops[3], IO_ACCEPT, here.fd, 0));
	if (is_handed_over)
		assert_true(still_waits(g->l, &ops[3]));
	for (int i = 0; i < 4; i++) {
		is_submitting = true;
		loop_cancel(g->l, &ops[i].io);
		loop_cancel(g->l, &ops[i].io);
		is_submitting = false;
	}
	for (int i = 0; i < 4; i++)
		assert_int_equal(op_wait(g->l, &ops[i]), -ECANCELED);
	/* The same structs again at once: no late request to cancel may find them. */
	op_submit(g->l, op_recv(&ops[1], p.b, &c, 1));
	assert_true(still_waits(g->l, &ops[1]));
	assert_int_equal(write(p.a, "c", 1), 1);
	assert_int_equal(op_wait(g->l, &ops[1]), 1);
	test_free(big);
	close(here.fd);
	pair_close(p);
}

static void l2_cancel_ends_what_waits(void **state)
{
	struct ground *g = ground_of(state);

	cancel_ends_what_waits(g, 0, true);
	cancel_ends_what_waits(g, SOCK_NONBLOCK, true);
}

static void l2_cancel_ends_what_was_just_submitted(void **state)
{
	struct ground *g = ground_of(state);

	cancel_ends_what_waits(g, 0, false);
	cancel_ends_what_waits(g, SOCK_NONBLOCK, false);
}

/* One done() cancels another op that may have completed in the same turn. */
static void l2_cancel_from_a_completion(void **state)
{
	struct ground *g = ground_of(state);
	struct pair p = pair_open(0), q = pair_open(0);
	struct op a, b;
	char c, d;

	for (int i = 0; i < 50; i++) {
		op_recv(&a, p.b, &c, 1);
		op_recv(&b, q.b, &d, 1);
		op_submit(g->l, &a);
		op_submit(g->l, &b);
		turns(g->l, 2);
		a.cancels = &b;
		assert_int_equal(write(p.a, "c", 1), 1);
		if (i % 2)
			assert_int_equal(write(q.a, "d", 1), 1);
		assert_int_equal(op_wait(g->l, &a), 1);
		assert_true(op_wait(g->l, &b) == -ECANCELED || (i % 2 && b.res == 1));
		if (i % 2 && b.res < 0)
			assert_int_equal(op_run(g->l, op_recv(&b, q.b, &d, 1)), 1);
	}
	pair_close(p);
	pair_close(q);
}

/* More than the SQ holds; the last one is cancelled before the kernel has seen it, and nothing else
 * happens that could wake the loop. */
static void l2_cancel_in_the_backlog(void **state)
{
	struct ground *g = ground_of(state);
	enum { N = 1100 };
	struct op *ops = test_calloc(N, sizeof(*ops));
	struct pair p = pair_open(0);

	turns(g->l, 3);
	for (int i = 0; i < N; i++)
		op_submit(g->l, op_simple(&ops[i], IO_POLL, p.b, POLLIN));
	loop_cancel(g->l, &ops[N - 1].io);
	assert_int_equal(op_wait(g->l, &ops[N - 1]), -ECANCELED);
	for (int i = 0; i < N - 1; i++) {
		assert_int_equal(ops[i].calls, 0);
		loop_cancel(g->l, &ops[i].io);
	}
	for (int i = 0; i < N - 1; i++)
		assert_int_equal(op_wait(g->l, &ops[i]), -ECANCELED);
	test_free(ops);
	pair_close(p);
}

/* Older kernels answer -EAGAIN for a non-blocking descriptor of this kind. */
static void eagain_is_never_reported(void **state)
{
	struct ground *g = ground_of(state);
	int fd = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK), other;
	struct op op;
	char c = 0;

	assert_true(fd >= 0 && grantpt(fd) == 0 && unlockpt(fd) == 0);
	other = open(ptsname(fd), O_RDWR | O_NOCTTY);
	assert_true(other >= 0);
	op_submit(g->l, op_rw(&op, IO_READ, fd, &c, 1, 0));
	assert_true(still_waits(g->l, &op));
	assert_int_equal(write(other, "c", 1), 1);
	assert_int_equal(op_wait(g->l, &op), 1);
	assert_int_equal(c, 'c');
	op_submit(g->l, op_rw(&op, IO_READ, fd, &c, 1, 0));
	assert_true(still_waits(g->l, &op));
	loop_cancel(g->l, &op.io);
	assert_int_equal(op_wait(g->l, &op), -ECANCELED);
	close(other);
	close(fd);
}

static void ring(struct timer *t)
{
}

/* What waits costs nothing until it happens. */
static void waiting_does_not_spin(void **state)
{
	struct ground *g = ground_of(state);
	struct place p = listen_somewhere(SOCK_NONBLOCK);
	struct pair q = pair_open(SOCK_NONBLOCK);
	struct timer t = { .fn = ring };
	struct op acc, rcv, pol;
	unsigned n = 0;
	char c;

	op_submit(g->l, op_simple(&acc, IO_ACCEPT, p.fd, 0));
	op_submit(g->l, op_recv(&rcv, q.b, &c, 1));
	op_submit(g->l, op_simple(&pol, IO_POLL, q.b, POLLIN));
	timer_set(g->l, &t, loop_now(g->l) + 20 * NS_PER_MS);
	for (; t.is_set; n++)
		loop_turn(g->l, true);
	assert_in_range(n, 1, 10);
	loop_cancel(g->l, &acc.io);
	loop_cancel(g->l, &rcv.io);
	loop_cancel(g->l, &pol.io);
	assert_int_equal(op_wait(g->l, &acc), -ECANCELED);
	assert_int_equal(op_wait(g->l, &rcv), -ECANCELED);
	assert_int_equal(op_wait(g->l, &pol), -ECANCELED);
	close(p.fd);
	pair_close(q);
}

static void not_a_socket(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g);
	struct op op;
	char c;

	assert_int_equal(op_run(g->l, op_recv(&op, fd, &c, 1)), -ENOTSOCK);
	assert_int_equal(op_run(g->l, op_simple(&op, IO_POLL, fd, POLLIN)), POLLIN);
	file_free(g, fd);
}

/* Many connections, so that descriptors share buckets. */
static void many_descriptors(void **state)
{
	struct ground *g = ground_of(state);
	enum { N = 300 };
	struct pair *p = test_calloc(N, sizeof(*p));
	struct op *ops = test_calloc(N, sizeof(*ops));
	char c[N];

	for (int i = 0; i < N; i++) {
		p[i] = pair_open(i % 2 ? SOCK_NONBLOCK : 0);
		op_submit(g->l, op_recv(&ops[i], p[i].b, &c[i], 1));
	}
	turns(g->l, 2);
	for (int i = N - 1; i >= 0; i--) {
		char v = (char)i;

		assert_int_equal(ops[i].calls, 0);
		assert_int_equal(write(p[i].a, &v, 1), 1);
	}
	for (int i = 0; i < N; i++) {
		assert_int_equal(op_wait(g->l, &ops[i]), 1);
		assert_int_equal(c[i], (char)i);
		pair_close(p[i]);
	}
	test_free(p);
	test_free(ops);
}

int main(void)
{
	static const struct ground_test tests[] = {
#define T(fn) { #fn, fn, WITH_REAL }
		{ "eagain_is_never_reported", eagain_is_never_reported, WITH_URING },
		T(l2_cancel_in_the_backlog),
		T(blocking_sockets),
		T(non_blocking_sockets),
		T(x2_three_on_a_blocking_descriptor),
		T(x2_three_on_a_non_blocking_descriptor),
		T(large_messages_arrive_in_pieces),
		T(poll_says_what_happened),
		T(events_are_told_one_by_one),
		T(l2_cancel_from_an_event),
		T(events_are_not_lost_in_a_crowd),
		T(events_from_another_ring),
		T(event_of_a_closed_descriptor),
		T(events_of_odd_counters),
		T(event_of_no_descriptor),
		T(shutdown_ends_accept_and_recv),
		T(l2_cancel_ends_what_waits),
		T(l2_cancel_ends_what_was_just_submitted),
		T(l2_cancel_from_a_completion),
		T(waiting_does_not_spin),
		T(not_a_socket),
		T(many_descriptors),
	};

	return ground_run(tests, ARRAY_SIZE(tests));
}
