/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/codec.h"

#include <assert.h>
#include <errno.h>
#include <libdeflate.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "base/bits.h"
#include "base/err.h"
#include "fmt/qcow2/format.h"

enum {
	SMALL_WINDOW_BITS = 12, ZLIB_MEMORY = 9, DEFLATE_LEVEL_MAX = 12, ZLIB_LEVEL_MAX = 9,
	SAMPLES_MAX = 4096,
	DENSE_FROM_256 = 5 * 256, DENSE_TO_256 = 15 * 256 / 2,  /* 5 .. 7.5 bits a byte */
	NOISE_FROM_256 = 63 * 256 / 8,
	TEXT_PERCENT = 85,
	PROBE = 8 << 10, PROBE_OUT = PROBE - PROBE / 64,
	ZSTD_LEVEL_DEEP = 9, ZSTD_LEVEL_TREES = 13,
	ZSTD_DEEP_HASH_BITS = 20, ZSTD_TREES_HASH_BITS = 18,
	LARGE = 512 << 10,              /* bytes; contexts for so many take much memory */
	TREES_PER_BYTE = 5, COMPRESS_BYTES = 24 << 20,
};

/* A thread's contexts, made when first needed, freed when it ends. Those for large clusters are
 * nobody's: who compresses one takes them for that time, so that there are no more of them than are
 * at it at once, whichever threads those are. */
struct contexts {
	struct contexts *next;          /* in idle_large */
	struct libdeflate_decompressor *deflate;
	ZSTD_DCtx *zstd;
	/* By level. */
	struct libdeflate_compressor *deflaters[DEFLATE_LEVEL_MAX + 1];
	ZSTD_CCtx *zstd_in;
	int zstd_level;                 /* that zstd_in is set to; 0: none, or the default */
	size_t zstd_len;                /* for inputs of so many bytes */
	z_stream zlib;
	int zlib_level;                 /* 0: there is none */
};

/* The large ones that nobody has. */
static pthread_mutex_t large_lock = PTHREAD_MUTEX_INITIALIZER;
static struct contexts *idle_large;

static pthread_key_t contexts_key;
static pthread_once_t contexts_once = PTHREAD_ONCE_INIT;
static int contexts_rc;

/* NULL is fine. */
static void contexts_free(struct contexts *c)
{
	if (!c)
		return;
	libdeflate_free_decompressor(c->deflate);
	ZSTD_freeDCtx(c->zstd);
	for (unsigned i = 0; i <= DEFLATE_LEVEL_MAX; i++)
		libdeflate_free_compressor(c->deflaters[i]);
	ZSTD_freeCCtx(c->zstd_in);
	if (c->zlib_level)
		deflateEnd(&c->zlib);
	free(c);
}

/* NULL: there are none. */
static struct contexts *large_pop(void)
{
	struct contexts *c;

	pthread_mutex_lock(&large_lock);
	c = idle_large;
	if (c)
		idle_large = c->next;
	pthread_mutex_unlock(&large_lock);
	return c;
}

static void large_put(struct contexts *c)
{
	pthread_mutex_lock(&large_lock);
	c->next = idle_large;
	idle_large = c;
	pthread_mutex_unlock(&large_lock);
}

/* With each thread that ends large ones go, too: of those there are no more than threads. */
static void thread_ended(void *p)
{
	contexts_free(p);
	contexts_free(large_pop());
}

static void contexts_init(void)
{
	contexts_rc = pthread_key_create(&contexts_key, thread_ended);
}

static struct contexts *contexts_get(void)
{
	struct contexts *c;

	pthread_once(&contexts_once, contexts_init);
	if (contexts_rc)
		return NULL;
	c = pthread_getspecific(contexts_key);
	if (c)
		return c;
	c = calloc(1, sizeof(*c));
	if (c && pthread_setspecific(contexts_key, c)) {
		free(c);
		return NULL;
	}
	return c;
}

