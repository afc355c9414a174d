/* SPDX-License-Identifier: MIT */
/* Pages come from a mapping in which whatever was given back cannot be touched. */
#include <byre/xmalloc.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"

enum { PAGE = 4096, PAGES = 4096 };

static struct world {
	char *base;
	bool is_out[PAGES];             /* with the heap */
	size_t out;                     /* how many */
	size_t gets;
	size_t refuse_after;            /* how many calls of get_pages() succeed from now on */
	int locks;                      /* depth: 0 or 1 */
	unsigned faults;
	enum byre_region_fault_kind last_fault;
	struct byre_xheap *heap;
} w;

struct byre_xheap *byre_xheap_current(void)
{
	return w.heap;
}

static void *get_pages(void *cookie, size_t len)
{
	size_t n = len / PAGE, run = 0;

	assert_ptr_equal(cookie, &w);
	assert_int_equal(w.locks, 0);
	assert_true(n && len % PAGE == 0);
	w.gets++;
	if (!w.refuse_after)
		return NULL;
	w.refuse_after--;
	for (size_t i = 0; i < PAGES; i++) {
		run = w.is_out[i] ? 0 : run + 1;
		if (run < n)
			continue;
		for (size_t k = i + 1 - n; k <= i; k++)
			w.is_out[k] = true;
		w.out += n;
		assert_int_equal(mprotect(w.base + (i + 1 - n) * PAGE, len,
					  PROT_READ | PROT_WRITE), 0);
		return w.base + (i + 1 - n) * PAGE;
	}
	return NULL;
}

static void put_pages(void *cookie, void *pages, size_t len)
{
	size_t first = (size_t)((char *)pages - w.base) / PAGE;

	assert_ptr_equal(cookie, &w);
	assert_int_equal(w.locks, 0);
	assert_true(len && len % PAGE == 0 && (uintptr_t)pages % PAGE == 0);
	for (size_t i = 0; i < len / PAGE; i++) {
		assert_true(w.is_out[first + i]);
		w.is_out[first + i] = false;
	}
	w.out -= len / PAGE;
	assert_int_equal(mprotect(pages, len, PROT_NONE), 0);
}

static void lock(void *cookie)
{
	assert_int_equal(w.locks++, 0);
}

static void unlock(void *cookie)
{
	assert_int_equal(--w.locks, 0);
}

static void report(void *cookie, const struct byre_region_fault *fault)
{
	assert_ptr_equal(cookie, &w);
	w.faults++;
	w.last_fault = fault->kind;
}

static void heap_open(size_t grow, unsigned flags)
{
	struct byre_xheap_config config = {
		.grow = grow, .flags = flags,
		.hooks = {
			.cookie = &w, .get_pages = get_pages, .put_pages = put_pages,
			.lock = lock, .unlock = unlock, .report = report,
		},
	};

	w.heap = byre_xheap_open(&config);
	assert_non_null(w.heap);
}

static void heap_check(void)
{
	struct byre_region_fault fault;
	struct byre_xheap_stats stats;

	if (!byre_xheap_check(w.heap, &fault))
		fail_msg("%s at %p", fault.what, fault.where);
	byre_xheap_stats(w.heap, &stats);
	assert_int_equal(stats.pages, w.out * PAGE);
}

