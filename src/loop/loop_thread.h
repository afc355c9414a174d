/* SPDX-License-Identifier: MIT */
/* loop/loop_thread.h - a thread that does nothing but run a loop. */
#ifndef LOOP_LOOP_THREAD_H
#define LOOP_LOOP_THREAD_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>

#include "loop/loop.h"

struct loop_thread {
	struct loop *loop;
	pthread_t thread;
	sem_t is_running;
	struct task started;
	char name[16];                  /* the kernel's limit, with the zero */
	bool has_thread;
};

/* Runs @l, which nobody owns yet, in a new thread called @name. When it returns the thread is the
 * owner, so that loop_call() from elsewhere goes there. 0 or -errno with @err set. */
int loop_thread_start(struct loop_thread *t, struct loop *l, const char *name, struct err *err);
/* Stops the loop, ends the thread and frees the loop. A zeroed @t is fine. */
void loop_thread_stop(struct loop_thread *t);

#endif
