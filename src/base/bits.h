/* SPDX-License-Identifier: MIT */
/* base/bits.h - small arithmetic that everything uses. Pure; no state. */
#ifndef BASE_BITS_H
#define BASE_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KiB 1024ULL
#define MiB (1024ULL * KiB)
#define GiB (1024ULL * MiB)
#define TiB (1024ULL * GiB)

#define NS_PER_SEC 1000000000ULL
#define NS_PER_MS 1000000ULL
#define NS_PER_US 1000ULL

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* The struct that @ptr is the @member of. */
#define container_of(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#define MIN(a, b) ({ __typeof__(a) min_a = (a); __typeof__(b) min_b = (b); \
		min_a < min_b ? min_a : min_b; })
#define MAX(a, b) ({ __typeof__(a) max_a = (a); __typeof__(b) max_b = (b); \
		max_a > max_b ? max_a : max_b; })

static inline bool is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

/* @align is a power of two in the next three. */
static inline uint64_t align_down(uint64_t v, uint64_t align)
{
	return v & ~(align - 1);
}

/* Wraps to 0 where @v is within @align of 2^64: check ranges first. */
static inline uint64_t align_up(uint64_t v, uint64_t align)
{
	return (v + align - 1) & ~(align - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t align)
{
	return !(v & (align - 1));
}

static inline uint64_t div_round_up(uint64_t n, uint64_t d)
{
	return n / d + (n % d != 0);
}

/* The position of the highest bit set; @v is not 0. */
static inline unsigned log2_floor(uint64_t v)
{
	return 63u - (unsigned)__builtin_clzll(v);
}

static inline unsigned log2_ceil(uint64_t v)
{
	return v <= 1 ? 0 : log2_floor(v - 1) + 1;
}

/* Does [@off, @off + @len) lie within [0, @size), without overflow? */
static inline bool range_within(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

/* Do [@a, @a + @alen) and [@b, @b + @blen) share a byte? Neither may wrap. */
static inline bool ranges_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return a < b + blen && b < a + alen;
}

#endif