static int setup(void **state)
{
	char *base = mmap(NULL, (PAGES + 1) * PAGE, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (base == MAP_FAILED)
		return -1;
	w = (struct world){ .base = base, .refuse_after = SIZE_MAX };
	heap_open(0, 0);
	return 0;
}

/* Everything has been freed: so every page must be back. */
static int teardown(void **state)
{
	heap_check();
	assert_true(byre_xheap_close(w.heap));
	assert_int_equal(w.out, 0);
	return munmap(w.base, (PAGES + 1) * PAGE);
}

/* ---- what a request costs ---- */

/* Pages that it takes to have an object of @size beside what is there. */
static size_t pages_for(size_t size, size_t align)
{
	size_t before = w.out, took;
	void *p = _xmalloc(size, align);

	assert_non_null(p);
	memset(p, 1, size);
	heap_check();
	took = w.out - before;
	xfree(p);
	assert_int_equal(w.out, before);        /* R23 */
	return took;
}

static void r21_pages_cost_exactly_their_pages(void **state)
{
	char *keep = xmalloc(char);             /* so that records need no page of their own */

	for (size_t n = 1; n <= 64; n++) {
		assert_int_equal(pages_for(n * PAGE, 0), n);
		assert_int_equal(pages_for(n * PAGE, PAGE), n);
		assert_int_equal(pages_for(n * PAGE - 1, 64), n);
		assert_int_equal(pages_for(n * PAGE + 1, 64), n + 1);
	}
	for (size_t size = 1; size <= 3 * PAGE; size++)
		assert_true(pages_for(size, 0) <= div_round_up(size, PAGE));
	xfree(keep);
}

static void r21_pages_of_a_request_are_its_own(void **state)
{
	enum { N = 100 };
	char *p[N];

	for (size_t i = 0; i < N; i++) {
		p[i] = _xmalloc(2 * PAGE, 0);
		assert_non_null(p[i]);
		assert_int_equal((uintptr_t)p[i] % PAGE, 0);
		memset(p[i], (int)i, 2 * PAGE);
	}
	heap_check();
	for (size_t i = 0; i < N; i++) {
		for (size_t k = 0; k < 2 * PAGE; k++)
			assert_int_equal((unsigned char)p[i][k], i);
		xfree(p[i]);
	}
}

static void r22_the_rest_of_a_last_page_is_used(void **state)
{
	char *large = _xmalloc(PAGE + 1000, 0), *small[8];
	size_t before = w.out;

	assert_non_null(large);
	for (int i = 0; i < 8; i++) {
		small[i] = _xmalloc(300, 0);
		assert_non_null(small[i]);
		memset(small[i], 1, 300);
	}
	assert_int_equal(w.out, before);        /* 8 * 300 bytes fit where 3096 are left */
	memset(large, 2, PAGE + 1000);
	heap_check();
	/* Its first page goes at once, the other when the last of its guests does. */
	xfree(large);
	heap_check();
	assert_true(w.out < before);
	for (int i = 0; i < 8; i++) {
		assert_int_equal(small[i][299], 1);
		xfree(small[i]);
	}
}

static void r22_rests_of_every_size(void **state)
{
	for (size_t align = 1; align <= 2 * PAGE; align *= PAGE) {
		for (size_t size = PAGE; size <= 2 * PAGE; size++) {
			size_t before = w.out;
			char *p = _xmalloc(size, align), *q;

			assert_non_null(p);
			q = _xmalloc(50, 0);
			assert_non_null(q);
			p[0] = p[size - 1] = q[0] = q[49] = 1;
			if (size % 2)
				xfree(q);
			xfree(p);
			if (size % 2 == 0)
				xfree(q);
			assert_int_equal(w.out, before);
		}
	}
}

static void r23_what_is_not_used_is_given_back(void **state)
{
	enum { N = 2000 };
	static char *p[N];
	size_t before = w.out;
	struct prng prng = { 7 };

	for (size_t i = 0; i < N; i++) {
		p[i] = _xmalloc(prng_below(&prng, 3000), 0);
		assert_non_null(p[i]);
	}
	assert_true(w.out > N / 4);
	for (size_t i = 0; i < N; i++) {
		size_t k = i + prng_below(&prng, N - i);
		char *swap = p[i];

		p[i] = p[k];
		p[k] = swap;
		xfree(p[i]);
	}
	assert_int_equal(w.out, before);
}

/* ---- what it looks like ---- */

struct thing {
	uint64_t a;
	char b[50];
};

struct list {
	uint32_t n;
	struct thing things[];
};

static void the_macros_do_what_they_say(void **state)
{
	struct thing *t = xmalloc(struct thing), *copy, *many;
	struct list *list;
	char *bytes;

	assert_non_null(t);
	*t = (struct thing){ 5, "text" };
	copy = xmemdup(t);
	assert_non_null(copy);
	assert_memory_equal(t, copy, sizeof(*t));
	XFREE(t);
	assert_null(t);
	XFREE(t);                               /* nothing */
	xfree(copy);
	t = xzalloc(struct thing);
	assert_non_null(t);
	assert_true(!t->a && !t->b[0] && !t->b[49]);
	xfree(t);
	many = xzalloc_array(struct thing, 1000);
	assert_non_null(many);
	assert_true(!many[0].a && !many[999].b[49]);
	many[999].a = 3;
	copy = xrealloc_array(many, 2000);
	assert_non_null(copy);
	assert_int_equal(copy[999].a, 3);
	xfree(copy);
	list = xzalloc_flex_struct(struct list, things, 10);
	assert_non_null(list);
	list->things[9].b[49] = 1;
	xfree(list);
	assert_null(xmalloc_flex_struct(struct list, things, SIZE_MAX / 2));
	bytes = xmalloc_bytes(100);
	assert_non_null(bytes);
	assert_int_equal((uintptr_t)bytes % 64, 0);
	bytes = xrealloc_bytes(bytes, 10000);
	assert_non_null(bytes);
	assert_int_equal((uintptr_t)bytes % 64, 0);
	xfree(bytes);
	bytes = xmemdup_bytes("abc", 4);
	assert_string_equal(bytes, "abc");
	xfree(bytes);
}

static void what_cannot_be_is_refused(void **state)
{
	char *p = xmalloc_bytes(10);
	size_t gets = w.gets;

	assert_null(_xmalloc(SIZE_MAX, 0));
	assert_null(_xmalloc(SIZE_MAX - PAGE, 64));
	assert_null(_xmalloc(1, SIZE_MAX / 2 + 1));
	assert_null(_xmalloc(1, 48));
	assert_null(_xmalloc_array(1UL << 20, 1, SIZE_MAX >> 16));
	assert_null(_xzalloc_array(SIZE_MAX, 1, 2));
	assert_null(_xrealloc_array(p, SIZE_MAX / 2, 1, 3));
	assert_null(_xrealloc(p, SIZE_MAX, 0));
	assert_null(_xzalloc(SIZE_MAX, 0));
	assert_int_equal(w.gets, gets);
	assert_null(_xmalloc(2 * PAGES * PAGE, 0));
	xfree(p);
	xfree(NULL);
}

static void alignment_is_what_was_asked_for(void **state)
{
	static const size_t sizes[] = { 0, 1, 15, 100, 1000, 3000, 4000, 4096, 5000, 20000 };

	for (size_t align = 1; align <= 64 * PAGE; align *= 2) {
		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			char *p = _xzalloc(sizes[i], align), *q = _xmalloc(sizes[i], align), *r;

			assert_true(p && q);
			assert_int_equal((uintptr_t)p % align, 0);
			assert_int_equal((uintptr_t)q % align, 0);
			memset(q, 3, sizes[i]);
			/* A neighbour is in the way, or not: the alignment stays. */
			r = _xrealloc(p, 3 * sizes[i] + 1, align);
			assert_non_null(r);
			assert_int_equal((uintptr_t)r % align, 0);
			for (size_t k = 0; k < sizes[i]; k++)
				assert_int_equal(r[k], 0);
			heap_check();
			xfree(r);
			xfree(q);
		}
	}
}

