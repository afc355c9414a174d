/* SPDX-License-Identifier: MIT */
/* Things that requests use are taken out of use and killed after epoch_wait(): no request may see
 * one dead. On two simulated loops of one thread, where the order comes from a seed, and on two
 * threads; with ports that open and close, and with requests that go to the other loop and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "base/err.h"
#include "base/prng.h"
#include "blk/blk.h"
#include "blk/epoch.h"
#include "blk/port.h"
#include "loop/loop_thread.h"
#include "loop/work.h"

enum { LOOPS = 2, FEEDERS = 3, KILLERS = 2, IN_FLIGHT = 8, THINGS = 4096 };

/* What requests use. Plain memory: TSan sees a request that uses one while it is killed. */
struct thing {
	bool is_dead;
};

struct world {
	struct node node;
	struct loop *loops[LOOPS];
	_Atomic(struct thing *) thing;  /* what new requests use */
	struct thing things[THINGS];
	atomic_uint nthings;
	unsigned rounds;
	atomic_uint actors;             /* that have not ended */
	sem_t ended;
	atomic_uint seen_dead, requests, kills;
};

struct world_chan {
	struct chan ch;
	struct prng prng;
};

/* A request and what it uses. */
struct use {
	struct req req;
	const struct thing *thing;
	struct feeder *feeder;
	bool is_busy;
};

static struct world *world_of(const struct chan *ch)
{
	return container_of(ch->node, struct world, node);
}

/* ---- the node: answers some turns later, on its own loop or from the other one ---- */

static void answer_from_home(struct task *t)
{
	struct req *req = container_of(t, struct req, task);

	req_post_finish(req->ch, req, 0);
}

static void answer(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct world_chan *wc = container_of(req->ch, struct world_chan, ch);

	if (prng_below(&wc->prng, 4)) {
		loop_defer(req->ch->loop, t);
	} else if (prng_below(&wc->prng, 2)) {
		t->fn = answer_from_home;
		loop_post(req->ch->node->home, t);
	} else {
		req_complete(req, 0);
	}
}

static void submit(struct chan *ch, struct req *req)
{
	struct use *u = container_of(req, struct use, req);

	u->thing = atomic_load_explicit(&world_of(ch)->thing, memory_order_acquire);
	req->ch = ch;
	req->task.fn = answer;
	loop_defer(ch->loop, &req->task);
}

static void node_free(struct node *n)
{
}

static const struct node_ops ops = {
	.name = "world", .chan_size = sizeof(struct world_chan), .submit = submit,
	.free = node_free,
};

/* ---- actors: fibers ---- */

struct actor {
	struct task task;
	struct world *world;
	struct loop *loop;
	struct prng prng;
};

struct feeder {
	struct actor a;
	struct fiber *fiber;
	struct use uses[IN_FLIGHT];
};

static void actor_end(struct actor *a)
{
	struct world *w = a->world;

	if (atomic_fetch_sub(&w->actors, 1) == 1)
		sem_post(&w->ended);
}

static void use_done(struct req *req, int res)
{
	struct use *u = container_of(req, struct use, req);

	if (u->thing->is_dead)
		atomic_fetch_add(&u->feeder->a.world->seen_dead, 1);
	u->is_busy = false;
	fiber_wake(u->feeder->fiber);
}

static struct use *idle_use_wait(struct feeder *f)
{
	for (;;) {
		for (unsigned i = 0; i < IN_FLIGHT; i++)
			if (!f->uses[i].is_busy)
				return &f->uses[i];
		fiber_park();
	}
}

/* Opens a port of its own, sends requests, closes it, again and again. */
static void feed(struct task *t)
{
	struct feeder *f = container_of(t, struct feeder, a.task);
	struct world *w = f->a.world;

	f->fiber = fiber_self();
	for (unsigned round = 0; round < w->rounds; round++) {
		uint64_t n = prng_below(&f->a.prng, 60);
		struct port *p;

		assert_int_equal(port_new(&w->node, false, &p, NULL), 0);
		assert_int_equal(port_open_wait(p, NULL), 0);
		for (uint64_t i = 0; i < n; i++) {
			struct use *u = idle_use_wait(f);

			*u = (struct use){ .req = { .done = use_done, .kind = REQ_FLUSH },
					   .feeder = f, .is_busy = true };
			port_submit(port_here(p), &u->req);
			if (!prng_below(&f->a.prng, 4))
				fiber_yield_wait();
		}
		atomic_fetch_add(&w->requests, (unsigned)n);
		port_close_wait(p);
		port_free(p);
		fiber_sleep_wait(prng_below(&f->a.prng, 3000));
	}
	actor_end(&f->a);
}

/* Replaces the thing, waits, kills the old one. */
static void kill_things(struct task *t)
{
	struct actor *a = container_of(t, struct actor, task);
	struct world *w = a->world;

	for (unsigned round = 0; round < 4 * w->rounds; round++) {
		unsigned i = atomic_fetch_add(&w->nthings, 1);
		struct thing *old;

		assert_true(i < THINGS);
		old = atomic_exchange_explicit(&w->thing, &w->things[i], memory_order_acq_rel);
		epoch_wait();
		old->is_dead = true;
		atomic_fetch_add(&w->kills, 1);
		fiber_sleep_wait(prng_below(&a->prng, 2000));
	}
	actor_end(a);
}

/* ---- putting it together ---- */

struct cast {
	struct feeder feeders[LOOPS][FEEDERS];
	struct actor killers[LOOPS][KILLERS];
	struct task start[LOOPS];
};

static struct world world;
static struct cast cast;

