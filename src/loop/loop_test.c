/* SPDX-License-Identifier: MIT */
/* loop/loop_test.c - files, tasks, timers, owners; over every backend. */
#include <errno.h>
#include <linux/falloc.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "loop/loop_ground.h"
#include "loop/sim.h"

/* ---- files ---- */

static void write_and_read_back(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g);
	char in[5000], out[5000] = { 0 };
	struct iovec iov[3] = { { out, 1 }, { out + 1, 4000 }, { out + 4001, 999 } };
	struct op op;

	memset(in, 'x', sizeof(in));
	in[4999] = 'y';
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, in, 5000, 100)), 5000);
	assert_int_equal(op_run(g->l, op_simple(&op, IO_SYNC, fd, 0)), 0);
	op_rw(&op, IO_READ, fd, NULL, 0, 100);
	op.io.iov = iov;
	op.io.iovcnt = 3;
	assert_int_equal(op_run(g->l, &op), 5000);
	assert_memory_equal(in, out, 5000);
	op_rw(&op, IO_WRITE, fd, NULL, 0, 0);
	op.io.flags = IO_DSYNC;
	op.io.iov = iov;
	op.io.iovcnt = 3;
	assert_int_equal(op_run(g->l, &op), 5000);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, in, 1, 4999)), 1);
	assert_int_equal(in[0], 'y');
	file_free(g, fd);
}

static void short_reads_are_the_callers(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g);
	char buf[1000] = { 0 };
	struct op op;

	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, buf, 700, 0)), 700);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, buf, 1000, 0)), 700);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, buf, 1000, 700)), 0);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, buf, 1000, 1 << 20)), 0);
	file_free(g, fd);
}

static void allocate_zeroes_and_keeps_the_size(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g);
	char *buf = test_calloc(1, 20000);
	struct op op;

	memset(buf, 'x', 20000);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, buf, 20000, 0)), 20000);
	op_simple(&op, IO_ALLOCATE, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	op.io.off = 1000;
	op.io.len = 15000;
	assert_int_equal(op_run(g->l, &op), 0);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, buf, 20000, 0)), 20000);
	for (int i = 0; i < 20000; i++)
		assert_int_equal(buf[i], i < 1000 || i >= 16000 ? 'x' : 0);
	op_simple(&op, IO_ALLOCATE, fd, FALLOC_FL_KEEP_SIZE);
	op.io.len = 30000;
	assert_int_equal(op_run(g->l, &op), 0);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, buf, 1, 20000)), 0);
	op_simple(&op, IO_ALLOCATE, fd, 0);
	op.io.len = 30000;
	assert_int_equal(op_run(g->l, &op), 0);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, buf, 20000, 20000)), 10000);
	op_simple(&op, IO_ALLOCATE, fd, FALLOC_FL_PUNCH_HOLE);
	op.io.len = 1;
	assert_int_equal(op_run(g->l, &op), -EOPNOTSUPP);
	test_free(buf);
	file_free(g, fd);
}

static void many_iovecs(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g);
	char in[1024], out[1024];
	struct iovec iov[1024];
	struct op op;

	for (int i = 0; i < 1024; i++) {
		in[i] = (char)i;
		iov[i] = (struct iovec){ .iov_base = &out[1023 - i], .iov_len = 1 };
	}
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, in, 1024, 0)), 1024);
	op_rw(&op, IO_READ, fd, NULL, 0, 0);
	op.io.iov = iov;
	op.io.iovcnt = 1024;
	assert_int_equal(op_run(g->l, &op), 1024);
	for (int i = 0; i < 1024; i++)
		assert_int_equal(out[i], in[1023 - i]);
	file_free(g, fd);
}

