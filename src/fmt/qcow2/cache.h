/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/cache.h - L2 slices in memory: one writer, many readers, no locks.
 *
 * The cache is set-associative: a key selects a set of CACHE_WAYS slots; a slot is a slice of an
 * L2 table (some kind of a layer's guest range), its entries in the machine's byte order. A slice
 * that maps nothing has only its key in the cache, marked CACHE_EMPTY: no reader touches its data.
 * One cache serves all layers of a disk, so that its budget is the disk's.
 *
 * The disk's home loop alone fills, changes and evicts (cache_insert). Every loop reads:
 *
 *	slot = cache_find(c, key);              the key was seen in the slot
 *	v = cache_read_begin(c, slot, key);     even, and the key is still there
 *	... cache_word(c, slot, i) ...
 *	if (!cache_read_valid(c, slot, v))      nobody wrote meanwhile
 *		treat it as not cached;
 *
 * In a long backing chain most layers map nothing of most ranges, and to ask each layer in turn
 * would make a read pay for all of them. So a slot keeps for each of CACHE_PARTS parts of its range
 * the *next* layer to go on at instead of the one below its own. Any reader that has walked leaves
 * it behind, in one word with the key: what was found for one slice is never taken for another's.
 * It says nothing of the slot's own entries; it stays true as long as no layer below changes.
 *
 * Invariants:
 *	C1  a reader whose cache_read_valid() is true saw words of one version of one slice:
 *	    the writer makes the version odd before the first word and even after the last. Words
 *	    are stored with release and loaded with acquire, so the version's second load stays
 *	    behind the words and its first store before them (no fence: TSan would not see it);
 *	C2  a key is in the cache at most once;
 *	C3  eviction takes the slots of a set in turn, passing over those read since the last
 *	    time round (CLOCK): what is in use stays;
 *	C4  where a part of a slice has a next layer, those between the slice's own and that one map
 *	    nothing of the part's guest range, and none of them ends inside it, unless the slice's
 *	    own layer does so before. */
#ifndef FMT_QCOW2_CACHE_H
#define FMT_QCOW2_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/prng.h"

enum { CACHE_WAYS = 8, CACHE_SLICE_BYTES_MAX = 4096, CACHE_SLICE_BYTES_MIN = 512 };
enum { CACHE_PART_BITS = 3, CACHE_PARTS = 1 << CACHE_PART_BITS };

/* Keys: layer + 1 in the bits from CACHE_LAYER_SHIFT on, the number of the slice below. 0: no
 * slice. Above them: in c->keys, CACHE_EMPTY; in c->nexts, the next layer + 1 and CACHE_LAST. */
enum { CACHE_LAYER_SHIFT = 35, CACHE_NEXT_SHIFT = 49 };
#define CACHE_SLICES_MAX (1ULL << CACHE_LAYER_SHIFT)
#define CACHE_LAYERS_MAX ((1U << (CACHE_NEXT_SHIFT - CACHE_LAYER_SHIFT)) - 1)
#define CACHE_KEY_MASK ((1ULL << CACHE_NEXT_SHIFT) - 1)
#define CACHE_EMPTY (1ULL << 63)
#define CACHE_LAST (CACHE_LAYERS_MAX + 1)       /* in a next: it maps some of the part */

struct loop;
struct loads;
struct qcow2;

struct qcow2_cache {
	/* Set by the first layer that opens, then constant. */
	unsigned slice_bytes;           /* power of two, CACHE_SLICE_BYTES_MIN to _MAX */
	unsigned set_bits;
	_Atomic uint64_t *keys;         /* slots; a set's are one cache line */
	_Atomic uint64_t *nexts;        /* slots x CACHE_PARTS */
	_Atomic uint32_t *versions;     /* odd: being written */
	_Atomic uint8_t *used;          /* read since the clock's hand passed */
	_Atomic uint64_t *words;        /* slots x slice_bytes */
	void *mapping;                  /* all five lie in it */
	size_t mapped_bytes;            /* 0: not set up */
	/* By layer. The home loop writes an entry before any next can name the layer. */
	struct qcow2 *images[CACHE_LAYERS_MAX];

	/* The home loop's alone. */
	struct loop *home;
	size_t budget;
	uint8_t *hands;                 /* a clock's hand a set */
	unsigned layers;                /* handed out */
	uint64_t loads_done;
	uint64_t evictions;
	struct loads *loads;            /* load.c: what is being read now */
};

/* Makes room for slices of @slice_bytes; the first call decides, later ones find it done.
 * -ENOMEM. */
int cache_setup(struct qcow2_cache *c, unsigned slice_bytes);
/* Puts the slice @key, whose big-endian content is @disk (NULL: empty), into the cache. Home
 * loop. */
void cache_insert(struct qcow2_cache *c, uint64_t key, const uint8_t *disk);
/* What stands in the place of an entry whose cluster is pending (pending.h): readers see a miss and
 * ask the home loop. No valid entry looks like this (reserved bits); where an image is written,
 * pendings_mark_slice() changes one that does, and where it is read, it is no mark. A bitmap of an
 * extended entry may look like this. */
#define CACHE_PENDING 0x3f00000000000002ULL

/* Changes @n words of the slice @key from @word on, where it is in the cache and not empty; readers
 * see all of them or none (C1). False: it is not there, or is empty. Home loop. */
bool cache_store(struct qcow2_cache *c, uint64_t key, unsigned word, unsigned n,
		 const uint64_t *values);
/* Has a slice of @layer in the cache a word, every @step one counts, that is @value where @mask is
 * set? Slow. Home loop. */
bool cache_has_word(const struct qcow2_cache *c, unsigned layer, unsigned step, uint64_t mask,
		    uint64_t value);
/* For tests: empties the cache. Home loop; nobody reads. */
void cache_clear(struct qcow2_cache *c);
/* For tests: does C2 hold? Slow. */
bool cache_valid(const struct qcow2_cache *c);

static inline uint64_t cache_key(unsigned layer, uint64_t slice)
{
	return ((uint64_t)(layer + 1) << CACHE_LAYER_SHIFT) | slice;
}

/* The first slot of @key's set. *@ret_way: the one of them to look at first. */
static inline size_t cache_set_of(const struct qcow2_cache *c, uint64_t key, size_t *ret_way)
{
	/* Neighbouring slices go to neighbouring sets; layers are spread. */
	uint64_t slice = key & (CACHE_SLICES_MAX - 1);
	uint64_t spread = (key >> CACHE_LAYER_SHIFT) * 0x9e3779b97f4a7c15ULL >> 40;

	*ret_way = (slice + spread) >> c->set_bits & (CACHE_WAYS - 1);
	return ((slice + spread) & ((1ULL << c->set_bits) - 1)) * CACHE_WAYS;
}

/* The slot of @key, or -1. *@ret_empty: the slice maps nothing, and there is nothing to read. */
static inline long cache_find(struct qcow2_cache *c, uint64_t key, bool *ret_empty)
{
	size_t way, set = cache_set_of(c, key, &way);

	for (size_t n = 0; n < CACHE_WAYS; n++) {
		size_t i = set + ((way + n) & (CACHE_WAYS - 1));
		uint64_t k = atomic_load_explicit(&c->keys[i], memory_order_acquire);

		if ((k & ~CACHE_EMPTY) != key)
			continue;
		*ret_empty = k & CACHE_EMPTY;
		if (!atomic_load_explicit(&c->used[i], memory_order_relaxed))
			atomic_store_explicit(&c->used[i], 1, memory_order_relaxed);
		return (long)i;
	}
	return -1;
}

/* The layer + 1 where to go on below @part of @key's slice, maybe with CACHE_LAST; 0: not known. */
static inline uint16_t cache_next(const struct qcow2_cache *c, long slot, uint64_t key,
				  unsigned part)
{
	uint64_t word = atomic_load_explicit(&c->nexts[(size_t)slot * CACHE_PARTS + part],
					     memory_order_acquire);

	return (word & CACHE_KEY_MASK) == key ? (uint16_t)(word >> CACHE_NEXT_SHIFT) : 0;
}

/* Leaves @next behind (C4) for whoever comes that way later. Any thread. */
void cache_set_next(struct qcow2_cache *c, uint64_t key, unsigned part, unsigned next);

/* The version to check against later; odd where there is nothing to read. */
static inline uint32_t cache_read_begin(const struct qcow2_cache *c, long slot, uint64_t key)
{
	uint32_t v = atomic_load_explicit(&c->versions[slot], memory_order_acquire);

	if (atomic_load_explicit(&c->keys[slot], memory_order_acquire) != key)
		return 1;
	return v;
}

static inline uint64_t cache_word(const struct qcow2_cache *c, long slot, unsigned word)
{
	return atomic_load_explicit(&c->words[(size_t)slot * (c->slice_bytes / 8) + word],
				    memory_order_acquire);
}

static inline bool cache_read_valid(const struct qcow2_cache *c, long slot, uint32_t version)
{
	return !(version & 1) &&
	       atomic_load_explicit(&c->versions[slot], memory_order_relaxed) == version;
}

#endif
