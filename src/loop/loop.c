/* SPDX-License-Identifier: MIT */
/* loop/loop.c - what all backends have in common: owner, tasks, inbox, timers, the turn.
 *
 * A turn begins with the one call of ops->reap(), which hands over what was submitted since the
 * last one, sleeps if allowed, and takes what has completed. So a turn never sleeps after it has
 * run something: whoever turns a loop until a condition holds sees it in time. And a busy
 * loop makes one system call a turn.
 *
 * The inbox is a stack that any thread pushes to and the owner takes whole and reverses; so each
 * sender's posts arrive in order. No wake is lost, because both sides write first and look second,
 * all of it sequentially consistent:
 *
 *	sender  push to inbox;         then is is_sleeping set?  wake
 *	owner   set is_sleeping;       then is inbox empty?      sleep
 *
 * whichever write comes first in the one total order is seen by the other side's look.
 * Of many senders one wakes: the one that takes is_sleeping away. */
#include "loop/loop_impl.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"

/* Tasks that one turn runs at most: tasks that defer each other must not keep I/O from going on. */
enum { TURN_TASKS_MAX = 4096 };

static atomic_uint_least64_t ids_in_use;        /* a bit a loop */
_Static_assert(LOOPS_MAX == 64, "ids_in_use has a bit for each");

/* Its address tells threads apart; its value is the loop that the thread turned last. */
static _Thread_local struct loop *current;

/* ---- task queues ---- */

static void task_queue_init(struct task_queue *q)
{
	q->head = NULL;
	q->tail = &q->head;
}

void task_queue_push(struct task_queue *q, struct task *t)
{
	t->next = NULL;
	*q->tail = t;
	q->tail = &t->next;
}

static struct task *task_queue_pop(struct task_queue *q)
{
	struct task *t = q->head;

	if (!t)
		return NULL;
	q->head = t->next;
	if (!q->head)
		q->tail = &q->head;
	return t;
}

/* ---- making and ending a loop ---- */

static int id_take(unsigned *ret)
{
	uint_least64_t used = atomic_load(&ids_in_use);

	do {
		if (!~used)
			return -ENFILE;
		*ret = (unsigned)__builtin_ctzll(~used);
	} while (!atomic_compare_exchange_weak(&ids_in_use, &used, used | 1ULL << *ret));
	return 0;
}

static void id_put(unsigned id)
{
	atomic_fetch_and(&ids_in_use, ~(1ULL << id));
}

static int backend_init(struct loop *l, const struct loop_ops *ops, const struct loop_opts *opts,
			struct err *err)
{
	l->ops = ops;
	return ops->init(l, opts, err);
}

/* LOOP_AUTO: io_uring where the system lets us, else epoll. */
static int backend_choose(struct loop *l, const struct loop_opts *opts, struct err *err)
{
	const char *env = getenv("BYRE_LOOP");
	struct err why = { 0 };

	if (env && !strcmp(env, "uring"))
		return backend_init(l, &loop_uring_ops, opts, err);
	if (env && !strcmp(env, "posix"))
		return backend_init(l, &loop_posix_ops, opts, err);
	if (env && *env)
		return err_set(err, EINVAL, "BYRE_LOOP is '%s', not 'uring' or 'posix'", env);
	if (backend_init(l, &loop_uring_ops, opts, &why) == 0)
		return 0;
	log_debug("using epoll: %s", why.text);
	return backend_init(l, &loop_posix_ops, opts, err);
}

static int backend_open(struct loop *l, const struct loop_opts *opts, struct err *err)
{
	switch (opts->backend) {
	case LOOP_AUTO:
		return backend_choose(l, opts, err);
	case LOOP_URING:
		return backend_init(l, &loop_uring_ops, opts, err);
	case LOOP_POSIX:
		return backend_init(l, &loop_posix_ops, opts, err);
	case LOOP_SIM:
		return backend_init(l, &loop_sim_ops, opts, err);
	}
	return err_set(err, EINVAL, "unknown loop backend %d", (int)opts->backend);
}

