/* SPDX-License-Identifier: MIT */
/* loop/loop_uring.c - the loop on io_uring.
 *
 * loop_submit() fills an SQE and nothing more. uring_reap() makes one system call, which submits
 * them all, sleeps if it may and lets the kernel post completions (with DEFER_TASKRUN it does so
 * nowhere else); then it answers what is in the CQ. Nobody else enters the kernel.
 *
 * An io is in one of these places (backend_state):
 *	backlog   not in the SQ yet, because that was full or too much is in the kernel already;
 *		  on u->backlog, handed over in order by the next reap;
 *	kernel    its address is the user_data of one SQE. If it is to be cancelled and the kernel
 *		  has not been told yet, it is on u->cancels;
 *	ended     cancelled in the backlog; on u->ended until the next reap answers it.
 *
 * Invariants:
 *	U1  nothing newer than u->kernel_max reaches the kernel: setup flags and opcodes stand in
 *	    one table each, and what is used is asserted against it;
 *	U2  completions are not lost: the operations that end by themselves never fill the CQ, which
 *	    is larger than their limit; for the others the kernel keeps what does not fit (NODROP);
 *	U3  a request to cancel never meets another use of the same io: it enters the SQ before
 *	    the io can be answered, and so before it can be submitted again.
 *
 * Older kernels, and listeners that were shut down, answer -EAGAIN for non-blocking descriptors
 * instead of waiting: then the io waits as a POLL_ADD with the same user_data, and its
 * operation starts again.
 *
 * The wake-up is an eventfd under a multishot poll, as are those of IO_EVENT. Each write posts a
 * completion, whatever the counter says, so nobody reads it. That is not only a system call less:
 * who writes holds the eventfd's lock until the processor it wakes up has been told, and who has
 * been woken up and reads waits for that lock. */
#include "loop/loop_impl.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"

enum {
	SQ_ENTRIES = 1024,
	CQ_ENTRIES = 8192,
	FINITE_MAX = 4096,              /* operations in the kernel that end by themselves (U2) */
	FILE_SLOTS = 256,               /* slot 0 is never given out */
	KERNEL_MIN = 513,               /* multishot poll */
	KERNEL_MEMORY = 519,            /* a sparse table of registered memory */
	MEMORY_MIN = 16384,             /* less than this is no faster from registered memory */
	LEN_MAX = 0x7ffff000,           /* what the kernel moves at once */
	BATCH_FROM = 8,                 /* see ring_wait() */
	BATCH_PART = 4,
	BATCH_NS = 500000,
};

enum state {
	IN_BACKLOG = 1,
	IN_KERNEL = 2,
	HAS_ENDED = 4,
	IS_POLLING = 8,                 /* waits for its descriptor, to start again then */
	IS_CANCELLED = 16,
};

/* user_data that is no io's address */
enum { TAG_CANCEL = 0, TAG_WAKE = 1 };

struct uring {
	struct io_uring ring;
	struct loop *loop;
	int wake_fd;                    /* written by any thread */
	bool is_wake_armed;
	bool is_disabled;               /* until the owner enables it */
	bool is_slow;                   /* ring_wait()'s */
	unsigned kernel_max;
	unsigned finite;                /* in the kernel, see FINITE_MAX */
	struct list_node backlog, cancels, ended;
	enum { FILES_UNTRIED, FILES_READY, FILES_REFUSED } files;
	bool slot_used[FILE_SLOTS];
	enum { MEMORY_UNTRIED, MEMORY_READY, MEMORY_REFUSED } memory;
};

/* ---- what came with which kernel (U1) ---- */

static const struct {
	unsigned flag;
	unsigned kernel;
} setup_flags[] = {
	{ IORING_SETUP_CQSIZE, 505 },
	{ IORING_SETUP_CLAMP, 506 },
	{ IORING_SETUP_R_DISABLED, 510 },
	{ IORING_SETUP_SUBMIT_ALL, 518 },
	{ IORING_SETUP_COOP_TASKRUN, 519 },
	{ IORING_SETUP_TASKRUN_FLAG, 519 },
	{ IORING_SETUP_SINGLE_ISSUER, 600 },
	{ IORING_SETUP_DEFER_TASKRUN, 601 },
};

