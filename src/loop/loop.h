/* SPDX-License-Identifier: MIT */
/* loop/loop.h - one thread, one loop, one ring.
 *
 * A loop belongs to the thread that runs it. Everything that has a `struct loop *` in it is
 * touched by that thread alone, unless its comment says otherwise; other threads reach it
 * by loop_post(). Functions that need the owner begin with loop_assert().
 *
 * A turn of a loop:
 *	1. hand everything submitted to the kernel at once, wait if nothing else is left to do, take
 *	   what has completed and call io->done() of each
 *	2. take the inbox (loop_post) and due timers
 *	3. run deferred tasks and woken fibers until none is left (or very many have run: the rest
 *	   follow at once in the next turn)
 *	4. run the turn-end tasks (exports send the replies gathered in this turn)
 *
 * Invariants:
 *	L1  io->done(), task->fn() and timer->fn() never run inside the call that submitted,
 *	    deferred, posted or set them: no re-entry, no deep stacks, free batching;
 *	L2  whatever was submitted is answered exactly once, cancelled or not (an IO_EVENT, which
 *	    tells of many events before, by what is negative);
 *	L3  what the sender wrote before loop_post() is visible to task->fn();
 *	L4  nothing here allocates memory on behalf of an I/O, a task or a timer: their structs
 *	    are their callers', who must leave them alone until they are called back.
 *
 * Three backends stand behind one table (loop_impl.h): uring, posix (epoll and worker threads)
 * and sim (simulated time and files, for tests: loop/sim.h). */
#ifndef LOOP_LOOP_H
#define LOOP_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/list.h"

struct err;
struct fiber;
struct io;
struct loop;
struct msghdr;
struct workers;

enum { LOOPS_MAX = 64 };                /* ids of loops are below this */

enum loop_backend {
	LOOP_AUTO,                      /* uring, else posix (BYRE_LOOP=uring|posix decides) */
	LOOP_URING,
	LOOP_POSIX,
	LOOP_SIM,
};

struct loop_opts {
	enum loop_backend backend;
	struct workers *workers;        /* borrowed; NULL only for LOOP_SIM */
	size_t iobuf_budget;            /* bytes; 0: the default of iobuf.h */
	uint64_t sim_seed;              /* LOOP_SIM */
	unsigned uring_kernel_max;      /* tests: use nothing newer than this kernel, written as
					 * major * 100 + minor (601: Linux 6.1); 0: no limit */
};

/* Makes a loop; the thread that calls loop_run() or loop_turn() first becomes its owner.
 * 0 or -errno with @err set. */
int loop_new(const struct loop_opts *opts, struct loop **ret, struct err *err);
/* In the owner's thread or after it ended. Nothing may be in flight. NULL is fine. */
void loop_free(struct loop *l);

/* Runs turns until loop_stop(). */
void loop_run(struct loop *l);
/* One turn; waits for something to happen only if @wait. Returns false when there was nothing to
 * do. What it submits is handed over by the next one. */
bool loop_turn(struct loop *l, bool wait);
/* Any thread. loop_run() returns at the end of the turn. */
void loop_stop(struct loop *l);

/* The loop that the calling thread owns and runs, or NULL. */
struct loop *loop_current(void);
bool loop_is_current(const struct loop *l);
#define loop_assert(l) assert(loop_is_current(l))

unsigned loop_id(const struct loop *l); /* below LOOPS_MAX, unique among living loops */
struct iobufs *loop_iobufs(struct loop *l);

/* Nanoseconds of a monotonic clock, read once a turn (simulated in sim). */
uint64_t loop_now(const struct loop *l);

/* ---- tasks: run a function soon ---- */

struct task {
	void (*fn)(struct task *t);
	struct task *next;              /* the loop's while queued */
};

/* Runs @t later in this turn (or at once in the next). Owner only. */
void loop_defer(struct loop *l, struct task *t);
/* Runs @t once after everything else of this turn, just before submission. Owner only. */
void loop_at_turn_end(struct loop *l, struct task *t);
/* Any thread: runs @t on @l. Wakes it if it sleeps. Pairs release/acquire (L3). */
void loop_post(struct loop *l, struct task *t);

/* ---- timers ---- */

struct timer {
	void (*fn)(struct timer *t);
	uint64_t when_ns;
	struct timer *next, *prev;      /* a sorted list: timers are few (one a node) */
	bool is_set;
};

