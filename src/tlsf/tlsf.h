/* SPDX-License-Identifier: MIT */
/* tlsf/tlsf.h - two-level segregated fit: which granules are free, in bounded time.
 *
 * After M. Masmano, I. Ripoll, A. Crespo, J. Real, "TLSF: a new dynamic memory allocator for
 * real-time systems" (2004). The core knows no memory, only *tags*: one for each block, giving
 * its size and that of the block before, in granules; a tag of a free block also links it into the
 * list of its size class. The tag of granule i lies i strides from that of granule 0, so
 * the same arithmetic serves both uses:
 *	in line    the stride is the granule. Tags lie between the objects; that of a block in
 *	           use is its first TLSF_USED_BYTES, that of a free one its first
 *	           sizeof(struct tlsf_tag);
 *	in a table the stride is the size of a tag, and the table lies where the user likes;
 *	           the granule can be anything, and the core never touches its memory.
 *
 * Size classes: up to 32 granules one for each size, then 32 for each doubling. A request takes the
 * first of its own class if that is large enough, else the first of the next class above
 * that has any. So it wastes nothing by rounding, and finds again what was freed just before.
 *
 * Memory comes in pools. After the last block of each stands a tag of size 0, in use; before the
 * first there is nothing, which looks the same: coalescing needs no case for an end. Zeroed memory
 * looks like no block in use.
 *
 * Damage is met, not believed: a link or a size is used only if it stays within the tags and what
 * is at its other end agrees. What does not is kept in @damage, and the call ends. Where the pools
 * leave holes between them, a damaged link may lead there; with one pool it cannot.
 *
 * The functions of the hot paths are here and take the shape as a constant, so that shifts fold.
 * Whoever owns the struct tlsf keeps other threads away.
 *
 * Invariants:
 *	T11  a block's size word is repeated in the tag after it;
 *	T12  no two free blocks touch;
 *	T13  a free block is in the list of its size class and in no other; a list's bit is set
 *	     if and only if it has a block, a level's if and only if a list of it has;
 *	T14  @used is the sum of the blocks in use;
 *	T15  where a block was freed and is now inside a larger free one, the size word is one of a
 *	     free block, until something else is written there. */
#ifndef TLSF_TLSF_H
#define TLSF_TLSF_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	TLSF_USED = 1,                  /* in a size word: the block is in use */
	TLSF_CLEAN = 2,                 /* free, and its pages were dropped: for the user's use */
	TLSF_FLAGS = 2,                 /* bits below the size */
	TLSF_ALL_FLAGS = 3,
	TLSF_SPLIT_LOG2 = 5,
	TLSF_SPLIT = 1 << TLSF_SPLIT_LOG2,      /* lists a level */
	TLSF_LEVEL_FIRST = TLSF_FLAGS,  /* see tlsf_list() */
	TLSF_LIST_FIRST = TLSF_LEVEL_FIRST << TLSF_SPLIT_LOG2,
	TLSF_LEVELS = 28,
	TLSF_USED_BYTES = 8,            /* of the tag of a block in use */
};

/* The most granules of a pool, and so of a block. */
#define TLSF_GRANULES_MAX ((1u << (32 - TLSF_FLAGS)) - 1)

struct tlsf_tag {
	uint32_t size;                  /* a size word: granules << TLSF_FLAGS | flags */
	uint32_t prev;                  /* the size word of the block before; TLSF_USED: none */
	/* Free blocks only. */
	struct tlsf_tag *next_free;
	/* The tag before in the list; in the first one the number of the list, which no pointer can
	 * be: there are less than 1024. */
	uintptr_t prev_free;
};

/* How tags lie: constants, see TLSF_INLINE and TLSF_TABLE. */
struct tlsf_shape {
	unsigned stride_log2;
	uint32_t least;                 /* the size word of the smallest block */
};

#define TLSF_GRANULE_LOG2 4             /* in line */
#define TLSF_STRIDE_LOG2 (sizeof(struct tlsf_tag) <= 16 ? 4 : 5)        /* in a table */
#define TLSF_INLINE ((struct tlsf_shape){ TLSF_GRANULE_LOG2, \
		(sizeof(struct tlsf_tag) + 15) >> TLSF_GRANULE_LOG2 << TLSF_FLAGS })
