/* SPDX-License-Identifier: MIT */
#include "sim/world.h"

#include <assert.h>
#include <errno.h>

#include "loop/fiber.h"

/* Turns without anything happening, each of which lets time jump to the next timer. */
enum { IDLE_MAX = 20000 };

void world_init(struct world *w, unsigned nloops, uint64_t seed)
{
	*w = (struct world){ .nloops = nloops, .prng.state = seed };
	w->order = (enum world_order)prng_below(&w->prng, WORLD_ORDERS);
	list_init(&w->queue);
	for (unsigned i = 0; i < nloops; i++) {
		struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = prng_next(&w->prng) };
		int rc = loop_new(&o, &w->loops[i], NULL);

		assert(rc == 0);
	}
}

void world_fini(struct world *w)
{
	assert(!w->nqueued);
	for (unsigned i = 0; i < w->nloops; i++)
		loop_free(w->loops[i]);
}

void world_add(struct world *w, struct world_item *it)
{
	list_add_tail(&w->queue, &it->link);
	w->nqueued++;
}

static void step(struct world *w)
{
	uint64_t n = prng_below(&w->prng, w->nqueued);
	struct list_node *at = w->queue.next;
	struct world_item *it;

	/* Not always: the last of all would else never come. */
	if (w->order == WORLD_OLDEST && prng_below(&w->prng, 8))
		n = 0;
	if (w->order == WORLD_NEWEST && prng_below(&w->prng, 8))
		n = w->nqueued - 1;
	while (n--)
		at = at->next;
	it = list_entry(at, struct world_item, link);
	list_del(at);
	w->nqueued--;
	if (!it->step(it))
		world_add(w, it);
}

struct call {
	struct task task;
	struct loop *loop;
	int (*fn)(void *arg);
	void *arg;
	int res;
	bool is_done;
};

static void call_body(struct task *t)
{
	struct call *c = container_of(t, struct call, task);

	c->res = c->fn(c->arg);
	c->is_done = true;
}

static void call_arrive(struct task *t)
{
	struct call *c = container_of(t, struct call, task);

	t->fn = call_body;
	fiber_start(c->loop, t);
}

/* Nothing happens now: lets time pass. */
static void pass_time(struct world *w)
{
	for (unsigned i = 0; i < w->nloops; i++)
		loop_turn(w->loops[i], true);
}

int world_call(struct world *w, unsigned i, int (*fn)(void *arg), void *arg)
{
	struct call c = { .task.fn = call_arrive, .loop = w->loops[i], .fn = fn, .arg = arg };
	unsigned idle = 0;

	loop_post(c.loop, &c.task);
	while (!c.is_done) {
		bool did = false;

		for (unsigned l = 0; l < w->nloops; l++)
			did |= loop_turn(w->loops[l], false);
		if (did || w->nqueued)
			idle = 0;
		if (w->nqueued && (!did || !prng_below(&w->prng, 4)))
			step(w);
		else if (!did && !c.is_done)
			pass_time(w);
		if (++idle > IDLE_MAX)
			return -EDEADLK;
	}
	return c.res;
}

struct start {
	struct task task;
	struct loop *loop;
	struct task *what;
	struct fiber *waiter;
	bool is_done;
};

static void start_there(struct task *t)
{
	struct start *s = container_of(t, struct start, task);

	fiber_start(s->loop, s->what);
	s->is_done = true;
	fiber_wake(s->waiter);
}

void world_start(struct world *w, unsigned i, struct task *t)
{
	struct start s = { .task.fn = start_there, .loop = w->loops[i], .what = t,
			   .waiter = fiber_self() };

	/* One thread runs all loops, so that their fibers may be woken from any of them. */
	loop_post(s.loop, &s.task);
	while (!s.is_done)
		fiber_park();
}