/* For one that compresses @in_len bytes; it ends with contexts_put(). NULL: no memory. */
static struct contexts *contexts_take(size_t in_len)
{
	struct contexts *own = contexts_get(), *c;

	if (!own || in_len < LARGE)
		return own;
	c = large_pop();
	return c ? c : calloc(1, sizeof(*c));
}

static void contexts_put(struct contexts *c, size_t in_len)
{
	if (in_len >= LARGE)
		large_put(c);
}

/* libdeflate wants room for all that the stream holds. A stream longer than the cluster is odd but
 * other readers take its beginning; zlib stops there, however much would follow. */
static int deflate_longer(const void *in, size_t in_len, void *out, size_t out_len)
{
	z_stream z = { .next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)in_len,
		       .next_out = out, .avail_out = (uInt)out_len };

	if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
		return -ENOMEM;
	inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return z.avail_out ? -EIO : 0;
}

static int inflate_deflate(struct contexts *c, const void *in, size_t in_len, void *out,
			   size_t out_len)
{
	enum libdeflate_result res;
	size_t used, got;

	if (!c->deflate)
		c->deflate = libdeflate_alloc_decompressor();
	if (!c->deflate)
		return -ENOMEM;
	res = libdeflate_deflate_decompress_ex(c->deflate, in, in_len, out, out_len, &used, &got);
	if (res == LIBDEFLATE_INSUFFICIENT_SPACE)
		return deflate_longer(in, in_len, out, out_len);
	return res == LIBDEFLATE_SUCCESS && got == out_len ? 0 : -EIO;
}

static int inflate_zstd(struct contexts *c, const void *in, size_t in_len, void *out,
			size_t out_len)
{
	ZSTD_inBuffer src = { in, in_len, 0 };
	ZSTD_outBuffer dst = { out, out_len, 0 };

	if (!c->zstd)
		c->zstd = ZSTD_createDCtx();
	if (!c->zstd)
		return -ENOMEM;
	ZSTD_DCtx_reset(c->zstd, ZSTD_reset_session_only);
	while (dst.pos < dst.size) {
		size_t src_was = src.pos, dst_was = dst.pos;

		if (ZSTD_isError(ZSTD_decompressStream(c->zstd, &dst, &src)))
			return -EIO;
		if (src.pos == src_was && dst.pos == dst_was)
			return -EIO;            /* the input ends too early */
	}
	return 0;
}

int codec_inflate(unsigned compression, const void *in, size_t in_len, void *out, size_t out_len)
{
	struct contexts *c = contexts_get();

	if (!c)
		return -ENOMEM;
	if (compression == QCOW2_COMPRESSION_ZSTD)
		return inflate_zstd(c, in, in_len, out, out_len);
	return inflate_deflate(c, in, in_len, out, out_len);
}

/* ---- compressing ---- */

/* log2(@n), in 1/256, at most 0.086 too low. */
static unsigned log2_256(unsigned n)
{
	unsigned bits = log2_floor(n);

	return bits * 256 + (unsigned)(((uint64_t)n << 8) >> bits) - 256;
}

/* Looks at a sample of bytes, each for itself. Text becomes smaller than QEMU's at any level, and
 * what is compressed already does not. Machine code needs the second level for that, tables, which
 * take QEMU longest, the third. */
enum codec_kind codec_look(const void *in, size_t in_len)
{
	const uint8_t *bytes = in;
	size_t step = in_len / SAMPLES_MAX | 1;
	unsigned count[256] = { 0 }, n = 0, ntext = 0;
	uint64_t sum = 0, entropy_256;

