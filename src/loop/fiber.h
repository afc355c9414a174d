/* SPDX-License-Identifier: MIT */
/* loop/fiber.h - straight-line code that waits, on a small pooled stack.
 *
 * A fiber runs on its loop's thread and gives way only in calls whose names end in `_wait`, and in
 * fiber_park(). Nothing holds a lock over such a call. Stacks are FIBER_STACK_BYTES of which
 * only what is touched costs memory, with a guard page below; nothing large goes on them.
 *
 * Starting never fails: a task that finds no memory for a stack waits until one is free. Layers
 * that start fibers for requests bound their number with a struct fiber_gate of their own, so
 * that a fiber waiting for a lower layer never holds the stack which that layer needs.
 *
 * Switches are announced to ASan and TSan. */
#ifndef LOOP_FIBER_H
#define LOOP_FIBER_H

#include <stdbool.h>

#include "loop/loop.h"

struct fiber;

enum {
	FIBER_STACK_BYTES = 64 * 1024,
	FIBER_STACK_BYTES_SANITIZED = 256 * 1024,
	FIBERS_MAX = 8192,              /* a loop; the rest waits. An eighth under TSan */
	FIBERS_IDLE_MAX = 64,           /* stacks that a loop keeps for reuse */
};

/* Runs t->fn(t) in a fiber of @l, later in this turn (L1). Owner only. */
void fiber_start(struct loop *l, struct task *t);

/* The running fiber, or NULL outside of any. */
struct fiber *fiber_self(void);

/* Gives way until fiber_wake(); a wake that came first is remembered. Wakes may be spurious where
 * several things wake one fiber: loop on the condition. */
void fiber_park(void);
/* Lets @f go on, later in this turn. Its loop's thread only. */
void fiber_wake(struct fiber *f);
/* Goes to the end of the queue of runnable fibers. */
void fiber_yield_wait(void);
/* Sleeps @ns on the loop's clock. */
void fiber_sleep_wait(uint64_t ns);

/* Fibers of one loop that wait until something has changed, and then look again. A zeroed one is
 * empty. */
struct fiber_queue {
	struct fiber *first, *last;     /* last: where first is not NULL */
};

/* In a fiber: waits for the next fiber_queue_wake(). */
void fiber_queue_wait(struct fiber_queue *q);
/* Lets all go on that wait now. */
void fiber_queue_wake(struct fiber_queue *q);

/* At most @limit fibers at a time; the rest queue in order. Belongs to one loop. */
struct fiber_gate {
	unsigned limit;
	unsigned running;
	struct task *head, **tail;      /* waiting tasks */
};

void fiber_gate_init(struct fiber_gate *g, unsigned limit);
/* As fiber_start(), but through @g. The task's fn ends with fiber_gate_leave(). */
void fiber_gate_start(struct loop *l, struct fiber_gate *g, struct task *t);
void fiber_gate_leave(struct loop *l, struct fiber_gate *g);

/* From a thread that runs no loop (main): runs fn(arg) in a fiber of @l and waits for it. From
 * @l's own thread, or from a thread before any other runs @l, it turns @l until fn has returned. */
int loop_call(struct loop *l, int (*fn)(void *arg), void *arg);

/* In a fiber: runs fn(arg) in a fiber of @l (another loop or the same) and waits for it. */
int loop_call_wait(struct loop *l, int (*fn)(void *arg), void *arg);

#endif
