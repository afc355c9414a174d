/* SPDX-License-Identifier: MIT */
/* bench/malloc/alone.c - patterns of one thread. */
#include <stdbool.h>
#include <string.h>

#include "pattern.h"

enum { FIFO_BLOCKS = 1000, REPLACE_BLOCKS = 10000, LARGE_BLOCKS = 16, VECTORS = 200 };

static void lifo_64(uint64_t rounds)
{
	for (uint64_t i = 0; i < rounds; i++)
		free(get(64));
}

static void fifo_64(uint64_t rounds)
{
	static void *blocks[FIFO_BLOCKS];

	for (uint64_t i = 0; i < rounds; i++) {
		for (unsigned k = 0; k < FIFO_BLOCKS; k++)
			blocks[k] = get(64);
		for (unsigned k = 0; k < FIFO_BLOCKS; k++)
			free(blocks[k]);
	}
}

/* One of many blocks, chosen at random, is freed and allocated anew; @size 0 means mixed sizes. */
static void replace(uint64_t rounds, size_t size)
{
	static void *blocks[REPLACE_BLOCKS];
	struct prng prng = { 1 };

	for (uint64_t i = 0; i < rounds; i++) {
		uint64_t r = prng_next(&prng);
		void **p = &blocks[(r >> 32) * REPLACE_BLOCKS >> 32];

		free(*p);
		*p = get(size ? size : mixed_size(r));
	}
	for (unsigned k = 0; k < REPLACE_BLOCKS; k++)
		free(blocks[k]);
}

static void replace_64(uint64_t rounds)
{
	replace(rounds, 64);
}

static void replace_512(uint64_t rounds)
{
	replace(rounds, 512);
}

static void replace_mixed(uint64_t rounds)
{
	replace(rounds, 0);
}

static void large(uint64_t rounds)
{
	static void *blocks[LARGE_BLOCKS];
	struct prng prng = { 1 };

	for (uint64_t i = 0; i < rounds; i++) {
		size_t size = (256 * KiB << prng_below(&prng, 6)) + prng_below(&prng, 256 * KiB);
		void **p = &blocks[prng_below(&prng, LARGE_BLOCKS)];

		free(*p);
		*p = get(size);
		touch_pages(*p, size);
	}
	for (unsigned k = 0; k < LARGE_BLOCKS; k++)
		free(blocks[k]);
}

struct vector {
	char *bytes;
	size_t len, room;
};

/* Room grows by half; what is new is written, as an append does. */
static void vector_grow(struct vector *v)
{
	v->room = v->room ? v->room + v->room / 2 : 32;
	v->bytes = realloc(v->bytes, v->room);
	if (!v->bytes)
		die("patterns: realloc");
	memset(v->bytes + v->len, 1, v->room - v->len);
	v->len = v->room;
}

static void vectors_grow(unsigned count, size_t to)
{
	static struct vector vectors[VECTORS];
	bool grown = true;

	while (grown) {
		grown = false;
		for (unsigned k = 0; k < count; k++) {
			if (vectors[k].room >= to)
				continue;
			vector_grow(&vectors[k]);
			grown = true;
		}
	}
	for (unsigned k = 0; k < count; k++)
		free(vectors[k].bytes);
	memset(vectors, 0, sizeof(vectors));
}

static void realloc_growth(uint64_t rounds)
{
	for (uint64_t i = 0; i < rounds; i++) {
		vectors_grow(1, 32 * MiB);
		vectors_grow(VECTORS, 64 * KiB);
		for (unsigned k = 0; k < 20; k++)
			vectors_grow(VECTORS, 1 * KiB);
	}
}

const struct pattern patterns_alone[] = {
	{ "lifo-64", "local", lifo_64, 60000000, "a block of 64 bytes is freed at once" },
	{ "fifo-64", "local", fifo_64, 40000, "1000 of 64 bytes, freed in the same order" },
	{ "replace-64", "local", replace_64, 20000000, "10000 of 64 bytes, replaced at random" },
	{ "replace-512", "local", replace_512, 20000000, "10000 of 512 bytes" },
	{ "replace-mixed", "local", replace_mixed, 15000000, "10000 of 16 bytes to 4 KiB" },
	{ "large", "local", large, 1500, "16 of 256 KiB to 8 MiB, all touched" },
	{ "realloc", "local", realloc_growth, 15, "vectors grow by half, one, or 200 in turn" },
	{ .name = NULL },
};
