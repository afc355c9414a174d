/* SPDX-License-Identifier: MIT */
/* Units of clusters: every small case against the words of the specification; pairs that change
 * under readers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/prng.h"
#include "fmt/qcow2/fresh.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/units.h"
#include "fmt/qcow2/writer.h"

enum { BITS = 14, CLUSTER = 1 << BITS, UNIT = CLUSTER / QCOW2_SUBCLUSTERS };

/* An image without a file. */
static struct qcow2 image(bool is_extended)
{
	return (struct qcow2){ .cluster_bits = BITS, .entry_words = is_extended ? 2 : 1,
			       .unit_bits = is_extended ? BITS - 5 : BITS, .has_zero_flag = true };
}

static struct units units_at(const struct qcow2 *q, uint64_t entry, uint64_t bitmap)
{
	return units_of(q, (struct l2_pair){ entry, bitmap }, 5 * CLUSTER);
}

static void a_standard_entry_is_one_unit(void **state)
{
	struct qcow2 q = image(false);
	uint64_t host = 7 * CLUSTER;
	struct units u = units_at(&q, 0, 0);

	assert_true(units_all(&q) == 1 && !u.data && !u.zero && !u.has_host && !u.is_own);
	u = units_at(&q, host | QCOW2_COPIED, 0);
	assert_true(u.data == 1 && !u.zero && u.has_host && u.is_own && u.host == host);
	assert_true(!units_at(&q, host, 0).is_own);
	u = units_at(&q, host | QCOW2_COPIED | QCOW2_ZERO, 0);
	assert_true(!u.data && u.zero == 1 && u.is_own && u.host == host);
	u = units_at(&q, QCOW2_ZERO, 0);
	assert_true(!u.data && u.zero == 1 && !u.has_host);
	u = units_at(&q, QCOW2_COMPRESSED | 12345, 0);
	assert_true(u.data == 1 && u.is_compressed && !u.is_own && !u.is_bad);
	assert_true(units_at(&q, (host + 512) | QCOW2_COPIED, 0).is_bad);
	assert_true(units_pair(&q, host | QCOW2_COPIED, 1, 0).entry == (host | QCOW2_COPIED));
	assert_true(units_pair(&q, host, 0, 1).entry == (host | QCOW2_ZERO));
	assert_true(units_pair(&q, 0, 0, 1).entry == QCOW2_ZERO);
}

/* U12, bit by bit. */
static void check_write(const struct qcow2 *q, const struct units *u, uint64_t lo, uint64_t hi)
{
	uint32_t touched = units_touched(q, lo, hi), fill = units_to_fill(u, touched);
	uint32_t data = u->data | touched;
	struct l2_pair p = units_pair(q, 9 * CLUSTER | QCOW2_COPIED, data, u->zero & ~data);

	for (unsigned i = 0; i < QCOW2_SUBCLUSTERS; i++) {
		bool is_touched = lo < (i + 1) * UNIT && hi > i * UNIT;
		bool was_data = u->is_compressed || (u->pair.bitmap >> i & 1);
		bool was_zero = !u->is_compressed && (u->pair.bitmap >> (32 + i) & 1);

		assert_true((touched >> i & 1) == is_touched);
		assert_true((p.bitmap >> i & 1) == (is_touched || was_data));
		assert_true((p.bitmap >> (32 + i) & 1) == (was_zero && !is_touched));
		/* What has to come from somewhere: all of a new place, what is new in the old. */
		assert_true((fill >> i & 1) == (u->is_own ? is_touched && !was_data :
							    is_touched || was_data));
	}
	assert_true(p.entry == (9 * CLUSTER | QCOW2_COPIED));
}

static void u12_writes_make_data_of_what_they_touch(void **state)
{
	struct qcow2 q = image(true);
	struct prng p = { 3 };

	for (unsigned n = 0; n < 20000; n++) {
		uint64_t data = prng_next(&p) & 0xffffffff, zero = prng_next(&p) & 0xffffffff;
		uint64_t lo = prng_below(&p, CLUSTER), hi = lo + 1 + prng_below(&p, CLUSTER - lo);
		uint64_t entry = 7 * CLUSTER | (prng_below(&p, 2) ? QCOW2_COPIED : 0);
		struct units u;

		if (prng_below(&p, 4))
			zero &= ~data;
		if (prng_below(&p, 8) == 0)
			entry = QCOW2_COMPRESSED | 4711;
		u = units_at(&q, entry, data | zero << 32);
		assert_true(u.is_compressed == !!(entry & QCOW2_COMPRESSED));
		assert_true(u.is_bad == (!u.is_compressed && (data & zero)));
		if (!u.is_bad)
			check_write(&q, &u, lo, hi);
		assert_true(units_at(&q, 0, data).is_bad == !!data);
		assert_true(!units_at(&q, 0, zero << 32).is_bad);
	}
}

