/* SPDX-License-Identifier: MIT */
/* drv/throttle/throttle.h - a filter that limits bytes and operations a second. */
#ifndef DRV_THROTTLE_THROTTLE_H
#define DRV_THROTTLE_THROTTLE_H

#include <stdint.h>

struct err;
struct node;

struct throttle_limit {
	uint64_t rate;                  /* a second; 0: no limit */
	uint64_t burst;                 /* at once after idling; 0: what a tenth of a second
					 * lets through */
};

/* What each request is held against: read or write, and total. */
enum throttle_bucket {
	THROTTLE_BYTES_TOTAL,
	THROTTLE_BYTES_READ,
	THROTTLE_BYTES_WRITE,
	THROTTLE_OPS_TOTAL,
	THROTTLE_OPS_READ,
	THROTTLE_OPS_WRITE,
	THROTTLE_BUCKETS,
};

struct throttle_opts {
	struct throttle_limit limits[THROTTLE_BUCKETS];
};

/* In a fiber of @child's home loop. Takes the reference to @child on success. */
int throttle_open_wait(struct node *child, const struct throttle_opts *opts, struct node **ret,
		       struct err *err);

#endif
