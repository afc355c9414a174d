/* SPDX-License-Identifier: MIT */
/* base/prng.h - splitmix64: a small generator with a printed seed, for simulation, tests and
 * hashing. Not for secrets. */
#ifndef BASE_PRNG_H
#define BASE_PRNG_H

#include <stdint.h>

struct prng {
	uint64_t state;
};

/* A good mix of all bits of @v: the finalizer of splitmix64. */
static inline uint64_t mix64(uint64_t v)
{
	v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ULL;
	v = (v ^ (v >> 27)) * 0x94d049bb133111ebULL;
	return v ^ (v >> 31);
}

static inline uint64_t prng_next(struct prng *p)
{
	p->state += 0x9e3779b97f4a7c15ULL;
	return mix64(p->state);
}

/* A number in [0, @n); @n is not 0. The bias is below n / 2^64. */
static inline uint64_t prng_below(struct prng *p, uint64_t n)
{
#ifdef __SIZEOF_INT128__
	return (uint64_t)(((unsigned __int128)prng_next(p) * n) >> 64);
#else
	return prng_next(p) % n;
#endif
}

#endif
