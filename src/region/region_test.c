/* SPDX-License-Identifier: MIT */
/* region/region_test.c - regions of both kinds, against obvious models and on purpose misused.
 * fuzz/region.c does long random sequences, steps_test.c counts instructions, damage_test.c flips
 * bits. */
#include <assert.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "region/region_impl.h"

#include "base/prng.h"

enum { MEMORY = 1 << 20, PAGE = 4096 };

static _Alignas(PAGE) char memory[MEMORY];
static unsigned faults[BYRE_REGION_WRITTEN + 1];
static const void *fault_where;

static void on_fault(void *cookie, const struct byre_region_fault *fault)
{
	assert(fault->kind >= BYRE_REGION_BAD_POINTER && fault->kind <= BYRE_REGION_WRITTEN);
	assert(fault->what && fault->what[0]);
	faults[fault->kind]++;
	fault_where = fault->where;
}

/* How many faults of @kind there were since the last question; no others. */
static unsigned count_faults(enum byre_region_fault_kind kind)
{
	unsigned n = faults[kind];

	faults[kind] = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(faults); i++)
		assert(!faults[i]);
	return n;
}

static struct byre_region *make(size_t len, size_t granule, unsigned flags)
{
	struct byre_region_config config = {
		.granule = granule, .flags = flags, .hooks.report = on_fault,
	};
	struct byre_region *r = byre_region_init(memory, len, &config);

	memset(faults, 0, sizeof(faults));
	assert(r);
	return r;
}

static void assert_sound(struct byre_region *r)
{
	struct byre_region_fault f = { 0 };

	if (!byre_region_check(r, &f)) {
		print_message("%s at %td\n", f.what, (const char *)f.where - memory);
		abort();
	}
}

static struct byre_region_stats stats_of(struct byre_region *r)
{
	struct byre_region_stats s;

	byre_region_stats(r, &s);
	assert(s.used + s.free + s.records == s.held);
	assert(s.used == byre_region_used(r));
	return s;
}

/* ---- every short sequence, against a model ---- */

enum { SMALL_MAX = 8192, LIVE = 4, DEPTH = 5 };

/* What is in use, and nothing else: whether a request can be satisfied follows from the gaps. */
static struct model {
	struct block {
		char *at;               /* NULL: none */
		size_t asked, usable;
	} live[LIVE];
	char *begin, *end;              /* all that can be had is between, granules apart */
	size_t granule, head;           /* head: bytes before each block */
	unsigned long ops;
} model;

/* The bytes that a request takes. */
static size_t model_cost(size_t size)
{
	size_t cost = (size_t)align_up(size + model.head, model.granule);
	size_t least = model.head ? sizeof(struct tlsf_tag) : 1;

	return MAX(cost, (size_t)align_up(least, model.granule));
}

/* Is there a gap of @cost bytes that begins, head and all, at @align less the head? */
static bool model_has_gap(size_t cost)
{
	for (char *from = model.begin; from + cost <= model.end;) {
		char *to = from + cost, *next = NULL;

		for (unsigned i = 0; i < LIVE; i++) {
			char *at = model.live[i].at ? model.live[i].at - model.head : NULL;

			if (at && at < to && at + model.live[i].usable + model.head > from)
				next = at + model.live[i].usable + model.head;
		}
		if (!next)
			return true;
		from = next;
	}
	return false;
}

static unsigned char pattern(unsigned i)
{
	return (unsigned char)(0x30 + i);
}

static void model_check(struct byre_region *r)
{
	model.ops++;
	assert_sound(r);
	for (unsigned i = 0; i < LIVE; i++) {
		struct block *b = &model.live[i];

		if (!b->at)
			continue;
		assert(b->usable >= b->asked && b->usable == byre_region_usable(r, b->at));
		assert(b->at - model.head >= model.begin && b->at + b->usable <= model.end);
		assert(is_aligned((uintptr_t)b->at, model.granule));
		assert(!region_find_other(b->at, b->usable, pattern(i)));
	}
}

