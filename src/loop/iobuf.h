/* SPDX-License-Identifier: MIT */
/* loop/iobuf.h - aligned buffers for I/O, within a budget. One pool a loop, no locks.
 *
 * Sizes are rounded up to whole pages; freed buffers are kept for reuse, by any size, and given
 * back to the system when the budget is short, when nobody needs them for a while, and by
 * iobuf_trim(). What is above IOBUF_MAX is refused: callers cut their work.
 *
 * Whoever holds a buffer must not wait for another of the same pool, or two holders can wait for
 * each other for ever. */
#ifndef LOOP_IOBUF_H
#define LOOP_IOBUF_H

#include <stddef.h>

#include "loop/loop.h"

enum { IOBUF_SLOTS = 1024 };
enum { IOBUF_ALIGN = 4096, IOBUF_MAX = 64 << 20, IOBUF_BUDGET_DEFAULT = 256 << 20 };

struct iobufs;

int iobufs_new(size_t budget, struct iobufs **ret);
void iobufs_free(struct iobufs *p);     /* all buffers are back */
/* The pool is @l's, whose timer gives back what is idle. */
void iobufs_attach(struct iobufs *p, struct loop *l);
/* What a buffer of @size bytes takes from the budget. */
size_t iobuf_bytes(const struct iobufs *p, size_t size);

/* A buffer of at least @size bytes, aligned to IOBUF_ALIGN; content undefined. NULL if the budget
 * or the memory does not allow it now (it always allows one buffer). Owner only. */
void *iobuf_get(struct iobufs *p, size_t size);
/* @size as it was asked for. */
void iobuf_put(struct iobufs *p, void *buf, size_t size);
/* Runs @t (deferred on @l) after a buffer was put back: try again then. In order of arrival. */
void iobuf_notify(struct loop *l, struct iobufs *p, struct task *t);

/* For backends: the slot under which the kernel has all of [@buf, @buf + @len), if this is in a
 * buffer and often used; -1: none. @buf must stay handed out until the I/O ends. Owner only. */
int iobuf_slot(struct iobufs *p, const void *buf, size_t len);

/* Gives free memory back to the system. Returns the bytes given back. */
size_t iobuf_trim(struct iobufs *p);
/* For tests: bytes handed out. */
size_t iobuf_used(const struct iobufs *p);

#endif
