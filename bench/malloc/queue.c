/* SPDX-License-Identifier: MIT */
/* bench/malloc/queue.c - threads, and the queue through which they pass batches of pointers. One
 * lock a batch of hundreds: the queue should not be what is measured. */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "pattern.h"

void queue_init(struct queue *q, unsigned batches)
{
	memset(q, 0, offsetof(struct queue, batches));
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->changed, NULL);
	q->full_end = &q->full;
	q->closed = false;
	for (unsigned i = 0; i < batches; i++) {
		q->batches[i].next = q->idle;
		q->idle = &q->batches[i];
	}
}

struct batch *queue_take_idle(struct queue *q)
{
	struct batch *b;

	pthread_mutex_lock(&q->lock);
	while (!q->idle)
		pthread_cond_wait(&q->changed, &q->lock);
	b = q->idle;
	q->idle = b->next;
	pthread_mutex_unlock(&q->lock);
	b->count = 0;
	return b;
}

void queue_put_full(struct queue *q, struct batch *b)
{
	b->next = NULL;
	pthread_mutex_lock(&q->lock);
	*q->full_end = b;
	q->full_end = &b->next;
	pthread_cond_broadcast(&q->changed);
	pthread_mutex_unlock(&q->lock);
}

struct batch *queue_take_full(struct queue *q)
{
	struct batch *b;

	pthread_mutex_lock(&q->lock);
	while (!q->full && !q->closed)
		pthread_cond_wait(&q->changed, &q->lock);
	b = q->full;
	if (b) {
		q->full = b->next;
		if (!q->full)
			q->full_end = &q->full;
	}
	pthread_mutex_unlock(&q->lock);
	return b;
}

void queue_put_idle(struct queue *q, struct batch *b)
{
	pthread_mutex_lock(&q->lock);
	b->next = q->idle;
	q->idle = b;
	pthread_cond_broadcast(&q->changed);
	pthread_mutex_unlock(&q->lock);
}

void queue_close(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->closed = true;
	pthread_cond_broadcast(&q->changed);
	pthread_mutex_unlock(&q->lock);
}

pthread_t thread_start(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	int rc = pthread_create(&t, NULL, fn, arg);

	if (rc) {
		errno = rc;
		die("patterns: pthread_create");
	}
	return t;
}

void thread_join(pthread_t t)
{
	int rc = pthread_join(t, NULL);

	if (rc) {
		errno = rc;
		die("patterns: pthread_join");
	}
}
