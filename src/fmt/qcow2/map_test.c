/* SPDX-License-Identifier: MIT */
/* map_run() against a slow and obvious model, entry by entry; the cache under readers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/prng.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/qcow2.h"

/* An image without a file: what map_run() looks at. */
struct shape {
	unsigned cluster_bits;
	bool is_extended;
	bool has_data_file;
	unsigned version;
};

static void image_init(struct qcow2 *q, struct qcow2_cache *c, struct shape s)
{
	unsigned cluster = 1U << s.cluster_bits;

	memset(q, 0, sizeof(*q));
	q->cache = c;
	assert_int_equal(cache_setup(c, MIN(cluster, (unsigned)CACHE_SLICE_BYTES_MAX)), 0);
	q->layer = c->layers++;
	q->cluster_bits = s.cluster_bits;
	q->entry_words = s.is_extended ? 2 : 1;
	q->unit_bits = s.cluster_bits - (s.is_extended ? 5 : 0);
	q->slice_bytes = MIN(cluster, c->slice_bytes);
	q->slice_shift = log2_floor(q->slice_bytes / (8 * q->entry_words)) + s.cluster_bits;
	q->has_data_file = s.has_data_file;
	q->has_zero_flag = s.version >= 3;
}

/* What one (sub)cluster is by the words of the specification. */
static enum ext_kind model_kind(const struct shape *s, uint64_t entry, uint64_t bitmap,
				unsigned sub, uint64_t guest)
{
	uint64_t host = entry & 0x00fffffffffffe00ULL;
	bool copied = entry >> 63 & 1;
	bool allocated = host != 0 || (s->has_data_file && copied);

	if (entry >> 62 & 1)
		return s->has_data_file ? EXT_CORRUPT : EXT_COMPRESSED;
	if (!s->is_extended && (entry & 1)) {
		if (s->version < 3)
			return EXT_CORRUPT;
		if (host && (host % (1ULL << s->cluster_bits) ||
			     (s->has_data_file && host != guest)))
			return EXT_CORRUPT;
		return EXT_ZERO;
	}
	if (allocated && host % (1ULL << s->cluster_bits))
		return EXT_CORRUPT;
	if (allocated && s->has_data_file && host != guest)
		return EXT_CORRUPT;
	if (!s->is_extended)
		return allocated ? EXT_DATA : EXT_BACKING;
	for (unsigned i = 0; i < 32; i++) {
		if ((bitmap >> i & 1) && (bitmap >> (32 + i) & 1))
			return EXT_CORRUPT;
		if ((bitmap >> i & 1) && !allocated)
			return EXT_CORRUPT;
	}
	if (bitmap >> (32 + sub) & 1)
		return EXT_ZERO;
	return bitmap >> sub & 1 ? EXT_DATA : EXT_BACKING;
}

static uint64_t random_entry(struct prng *p, const struct shape *s, uint64_t guest)
{
	uint64_t near = guest & 0x00fffffffffffe00ULL;

	switch (prng_below(p, 12)) {
	case 0:
	case 1:
		return 0;
	case 2:
		return (s->is_extended ? 0 : 1) | (prng_below(p, 2) ? QCOW2_COPIED : 0);
	case 3:
		return prng_below(p, 3) ? near | QCOW2_COPIED : near | (s->is_extended ? 0 : 1);
	case 4:
		return QCOW2_COMPRESSED | prng_below(p, 1 << 20);
	case 5:
		return prng_below(p, 8) ? QCOW2_COPIED | (prng_below(p, 64) << s->cluster_bits)
					: prng_next(p);
	default:
		return near | QCOW2_COPIED;
	}
}

static uint64_t random_bitmap(struct prng *p)
{
	uint64_t alloc = prng_next(p) & prng_next(p) & 0xffffffff;

	switch (prng_below(p, 7)) {
	case 0:
		return prng_next(p);            /* mostly invalid */
	case 1:
		return 0xffffffff;
	case 2:
		return 0;
	case 3:
		return 0xffffffffULL << 32;
	case 4:
		return CACHE_PENDING;           /* a bitmap like any other */
	default:
		return alloc | ((prng_next(p) & ~alloc) << 32);
	}
}