static void bad_descriptors_end_with_ebadf(void **state)
{
	struct ground *g = ground_of(state);
	int bad = g->backend == LOOP_SIM ? SIM_FD_BASE : 1000, good = -1;
	struct op ops[IO_POLL + 1];
	char buf[8];

	op_rw(&ops[IO_READ], IO_READ, bad, buf, 8, 0);
	op_rw(&ops[IO_WRITE], IO_WRITE, bad, buf, 8, 0);
	op_simple(&ops[IO_SYNC], IO_SYNC, bad, 0);
	op_simple(&ops[IO_ALLOCATE], IO_ALLOCATE, bad, 0);
	ops[IO_ALLOCATE].io.len = 1;
	op_recv(&ops[IO_RECV], bad, buf, 8);
	op_send(&ops[IO_SENDMSG], bad, buf, 8);
	op_simple(&ops[IO_ACCEPT], IO_ACCEPT, bad, 0);
	op_simple(&ops[IO_POLL], IO_POLL, bad, POLLIN);
	/* All at once: a failure must not hold up what was submitted behind it. */
	for (int i = 0; i <= IO_POLL; i++)
		op_submit(g->l, &ops[i]);
	for (int i = 0; i <= IO_POLL; i++)
		assert_int_equal(op_wait(g->l, &ops[i]), g->backend == LOOP_SIM && i > IO_ALLOCATE ?
				 -EOPNOTSUPP : -EBADF);
	good = file_new(g);
	assert_int_equal(op_run(g->l, op_rw(&ops[0], IO_WRITE, good, buf, 8, 0)), 8);
	file_free(g, good);
}

/* U2, X1: five times the SQ, more than all jobs. */
static void l2_l4_u2_x1_5000_at_once_end_once_each(void **state)
{
	struct ground *g = ground_of(state);
	enum { N = 5000 };
	struct op *ops = test_calloc(N, sizeof(*ops));
	uint32_t *data = test_calloc(N, sizeof(*data)), *back = test_calloc(N, sizeof(*back));
	int fd = file_new(g);

	for (uint32_t i = 0; i < N; i++) {
		data[i] = i * 7;
		op_submit(g->l, op_rw(&ops[i], IO_WRITE, fd, &data[i], 4, i * 4));
	}
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(op_wait(g->l, &ops[i]), 4);
	for (uint32_t i = 0; i < N; i++)
		op_submit(g->l, op_rw(&ops[i], IO_READ, fd, &back[i], 4, i * 4));
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(op_wait(g->l, &ops[i]), 4);
	assert_memory_equal(data, back, N * 4);
	turns(g->l, 3);
	test_free(ops);
	test_free(data);
	test_free(back);
	file_free(g, fd);
}

static void l2_u3_cancelled_in_the_queue(void **state)
{
	struct ground *g = ground_of(state);
	enum { N = 3000 };
	struct op *ops = test_calloc(N, sizeof(*ops));
	int fd = file_new(g);
	char c = 'c';

	for (unsigned i = 0; i < N; i++)
		op_submit(g->l, op_rw(&ops[i], IO_WRITE, fd, &c, 1, i));
	for (unsigned i = 0; i < N; i += 3) {
		loop_cancel(g->l, &ops[i].io);
		loop_cancel(g->l, &ops[i].io);
	}
	for (unsigned i = 0; i < N; i++) {
		int res = op_wait(g->l, &ops[i]);

		assert_true(res == 1 || (i % 3 == 0 && res == -ECANCELED));
	}
	turns(g->l, 3);
	test_free(ops);
	file_free(g, fd);
}

static void stats_count(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g);
	struct loop_stats a, b;
	struct op ops[8];
	char c = 'c';

	loop_get_stats(g->l, &a);
	for (int i = 0; i < 8; i++)
		op_submit(g->l, op_rw(&ops[i], IO_WRITE, fd, &c, 1, 0));
	for (int i = 0; i < 8; i++)
		op_wait(g->l, &ops[i]);
	loop_get_stats(g->l, &b);
	assert_int_equal(b.ios[IO_WRITE] - a.ios[IO_WRITE], 8);
	assert_int_equal(b.ios[IO_READ], a.ios[IO_READ]);
	assert_true(b.turns > a.turns);
	/* One system call a turn at most. */
	assert_true(b.enters - a.enters <= b.turns - a.turns);
	file_free(g, fd);
}