static void model_set(struct byre_region *r, unsigned i, void *p, size_t asked)
{
	struct block *b = &model.live[i];

	*b = (struct block){ p, asked, p ? byre_region_usable(r, p) : 0 };
	if (p)
		memset(p, pattern(i), b->usable);
}

static void model_alloc(struct byre_region *r, unsigned i, size_t size)
{
	bool can = model_has_gap(model_cost(size));
	void *p = byre_region_alloc(r, size, 0);

	assert(!p == !can);
	if (p)
		assert(byre_region_usable(r, p) < model_cost(size) - model.head +
		       (model.head ? sizeof(struct tlsf_tag) : 1));
	model_set(r, i, p, size);
}

static void model_resize(struct byre_region *r, unsigned i, size_t size)
{
	struct block *b = &model.live[i], old = *b;
	char *p;

	if (size <= old.usable)
		assert(byre_region_resize_in_place(r, b->at, size));
	p = byre_region_resize(r, b->at, size, 0);
	if (!p)
		return;
	assert(!region_find_other(p, MIN(old.asked, size), pattern(i)));
	model_set(r, i, p, size);
}

/* Tries each operation from this state, to @depth more. */
static void explore(struct byre_region *r, size_t len, unsigned depth, const size_t *sizes)
{
	char saved_memory[SMALL_MAX];
	struct model saved = model;

	model_check(r);
	if (!depth)
		return;
	memcpy(saved_memory, memory, len);
	for (unsigned op = 0; op < 4 + LIVE * 3; op++) {
		unsigned i = op < 4 ? 0 : (op - 4) / 3;
		unsigned long ops;

		if (op < 4) {
			while (i < LIVE && model.live[i].at)
				i++;
			if (i == LIVE)
				continue;
			model_alloc(r, i, sizes[op]);
		} else if (!model.live[i].at) {
			continue;
		} else if ((op - 4) % 3 == 0) {
			byre_region_free(r, model.live[i].at);
			model.live[i].at = NULL;
		} else {
			model_resize(r, i, sizes[(op - 4) % 3 == 1 ? 1 : 3]);
		}
		explore(r, len, depth - 1, sizes);
		ops = model.ops;
		model = saved;
		model.ops = ops;
		memcpy(memory, saved_memory, len);
	}
}

static void explore_all(size_t granule, unsigned flags, size_t room, const size_t *sizes)
{
	struct byre_region_config config = { .granule = granule };
	struct byre_region *r;
	size_t len = room;

	for (unsigned i = 0; i < 3; i++)                /* more memory has more records */
		len = byre_region_records(&config, len) + room;
	assert(len <= SMALL_MAX);
	r = make(len, granule, flags);
	assert(r->total);
	model = (struct model){ .granule = granule, .head = byre_region_overhead(r) };
	model.end = memory + len;
	model.begin = r->table ? r->base : (char *)POOL_TAG(r->pools);
	model.end = model.begin + r->total * granule;
	explore(r, len, DEPTH, sizes);
	assert(model.ops > 5000 && !count_faults(BYRE_REGION_DAMAGED));
}

static void t11_t12_t13_t14_each_short_sequence_is_like_the_model(void **state)
{
	static const size_t small[] = { 1, 40, 72, 152 }, tight[] = { 24, 56, 120, 248 };

	explore_all(16, 0, 300, small);
	explore_all(16, 0, 420, tight);
}

static void t11_t12_t13_t14_each_short_sequence_in_a_table(void **state)
{
	static const size_t sizes[] = { 64, 65, 256, 400 };

	explore_all(64, 0, 700, sizes);
}

static void r13_each_short_sequence_with_poison(void **state)
{
	static const size_t small[] = { 1, 40, 72, 152 }, large[] = { 64, 65, 256, 400 };

	explore_all(16, BYRE_REGION_POISON, 300, small);
	explore_all(64, BYRE_REGION_POISON, 700, large);
}

/* ---- the bugs that others had ---- */

