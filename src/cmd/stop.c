/* SPDX-License-Identifier: MIT */
#include "cmd/stop.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>

#include "loop/loop.h"

static struct {
	atomic_bool is_stopped;
	volatile sig_atomic_t signal;   /* the first one */
	_Atomic(struct loop *) loop;    /* NULL: nobody watches */
	struct task task;
	struct timer timer;             /* the end of the grace */
	void (*give_up)(void *arg);
	void *arg;
} stop;

/* loop_post() is a compare-and-swap and a write(), both of which a handler may do. */
static void on_signal(int sig)
{
	struct loop *l = atomic_load(&stop.loop);
	int saved = errno;

	if (atomic_load(&stop.is_stopped)) {
		signal(sig, SIG_DFL);
		raise(sig);             /* when this returns */
		return;
	}
	stop.signal = sig;
	atomic_store(&stop.is_stopped, true);
	if (l)
		loop_post(l, &stop.task);
	errno = saved;
}

static void late(struct timer *t)
{
	stop.give_up(stop.arg);
	stop_end();
}

static void stopped(struct task *t)
{
	struct loop *l = loop_current();

	timer_set(l, &stop.timer, loop_now(l) + STOP_GRACE_NS);
}

const atomic_bool *stop_watch(struct loop *l, void (*give_up)(void *arg), void *arg)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction sa = { .sa_handler = on_signal }, old;

	/* One handler at a time: what came first is the first. */
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&sa.sa_mask, signals[i]);
	stop.give_up = give_up;
	stop.arg = arg;
	stop.task.fn = stopped;
	stop.timer.fn = late;
	atomic_store(&stop.loop, l);
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		if (!sigaction(signals[i], NULL, &old) && old.sa_handler == SIG_DFL)
			sigaction(signals[i], &sa, NULL);
	return &stop.is_stopped;
}

void stop_unwatch(void)
{
	struct loop *l = atomic_exchange(&stop.loop, NULL);

	if (l && stop.timer.is_set)
		timer_cancel(l, &stop.timer);
}

void stop_end(void)
{
	if (!stop.signal)
		return;
	signal(stop.signal, SIG_DFL);
	raise(stop.signal);
}