/* By opcode; 0: we do not use it. */
static const uint16_t opcode_kernel[] = {
	[IORING_OP_READV] = 501,
	[IORING_OP_WRITEV] = 501,
	[IORING_OP_FSYNC] = 501,
	[IORING_OP_READ_FIXED] = 501,
	[IORING_OP_WRITE_FIXED] = 501,
	[IORING_OP_POLL_ADD] = 513,
	[IORING_OP_SENDMSG] = 503,
	[IORING_OP_ACCEPT] = 505,
	[IORING_OP_ASYNC_CANCEL] = 505,
	[IORING_OP_FALLOCATE] = 506,
	[IORING_OP_READ] = 506,
	[IORING_OP_WRITE] = 506,
	[IORING_OP_RECV] = 506,
};

/* IORING_FEAT_RSRC_TAGS stands for Linux 5.13: multishot poll cannot be asked for. */
static const unsigned features_needed = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE |
	IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS;

/* Best first. */
static const unsigned setup_modes[] = {
	IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL |
		IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER |
		IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
	IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL |
		IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,
	IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
};

/* The kernel that has all of @flags; UINT_MAX where one is not in the table. */
static unsigned flags_kernel(unsigned flags)
{
	unsigned kernel = 0;

	for (size_t i = 0; i < ARRAY_SIZE(setup_flags); i++) {
		if (flags & setup_flags[i].flag)
			kernel = MAX(kernel, setup_flags[i].kernel);
		flags &= ~setup_flags[i].flag;
	}
	return flags ? UINT_MAX : kernel;
}

/* ---- making and ending ---- */

static int ring_open(struct uring *u)
{
	int rc = -EINVAL;

	for (size_t i = 0; i < ARRAY_SIZE(setup_modes) && rc == -EINVAL; i++) {
		struct io_uring_params p = { .flags = setup_modes[i], .cq_entries = CQ_ENTRIES };

		if (flags_kernel(p.flags) > u->kernel_max)
			continue;
		rc = io_uring_queue_init_params(SQ_ENTRIES, &u->ring, &p);
		u->is_disabled = p.flags & IORING_SETUP_R_DISABLED;
	}
	return rc;
}

static int ring_check(struct uring *u, struct err *err)
{
	struct io_uring_probe *probe;
	int rc = 0;

	if ((u->ring.features & features_needed) != features_needed)
		return err_set(err, ENOSYS, "the kernel's io_uring is older than Linux 5.13's");
	probe = io_uring_get_probe_ring(&u->ring);
	if (!probe)
		return err_set(err, ENOSYS, "cannot ask what the kernel's io_uring can do");
	for (int op = 0; op < (int)ARRAY_SIZE(opcode_kernel) && rc == 0; op++)
		if (opcode_kernel[op] && !io_uring_opcode_supported(probe, op))
			rc = err_set(err, ENOSYS, "the kernel's io_uring lacks operation %d", op);
	io_uring_free_probe(probe);
	return rc;
}

static int uring_init(struct loop *l, const struct loop_opts *opts, struct err *err)
{
	struct uring *u;
	int rc;

	if (opts->uring_kernel_max && opts->uring_kernel_max < KERNEL_MIN)
		return err_set(err, ENOSYS, "io_uring needs Linux 5.13");
	u = calloc(1, sizeof(*u));
	if (!u)
		return err_set_errno(err, ENOMEM, "cannot make an io_uring");
	u->loop = l;
	u->kernel_max = opts->uring_kernel_max ? opts->uring_kernel_max : UINT_MAX;
	list_init(&u->backlog);
	list_init(&u->cancels);
	list_init(&u->ended);
	u->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (u->wake_fd < 0) {
		rc = err_set_errno(err, errno, "cannot make an eventfd");
		goto fail_free;
	}
	rc = ring_open(u);
	if (rc < 0) {
		err_set_errno(err, -rc, "cannot set up an io_uring");
		goto fail_fd;
	}
	rc = ring_check(u, err);
	if (rc < 0)
		goto fail_ring;
	assert(flags_kernel(u->ring.flags) <= u->kernel_max);
	l->backend = u;
	return 0;

fail_ring:
	io_uring_queue_exit(&u->ring);
fail_fd:
	close(u->wake_fd);
fail_free:
	free(u);
	return rc;
}

static void uring_fini(struct loop *l)
{
	struct uring *u = l->backend;

	io_uring_queue_exit(&u->ring);
	close(u->wake_fd);
	free(u);
}

