/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/codec.h - one compressed cluster in memory. Any thread; contexts are kept a thread. */
#ifndef FMT_QCOW2_CODEC_H
#define FMT_QCOW2_CODEC_H

#include <stddef.h>

/* Fills @out with what @in decompresses to. What follows in @in, or would follow in @out, is
 * ignored: the length of compressed data is known by sectors only. @compression:
 * QCOW2_COMPRESSION_*. 0; -EIO: not a stream that fills @out; -ENOMEM. */
int codec_inflate(unsigned compression, const void *in, size_t in_len, void *out, size_t out_len);

#endif
