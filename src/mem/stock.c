/* SPDX-License-Identifier: MIT */
/* mem/stock.c - making and keeping empty magazines. */
#include "mem/stock.h"

#include "mem/lock.h"
#include "mem/os.h"

static struct mem_lock lock;
/* Under the lock. */
static struct magazine *kept;           /* by magazine_next() */
static size_t made;                     /* of OS_STOCK, from its start */

struct magazine *stock_take(unsigned n, unsigned *ret_n)
{
	struct magazine *list = NULL, *m;
	unsigned got = 0;

	mem_lock(&lock);
	for (; got < n && kept; got++) {
		m = kept;
		kept = magazine_next(m);
		magazine_link(m, list, 0, 0);
		list = m;
	}
	for (; got < n; got++) {
		if (os_grow(OS_STOCK, (made + 1) * MAGAZINE_BYTES))
			break;
		m = (struct magazine *)os_area_start(OS_STOCK_BELOW) + made++;
		magazine_link(m, list, 0, 0);
		list = m;
	}
	mem_unlock(&lock);
	*ret_n = got;
	return list;
}

void stock_put(struct magazine *list, unsigned n)
{
	struct magazine *m;

	mem_lock(&lock);
	for (; n; n--) {
		m = list;
		list = magazine_next(m);
		magazine_link(m, kept, 0, 0);
		kept = m;
	}
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