static void the_block_keeps_its_rounded_size(void **state)
{
	struct byre_region *r = make(MEMORY, 0, 0);

	/* What was just freed is had again, whatever its class would round it to. */
	for (size_t size = 1; size < 200000; size += 1 + size / 7) {
		void *rest = NULL, *p = byre_region_alloc(r, size, 0);
		size_t usable = byre_region_usable(r, p);

		assert(p && usable >= size && usable < size + 32);
		while (byre_region_largest(r))
			rest = byre_region_alloc(r, byre_region_largest(r), 0);
		assert(rest);
		byre_region_free(r, p);
		assert(byre_region_alloc(r, usable, 0) == p);
		r = make(MEMORY, 0, 0);
	}
}

static void sizes_that_overflow_are_refused(void **state)
{
	static const size_t granules[] = { 0, 64, PAGE };

	for (unsigned i = 0; i < ARRAY_SIZE(granules); i++) {
		struct byre_region *r = make(MEMORY, granules[i], 0);
		void *p = byre_region_alloc(r, 100, 0);

		for (size_t d = 0; d < 5000; d++) {
			assert(!byre_region_alloc(r, SIZE_MAX - d, 0));
			assert(!byre_region_alloc(r, SIZE_MAX - d, PAGE));
			assert(!byre_region_resize(r, p, SIZE_MAX - d, 0));
			assert(!byre_region_resize_in_place(r, p, SIZE_MAX - d));
			assert(!byre_region_alloc(r, SIZE_MAX / 2 + d, 64));
		}
		for (unsigned shift = 20; shift < sizeof(size_t) * 8; shift++) {
			assert(!byre_region_alloc(r, (size_t)1 << shift, 0));
			assert(!byre_region_alloc(r, 1, (size_t)1 << shift) || shift == 20);
		}
		assert(!byre_region_alloc(r, 1, 3 * PAGE) && !byre_region_alloc(r, 1, SIZE_MAX));
		assert_sound(r);
		assert(!count_faults(BYRE_REGION_DAMAGED));
	}
}

static void a_pool_of_exactly_the_maximum_is_taken(void **state)
{
	struct byre_region_config config = { .pool_max = 64 * KiB };
	char *records = memory + MEMORY / 2;
	struct byre_region *r;

	config.records = records;
	config.records_len = byre_region_records(&config, 0);
	r = byre_region_init(NULL, 0, &config);
	assert(r && !byre_region_largest(r) && !byre_region_alloc(r, 1, 0));
	assert(!byre_region_add(r, memory, 64 * KiB + POOL_OVERHEAD + 16, false));
	assert(byre_region_add(r, memory, 64 * KiB + POOL_OVERHEAD, false));
	assert(byre_region_largest(r) == 64 * KiB - BYRE_REGION_HEADER);
	assert(byre_region_alloc(r, byre_region_largest(r), 0));
	assert(!byre_region_largest(r));
	assert_sound(r);
}

static void resizing_keeps_the_alignment(void **state)
{
	struct byre_region *r = make(MEMORY, 0, 0);

	for (size_t align = 32; align <= 64 * KiB; align *= 2) {
		unsigned char *p = byre_region_alloc(r, 300, align), *behind;

		behind = byre_region_alloc(r, 300, 0);  /* it cannot grow in place */
		memset(p, 0x77, 300);
		p = byre_region_resize(r, p, 5000, align);
		assert(p && is_aligned((uintptr_t)p, align));
		assert(!region_find_other(p, 300, 0x77));
		byre_region_free(r, p);
		byre_region_free(r, behind);
	}
	assert(stats_of(r).blocks == 0);
	assert_sound(r);
}

static void the_largest_free_block_can_be_had(void **state)
{
	static const size_t granules[] = { 0, 64 };

	for (unsigned k = 0; k < ARRAY_SIZE(granules); k++) {
		struct byre_region *r = make(MEMORY, granules[k], 0);
		struct prng rng = { 5 };
		void *p[300];
		size_t largest;

		for (unsigned i = 0; i < ARRAY_SIZE(p); i++)
			p[i] = byre_region_alloc(r, prng_below(&rng, 6000), 0);
		for (unsigned i = 0; i < ARRAY_SIZE(p); i += 1 + (unsigned)prng_below(&rng, 3))
			byre_region_free(r, p[i]);
		while ((largest = byre_region_largest(r))) {
			char *got = byre_region_alloc(r, largest, 0);

			assert(got && byre_region_usable(r, got) == largest);
		}
		assert_sound(r);
		assert(stats_of(r).free == 0);
		assert(!count_faults(BYRE_REGION_DOUBLE_FREE));
	}
}

