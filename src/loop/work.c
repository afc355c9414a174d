/* SPDX-License-Identifier: MIT */
/* loop/work.c - the worker pool.
 *
 * One queue, one lock. Idle workers stand on a stack, each with a condition of its own: a job
 * wakes the one that slept last, whose cache is warm, and those below it get to the end of their
 * idle time. A job that finds nobody idle starts a worker, up to the limit.
 *
 * An ending worker joins the one that ended before it and leaves itself to the next: no thread
 * is detached, and none is left when workers_free() returns.
 *
 * Invariants:
 *	W1  jobs are taken in the order of workers_submit(); no job waits while a worker is idle and
 *	    has not been woken;
 *	W2  fn() runs once on a worker, then done() once on the job's loop, never inside the call
 *	    that submitted it; if no worker can be started, fn() runs as a task of the loop;
 *	W3  a job is not touched by the pool after its end was posted;
 *	W4  workers run no signal handlers. */
#include "loop/work.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "loop/loop_impl.h"

struct workers {
	pthread_mutex_t lock;           /* everything below, in all threads */
	pthread_cond_t all_ended;
	struct task *head, **tail;      /* of struct work */
	struct list_node idle;          /* of struct worker; who slept last is first */
	unsigned limit;
	unsigned alive;
	unsigned idle_ms;
	bool is_closing;
	bool has_ended;
	pthread_t ended;                /* not yet joined, if has_ended */
};

/* On its thread's stack. */
struct worker {
	struct list_node link;
	pthread_cond_t wake;
	bool is_woken;                  /* and no longer in the idle stack */
};

static unsigned processors(void)
{
	cpu_set_t set;
	long n;

	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		n = CPU_COUNT(&set);
	else
		n = sysconf(_SC_NPROCESSORS_ONLN);      /* more than a cpu_set_t holds */
	return (unsigned)MIN(MAX(n, 2L), (long)WORKERS_MAX);
}

static int cond_init_monotonic(pthread_cond_t *cond)
{
	pthread_condattr_t attr;
	int rc = pthread_condattr_init(&attr);

	if (rc)
		return -rc;
	rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (rc == 0)
		rc = pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
	return -rc;
}

int workers_new(unsigned threads, struct workers **ret, struct err *err)
{
	struct workers *ws;
	int rc;

	if (threads > WORKERS_MAX)
		return err_set(err, EINVAL, "%u worker threads: at most %d are possible", threads,
			       WORKERS_MAX);
	ws = calloc(1, sizeof(*ws));
	if (!ws)
		return err_set_errno(err, ENOMEM, "cannot make the worker pool");
	rc = pthread_mutex_init(&ws->lock, NULL);
	if (rc)
		goto fail;
	rc = pthread_cond_init(&ws->all_ended, NULL);
	if (rc) {
		pthread_mutex_destroy(&ws->lock);
		goto fail;
	}
	ws->tail = &ws->head;
	list_init(&ws->idle);
	ws->limit = threads ? threads : processors();
	ws->idle_ms = WORKERS_IDLE_MS;
	*ret = ws;
	return 0;
fail:
	free(ws);
	return err_set_errno(err, rc, "cannot make the worker pool");
}

void workers_raise(struct workers *ws, unsigned threads)
{
	pthread_mutex_lock(&ws->lock);
	ws->limit = MAX(ws->limit, threads);
	pthread_mutex_unlock(&ws->lock);
}

void workers_set_limit(struct workers *ws, unsigned threads)
{
	pthread_mutex_lock(&ws->lock);
	ws->limit = threads;
	pthread_mutex_unlock(&ws->lock);
}

void workers_set_idle(struct workers *ws, unsigned ms)
{
	pthread_mutex_lock(&ws->lock);
	ws->idle_ms = ms;
	pthread_mutex_unlock(&ws->lock);
}

unsigned workers_alive(struct workers *ws)
{
	unsigned n;

	pthread_mutex_lock(&ws->lock);
	n = ws->alive;
	pthread_mutex_unlock(&ws->lock);
	return n;
}

/* ---- a worker ---- */

/* The next four run with the lock held. */

static void wake_one(struct workers *ws)
{
	struct list_node *n = list_pop(&ws->idle);
	struct worker *wk = list_entry(n, struct worker, link);

	wk->is_woken = true;
	/* With the lock held: without it, @wk may have run, ended and be gone. */
	pthread_cond_signal(&wk->wake);
}

/* False when the idle time is over. */
static bool wait_for_job(struct workers *ws, struct worker *wk)
{
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ws->idle_ms / 1000;
	until.tv_nsec += (long)(ws->idle_ms % 1000) * (long)NS_PER_MS;
	if (until.tv_nsec >= (long)NS_PER_SEC) {
		until.tv_sec++;
		until.tv_nsec -= (long)NS_PER_SEC;
	}
	wk->is_woken = false;
	list_add_head(&ws->idle, &wk->link);
	while (!wk->is_woken && rc == 0)
		rc = pthread_cond_timedwait(&wk->wake, &ws->lock, &until);
	if (wk->is_woken)
		return true;
	list_del(&wk->link);
	return false;
}

