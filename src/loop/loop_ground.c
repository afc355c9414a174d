/* SPDX-License-Identifier: MIT */
#include "loop/loop_ground.h"

#include <sys/mman.h>
#include <unistd.h>

#include "loop/sim.h"

static struct ground grounds[GROUNDS] = {
	{ .name = "uring", .backend = LOOP_URING },
	{ .name = "uring_6_1", .backend = LOOP_URING, .kernel_max = 601 },
	{ .name = "uring_5_15", .backend = LOOP_URING, .kernel_max = 515 },
	{ .name = "posix", .backend = LOOP_POSIX },
	{ .name = "sim", .backend = LOOP_SIM },
};

bool is_submitting;
_Atomic unsigned allocations;

/* What the linker puts between the library and the allocator: -Wl,--wrap=malloc and so on. */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n)
{
	allocations++;
	return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
	allocations++;
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
	allocations++;
	return __real_realloc(p, n);
}

/* ---- grounds ---- */

struct loop *ground_loop(struct ground *g, uint64_t seed)
{
	struct loop_opts opts = {
		.backend = g->backend, .workers = g->workers, .sim_seed = seed,
		.uring_kernel_max = g->kernel_max,
	};
	struct err err = { 0 };
	struct loop *l = NULL;
	int rc = loop_new(&opts, &l, &err);

	if (rc < 0 && g->backend == LOOP_URING)
		print_message("no io_uring here: %s\n", err.text);
	else
		assert_int_equal(rc, 0);
	return l;
}

static int set_up(void **state)
{
	struct ground *g = *state;

	assert_int_equal(workers_new(0, &g->workers, NULL), 0);
	g->l = ground_loop(g, 42);
	if (g->l)
		assert_true(loop_try_adopt(g->l));
	return 0;
}

static int tear_down(void **state)
{
	struct ground *g = *state;

	loop_free(g->l);
	workers_free(g->workers);
	return 0;
}

struct ground *ground_of(void **state)
{
	struct ground *g = *state;

	if (!g->l)
		skip();
	return g;
}

static bool is_for(const struct ground_test *t, const struct ground *g)
{
	switch (t->with) {
	case WITH_ALL:
		return true;
	case WITH_REAL:
		return g->backend != LOOP_SIM;
	case WITH_SIM:
		return g->backend == LOOP_SIM;
	case WITH_URING:
		return g->backend == LOOP_URING;
	}
	return false;
}

int ground_run(const struct ground_test *tests, size_t n)
{
	struct CMUnitTest *all = calloc(n * GROUNDS, sizeof(*all));
	char (*names)[80] = calloc(n * GROUNDS, sizeof(*names));
	size_t k = 0;
	int rc;

	alarm(300);                     /* a lost wake hangs */
	for (size_t g = 0; g < GROUNDS; g++) {
		for (size_t i = 0; i < n; i++) {
			if (!is_for(&tests[i], &grounds[g]))
				continue;
			snprintf(names[k], sizeof(names[k]), "%s_%s", grounds[g].name,
				 tests[i].name);
			all[k] = (struct CMUnitTest){ names[k], tests[i].fn, set_up, tear_down,
						      &grounds[g] };
			k++;
		}
	}
	rc = _cmocka_run_group_tests("loop", all, k, NULL, NULL);
	free(all);
	free(names);
	return rc;
}

int file_new(struct ground *g)
{
	int fd = g->backend == LOOP_SIM ? sim_file_new(g->l, 0) : memfd_create("loop", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

void file_free(struct ground *g, int fd)
{
	if (g->backend == LOOP_SIM)
		sim_file_free(g->l, fd);
	else
		close(fd);
}

/* ---- operations ---- */

static void op_done(struct io *io, int res)
{
	struct op *op = container_of(io, struct op, io);

	assert_false(is_submitting);            /* L1 */
	/* L2 */
	assert_true(op->calls == 0 || (io->op == IO_EVENT && op->res == 1));
	op->calls++;
	op->res = res;
	if (op->cancels)
		loop_cancel(op->l, &op->cancels->io);
	op->cancels = NULL;
}

void op_submit(struct loop *l, struct op *op)
{
	unsigned before = allocations;

	op->io.done = op_done;
	op->l = l;
	op->calls = 0;
	is_submitting = true;
	loop_submit(l, &op->io);
	is_submitting = false;
	assert_int_equal(allocations, before);  /* L4 */
}

int op_wait(struct loop *l, const struct op *op)
{
	while (!op->calls)
		loop_turn(l, true);
	return op->res;
}

int op_run(struct loop *l, struct op *op)
{
	op_submit(l, op);
	return op_wait(l, op);
}

struct op *op_simple(struct op *op, enum io_op kind, int fd, int mode)
{
	*op = (struct op){ .io = { .op = (uint8_t)kind, .fd = fd, .fixed = -1, .mode = mode } };
	return op;
}

struct op *op_rw(struct op *op, enum io_op kind, int fd, void *buf, size_t len, uint64_t off)
{
	op_simple(op, kind, fd, 0);
	op->iov = (struct iovec){ .iov_base = buf, .iov_len = len };
	op->io.iov = &op->iov;
	op->io.iovcnt = 1;
	op->io.off = off;
	return op;
}

struct op *op_recv(struct op *op, int fd, void *buf, size_t len)
{
	op_simple(op, IO_RECV, fd, 0);
	op->io.len = len;
	op->io.buf = buf;
	return op;
}

struct op *op_send(struct op *op, int fd, const void *buf, size_t len)
{
	op_simple(op, IO_SENDMSG, fd, 0);
	op->iov = (struct iovec){ .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
	op->msg.msg_iov = &op->iov;
	op->msg.msg_iovlen = 1;
	op->io.msg = &op->msg;
	return op;
}

void turns(struct loop *l, unsigned n)
{
	while (n--)
		loop_turn(l, false);
}
