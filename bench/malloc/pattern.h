/* SPDX-License-Identifier: MIT */
/* bench/malloc/pattern.h - the ways in which programs use malloc, one function each.
 *
 * A pattern is a fixed amount of work, the same for every allocator: what its process costs is
 * the measure (cost.c), so there are no clocks in here. Nothing of the harness comes from malloc,
 * except what threads cost anyway. */
#ifndef BENCH_MALLOC_PATTERN_H
#define BENCH_MALLOC_PATTERN_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/prng.h"

struct pattern {
	const char *name;
	const char *group;              /* local, cross, io or threads: see compare.py's targets */
	void (*run)(uint64_t rounds);
	uint64_t rounds;
	const char *what;
};

extern const struct pattern patterns_alone[];   /* one thread; ended by a name of NULL */
extern const struct pattern patterns_shared[];  /* several */

enum { PAGE = 4096, MIXED_SIZES = 1024 };

/* Sizes from 16 bytes to 4 KiB, each doubling as often as every other. */
extern uint16_t mixed_sizes[MIXED_SIZES];

static inline _Noreturn void die(const char *what)
{
	perror(what);
	exit(1);
}

/* A block whose first word is written, as every user of memory does. */
static inline void *get(size_t size)
{
	uint64_t *p = malloc(size);

	if (!p)
		die("patterns: malloc");
	*p = size;
	return p;
}

static inline size_t mixed_size(uint64_t random)
{
	return mixed_sizes[random % MIXED_SIZES];
}

/* A word of every page, so that the memory is there. */
static inline void touch_pages(char *p, size_t size)
{
	for (size_t i = 0; i < size; i += PAGE)
		*(volatile uint64_t *)(void *)(p + i) = i;
}

/* ---- threads and what they pass on (queue.c) ---- */

enum { BATCH_MAX = 1024, BATCHES = 16 };

struct batch {
	unsigned count;
	void *items[BATCH_MAX];
	struct batch *next;
};

/* Batches go round: from idle to whoever fills them, from full to whoever empties them. */
struct queue {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct batch *idle, *full, **full_end;
	struct batch batches[BATCHES];
	bool closed;
};

void queue_init(struct queue *q, unsigned batches);
struct batch *queue_take_idle(struct queue *q);
void queue_put_full(struct queue *q, struct batch *b);
struct batch *queue_take_full(struct queue *q);         /* NULL: closed, and empty */
void queue_put_idle(struct queue *q, struct batch *b);
void queue_close(struct queue *q);

pthread_t thread_start(void *(*fn)(void *), void *arg);
void thread_join(pthread_t t);

#endif