static void check_runs(struct qcow2 *q, const struct shape *s, const uint64_t *words,
		       struct prng *p)
{
	uint64_t slice = 1ULL << q->slice_shift, unit = 1ULL << q->unit_bits;
	uint64_t cluster = 1ULL << s->cluster_bits;

	for (int i = 0; i < 300; i++) {
		uint64_t off = prng_below(p, slice), len = 1 + prng_below(p, 3 * cluster);
		struct ext e = map_run(q, off, len);
		uint64_t end = MIN(off + len, slice), at = off;
		enum ext_kind first = EXT_MISS;
		uint64_t first_host = 0;

		assert_true(e.len >= 1 && e.len <= len);
		/* The run has one kind and is contiguous, byte by byte (in steps of its units). */
		for (; at < end; at = align_down(at, unit) + unit) {
			uint64_t n = at / cluster;
			uint64_t entry = words[n * q->entry_words];
			uint64_t bitmap = s->is_extended ? words[n * 2 + 1] : 0;
			unsigned sub = (unsigned)(at / unit % 32);
			enum ext_kind kind = model_kind(s, entry, bitmap, sub,
							align_down(at, cluster));
			uint64_t host = (entry & QCOW2_OFFSET_MASK) + at % cluster;

			if (at == off) {
				first = kind;
				first_host = host;
				continue;
			}
			if (kind != first || (kind == EXT_DATA && host != first_host + (at - off)))
				break;
			if ((first == EXT_COMPRESSED || first == EXT_CORRUPT) && at % cluster == 0)
				break;
		}
		assert_int_equal(e.kind, first);
		assert_true(e.len == MIN(at, end) - off);
		if (first == EXT_DATA)
			assert_true(e.host_off == first_host);
		if (first == EXT_COMPRESSED)
			assert_true(e.host_off == words[off / cluster * q->entry_words]);
	}
}

static void v1_map_agrees_with_a_model(void **state)
{
	static const struct shape shapes[] = {
		{ 16, false, false, 3 }, { 16, false, false, 2 }, { 16, true, false, 3 },
		{ 16, false, true, 3 }, { 16, true, true, 3 }, { 9, false, false, 3 },
		{ 12, false, false, 3 }, { 14, true, false, 3 }, { 21, false, false, 3 },
		{ 21, true, false, 3 },
	};
	uint8_t disk[CACHE_SLICE_BYTES_MAX];
	uint64_t words[CACHE_SLICE_BYTES_MAX / 8];
	struct prng p = { 42 };

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct qcow2_cache *c = qcow2_cache_new(0, NULL);
		struct qcow2 q;

		image_init(&q, c, shapes[i]);
		for (int round = 0; round < 100; round++) {
			memset(disk, 0, sizeof(disk));
			for (unsigned w = 0; w < q.slice_bytes / 8; w++) {
				uint64_t guest = (uint64_t)(w / q.entry_words) << q.cluster_bits;

				words[w] = w % q.entry_words ? random_bitmap(&p)
					: random_entry(&p, &shapes[i], guest);
				be64_store(disk + 8 * w, words[w]);
			}
			cache_insert(c, cache_key(q.layer, 0), disk);
			check_runs(&q, &shapes[i], words, &p);
		}
		assert_true(cache_valid(c));
		qcow2_cache_free(c);
	}
}

