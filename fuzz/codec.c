/* SPDX-License-Identifier: MIT */
/* fuzz/codec.c - compressed clusters. An input is the compression (a byte), the bits of the
 * cluster's size (a byte) and a stream.
 *
 * Also held: a stream that is accepted fills the whole cluster, with the same bytes whatever was
 * there; with bytes behind it, it means the same. (A zstd frame that fills the cluster but has no
 * end may be refused then: what follows is taken for its next block, by other readers too.) */
#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "fmt/qcow2/codec.h"
#include "fmt/qcow2/format.h"
#include "fuzz/fuzz.h"

enum { BEHIND = 512 };

static uint8_t *filled(size_t n, int with)
{
	uint8_t *buf = malloc(n);

	FUZZ_CHECK(buf, "no memory");
	memset(buf, with, n);
	return buf;
}

static void run(const uint8_t *data, size_t size)
{
	unsigned compression, bits;
	uint8_t *in, *a, *b;
	size_t out;
	int rc;

	if (size < 2)
		return;
	compression = data[0] & 1 ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_DEFLATE;
	bits = QCOW2_CLUSTER_BITS_MIN +
	       data[1] % (QCOW2_CLUSTER_BITS_MAX - QCOW2_CLUSTER_BITS_MIN + 1);
	data += 2;
	size -= 2;
	out = (size_t)1 << bits;
	in = filled(size + BEHIND, 0x5a);
	a = filled(out, 0x11);
	b = filled(out, 0xee);
	memcpy(in, data, size);
	rc = codec_inflate(compression, data, size, a, out);
	FUZZ_CHECK(!rc || rc == -EIO, "%d", rc);
	if (!rc) {
		FUZZ_CHECK(!codec_inflate(compression, data, size, b, out), "not twice");
		FUZZ_CHECK(!memcmp(a, b, out), "not filled");
		memset(b, 0x77, out);
		rc = codec_inflate(compression, in, size + BEHIND, b, out);
		FUZZ_CHECK(!rc || compression == QCOW2_COMPRESSION_ZSTD,
			   "not with bytes behind it");
		FUZZ_CHECK(rc || !memcmp(a, b, out), "other bytes");
	}
	free(in);
	free(a);
	free(b);
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	if (size > 2 && prng_below(p, 16)) {
		size_t n = fuzz_mutate_bytes(data + 2, size - 2, max - 2, p);

		return n + 2;
	}
	return fuzz_mutate_bytes(data, size, max, p);
}

const struct fuzz_target fuzz_target = { "codec", 64 << 10, run, mutate };
