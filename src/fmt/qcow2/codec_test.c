/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <libdeflate.h>
#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/prng.h"
#include "fmt/qcow2/codec.h"
#include "fmt/qcow2/format.h"

enum { CLUSTER = 64 << 10 };

static uint8_t plain[9 * CLUSTER], packed[10 * CLUSTER], out[CLUSTER];

static void fill_plain(void)
{
	struct prng p = { 3 };

	for (size_t i = 0; i < sizeof(plain); i++)
		plain[i] = (uint8_t)(prng_below(&p, 4) ? i / 100 : prng_next(&p));
}

static size_t pack(unsigned compression, size_t len)
{
	struct libdeflate_compressor *c;
	size_t n;

	if (compression == QCOW2_COMPRESSION_ZSTD)
		return ZSTD_compress(packed, sizeof(packed), plain, len, 3);
	c = libdeflate_alloc_compressor(6);
	n = libdeflate_deflate_compress(c, plain, len, packed, sizeof(packed));
	libdeflate_free_compressor(c);
	return n;
}

static void clusters_come_back(void **state)
{
	fill_plain();
	for (unsigned type = 0; type <= QCOW2_COMPRESSION_ZSTD; type++) {
		size_t n = pack(type, CLUSTER);

		for (size_t junk = 0; junk <= 512; junk += 256) {
			memset(packed + n, 0xa5, 512);
			memset(out, 0, sizeof(out));
			/* zstd meets the junk only if it is asked for more than the frame has. */
			assert_int_equal(codec_inflate(type, packed, n + junk, out, CLUSTER), 0);
			assert_memory_equal(out, plain, CLUSTER);
		}
	}
}

static void a_longer_stream_gives_its_beginning(void **state)
{
	fill_plain();
	for (unsigned i = 0; i < 2 * (QCOW2_COMPRESSION_ZSTD + 1); i++) {
		unsigned type = i / 2;
		size_t n = pack(type, i % 2 ? CLUSTER + 1000 : sizeof(plain));

		memset(out, 0, sizeof(out));
		assert_int_equal(codec_inflate(type, packed, n, out, CLUSTER), 0);
		assert_memory_equal(out, plain, CLUSTER);
	}
}

/* However long it is, and whatever follows: nobody makes room for it. */
static void a_stream_is_read_no_further_than_the_cluster(void **state)
{
	z_stream z = { .next_out = packed, .avail_out = sizeof(packed) };
	struct rusage before, after;

	memset(plain, 0, sizeof(plain));
	assert_int_equal(deflateInit2(&z, 1, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY), Z_OK);
	for (size_t len = 0; len < 70 << 20; len += sizeof(plain)) {
		z.next_in = plain;
		z.avail_in = sizeof(plain);
		assert_int_equal(deflate(&z, Z_NO_FLUSH), Z_OK);
	}
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	memset(out, 1, sizeof(out));
	getrusage(RUSAGE_SELF, &before);
	assert_int_equal(codec_inflate(0, packed, z.total_out, out, CLUSTER), 0);
	getrusage(RUSAGE_SELF, &after);
	assert_memory_equal(out, plain, CLUSTER);
	assert_true(after.ru_maxrss < before.ru_maxrss + 4096);
}

static void a_short_or_cut_stream_is_an_error(void **state)
{
	fill_plain();
	for (unsigned type = 0; type <= QCOW2_COMPRESSION_ZSTD; type++) {
		size_t n = pack(type, CLUSTER - 1);

		assert_int_equal(codec_inflate(type, packed, n, out, CLUSTER), -EIO);
		n = pack(type, CLUSTER);
		for (size_t cut = 0; cut < n - 8; cut += n / 50)
			assert_int_equal(codec_inflate(type, packed, cut, out, CLUSTER), -EIO);
		assert_int_equal(codec_inflate(type, packed, n, out, CLUSTER), 0);
	}
}

