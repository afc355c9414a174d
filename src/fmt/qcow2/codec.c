/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/codec.h"

#include <errno.h>
#include <libdeflate.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "fmt/qcow2/format.h"

enum { LONGER_MAX = 64 << 20 };         /* bytes of a stream that is longer than its cluster */

/* A thread's contexts, made when first needed, freed when it ends. */
struct contexts {
	struct libdeflate_decompressor *deflate;
	ZSTD_DCtx *zstd;
};

static pthread_key_t contexts_key;
static pthread_once_t contexts_once = PTHREAD_ONCE_INIT;
static int contexts_rc;

static void contexts_free(void *p)
{
	struct contexts *c = p;

	libdeflate_free_decompressor(c->deflate);
	ZSTD_freeDCtx(c->zstd);
	free(c);
}

static void contexts_init(void)
{
	contexts_rc = pthread_key_create(&contexts_key, contexts_free);
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

/* libdeflate wants room for all that the stream holds. A stream longer than the cluster is odd but
 * other readers take its beginning: so again, with room for more and more, within reason. */
static int deflate_longer(struct libdeflate_decompressor *d, const void *in, size_t in_len,
			  void *out, size_t out_len)
{
	enum libdeflate_result res = LIBDEFLATE_INSUFFICIENT_SPACE;
	size_t used, got = 0;

	for (size_t len = 2 * out_len; len <= LONGER_MAX && res == LIBDEFLATE_INSUFFICIENT_SPACE;
	     len *= 2) {
		char *room = malloc(len);

		if (!room)
			return -ENOMEM;
		res = libdeflate_deflate_decompress_ex(d, in, in_len, room, len, &used, &got);
		if (res == LIBDEFLATE_SUCCESS && got >= out_len)
			memcpy(out, room, out_len);
		free(room);
	}
	return res == LIBDEFLATE_SUCCESS && got >= out_len ? 0 : -EIO;
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
		return deflate_longer(c->deflate, in, in_len, out, out_len);
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