int loop_new(const struct loop_opts *opts, struct loop **ret, struct err *err)
{
	struct loop *l = calloc(1, sizeof(*l));
	int rc;

	assert(opts->workers || opts->backend == LOOP_SIM);
	if (!l)
		return err_set_errno(err, ENOMEM, "cannot make a loop");
	rc = id_take(&l->id);
	if (rc < 0) {
		free(l);
		return err_set(err, -rc, "more than %d loops", LOOPS_MAX);
	}
	task_queue_init(&l->deferred);
	task_queue_init(&l->turn_end);
	l->timers.next = l->timers.prev = &l->timers;
	l->workers = opts->workers;
	rc = iobufs_new(opts->iobuf_budget ? opts->iobuf_budget : IOBUF_BUDGET_DEFAULT, &l->iobufs);
	if (rc < 0) {
		err_set_errno(err, -rc, "cannot make a loop's buffers");
		goto fail_id;
	}
	rc = backend_open(l, opts, err);
	if (rc < 0)
		goto fail_iobufs;
	rc = fibers_new(l);
	if (rc < 0) {
		err_set_errno(err, -rc, "cannot make a loop's fibers");
		goto fail_backend;
	}
	l->now_ns = l->ops->clock(l);
	iobufs_attach(l->iobufs, l);
	*ret = l;
	return 0;

fail_backend:
	l->ops->fini(l);
fail_iobufs:
	iobufs_free(l->iobufs);
fail_id:
	id_put(l->id);
	free(l);
	return rc;
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	/* Whoever posted the last task may still be on its way out of loop_post(). */
	while (atomic_load(&l->posters))
		sched_yield();
	assert(!l->is_turning);
	assert(l->in_flight == 0);
	fibers_free(l);
	iobufs_attach(l->iobufs, NULL);
	l->ops->fini(l);
	iobufs_free(l->iobufs);
	id_put(l->id);
	if (current == l)
		current = NULL;
	free(l);
}

/* ---- whose it is ---- */

bool loop_is_current(const struct loop *l)
{
	return atomic_load_explicit(&l->owner, memory_order_relaxed) == &current;
}

bool loop_try_adopt(struct loop *l)
{
	const void *nobody = NULL;

	if (loop_is_current(l))
		return true;
	if (!atomic_compare_exchange_strong(&l->owner, &nobody, &current))
		return false;
	l->ops->adopt(l);
	l->now_ns = l->ops->clock(l);
	return true;
}

struct loop *loop_current(void)
{
	return current;
}

const char *loop_backend_name(const struct loop *l)
{
	return l->ops->name;
}

unsigned loop_id(const struct loop *l)
{
	return l->id;
}

struct workers *loop_workers(const struct loop *l)
{
	return l->workers;
}

struct iobufs *loop_iobufs(struct loop *l)
{
	return l->iobufs;
}

uint64_t loop_now(const struct loop *l)
{
	return l->now_ns;
}

/* ---- tasks ---- */

void loop_defer(struct loop *l, struct task *t)
{
	loop_assert(l);
	task_queue_push(&l->deferred, t);
}

void loop_at_turn_end(struct loop *l, struct task *t)
{
	loop_assert(l);
	task_queue_push(&l->turn_end, t);
}

/* Called after a write that the owner looks for before it sleeps; see the head. */
static void wake_if_sleeping(struct loop *l)
{
	if (atomic_load(&l->is_sleeping) && atomic_exchange(&l->is_sleeping, false))
		l->ops->wake(l);
}

void loop_post(struct loop *l, struct task *t)
{
	struct task *newest;

	/* Counted before the push, so that whoever has seen the task also sees the count. */
	atomic_fetch_add(&l->posters, 1);
	newest = atomic_load(&l->inbox);
	do
		t->next = newest;
	while (!atomic_compare_exchange_weak(&l->inbox, &newest, t));
	wake_if_sleeping(l);
	atomic_fetch_sub(&l->posters, 1);
}

void loop_stop(struct loop *l)
{
	atomic_fetch_add(&l->posters, 1);
	atomic_store(&l->is_stopped, true);
	wake_if_sleeping(l);
	atomic_fetch_sub(&l->posters, 1);
}

/* Queues what was posted behind what is deferred, oldest first. */
static void inbox_take(struct loop *l)
{
	struct task *newest, *oldest = NULL;

	if (!atomic_load_explicit(&l->inbox, memory_order_relaxed))
		return;
	newest = atomic_exchange(&l->inbox, NULL);
	while (newest) {
		struct task *t = newest;

		newest = t->next;
		t->next = oldest;
		oldest = t;
	}
	while (oldest) {
		struct task *t = oldest;

		oldest = t->next;
		task_queue_push(&l->deferred, t);
	}
}

/* ---- timers ---- */

static void timer_unlink(struct timer *t)
{
	t->prev->next = t->next;
	t->next->prev = t->prev;
	t->is_set = false;
}

void timer_set(struct loop *l, struct timer *t, uint64_t when_ns)
{
	struct timer *before;

	loop_assert(l);
	if (t->is_set)
		timer_unlink(t);
	/* From the end: most timers are set for later than those that wait already. */
	before = l->timers.prev;
	while (before != &l->timers && before->when_ns > when_ns)
		before = before->prev;
	t->when_ns = when_ns;
	t->is_set = true;
	t->prev = before;
	t->next = before->next;
	before->next->prev = t;
	before->next = t;
}

void timer_cancel(struct loop *l, struct timer *t)
{
	loop_assert(l);
	if (t->is_set)
		timer_unlink(t);
}