static struct work *take_job(struct workers *ws)
{
	struct task *t = ws->head;

	if (!t)
		return NULL;
	ws->head = t->next;
	if (!ws->head)
		ws->tail = &ws->head;
	return container_of(t, struct work, task);
}

static void run_jobs(struct workers *ws, struct worker *wk)
{
	struct work *w;

	for (;;) {
		while ((w = take_job(ws))) {
			pthread_mutex_unlock(&ws->lock);
			w->fn(w);
			loop_post(w->loop, &w->task);
			pthread_mutex_lock(&ws->lock);
		}
		if (ws->is_closing || !wait_for_job(ws, wk))
			return;
	}
}

static void *worker_main(void *arg)
{
	struct workers *ws = arg;
	struct worker wk = { .is_woken = false };
	bool has_before;
	pthread_t before;
	int rc;

	pthread_setname_np(pthread_self(), "byre-work");
	rc = cond_init_monotonic(&wk.wake);
	assert(rc == 0);                /* allocates nothing with the C libraries we know */
	pthread_mutex_lock(&ws->lock);
	run_jobs(ws, &wk);
	has_before = ws->has_ended;
	before = ws->ended;
	ws->has_ended = true;
	ws->ended = pthread_self();
	if (--ws->alive == 0)
		pthread_cond_signal(&ws->all_ended);
	pthread_mutex_unlock(&ws->lock);
	pthread_cond_destroy(&wk.wake);
	if (has_before)
		pthread_join(before, NULL);
	return NULL;
}

void workers_free(struct workers *ws)
{
	if (!ws)
		return;
	pthread_mutex_lock(&ws->lock);
	ws->is_closing = true;
	while (!list_is_empty(&ws->idle))
		wake_one(ws);
	while (ws->alive)
		pthread_cond_wait(&ws->all_ended, &ws->lock);
	pthread_mutex_unlock(&ws->lock);
	if (ws->has_ended)
		pthread_join(ws->ended, NULL);
	pthread_cond_destroy(&ws->all_ended);
	pthread_mutex_destroy(&ws->lock);
	free(ws);
}

/* ---- a job ---- */

/* On the loop: the job is over. */
static void job_ended(struct task *t)
{
	struct work *w = container_of(t, struct work, task);

	w->loop->in_flight--;
	w->done(w);
}

/* On the loop: there is no worker. */
static void run_here(struct task *t)
{
	struct work *w = container_of(t, struct work, task);

	w->fn(w);
	job_ended(t);
}

int thread_start(pthread_t *ret, void *(*fn)(void *arg), void *arg)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(ret, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}

/* With the lock held. */
static bool start_worker(struct workers *ws)
{
	pthread_t thread;

	if (thread_start(&thread, worker_main, ws))
		return false;
	ws->alive++;
	return true;
}

void workers_submit(struct workers *ws, struct work *w)
{
	bool is_served = true;

	w->task.fn = job_ended;
	w->loop->in_flight++;
	pthread_mutex_lock(&ws->lock);
	assert(!ws->is_closing);
	if (!list_is_empty(&ws->idle))
		wake_one(ws);
	else if (ws->alive < ws->limit)
		is_served = start_worker(ws) || ws->alive > 0;
	if (is_served) {
		w->task.next = NULL;
		*ws->tail = &w->task;
		ws->tail = &w->task.next;
	}
	pthread_mutex_unlock(&ws->lock);
	if (!is_served) {
		w->task.fn = run_here;
		loop_defer(w->loop, &w->task);
	}
}

void loop_work(struct loop *l, struct work *w)
{
	loop_assert(l);
	w->loop = l;
	if (!l->ops->work) {
		workers_submit(l->workers, w);
		return;
	}
	w->task.fn = job_ended;
	l->in_flight++;
	l->ops->work(l, w);
}

struct work_waiter {
	struct work work;
	void (*fn)(void *arg);
	void *arg;
	struct fiber *fiber;
	bool is_done;
};

static void waiter_fn(struct work *w)
{
	struct work_waiter *ww = container_of(w, struct work_waiter, work);

	ww->fn(ww->arg);
}

static void waiter_done(struct work *w)
{
	struct work_waiter *ww = container_of(w, struct work_waiter, work);

	ww->is_done = true;
	fiber_wake(ww->fiber);
}

void loop_work_wait(struct loop *l, void (*fn)(void *arg), void *arg)
{
	struct work_waiter ww = {
		.work = { .fn = waiter_fn, .done = waiter_done },
		.fn = fn, .arg = arg, .fiber = fiber_self(),
	};

	assert(ww.fiber);
	loop_work(l, &ww.work);
	while (!ww.is_done)
		fiber_park();
}
