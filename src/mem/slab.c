/* SPDX-License-Identifier: MIT */
/* mem/slab.c - taking objects out of slabs and putting them back. */
#include "mem/slab.h"

#include <assert.h>

_Static_assert(sizeof(struct slab) == 64, "os.h gives a slice 64 bytes");
_Static_assert(SLAB_BITS_BYTES * PAGES_BITS_SLICES == OS_PAGE, "so many on a page");
_Static_assert(SLICE_BYTES / 16 / 8 == SLAB_BITS_BYTES, "os.h gives a slice 512 bytes");

static uint32_t number(const struct slab *s)
{
	return (uint32_t)(s - slab_at(0));
}

/* ---- the list ---- */

static void list_in(struct slab_list *list, struct slab *s)
{
	s->next = list->first;
	s->prev = 0;
	s->listed = true;
	if (s->next)
		slab_at(s->next)->prev = number(s);
	list->first = number(s);
}

static void list_out(struct slab_list *list, struct slab *s)
{
	if (s->prev)
		slab_at(s->prev)->next = s->next;
	else
		list->first = s->next;
	if (s->next)
		slab_at(s->next)->prev = s->prev;
	s->listed = false;
}

/* ---- slabs ---- */

static struct slab *slab_new(struct slab_list *list, unsigned class, uint32_t owner)
{
	size_t dirty, slice = pages_alloc(class_info[class].slices, 1, &dirty);
	struct slab *s;
	uint64_t *bits;

	if (!slice)
		return NULL;
	s = slab_at(slice);
	*s = (struct slab){
		.class = (uint8_t)class,
		.objects = class_info[class].objects,
		.clean = dirty ? 0 : UINT16_MAX,
	};
	bits = slab_bits(slice);
	for (unsigned i = 0; i < div_round_up(s->objects, 64); i++)
		bits[i] = 0;
	/* Pairs with nothing: a pointer to an object comes after. */
	atomic_store_explicit(map_at(slice), owner << MAP_HEAP_SHIFT | class,
			      memory_order_relaxed);
	list->slabs++;
	list_in(list, s);
	return s;
}

static void slab_free(struct slab_list *list, struct slab *s)
{
	list_out(list, s);
	list->slabs--;
	pages_free(number(s), false);
}

/* ---- taking ---- */

enum { PAGES = SLICE_BYTES / OS_PAGE };

/* The pages of [@lo, @hi), offsets into a slab. */
static uint16_t pages_of(size_t lo, size_t hi)
{
	unsigned first = (unsigned)(lo / OS_PAGE), last = (unsigned)((hi - 1) / OS_PAGE);

	return (uint16_t)((2u << last) - (1u << first));
}

/* Up to @n objects whose bits are set, to before @end. */
static unsigned take_freed(struct slab *s, void **end, unsigned n)
{
	char *base = slice_at(number(s));
	uint64_t *bits = slab_bits(number(s));
	size_t size = class_info[s->class].size;
	unsigned got = 0;

	for (unsigned w = s->hint; got < n && s->free; w++) {
		uint64_t word = bits[w];

		s->hint = (uint16_t)w;
		while (word && got < n) {
			unsigned bit = (unsigned)__builtin_ctzll(word);

			word &= word - 1;
			size_t off = ((size_t)w * 64 + bit) * size;

			*--end = base + off;
			got++;
			s->free--;
			if (s->clean)
				s->clean &= (uint16_t)~pages_of(off, off + size);
		}
		bits[w] = word;
	}
	return got;
}

/* Up to @n objects that were never handed out. */
static unsigned take_new(struct slab *s, void **end, unsigned n)
{
	size_t size = class_info[s->class].size;
	char *at = (char *)slice_at(number(s)) + s->begun * size;
	unsigned got = MIN(n, (unsigned)s->objects - s->begun);

	if (s->clean && got && s->objects > 1)
		s->clean &= (uint16_t)~pages_of(s->begun * size, (s->begun + got) * size);
	for (unsigned i = 0; i < got; i++, at += size)
		*--end = at;
	s->begun = (uint16_t)(s->begun + got);
	return got;
}

unsigned slab_take(struct slab_list *list, unsigned class, uint32_t owner, void **end, unsigned n)
{
	unsigned got = 0;

	while (got < n) {
		struct slab *s = list->first ? slab_at(list->first) : NULL;

		/* Not more than one new slab for what nobody may ask for. */
		if (!s && got)
			break;
		if (!s)
			s = slab_new(list, class, owner);
		if (!s)
			break;
		got += take_freed(s, end - got, n - got);
		got += take_new(s, end - got, n - got);
		if (!s->free && s->begun == s->objects)
			list_out(list, s);
	}
	return got;
}

/* ---- putting ---- */

/* The number of the object at @p in @s; it is one, or this does not return. */
static unsigned index_of(const struct slab *s, const void *p)
{
	uint32_t k = class_info[s->class].mul;
	unsigned i = class_index(k, slice_offset(p));

	if (!class_is_object(k, slice_offset(p)) || i >= s->begun)
		os_die("free(): invalid pointer", p);
	return i;
}