#define TLSF_TABLE ((struct tlsf_shape){ TLSF_STRIDE_LOG2, 1 << TLSF_FLAGS })

struct tlsf {
	uintptr_t lo;                   /* the lowest tag there is */
	uintptr_t hi;                   /* the highest, which ends a pool */
	size_t granules;                /* from one to the other */
	const struct tlsf_tag *damage;  /* NULL, or where something was met that cannot be */
	size_t used;                    /* a sum of size words */
	size_t list_end;                /* one above the last list's number */
	uint32_t size_max;              /* the size word of the largest block the lists can take */
	uint32_t level_map;
	uint32_t list_map[TLSF_LEVELS]; /* by level */
	struct tlsf_tag *heads[];       /* from that of TLSF_LIST_FIRST on */
};

/* Has the longest way go straight on: what is counted is the worst case. */
#define TLSF_WORST(cond) __builtin_expect(!!(cond), 1)
/* What is kept in registers beyond this costs more to save than to load again. */
#define TLSF_FORGET() __asm__ volatile("" : : : "memory")

#define TLSF_INLINED static inline __attribute__((always_inline))

/* ---- tags ---- */

TLSF_INLINED uint32_t tlsf_granules(const struct tlsf_tag *t)
{
	return t->size >> TLSF_FLAGS;
}

/* The size word of @granules. */
TLSF_INLINED uint32_t tlsf_word(uint32_t granules)
{
	return granules << TLSF_FLAGS;
}

/* The size word of @t without its flags. */
TLSF_INLINED uint32_t tlsf_size(const struct tlsf_tag *t)
{
	return t->size & ~(uint32_t)TLSF_ALL_FLAGS;
}

/* How far apart the tags of two blocks are, in bytes, if the size word of the first is @size. */
TLSF_INLINED size_t tlsf_distance(struct tlsf_shape s, size_t size)
{
	return (size & ~(size_t)TLSF_ALL_FLAGS) << (s.stride_log2 - TLSF_FLAGS);
}

TLSF_INLINED struct tlsf_tag *tlsf_after(struct tlsf_shape s, struct tlsf_tag *t, size_t size)
{
	return (struct tlsf_tag *)(void *)((char *)t + tlsf_distance(s, size));
}

TLSF_INLINED struct tlsf_tag *tlsf_next(struct tlsf_shape s, struct tlsf_tag *t)
{
	return tlsf_after(s, t, t->size);
}

/* @off / (1 << @log2) if that leaves no remainder, else something huge: a rotation puts the bits
 * that must be 0 on top. */
TLSF_INLINED size_t tlsf_exact(size_t off, unsigned log2)
{
	return off >> log2 | off << (sizeof(off) * CHAR_BIT - log2);
}

/* The number of @t's granule, or something huge if @t is no place for a tag. */
TLSF_INLINED size_t tlsf_index(const struct tlsf *c, struct tlsf_shape s, const struct tlsf_tag *t)
{
	return tlsf_exact((uintptr_t)t - c->lo, s.stride_log2);
}

/* May there be a block's tag at @t? (The highest tag ends a pool.) */
TLSF_INLINED bool tlsf_within(const struct tlsf *c, struct tlsf_shape s, const struct tlsf_tag *t)
{
	return tlsf_index(c, s, t) < c->granules;
}

/* Is @t, which lies behind a block at @from, still within or at the end? (Where pointers are no
 * larger than sizes, the way there can wrap around.) */
TLSF_INLINED bool tlsf_not_beyond(const struct tlsf *c, const struct tlsf_tag *from,
				  const struct tlsf_tag *t)
{
	return (uintptr_t)t <= c->hi && (sizeof(t) > sizeof(t->size) || t >= from);
}

/* Is the block before @t, which lies within, where its size word @size says? Then it is @ret. */
TLSF_INLINED bool tlsf_before(const struct tlsf *c, struct tlsf_shape s, const struct tlsf_tag *t,
			      uint32_t size, struct tlsf_tag **ret)
{
	uintptr_t off = (uintptr_t)t - c->lo;

	if (__builtin_sub_overflow(off, tlsf_distance(s, size), &off))
		return false;
	*ret = (struct tlsf_tag *)(c->lo + off);
	TLSF_FORGET();
	return (*ret)->size == size;
}