static void damage_never_writes_outside(void **state)
{
	struct prng p = { 4 };
	/* On both sides of it lies what nobody may touch. */
	uint8_t *map = mmap(NULL, 3 * CLUSTER, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *exact = map + CLUSTER;

	assert_true(map != MAP_FAILED);
	assert_int_equal(mprotect(exact, CLUSTER, PROT_READ | PROT_WRITE), 0);
	fill_plain();
	for (unsigned type = 0; type <= QCOW2_COMPRESSION_ZSTD; type++) {
		size_t n = pack(type, CLUSTER);

		for (int i = 0; i < 500; i++) {
			size_t at = prng_below(&p, n);
			uint8_t was = packed[at];

			packed[at] ^= (uint8_t)(1 + prng_below(&p, 255));
			codec_inflate(type, packed, n, exact, CLUSTER);
			packed[at] = was;
		}
	}
	assert_int_equal(munmap(map, 3 * CLUSTER), 0);
}

static void what_is_compressed_comes_back(void **state)
{
	static const struct codec codecs[] = {
		{ .compression = QCOW2_COMPRESSION_DEFLATE },
		{ .compression = QCOW2_COMPRESSION_DEFLATE, .level = 12 },
		{ .compression = QCOW2_COMPRESSION_DEFLATE, .level = 1 },
		{ .compression = QCOW2_COMPRESSION_DEFLATE, .has_small_window = true },
		{ .compression = QCOW2_COMPRESSION_DEFLATE, .has_small_window = true, .level = 9 },
		{ .compression = QCOW2_COMPRESSION_ZSTD },
		{ .compression = QCOW2_COMPRESSION_ZSTD, .level = 15 },
	};
	long first[ARRAY_SIZE(codecs)];

	fill_plain();
	for (unsigned i = 0; i < 2 * ARRAY_SIZE(codecs); i++) {
		const struct codec *c = &codecs[i % ARRAY_SIZE(codecs)];
		long n = codec_deflate(c, plain, CLUSTER, packed, CLUSTER - 1);

		assert_true(n > 0 && n < CLUSTER);
		if (i < ARRAY_SIZE(codecs))
			first[i] = n;
		else
			assert_int_equal(n, first[i % ARRAY_SIZE(codecs)]);
		memset(packed + n, 0xa5, 512);
		memset(out, 0, sizeof(out));
		assert_int_equal(codec_inflate(c->compression, packed, (size_t)n, out, CLUSTER), 0);
		assert_memory_equal(out, plain, CLUSTER);
		/* One byte less is too little room. */
		assert_int_equal(codec_deflate(c, plain, CLUSTER, packed, (size_t)n - 1), 0);
	}
}

/* Records of eight bytes, half of each a value that comes often: as in the tables of programs. */
static void fill_tagged(void)
{
	struct prng p = { 11 };

	for (size_t i = 0; i < CLUSTER / 8; i++) {
		uint64_t tag = prng_below(&p, 500) * 0x9e3779b97f4a7c15ULL >> 32;
		uint64_t rest = prng_next(&p) & 0x3f3f3f3f;

		memcpy(plain + 8 * i, &tag, 4);
		memcpy(plain + 8 * i + 4, &rest, 4);
	}
}

/* What zstd's own default for this size leaves out. */
static void zstd_finds_short_matches(void **state)
{
	const struct codec own = { .compression = QCOW2_COMPRESSION_ZSTD };
	const struct codec asked = { .compression = QCOW2_COMPRESSION_ZSTD,
				     .level = CODEC_ZSTD_LEVEL };
	long n, usual;

	fill_tagged();
	usual = (long)ZSTD_compress(out, CLUSTER - 1, plain, CLUSTER, CODEC_ZSTD_LEVEL);
	assert_false(ZSTD_isError((size_t)usual));
	/* A level that is asked for is zstd's own, whatever the context was used for before. */
	for (unsigned i = 0; i < 2; i++) {
		n = codec_deflate(&own, plain, CLUSTER, packed, CLUSTER - 1);
		assert_true(n > 0 && n < usual / 100 * 95);
		assert_int_equal(codec_deflate(&asked, plain, CLUSTER, packed, CLUSTER - 1), usual);
	}
}

static size_t allocated(void)
{
	struct mallinfo2 m = mallinfo2();       /* zeros where a sanitizer allocates */

	return m.uordblks + m.hblkhd;
}

struct large {
	struct codec k;
	size_t len;
	uint8_t *bytes, *room;
};

static struct on_thread {
	struct large *l;
	sem_t *done, *may_end;
} on_threads[4];

static void *deflate_and_stay(void *arg)
{
	struct on_thread *t = arg;
	struct large *l = t->l;

	assert_true(codec_deflate(&l->k, l->bytes, l->len, l->room, l->len - 1) > 0);
	sem_post(t->done);
	sem_wait(t->may_end);
	return NULL;
}

/* Compresses @l on @nthreads threads, one after the other, that all stay; and the memory that has
 * been taken meanwhile. */
static size_t memory_of(struct large *l, unsigned nthreads)
{
	pthread_t threads[4];
	sem_t go, stay;
	size_t before, taken;

	l->bytes = calloc(1, l->len);
	l->room = malloc(l->len);
	before = allocated();
	sem_init(&go, 0, 0);
	sem_init(&stay, 0, 0);
	for (unsigned i = 0; i < nthreads; i++) {
		struct on_thread *t = &on_threads[i];

		*t = (struct on_thread) { l, &go, &stay };
		assert_int_equal(pthread_create(&threads[i], NULL, deflate_and_stay, t), 0);
		sem_wait(&go);
	}
	taken = allocated() - before;
	for (unsigned i = 0; i < nthreads; i++)
		sem_post(&stay);
	for (unsigned i = 0; i < nthreads; i++)
		pthread_join(threads[i], NULL);
	/* What contexts there were have gone with the threads. */
	assert_true(allocated() < before + (64 << 10));
	free(l->bytes);
	free(l->room);
	return taken;
}

/* 5 MiB for each MiB of the cluster, and what does not depend on it, where zstd itself would take
 * 16; levels below 13 have 7 MiB and not 25. */
static void zstd_takes_no_more_memory_than_it_needs(void **state)
{
	for (int level = 1; level <= ZSTD_maxCLevel(); level++) {
		struct large l = { .k = { .compression = QCOW2_COMPRESSION_ZSTD, .level = level },
				   .len = 2 << 20 };
		unsigned n = codec_at_once(&l.k, l.len);
		size_t taken = memory_of(&l, 1);

		assert_true(taken < 11 << 20);
		assert_true(n > 3 || n * taken < 25 << 20);
		l.len = 512 << 10;
		assert_true(memory_of(&l, 1) < 7 << 20);
	}
}

/* However many threads take turns. */
static void large_contexts_are_as_many_as_are_needed_at_once(void **state)
{
	static const struct codec codecs[] = {
		{ .compression = QCOW2_COMPRESSION_ZSTD, .level = 22 },
		{ .compression = QCOW2_COMPRESSION_DEFLATE, .level = 12 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(codecs); i++) {
		struct large l = { .k = codecs[i], .len = 2 << 20 };
		size_t one = memory_of(&l, 1);

		assert_true(memory_of(&l, 4) < one + (1 << 20));
	}
}

/* Small clusters are as zstd has them. */
static void zstd_has_its_own_tables_for_small_clusters(void **state)
{
	const struct codec k = { .compression = QCOW2_COMPRESSION_ZSTD, .level = 22 };
	long usual;

	fill_tagged();
	usual = (long)ZSTD_compress(out, CLUSTER - 1, plain, CLUSTER, 22);
	assert_int_equal(codec_deflate(&k, plain, CLUSTER, packed, CLUSTER - 1), usual);
}

/* A reader that keeps 4 KiB of what it has given out needs no more. */
static void a_small_window_is_enough_for_strict_readers(void **state)
{
	const struct codec c = { .compression = QCOW2_COMPRESSION_DEFLATE,
				 .has_small_window = true };
	z_stream z = { .next_in = packed };
	long n;

	fill_plain();
	n = codec_deflate(&c, plain, CLUSTER, packed, CLUSTER - 1);
	assert_true(n > 0);
	z.avail_in = (uInt)n;
	assert_int_equal(inflateInit2(&z, -12), Z_OK);
	for (size_t at = 0; at < CLUSTER; at += 512) {
		uint8_t piece[512];

		z.next_out = piece;
		z.avail_out = sizeof(piece);
		assert_true(inflate(&z, Z_SYNC_FLUSH) >= 0);
		assert_memory_equal(piece, plain + at, sizeof(piece));
	}
	inflateEnd(&z);
}

static void levels_have_limits(void **state)
{
	static const struct { struct codec c; bool is_good; } cases[] = {
		{ { .level = 0 }, true }, { { .level = 12 }, true }, { { .level = 13 }, false },
		{ { .level = -1 }, false }, { { .level = 9, .has_small_window = true }, true },
		{ { .level = 10, .has_small_window = true }, false },
		{ { .compression = QCOW2_COMPRESSION_ZSTD, .level = 19 }, true },
		{ { .compression = QCOW2_COMPRESSION_ZSTD, .level = 23 }, false },
		{ { .compression = QCOW2_COMPRESSION_ZSTD, .has_small_window = true }, false },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = { 0 };

		assert_int_equal(codec_check(&cases[i].c, &err), cases[i].is_good ? 0 : -EINVAL);
		assert_int_equal(!err.text[0], cases[i].is_good);
	}
}

static void fill_below(uint64_t from, uint64_t n)
{
	struct prng p = { 5 };

	for (size_t i = 0; i < CLUSTER; i++)
		plain[i] = (uint8_t)(from + prng_below(&p, n));
}

/* Of code, of text, of noise, of tables and what is nearly empty. */
static void a_look_at_a_cluster_tells_its_kind(void **state)
{
	fill_below(128, 80);                    /* 6.3 bits a byte */
	assert_int_equal(codec_look(plain, CLUSTER), CODEC_DENSE);
	fill_below('-', 80);
	assert_int_equal(codec_look(plain, CLUSTER), CODEC_PLAIN);
	fill_below(0, 256);
	assert_int_equal(codec_look(plain, CLUSTER), CODEC_NOISE);
	memset(plain, 0, CLUSTER);
	plain[77] = 1;
	assert_int_equal(codec_look(plain, CLUSTER), CODEC_TABLE);
	fill_below(128, 20);                    /* 4.3 */
	assert_int_equal(codec_look(plain, CLUSTER), CODEC_TABLE);
	assert_int_equal(codec_look(plain, 1), CODEC_TABLE);
	assert_int_equal(codec_look(plain, 0), CODEC_PLAIN);
}

/* Noise is given up early, but not if it repeats where QEMU would see that. */
static void noise_that_repeats_is_compressed(void **state)
{
	const struct codec c = { .compression = QCOW2_COMPRESSION_DEFLATE };
	long n;

	fill_below(0, 256);
	assert_int_equal(codec_deflate(&c, plain, CLUSTER, packed, CLUSTER - 1), 0);
	for (size_t i = 4000; i < CLUSTER; i++)
		plain[i] = plain[i - 4000];
	assert_int_equal(codec_look(plain, CLUSTER), CODEC_NOISE);
	n = codec_deflate(&c, plain, CLUSTER, packed, CLUSTER - 1);
	assert_true(n > 0 && n < CLUSTER / 8);
	assert_int_equal(codec_inflate(c.compression, packed, (size_t)n, out, CLUSTER), 0);
	assert_memory_equal(out, plain, CLUSTER);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(clusters_come_back),
		cmocka_unit_test(a_longer_stream_gives_its_beginning),
		cmocka_unit_test(a_stream_is_read_no_further_than_the_cluster),
		cmocka_unit_test(a_short_or_cut_stream_is_an_error),
		cmocka_unit_test(damage_never_writes_outside),
		cmocka_unit_test(what_is_compressed_comes_back),
		cmocka_unit_test(zstd_finds_short_matches),
		cmocka_unit_test(zstd_takes_no_more_memory_than_it_needs),
		cmocka_unit_test(large_contexts_are_as_many_as_are_needed_at_once),
		cmocka_unit_test(zstd_has_its_own_tables_for_small_clusters),
		cmocka_unit_test(a_small_window_is_enough_for_strict_readers),
		cmocka_unit_test(levels_have_limits),
		cmocka_unit_test(a_look_at_a_cluster_tells_its_kind),
		cmocka_unit_test(noise_that_repeats_is_compressed),
	};

	return cmocka_run_group_tests_name("qcow2_codec", tests, NULL, NULL);
}
