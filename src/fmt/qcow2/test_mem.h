/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/test_mem.h - a file in memory for the tests of what writes images: grows when it is
 * written, answers in a seeded order, fails when it is told to. */
#ifndef FMT_QCOW2_TEST_MEM_H
#define FMT_QCOW2_TEST_MEM_H

#include <stdatomic.h>

#include "blk/blk.h"

struct test_mem {
	struct node node;               /* the first: where a COPY takes from is one, too */
	uint8_t *bytes;
	bool can_grow;                  /* without a write */
	uint64_t room;                  /* of bytes; no file grows beyond it: -ENOSPC */
	_Atomic uint64_t ops[REQ_KINDS];        /* that took effect, or failed */
	_Atomic int fail_after;         /* requests until one fails; < 0: never */
	_Atomic int fail_with;          /* -errno */
	bool fails_on;                  /* all that follow fail, too */
	unsigned fail_kinds;            /* bits of enum req_kind that count and fail; 0: all */
	/* Called when a request takes effect, where not NULL. */
	void (*watch)(void *arg, const struct req *req);
	void *watch_arg;
};

/* An empty file of @room bytes at most. Dies with its last reference (node_put_wait()). */
struct test_mem *test_mem_new(struct loop *home, uint64_t room);

#endif
