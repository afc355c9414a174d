/* SPDX-License-Identifier: MIT */
/* tests/malloc/churn.c - all calls at random, several threads that take blocks from each other, and
 * every byte looked at before it is given up. $MALLOC_CHURN is how many steps a thread makes. */
#include <pthread.h>
#include <stdatomic.h>

#include "case.h"

enum { THREADS = 4, PLACES = 2000, STEPS = 20000 };

/* The head of a block's memory says what the rest must be. */
struct head {
	size_t size;                    /* all of it */
	uint64_t seed;
};

static _Atomic(struct head *) places[PLACES];
static unsigned long steps = STEPS;
static atomic_uint releases;

static void check_block(const struct head *h)
{
	CHECK(h->size >= sizeof(*h) && h->size <= malloc_usable_size((void *)(uintptr_t)h));
	CHECK(is_filled(h + 1, h->size - sizeof(*h), h->seed));
}

static struct head *make_block(void *p, size_t size, uint64_t seed)
{
	struct head *h = p;

	CHECK(h && (uintptr_t)h % 16 == 0);
	*h = (struct head){ size, seed };
	fill(h + 1, size - sizeof(*h), seed);
	return h;
}

static size_t any_size(struct prng *prng)
{
	switch (prng_below(prng, 64)) {
	case 0:
		return 16 + prng_below(prng, 2 << 20);
	case 1: case 2: case 3:
		return 16 + prng_below(prng, 300000);
	case 4: case 5: case 6: case 7: case 8: case 9:
		return 16 + prng_below(prng, 20000);
	default:
		return 16 + prng_below(prng, 1200);
	}
}

static struct head *allocate(struct prng *prng)
{
	size_t size = any_size(prng), align;
	void *p = NULL;

	switch (prng_below(prng, 6)) {
	case 0:
		p = calloc(1, size);
		CHECK(p && is_zero(p, size));
		break;
	case 1:
		align = (size_t)16 << prng_below(prng, 13);
		CHECK(!posix_memalign(&p, align, size) && (uintptr_t)p % align == 0);
		break;
	case 2:
		align = (size_t)16 << prng_below(prng, 9);
		p = aligned_alloc(align, size);
		CHECK(p && (uintptr_t)p % align == 0);
		break;
	default:
		p = malloc(size);
	}
	return make_block(p, size, prng_next(prng));
}

static struct head *resize(struct prng *prng, struct head *h)
{
	size_t old = h->size, size = any_size(prng);
	uint64_t seed = h->seed;

	h = realloc(h, size);
	CHECK(h && is_filled(h + 1, MIN(old, size) - sizeof(*h), seed));
	return make_block(h, size, prng_next(prng));
}

static void *churn(void *arg)
{
	struct prng prng = { (uintptr_t)arg };

	for (unsigned long i = 0; i < steps; i++) {
		_Atomic(struct head *) *place = &places[prng_below(&prng, PLACES)];
		struct head *h = atomic_exchange(place, NULL);

		if (h)
			check_block(h);
		if (h && prng_below(&prng, 4) == 0) {
			h = resize(&prng, h);
		} else {
			free(h);
			h = prng_below(&prng, 3) ? allocate(&prng) : NULL;
		}
		if (h)
			h = atomic_exchange(place, h);
		free(h);                /* somebody else's, put there meanwhile */
		if (prng_below(&prng, 20000) == 0) {
			malloc_trim(0);
			releases++;
		}
	}
	return NULL;
}

static void churn_of_all_calls(void)
{
	const char *told = getenv("MALLOC_CHURN");
	pthread_t threads[THREADS];

	if (told)
		steps = strtoul(told, NULL, 10);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < THREADS; i++) {
			uintptr_t seed = round * THREADS + i + 1;

			CHECK(!pthread_create(&threads[i], NULL, churn, (void *)seed));
		}
		for (unsigned i = 0; i < THREADS; i++)
			CHECK(!pthread_join(threads[i], NULL));
	}
	for (unsigned i = 0; i < PLACES; i++) {
		if (places[i])
			check_block(places[i]);
		free(places[i]);
	}
}

const struct test_case cases_churn[] = {
	{ .name = "churn_of_all_calls", .run = churn_of_all_calls },
	{ .name = NULL },
};
