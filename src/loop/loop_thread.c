/* SPDX-License-Identifier: MIT */
#include "loop/loop_thread.h"

#include <stdio.h>

#include "base/bits.h"
#include "base/err.h"

static void loop_started(struct task *t)
{
	sem_post(&container_of(t, struct loop_thread, started)->is_running);
}

static void *run(void *arg)
{
	struct loop_thread *t = arg;

	pthread_setname_np(pthread_self(), t->name);
	loop_run(t->loop);
	return NULL;
}

int loop_thread_start(struct loop_thread *t, struct loop *l, const char *name, struct err *err)
{
	int rc;

	*t = (struct loop_thread){ .loop = l, .started.fn = loop_started };
	snprintf(t->name, sizeof(t->name), "%s", name);
	sem_init(&t->is_running, 0, 0);
	/* Posted first: it runs on the new thread, so that nobody else ever becomes the owner. */
	loop_post(l, &t->started);
	rc = pthread_create(&t->thread, NULL, run, t);
	if (rc)
		return err_set_errno(err, rc, "cannot start a thread");
	t->has_thread = true;
	while (sem_wait(&t->is_running) < 0)
		continue;               /* interrupted */
	return 0;
}

void loop_thread_stop(struct loop_thread *t)
{
	if (!t->loop)
		return;
	if (t->has_thread) {
		loop_stop(t->loop);
		pthread_join(t->thread, NULL);
	}
	sem_destroy(&t->is_running);
	loop_free(t->loop);
	t->loop = NULL;
}
