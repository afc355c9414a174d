/* SPDX-License-Identifier: MIT */
/* fuzz/fuzz.h - what the fuzz targets share.
 *
 * A target is a function over bytes, and a mutator that knows what the bytes mean. Two programs are
 * made of each: one with libFuzzer (-Dfuzz=true, clang), which grows its corpus by coverage,
 * and a plain one for any compiler (plain.c), which runs files and seeded mutations of them.
 *
 * What every target holds the code to, besides the sanitizers' rules:
 *	- the same input gives the same answer, whatever the order in which I/O completes;
 *	- no more than FUZZ_MEMORY_MAX is allocated (libFuzzer: -malloc_limit_mb, -rss_limit_mb;
 *	  plain: limits of the process);
 *	- an input takes FUZZ_SECONDS_MAX at most.
 * Single-threaded. A target keeps nothing from one input to the next that could change an
 * answer. */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"

enum { FUZZ_MEMORY_MAX = 512 << 20, FUZZ_SECONDS_MAX = 20 };

struct fuzz_target {
	const char *name;
	size_t max_size;                /* of an input, bytes */
	void (*run)(const uint8_t *data, size_t size);
	/* Changes @data in place, to at most @max bytes; returns how many. */
	size_t (*mutate)(uint8_t *data, size_t size, size_t max, struct prng *p);
};

/* Each target's file defines it. */
extern const struct fuzz_target fuzz_target;

/* Holds whatever NDEBUG says. */
#define FUZZ_CHECK(cond, ...) do { \
	if (!(cond)) { \
		fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond); \
		fprintf(stderr, __VA_ARGS__); \
		fputc('\n', stderr); \
		abort(); \
	} \
} while (0)

/* ---- mutate.c ---- */

/* Changes bytes without knowing what they are; under libFuzzer by what it has learned. */
size_t fuzz_mutate_bytes(uint8_t *data, size_t size, size_t max, struct prng *p);
/* The same by chance alone. */
size_t fuzz_mutate_blindly(uint8_t *data, size_t size, size_t max, struct prng *p);
/* For inputs that are @head bytes and then calls of @call bytes each: adds, removes or repeats
 * calls; else changes bytes. */
size_t fuzz_mutate_calls(uint8_t *data, size_t size, size_t max, size_t head, size_t call,
			 struct prng *p);
/* A number of @bytes bytes that is likely to matter; @old is what stands there. */
uint64_t fuzz_number(struct prng *p, uint64_t old, unsigned bytes);

/* To compare answers. */
static inline uint64_t fuzz_hash(uint64_t h, const void *data, size_t n)
{
	const uint8_t *b = data;
	uint64_t v;

	for (; n >= sizeof(v); n -= sizeof(v), b += sizeof(v)) {
		memcpy(&v, b, sizeof(v));
		h = (h ^ v) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 32;
	}
	for (; n; n--, b++)
		h = (h ^ *b) * 0x100000001b3ULL;
	return h;
}

#endif