static void registered_descriptors(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g), slots[300], n = 0;
	char c = 'a', d = 0;
	struct op op;

	while (n < 300 && (slots[n] = loop_fd_register(g->l, fd)) > 0)
		n++;
	assert_int_equal(slots[n], -1);
	if (g->backend == LOOP_URING)
		assert_in_range(n, 1, 255);
	else
		assert_int_equal(n, 0);
	for (int i = 0; i <= n; i += MAX(n, 1)) {
		int slot = slots[i ? i - 1 : 0];

		op_rw(&op, IO_WRITE, slot > 0 ? -1 : fd, &c, 1, 0);
		op.io.fixed = slot;
		assert_int_equal(op_run(g->l, &op), 1);
		op_rw(&op, IO_READ, slot > 0 ? -1 : fd, &d, 1, 0);
		op.io.fixed = slot;
		assert_int_equal(op_run(g->l, &op), 1);
		assert_int_equal(d, c++);
	}
	for (int i = 0; i <= n; i++)
		loop_fd_unregister(g->l, slots[i]);
	if (n) {
		op_rw(&op, IO_READ, -1, &d, 1, 0);
		op.io.fixed = slots[0];
		assert_int_equal(op_run(g->l, &op), -EBADF);
		assert_int_equal(loop_fd_register(g->l, fd), slots[0]);
	}
	file_free(g, fd);
}

/* ---- tasks ---- */

struct step {
	struct task task;
	struct loop *l;
	char name;
	bool at_end;                    /* defers `then` to the end of the turn */
	struct step *then;
};

static char steps_done[32];

static void step_fn(struct task *t)
{
	struct step *s = container_of(t, struct step, task);

	assert_false(is_submitting);
	strncat(steps_done, &s->name, 1);
	if (s->then && s->at_end)
		loop_at_turn_end(s->l, &s->then->task);
	else if (s->then)
		loop_defer(s->l, &s->then->task);
}

static struct step *step_init(struct step *s, struct loop *l, char name)
{
	*s = (struct step){ .task.fn = step_fn, .l = l, .name = name };
	return s;
}

static void l1_tasks_run_in_order_and_never_at_once(void **state)
{
	struct ground *g = ground_of(state);
	struct step a, b, c, d, e, z;

	steps_done[0] = '\0';
	is_submitting = true;
	step_init(&a, g->l, 'a')->then = step_init(&d, g->l, 'd');
	loop_at_turn_end(g->l, &step_init(&z, g->l, 'z')->task);
	z.then = step_init(&e, g->l, 'e');
	loop_defer(g->l, &a.task);
	loop_defer(g->l, &step_init(&b, g->l, 'b')->task);
	loop_post(g->l, &step_init(&c, g->l, 'c')->task);
	is_submitting = false;
	assert_string_equal(steps_done, "");
	/* What a turn-end task defers belongs to the next turn, which therefore does not sleep. */
	assert_true(loop_turn(g->l, true));
	assert_string_equal(steps_done, "abcdz");
	assert_true(loop_turn(g->l, true));
	assert_string_equal(steps_done, "abcdze");
	assert_false(loop_turn(g->l, false));
}

static void turn_end_tasks_that_come_again_run_once_a_turn(void **state)
{
	struct ground *g = ground_of(state);
	struct step a;

	steps_done[0] = '\0';
	step_init(&a, g->l, 'a')->then = &a;
	a.at_end = true;
	loop_at_turn_end(g->l, &a.task);
	for (int i = 0; i < 3; i++)
		assert_true(loop_turn(g->l, true));
	a.then = NULL;
	assert_true(loop_turn(g->l, true));
	assert_string_equal(steps_done, "aaaa");
	assert_false(loop_turn(g->l, false));
}

struct spinner {
	struct task task;
	struct loop *l;
	bool is_stopped;
};

static void spin(struct task *t)
{
	struct spinner *s = container_of(t, struct spinner, task);

	if (!s->is_stopped)
		loop_defer(s->l, t);
}

static void endless_tasks_do_not_stop_io(void **state)
{
	struct ground *g = ground_of(state);
	struct spinner s = { .task.fn = spin, .l = g->l };
	int fd = file_new(g);
	struct op op;
	char c = 'c';

	loop_defer(g->l, &s.task);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, &c, 1, 0)), 1);
	s.is_stopped = true;
	turns(g->l, 2);
	file_free(g, fd);
}

enum { POSTERS = 4, POSTS = 2500 };

struct post {
	struct task task;
	struct poster *from;
	unsigned n;
	unsigned check;                 /* plain memory that must be visible (L3) */
};

struct poster {
	pthread_t thread;
	struct loop *l;
	unsigned seen;
	struct post posts[POSTS];
};

static unsigned posts_seen;