	/* An odd step meets all columns of a table. */
	for (size_t i = 0; i < in_len; i += step, n++)
		count[bytes[i]]++;
	if (!n)
		return CODEC_PLAIN;
	for (unsigned i = '\t'; i <= '~'; i++)
		ntext += count[i];
	if (ntext > n / 100 * TEXT_PERCENT)
		return CODEC_PLAIN;
	for (unsigned i = 0; i < ARRAY_SIZE(count); i++)
		sum += count[i] ? (uint64_t)count[i] * log2_256(count[i]) : 0;
	entropy_256 = log2_256(n) - MIN(sum / n, (uint64_t)log2_256(n));
	if (entropy_256 >= NOISE_FROM_256)
		return CODEC_NOISE;
	if (entropy_256 < DENSE_FROM_256)
		return CODEC_TABLE;
	return entropy_256 < DENSE_TO_256 ? CODEC_DENSE : CODEC_PLAIN;
}

/* The level that @k asks for, or its default. 0: zstd's own, or found for each cluster. */
static int level_of(const struct codec *k)
{
	if (k->level)
		return k->level;
	if (k->compression == QCOW2_COMPRESSION_ZSTD)
		return 0;
	return k->has_small_window ? CODEC_ZLIB_LEVEL : 0;
}

int codec_check(const struct codec *k, struct err *err)
{
	bool is_zstd = k->compression == QCOW2_COMPRESSION_ZSTD;
	int max = is_zstd ? ZSTD_maxCLevel() : k->has_small_window ? ZLIB_LEVEL_MAX :
								     DEFLATE_LEVEL_MAX;

	if (is_zstd && k->has_small_window)
		return err_set(err, EINVAL, "a window is chosen for deflate only");
	if (k->level < 0 || k->level > max)
		return err_set(err, EINVAL, "compression level %d is not within 1 and %d",
			       k->level, max);
	return 0;
}

static long deflate_whole(struct contexts *c, int level, const void *in, size_t in_len, void *out,
			  size_t out_len)
{
	struct libdeflate_compressor **d = &c->deflaters[level];

	if (!*d)
		*d = libdeflate_alloc_compressor(level);
	if (!*d)
		return -ENOMEM;
	return (long)libdeflate_deflate_compress(*d, in, in_len, out, out_len);
}

/* What looks like noise and has a middle that does not become smaller is left as it is. The middle
 * is twice as long as QEMU looks back. */
static long deflate_fitting(struct contexts *c, const void *in, size_t in_len, void *out,
			    size_t out_len)
{
	enum codec_kind kind = codec_look(in, in_len);

	if (kind == CODEC_TABLE)
		return deflate_whole(c, CODEC_DEFLATE_LEVEL_TABLE, in, in_len, out, out_len);
	if (kind == CODEC_DENSE)
		return deflate_whole(c, CODEC_DEFLATE_LEVEL_DENSE, in, in_len, out, out_len);
	if (kind == CODEC_NOISE && in_len >= 4 * PROBE && out_len >= PROBE_OUT) {
		long n = deflate_whole(c, CODEC_DEFLATE_LEVEL,
				       (const uint8_t *)in + in_len / 2 - PROBE / 2, PROBE, out,
				       PROBE_OUT);

		if (n <= 0)
			return n;
	}
	return deflate_whole(c, CODEC_DEFLATE_LEVEL, in, in_len, out, out_len);
}

/* libdeflate has one window. */
static long deflate_small(struct contexts *c, int level, const void *in, size_t in_len, void *out,
			  size_t out_len)
{
	int rc = Z_OK;

	if (c->zlib_level && c->zlib_level != level) {
		deflateEnd(&c->zlib);
		c->zlib_level = 0;
	}
	if (c->zlib_level) {
		rc = deflateReset(&c->zlib);
	} else {
		memset(&c->zlib, 0, sizeof(c->zlib));
		rc = deflateInit2(&c->zlib, level, Z_DEFLATED, -SMALL_WINDOW_BITS, ZLIB_MEMORY,
				  Z_DEFAULT_STRATEGY);
		if (rc == Z_OK)
			c->zlib_level = level;
	}
	if (rc != Z_OK)
		return -ENOMEM;
	c->zlib.next_in = (Bytef *)(uintptr_t)in;
	c->zlib.avail_in = (uInt)in_len;
	c->zlib.next_out = out;
	c->zlib.avail_out = (uInt)out_len;
	rc = deflate(&c->zlib, Z_FINISH);
	return rc == Z_STREAM_END ? (long)(out_len - c->zlib.avail_out) : 0;
}

