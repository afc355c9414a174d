/* SPDX-License-Identifier: MIT */
/* mem/pages.h - runs of slices, and the map that says who has a slice.
 *
 * A slice is 64 KiB of address space. Runs of them are what slabs and large blocks are made of.
 * What is free lies in the bitmaps and lists of TLSF with the slice as the granule and tags in a
 * table (tlsf/tlsf.h): an allocation or a free takes bounded time, neighbours join, and free memory
 * is never touched.
 *
 * The map has a word for each slice, that free() reads without a lock: the heap's number and the
 * class of the objects, for the first slice of a slab; else one of enum map_state. A free slice is
 * clean if it reads as zeros and costs no memory, dirty if it has been handed out since the
 * kernel gave it.
 *
 * One lock, below that of any heap. Memory goes back to the kernel outside of it: what is dirty is
 * taken like any other run, emptied, and freed (sweep.h).
 *
 * Invariants:
 *	P11  a slice is in one run at most, and what the map says of it agrees;
 *	P12  runs are handed out zeroed if and only if pages_alloc() says so. */
#ifndef MEM_PAGES_H
#define MEM_PAGES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/os.h"
#include "mem/peek.h"

/* Map words below this have no heap; heaps are numbered from 1. */
enum { MAP_HEAP_SHIFT = 8, MAP_CLASS_MASK = 255 };

enum map_state {
	MAP_CLEAN,                      /* free, or not ours */
	MAP_DIRTY,                      /* free */
	MAP_INNER,                      /* not the first of its run */
	MAP_RUN,                        /* the first of a large block */
	MAP_HELD,                       /* being given back */
	MAP_FOREIGN,                    /* somebody else's: the first and the last of them */
};

/* The number of slices there are; those from 1 on can be asked about. Grows only. */
extern _Atomic size_t pages_end __attribute__((visibility("hidden")));

static inline void *slice_at(size_t slice)
{
	return (void *)(os_base + (slice << SLICE_LOG2));
}

/* The slice that @p is in; a number that is no slice's for what is not ours. */
static inline size_t slice_of(const void *p)
{
	return ((uintptr_t)p - os_base) >> SLICE_LOG2;
}

static inline uint32_t slice_offset(const void *p)
{
	return (uint16_t)(uintptr_t)p;
}

/* @slice is below pages_end. */
static inline _Atomic uint32_t *map_at(size_t slice)
{
	return (_Atomic uint32_t *)(os_base - OS_MAP_BELOW) + slice;
}

/* What the map says of @p, whatever @p is. An object that is not free keeps its word, so no order
 * is needed with those who write. */
static inline __attribute__((always_inline)) uint32_t map_of(const void *p)
{
	uintptr_t base = os_base;
	size_t slice = ((uintptr_t)p - base) >> SLICE_LOG2;

	if (__builtin_expect(slice >= MEM_PEEK(pages_end), 0))
		return MAP_CLEAN;
	return MEM_PEEK(((_Atomic uint32_t *)(base - OS_MAP_BELOW))[slice]);
}

/* 0 or -ENOMEM. Once, under a lock of the caller's. */
int pages_start(void);

/* A run of @n slices beginning on a multiple of @align slices (a power of two): the first one's
 * number, which is never 0; 0 if there is no memory. The map has MAP_RUN and MAP_INNER for it.
 * @ret_dirty: how many slices of it are dirty; the others are zeros. */
size_t pages_alloc(size_t n, size_t align, size_t *ret_dirty);
/* Frees a whole run. @clean: its memory was dropped or never used. */
void pages_free(size_t first, bool clean);
/* The slices of a run. */
size_t pages_run(size_t first);
/* Makes a run @n slices long where it is. False: something lies behind it, or no memory. */
bool pages_resize(size_t first, size_t n);

/* How many slices have their bitmaps (slab.h) on one page. */
enum { PAGES_BITS_SLICES = 8 };

/* What somebody gives back. */
struct pages_held {
	/* The first slice; 0: nothing. Written under the lock, so that a fork finds it. */
	uint32_t record;
	uint32_t slices;                /* of the run that was taken */
	uint32_t from, to;              /* what is to go: these slices, of which */
	uint32_t dirty;                 /* so many are dirty */
};

/* Takes free slices that follow each other: dirty ones from @slice on, up to @max, and clean ones
 * on either side and between, as far as they share a page of bitmaps. False if that one is not
 * dirty. */
bool pages_hold(size_t slice, size_t max, struct pages_held *ret);
/* They are free again, and clean if they were dropped. */
void pages_let_go(struct pages_held *h, bool dropped);
/* How many bytes are dirty. */
size_t pages_dirty(void);
/* The least that it was since the last call. */
size_t pages_dirty_low(void);

struct pages_stats {
	size_t mapped;                  /* bytes of slices, whoever has them */
	size_t used;                    /* in runs */
	size_t dirty;                   /* free, but not given back */
	size_t peak;                    /* the most that was used */
	size_t purged;                  /* given back so far */
};
void pages_stats(struct pages_stats *ret);

/* For fork: holds everything still. */
void pages_lock(void);
void pages_unlock(void);
void pages_reset(void);

/* For tests: NULL, or what is wrong. */
const char *pages_check(void);

#endif