static void post_seen(struct task *t)
{
	struct post *p = container_of(t, struct post, task);

	assert_int_equal(p->n, p->from->seen);
	assert_int_equal(p->check, ~p->n);
	p->from->seen++;
	posts_seen++;
}

static void *post_many(void *arg)
{
	struct poster *p = arg;

	for (unsigned i = 0; i < POSTS; i++) {
		p->posts[i] = (struct post){ { .fn = post_seen }, .from = p, .n = i, .check = ~i };
		loop_post(p->l, &p->posts[i].task);
	}
	return NULL;
}

static void l3_posts_arrive_in_order(void **state)
{
	struct ground *g = ground_of(state);
	struct poster *p = test_calloc(POSTERS, sizeof(*p));

	posts_seen = 0;
	for (int i = 0; i < POSTERS; i++) {
		p[i].l = g->l;
		assert_int_equal(pthread_create(&p[i].thread, NULL, post_many, &p[i]), 0);
	}
	while (posts_seen < POSTERS * POSTS)
		loop_turn(g->l, true);
	for (int i = 0; i < POSTERS; i++)
		pthread_join(p[i].thread, NULL);
	test_free(p);
}

struct ball {
	struct task task;
	struct loop *loops[2];
	unsigned hits;
};

static void hit(struct task *t)
{
	struct ball *b = container_of(t, struct ball, task);

	/* So that hits come at every moment of the other's falling asleep. */
	for (volatile unsigned i = b->hits * 7 % 1024; i; i--)
		;
	if (++b->hits < 4000) {
		loop_post(b->loops[b->hits % 2], t);
		return;
	}
	loop_stop(b->loops[0]);
	loop_stop(b->loops[1]);
}

static void *run_loop(void *arg)
{
	loop_run(arg);
	return NULL;
}

/* Both sides go to sleep before nearly every hit: one lost wake, and it hangs. */
static void no_wake_is_lost(void **state)
{
	struct ground *g = ground_of(state);
	struct loop *other = ground_loop(g, 1);
	struct ball b = { .task.fn = hit, .loops = { g->l, other } };
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, run_loop, other), 0);
	loop_post(g->l, &b.task);
	loop_run(g->l);
	pthread_join(thread, NULL);
	loop_free(other);
	assert_int_equal(b.hits, 4000);
}

static void *stop_later(void *arg)
{
	usleep(20000);
	loop_stop(arg);
	return NULL;
}

static void stop_wakes_a_sleeping_loop(void **state)
{
	struct ground *g = ground_of(state);
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, stop_later, g->l), 0);
	loop_run(g->l);
	pthread_join(thread, NULL);
	/* And one that has not begun. */
	loop_stop(g->l);
	loop_run(g->l);
}

static void *try_adopt(void *arg)
{
	assert_null(loop_current());
	return (void *)(uintptr_t)(loop_try_adopt(arg) + 1);
}

static void a_loop_has_one_owner(void **state)
{
	struct ground *g = ground_of(state);
	struct loop *other = ground_loop(g, 1);
	pthread_t thread;
	void *ret;

	assert_false(loop_is_current(other));
	assert_true(loop_is_current(g->l));
	loop_turn(g->l, false);
	assert_ptr_equal(loop_current(), g->l);
	assert_int_not_equal(loop_id(g->l), loop_id(other));
	assert_int_equal(pthread_create(&thread, NULL, try_adopt, g->l), 0);
	pthread_join(thread, &ret);
	assert_int_equal((uintptr_t)ret, 1);
	assert_int_equal(pthread_create(&thread, NULL, try_adopt, other), 0);
	pthread_join(thread, &ret);
	assert_int_equal((uintptr_t)ret, 2);
	loop_free(other);
}

/* ---- timers ---- */

struct bell {
	struct timer timer;
	struct loop *l;
	char name;
	struct bell *cancels, *sets;
	uint64_t rang_ns;
};

static void ring(struct timer *t)
{
	struct bell *b = container_of(t, struct bell, timer);

	assert_false(is_submitting);
	assert_false(t->is_set);
	assert_true(loop_now(b->l) >= t->when_ns);
	strncat(steps_done, &b->name, 1);
	b->rang_ns = loop_now(b->l);
	if (b->cancels)
		timer_cancel(b->l, &b->cancels->timer);
	if (b->sets)
		timer_set(b->l, &b->sets->timer, loop_now(b->l));
}

