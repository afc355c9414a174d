/* SPDX-License-Identifier: MIT */
/* loop/work.h - the worker pool: CPU work and system calls that block.
 *
 * One pool a process, shared by all loops. Workers are started when first needed, up to the limit,
 * and end after being idle for WORKERS_IDLE_MS. Jobs run in the order of their submission;
 * their ends are posted to the loop that sent them. loop_sim runs jobs itself, in seeded order. */
#ifndef LOOP_WORK_H
#define LOOP_WORK_H

#include <pthread.h>

#include "loop/loop.h"

struct err;

enum { WORKERS_MAX = 64, WORKERS_IDLE_MS = 10000 };

struct work {
	void (*fn)(struct work *w);     /* runs on a worker: may block, must not touch the loop */
	void (*done)(struct work *w);   /* runs on the loop that submitted it */
	struct loop *loop;              /* the pool's */
	struct task task;               /* the pool's */
};

/* @threads: 0 for the number of processors the process may use (at least 2). */
int workers_new(unsigned threads, struct workers **ret, struct err *err);
/* Waits for all jobs. NULL is fine. */
void workers_free(struct workers *ws);

/* Starts a thread to which no signal comes. 0 or an errno, as pthread_create(). Any thread. */
int thread_start(pthread_t *ret, void *(*fn)(void *arg), void *arg);

/* Owner of @l only. */
void loop_work(struct loop *l, struct work *w);
/* In a fiber: runs fn(arg) on a worker and waits for it. */
void loop_work_wait(struct loop *l, void (*fn)(void *arg), void *arg);

#endif
