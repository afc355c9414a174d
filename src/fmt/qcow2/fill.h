/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/fill.h - the old content of clusters that are replaced: copy on write. Home loop.
 *
 * A request may hold memory of the home loop's pool while it waits for us, so the buffers are our
 * own: FILL_BYTES at most, made when they are first needed; fibers queue for them. */
#ifndef FMT_QCOW2_FILL_H
#define FMT_QCOW2_FILL_H

#include <stdbool.h>
#include <stdint.h>

#include "loop/fiber.h"

struct iovec;
struct units;
struct writer;

enum {
	FILL_BYTES = 8 << 20,
	FILL_BUFS_MIN = 2, FILL_BUFS_MAX = 32,
	FILL_ZERO_CHUNK = 64 << 10,
	FILL_ZERO_WRITE_MAX = 16 << 10,        /* more is left to the file: REQ_ZERO */
	FILL_ZERO_IOVS = 34,                    /* are enough for two parts of a cluster */
};

struct fills {
	struct writer *w;
	void *idle[FILL_BUFS_MAX];      /* owned */
	unsigned nidle, nused, max;
	struct fiber_queue waiting;
	uint64_t bytes;                 /* written: what copy on write has cost */
};

void fills_init(struct fills *f, struct writer *w);
void fills_fini(struct fills *f);

/* Which units of the cluster at @guest are known to read as zeros? Never waits. */
uint32_t fill_zero_units(const struct writer *w, const struct units *u, uint64_t guest);

/* A cluster's memory, aligned. NULL: there is none, and nobody has any. */
void *fill_buf_wait(struct fills *f);
void fill_buf_put(struct fills *f, void *buf);

/* Reads bytes [@lo, @hi) of what @u shows of the cluster at @guest into @buf + @lo. */
int fill_read_wait(struct fills *f, const struct units *u, uint64_t guest, uint8_t *buf,
		   uint64_t lo, uint64_t hi);
/* Writes @len zeros at @host_off of the file with the data, a cluster's bytes at most. */
int fill_zero_wait(struct fills *f, uint64_t host_off, uint64_t len);

/* Lets @iov show @len zeros; returns how many it takes: one each FILL_ZERO_CHUNK begun. */
unsigned fill_zero_iov(struct iovec *iov, uint64_t len);

#endif
