/* SPDX-License-Identifier: MIT */
#include "base/zero.h"

#include <stdint.h>
#include <string.h>

enum { BLOCK = 256 };                   /* bytes between two looks whether to go on */

/* As wide as the compiler likes: it splits them where the machine's are narrower. */
typedef uint64_t lanes __attribute__((vector_size(32)));

static uint64_t word_at(const unsigned char *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static bool block_is_zero(const unsigned char *p)
{
	lanes sum = { 0 };

	for (unsigned i = 0; i < BLOCK; i += sizeof(lanes)) {
		lanes v;

		memcpy(&v, p + i, sizeof(v));
		sum |= v;
	}
	return !(sum[0] | sum[1] | sum[2] | sum[3]);
}

bool bytes_are_zero(const void *bytes, size_t len)
{
	const unsigned char *p = bytes;
	uint64_t sum = 0;

	/* Data is seldom zero in all three places. */
	if (len >= sizeof(sum) && (word_at(p) | word_at(p + (len - sizeof(sum)) / 2) |
				   word_at(p + len - sizeof(sum))))
		return false;
	for (; len >= BLOCK; p += BLOCK, len -= BLOCK)
		if (!block_is_zero(p))
			return false;
	for (; len >= sizeof(sum); p += sizeof(sum), len -= sizeof(sum))
		sum |= word_at(p);
	while (len)
		sum |= p[--len];
	return !sum;
}
