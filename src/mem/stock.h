/* SPDX-License-Identifier: MIT */
/* mem/stock.h - empty magazines.
 *
 * They are made a block at a time and never given back: a magazine for 63 objects is half a KiB.
 * Heaps keep some and exchange them here in batches, since they go one way: who frees for others
 * sends full magazines and gets none back. A batch goes as it came: only its first magazine is
 * looked at, for who had it last was another processor.
 *
 * Any thread, with any heap's lock. */
#ifndef MEM_STOCK_H
#define MEM_STOCK_H

#include <stddef.h>

#include "mem/inbox.h"

enum { STOCK_BATCH = 16 };

/* Takes some; returns them linked by magazine_next(), NULL if there is no memory. */
struct magazine *stock_take(unsigned *ret_n);
/* Gives back STOCK_BATCH that are linked so. */
void stock_put(struct magazine *list);

/* How many bytes of magazines were ever made. */
size_t stock_bytes(void);

/* For fork. */
void stock_lock(void);
void stock_unlock(void);
void stock_reset(void);

#endif