/* The thread that enables a SINGLE_ISSUER ring is the one that may enter it. */
static void uring_adopt(struct loop *l)
{
	struct uring *u = l->backend;
	unsigned fd = (unsigned)u->ring.ring_fd;
	int rc = 0;

	if (u->is_disabled)
		rc = io_uring_register(fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
	assert(rc == 0);
}

/* ---- towards the kernel ---- */

/* The only place that hands out SQEs (U1). NULL where the SQ is full. */
static struct io_uring_sqe *sqe_get(struct uring *u, unsigned opcode, uint64_t user_data)
{
	struct io_uring_sqe *sqe;

	assert(opcode < ARRAY_SIZE(opcode_kernel) && opcode_kernel[opcode]);
	assert(opcode_kernel[opcode] <= u->kernel_max);
	sqe = io_uring_get_sqe(&u->ring);
	if (!sqe)
		return NULL;
	io_uring_prep_rw((int)opcode, sqe, -1, NULL, 0, 0);
	sqe->user_data = user_data;
	return sqe;
}

static bool io_is_finite(const struct io *io)
{
	return io->op <= IO_ALLOCATE;
}

/* Where @io's memory is registered; -1: nowhere, or it would not help. */
static int io_slot(struct loop *l, const struct io *io)
{
	if (io->op > IO_WRITE || !(io->flags & IO_DIRECT) || io->iovcnt != 1 ||
	    io->iov->iov_len < MEMORY_MIN || io->iov->iov_len > LEN_MAX ||
	    io->backend_state & IS_POLLING)
		return -1;
	return iobuf_slot(l->iobufs, io->iov->iov_base, io->iov->iov_len);
}

static unsigned io_opcode(const struct io *io, int slot)
{
	if (io->backend_state & IS_POLLING)
		return IORING_OP_POLL_ADD;
	if (slot >= 0)
		return io->op == IO_READ ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
	switch ((enum io_op)io->op) {
	case IO_READ:
		return io->iovcnt == 1 ? IORING_OP_READ : IORING_OP_READV;
	case IO_WRITE:
		return io->iovcnt == 1 ? IORING_OP_WRITE : IORING_OP_WRITEV;
	case IO_SYNC:
		return IORING_OP_FSYNC;
	case IO_ALLOCATE:
		return IORING_OP_FALLOCATE;
	case IO_RECV:
		return IORING_OP_RECV;
	case IO_SENDMSG:
		return IORING_OP_SENDMSG;
	case IO_ACCEPT:
		return IORING_OP_ACCEPT;
	case IO_POLL:
	case IO_EVENT:
		return IORING_OP_POLL_ADD;
	case IO_OPS:
		break;
	}
	__builtin_unreachable();
}

/* What a descriptor that answered -EAGAIN must become for @io. */
static unsigned retry_events(const struct io *io)
{
	return io->op == IO_WRITE || io->op == IO_SENDMSG ? POLLOUT : POLLIN;
}

static void sqe_fill_rw(struct io_uring_sqe *sqe, const struct io *io)
{
	sqe->off = io->off;
	if (io->iovcnt == 1) {
		sqe->addr = (uintptr_t)io->iov->iov_base;
		sqe->len = (uint32_t)MIN(io->iov->iov_len, (size_t)LEN_MAX);
	} else {
		sqe->addr = (uintptr_t)io->iov;
		sqe->len = io->iovcnt;
	}
	if (io->op == IO_WRITE && io->flags & IO_DSYNC)
		sqe->rw_flags = RWF_DSYNC;
}

static void sqe_fill(struct io_uring_sqe *sqe, const struct io *io)
{
	bool is_fixed = io->fixed > 0;

	sqe->fd = is_fixed ? io->fixed : io->fd;
	if (is_fixed)
		sqe->flags |= IOSQE_FIXED_FILE;
	if (io->backend_state & IS_POLLING) {
		sqe->poll32_events = retry_events(io);
		return;
	}
	switch ((enum io_op)io->op) {
	case IO_READ:
	case IO_WRITE:
		sqe_fill_rw(sqe, io);
		break;
	case IO_SYNC:
		sqe->fsync_flags = IORING_FSYNC_DATASYNC;
		break;
	case IO_ALLOCATE:
		sqe->off = io->off;
		sqe->addr = io->len;
		sqe->len = (uint32_t)io->mode;
		break;
	case IO_RECV:
		sqe->addr = (uintptr_t)io->buf;
		sqe->len = (uint32_t)MIN(io->len, (uint64_t)LEN_MAX);
		break;
	case IO_SENDMSG:
		sqe->addr = (uintptr_t)io->msg;
		sqe->len = 1;
		sqe->msg_flags = MSG_NOSIGNAL;
		break;
	case IO_ACCEPT:
		sqe->accept_flags = SOCK_CLOEXEC;
		break;
	case IO_POLL:
		sqe->poll32_events = (uint32_t)io->mode;
		break;
	case IO_EVENT:
		sqe->poll32_events = POLLIN;
		sqe->len = IORING_POLL_ADD_MULTI;
		break;
	case IO_OPS:
		break;
	}
}

/* Puts @io into the SQ. False where it must stay in the backlog. */
static bool io_start(struct uring *u, struct io *io)
{
	struct io_uring_sqe *sqe;
	int slot;

	if (io_is_finite(io) && u->finite >= FINITE_MAX)
		return false;
	slot = io_slot(u->loop, io);
	sqe = sqe_get(u, io_opcode(io, slot), (uintptr_t)io);
	if (!sqe)
		return false;
	sqe_fill(sqe, io);
	if (slot >= 0) {
		sqe->buf_index = (uint16_t)slot;
		loop_stat_add(&u->loop->stats.registered, 1);
	}
	u->finite += io_is_finite(io);
	io->backend_state &= (uint8_t)~IN_BACKLOG;
	io->backend_state |= IN_KERNEL;
	return true;
}

static void io_queue(struct uring *u, struct io *io)
{
	list_init(&io->link);
	if (list_is_empty(&u->backlog) && io_start(u, io))
		return;
	io->backend_state |= IN_BACKLOG;
	list_add_tail(&u->backlog, &io->link);
}

static void uring_submit(struct loop *l, struct io *io)
{
	io->backend_state = 0;
	io_queue(l->backend, io);
}

static void uring_cancel(struct loop *l, struct io *io)
{
	struct uring *u = l->backend;

	if (io->backend_state & IN_BACKLOG) {
		list_del(&io->link);
		io->backend_state = HAS_ENDED;
		list_add_tail(&u->ended, &io->link);
	} else if (!(io->backend_state & (HAS_ENDED | IS_CANCELLED))) {
		io->backend_state |= IS_CANCELLED;
		list_add_tail(&u->cancels, &io->link);
	}
}

static bool wake_arm(struct uring *u)
{
	struct io_uring_sqe *sqe = sqe_get(u, IORING_OP_POLL_ADD, TAG_WAKE);

	if (!sqe)
		return false;
	sqe->fd = u->wake_fd;
	sqe->poll32_events = POLLIN;
	sqe->len = IORING_POLL_ADD_MULTI;
	u->is_wake_armed = true;
	return true;
}

/* Moves what waits into the SQ. False where that was full before all had moved. */
static bool sq_fill(struct uring *u)
{
	if (!u->is_wake_armed && !wake_arm(u))
		return false;
	list_for_each(n, &u->cancels) {
		struct io_uring_sqe *sqe = sqe_get(u, IORING_OP_ASYNC_CANCEL, TAG_CANCEL);

		if (!sqe)
			return false;
		sqe->addr = (uintptr_t)list_entry(n, struct io, link);
		list_del(n);
	}
	list_for_each(n, &u->backlog) {
		struct io *io = list_entry(n, struct io, link);

		if (!io_start(u, io))
			return io_uring_sq_space_left(&u->ring) > 0;
		list_del(n);
	}
	return true;
}

/* Must the kernel be entered, for completions that it has not posted yet? */
static bool cq_needs_enter(const struct uring *u)
{
	return IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN);
}