/* T11 for @t, which lies within: is its size repeated behind it? */
TLSF_INLINED bool tlsf_joined(const struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t)
{
	struct tlsf_tag *next = tlsf_next(s, t);

	return tlsf_not_beyond(c, t, next) && next->prev == t->size;
}

TLSF_INLINED bool tlsf_damaged(struct tlsf *c, const struct tlsf_tag *where)
{
	c->damage = where;
	return false;
}

/* ---- lists ---- */

/* The list of blocks of a size word, from TLSF_LIST_FIRST. Levels follow each other without a seam:
 * the first has the sizes below TLSF_SPLIT granules, the second those to twice that, and each one
 * after that twice as many in each list. */
TLSF_INLINED size_t tlsf_list(uint32_t size)
{
	uint32_t first = TLSF_SPLIT << TLSF_FLAGS;
	unsigned shift = 31u - TLSF_SPLIT_LOG2 - (unsigned)__builtin_clz(size | first);

	return ((size_t)shift << TLSF_SPLIT_LOG2) + (size >> shift);
}

/* Where the first block of @list is noted. */
TLSF_INLINED struct tlsf_tag **tlsf_head(struct tlsf *c, size_t list)
{
	size_t first = offsetof(struct tlsf, heads) - TLSF_LIST_FIRST * sizeof(c->heads[0]);

	return (struct tlsf_tag **)(void *)((char *)c + (list * sizeof(c->heads[0]) + first));
}

/* All bits but bit @n % 32. */
TLSF_INLINED uint32_t tlsf_all_but(size_t n)
{
	return ~1u << (n % 32) | ~1u >> (-n % 32);      /* compiles to a rotation */
}

/* The lowest bit set in @map, which is not 0. */
TLSF_INLINED size_t tlsf_lowest(uint32_t map)
{
	return (unsigned)__builtin_ctz(map) & 31;
}

/* Puts @t, whose size word is @size, first into its list. */
TLSF_INLINED void tlsf_link(struct tlsf *c, struct tlsf_tag *t, uint32_t size)
{
	size_t list = tlsf_list(size);
	struct tlsf_tag **head = tlsf_head(c, list), *next = *head;

	*head = t;
	t->next_free = next;
	t->prev_free = list;
	if (TLSF_WORST(!next)) {
		size_t level = list >> TLSF_SPLIT_LOG2;

		c->list_map[level] |= 1u << (list % TLSF_SPLIT);
		c->level_map |= 1u << level;
	} else {
		next->prev_free = (uintptr_t)t;
	}
}

/* @list has become empty. */
TLSF_INLINED void tlsf_clear(struct tlsf *c, size_t list)
{
	size_t level = list >> TLSF_SPLIT_LOG2;

	c->list_map[level] &= tlsf_all_but(list);
	if (TLSF_WORST(!c->list_map[level]))
		c->level_map ^= 1u << level;
}

/* Can @next be what follows @t in a list? */
TLSF_INLINED bool tlsf_follows(const struct tlsf *c, struct tlsf_shape s,
			       const struct tlsf_tag *next, const struct tlsf_tag *t)
{
	return tlsf_within(c, s, next) && next->prev_free == (uintptr_t)t;
}

/* Takes @t out of its list. False, and nothing changed, if it is not where its links say. (A number
 * too small for a list leads to a map, which is no pointer to @t either.) */
