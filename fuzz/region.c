/* SPDX-License-Identifier: MIT */
/* fuzz/region.c - a sequence of calls on a region, beside a map of who has which byte.
 *
 * The first byte of an input chooses the granule, poison mode and whether memory comes by hooks.
 * Then four bytes a call: what, which slot, and a number. After each, everything is checked.
 *
 * Also held: no block overlaps another or the records; content survives; alignment is as asked;
 * what is wrong is reported once, and nothing else is. */
#include <byre/region.h>

#include "base/bits.h"
#include "fuzz/fuzz.h"

enum { SLOTS = 64, OWN = 32 << 10, PAGE = 4096, PAGES = 16, MEMORY = OWN + PAGES * PAGE,
       CALL = 4, CALLS_MAX = 400 };

static _Alignas(PAGE) unsigned char memory[MEMORY];
static unsigned char owner[MEMORY];             /* 0: nobody; else slot + 1 */
static bool page_used[PAGES];
static unsigned faults;
static struct slot {
	unsigned char *at;
	size_t size, usable, align;
} slots[SLOTS];

static void on_fault(void *cookie, const struct byre_region_fault *fault)
{
	faults++;
}

static void *get_pages(void *cookie, size_t len)
{
	size_t n = len / PAGE;

	for (size_t i = 0; i + n <= PAGES; i++) {
		size_t free = 0;

		while (free < n && !page_used[i + free])
			free++;
		if (free == n) {
			memset(page_used + i, 1, n);
			return memory + OWN + i * PAGE;
		}
	}
	return NULL;
}

static void put_pages(void *cookie, void *mem, size_t len)
{
	size_t first = (size_t)((unsigned char *)mem - memory - OWN) / PAGE;

	for (size_t i = 0; i < len / PAGE; i++) {
		FUZZ_CHECK(page_used[first + i], "page %zu put twice", first + i);
		page_used[first + i] = false;
	}
	for (size_t i = 0; i < len; i++)
		FUZZ_CHECK(!owner[OWN + first * PAGE + i], "put with a block in it");
	memset(mem, 0xee, len);
}

static void drop_pages(void *cookie, void *mem, size_t len)
{
	for (size_t i = 0; i < len; i++)
		FUZZ_CHECK(!owner[(unsigned char *)mem - memory + i], "a page in use is dropped");
	memset(mem, 0, len);
}

/* [@s->at, + usable) changes from @from to @to. */
static void own(const struct slot *s, unsigned from, unsigned to)
{
	size_t at = (size_t)(s->at - memory);

	FUZZ_CHECK(s->at >= memory && s->usable <= MEMORY - at, "outside");
	for (size_t i = 0; i < s->usable; i++)
		FUZZ_CHECK(owner[at + i] == from, "byte %zu is of %u", at + i, owner[at + i]);
	memset(owner + at, (int)to, s->usable);
}

static unsigned char content(const struct slot *s, size_t i)
{
	return (unsigned char)((size_t)(s - slots) * 37 + i * 11 + 1);
}

static void write_content(struct slot *s)
{
	for (size_t i = 0; i < s->usable; i++)
		s->at[i] = content(s, i);
}

static void check_content(const struct slot *s, const unsigned char *at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		FUZZ_CHECK(at[i] == content(s, i), "byte %zu has changed", i);
}

static unsigned id(const struct slot *s)
{
	return (unsigned)(s - slots) + 1;
}

static void take(struct byre_region *r, struct slot *s, void *p, size_t size, size_t align)
{
	*s = (struct slot){ p, size, byre_region_usable(r, p), align };
	FUZZ_CHECK(s->usable >= size, "too small");
	FUZZ_CHECK(!((uintptr_t)p & (MAX(align, (size_t)16) - 1)), "not aligned");
	own(s, 0, id(s));
	write_content(s);
}

static void alloc(struct byre_region *r, struct slot *s, size_t size, size_t align)
{
	size_t largest = byre_region_largest(r);
	void *p;

	if (s->at)
		return;
	p = byre_region_alloc(r, size, align);
	FUZZ_CHECK(p || align > 16 || !largest || size > largest, "%zu of %zu refused", size,
		   largest);
	if (p)
		take(r, s, p, size, align);
}