/* (Re)arms @t for @when_ns on loop_now()'s clock. A zeroed timer with fn is a valid start. */
void timer_set(struct loop *l, struct timer *t, uint64_t when_ns);
void timer_cancel(struct loop *l, struct timer *t);

/* ---- I/O ---- */

enum io_op {
	IO_READ,                        /* preadv(fd, iov, iovcnt, off) */
	IO_WRITE,                       /* pwritev2(..., IO_DSYNC ? RWF_DSYNC : 0) */
	IO_SYNC,                        /* fdatasync(fd) */
	IO_ALLOCATE,                    /* fallocate(fd, mode, off, len) */
	IO_RECV,                        /* recv(fd, buf, len, 0); res 0 is the end */
	IO_SENDMSG,                     /* sendmsg(fd, msg, MSG_NOSIGNAL) */
	IO_ACCEPT,                      /* accept4(fd, SOCK_CLOEXEC); res is the new descriptor */
	IO_POLL,                        /* waits for poll events in `mode`; res is revents */
	IO_EVENT,                       /* waits for writes to the eventfd fd, over and over: done()
					 * with 1 after each (one for several that come close
					 * together), at first where its counter is not 0, and now
					 * and then without a reason; in the end with -errno.
					 * Nobody need read its counter. The fd's only io */
	IO_OPS
};

enum io_flags {
	IO_DSYNC = 1,                   /* IO_WRITE: durable when done */
	IO_DIRECT = 2,                  /* READ, WRITE: past the page cache (a hint: what is large
					 * goes from and to memory that the ring has registered) */
};

/* One operation. Caller's memory, which must stay until done() runs. Nothing is retried here:
 * a short count is the caller's business (EINTR and EAGAIN are not reported). */
struct io {
	void (*done)(struct io *io, int res);   /* res: bytes, descriptor or 0; or -errno */
	union {
		const struct iovec *iov;        /* READ, WRITE; lives until done */
		void *buf;                      /* RECV */
		const struct msghdr *msg;       /* SENDMSG */
	};
	uint64_t off;
	uint64_t len;                   /* ALLOCATE, RECV: bytes */
	uint32_t iovcnt;                /* READ, WRITE: 1..IOV_MAX */
	int fd;
	int fixed;                      /* loop_fd_register()'s slot; 0 or -1: none */
	int mode;                       /* ALLOCATE: mode; POLL: events */
	uint8_t op;                     /* enum io_op */
	uint8_t flags;                  /* enum io_flags */
	uint8_t backend_state;          /* the backend's */
	int res;                        /* the backend's */
	struct fiber *waiter;           /* loop_io_wait()'s */
	struct list_node link;          /* the backend's */
};

/* Starts @io. Owner only. io->done() is called exactly once, in a later step (L1, L2). */
void loop_submit(struct loop *l, struct io *io);
/* Asks for an early end of @io (then usually -ECANCELED); done() is still called. Owner only.
 * Meant for RECV, SENDMSG, ACCEPT, POLL and EVENT. */
void loop_cancel(struct loop *l, struct io *io);

/* Adds 1 to the counter of the eventfd @fd, which may be shared with somebody else: whatever the
 * other side does to it, this does not wait, and wakes up whoever polls it. Owner only. */
void loop_event_signal(struct loop *l, int fd);

/* Registers @fd with the ring, to spare a look-up at each I/O. Returns a slot (1..) for io->fixed,
 * or -1 where there is none (never an error). Owner only; unregister before the fd is closed. */
int loop_fd_register(struct loop *l, int fd);
void loop_fd_unregister(struct loop *l, int slot);

/* Waits, in a fiber, for one io; sets io->done itself. Returns its result. */
int loop_io_wait(struct loop *l, struct io *io);

/* Counters that do not depend on the machine. Written by the owner, readable by any thread. */
struct loop_stats {
	uint64_t turns;
	uint64_t enters;                /* system calls that submit or wait (uring, epoll_wait) */
	uint64_t ios[IO_OPS];           /* submitted, by enum io_op */
	uint64_t fibers_started;
	uint64_t fibers_peak;
	uint64_t registered;            /* reads and writes from and to registered memory (uring) */
};

/* ---- for tests ---- */

void loop_get_stats(const struct loop *l, struct loop_stats *ret);
const char *loop_backend_name(const struct loop *l);
struct workers *loop_workers(const struct loop *l);

#endif
