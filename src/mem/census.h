/* SPDX-License-Identifier: MIT */
/* mem/census.h - looking at all heaps: to count, and to take back.
 *
 * Any thread, without locks. Heaps are looked at one after the other, so sums are of different
 * moments. */
#ifndef MEM_CENSUS_H
#define MEM_CENSUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/class.h"
#include "mem/pages.h"

struct census_class {
	size_t used;                    /* objects that the program has */
	size_t cached;                  /* that lie in magazines */
	size_t slabs;
};

struct census {
	struct pages_stats pages;
	struct census_class classes[CLASSES];
	size_t heaps;
	size_t used;                    /* bytes that the program has, rounded up to classes */
	size_t cached;                  /* bytes in magazines */
	size_t large;                   /* large blocks */
	size_t large_bytes;
	size_t metadata;                /* bytes, at most */
};

void census_take(struct census *ret);

/* Puts what heaps @from to before @to have in magazines into slabs, as far as it can be had. */
void census_empty(uint32_t from, uint32_t to);

/* Gives back up to @budget bytes of what is free, but keeps @keep bytes of free slices. Returns how
 * many went. */
size_t census_release(size_t budget, size_t keep);
/* Is somebody at it? A hint. */
bool census_is_releasing(void);
/* In the child of a fork. */
void census_reset(void);

#endif
