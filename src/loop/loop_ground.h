/* SPDX-License-Identifier: MIT */
/* loop/loop_ground.h - what the tests of the loop stand on: one list of tests runs over every
 * backend that has what they need: io_uring as this kernel has it, as Linux 6.1 and 5.15 have it,
 * epoll, and the simulation.
 *
 * L1, L2 and L4 are checked wherever an op is used: op_done() fails inside a submission and when it
 * comes a second time; op_submit() fails where memory is allocated (the linker wraps it). */
#ifndef LOOP_LOOP_GROUND_H
#define LOOP_LOOP_GROUND_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/err.h"
#include "loop/loop_impl.h"

enum { GROUNDS = 5 };

struct ground {
	const char *name;
	enum loop_backend backend;
	unsigned kernel_max;
	/* Of the test that runs. */
	struct workers *workers;
	struct loop *l;
};

struct op {
	struct io io;
	struct iovec iov;
	struct msghdr msg;
	int res;
	unsigned calls;
	struct op *cancels;             /* done() cancels this one */
	struct loop *l;
};

struct ground_test {
	const char *name;
	CMUnitTestFunction fn;
	enum { WITH_ALL, WITH_REAL, WITH_SIM, WITH_URING } with;
};

extern bool is_submitting;              /* L1: nothing may be called back */
extern _Atomic unsigned allocations;    /* by the library and the test, ever */

/* Runs each of the @n tests over each ground that it is for; main()'s result. */
int ground_run(const struct ground_test *tests, size_t n);

/* The ground of a test; skips it where the system has no io_uring. */
struct ground *ground_of(void **state);
/* Another loop of the same kind. */
struct loop *ground_loop(struct ground *g, uint64_t seed);
/* An anonymous file of the ground's kind. */
int file_new(struct ground *g);
void file_free(struct ground *g, int fd);

struct op *op_rw(struct op *op, enum io_op kind, int fd, void *buf, size_t len, uint64_t off);
struct op *op_recv(struct op *op, int fd, void *buf, size_t len);
struct op *op_send(struct op *op, int fd, const void *buf, size_t len);
struct op *op_simple(struct op *op, enum io_op kind, int fd, int mode);
void op_submit(struct loop *l, struct op *op);
/* Turns @l until @op has ended. Returns its result. */
int op_wait(struct loop *l, const struct op *op);
int op_run(struct loop *l, struct op *op);
/* @n turns that do not sleep. */
void turns(struct loop *l, unsigned n);

#endif
