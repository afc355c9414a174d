/* SPDX-License-Identifier: MIT */
#include "loop/work.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "loop/loop_impl.h"
#include "loop/test_loop.h"

static struct workers *workers;
static struct loop *loop;

/* A pool of *@state threads. */
static int setup(void **state)
{
	const unsigned *threads = *state;

	if (workers_new(*threads, &workers, NULL) < 0)
		return -1;
	loop = test_loop_new(LOOP_AUTO, workers);
	workers_set_limit(workers, *threads);   /* whatever the loop has asked for */
	loop_turn(loop, false);
	return 0;
}

static int teardown(void **state)
{
	loop_free(loop);
	workers_free(workers);
	return 0;
}

static void turn_until(const int *n, int wanted)
{
	while (*n < wanted) {
		loop_turn(loop, false);
		usleep(200);
	}
}

struct job {
	struct work work;
	int number;
};

static struct job *job_of(struct work *w)
{
	return container_of(w, struct job, work);
}

enum { JOBS = 100 };

static struct job jobs[JOBS];
static int done_count, done_order[JOBS];
static atomic_int ran_count, ran_order[JOBS];

static void start_jobs(int n, void (*fn)(struct work *w), void (*done)(struct work *w))
{
	done_count = 0;
	ran_count = 0;
	for (int i = 0; i < n; i++) {
		jobs[i] = (struct job){ .work = { .fn = fn, .done = done }, .number = i };
		loop_work(loop, &jobs[i].work);
	}
}

static void note_run(struct work *w)
{
	ran_order[atomic_fetch_add(&ran_count, 1)] = job_of(w)->number;
}

static void note_done(struct work *w)
{
	assert_true(loop_is_current(loop));
	done_order[done_count++] = job_of(w)->number;
}

static void w1_one_worker_keeps_the_order(void **state)
{
	start_jobs(JOBS, note_run, note_done);
	assert_int_equal(done_count, 0);        /* W2: not inside the call */
	assert_int_equal(loop->in_flight, JOBS);
	turn_until(&done_count, JOBS);
	assert_int_equal(loop->in_flight, 0);
	assert_int_equal(workers_alive(workers), 1);
	for (int i = 0; i < JOBS; i++) {
		assert_int_equal(ran_order[i], i);
		assert_int_equal(done_order[i], i);
	}
}

static pthread_barrier_t barrier;

static void meet(struct work *w)
{
	pthread_barrier_wait(&barrier);         /* returns only if four run at once */
	note_run(w);
}

static void w1_jobs_run_side_by_side(void **state)
{
	pthread_barrier_init(&barrier, NULL, 4);
	start_jobs(40, meet, note_done);
	turn_until(&done_count, 40);
	assert_int_equal(workers_alive(workers), 4);
	pthread_barrier_destroy(&barrier);
}

static sem_t go;

static void wait_for_go(struct work *w)
{
	sem_wait(&go);
}

static void no_more_threads_than_the_limit(void **state)
{
	sem_init(&go, 0, 0);
	start_jobs(10, wait_for_go, note_done);
	assert_int_equal(workers_alive(workers), 4);
	for (int i = 0; i < 10; i++)
		sem_post(&go);
	turn_until(&done_count, 10);
	sem_destroy(&go);
}

static void w1_the_last_idle_worker_comes_first(void **state)
{
	pthread_barrier_init(&barrier, NULL, 4);
	start_jobs(4, meet, note_done);
	turn_until(&done_count, 4);
	pthread_barrier_destroy(&barrier);
	assert_int_equal(workers_alive(workers), 4);
	/* One job at a time keeps one worker; the other three get to the end of their time. The
	 * first wait of each began with the long time, so they are sent through one more job. */
	workers_set_idle(workers, 50);
	pthread_barrier_init(&barrier, NULL, 4);
	start_jobs(4, meet, note_done);
	turn_until(&done_count, 4);
	pthread_barrier_destroy(&barrier);
	for (int i = 0; i < 2000 && (i < 40 || workers_alive(workers) > 1); i++) {
		start_jobs(1, note_run, note_done);
		turn_until(&done_count, 1);
		usleep(5000);
	}
	assert_true(workers_alive(workers) <= 1);
}

static void idle_workers_end_and_come_back(void **state)
{
	workers_set_idle(workers, 1);
	for (int round = 0; round < 3; round++) {
		start_jobs(4, note_run, note_done);
		turn_until(&done_count, 4);
		for (int i = 0; i < 2000 && workers_alive(workers); i++)
			usleep(1000);
		assert_int_equal(workers_alive(workers), 0);
	}
}

/* Ends and submissions meet at every moment of a worker's end. */
static void ends_race_with_submissions(void **state)
{
	workers_set_idle(workers, 0);
	for (int i = 0; i < 300; i++) {
		start_jobs(3, note_run, note_done);
		turn_until(&done_count, 3);
	}
}

static void free_waits_for_all_jobs(void **state)
{
	struct workers *own;

	assert_int_equal(workers_new(2, &own, NULL), 0);
	ran_count = done_count = 0;
	for (int i = 0; i < JOBS; i++) {
		jobs[i] = (struct job){
			.work = { .fn = note_run, .done = note_done, .loop = loop }, .number = i,
		};
		workers_submit(own, &jobs[i].work);
	}
	workers_free(own);
	assert_int_equal(ran_count, JOBS);
	turn_until(&done_count, JOBS);
}

