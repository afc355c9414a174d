/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/load.h - misses: reading L1 and L2 into the cache.
 *
 * Only the home loop reads tables. A fiber of any loop that found EXT_MISS calls load_wait(): the
 * wish goes to the home loop, joins a load of the same slice that is under way, or starts
 * a fiber there; its end is posted back. At most LOADS_MAX run at a time, each in a buffer of the
 * disk's own, so that a load never waits for memory that a request holds.
 *
 * Where the image is written, tables are read through its pages in memory (meta.h), and a wish for
 * a cluster that is pending closes it first (pending.h). If that fails, the answer is that it is
 * pending. */
#ifndef FMT_QCOW2_LOAD_H
#define FMT_QCOW2_LOAD_H

#include <stdint.h>

struct loads;
struct qcow2;

enum { LOADS_MAX = 32, LOAD_AHEAD_BYTES = 64 << 10 };

struct loads *loads_new(void);          /* NULL: no memory */
void loads_free(struct loads *ls);

struct ext;

/* In a fiber of any loop: has the slice that maps guest offset @off of @q loaded, and answers what
 * map_run() says of [@off, @off + @len) while it surely is in the cache: however small the cache
 * and however many want to be in it, whoever waits gets on. 0, -EIO, -ENOMEM or -EUCLEAN. */
int load_wait(struct qcow2 *q, uint64_t off, uint64_t len, struct ext *ret);

/* For those who will want what follows, too: reads up to LOAD_AHEAD_BYTES of the L2 table at once.
 * What the caller wants to know of the slice, look(arg) finds out on the home loop while it surely
 * is in the cache. *@ret_empty_end: where not 0, L1 has no table from the slice on up to this guest
 * offset; no more of L1 is looked at than [@off, @off + @len) needs. */
int load_ahead_wait(struct qcow2 *q, uint64_t off, uint64_t len, void (*look)(void *arg), void *arg,
		    uint64_t *ret_empty_end);
/* For such a look(), which finds no entry at @off: the cluster there is pending. How much of
 * [@off, @off + @len) is in it. */
uint64_t load_pending(const struct qcow2 *q, uint64_t off, uint64_t len);

#endif