static void resizing_within_its_pages_stays(void **state)
{
	char *p = _xmalloc(3 * PAGE, 0), *q;
	size_t gets = w.gets;

	assert_non_null(p);
	assert_ptr_equal(_xrealloc(p, 3 * PAGE - 100, 0), p);
	assert_ptr_equal(_xrealloc(p, 2 * PAGE + 1, PAGE), p);
	assert_int_equal(w.gets, gets);
	memset(p, 4, 3 * PAGE);
	q = _xrealloc(p, 100, 0);
	assert_non_null(q);
	assert_ptr_not_equal(p, q);
	assert_int_equal(q[99], 4);
	xfree(q);
}

/* ---- what goes wrong ---- */

static void what_is_no_object_is_reported(void **state)
{
	char *small = _xmalloc(100, 0), *run = _xmalloc(2 * PAGE, 0), *keep = _xmalloc(100, 0);

	xfree(small);
	xfree(small);
	assert_int_equal(w.faults, 1);
	assert_int_equal(w.last_fault, BYRE_REGION_DOUBLE_FREE);
	xfree(run + 16);
	assert_int_equal(w.faults, 2);
	assert_int_equal(w.last_fault, BYRE_REGION_BAD_POINTER);
	xfree(&w);
	assert_int_equal(w.faults, 3);
	heap_check();
	xfree(run);
	xfree(keep);
}

static void without_memory_nothing_changes(void **state)
{
	static const size_t sizes[] = { 100, 4096, 5000, 4090, 50000 };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (size_t allowed = 0; ; allowed++) {
			size_t before = w.out;
			char *p;

			w.refuse_after = allowed;
			p = _xmalloc(sizes[i], 0);
			w.refuse_after = SIZE_MAX;
			heap_check();
			xfree(p);
			assert_int_equal(w.out, before);
			if (p)
				break;
			assert_true(allowed < 3);
		}
	}
}

static void realloc_without_memory_keeps_the_object(void **state)
{
	char *p = _xmalloc(3000, 0), *q = _xmalloc(2 * PAGE, 0);

	assert_true(p && q);
	memset(p, 1, 3000);
	memset(q, 2, 2 * PAGE);
	w.refuse_after = 0;
	assert_null(_xrealloc(p, 10000, 0));
	assert_null(_xrealloc(q, 10000, 0));
	w.refuse_after = SIZE_MAX;
	assert_int_equal(p[2999], 1);
	assert_int_equal(q[2 * PAGE - 1], 2);
	xfree(p);
	xfree(q);
}