static void start_actors(struct task *t)
{
	unsigned l = (unsigned)(t - cast.start);

	for (unsigned i = 0; i < FEEDERS; i++)
		fiber_start(world.loops[l], &cast.feeders[l][i].a.task);
	for (unsigned i = 0; i < KILLERS; i++)
		fiber_start(world.loops[l], &cast.killers[l][i].task);
}

static void world_init(struct loop *const *loops, unsigned rounds, uint64_t seed)
{
	struct prng p = { seed };

	memset(&world, 0, sizeof(world));
	memset(&cast, 0, sizeof(cast));
	assert_int_equal(node_init(&world.node, &ops, "world", loops[0]), 0);
	world.thing = &world.things[0];
	world.nthings = 1;
	world.rounds = rounds;
	world.actors = LOOPS * (FEEDERS + KILLERS);
	sem_init(&world.ended, 0, 0);
	for (unsigned l = 0; l < LOOPS; l++) {
		world.loops[l] = loops[l];
		for (unsigned i = 0; i < FEEDERS; i++)
			cast.feeders[l][i].a = (struct actor){ { feed, NULL }, &world, loops[l],
							       { prng_next(&p) } };
		for (unsigned i = 0; i < KILLERS; i++)
			cast.killers[l][i] = (struct actor){ { kill_things, NULL }, &world,
							     loops[l], { prng_next(&p) } };
		cast.start[l].fn = start_actors;
		loop_post(loops[l], &cast.start[l]);
	}
}

static int world_fini(void *arg)
{
	struct port *p;

	/* P5: all that was counted up was counted down, in the same place. */
	assert_int_equal(port_new(&world.node, false, &p, NULL), 0);
	assert_int_equal(port_open_wait(p, NULL), 0);
	assert_int_equal(port_here(p)->epochs->count[0], 0);
	assert_int_equal(port_here(p)->epochs->count[1], 0);
	port_close_wait(p);
	port_free(p);
	if (arg)
		node_put_wait(&world.node);
	return 0;
}

/* Two loops of one thread. Returns how many requests saw a dead thing. */
static unsigned run_simulated(uint64_t seed)
{
	struct loop *loops[LOOPS];

	for (unsigned l = 0; l < LOOPS; l++) {
		struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = seed + l };

		assert_int_equal(loop_new(&o, &loops[l], NULL), 0);
	}
	world_init(loops, 4, seed);
	while (atomic_load(&world.actors))
		for (unsigned l = 0; l < LOOPS; l++)
			loop_turn(loops[l], true);
	assert_int_equal(world.kills, LOOPS * KILLERS * 4 * 4);
	assert_int_equal(loop_call(loops[1], world_fini, NULL), 0);
	assert_int_equal(loop_call(loops[0], world_fini, &world), 0);
	for (unsigned l = 0; l < LOOPS; l++)
		loop_free(loops[l]);
	sem_destroy(&world.ended);
	return world.seen_dead;
}

static void p4_p5_no_request_outlives_a_wait_that_came_after_it(void **state)
{
	for (uint64_t seed = 1; seed <= 60; seed++)
		if (run_simulated(seed))
			fail_msg("seed %llu", (unsigned long long)seed);
}

static void p4_a_wait_that_does_not_wait_is_seen(void **state)
{
	unsigned seen = 0;

	epoch_break(true);
	for (uint64_t seed = 1; seed <= 10; seed++)
		seen += run_simulated(seed) > 0;
	epoch_break(false);
	assert_true(seen >= 8);
}

static void run_threads(enum loop_backend backend)
{
	struct loop_thread threads[LOOPS];
	struct loop *loops[LOOPS];
	struct workers *workers;

	assert_int_equal(workers_new(2, &workers, NULL), 0);
	for (unsigned l = 0; l < LOOPS; l++) {
		struct loop_opts o = { .backend = backend, .workers = workers };

		assert_int_equal(loop_new(&o, &loops[l], NULL), 0);
		assert_int_equal(loop_thread_start(&threads[l], loops[l], "epoch", NULL), 0);
	}
	world_init(loops, 60, 7);
	while (sem_wait(&world.ended) < 0)
		continue;
	assert_int_equal(world.seen_dead, 0);
	assert_true(world.requests > 1000);
	assert_int_equal(loop_call(loops[1], world_fini, NULL), 0);
	assert_int_equal(loop_call(loops[0], world_fini, &world), 0);
	for (unsigned l = 0; l < LOOPS; l++)
		loop_thread_stop(&threads[l]);
	workers_free(workers);
	sem_destroy(&world.ended);
}

static void p4_p5_threads_agree_when_requests_have_ended(void **state)
{
	run_threads(LOOP_AUTO);
	run_threads(LOOP_POSIX);
}

static int wait_alone(void *arg)
{
	epoch_wait();
	epoch_wait();
	return 0;
}

static void a_process_without_ports_does_not_wait(void **state)
{
	struct loop_opts o = { .backend = LOOP_SIM };
	struct loop *l;

	assert_int_equal(loop_new(&o, &l, NULL), 0);
	assert_int_equal(loop_call(l, wait_alone, NULL), 0);
	loop_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p4_p5_no_request_outlives_a_wait_that_came_after_it),
		cmocka_unit_test(p4_a_wait_that_does_not_wait_is_seen),
		cmocka_unit_test(p4_p5_threads_agree_when_requests_have_ended),
		cmocka_unit_test(a_process_without_ports_does_not_wait),
	};

	return cmocka_run_group_tests_name("epoch", tests, NULL, NULL);
}