static bool timer_is_due(const struct loop *l)
{
	return l->timers.next != &l->timers && l->timers.next->when_ns <= l->now_ns;
}

/* Those that are due now; what they set for the same moment waits for the next turn. */
static bool timers_run(struct loop *l)
{
	struct timer due, *last = l->timers.prev;

	if (!timer_is_due(l))
		return false;
	while (last->when_ns > l->now_ns)
		last = last->prev;
	due.next = l->timers.next;
	due.prev = last;
	l->timers.next = last->next;
	last->next->prev = &l->timers;
	due.next->prev = &due;
	last->next = &due;
	while (due.next != &due) {
		struct timer *t = due.next;

		timer_unlink(t);
		t->fn(t);
	}
	return true;
}

/* ---- the turn ---- */

static bool deferred_run(struct loop *l)
{
	struct task *t;
	unsigned n;

	for (n = 0; n < TURN_TASKS_MAX && (t = task_queue_pop(&l->deferred)); n++)
		t->fn(t);
	return n > 0;
}

static bool turn_end_run(struct loop *l)
{
	struct task *t = l->turn_end.head;

	if (!t)
		return false;
	/* What they add themselves belongs to the next turn. */
	task_queue_init(&l->turn_end);
	while (t) {
		struct task *next = t->next;

		t->fn(t);
		t = next;
	}
	return true;
}

/* Until when the loop may sleep: 0 for not at all. Sets is_sleeping first and looks second, as the
 * head says. */
static uint64_t sleep_prepare(struct loop *l)
{
	if (l->deferred.head || l->turn_end.head || timer_is_due(l))
		return 0;
	atomic_store(&l->is_sleeping, true);
	if (atomic_load(&l->inbox) || atomic_load(&l->is_stopped)) {
		atomic_store_explicit(&l->is_sleeping, false, memory_order_relaxed);
		return 0;
	}
	return l->timers.next != &l->timers ? l->timers.next->when_ns : UINT64_MAX;
}

void loop_awake(struct loop *l)
{
	atomic_store_explicit(&l->is_sleeping, false, memory_order_relaxed);
	l->now_ns = l->ops->clock(l);
}

bool loop_turn(struct loop *l, bool wait)
{
	bool is_owner = loop_try_adopt(l), did;
	uint64_t ended = l->ended;

	assert(is_owner);
	assert(!l->is_turning);
	l->is_turning = true;
	current = l;
	l->ops->reap(l, wait ? sleep_prepare(l) : 0);
	did = l->ended != ended;
	inbox_take(l);
	did |= timers_run(l);
	did |= deferred_run(l);
	did |= turn_end_run(l);
	loop_stat_add(&l->stats.turns, 1);
	l->is_turning = false;
	return did;
}

void loop_run(struct loop *l)
{
	while (!atomic_load(&l->is_stopped))
		loop_turn(l, true);
	atomic_store(&l->is_stopped, false);
}

/* ---- I/O ---- */

void loop_submit(struct loop *l, struct io *io)
{
	loop_assert(l);
	assert(io->op < IO_OPS);
	assert(io->op > IO_WRITE || (io->iovcnt >= 1 && io->iovcnt <= IOV_MAX));
	l->in_flight++;
	loop_stat_add(&l->stats.ios[io->op], 1);
	l->ops->submit(l, io);
}

void loop_cancel(struct loop *l, struct io *io)
{
	loop_assert(l);
	l->ops->cancel(l, io);
}

void loop_io_end(struct loop *l, struct io *io, int res)
{
	assert(l->in_flight > 0);
	l->in_flight--;
	l->ended++;
	io->done(io, res);
}

void loop_io_event(struct loop *l, struct io *io)
{
	assert(io->op == IO_EVENT);
	l->ended++;
	io->done(io, 1);
}

int loop_fd_register(struct loop *l, int fd)
{
	loop_assert(l);
	return l->ops->fd_register ? l->ops->fd_register(l, fd) : -1;
}

void loop_fd_unregister(struct loop *l, int slot)
{
	loop_assert(l);
	if (slot >= 0)
		l->ops->fd_unregister(l, slot);
}

static void io_wait_done(struct io *io, int res)
{
	struct fiber *f = io->waiter;

	io->res = res;
	io->waiter = NULL;
	fiber_wake(f);
}

int loop_io_wait(struct loop *l, struct io *io)
{
	io->done = io_wait_done;
	io->waiter = fiber_self();
	assert(io->waiter);
	loop_submit(l, io);
	while (io->waiter)
		fiber_park();
	return io->res;
}

void loop_get_stats(const struct loop *l, struct loop_stats *ret)
{
	const uint64_t *from = (const uint64_t *)&l->stats;
	uint64_t *to = (uint64_t *)ret;

	_Static_assert(sizeof(*ret) % sizeof(*to) == 0, "nothing but counters");
	for (size_t i = 0; i < sizeof(*ret) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