/* ---- alignment and pages ---- */

static void all_alignments(void **state)
{
	static const size_t granules[] = { 0, 64, PAGE };

	for (unsigned k = 0; k < ARRAY_SIZE(granules); k++) {
		struct byre_region *r = make(MEMORY, granules[k], 0);

		for (size_t align = 1; align <= 128 * KiB; align *= 2) {
			for (size_t size = 0; size < 9000; size += 777) {
				char *p = byre_region_alloc(r, size, align);
				char *q = byre_region_alloc(r, 1, 0);

				assert(p && is_aligned((uintptr_t)p, align));
				memset(p, 1, byre_region_usable(r, p));
				byre_region_free(r, p);
				byre_region_free(r, q);
			}
		}
		assert(stats_of(r).blocks == 0 && stats_of(r).free_blocks == 1);
		assert_sound(r);
	}
}

/* An aligned request is satisfied from a gap that fits exactly. */
static void an_aligned_gap_is_found(void **state)
{
	struct byre_region *r = make(MEMORY, PAGE, 0);
	char *last = NULL, *p;

	while ((p = byre_region_alloc(r, 2 * PAGE, 0)))
		last = is_aligned((uintptr_t)p, 2 * PAGE) ? p : last;
	byre_region_free(r, last);
	assert(byre_region_alloc(r, 2 * PAGE, 2 * PAGE) == last);
}

static void who_knows_the_overhead_stays_in_the_page(void **state)
{
	struct byre_region *r = make(MEMORY, 0, 0);
	size_t before = stats_of(r).used;

	for (size_t pages = 1; pages < 4; pages++) {
		assert(byre_region_alloc(r, pages * PAGE - byre_region_overhead(r), 0));
		assert(stats_of(r).used - before == pages * PAGE);
		before = stats_of(r).used;
	}
	r = make(MEMORY, PAGE, 0);
	assert(byre_region_overhead(r) == 0);
	for (size_t i = 1; i < 10; i++) {
		assert(is_aligned((uintptr_t)byre_region_alloc(r, PAGE, PAGE), PAGE));
		assert(stats_of(r).used == i * PAGE);
	}
}

/* ---- misuse ---- */

static void misuse(size_t granule, unsigned flags)
{
	struct byre_region *r = make(MEMORY, granule, flags);
	char *a = byre_region_alloc(r, 200, 0), *b = byre_region_alloc(r, 200, 0);
	char *c = byre_region_alloc(r, 200, 0), *d = byre_region_alloc(r, 200, 0);
	static char elsewhere[64];

	memset(b, 0, byre_region_usable(r, b));
	for (unsigned i = 1; i < 200; i++)
		byre_region_free(r, b + i);
	assert(count_faults(BYRE_REGION_BAD_POINTER) == 199);
	byre_region_free(r, elsewhere);
	byre_region_free(r, (void *)16);
	byre_region_free(r, (void *)(UINTPTR_MAX - 15));
	byre_region_free(r, memory);
	byre_region_free(r, r);
	assert(byre_region_usable(r, b + 16) == 0);
	assert(!byre_region_resize(r, b + 16, 10, 0));
	assert(!byre_region_resize_in_place(r, elsewhere, 10));
	assert(count_faults(BYRE_REGION_BAD_POINTER) == 8);
	byre_region_free(r, NULL);
	assert(byre_region_usable(r, NULL) == 0 && !byre_region_resize_in_place(r, NULL, 1));
	/* Alone, merged with the next, with the one before, with both. */
	byre_region_free(r, b);
	byre_region_free(r, b);
	byre_region_free(r, a);
	byre_region_free(r, a);
	byre_region_free(r, b);
	byre_region_free(r, c);
	byre_region_free(r, b);
	byre_region_free(r, c);
	assert(count_faults(BYRE_REGION_DOUBLE_FREE) == 5);
	byre_region_free(r, d);
	byre_region_free(r, c);
	byre_region_free(r, d);
	assert(byre_region_usable(r, d) == 0 && !byre_region_resize(r, c, 1, 0));
	assert(count_faults(BYRE_REGION_DOUBLE_FREE) == 4);
	assert(fault_where == c);
	assert_sound(r);
	assert(stats_of(r).blocks == 0 && stats_of(r).free_blocks == 1);
}