static void release(struct byre_region *r, struct slot *s)
{
	if (!s->at)
		return;
	check_content(s, s->at, s->usable);
	own(s, id(s), 0);
	byre_region_free(r, s->at);
	s->at = NULL;
}

static void resize(struct byre_region *r, struct slot *s, size_t size, bool in_place)
{
	struct slot old = *s;
	unsigned char *p;

	if (!s->at)
		return;
	check_content(s, s->at, s->usable);
	own(s, id(s), 0);
	if (in_place)
		p = byre_region_resize_in_place(r, s->at, size) ? s->at : NULL;
	else
		p = byre_region_resize(r, s->at, size, s->align);
	FUZZ_CHECK(p || size > old.usable, "cannot shrink");
	check_content(s, p ? p : old.at, p ? MIN(old.usable, size) : old.usable);
	take(r, s, p ? p : old.at, p ? size : old.size, s->align);
}

/* Frees what is not to be freed: within a block, or where one was. */
static void misuse(struct byre_region *r, const struct slot *s, size_t number)
{
	unsigned char *p = memory + number % MEMORY;

	if (s->at && s->usable > 1)
		p = s->at + 1 + number % (s->usable - 1);
	for (unsigned i = 0; i < SLOTS; i++) {
		if (slots[i].at == p)
			return;
	}
	faults = 0;
	byre_region_free(r, p);
	FUZZ_CHECK(faults == 1, "%u reports", faults);
	faults = 0;
}

static void call(struct byre_region *r, const uint8_t *c)
{
	struct slot *s = &slots[c[1] % SLOTS];
	size_t number = (size_t)c[2] | (size_t)c[3] << 8;
	size_t size = number % 3 ? number % 600 : number % 9000;

	switch (c[0] % 8) {
	case 0: case 1: alloc(r, s, size, 0); break;
	case 2: alloc(r, s, size, (size_t)1 << (c[0] >> 3) % 14); break;
	case 3: case 4: release(r, s); break;
	case 5: resize(r, s, size, c[0] & 8); break;
	case 6: misuse(r, s, number * 2); break;
	default: byre_region_trim(r, number % 2 ? SIZE_MAX : PAGE);
	}
}

static void check(struct byre_region *r)
{
	struct byre_region_fault f = { 0 };

	FUZZ_CHECK(byre_region_check(r, &f), "%s", f.what);
	FUZZ_CHECK(!faults, "%u faults", faults);
}

static struct byre_region *make(uint8_t kind)
{
	static const size_t granules[] = { 16, 16, 64, PAGE };
	struct byre_region_config config = {
		.granule = granules[kind % 4], .flags = kind & 4 ? BYRE_REGION_POISON : 0,
		.hooks.report = on_fault, .hooks.drop_pages = drop_pages,
	};

	if (kind & 8 && config.granule == 16) {
		config.hooks.get_pages = get_pages;
		config.hooks.put_pages = put_pages;
		config.grow = kind & 16 ? 2 * PAGE : 0;
	}
	memset(memory, kind & 32 ? 0xff : 0, sizeof(memory));
	memset(owner, 0, sizeof(owner));
	memset(slots, 0, sizeof(slots));
	memset(page_used, 0, sizeof(page_used));
	faults = 0;
	return byre_region_init(memory, OWN, &config);
}

static void run(const uint8_t *data, size_t size)
{
	struct byre_region *r;

	if (!size)
		return;
	r = make(data[0]);
	FUZZ_CHECK(r, "no region");
	for (size_t at = 1; at + CALL <= size; at += CALL) {
		call(r, data + at);
		check(r);
	}
	for (unsigned i = 0; i < SLOTS; i++)
		release(r, &slots[i]);
	check(r);
	FUZZ_CHECK(byre_region_used(r) == 0, "%zu bytes left", byre_region_used(r));
	byre_region_fini(r);
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return fuzz_mutate_calls(data, size, max, 1, CALL, p);
}

const struct fuzz_target fuzz_target = { "region", 1 + CALL * CALLS_MAX, run, mutate };