TLSF_INLINED bool tlsf_unlink(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t)
{
	struct tlsf_tag *next = t->next_free, *before = (struct tlsf_tag *)t->prev_free;
	size_t list = t->prev_free;

	if (!TLSF_WORST(list < c->list_end)) {
		if (!tlsf_within(c, s, before) || before->next_free != t)
			return tlsf_damaged(c, t);
		TLSF_FORGET();
		if (!tlsf_within(c, s, next)) {
			before->next_free = NULL;
			return next ? tlsf_damaged(c, t) : true;
		}
		if (next->prev_free != (uintptr_t)t)
			return tlsf_damaged(c, t);
		next->prev_free = list;
		before->next_free = next;
		return true;
	}
	if (*tlsf_head(c, list) != t)
		return tlsf_damaged(c, t);
	if (TLSF_WORST(!next)) {
		*tlsf_head(c, list) = NULL;
		tlsf_clear(c, list);
		return true;
	}
	if (!tlsf_follows(c, s, next, t))
		return tlsf_damaged(c, t);
	*tlsf_head(c, list) = next;
	next->prev_free = list;
	return true;
}

/* ---- blocks ---- */

/* The number of a list whose head is a free block of at least @size, which is not 0 and at most
 * size_max; 0 if there is none. */
TLSF_INLINED size_t tlsf_find(struct tlsf *c, uint32_t size)
{
	size_t list = tlsf_list(size), level = list >> TLSF_SPLIT_LOG2;
	uint32_t map = c->list_map[level] & (~0u << (list % TLSF_SPLIT)), levels;

	list &= ~(size_t)(TLSF_SPLIT - 1);
	if (map) {
		size_t first = list + tlsf_lowest(map);

		if ((*tlsf_head(c, first))->size >= size)
			return first;
		map &= map - 1;
	}
	if (map)
		return list + tlsf_lowest(map);
	levels = c->level_map & (~1u << level);
	if (!levels)
		return 0;
	level = tlsf_lowest(levels);
	return (level << TLSF_SPLIT_LOG2) + tlsf_lowest(c->list_map[level]);
}

/* Makes @t, which goes to @end and has the size word @whole of a free block, one in use of @size.
 * What remains is free and keeps the flags. */
TLSF_INLINED void tlsf_cut(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t,
			   struct tlsf_tag *end, uint32_t whole, uint32_t size)
{
	uint32_t remains = whole - size;        /* flags included */

	if (TLSF_WORST(remains >= s.least)) {
		struct tlsf_tag *rest = tlsf_after(s, t, size);

		t->size = size + TLSF_USED;
		rest->prev = size + TLSF_USED;
		rest->size = remains;
		end->prev = remains;
		c->used += size;
		tlsf_link(c, rest, remains);
	} else {
		whole &= ~(uint32_t)TLSF_ALL_FLAGS;
		t->size = whole + TLSF_USED;
		end->prev = whole + TLSF_USED;
		c->used += whole;
	}
}

/* Takes @size of the first block of @list, beginning @front into it, for use; what remains on
 * either side is free. @list is tlsf_find()'s; @front is 0 or at least s.least, and both are within
 * the block. Returns the block; NULL if there is damage. */
TLSF_INLINED struct tlsf_tag *tlsf_take(struct tlsf *c, struct tlsf_shape s, size_t list,
					uint32_t front, uint32_t size)
{
	struct tlsf_tag *t = *tlsf_head(c, list), *next = t->next_free, *end;
	uint32_t whole = t->size;

	end = tlsf_after(s, t, whole);
	if (!tlsf_not_beyond(c, t, end) || end->prev != whole ||
	    (next && !tlsf_follows(c, s, next, t))) {
		tlsf_damaged(c, t);
		return NULL;
	}
	*tlsf_head(c, list) = next;
	if (TLSF_WORST(!next))
		tlsf_clear(c, list);
	else
		next->prev_free = list;
	if (front) {
		uint32_t flags = whole & TLSF_ALL_FLAGS;

		t->size = front | flags;
		tlsf_link(c, t, front);
		t = tlsf_after(s, t, front);
		t->prev = front | flags;
		whole -= front;
	}
	tlsf_cut(c, s, t, end, whole, size);
	return t;
}

/* Is there a block in use at @t, which is within? */
TLSF_INLINED bool tlsf_is_used_within(const struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t)
{
	uint32_t size = tlsf_size(t);
	struct tlsf_tag *next = tlsf_after(s, t, size);

	/* If the block is free, so says the repetition. And a tag that ends a pool has another size
	 * before it than its own, 0. */
	return tlsf_not_beyond(c, t, next) && next->prev == size + TLSF_USED;
}