static void a_slice_that_is_not_cached_is_a_miss(void **state)
{
	struct qcow2_cache *c = qcow2_cache_new(0, NULL);
	struct qcow2 q;
	struct ext e;

	image_init(&q, c, (struct shape){ 16, false, false, 3 });
	assert_int_equal(map_run(&q, 0, 4096).kind, EXT_MISS);
	cache_insert(c, cache_key(q.layer, 0), NULL);
	e = map_run(&q, 4096, 1 << 30);
	assert_int_equal(e.kind, EXT_BACKING);
	assert_true(e.len == (32 << 20) - 4096);        /* to the end of the slice */
	assert_int_equal(map_run(&q, 32 << 20, 4096).kind, EXT_MISS);
	qcow2_cache_free(c);
}

static void c2_and_c3_eviction_keeps_what_is_read(void **state)
{
	struct qcow2_cache *c = qcow2_cache_new(0, NULL);
	static uint8_t disk[CACHE_SLICE_BYTES_MAX] = { 1 };
	uint64_t sets, hot;
	bool is_empty;

	assert_int_equal(cache_setup(c, CACHE_SLICE_BYTES_MAX), 0);
	sets = 1ULL << c->set_bits;
	hot = cache_key(0, 0);
	cache_insert(c, hot, disk);
	for (uint64_t i = 1; i < 1000; i++) {
		assert_true(cache_find(c, hot, &is_empty) >= 0);        /* C3 */
		cache_insert(c, cache_key(0, i * sets), disk);          /* all in one set */
		cache_insert(c, cache_key(0, i * sets), disk);
		assert_true(cache_valid(c));                            /* C2 */
	}
	assert_true(c->evictions > 900);
	cache_clear(c);
	assert_true(cache_find(c, hot, &is_empty) < 0);
	qcow2_cache_free(c);
}

/* One writer fills one slot's slice with words of one value after the other; readers must never
 * take a mix for valid. Without the check of the version they see mixes: that is the switch. */
struct torn {
	struct qcow2_cache *c;
	_Atomic bool is_over;
	_Atomic unsigned long valid, torn_valid, torn_unchecked;
};

static void *torn_reader(void *arg)
{
	struct torn *t = arg;
	uint64_t key = cache_key(0, 5);
	bool is_empty;

	while (!atomic_load(&t->is_over)) {
		long slot = cache_find(t->c, key, &is_empty);
		uint32_t v;
		bool is_torn;

		if (slot < 0 || is_empty)
			continue;
		v = cache_read_begin(t->c, slot, key);

		uint64_t a = cache_word(t->c, slot, 3), b = cache_word(t->c, slot, 509);

		is_torn = a != b;
		if (is_torn)
			t->torn_unchecked++;
		if (!cache_read_valid(t->c, slot, v))
			continue;
		t->valid++;
		if (is_torn)
			t->torn_valid++;
	}
	return NULL;
}

static void c1_readers_see_one_version(void **state)
{
	struct torn t = { .c = qcow2_cache_new(0, NULL) };
	uint8_t disk[CACHE_SLICE_BYTES_MAX];
	pthread_t readers[2];

	assert_int_equal(cache_setup(t.c, CACHE_SLICE_BYTES_MAX), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&readers[i], NULL, torn_reader, &t), 0);
	for (int round = 0; round < 2000000; round++) {
		if (round > 20000 && t.torn_unchecked && t.valid > 1000)
			break;
		memset(disk, 1 + round % 250, sizeof(disk));
		cache_insert(t.c, cache_key(0, 5), disk);
	}
	atomic_store(&t.is_over, true);
	for (int i = 0; i < 2; i++)
		pthread_join(readers[i], NULL);
	assert_true(t.valid > 0);
	assert_int_equal(t.torn_valid, 0);
	assert_true(t.torn_unchecked > 0);      /* the check is what keeps them out */
	qcow2_cache_free(t.c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v1_map_agrees_with_a_model),
		cmocka_unit_test(a_slice_that_is_not_cached_is_a_miss),
		cmocka_unit_test(c2_and_c3_eviction_keeps_what_is_read),
		cmocka_unit_test(c1_readers_see_one_version),
	};

	return cmocka_run_group_tests_name("qcow2_map", tests, NULL, NULL);
}
