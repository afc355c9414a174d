/* SPDX-License-Identifier: MIT */
/* bench/malloc/pattern.h - the ways in which programs use malloc, one function each.
 *
 * A pattern is a fixed amount of work, the same for every allocator: what its process costs is
 * the measure (cost.c), so there are no clocks in here. Nothing of the harness comes from malloc,
 * except what threads cost anyway. */
#ifndef BENCH_MALLOC_PATTERN_H
#define BENCH_MALLOC_PATTERN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
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

/* ---- threads and what they pass on (lane.c) ---- */

enum { LANE_SLOTS = 4096, LANES_MAX = 4, LINE = 64 };

struct sleeper {
	_Atomic uint32_t sleeps;
};

/* A thread that takes, from several lanes in turn. */
struct taker {
	struct lane *lanes[LANES_MAX];
	unsigned count, at;
	_Alignas(LINE) struct sleeper sleeper;
	_Atomic bool closed;
};

/* A ring from one thread to another. The first line is that of who puts, the second that of who
 * takes. */
struct lane {
	unsigned slots, batch;          /* powers of two; const */
	struct taker *taker;            /* const */
	_Alignas(LINE) _Atomic unsigned put;
	unsigned put_at;
	struct sleeper putter;
	_Alignas(LINE) _Atomic unsigned taken;
	unsigned taken_at;
	_Alignas(LINE) void *items[LANE_SLOTS];
};

/* Zeroed takers. All before the threads start; lanes_close() when all is put. */
void lane_init(struct lane *l, unsigned slots, unsigned batch, struct taker *taker);
/* Room for a batch, and then that it is filled. */
void **lane_room(struct lane *l);
void lane_put(struct lane *l);
/* A lane with a batch, which begins at lane_batch(); NULL: closed, and all is taken. Then that it
 * is emptied. */
struct lane *lane_next(struct taker *t);
void lane_taken(struct lane *l);
void lanes_close(struct taker *t);

static inline void **lane_batch(struct lane *l)
{
	return &l->items[l->taken_at % l->slots];
}

pthread_t thread_start(void *(*fn)(void *), void *arg);
void thread_join(pthread_t t);
/* The calling thread is to run on the @n-th of the processors that there are, counted round. */
void thread_place(unsigned n);

#endif
