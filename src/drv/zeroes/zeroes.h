/* SPDX-License-Identifier: MIT */
/* drv/zeroes/zeroes.h - a filter that turns writes of zeros into REQ_ZERO, as QEMU's
 * detect-zeroes does. */
#ifndef DRV_ZEROES_ZEROES_H
#define DRV_ZEROES_ZEROES_H

#include <stdbool.h>

struct err;
struct node;

/* In a fiber of @child's home loop. Takes the reference to @child on success. @unmap: space may be
 * given back. */
int zeroes_open_wait(struct node *child, bool unmap, struct node **ret, struct err *err);

#endif
