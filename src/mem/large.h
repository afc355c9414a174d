/* SPDX-License-Identifier: MIT */
/* mem/large.h - blocks larger than the largest class, or aligned to more than a slice: whole
 * slices.
 *
 * They come from the pages and go back there, where the next one finds their memory still warm.
 * Beyond large_keep bytes a block's memory goes back to the kernel with it. One that must move to
 * grow takes its pages along (mremap()) instead of their content, beyond LARGE_MOVE bytes, unless
 * there is memory where it goes: copying costs less than clearing pages does.
 *
 * Free dirty memory is limited: with more of it than large_dirty_max and a share of what is in use,
 * some goes back. */
#ifndef MEM_LARGE_H
#define MEM_LARGE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/bits.h"

#define LARGE_MOVE (1 * MiB)
#define LARGE_SIZE_MAX ((size_t)SLICES_MAX << SLICE_LOG2)

/* The limits, bytes: mallopt() and the environment may change them. */
extern _Atomic size_t large_keep, large_dirty_max;

/* @align is a power of two. NULL if there is no memory. @ret_dirty: 0 if it is zeros. */
void *large_alloc(size_t size, size_t align, size_t *ret_dirty);
/* @p is the first byte of a large block. */
void large_free(void *p);
size_t large_usable(const void *p);
/* How many there are, and their bytes. */
void large_count(size_t *ret_n, size_t *ret_bytes);
/* Makes the block at @p @size bytes, more than CLASS_MAX, where it is. False: no room. */
bool large_resize(void *p, size_t size);
/* A new block of @size bytes, aligned as the one at @p was asked to be, with what that has and in
 * its place. NULL, and the old one is as it was, if there is no memory. */
void *large_move(void *p, size_t size);

#endif