static int submit_and_wait(struct uring *u, unsigned n, uint64_t ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (int64_t)(ns / NS_PER_SEC),
		.tv_nsec = (long long)(ns % NS_PER_SEC),
	};
	struct io_uring_cqe *cqe;

	return io_uring_submit_and_wait_timeout(&u->ring, &cqe, n, ns == UINT64_MAX ? NULL : &ts,
						NULL);
}

/* Submits the SQ and waits for a completion, @ns at most.
 *
 * Where nothing is under way but many operations of a disk, nobody else waits for this loop, and to
 * wake up for each would cost more than to answer it. Then it wakes up when a part of them have
 * ended, or after BATCH_NS: with nothing, if the disk is slow, and then it waits for one. */
static int ring_wait(const struct loop *l, struct uring *u, uint64_t ns)
{
	bool is_batch = u->finite >= BATCH_FROM && u->finite == l->in_flight && ns > BATCH_NS &&
			!u->is_slow;
	int rc = is_batch ? submit_and_wait(u, u->finite / BATCH_PART, BATCH_NS)
			  : submit_and_wait(u, 1, ns);

	u->is_slow = is_batch && !io_uring_cq_ready(&u->ring);
	return rc;
}

/* Submits the SQ, and waits for a completion until the clock reaches @until_ns (0: does not wait).
 * False where the kernel cannot take more before completions are taken from it. */