static void t15_bad_pointers_and_double_frees_are_reported(void **state)
{
	misuse(0, 0);
	misuse(0, BYRE_REGION_POISON);
	misuse(256, 0);
	misuse(256, BYRE_REGION_POISON);
}

static void r13_writes_to_freed_memory_are_reported(void **state)
{
	static const size_t granules[] = { 0, 64 };

	for (unsigned k = 0; k < ARRAY_SIZE(granules); k++) {
		struct byre_region_fault f = { 0 };
		struct byre_region *r = make(MEMORY, granules[k], BYRE_REGION_POISON);
		char *p = byre_region_alloc(r, 1000, 0), *q = byre_region_alloc(r, 10, 0);

		assert(!region_find_other(p, 1000, REGION_POISON_NEW));
		byre_region_free(r, p);
		assert_sound(r);
		p[500] ^= 1;
		assert(!byre_region_check(r, &f));
		assert(f.kind == BYRE_REGION_WRITTEN && f.where == p + 500);
		assert(byre_region_alloc(r, 1000, 0) == p);
		assert(count_faults(BYRE_REGION_WRITTEN) == 1 && fault_where == p + 500);
		assert_sound(r);
		byre_region_free(r, q);
	}
}

/* ---- memory that comes and goes ---- */

static struct pages {
	unsigned got, put, locks, depth;
	size_t held;
	bool refuse;
} pages;

static void *get_pages(void *cookie, size_t len)
{
	assert(cookie == &pages && !pages.depth && len % PAGE == 0);
	if (pages.refuse)
		return NULL;
	pages.got++;
	pages.held += len;
	return aligned_alloc(PAGE, len);
}

static void put_pages(void *cookie, void *mem, size_t len)
{
	assert(cookie == &pages && !pages.depth);
	pages.put++;
	pages.held -= len;
	memset(mem, 0, len);
	free(mem);
}

static void lock(void *cookie)
{
	assert(cookie == &pages && !pages.depth++);
	pages.locks++;
}

static void unlock(void *cookie)
{
	assert(!--pages.depth);
}

static struct byre_region *make_growing(size_t grow, unsigned flags)
{
	struct byre_region_config config = {
		.grow = grow, .flags = flags,
		.hooks = { .cookie = &pages, .lock = lock, .unlock = unlock, .report = on_fault,
			   .get_pages = get_pages, .put_pages = put_pages },
	};

	pages = (struct pages){ 0 };
	memset(faults, 0, sizeof(faults));
	return byre_region_init(memory, byre_region_records(&config, 0), &config);
}

static void r12_pages_come_and_go(void **state)
{
	struct byre_region *r = make_growing(0, 0);
	struct prng rng = { 3 };
	void *p[100] = { 0 };

	assert(r && !byre_region_largest(r));
	p[0] = byre_region_alloc(r, PAGE - BYRE_REGION_HEADER - byre_region_pool_overhead(r), 0);
	assert(p[0] && pages.held == PAGE && pages.got == 1);
	byre_region_free(r, p[0]);
	assert(!pages.held && pages.put == 1 && stats_of(r).pools == 0);
	p[0] = NULL;
	for (unsigned i = 0; i < 3000; i++) {
		unsigned k = (unsigned)prng_below(&rng, ARRAY_SIZE(p));

		if (p[k])
			byre_region_free(r, p[k]);
		p[k] = p[k] ? NULL : byre_region_alloc(r, prng_below(&rng, 9000),
						       (size_t)1 << prng_below(&rng, 14));
		if (i % 16 == 0)
			assert_sound(r);
	}
	pages.refuse = true;
	assert(!byre_region_alloc(r, MEMORY, 0));
	for (unsigned k = 0; k < ARRAY_SIZE(p); k++)
		byre_region_free(r, p[k]);
	assert(!pages.held && pages.got == pages.put && stats_of(r).held == stats_of(r).records);
	assert(pages.locks > 3000 && !pages.depth);
	assert(!count_faults(BYRE_REGION_DAMAGED));
}

