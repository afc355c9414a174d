/* SPDX-License-Identifier: MIT */
/* loop/fiber.c - fibers: stacks, the switch, park and wake, gates, calls between loops.
 *
 * A stack is one mapping: a guard that faults when it overflows, then FIBER_STACK_BYTES, with the
 * struct fiber in its topmost bytes. Finished stacks are reused last in, first out, so that a
 * warm one comes first; FIBERS_IDLE_MAX are kept and the rest is unmapped.
 *
 * A loop switches only between its thread's own stack and a fiber, never from fiber to fiber: a
 * fiber that gives way returns to fiber_run(), below a task of the loop.
 *
 * fiber_start() queues the task, and one deferred task starts all that are queued: a fiber that
 * ends without waiting leaves its stack to the next one of the same turn. What finds no stack
 * stays in the queue until a fiber ends or RETRY_NS have passed.
 *
 * TSan needs a context a fiber, which is dear to make and to end. Under it a stack keeps its
 * own, and the next task goes on in fiber_main() where the last one ended.
 *
 * Invariants:
 *	F1  a fiber runs only below a task of its loop, not inside fiber_start() or fiber_wake();
 *	F2  a wake that comes before the park ends that park; wakes in between count as one;
 *	F3  a stack goes back to the pool only after its task's last instruction, and after it was
 *	    switched off;
 *	F4  tasks start in the order of fiber_start(); a gate keeps that order;
 *	F5  the memory of a call, a gate or a task is not touched after its last callback began. */
#include "loop/fiber.h"

#include <assert.h>
#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "loop/loop_impl.h"
#include "loop/sanitize.h"

enum {
	/* As large as the largest page of our machines, and than any frame: none steps over it. */
	GUARD_BYTES = 64 * 1024,
	STACK_BYTES = HAS_ASAN || HAS_TSAN ? FIBER_STACK_BYTES_SANITIZED : FIBER_STACK_BYTES,
	/* TSan has room for some 8000 contexts in the process. */
	LIVE_MAX = HAS_TSAN ? FIBERS_MAX / 8 : FIBERS_MAX,
	RETRY_NS = 10 * NS_PER_MS,
};

struct fiber {
	struct fiber *queue_next;       /* in a fiber_queue */
	bool is_queued;
	struct fibers *fs;
	struct task *start;             /* what it runs; NULL once it has ended */
	void *sp;                       /* while it is switched off */
	struct task go_on;              /* deferred: run it again */
	bool is_parked;                 /* waits for a wake */
	bool is_woken;                  /* a wake came: go_on is queued, or the next park returns */
	struct stack_mark mark;
	unsigned valgrind_id;
	struct fiber *next_idle;
};

/* The owner's alone. */
struct fibers {
	struct loop *loop;
	struct task_queue queue;        /* not yet started */
	struct task starter;
	bool is_starting;               /* starter is deferred */
	struct timer retry;
	unsigned live;                  /* started and not ended */
	struct fiber *idle;
	unsigned idle_count;
	void *main_sp;                  /* the thread's own stack, while a fiber runs */
	struct stack_mark main_mark;
};

void fiber_switch(void **save, void *to);
void *fiber_prepare(void *top, struct fiber *f);
_Noreturn void fiber_main(struct fiber *f);

/* A fiber never changes threads, so the address of this is safe to keep over a switch. */
static _Thread_local struct fiber *running;

static void queue_init(struct task **head, struct task ***tail)
{
	*head = NULL;
	*tail = head;
}

static void queue_push(struct task ***tail, struct task *t)
{
	t->next = NULL;
	**tail = t;
	*tail = &t->next;
}

static struct task *queue_pop(struct task **head, struct task ***tail)
{
	struct task *t = *head;

	*head = t->next;
	if (!*head)
		*tail = head;
	return t;
}

/* ---- stacks ---- */

static char *stack_low(struct fiber *f)
{
	return (char *)(f + 1) - STACK_BYTES;
}

