/* SPDX-License-Identifier: MIT */
/* loop/loop_sim_test.c - what only the simulation has: a run that a seed decides, simulated time,
 * faults, short counts. */
#include <errno.h>
#include <linux/falloc.h>
#include <poll.h>
#include <string.h>

#include "loop/loop_ground.h"
#include "loop/sim.h"

enum { N = 40 };

/* Writes and jobs on a loop made from a seed: the order of their ends, and the clock. */
struct run {
	struct loop *l;
	uint8_t order[2 * N];
	unsigned ended;
	uint64_t end_ns;
};

struct act {
	struct io io;
	struct work work;
	struct iovec iov;
	struct run *run;
	uint8_t name;
};

static void act_io_done(struct io *io, int res)
{
	struct act *a = container_of(io, struct act, io);

	a->run->order[a->run->ended++] = a->name;
}

static void act_work(struct work *w)
{
}

static void act_work_done(struct work *w)
{
	struct act *a = container_of(w, struct act, work);

	a->run->order[a->run->ended++] = a->name;
}

static void run_from(struct ground *g, uint64_t seed, struct run *ret)
{
	struct act acts[2 * N];
	int fd;

	*ret = (struct run){ .l = ground_loop(g, seed) };
	loop_turn(ret->l, false);
	fd = sim_file_new(ret->l, 4096);
	for (uint8_t i = 0; i < 2 * N; i++) {
		struct act *a = &acts[i];

		*a = (struct act){ .run = ret, .name = i };
		a->iov = (struct iovec){ &a->name, 1 };
		a->io.done = act_io_done;
		a->io.op = IO_WRITE;
		a->io.fd = fd;
		a->io.fixed = -1;
		a->io.iov = &a->iov;
		a->io.iovcnt = 1;
		a->work.fn = act_work;
		a->work.done = act_work_done;
		if (i % 2)
			loop_work(ret->l, &a->work);
		else
			loop_submit(ret->l, &a->io);
	}
	while (loop_turn(ret->l, true))
		;
	assert_int_equal(ret->ended, 2 * N);
	ret->end_ns = loop_now(ret->l);
	loop_free(ret->l);
}

static void the_seed_decides(void **state)
{
	struct ground *g = ground_of(state);
	struct run a, b, c;

	run_from(g, 7, &a);
	run_from(g, 7, &b);
	run_from(g, 8, &c);
	assert_memory_equal(a.order, b.order, sizeof(a.order));
	assert_int_equal(a.end_ns, b.end_ns);
	assert_memory_not_equal(a.order, c.order, sizeof(a.order));
}

static void nothing_to_do_returns(void **state)
{
	struct ground *g = ground_of(state);
	uint64_t now = loop_now(g->l);

	for (int i = 0; i < 10; i++)
		assert_false(loop_turn(g->l, true));
	assert_int_equal(loop_now(g->l), now);
}

static void timer_rings(struct timer *t)
{
}

/* An hour passes in no time, and exactly. */
static void time_jumps(void **state)
{
	struct ground *g = ground_of(state);
	uint64_t when = loop_now(g->l) + 3600 * NS_PER_SEC;
	struct timer t = { .fn = timer_rings };

	timer_set(g->l, &t, when);
	assert_true(loop_turn(g->l, true));
	assert_int_equal(loop_now(g->l), when);
	assert_false(t.is_set);
}

struct fault {
	unsigned calls, fails_at;
};

static int fault(void *arg, const struct io *io)
{
	struct fault *f = arg;

	return ++f->calls == f->fails_at ? -EIO : 0;
}

static void faults_hit_before_the_effect(void **state)
{
	struct ground *g = ground_of(state);
	struct fault f = { .fails_at = 2 };
	int fd = file_new(g);
	char c = 'a';
	struct op op;

	sim_set_fault(g->l, fault, &f);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, &c, 1, 0)), 1);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, &c, 1, 1)), -EIO);
	assert_int_equal(sim_file_size(g->l, fd), 1);
	assert_int_equal(op_run(g->l, op_simple(&op, IO_SYNC, fd, 0)), 0);
	assert_int_equal(f.calls, 3);
	sim_set_fault(g->l, NULL, NULL);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, &c, 1, 1)), 1);
	assert_int_equal(f.calls, 3);
	file_free(g, fd);
}

static void short_counts_end_at_a_sector(void **state)
{
	struct ground *g = ground_of(state);
	int fd = file_new(g), shorts = 0;
	static char in[8000], out[8000];
	struct op op;

	memset(in, 's', sizeof(in));
	sim_file_pwrite(g->l, fd, in, sizeof(in), 0);
	sim_set_short(g->l, 128);
	for (int i = 0; i < 200; i++) {
		int res = op_run(g->l, op_rw(&op, i % 2 ? IO_READ : IO_WRITE, fd, out, 4000, 700));

		assert_in_range(res, 1, 4000);
		assert_true(res == 4000 || (700 + res) % 512 == 0);
		shorts += res < 4000;
		memset(out, 's', sizeof(out));
	}
	assert_in_range(shorts, 60, 140);
	sim_set_short(g->l, 0);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_READ, fd, out, 8000, 0)), 8000);
	file_free(g, fd);
}

static void files_are_sparse(void **state)
{
	struct ground *g = ground_of(state);
	int fd = sim_file_new(g->l, 1 * GiB);
	char in[3] = "end", out[8] = "xxxxxxx";
	struct op op;

	assert_true(fd >= SIM_FD_BASE);
	sim_file_pwrite(g->l, fd, in, 3, GiB + 5);
	assert_int_equal(sim_file_size(g->l, fd), GiB + 8);
	sim_file_pread(g->l, fd, out, 8, GiB);
	assert_memory_equal(out, "\0\0\0\0\0end", 8);
	op_simple(&op, IO_ALLOCATE, fd, FALLOC_FL_ZERO_RANGE);
	op.io.len = 2 * GiB;
	assert_int_equal(op_run(g->l, &op), 0);
	assert_int_equal(sim_file_size(g->l, fd), 2 * GiB);
	sim_file_pread(g->l, fd, out, 8, GiB);
	assert_memory_equal(out, "\0\0\0\0\0\0\0\0", 8);
	assert_int_equal(op_run(g->l, op_rw(&op, IO_WRITE, fd, in, 3, 5 * TiB)), -EFBIG);
	assert_int_equal(op_run(g->l, op_simple(&op, IO_POLL, fd, POLLIN)), -EOPNOTSUPP);
	file_free(g, fd);
}

int main(void)
{
	static const struct ground_test tests[] = {
#define T(fn) { #fn, fn, WITH_SIM }
		T(the_seed_decides),
		T(nothing_to_do_returns),
		T(time_jumps),
		T(faults_hit_before_the_effect),
		T(short_counts_end_at_a_sector),
		T(files_are_sparse),
	};

	return ground_run(tests, ARRAY_SIZE(tests));
}
