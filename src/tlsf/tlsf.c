/* SPDX-License-Identifier: MIT */
/* tlsf/tlsf.c - what is not on the hot paths: pools, and checking everything.
 *
 * The check trusts nothing that it has not seen from two sides. A walk over each pool proves sizes
 * against their repetitions; each free block's links are followed one step and back;
 * then the lists are walked, each element proved to be of its list, and their number compared with
 * what the pools have: so no block is missing, strange, or twice there. */
#include "tlsf/tlsf.h"

_Static_assert(sizeof(struct tlsf_tag) == 8 + 2 * sizeof(void *), "no padding");
_Static_assert(offsetof(struct tlsf_tag, next_free) == TLSF_USED_BYTES, "the part of used blocks");

static size_t end_for(uint32_t granules)
{
	return tlsf_list(tlsf_word(granules)) + 1;
}

size_t tlsf_bytes(uint32_t granules)
{
	return sizeof(struct tlsf) +
	       (end_for(granules) - TLSF_LIST_FIRST) * sizeof(struct tlsf_tag *);
}

void tlsf_init(struct tlsf *c, uint32_t granules)
{
	c->lo = 0;
	c->hi = 0;
	c->granules = 0;
	c->damage = NULL;
	c->used = 0;
	c->list_end = end_for(granules);
	c->size_max = tlsf_word(granules);
	c->level_map = 0;
	for (unsigned i = 0; i < TLSF_LEVELS; i++)
		c->list_map[i] = 0;
	for (size_t i = TLSF_LIST_FIRST; i < c->list_end; i++)
		*tlsf_head(c, i) = NULL;
}

/* ---- pools ---- */

void tlsf_add(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t, uint32_t granules)
{
	uint32_t size = tlsf_word(granules);
	struct tlsf_tag *end = tlsf_after(s, t, size);

	if (!c->granules || (uintptr_t)t < c->lo)
		c->lo = (uintptr_t)t;
	if (!c->granules || (uintptr_t)end > c->hi)
		c->hi = (uintptr_t)end;
	c->granules = (c->hi - c->lo) >> s.stride_log2;
	t->size = size;
	t->prev = TLSF_USED;
	end->size = TLSF_USED;
	end->prev = size;
	tlsf_link(c, t, size);
}

bool tlsf_remove(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t)
{
	if (t->size & TLSF_USED || t->prev != TLSF_USED || !tlsf_joined(c, s, t) ||
	    tlsf_next(s, t)->size != TLSF_USED)
		return false;
	return tlsf_unlink(c, s, t);
}

/* ---- questions ---- */

uint32_t tlsf_largest(struct tlsf *c)
{
	size_t level, list;

	if (!c->level_map)
		return 0;
	level = 31u - (unsigned)__builtin_clz(c->level_map);
	list = 31u - (unsigned)__builtin_clz(c->list_map[level]);
	return tlsf_size(*tlsf_head(c, (level << TLSF_SPLIT_LOG2) + list));
}

/* ---- checks ---- */

static struct tlsf_fault found(const char *what, const void *where)
{
	return (struct tlsf_fault){ what, where };
}

static struct tlsf_fault check_links(struct tlsf *c, const struct tlsf_tag *t,
				     tlsf_owns_fn *owns, void *arg)
{
	const struct tlsf_tag *next = t->next_free, *prev = (const struct tlsf_tag *)t->prev_free;
	size_t list = tlsf_list(tlsf_size(t));

	if (list >= c->list_end)
		return found("a free block is larger than the region can have", t);
	if (next && (!owns(arg, next) || next->prev_free != (uintptr_t)t))
		return found("a free block's link forward does not come back", t);
	if (t->prev_free == list ? *tlsf_head(c, list) != t
				 : !owns(arg, prev) || prev->next_free != t)
		return found("a free block's link back does not come back", t);
	return found(NULL, NULL);
}

struct tlsf_fault tlsf_check_pool(struct tlsf *c, struct tlsf_shape s, struct tlsf_tag *t,
				  uint32_t granules, tlsf_owns_fn *owns, void *arg,
				  struct tlsf_count *count)
{
	uint32_t before = TLSF_USED, left = tlsf_word(granules);

	while (left) {
		uint32_t size = tlsf_size(t);
		struct tlsf_fault f = { 0 };

		if (t->prev != before)
			return found("a block's record of the one before is wrong", t);
		if (size < s.least || size > left)
			return found("a block's size is impossible", t);
		if (tlsf_after(s, t, size)->prev != t->size)
			return found("a block's size is not what the next block knows", t);
		if (!((t->size | before) & TLSF_USED))
			return found("two free blocks touch", t);
		if (t->size & TLSF_USED) {
			if (t->size & TLSF_CLEAN)
				return found("a block in use has a free block's mark", t);
			count->used += size;
			count->blocks++;
		} else {
			f = check_links(c, t, owns, arg);
			count->free_blocks++;
		}
		if (f.what)
			return f;
		before = t->size;
		left -= size;
		t = tlsf_after(s, t, size);
	}
	if (t->size != TLSF_USED || t->prev != before)
		return found("the end of the memory is overwritten", t);
	return found(NULL, NULL);
}

/* Walks one list; @left counts down the free blocks not seen yet, so that circles end. */
static struct tlsf_fault check_list(struct tlsf *c, size_t list, tlsf_owns_fn *owns, void *arg,
				    size_t *left)
{
	struct tlsf_tag **link = tlsf_head(c, list);
	uintptr_t prev = list;

	for (struct tlsf_tag *t = *link; t; link = &t->next_free, prev = (uintptr_t)t, t = *link) {
		if (!owns(arg, t))
			return found("a list leads out of the memory", link);
		if (t->size & TLSF_USED || tlsf_list(tlsf_size(t)) != list ||
		    t->prev_free != prev)
			return found("a list has what does not belong there", t);
		if (!*left)
			return found("the lists have more than the free blocks", t);
		(*left)--;
	}
	return found(NULL, NULL);
}

static struct tlsf_fault check_maps(struct tlsf *c)
{
	for (size_t level = 0; level < 32; level++) {
		uint32_t map = 0;

		for (size_t i = 0; i < TLSF_SPLIT; i++) {
			size_t list = (level << TLSF_SPLIT_LOG2) + i;

			if (list >= TLSF_LIST_FIRST && list < c->list_end && *tlsf_head(c, list))
				map |= 1u << i;
		}
		if (level < TLSF_LEVELS && c->list_map[level] != map)
			return found("the map of a level is wrong", &c->list_map[level]);
		if ((c->level_map >> level & 1) != (map != 0))
			return found("the map of the levels is wrong", &c->level_map);
	}
	return found(NULL, NULL);
}

struct tlsf_fault tlsf_check_lists(struct tlsf *c, tlsf_owns_fn *owns, void *arg,
				   const struct tlsf_count *count)
{
	struct tlsf_fault f = check_maps(c);
	size_t left = count->free_blocks;

	for (size_t i = TLSF_LIST_FIRST; i < c->list_end && !f.what; i++)
		f = check_list(c, i, owns, arg, &left);
	if (f.what)
		return f;
	if (left)
		return found("a free block is in no list", c);
	if (c->used != count->used)
		return found("the count of what is in use is wrong", c);
	if (c->damage)
		return found("damage was met before", c->damage);
	return found(NULL, NULL);
}
