/* SPDX-License-Identifier: MIT */
/* base/endian.h - big-endian fields of disk and wire formats.
 *
 * They are structs, so that reading one without a swap does not compile. All may stand
 * unaligned in packed buffers. */
#ifndef BASE_ENDIAN_H
#define BASE_ENDIAN_H

#include <stdint.h>
#include <string.h>

typedef struct { uint8_t b[2]; } be16_t;
typedef struct { uint8_t b[4]; } be32_t;
typedef struct { uint8_t b[8]; } be64_t;

static inline uint16_t be16_load(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap16(v);
}

static inline uint32_t be32_load(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap32(v);
}

static inline uint64_t be64_load(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap64(v);
}

static inline void be16_store(void *p, uint16_t v)
{
	v = __builtin_bswap16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void be32_store(void *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void be64_store(void *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, sizeof(v));
}

static inline uint16_t be16_get(be16_t f) { return be16_load(f.b); }
static inline uint32_t be32_get(be32_t f) { return be32_load(f.b); }
static inline uint64_t be64_get(be64_t f) { return be64_load(f.b); }

static inline be16_t be16_make(uint16_t v) { be16_t f; be16_store(f.b, v); return f; }
static inline be32_t be32_make(uint32_t v) { be32_t f; be32_store(f.b, v); return f; }
static inline be64_t be64_make(uint64_t v) { be64_t f; be64_store(f.b, v); return f; }

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "byre runs on little-endian machines (x86-64, aarch64)"
#endif

#endif