void slab_put(struct slab_list *list, void *p)
{
	struct slab *s = slab_at(slice_of(p));
	unsigned i = index_of(s, p);
	uint64_t *word = &slab_bits(number(s))[i / 64], bit = UINT64_C(1) << i % 64;

	if (*word & bit)
		os_die("free(): double free of", p);
	*word |= bit;
	s->free++;
	s->hint = (uint16_t)MIN((unsigned)s->hint, i / 64);
	if (s->held)
		return;
	if (!s->listed)
		list_in(list, s);
	if (s->free == s->begun && (s->next || s->prev || s->objects == 1))
		slab_free(list, s);
}

void slab_trim(struct slab_list *list)
{
	for (uint32_t at = list->first, next; at; at = next) {
		struct slab *s = slab_at(at);

		next = s->next;
		if (s->free == s->begun)
			slab_free(list, s);
	}
}

/* ---- pages of slabs that are partly used ---- */

/* Are the objects from @i up to @end all free? */
static bool are_free(const uint64_t *bits, unsigned i, unsigned end)
{
	while (i < end) {
		unsigned n = MIN(64 - i % 64, end - i);
		uint64_t mask = ~UINT64_C(0) >> (64 - n) << i % 64;

		if ((bits[i / 64] & mask) != mask)
			return false;
		i += n;
	}
	return true;
}

/* The pages of @s on which nothing is in use. */
static uint16_t free_pages(const struct slab *s)
{
	const uint64_t *bits = slab_bits(number(s));
	uint32_t k = class_info[s->class].mul;
	uint16_t pages = 0;

	for (uint32_t page = 0; page < PAGES; page++) {
		/* The objects that have a byte in it, as far as they were ever handed out. */
		unsigned first = class_index(k, page * OS_PAGE);
		unsigned end = class_index(k, (page + 1) * OS_PAGE - 1) + 1;

		if (are_free(bits, first, MIN(end, (unsigned)s->begun)))
			pages |= (uint16_t)(1u << page);
	}
	return pages;
}

/* Not without looking at all bits: could there be such a page that costs memory? */
static bool has_room(const struct slab *s)
{
	size_t room = (size_t)(s->objects - slab_out(s)) * class_info[s->class].size;

	/* Behind the last object there may be a rest of a page. */
	return room + OS_PAGE > (size_t)OS_PAGE * (1 + (unsigned)__builtin_popcount(s->clean));
}

uint16_t slab_hold(struct slab_list *list, uint32_t slab, bool cold)
{
	struct slab *s = slab_at(slab);
	uint32_t looked = (uint32_t)s->begun << 16 | s->free;
	bool same = s->looked == looked;
	uint16_t pages;

	s->looked = looked;
	if (!s->listed || (cold && !same))
		return 0;
	if (s->free == s->begun) {
		slab_free(list, s);
		return 0;
	}
	pages = s->objects > 1 && has_room(s) ? free_pages(s) & (uint16_t)~s->clean : 0;
	if (pages) {
		list_out(list, s);
		s->held = true;
	}
	return pages;
}

void slab_let_go(struct slab_list *list, uint32_t slab, uint16_t pages)
{
	struct slab *s = slab_at(slab);

	s->clean |= pages;
	s->held = false;
	list_in(list, s);
	if (s->free == s->begun && (s->next || s->prev))
		slab_free(list, s);
}

bool slab_is_out(const void *p)
{
	const struct slab *s = slab_at(slice_of(p));
	uint32_t k = class_info[s->class].mul;
	unsigned i = class_index(k, slice_offset(p));

	return class_is_object(k, slice_offset(p)) && i < s->begun &&
	       !(slab_bits(number(s))[i / 64] >> i % 64 & 1);
}

/* ---- checking ---- */

static const char *check_one(const struct slab *s, unsigned class, uint32_t owner)
{
	const uint64_t *bits = slab_bits(number(s));
	unsigned set = 0;

	if (atomic_load_explicit(map_at(number(s)), memory_order_relaxed) !=
	    (owner << MAP_HEAP_SHIFT | class))
		return "the map does not know a slab";
	if (s->class != class || s->objects != class_objects(class) || s->begun > s->objects)
		return "a slab's numbers are wrong";
	for (unsigned i = 0; i < s->objects; i++) {
		bool free = bits[i / 64] >> i % 64 & 1;

		set += free;
		if (free && i >= s->begun)
			return "an object is free that was never handed out";
		if (free && i / 64 < s->hint)
			return "a free object lies below the hint";
	}
	return set == s->free ? NULL : "a slab's count of free objects is wrong";
}

const char *slab_check(const struct slab_list *list, unsigned class, uint32_t owner)
{
	uint32_t before = 0, left = list->slabs;

	for (uint32_t at = list->first; at; before = at, at = slab_at(at)->next) {
		const struct slab *s = slab_at(at);
		const char *what = check_one(s, class, owner);

		if (what)
			return what;
		if (!left-- || s->prev != before || !s->listed)
			return "a list of slabs is broken";
		if (!s->free && s->begun == s->objects)
			return "a full slab is in the list";
	}
	return NULL;
}
