/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/codec.h - one compressed cluster in memory. Any thread; contexts are kept. */
#ifndef FMT_QCOW2_CODEC_H
#define FMT_QCOW2_CODEC_H

#include <stdbool.h>
#include <stddef.h>

struct err;

/* Levels that make images no larger than QEMU's, as fast as that can be had. Deflate takes the
 * others for clusters that gain by them (codec_look()). zstd's is its default, which is what QEMU
 * takes, but for the shortest match: between 16 and 128 KiB of input the default overlooks those of
 * four bytes, with which clusters of 64 KiB become 1 to 2 % smaller in the same time. */
enum { CODEC_DEFLATE_LEVEL = 1, CODEC_DEFLATE_LEVEL_DENSE = 2, CODEC_DEFLATE_LEVEL_TABLE = 3,
       CODEC_ZSTD_LEVEL = 3, CODEC_ZSTD_MATCH_MIN = 4, CODEC_ZLIB_LEVEL = 6 };

/* How clusters are compressed. */
struct codec {
	unsigned compression;           /* QCOW2_COMPRESSION_* */
	int level;                      /* 0: as above */
	bool has_small_window;          /* deflate looks back 4 KiB, as QEMU's does, not 32 KiB */
};

/* Fills @out with what @in decompresses to. What follows in @in, or would follow in @out, is
 * ignored: the length of compressed data is known by sectors only. @compression:
 * QCOW2_COMPRESSION_*. 0; -EIO: not a stream that fills @out; -ENOMEM. */
int codec_inflate(unsigned compression, const void *in, size_t in_len, void *out, size_t out_len);

/* Compresses @in into @out. Returns the bytes used, 0 where more than @out_len would be, or
 * -ENOMEM. The same input gives the same bytes, on any thread. */
long codec_deflate(const struct codec *c, const void *in, size_t in_len, void *out,
		   size_t out_len);

/* How many may compress @in_len bytes at once, for the memory that it takes: UINT_MAX where it does
 * not matter. Pure. */
unsigned codec_at_once(const struct codec *c, size_t in_len);

/* What the spread of a cluster's bytes says of it. */
enum codec_kind {
	CODEC_PLAIN,                    /* the least level does */
	CODEC_TABLE,                    /* few values, often: a third one is worth its time, */
	CODEC_DENSE,                    /* or a second one */
	CODEC_NOISE,                    /* perhaps none makes it smaller */
};

/* By the spread of its bytes alone: pure. */
enum codec_kind codec_look(const void *in, size_t in_len);

/* 0, or -EINVAL and @err says what levels there are. */
int codec_check(const struct codec *c, struct err *err);

#endif