static bool has_trees(int level, size_t in_len)
{
	return level >= ZSTD_LEVEL_TREES && in_len >= LARGE;
}

/* The highest levels search trees, and hash only to find a root. For large clusters they would have
 * two of those for each byte; one for eight finds as much, but for a few bytes in a million. Those
 * below have chains, and with a table of a quarter find all but a thousandth, and sooner. */
static int zstd_hash_bits(int level, size_t in_len)
{
	if (level < ZSTD_LEVEL_DEEP || in_len < LARGE)
		return 0;
	return has_trees(level, in_len) ? ZSTD_TREES_HASH_BITS : ZSTD_DEEP_HASH_BITS;
}

/* Trees of half of the cluster, which is what is looked at: all but a thousandth is found. */
static int zstd_chain_bits(int level, size_t in_len)
{
	return has_trees(level, in_len) ? (int)log2_floor(in_len) : 0;
}

static void zstd_parameter(struct contexts *c, ZSTD_cParameter which, int value)
{
	size_t rc = ZSTD_CCtx_setParameter(c->zstd_in, which, value);

	assert(!ZSTD_isError(rc));
}

/* Sets the context to @level, 0: to our own, for @in_len bytes. */
static int zstd_set(struct contexts *c, int level, size_t in_len)
{
	if (!c->zstd_in)
		c->zstd_in = ZSTD_createCCtx();
	else if (c->zstd_level == level && c->zstd_len == in_len)
		return 0;
	if (!c->zstd_in)
		return -ENOMEM;
	c->zstd_level = level;
	c->zstd_len = in_len;
	zstd_parameter(c, ZSTD_c_compressionLevel, level ? level : CODEC_ZSTD_LEVEL);
	/* 0: as the level has it. */
	zstd_parameter(c, ZSTD_c_minMatch, level ? 0 : CODEC_ZSTD_MATCH_MIN);
	zstd_parameter(c, ZSTD_c_hashLog, zstd_hash_bits(level, in_len));
	zstd_parameter(c, ZSTD_c_chainLog, zstd_chain_bits(level, in_len));
	return 0;
}

static long deflate_zstd(struct contexts *c, int level, const void *in, size_t in_len, void *out,
			 size_t out_len)
{
	size_t n;

	if (zstd_set(c, level, in_len))
		return -ENOMEM;
	n = ZSTD_compress2(c->zstd_in, out, out_len, in, in_len);
	if (!ZSTD_isError(n))
		return (long)n;
	return ZSTD_getErrorCode(n) == ZSTD_error_dstSize_tooSmall ? 0 : -ENOMEM;
}

static long deflate_with(struct contexts *c, const struct codec *k, const void *in, size_t in_len,
			 void *out, size_t out_len)
{
	int level = level_of(k);

	if (k->compression == QCOW2_COMPRESSION_ZSTD)
		return deflate_zstd(c, level, in, in_len, out, out_len);
	if (k->has_small_window)
		return deflate_small(c, level, in, in_len, out, out_len);
	if (!level)
		return deflate_fitting(c, in, in_len, out, out_len);
	return deflate_whole(c, level, in, in_len, out, out_len);
}

long codec_deflate(const struct codec *k, const void *in, size_t in_len, void *out, size_t out_len)
{
	struct contexts *c = contexts_take(in_len);
	long n;

	if (!c)
		return -ENOMEM;
	n = deflate_with(c, k, in, in_len, out, out_len);
	contexts_put(c, in_len);
	return n;
}

unsigned codec_at_once(const struct codec *k, size_t in_len)
{
	if (k->compression != QCOW2_COMPRESSION_ZSTD || !has_trees(k->level, in_len))
		return UINT_MAX;
	return (unsigned)MAX(1UL, COMPRESS_BYTES / (TREES_PER_BYTE * in_len));
}
