/* SPDX-License-Identifier: MIT */
/* Calls from threads into loops and between loops: loop_call(), loop_call_wait(). */
#include "loop/fiber.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "loop/loop_thread.h"
#include "loop/test_loop.h"

static struct workers *workers;
static struct loop *loop;

static int setup(void **state)
{
	if (workers_new(2, &workers, NULL) < 0)
		return -1;
	loop = test_loop_new(LOOP_AUTO, workers);
	loop_turn(loop, false);         /* it is this thread's now */
	return 0;
}

static int teardown(void **state)
{
	loop_free(loop);
	workers_free(workers);
	return 0;
}

static void start_thread(struct loop_thread *t)
{
	struct err err = { 0 };

	if (loop_thread_start(t, test_loop_new(LOOP_AUTO, workers), "loop", &err) < 0)
		fail_msg("%s", err.text);
}

static int double_it(void *arg)
{
	assert_non_null(fiber_self());
	fiber_yield_wait();
	return *(int *)arg * 2;
}

static int double_after_sleep(void *arg)
{
	fiber_sleep_wait(NS_PER_MS);
	return double_it(arg);
}

static void call_turns_a_loop_that_nobody_runs(void **state)
{
	struct loop *l = test_loop_new(LOOP_AUTO, workers);
	int v = 21;

	assert_false(loop_is_current(l));
	assert_int_equal(loop_call(l, double_it, &v), 42);
	assert_true(loop_is_current(l));
	assert_int_equal(loop_call(l, double_after_sleep, &v), 42);
	loop_free(l);
}

static void *call_often(void *arg)
{
	struct loop_thread *t = arg;
	intptr_t wrong = 0;

	for (int i = 0; i < 200; i++)
		wrong += loop_call(t->loop, i % 50 ? double_it : double_after_sleep, &i) != 2 * i;
	return (void *)wrong;
}

static void f5_calls_from_many_threads(void **state)
{
	pthread_t threads[4];
	struct loop_thread t = { 0 };
	void *wrong;

	start_thread(&t);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, call_often, &t), 0);
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], &wrong);
		assert_null(wrong);
	}
	loop_thread_stop(&t);
}

struct pair {
	struct loop *there, *back;
	int v;
};

static int add_here(void *arg)
{
	struct pair *p = arg;

	assert_ptr_equal(loop_current(), p->back);
	return ++p->v;
}

static int call_back(void *arg)
{
	struct pair *p = arg;

	assert_ptr_equal(loop_current(), p->there);
	return loop_call_wait(p->back, add_here, p) + 1;
}

static int call_there(void *arg)
{
	struct pair *p = arg;

	for (int i = 0; i < 100; i++) {
		assert_int_equal(loop_call_wait(p->there, call_back, p), 2 * i + 2);
		assert_int_equal(loop_call_wait(p->back, add_here, p), 2 * i + 2);
	}
	return 7;
}

static void calls_between_loops(void **state)
{
	struct pair p = { .back = loop };
	struct loop_thread t = { 0 };

	start_thread(&t);
	p.there = t.loop;
	assert_int_equal(loop_call(loop, call_there, &p), 7);
	assert_int_equal(p.v, 200);
	loop_thread_stop(&t);
}

/* The caller's own loop goes on while it waits for another: the other calls back to it. */
static void a_callers_own_loop_goes_on(void **state)
{
	struct pair p = { .back = loop };
	struct loop_thread t = { 0 };

	start_thread(&t);
	p.there = t.loop;
	assert_int_equal(loop_call(t.loop, call_back, &p), 2);
	loop_thread_stop(&t);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		T(call_turns_a_loop_that_nobody_runs),
		T(f5_calls_from_many_threads),
		T(calls_between_loops),
		T(a_callers_own_loop_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