static atomic_int signals_blocked, name_is_right;

static void look_around(struct work *w)
{
	char name[32] = "";
	sigset_t set;

	pthread_sigmask(SIG_SETMASK, NULL, &set);
	signals_blocked = sigismember(&set, SIGINT) && sigismember(&set, SIGTERM) &&
			  sigismember(&set, SIGUSR1);
	pthread_getname_np(pthread_self(), name, sizeof(name));
	name_is_right = !strcmp(name, "byre-work");
}

static void w4_workers_block_signals(void **state)
{
	sigset_t set;

	start_jobs(1, look_around, note_done);
	turn_until(&done_count, 1);
	assert_true(signals_blocked);
	assert_true(name_is_right);
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	assert_false(sigismember(&set, SIGTERM));
}

static void free_job(struct work *w)
{
	free(job_of(w));
	done_count++;
}

static void w3_a_job_may_be_freed_when_done(void **state)
{
	done_count = 0;
	for (int i = 0; i < JOBS; i++) {
		struct job *j = calloc(1, sizeof(*j));

		assert_non_null(j);
		j->work.fn = look_around;
		j->work.done = free_job;
		loop_work(loop, &j->work);
	}
	turn_until(&done_count, JOBS);
}

static void square(void *arg)
{
	*(int *)arg *= *(int *)arg;
}

static int wait_for_squares(void *arg)
{
	struct loop *l = arg;
	int sum = 0;

	for (int i = 0; i < 50; i++) {
		int v = i;

		loop_work_wait(l, square, &v);
		sum += v == i * i;
	}
	return sum;
}

static void a_fiber_waits_for_work(void **state)
{
	assert_int_equal(loop_call(loop, wait_for_squares, loop), 50);
	assert_int_equal(loop->in_flight, 0);
}

static void a_simulated_loop_runs_its_own_work(void **state)
{
	struct loop *l = test_loop_new(LOOP_SIM, workers);

	assert_int_equal(loop_call(l, wait_for_squares, l), 50);
	assert_int_equal(l->in_flight, 0);
	loop_free(l);
	assert_int_equal(workers_alive(workers), 0);
}

static void the_number_of_threads_is_checked(void **state)
{
	struct workers *ws = NULL;
	struct err err = { 0 };

	assert_int_equal(workers_new(WORKERS_MAX + 1, &ws, &err), -EINVAL);
	assert_int_equal(err.code, EINVAL);
	assert_null(ws);
	assert_int_equal(workers_new(0, &ws, &err), 0);
	workers_free(ws);
	workers_free(NULL);
}

/* Stacks of another size than those that the C library keeps from threads that have ended. */
static void set_stack_size(size_t bytes)
{
	pthread_attr_t attr;

	if (pthread_attr_init(&attr) || pthread_attr_setstacksize(&attr, bytes) ||
	    pthread_setattr_default_np(&attr))
		_exit(2);
	pthread_attr_destroy(&attr);
}

/* In a child: no thread can be started, because there is no address space left for its stack. */
static void run_without_threads(void)
{
	struct rlimit rl = { .rlim_cur = 0, .rlim_max = RLIM_INFINITY };

	loop = test_loop_new(LOOP_AUTO, workers);
	loop_turn(loop, false);
	set_stack_size(256 * MiB);
	if (setrlimit(RLIMIT_AS, &rl) < 0)
		_exit(2);
	start_jobs(10, note_run, note_done);
	if (ran_count || done_count || workers_alive(workers))
		_exit(3);
	turn_until(&done_count, 10);
	for (int i = 0; i < 10; i++)
		if (ran_order[i] != i || done_order[i] != i)
			_exit(4);
	if (workers_alive(workers))
		_exit(5);
	rl.rlim_cur = RLIM_INFINITY;
	setrlimit(RLIMIT_AS, &rl);
	set_stack_size(1 * MiB);
	start_jobs(10, note_run, note_done);
	turn_until(&done_count, 10);
	_exit(workers_alive(workers) ? 0 : 6);
}

static void w2_without_threads_the_loop_runs_the_jobs(void **state)
{
	test_in_child(run_without_threads);
}

static unsigned one = 1, four = 4;

#define T(name, threads) cmocka_unit_test_prestate_setup_teardown(name, setup, teardown, threads)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		T(w1_one_worker_keeps_the_order, &one),
		T(w1_jobs_run_side_by_side, &four),
		T(no_more_threads_than_the_limit, &four),
		T(w1_the_last_idle_worker_comes_first, &four),
		T(idle_workers_end_and_come_back, &four),
		T(ends_race_with_submissions, &four),
		T(free_waits_for_all_jobs, &one),
		T(w4_workers_block_signals, &one),
		T(w3_a_job_may_be_freed_when_done, &four),
		T(a_fiber_waits_for_work, &four),
		T(a_simulated_loop_runs_its_own_work, &one),
		T(the_number_of_threads_is_checked, &one),
		T(w2_without_threads_the_loop_runs_the_jobs, &four),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