static void fini_gives_pages_back(void **state)
{
	struct byre_region *r = make_growing(64 * KiB, BYRE_REGION_POISON);

	assert(byre_region_alloc(r, 10, 0) && byre_region_alloc(r, 100000, 0));
	assert(pages.got == 2 && pages.held == 64 * KiB + 102400);
	byre_region_fini(r);
	assert(!pages.held);
}

static void memory_is_added_and_removed(void **state)
{
	struct byre_region *r = make(64 * KiB, 0, 0);
	char *more = memory + 128 * KiB + 5;
	size_t held = stats_of(r).held;
	void *p;

	assert(!byre_region_add(r, memory + 60 * KiB, 8 * KiB, false));
	assert(!byre_region_add(r, more, 40, false) && !byre_region_remove(r, more));
	assert(byre_region_add(r, more, 32 * KiB, false) && stats_of(r).pools == 2);
	assert(!byre_region_add(r, more + 32 * KiB - 1, 8 * KiB, false));
	assert(stats_of(r).held == held + 32 * KiB);
	while ((p = byre_region_alloc(r, 5000, 0)) && (char *)p < more)
		;
	assert(p && !byre_region_remove(r, more));
	byre_region_free(r, p);
	while (byre_region_alloc(r, 5000, 0))
		;
	assert_sound(r);
	r = make(64 * KiB, 0, 0);
	assert(byre_region_add(r, more, 32 * KiB, false) && byre_region_remove(r, more));
	assert(stats_of(r).held == held && !byre_region_remove(r, more));
	assert_sound(r);
}

static struct byre_region *patchwork(size_t granule, void **live, unsigned n)
{
	struct byre_region *r = make(24 * KiB, granule, 0);

	for (unsigned i = 0; i < n; i++) {
		live[i] = byre_region_alloc(r, 100 + 150 * (i % 4), 0);
		assert(live[i]);
	}
	for (unsigned i = 0; i < n; i += 3) {
		byre_region_free(r, live[i]);
		live[i] = NULL;
	}
	return r;
}

static bool sum_blocks(void *arg, const void *p, size_t usable, bool in_use)
{
	size_t *sums = arg;

	assert(p >= (void *)memory);
	sums[in_use] += usable;
	sums[2 + in_use]++;
	return sums[2] + sums[3] < sums[4];
}

static void a_walk_sees_each_block(void **state)
{
	void *live[30];
	struct byre_region *r = patchwork(64, live, ARRAY_SIZE(live));
	size_t sums[5] = { [4] = SIZE_MAX }, few[5] = { [4] = 3 };
	struct byre_region_stats s = stats_of(r);

	assert(byre_region_walk(r, sum_blocks, sums));
	assert(sums[0] == s.free && sums[1] == s.used);
	assert(sums[2] == s.free_blocks && sums[3] == s.blocks && s.blocks == 20);
	assert(!byre_region_walk(r, sum_blocks, few) && few[2] + few[3] == 3);
}

/* ---- pages inside ---- */

static unsigned char dropped[MEMORY / PAGE];

static void drop_pages(void *cookie, void *mem, size_t len)
{
	assert(is_aligned((uintptr_t)mem, PAGE) && len && len % PAGE == 0);
	memset(mem, 0, len);
	memset(dropped + ((char *)mem - memory) / PAGE, 1, len / PAGE);
}

static bool mark_used(void *arg, const void *p, size_t usable, bool in_use)
{
	const char *from = (const char *)p - BYRE_REGION_HEADER, *to = (const char *)p + usable;

	if (in_use)
		memset((char *)arg + (from - memory) / PAGE, 1,
		       (size_t)((to - 1 - memory) / PAGE - (from - memory) / PAGE + 1));
	return true;
}

