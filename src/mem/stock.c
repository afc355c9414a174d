/* SPDX-License-Identifier: MIT */
/* mem/stock.c - making and keeping empty magazines. */
#include "mem/stock.h"

#include "mem/lock.h"
#include "mem/os.h"

static struct mem_lock lock;
/* Under the lock. */
static struct magazine *kept;           /* first ones of batches, by next_batch() */
static size_t made;                     /* of OS_STOCK, from its start */

enum { MAKE = 8 };                      /* a page */

/* In the first magazine of a batch, which is empty. */
static struct magazine **next_batch(struct magazine *m)
{
	return (struct magazine **)(void *)&m->object[0];
}

static struct magazine *make(unsigned *ret_n)
{
	struct magazine *list = NULL, *m;
	unsigned got;

	for (got = 0; got < MAKE; got++) {
		if (os_grow(OS_STOCK, (made + 1) * MAGAZINE_BYTES))
			break;
		m = (struct magazine *)os_area_start(OS_STOCK_BELOW) + made++;
		magazine_link(m, list, 0, 0);
		list = m;
	}
	*ret_n = got;
	return list;
}

struct magazine *stock_take(unsigned *ret_n)
{
	struct magazine *list;

	mem_lock(&lock);
	list = kept;
	if (list) {
		kept = *next_batch(list);
		*ret_n = STOCK_BATCH;
	} else {
		list = make(ret_n);
	}
	mem_unlock(&lock);
	return list;
}

void stock_put(struct magazine *list)
{
	mem_lock(&lock);
	*next_batch(list) = kept;
	kept = list;
	mem_unlock(&lock);
}

size_t stock_bytes(void)
{
	size_t n;

	mem_lock(&lock);
	n = made;
	mem_unlock(&lock);
	return n * MAGAZINE_BYTES;
}

void stock_lock(void)
{
	mem_lock(&lock);
}

void stock_unlock(void)
{
	mem_unlock(&lock);
}

void stock_reset(void)
{
	mem_lock_init(&lock);
}