static struct bell *bell_init(struct bell *b, struct loop *l, char name)
{
	*b = (struct bell){ .timer.fn = ring, .l = l, .name = name };
	return b;
}

static void l1_timers_ring_in_order_and_never_at_once(void **state)
{
	struct ground *g = ground_of(state);
	uint64_t now = loop_now(g->l);
	struct bell a, b, c, d, e;

	steps_done[0] = '\0';
	is_submitting = true;
	timer_set(g->l, &bell_init(&a, g->l, 'a')->timer, now);
	timer_set(g->l, &bell_init(&c, g->l, 'c')->timer, now + 3 * NS_PER_MS);
	timer_set(g->l, &bell_init(&b, g->l, 'b')->timer, now + 2 * NS_PER_MS);
	timer_set(g->l, &bell_init(&d, g->l, 'd')->timer, now);
	timer_set(g->l, &d.timer, now + 4 * NS_PER_MS);
	timer_set(g->l, &bell_init(&e, g->l, 'e')->timer, now + NS_PER_MS);
	timer_cancel(g->l, &e.timer);
	timer_cancel(g->l, &e.timer);
	is_submitting = false;
	assert_string_equal(steps_done, "");
	while (!d.rang_ns)
		loop_turn(g->l, true);
	assert_string_equal(steps_done, "abcd");
	assert_true(d.rang_ns >= now + 4 * NS_PER_MS);
	assert_false(loop_turn(g->l, false));
}

/* Of timers due together, the first cancels the second and sets the third to now: next turn. */
static void timers_may_change_each_other(void **state)
{
	struct ground *g = ground_of(state);
	uint64_t now = loop_now(g->l);
	struct bell a, b, c, d;

	steps_done[0] = '\0';
	timer_set(g->l, &bell_init(&a, g->l, 'a')->timer, now);
	timer_set(g->l, &bell_init(&b, g->l, 'b')->timer, now);
	timer_set(g->l, &bell_init(&c, g->l, 'c')->timer, now);
	timer_set(g->l, &bell_init(&d, g->l, 'd')->timer, now);
	a.cancels = &b;
	a.sets = &c;
	loop_turn(g->l, false);
	assert_string_equal(steps_done, "ad");
	c.sets = &c;
	loop_turn(g->l, true);
	loop_turn(g->l, true);
	assert_string_equal(steps_done, "adcc");
	timer_cancel(g->l, &c.timer);
	assert_false(loop_turn(g->l, false));
}

/* ---- fibers and jobs ---- */

struct reader {
	struct task task;
	struct loop *l;
	int fd;
	int res;
	bool is_done;
};

static void read_in_fiber(struct task *t)
{
	struct reader *r = container_of(t, struct reader, task);
	char buf[16];
	struct op op;

	op_rw(&op, IO_WRITE, r->fd, buf, sizeof(buf), 0);
	memset(buf, 'f', sizeof(buf));
	assert_int_equal(loop_io_wait(r->l, &op.io), 16);
	op_rw(&op, IO_READ, r->fd, buf, sizeof(buf), 10);
	r->res = loop_io_wait(r->l, &op.io);
	r->is_done = true;
}

static void io_wait_in_a_fiber(void **state)
{
	struct ground *g = ground_of(state);
	struct reader r = { .task.fn = read_in_fiber, .l = g->l, .fd = file_new(g) };

	fiber_start(g->l, &r.task);
	while (!r.is_done)
		loop_turn(g->l, true);
	assert_int_equal(r.res, 6);
	file_free(g, r.fd);
}

struct job {
	struct work work;
	unsigned ran, done;
};

static void job_run(struct work *w)
{
	container_of(w, struct job, work)->ran++;
}

static void job_done(struct work *w)
{
	struct job *j = container_of(w, struct job, work);

	assert_false(is_submitting);
	assert_int_equal(j->ran, 1);
	j->done++;
}

static void jobs_end_once(void **state)
{
	struct ground *g = ground_of(state);
	struct job jobs[50] = { 0 };

	for (int i = 0; i < 50; i++) {
		jobs[i].work = (struct work){ .fn = job_run, .done = job_done };
		is_submitting = true;
		loop_work(g->l, &jobs[i].work);
		is_submitting = false;
	}
	for (int i = 0; i < 50; i++)
		while (!jobs[i].done)
			loop_turn(g->l, true);
	turns(g->l, 3);
	for (int i = 0; i < 50; i++)
		assert_int_equal(jobs[i].done, 1);
}