static bool ring_enter(struct loop *l, struct uring *u, uint64_t until_ns)
{
	int rc;

	if (until_ns == 0 && io_uring_sq_ready(&u->ring) == 0 && !cq_needs_enter(u))
		return true;
	loop_stat_add(&l->stats.enters, 1);
	if (until_ns == 0) {
		rc = io_uring_submit_and_get_events(&u->ring);
	} else if (until_ns == UINT64_MAX) {
		rc = ring_wait(l, u, UINT64_MAX);
	} else {
		uint64_t now = l->ops->clock(l);

		rc = ring_wait(l, u, until_ns > now ? until_ns - now : 0);
	}
	if (rc >= 0 || rc == -ETIME || rc == -EINTR)
		return true;
	if (rc == -EAGAIN) {
		/* No memory for requests: a moment's rest, and again in the next turn. */
		nanosleep(&(struct timespec){ .tv_nsec = (long)NS_PER_MS }, NULL);
		return false;
	}
	if (rc == -EBUSY)
		return false;
	log_error("io_uring_enter fails with %d: cannot go on", rc);
	abort();
}

/* ---- back from the kernel ---- */

static void io_complete(struct loop *l, struct uring *u, struct io *io, int res)
{
	bool was_polling = io->backend_state & IS_POLLING;
	bool starts_again;

	/* A non-blocking AF_UNIX listener that was shut down would answer -EAGAIN for ever. */
	if (was_polling && io->op == IO_ACCEPT && res > 0 && res & POLLHUP)
		res = -EINVAL;
	starts_again = res == -EAGAIN || res == -EINTR || (was_polling && res >= 0);
	u->finite -= io_is_finite(io);
	list_del(&io->link);            /* from u->cancels: too late */
	io->backend_state &= (uint8_t)~(IN_KERNEL | IS_POLLING);
	if (!starts_again) {
		loop_io_end(l, io, res);
	} else if (io->backend_state & IS_CANCELLED) {
		loop_io_end(l, io, -ECANCELED);
	} else {
		if (res == -EAGAIN)
			io->backend_state |= IS_POLLING;
		io_queue(u, io);
	}
}

/* An IO_EVENT's poll has ended: because it was cancelled; its descriptor is none; the CQ had no
 * room, or there was no memory (-ECANCELED before Linux 6.1, though nobody has cancelled it); or
 * the event came from another ring, which is where the kernel ends a multishot poll. Then it is
 * polled again, and its counter, which nobody has read, is an event that has been told of already.
 * To read it here would be to wait for whoever wrote it (see the head), and later it would be to
 * miss what was written since. */
static void event_end(struct loop *l, struct uring *u, struct io *io, int res)
{
	bool is_cancelled = io->backend_state & IS_CANCELLED;

	list_del(&io->link);            /* from u->cancels: too late */
	io->backend_state &= (uint8_t)~IN_KERNEL;
	if (is_cancelled ||
	    (res < 0 && res != -EAGAIN && res != -EINTR && res != -ECANCELED)) {
		loop_io_end(l, io, is_cancelled ? -ECANCELED : res);
		return;
	}
	io_queue(u, io);
	loop_io_event(l, io);
}

static void cqe_take(struct loop *l, struct uring *u, const struct io_uring_cqe *cqe)
{
	struct io *io = (struct io *)(uintptr_t)cqe->user_data;

	if (io->op != IO_EVENT)
		io_complete(l, u, io, cqe->res);
	else if (cqe->flags & IORING_CQE_F_MORE)
		loop_io_event(l, io);
	else
		event_end(l, u, io, cqe->res);
}

