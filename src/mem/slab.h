/* SPDX-License-Identifier: MIT */
/* mem/slab.h - slabs: slices cut into objects of one class, and the bitmaps of those that are free.
 *
 * All that is known about objects lies apart from them: a bit says that an object is free, and
 * those from @begun on have never been handed out. So free memory is never read or written, its
 * pages can be dropped at any time, and what a program writes to memory that it has freed cannot
 * lead the library astray.
 *
 * A slab belongs to one heap, and only who holds that heap's lock uses it. Objects leave it for the
 * heap's magazines and come back from there; to the slab an object in a magazine is in use.
 *
 * class_start() and pages_start() come first.
 *
 * Invariants:
 *	S11  an object is free in its bitmap, or in one magazine, or in use: an object that comes
 *	     back while its bit says free was freed twice, and is reported;
 *	S12  what comes back is an object of the slab, not a pointer into one, or it is reported;
 *	S13  a slab is in its heap's list if and only if it has objects to give and is not held;
 *	S14  pages of a slab are dropped only while all objects in them are free. */
#ifndef MEM_SLAB_H
#define MEM_SLAB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/class.h"
#include "mem/pages.h"

enum { SLAB_BITS_BYTES = 512 };         /* room for the objects of the smallest class */

/* Of each slice; used where a slab or a large block begins. */
struct slab {
	uint32_t next, prev;            /* slices, in the heap's list; 0: none */
	uint16_t objects;               /* that it has room for */
	uint16_t begun;                 /* how many were ever handed out: those below have bits */
	uint16_t free;                  /* bits that are set */
	uint16_t hint;                  /* no word of the bitmap below has a bit set */
	uint8_t class;
	bool listed;
	/* log2 of the largest alignment that was asked for, of any object, by any thread. */
	_Atomic uint8_t align;
	/* A large block whose pages came from elsewhere: the kernel cannot join their mapping
	 * with its neighbours. */
	bool moved;
	bool held;                      /* not listed, and stays: see slab_hold() */
	uint16_t clean;                 /* pages that cost no memory, as far as is known */
	size_t size;                    /* of a large block, as asked for */
	uint32_t looked;                /* what slab_hold() saw last: begun, free */
	uint32_t unused[7];
};

/* The slabs of one class in one heap that have objects to give; the first is used up first. */
struct slab_list {
	uint32_t first;
	uint32_t slabs;                 /* in the list or not */
};

static inline struct slab *slab_at(size_t slice)
{
	return (struct slab *)os_area_start(OS_SLABS_BELOW) + slice;
}

/* A bit for each object of the slab that begins there: 1 if it is free. Without a slab they say
 * nothing, and their memory may go. */
static inline uint64_t *slab_bits(size_t slice)
{
	return (uint64_t *)os_area_start(OS_BITS_BELOW) + slice * (SLAB_BITS_BYTES / 8);
}

/* How many objects of @s are not in its bitmap: in use or in magazines. */
static inline unsigned slab_out(const struct slab *s)
{
	return (unsigned)s->begun - s->free;
}

/* Takes up to @n objects of @class for heap @owner, from the slabs in @list or a new one, and puts
 * them behind each other before @end, so that the one at the lowest address is the last. Returns
 * how many; 0 if there is no memory. */
unsigned slab_take(struct slab_list *list, unsigned class, uint32_t owner, void **end, unsigned n);

/* @p comes back to its slab, which is one of @list's. A slab that becomes free goes back to the
 * pages, unless it is the list's only one and has room for several objects. Does not return if @p
 * is no object in use. */
void slab_put(struct slab_list *list, void *p);

/* Gives back all slabs of @list that are free. */
void slab_trim(struct slab_list *list);

/* Giving back pages of slabs that are partly used, without a lock during the system call: with the
 * lock slab_hold() says which pages of @slab, one of @list's, have only free objects and cost
 * memory, a bit each, and if there are any takes it out of the list; @cold: only if nothing has
 * happened to it since the last look. A slab that is free goes to the pages instead. Then, with
 * no lock, the caller drops them, and with the lock slab_let_go() ends it: @pages went. */
uint16_t slab_hold(struct slab_list *list, uint32_t slab, bool cold);
void slab_let_go(struct slab_list *list, uint32_t slab, uint16_t pages);

/* Is @p, which lies in a slab, an object of it that is in use, as far as the slab knows? */
bool slab_is_out(const void *p);

/* For tests: NULL, or what is wrong with the slabs of the list. */
const char *slab_check(const struct slab_list *list, unsigned class, uint32_t owner);

#endif
