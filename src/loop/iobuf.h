/* SPDX-License-Identifier: MIT */
/* loop/iobuf.h - aligned buffers for I/O, within a budget. One pool a loop, no locks.
 *
 * Sizes are rounded up to a power of two from IOBUF_ALIGN on; freed buffers are kept for
 * reuse and given back to the system by iobuf_trim() and when the budget is short. What is
 * above IOBUF_MAX is refused: callers cut their work.
 *
 * Whoever holds a buffer must not wait for another of the same pool, or two holders can wait for
 * each other for ever. */
#ifndef LOOP_IOBUF_H
#define LOOP_IOBUF_H

#include <stddef.h>

#include "loop/loop.h"

enum { IOBUF_ALIGN = 4096, IOBUF_MAX = 64 << 20, IOBUF_BUDGET_DEFAULT = 256 << 20 };

struct iobufs;

int iobufs_new(size_t budget, struct iobufs **ret);
void iobufs_free(struct iobufs *p);     /* all buffers are back */

/* A buffer of at least @size bytes, aligned to IOBUF_ALIGN; content undefined. NULL if the budget
 * or the memory does not allow it now (it always allows one buffer). Owner only. */
void *iobuf_get(struct iobufs *p, size_t size);
/* @size as it was asked for. */
void iobuf_put(struct iobufs *p, void *buf, size_t size);
/* Runs @t (deferred on @l) after a buffer was put back: try again then. In order of arrival. */
void iobuf_notify(struct loop *l, struct iobufs *p, struct task *t);
/* In a fiber: as iobuf_get(), but waits. Never NULL for @size <= IOBUF_MAX. */
void *iobuf_get_wait(struct loop *l, struct iobufs *p, size_t size);

/* Gives free memory back to the system. Returns the bytes given back. */
size_t iobuf_trim(struct iobufs *p);
size_t iobuf_used(const struct iobufs *p);      /* bytes handed out */

#endif