static void runs_of_units_end_where_they_differ(void **state)
{
	struct qcow2 q = image(true);
	struct prng p = { 4 };

	for (unsigned n = 0; n < 20000; n++) {
		uint32_t a = (uint32_t)(prng_next(&p) & prng_next(&p) & prng_next(&p));
		uint32_t b = (uint32_t)(prng_next(&p) | prng_next(&p) | prng_next(&p));
		uint64_t lo = prng_below(&p, CLUSTER), first = lo / UNIT, i = first;

		while (i < 32 && (a >> i & 1) == (a >> first & 1) && (b >> i & 1) ==
								     (b >> first & 1))
			i++;
		assert_true(units_alike_end(&q, a, b, lo) == i * UNIT);
	}
}

static void u13_notes_say_never_too_much(void **state)
{
	static uint32_t model[3 * FRESH_NOTES];
	struct fresh f = { NULL };
	struct prng p = { 5 };
	unsigned known = 0;

	assert_int_equal(fresh_units(&f, 1), 0);
	for (unsigned n = 0; n < 400000; n++) {
		uint64_t cluster = prng_below(&p, ARRAY_SIZE(model));
		uint32_t units = (uint32_t)prng_next(&p);

		if (prng_below(&p, 3)) {
			fresh_written(&f, cluster, units);
			model[cluster] &= ~units;
		} else {
			units = prng_below(&p, 2) ? units : 0;
			fresh_set(&f, cluster, units);
			model[cluster] = units;
			assert_true(fresh_units(&f, cluster) == units);
		}
		cluster = prng_below(&p, ARRAY_SIZE(model));
		units = fresh_units(&f, cluster);
		assert_true(units == model[cluster] || !units);
		known += units != 0;
	}
	assert_true(known > 1000);
	fresh_fini(&f);
}

/* ---- readers ---- */

struct flip {
	struct qcow2 q;
	_Atomic bool is_over;
	_Atomic unsigned long data, zero, missed, bad;
};

static void *flip_reader(void *arg)
{
	struct flip *f = arg;

	while (!atomic_load(&f->is_over)) {
		struct ext e = map_run(&f->q, 3 * CLUSTER + 100, 200);

		f->data += e.kind == EXT_DATA && e.host_off == 7 * CLUSTER + 100;
		f->zero += e.kind == EXT_ZERO;
		f->missed += e.kind == EXT_MISS;
		f->bad += e.kind == EXT_CORRUPT || e.kind == EXT_BACKING;
	}
	return NULL;
}

/* Data of a cluster without a place, or a place without data: nobody must see such halves. */
static void u11_readers_see_whole_pairs(void **state)
{
	static const uint64_t pairs[2][2] = { { 7 * CLUSTER | QCOW2_COPIED, 1 },
					      { 0, 1ULL << 32 } };
	struct qcow2_cache *c = qcow2_cache_new(0, NULL);
	struct flip f = { .q = image(true) };
	uint8_t disk[CACHE_SLICE_BYTES_MAX] = { 0 };
	pthread_t readers[2];

	assert_int_equal(cache_setup(c, CACHE_SLICE_BYTES_MAX), 0);
	f.q.cache = c;
	f.q.layer = c->layers++;
	f.q.slice_bytes = CACHE_SLICE_BYTES_MAX;
	f.q.slice_shift = log2_floor(CACHE_SLICE_BYTES_MAX / 16) + BITS;
	be64_store(disk + 3 * 16 + 8, 1ULL << 32);
	cache_insert(c, cache_key(f.q.layer, 0), disk);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&readers[i], NULL, flip_reader, &f), 0);
	for (unsigned n = 0; n < 4000000; n++) {
		if (n > 20000 && f.data > 1000 && f.zero > 1000)
			break;
		assert_true(cache_store(c, cache_key(f.q.layer, 0), 2 * 3, 2, pairs[n % 2]));
	}
	atomic_store(&f.is_over, true);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(readers[i], NULL);
	assert_true(f.data && f.zero);
	assert_int_equal(f.bad, 0);
	/* On disk: a pair begins at a multiple of its size, which divides a sector. */
	assert_int_equal(512 % sizeof(struct l2_pair), 0);
	qcow2_cache_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_standard_entry_is_one_unit),
		cmocka_unit_test(u12_writes_make_data_of_what_they_touch),
		cmocka_unit_test(runs_of_units_end_where_they_differ),
		cmocka_unit_test(u13_notes_say_never_too_much),
		cmocka_unit_test(u11_readers_see_whole_pairs),
	};

	return cmocka_run_group_tests_name("qcow2_units", tests, NULL, NULL);
}
