/* SPDX-License-Identifier: MIT */
/* blk/epoch.c - an advance: asking the loops, taking their answers (epoch.h).
 *
 * What several threads touch is under one lock, which is taken a few times an advance, never for a
 * request. Under it tasks are posted, and nothing else is called. Whoever is posted to is alive: a
 * waiter's loop runs the waiting fiber, and a loop that is asked keeps its last port open until it
 * has answered (epoch_close_wait()). */
#include "blk/epoch.h"

#include <pthread.h>
#include <stdatomic.h>

/* A fiber in epoch_wait(), on its stack. */
struct waiter {
	struct list_node link;
	struct loop *loop;
	struct fiber *fiber;
	struct task task;
	bool is_over;                   /* its loop's */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under the lock: */
static struct list_node loops = { &loops, &loops };             /* struct epoch_loop */
static struct list_node current = { &current, &current };       /* struct waiter: of this advance */
static struct list_node next = { &next, &next };                /* of the one after it */
static unsigned nasked;                                         /* loops that have not answered */

static struct epoch_loop by_loop[LOOPS_MAX];    /* by loop_id(): the owners' */
static atomic_bool broken;

void epoch_break(bool is_broken)
{
	atomic_store(&broken, is_broken);
}

/* ---- the advance; the lock is held ---- */

static void over(struct task *t)
{
	struct waiter *w = container_of(t, struct waiter, task);

	w->is_over = true;
	fiber_wake(w->fiber);
}

static void wake_all(struct list_node *waiters)
{
	struct list_node *n;

	while ((n = list_pop(waiters))) {
		struct waiter *w = list_entry(n, struct waiter, link);

		loop_post(w->loop, &w->task);
	}
}

static void asked(struct task *t);

static void ask_all(void)
{
	list_for_each(n, &loops) {
		struct epoch_loop *el = list_entry(n, struct epoch_loop, link);

		assert(!el->is_asked);
		el->is_asked = true;
		nasked++;
		el->task.fn = asked;
		loop_post(el->loop, &el->task);
	}
}

/* Starts an advance for those who wait for the next one, where none is under way. */
static void advance(void)
{
	if (nasked || list_is_empty(&next))
		return;
	ask_all();
	/* Without a port anywhere there is nothing to wait for. */
	if (!nasked) {
		wake_all(&next);
		return;
	}
	while (!list_is_empty(&next))
		list_add_tail(&current, list_pop(&next));
}

/* ---- on the loop that was asked ---- */

static void answer(struct task *t)
{
	struct epoch_loop *el = container_of(t, struct epoch_loop, task);

	pthread_mutex_lock(&lock);
	el->is_asked = false;
	if (!--nasked) {
		wake_all(&current);
		advance();
	}
	pthread_mutex_unlock(&lock);
	fiber_queue_wake(&el->closing);
}

static void asked(struct task *t)
{
	struct epoch_loop *el = container_of(t, struct epoch_loop, task);
	uint8_t old = el->now;

	assert(!el->count[!old] || atomic_load(&broken));
	el->now = !old;
	if (!el->count[old] || atomic_load(&broken))
		answer(t);
	else
		el->owes_answer = true;
}

/* The last request of the old epoch is counted down. Its done() has yet to run (P1), in this very
 * task or callback: so the answer is one of its own (P4). */
void epoch_answer_later(struct epoch_loop *el)
{
	el->owes_answer = false;
	el->task.fn = answer;
	loop_defer(el->loop, &el->task);
}

/* ---- in fibers ---- */

void epoch_wait(void)
{
	struct waiter w = { .loop = loop_current(), .fiber = fiber_self(), .task.fn = over };

	pthread_mutex_lock(&lock);
	list_add_tail(&next, &w.link);
	advance();
	pthread_mutex_unlock(&lock);
	while (!w.is_over)
		fiber_park();
}

struct epoch_loop *epoch_open(void)
{
	struct loop *l = loop_current();
	struct epoch_loop *el = &by_loop[loop_id(l)];

	if (el->nports++)
		return el;
	el->loop = l;
	pthread_mutex_lock(&lock);
	assert(!el->is_asked);
	list_add_tail(&loops, &el->link);
	pthread_mutex_unlock(&lock);
	return el;
}

/* The loop may go once its last port is closed; then no message may be under way to it. */
void epoch_close_wait(struct epoch_loop *el)
{
	bool is_done;

	loop_assert(el->loop);
	do {
		pthread_mutex_lock(&lock);
		is_done = el->nports > 1 || !el->is_asked;
		if (is_done && !--el->nports)
			list_del(&el->link);
		pthread_mutex_unlock(&lock);
		if (!is_done)
			fiber_queue_wait(&el->closing);
	} while (!is_done);
}