/* Is there a block in use at @t, whatever @t is? */
TLSF_INLINED bool tlsf_is_used(const struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t)
{
	return tlsf_within(c, s, t) && tlsf_is_used_within(c, s, t);
}

/* Frees @t, for which tlsf_is_used() holds. Returns the free block that it is now part of; NULL if
 * there is damage. */
TLSF_INLINED struct tlsf_tag *tlsf_free(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t)
{
	uint32_t size = tlsf_size(t), before;
	struct tlsf_tag *end = tlsf_after(s, t, size);

	c->used -= size;
	t->size = 0;                            /* T15 */
	TLSF_FORGET();
	if (TLSF_WORST(!(end->size & TLSF_USED))) {
		struct tlsf_tag *next = end;
		uint32_t more = tlsf_size(next);

		end = tlsf_after(s, next, more);
		if (!tlsf_not_beyond(c, next, end) || end->prev != next->size) {
			tlsf_damaged(c, next);
			return NULL;
		}
		if (!tlsf_unlink(c, s, next))
			return NULL;
		size += more;
	}
	TLSF_FORGET();
	before = t->prev;
	if (TLSF_WORST(!(before & TLSF_USED))) {
		struct tlsf_tag *prev;

		if (!tlsf_before(c, s, t, before, &prev)) {
			tlsf_damaged(c, t);
			return NULL;
		}
		if (!tlsf_unlink(c, s, prev))
			return NULL;
		t = prev;
		size += tlsf_size(prev);
	}
	t->size = size;
	end->prev = size;
	tlsf_link(c, t, size);
	return t;
}

/* Makes @t, for which tlsf_is_used() holds, at least @size long, which is at least s.least. False
 * if the block behind is in use or too small, or if there is damage. Making it smaller never fails
 * otherwise; less than s.least is not given up where the block behind is in use. */
TLSF_INLINED bool tlsf_resize(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t,
			      uint32_t size)
{
	uint32_t old = tlsf_size(t), whole = old;
	struct tlsf_tag *next = tlsf_after(s, t, old);

	if (size == old)
		return true;
	if (!(next->size & TLSF_USED)) {
		uint32_t more = tlsf_size(next);

		if (size > old && size - old > more)
			return false;
		if (!tlsf_joined(c, s, next))
			return tlsf_damaged(c, next);
		if (!tlsf_unlink(c, s, next))
			return false;
		next = tlsf_after(s, next, more);
		whole += more;
	} else if (size > old) {
		return false;
	}
	c->used -= old;
	tlsf_cut(c, s, t, next, whole, size);
	return true;
}

/* ---- tlsf.c ---- */

/* The bytes of a struct tlsf for blocks of up to @granules, and making it one. */
size_t tlsf_bytes(uint32_t granules);
void tlsf_init(struct tlsf *c, uint32_t granules);

/* Adds a pool of one free block of @granules at @t; there is room for the tag that ends it. */
void tlsf_add(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t, uint32_t granules);
/* Takes away the pool that begins at @t. False if it is not one free block. @lo and @hi stay. */
bool tlsf_remove(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t);

/* The size word of the largest block that tlsf_find() finds; 0: it finds none. */
uint32_t tlsf_largest(struct tlsf *c);

/* What tlsf_check_pool() counts, and tlsf_check_lists() compares. */
struct tlsf_count {
	size_t used, blocks, free_blocks;       /* @used is a sum of size words */
};

/* A finding; @what is NULL if there is none. */
struct tlsf_fault {
	const char *what;
	const void *where;
};

/* Is there a tag, in a pool, at @t? For following links that cannot be trusted. */
typedef bool tlsf_owns_fn(void *arg, const struct tlsf_tag *t);

/* Checks the pool of @granules that begins at @t, and the links of its free blocks. */
struct tlsf_fault tlsf_check_pool(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t,
				  uint32_t granules, tlsf_owns_fn *owns, void *arg,
				  struct tlsf_count *count);
/* Checks the lists, after all pools. */
struct tlsf_fault tlsf_check_lists(struct tlsf *c, tlsf_owns_fn *owns, void *arg,
				   const struct tlsf_count *count);

#endif
