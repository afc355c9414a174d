/* SPDX-License-Identifier: MIT */
/* loop/loop_impl.h - what loop.c, the backends, fiber.c and work.c share. Nobody else includes it.
 *
 * loop.c has all that the backends have in common: tasks, inbox, timers, the turn. A backend
 * starts and reaps I/O and sleeps. */
#ifndef LOOP_LOOP_IMPL_H
#define LOOP_LOOP_IMPL_H

#include <stdatomic.h>

#include "loop/fiber.h"
#include "loop/iobuf.h"
#include "loop/loop.h"
#include "loop/work.h"

struct fibers;

struct task_queue {
	struct task *head, **tail;
};

struct loop_ops {
	const char *name;
	int (*init)(struct loop *l, const struct loop_opts *opts, struct err *err);
	void (*fini)(struct loop *l);
	/* The thread that calls is from now on the owner (a ring may be bound to it). */
	void (*adopt)(struct loop *l);
	void (*submit)(struct loop *l, struct io *io);
	void (*cancel)(struct loop *l, struct io *io);
	/* Hands over what was submitted, takes what has completed and ends each by loop_io_end().
	 * Sleeps until something completes, the loop is woken, or the clock reaches @until_ns; not
	 * at all for 0, for ever for UINT64_MAX. Calls loop_awake() once, between the sleep and the
	 * first end. */
	void (*reap)(struct loop *l, uint64_t until_ns);
	void (*wake)(struct loop *l);           /* any thread */
	uint64_t (*clock)(struct loop *l);
	int (*fd_register)(struct loop *l, int fd);     /* optional */
	void (*fd_unregister)(struct loop *l, int slot);
	/* Optional: has the @len bytes at @mem in the kernel's hands, under @slot (below
	 * IOBUF_SLOTS), until the second. False where the kernel refuses. */
	bool (*memory_register)(struct loop *l, unsigned slot, void *mem, size_t len);
	void (*memory_unregister)(struct loop *l, unsigned slot);
	/* Optional, instead of the worker pool: runs w->fn(w) in a later step and then
	 * loop_defer(l, &w->task). loop_work() has set up that task, which calls w->done(w), and
	 * has counted @w in in_flight; the task counts it out. */
	void (*work)(struct loop *l, struct work *w);
};

struct loop {
	const struct loop_ops *ops;
	void *backend;                  /* the backend's own state */
	unsigned id;
	atomic_bool is_stopped;
	_Atomic(const void *) owner;    /* NULL until a thread adopts it; then it never changes */
	atomic_uint posters;            /* threads in loop_post(), loop_stop(); loop_free() waits */

	/* Any thread pushes, only the owner takes all; see loop_post(). */
	_Atomic(struct task *) inbox;
	atomic_bool is_sleeping;        /* a poster must call ops->wake() */

	/* The owner's alone from here on. */
	struct task_queue deferred;
	struct task_queue turn_end;
	struct timer timers;            /* head of the sorted list */
	uint64_t now_ns;
	unsigned in_flight;             /* ios and works not yet answered */
	uint64_t ended;                 /* calls of io->done(), ever */
	bool is_turning;                /* turns do not nest */
	struct workers *workers;
	struct iobufs *iobufs;
	struct fibers *fibers;
	struct loop_stats stats;        /* relaxed atomic stores; read by anyone */
};

extern const struct loop_ops loop_uring_ops, loop_posix_ops, loop_sim_ops;

/* fiber.c */
int fibers_new(struct loop *l);         /* sets l->fibers; 0 or -ENOMEM */
void fibers_free(struct loop *l);       /* no fiber runs */

/* work.c: hands @w to the pool: w->fn(w) runs on a worker, then w->done(w) on w->loop, which the
 * caller has set and owns. w->task is the pool's. Counted in w->loop->in_flight until done(). */
void workers_submit(struct workers *ws, struct work *w);
/* Lets the pool grow to at least @threads: for a backend whose I/O blocks workers, so that a slow
 * disk neither limits its own depth to the processors nor holds up what computes. */
void workers_raise(struct workers *ws, unsigned threads);
/* For tests: another limit, for new threads; another time than WORKERS_IDLE_MS; how many threads
 * there are now. */
void workers_set_limit(struct workers *ws, unsigned threads);
void workers_set_idle(struct workers *ws, unsigned ms);
unsigned workers_alive(struct workers *ws);

/* loop.c */
/* Any thread: makes the calling thread the owner of @l if it has none yet. Is it the owner now? */
bool loop_try_adopt(struct loop *l);
void task_queue_push(struct task_queue *q, struct task *t);
/* For backends. The sleep is over: reads the clock, and posters need not wake the loop any more. */
void loop_awake(struct loop *l);
/* For backends. Answers @io: io->done(). Only from reap() or a task (L1). */
void loop_io_end(struct loop *l, struct io *io, int res);

/* For backends. Tells IO_EVENT @io of an event. @io is the caller's no more than before. */
void loop_io_event(struct loop *l, struct io *io);

/* Counts in @l->stats. Its owner only; readers load relaxed, too. */
static inline void loop_stat_add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

#endif