static void free_pages_are_dropped(void **state)
{
	struct byre_region_config config = { .hooks = { .drop_pages = drop_pages } };
	struct byre_region *r = byre_region_init(memory, MEMORY, &config);
	unsigned char used[MEMORY / PAGE + 1] = { 0 };
	struct prng rng = { 9 };
	unsigned n = 0, was_dropped = 0, can_be = 0;
	void *p[2000];
	size_t bytes;

	while ((p[n] = byre_region_alloc(r, 300 + prng_below(&rng, 2700), 0)))
		n++;
	for (unsigned i = 0; i < n; i++) {
		if (prng_below(&rng, 10) < 7)
			byre_region_free(r, p[i]);
	}
	memset(dropped, 0, sizeof(dropped));
	bytes = byre_region_trim(r, PAGE);
	assert(bytes >= PAGE);
	bytes += byre_region_trim(r, SIZE_MAX);
	assert(byre_region_trim(r, SIZE_MAX) == 0 && stats_of(r).dropped == bytes);
	assert_sound(r);
	assert(byre_region_walk(r, mark_used, used));
	for (unsigned i = 1; i < MEMORY / PAGE - 1; i++) {      /* the records are in the first */
		can_be += !used[i];
		was_dropped += dropped[i];
		assert(!dropped[i] || !used[i]);
	}
	assert(can_be > 20 && was_dropped * 10 >= can_be * 9);
	while ((p[0] = byre_region_alloc(r, 2000, 0)))
		memset(p[0], 1, byre_region_usable(r, p[0]));
	assert_sound(r);
}

static void what_cannot_be_a_region_is_refused(void **state)
{
	struct byre_region_config bad[] = {
		{ .granule = 24 }, { .granule = 8 }, { .granule = 32 }, { .page = 100 },
		{ .flags = 2 }, { .granule = PAGE, .hooks.get_pages = get_pages },
		{ .records = memory + 1, .records_len = MEMORY },
		{ .records = memory, .records_len = 100 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert(!byre_region_init(memory, MEMORY, &bad[i]));
	for (size_t len = 0; len < byre_region_records(NULL, len); len++)
		assert(!byre_region_init(memory, len, NULL));
	assert(!byre_region_init(NULL, 0, NULL));
	for (size_t len = 4096; len < 4200; len++) {            /* each end and beginning */
		struct byre_region *r = byre_region_init(memory + len % 64, len, NULL);

		assert(r && byre_region_alloc(r, byre_region_largest(r), 0));
		assert(byre_region_check(r, NULL));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(t11_t12_t13_t14_each_short_sequence_is_like_the_model),
		cmocka_unit_test(t11_t12_t13_t14_each_short_sequence_in_a_table),
		cmocka_unit_test(r13_each_short_sequence_with_poison),
		cmocka_unit_test(the_block_keeps_its_rounded_size),
		cmocka_unit_test(sizes_that_overflow_are_refused),
		cmocka_unit_test(a_pool_of_exactly_the_maximum_is_taken),
		cmocka_unit_test(resizing_keeps_the_alignment),
		cmocka_unit_test(the_largest_free_block_can_be_had),
		cmocka_unit_test(all_alignments),
		cmocka_unit_test(an_aligned_gap_is_found),
		cmocka_unit_test(who_knows_the_overhead_stays_in_the_page),
		cmocka_unit_test(t15_bad_pointers_and_double_frees_are_reported),
		cmocka_unit_test(r13_writes_to_freed_memory_are_reported),
		cmocka_unit_test(r12_pages_come_and_go),
		cmocka_unit_test(fini_gives_pages_back),
		cmocka_unit_test(memory_is_added_and_removed),
		cmocka_unit_test(a_walk_sees_each_block),
		cmocka_unit_test(free_pages_are_dropped),
		cmocka_unit_test(what_cannot_be_a_region_is_refused),
	};

	return cmocka_run_group_tests_name("region", tests, NULL, NULL);
}