/* ---- choosing a backend ---- */

static void u1_kernels_before_5_13_are_refused(void **state)
{
	struct ground *g = ground_of(state);
	struct loop_opts opts = {
		.backend = LOOP_URING, .workers = g->workers, .uring_kernel_max = 512,
	};
	struct err err = { 0 };
	struct loop *l = NULL;

	assert_int_equal(loop_new(&opts, &l, &err), -ENOSYS);
	assert_string_equal(err.text, "io_uring needs Linux 5.13");
	/* And another one is found. */
	setenv("BYRE_LOOP", "", true);
	opts.backend = LOOP_AUTO;
	assert_int_equal(loop_new(&opts, &l, &err), 0);
	assert_string_equal(loop_backend_name(l), "posix");
	loop_free(l);
}

static void environment_chooses(void **state)
{
	struct ground *g = ground_of(state);
	struct loop_opts opts = { .backend = LOOP_AUTO, .workers = g->workers };
	struct err err = { 0 };
	struct loop *l = NULL;

	setenv("BYRE_LOOP", "posix", true);
	assert_int_equal(loop_new(&opts, &l, &err), 0);
	assert_string_equal(loop_backend_name(l), "posix");
	loop_free(l);
	setenv("BYRE_LOOP", "uring", true);
	assert_int_equal(loop_new(&opts, &l, &err), 0);
	assert_string_equal(loop_backend_name(l), "uring");
	loop_free(l);
	setenv("BYRE_LOOP", "kqueue", true);
	l = NULL;
	assert_int_equal(loop_new(&opts, &l, &err), -EINVAL);
	assert_null(l);
	unsetenv("BYRE_LOOP");
}

static void loops_have_a_limit(void **state)
{
	struct ground *g = ground_of(state);
	struct loop_opts opts = { .backend = g->backend, .workers = g->workers };
	struct loop *loops[LOOPS_MAX], *none = NULL;
	uint64_t seen = 1ULL << loop_id(g->l);

	for (int i = 1; i < LOOPS_MAX; i++) {
		assert_int_equal(loop_new(&opts, &loops[i], NULL), 0);
		assert_false(seen >> loop_id(loops[i]) & 1);
		seen |= 1ULL << loop_id(loops[i]);
	}
	assert_int_equal(loop_new(&opts, &none, NULL), -ENFILE);
	for (int i = 1; i < LOOPS_MAX; i++)
		loop_free(loops[i]);
}

int main(void)
{
	static const struct ground_test tests[] = {
#define T(fn, with) { #fn, fn, with }
		T(write_and_read_back, WITH_ALL),
		T(short_reads_are_the_callers, WITH_ALL),
		T(allocate_zeroes_and_keeps_the_size, WITH_ALL),
		T(many_iovecs, WITH_ALL),
		T(bad_descriptors_end_with_ebadf, WITH_ALL),
		T(l2_l4_u2_x1_5000_at_once_end_once_each, WITH_ALL),
		T(l2_u3_cancelled_in_the_queue, WITH_ALL),
		T(stats_count, WITH_ALL),
		T(registered_descriptors, WITH_ALL),
		T(l1_tasks_run_in_order_and_never_at_once, WITH_ALL),
		T(turn_end_tasks_that_come_again_run_once_a_turn, WITH_ALL),
		T(endless_tasks_do_not_stop_io, WITH_ALL),
		T(l3_posts_arrive_in_order, WITH_ALL),
		T(no_wake_is_lost, WITH_REAL),
		T(stop_wakes_a_sleeping_loop, WITH_ALL),
		T(a_loop_has_one_owner, WITH_ALL),
		T(l1_timers_ring_in_order_and_never_at_once, WITH_ALL),
		T(timers_may_change_each_other, WITH_ALL),
		T(io_wait_in_a_fiber, WITH_ALL),
		T(jobs_end_once, WITH_ALL),
		T(u1_kernels_before_5_13_are_refused, WITH_URING),
		T(environment_chooses, WITH_URING),
		T(loops_have_a_limit, WITH_SIM),
	};

	return ground_run(tests, ARRAY_SIZE(tests));
}