static struct fiber *stack_map(struct fibers *fs)
{
	char *map = mmap(NULL, GUARD_BYTES + STACK_BYTES, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	struct fiber *f;

	if (map == MAP_FAILED)
		return NULL;
	if (mprotect(map + GUARD_BYTES, STACK_BYTES, PROT_READ | PROT_WRITE) < 0) {
		munmap(map, GUARD_BYTES + STACK_BYTES);
		return NULL;
	}
	f = (struct fiber *)(void *)(map + GUARD_BYTES + STACK_BYTES) - 1;
	f->fs = fs;
	f->mark.lo = stack_low(f);
	f->mark.bytes = STACK_BYTES - sizeof(*f);
	f->valgrind_id = valgrind_stack_register(stack_low(f), f);
	return f;
}

static void stack_unmap(struct fiber *f)
{
#if HAS_TSAN
	if (f->mark.tsan)
		__tsan_destroy_fiber(f->mark.tsan);
#endif
	valgrind_stack_deregister(f->valgrind_id);
	munmap(stack_low(f) - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
}

static struct fiber *stack_get(struct fibers *fs)
{
	struct fiber *f = fs->idle;

	if (!f)
		return stack_map(fs);
	fs->idle = f->next_idle;
	fs->idle_count--;
	return f;
}

static void stack_put(struct fiber *f)
{
	struct fibers *fs = f->fs;

	/* Frames that never return leave their red zones. */
	memory_unpoison(stack_low(f), STACK_BYTES - sizeof(*f));
	if (fs->idle_count == FIBERS_IDLE_MAX) {
		stack_unmap(f);
		return;
	}
	f->next_idle = fs->idle;
	fs->idle = f;
	fs->idle_count++;
}

/* ---- the switch ---- */

static void start_queued(struct fibers *fs)
{
	if (fs->is_starting || !fs->queue.head)
		return;
	fs->is_starting = true;
	loop_defer(fs->loop, &fs->starter);
}

static void fiber_end(struct fiber *f)
{
	struct fibers *fs = f->fs;

	fs->live--;
	stack_put(f);
	start_queued(fs);
}

/* Runs @f, on the thread's own stack, until it gives way. */
static void fiber_run(struct fiber *f)
{
	struct fibers *fs = f->fs;

	assert(!running);
	running = f;
#if HAS_TSAN
	fs->main_mark.tsan = __tsan_get_current_fiber();
#endif
	stack_leave(&fs->main_mark, &f->mark, false);
	fiber_switch(&fs->main_sp, f->sp);
	stack_enter(&fs->main_mark, &f->mark);
	running = NULL;
	if (!f->start)
		fiber_end(f);
}

/* Goes back to fiber_run(), until that is called again. */
static void fiber_leave(struct fiber *f)
{
	struct fibers *fs = f->fs;

	stack_leave(&f->mark, &fs->main_mark, !f->start);
	fiber_switch(&f->sp, fs->main_sp);
	stack_enter(&f->mark, &fs->main_mark);
}

/* The first function on a fiber's stack; called by fiber_switch.S. */
_Noreturn void fiber_main(struct fiber *f)
{
	stack_enter(&f->mark, &f->fs->main_mark);
	do {
		struct task *t = f->start;

		t->fn(t);
		f->start = NULL;
		fiber_leave(f);
	} while (HAS_TSAN);             /* else nobody runs it again */
	abort();
}

static void go_on(struct task *t)
{
	struct fiber *f = container_of(t, struct fiber, go_on);

	if (f->is_parked) {
		f->is_parked = false;
		f->is_woken = false;
	}
	fiber_run(f);
}

/* ---- starting ---- */

/* Starts the task at the head of the queue. False if there is no stack for it. */
static bool start_one(struct fibers *fs)
{
	struct fiber *f = fs->live < LIVE_MAX ? stack_get(fs) : NULL;
	struct loop_stats *stats = &fs->loop->stats;

	if (!f)
		return false;
	f->start = queue_pop(&fs->queue.head, &fs->queue.tail);
	f->go_on.fn = go_on;
	f->is_parked = false;
	f->is_woken = false;
	f->mark.fake = NULL;
	if (!HAS_TSAN || !f->mark.tsan)
		f->sp = fiber_prepare((void *)align_down((uintptr_t)f, 16), f);
#if HAS_TSAN
	if (!f->mark.tsan)
		f->mark.tsan = __tsan_create_fiber(0);
#endif
	fs->live++;
	loop_stat_add(&stats->fibers_started, 1);
	if (fs->live > stats->fibers_peak)
		loop_stat_add(&stats->fibers_peak, 1);
	fiber_run(f);
	return true;
}

/* Starts what is queued now; what those start in their turn comes after the loop's other tasks. */
static void start_all(struct task *t)
{
	struct fibers *fs = container_of(t, struct fibers, starter);
	struct task **const end = fs->queue.tail;
	bool is_last;

	do {
		is_last = &fs->queue.head->next == end;
		if (!start_one(fs)) {
			fs->is_starting = false;
			timer_set(fs->loop, &fs->retry, loop_now(fs->loop) + RETRY_NS);
			return;
		}
	} while (!is_last);
	fs->is_starting = false;
	timer_cancel(fs->loop, &fs->retry);
	start_queued(fs);
}

static void retry_start(struct timer *t)
{
	start_queued(container_of(t, struct fibers, retry));
}

int fibers_new(struct loop *l)
{
	struct fibers *fs = calloc(1, sizeof(*fs));

	if (!fs)
		return -ENOMEM;
	fs->loop = l;
	queue_init(&fs->queue.head, &fs->queue.tail);
	fs->starter.fn = start_all;
	fs->retry.fn = retry_start;
	l->fibers = fs;
	return 0;
}

void fibers_free(struct loop *l)
{
	struct fibers *fs = l->fibers;

	if (!fs)
		return;
	assert(!fs->live && !fs->queue.head);
	while (fs->idle)
		stack_unmap(stack_get(fs));
	free(fs);
	l->fibers = NULL;
}

void fiber_start(struct loop *l, struct task *t)
{
	loop_assert(l);
	queue_push(&l->fibers->queue.tail, t);
	start_queued(l->fibers);
}

/* ---- in a fiber ---- */

struct fiber *fiber_self(void)
{
	return running;
}

void fiber_park(void)
{
	struct fiber *f = running;

	assert(f);
	if (f->is_woken) {
		f->is_woken = false;
		return;
	}
	f->is_parked = true;
	fiber_leave(f);
}

void fiber_wake(struct fiber *f)
{
	loop_assert(f->fs->loop);
	assert(f->start);               /* or it has ended */
	if (f->is_woken)
		return;
	f->is_woken = true;
	if (f->is_parked)
		loop_defer(f->fs->loop, &f->go_on);
}

void fiber_yield_wait(void)
{
	struct fiber *f = running;

	assert(f);
	loop_defer(f->fs->loop, &f->go_on);
	fiber_leave(f);
}

struct sleeper {
	struct timer timer;
	struct fiber *fiber;
	bool is_over;
};

static void sleep_over(struct timer *t)
{
	struct sleeper *s = container_of(t, struct sleeper, timer);

	s->is_over = true;
	fiber_wake(s->fiber);
}

void fiber_sleep_wait(uint64_t ns)
{
	struct sleeper s = { .timer.fn = sleep_over, .fiber = running };
	struct loop *l;

	assert(s.fiber);
	l = s.fiber->fs->loop;
	timer_set(l, &s.timer, loop_now(l) + ns);
	while (!s.is_over)
		fiber_park();
}

/* ---- gates ---- */

void fiber_queue_wait(struct fiber_queue *q)
{
	struct fiber *f = fiber_self();

	f->is_queued = true;
	f->queue_next = NULL;
	if (q->first)
		q->last->queue_next = f;
	else
		q->first = f;
	q->last = f;
	while (f->is_queued)
		fiber_park();
}

void fiber_queue_wake(struct fiber_queue *q)
{
	struct fiber *f = q->first;

	q->first = NULL;
	while (f) {
		struct fiber *next = f->queue_next;

		f->is_queued = false;
		fiber_wake(f);
		f = next;
	}
}

void fiber_gate_init(struct fiber_gate *g, unsigned limit)
{
	assert(limit > 0);
	g->limit = limit;
	g->running = 0;
	queue_init(&g->head, &g->tail);
}

void fiber_gate_start(struct loop *l, struct fiber_gate *g, struct task *t)
{
	if (g->running == g->limit) {
		queue_push(&g->tail, t);
		return;
	}
	g->running++;
	fiber_start(l, t);
}

void fiber_gate_leave(struct loop *l, struct fiber_gate *g)
{
	assert(g->running > 0);
	if (g->head)
		fiber_start(l, queue_pop(&g->head, &g->tail));
	else
		g->running--;
}

/* ---- calls ---- */

/* A call goes to @to, runs there in a fiber, and its end comes back to @back or, where the caller's
 * thread has no loop, by the semaphore. On the caller's stack. */
struct call {
	struct task task;               /* where it is: arrive, body, ended */
	int (*fn)(void *arg);
	void *arg;
	int res;
	struct loop *to, *back;
	struct fiber *waiter;           /* NULL: @back is turned by loop_call() */
	bool is_done;                   /* @back's */
	struct timer no_sleep;          /* keeps that last turn from sleeping */
	sem_t sem;
};

static void turn_again(struct timer *t)
{
}

static void call_ended(struct task *t)
{
	struct call *c = container_of(t, struct call, task);

	c->is_done = true;
	if (c->waiter)
		fiber_wake(c->waiter);
	else
		timer_set(c->back, &c->no_sleep, 0);
}

static void call_body(struct task *t)
{
	struct call *c = container_of(t, struct call, task);

	c->res = c->fn(c->arg);
	c->task.fn = call_ended;
	if (c->back == c->to)
		call_ended(&c->task);
	else if (c->back)
		loop_post(c->back, &c->task);
	else
		sem_post(&c->sem);
}

static void call_arrive(struct task *t)
{
	struct call *c = container_of(t, struct call, task);

	c->task.fn = call_body;
	fiber_start(c->to, &c->task);
}

static void call_send(struct call *c)
{
	c->task.fn = call_arrive;
	if (c->back == c->to)
		call_arrive(&c->task);
	else
		loop_post(c->to, &c->task);
}

/* The calling thread has no loop to turn. */
static void call_blocking(struct call *c)
{
	int rc = sem_init(&c->sem, 0, 0);

	assert(rc == 0);                /* fails only for values out of range */
	call_send(c);
	do {
		rc = sem_wait(&c->sem);
	} while (rc < 0 && errno == EINTR);
	assert(rc == 0);
	sem_destroy(&c->sem);
}

int loop_call(struct loop *l, int (*fn)(void *arg), void *arg)
{
	struct call c = { .fn = fn, .arg = arg, .to = l, .no_sleep.fn = turn_again };

	assert(!running);               /* in a fiber: loop_call_wait() */
	/* A thread that owns another loop turns that one, which @fn may need. */
	c.back = loop_try_adopt(l) ? l : loop_current();
	if (!c.back) {
		call_blocking(&c);
		return c.res;
	}
	call_send(&c);
	while (!c.is_done)
		loop_turn(c.back, true);
	timer_cancel(c.back, &c.no_sleep);
	return c.res;
}

int loop_call_wait(struct loop *l, int (*fn)(void *arg), void *arg)
{
	struct call c = { .fn = fn, .arg = arg, .to = l, .waiter = running };

	assert(c.waiter);
	c.back = c.waiter->fs->loop;
	call_send(&c);
	while (!c.is_done)
		fiber_park();
	return c.res;
}
