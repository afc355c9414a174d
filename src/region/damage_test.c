/* SPDX-License-Identifier: MIT */
/* region/damage_test.c - each bit of each record in turn is wrong: the check says so, and a region
 * that is used all the same does not touch what is not its own. */
#include <assert.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "region/region_impl.h"

enum { REGION = 24 << 10, BEHIND = 8 << 10, BLOCKS = 30 };

static _Alignas(4096) char memory[REGION + BEHIND];

/* With blocks free and in use, alone in their lists and not. */
static struct byre_region *patchwork(size_t granule, void **live, unsigned n)
{
	struct byre_region_config config = { .granule = granule };
	struct byre_region *r = byre_region_init(memory, REGION, &config);

	assert(r);
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

/* Is byte @at of the memory one that a record has? */
static bool is_metadata(struct byre_region *r, const char *at)
{
	char *first = r->table ? (char *)r->table : (char *)POOL_TAG(r->pools);
	struct tlsf_shape s = shape(r->table);
	struct tlsf_tag *t = (struct tlsf_tag *)(void *)first;
	size_t heads = r->tlsf.list_end - TLSF_LIST_FIRST;

	if (at < (char *)(r->tlsf.heads + heads))
		return at >= (char *)r;
	if (!r->table && at >= (char *)r->pools && at < first)
		return true;
	for (; (char *)t <= at; t = tlsf_next(s, t)) {
		bool is_free = !(t->size & TLSF_USED);

		if (at < (char *)t + (is_free ? sizeof(*t) : TLSF_USED_BYTES))
			return true;
		if (t->size == TLSF_USED)
			break;
	}
	return false;
}

/* Goes on using a damaged region: nothing may happen outside of it. */
static void use_damaged(struct byre_region *r, void **live, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		void *p = byre_region_alloc(r, 64 * (i % 8), i % 3 ? 0 : 256);

		byre_region_free(r, live[i]);
		byre_region_resize_in_place(r, p, 200);
		byre_region_usable(r, p);
		if (i % 2)
			byre_region_free(r, p);
	}
	byre_region_largest(r);
}

static void flip_each_bit(size_t granule)
{
	static char saved[REGION + BEHIND];
	void *live[BLOCKS];
	struct byre_region *r = patchwork(granule, live, ARRAY_SIZE(live));
	unsigned long flips = 0;
	char *tags = r->table ? (char *)r->table : (char *)r + r->records_len;

	memset(memory + REGION, 0x5a, BEHIND);
	memcpy(saved, memory, REGION + BEHIND);
	for (char *at = memory; at < memory + REGION; at++) {
		if (!is_metadata(r, at))
			continue;
		for (unsigned bit = 0; bit < 8; bit++, flips++) {
			struct byre_region_fault f = { 0 };

			*at ^= (char)(1 << bit);
			assert(!byre_region_check(r, &f));
			assert(f.kind == BYRE_REGION_DAMAGED && f.what && f.where);
			if (at >= tags)
				use_damaged(r, live, ARRAY_SIZE(live));
			assert(!region_find_other(memory + REGION, BEHIND, 0x5a));
			memcpy(memory, saved, REGION);
			assert(byre_region_check(r, &f));
		}
	}
	assert(flips > 5000);
}

static void r11_r12_each_bit_of_each_record_is_checked(void **state)
{
	flip_each_bit(0);
	flip_each_bit(64);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(r11_r12_each_bit_of_each_record_is_checked),
	};

	return cmocka_run_group_tests_name("region_damage", tests, NULL, NULL);
}
