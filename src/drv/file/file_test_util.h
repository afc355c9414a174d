/* SPDX-License-Identifier: MIT */
/* What the tests of this folder share: loops, files, requests. */
#ifndef DRV_FILE_FILE_TEST_UTIL_H
#define DRV_FILE_FILE_TEST_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/log.h"
#include "base/prng.h"
#include "base/test_scale.h"
#include "drv/file/file_impl.h"
#include "loop/iobuf.h"
#include "loop/sim.h"

static struct workers *workers;

static inline int setup_workers(void **state)
{
	return workers_new(4, &workers, NULL);
}

static inline int teardown_workers(void **state)
{
	workers_free(workers);
	return 0;
}

static inline struct loop *new_loop(enum loop_backend backend, uint64_t seed)
{
	struct loop_opts opts = { .backend = backend, .sim_seed = seed,
				  .workers = backend == LOOP_SIM ? NULL : workers };
	struct loop *l = NULL;
	struct err err = { 0 };

	if (loop_new(&opts, &l, &err) < 0)
		fail_msg("%s", err.text);
	return l;
}

/* Where there is no io_uring, its tests are left out. */
static inline bool has_backend(enum loop_backend backend)
{
	struct loop_opts opts = { .backend = backend, .workers = workers };
	struct loop *l;

	if (backend == LOOP_SIM)
		return true;
	if (loop_new(&opts, &l, NULL) < 0)
		return false;
	loop_free(l);
	return true;
}

/* A new file of @size bytes in the working directory; its name goes to @path. */
static inline int temp_file(uint64_t size, char path[32])
{
	int fd;

	strcpy(path, "file_test.XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static inline struct file_node *as_file(struct node *n)
{
	return container_of(n, struct file_node, node);
}

static inline int submit_wait(struct chan *ch, enum req_kind kind, uint64_t off, uint64_t len,
			      unsigned flags)
{
	struct req req = { .kind = (uint8_t)kind, .off = off, .len = len,
			   .flags = (uint8_t)flags };

	return chan_submit_wait(ch, &req);
}

static inline void fill(struct prng *p, void *buf, uint64_t len)
{
	uint8_t *b = buf;

	for (uint64_t i = 0; i < len; i++)
		b[i] = (uint8_t)prng_next(p);
}

#endif
