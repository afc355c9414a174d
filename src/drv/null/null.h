/* SPDX-License-Identifier: MIT */
/* drv/null/null.h - a disk of zeros that forgets what is written: for tests and benchmarks. */
#ifndef DRV_NULL_NULL_H
#define DRV_NULL_NULL_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct loop;
struct node;

struct null_opts {
	uint64_t size;
	uint64_t latency_ns;            /* of every request but MAP; 0: none */
	bool read_only;
};

/* In a fiber of @home. */
int null_open_wait(const struct null_opts *opts, struct loop *home, struct node **ret,
		   struct err *err);

#endif