static void an_open_heap_with_objects_does_not_close(void **state)
{
	char *p = _xmalloc(2 * PAGE, 0);

	assert_false(byre_xheap_close(w.heap));
	xfree(p);
	p = _xmalloc(1, 0);
	assert_false(byre_xheap_close(w.heap));
	xfree(p);
}

static void damage_to_a_record_is_found(void **state)
{
	char *p = _xmalloc(PAGE + 1000, 0);
	uintptr_t *word = (uintptr_t *)(void *)(p + 1008);
	uintptr_t *end = (uintptr_t *)(void *)(p + 2 * PAGE);
	bool is_found = false;

	/* The record lies behind the object, and holds its address: a write past the end. */
	for (word += PAGE / sizeof(*word); word < end && *word != (uintptr_t)p; word++)
		;
	assert_true(word < end);
	*word += PAGE;
	is_found = !byre_xheap_check(w.heap, NULL);
	*word -= PAGE;
	word[1] ^= 16;                          /* its size: nothing is freed by it */
	xfree(p);
	word[1] ^= 16;
	assert_int_equal(w.last_fault, BYRE_REGION_DAMAGED);
	assert_true(is_found);
	heap_check();
	xfree(p);
}

/* ---- everything, at random ---- */

static struct object {
	char *p;
	size_t size, align;
	unsigned char fill;
} objects[300];

static size_t random_size(struct prng *prng)
{
	switch (prng_below(prng, 4)) {
	case 0:
		return prng_below(prng, 200);
	case 1:
		return prng_below(prng, PAGE);
	case 2:
		return PAGE - 100 + prng_below(prng, 200);
	default:
		return prng_below(prng, 5 * PAGE);
	}
}

static void expect_fill(const struct object *o, size_t size)
{
	assert_int_equal((uintptr_t)o->p % o->align, 0);
	for (size_t i = 0; i < size; i++)
		assert_int_equal((unsigned char)o->p[i], o->fill);
}

static void one_step(struct prng *prng, struct object *o)
{
	size_t size = random_size(prng);

	if (!o->p) {
		o->align = (size_t)1 << prng_below(prng, prng_below(prng, 8) ? 7 : 15);
		o->p = _xmalloc(size, o->align);
		assert_non_null(o->p);
	} else {
		expect_fill(o, o->size);
		if (prng_below(prng, 3)) {
			XFREE(o->p);
			return;
		}
		o->p = _xrealloc(o->p, size, o->align);
		assert_non_null(o->p);
		expect_fill(o, MIN(size, o->size));
	}
	o->size = size;
	o->fill = (unsigned char)prng_next(prng);
	memset(o->p, o->fill, size);
}

static void random_steps(uint64_t seed, unsigned steps)
{
	struct prng prng = { seed };

	for (unsigned i = 0; i < steps; i++) {
		one_step(&prng, &objects[prng_below(&prng, ARRAY_SIZE(objects))]);
		if (i % 16 == 0)
			heap_check();
	}
	for (size_t i = 0; i < ARRAY_SIZE(objects); i++)
		XFREE(objects[i].p);
	assert_int_equal(w.faults, 0);
}

static void random_steps_keep_everything(void **state)
{
	random_steps(1, 20000);
}

static void random_steps_with_larger_pools_and_poison(void **state)
{
	struct byre_xheap *first = w.heap;
	size_t before = w.out;

	heap_open(4 * PAGE, BYRE_REGION_POISON);
	w.out -= before;                        /* heap_check() looks at one heap's */
	random_steps(2, 5000);
	assert_true(byre_xheap_close(w.heap));
	assert_int_equal(w.out, 0);
	w.out = before;
	w.heap = first;
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		T(r21_pages_cost_exactly_their_pages),
		T(r21_pages_of_a_request_are_its_own),
		T(r22_the_rest_of_a_last_page_is_used),
		T(r22_rests_of_every_size),
		T(r23_what_is_not_used_is_given_back),
		T(the_macros_do_what_they_say),
		T(what_cannot_be_is_refused),
		T(alignment_is_what_was_asked_for),
		T(resizing_within_its_pages_stays),
		T(what_is_no_object_is_reported),
		T(without_memory_nothing_changes),
		T(realloc_without_memory_keeps_the_object),
		T(an_open_heap_with_objects_does_not_close),
		T(damage_to_a_record_is_found),
		T(random_steps_keep_everything),
		T(random_steps_with_larger_pools_and_poison),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