static void cq_take(struct loop *l, struct uring *u)
{
	/* What comes meanwhile waits for the next turn. */
	unsigned n = io_uring_cq_ready(&u->ring), i = 0, head;
	struct io_uring_cqe *cqe;

	io_uring_for_each_cqe(&u->ring, head, cqe) {
		if (i++ == n)
			break;
		if (cqe->user_data == TAG_WAKE)
			u->is_wake_armed = cqe->flags & IORING_CQE_F_MORE;
		else if (cqe->user_data != TAG_CANCEL)
			cqe_take(l, u, cqe);
	}
	io_uring_cq_advance(&u->ring, n);
}

static void ended_take(struct loop *l, struct uring *u)
{
	struct list_node *n;

	while ((n = list_pop(&u->ended)))
		loop_io_end(l, list_entry(n, struct io, link), -ECANCELED);
}

static void uring_reap(struct loop *l, uint64_t until_ns)
{
	struct uring *u = l->backend;
	bool is_taken = true;

	while (is_taken && !sq_fill(u))
		is_taken = ring_enter(l, u, 0);
	if (is_taken)
		ring_enter(l, u, list_is_empty(&u->ended) ? until_ns : 0);
	loop_awake(l);
	ended_take(l, u);
	cq_take(l, u);
}

static void uring_wake(struct loop *l)
{
	struct uring *u = l->backend;
	ssize_t n;

	do
		n = write(u->wake_fd, &(uint64_t){ 1 }, sizeof(uint64_t));
	while (n < 0 && errno == EINTR);
	assert(n == sizeof(uint64_t));
}

static uint64_t uring_clock(struct loop *l)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* ---- registered files ---- */

static bool files_ready(struct uring *u)
{
	int none[FILE_SLOTS];

	if (u->files == FILES_UNTRIED) {
		for (unsigned i = 0; i < FILE_SLOTS; i++)
			none[i] = -1;
		u->files = io_uring_register_files(&u->ring, none, FILE_SLOTS) == 0 ?
			FILES_READY : FILES_REFUSED;
	}
	return u->files == FILES_READY;
}

static int uring_fd_register(struct loop *l, int fd)
{
	struct uring *u = l->backend;
	int slot = 1;

	if (!files_ready(u))
		return -1;
	while (slot < FILE_SLOTS && u->slot_used[slot])
		slot++;
	if (slot == FILE_SLOTS)
		return -1;
	if (io_uring_register_files_update(&u->ring, (unsigned)slot, &fd, 1) != 1)
		return -1;
	u->slot_used[slot] = true;
	return slot;
}

static void uring_fd_unregister(struct loop *l, int slot)
{
	struct uring *u = l->backend;
	int none = -1;

	assert(slot > 0 && slot < FILE_SLOTS && u->slot_used[slot]);
	io_uring_register_files_update(&u->ring, (unsigned)slot, &none, 1);
	u->slot_used[slot] = false;
}

/* ---- registered memory ---- */

static bool memory_ready(struct uring *u)
{
	if (u->memory == MEMORY_UNTRIED)
		u->memory = KERNEL_MEMORY <= u->kernel_max &&
			io_uring_register_buffers_sparse(&u->ring, IOBUF_SLOTS) == 0 ?
			MEMORY_READY : MEMORY_REFUSED;
	return u->memory == MEMORY_READY;
}

static bool memory_set(struct uring *u, unsigned slot, void *mem, size_t len)
{
	struct iovec iov = { mem, len };
	__u64 tag = 0;

	return io_uring_register_buffers_update_tag(&u->ring, slot, &iov, &tag, 1) == 1;
}

static bool uring_memory_register(struct loop *l, unsigned slot, void *mem, size_t len)
{
	struct uring *u = l->backend;

	return memory_ready(u) && memory_set(u, slot, mem, len);
}

static void uring_memory_unregister(struct loop *l, unsigned slot)
{
	bool ok = memory_set(l->backend, slot, NULL, 0);

	assert(ok);
}

const struct loop_ops loop_uring_ops = {
	.name = "uring",
	.init = uring_init,
	.fini = uring_fini,
	.adopt = uring_adopt,
	.submit = uring_submit,
	.cancel = uring_cancel,
	.reap = uring_reap,
	.wake = uring_wake,
	.clock = uring_clock,
	.fd_register = uring_fd_register,
	.fd_unregister = uring_fd_unregister,
	.memory_register = uring_memory_register,
	.memory_unregister = uring_memory_unregister,
};
