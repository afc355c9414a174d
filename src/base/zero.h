/* SPDX-License-Identifier: MIT */
/* base/zero.h - are these bytes all zero? */
#ifndef BASE_ZERO_H
#define BASE_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* About as fast as memory is read; data that is none is mostly known after a few bytes. Any
 * alignment and length; nothing is zero. */
bool bytes_are_zero(const void *p, size_t len);

#endif
