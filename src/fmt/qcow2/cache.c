/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/cache.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/endian.h"
#include "fmt/qcow2/load.h"
#include "fmt/qcow2/qcow2.h"

enum { BUDGET_MIN = 256 << 10 };

struct qcow2_cache *qcow2_cache_new(size_t budget, struct loop *home)
{
	struct qcow2_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->loads = loads_new();
	if (!c->loads) {
		free(c);
		return NULL;
	}
	c->home = home;
	c->budget = MAX(budget, (size_t)BUDGET_MIN);
	return c;
}

void qcow2_cache_free(struct qcow2_cache *c)
{
	if (!c)
		return;
	if (c->mapped_bytes)
		munmap(c->mapping, c->mapped_bytes);
	free(c->hands);
	loads_free(c->loads);
	free(c);
}

int cache_setup(struct qcow2_cache *c, unsigned slice_bytes)
{
	size_t slot_bytes = slice_bytes + CACHE_PARTS * sizeof(*c->nexts) + sizeof(*c->keys) +
			    sizeof(*c->versions) + sizeof(*c->used);
	size_t slots, bytes;
	char *mem;

	if (c->mapped_bytes)
		return 0;
	assert(is_pow2(slice_bytes) && slice_bytes >= CACHE_SLICE_BYTES_MIN &&
	       slice_bytes <= CACHE_SLICE_BYTES_MAX);
	/* The slices alone count, or a budget that is a power of two would be half used. */
	c->set_bits = log2_floor(c->budget / ((size_t)slice_bytes * CACHE_WAYS));
	slots = (size_t)CACHE_WAYS << c->set_bits;
	bytes = slots * slot_bytes;
	c->hands = calloc(slots / CACHE_WAYS, 1);
	/* Untouched, it costs nothing: it fills as slices are loaded. */
	mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		   -1, 0);
	if (mem == MAP_FAILED || !c->hands) {
		if (mem != MAP_FAILED)
			munmap(mem, bytes);
		free(c->hands);
		c->hands = NULL;
		return -ENOMEM;
	}
	c->mapping = mem;
	c->slice_bytes = slice_bytes;
	c->words = (void *)mem;
	mem += slots * slice_bytes;
	c->nexts = (void *)mem;
	mem += slots * CACHE_PARTS * sizeof(*c->nexts);
	c->keys = (void *)mem;
	mem += slots * sizeof(*c->keys);
	c->versions = (void *)mem;
	mem += slots * sizeof(*c->versions);
	c->used = (void *)mem;
	c->mapped_bytes = bytes;
	return 0;
}

/* The slot of the set that is to hold a new key: the old one of the same key (C2), the first free
 * one where readers look, or the first that the hand finds unused (C3). */
static size_t choose(struct qcow2_cache *c, uint64_t key)
{
	size_t way, set = cache_set_of(c, key, &way), vacant = SIZE_MAX;
	uint8_t *hand = &c->hands[set / CACHE_WAYS];

	for (size_t n = 0; n < CACHE_WAYS; n++) {
		size_t i = set + ((way + n) & (CACHE_WAYS - 1));
		uint64_t k = atomic_load_explicit(&c->keys[i], memory_order_relaxed) & ~CACHE_EMPTY;

		if (k == key)
			return i;
		if (!k && vacant == SIZE_MAX)
			vacant = i;
	}
	if (vacant != SIZE_MAX)
		return vacant;
	for (unsigned tries = 0;; tries++) {
		size_t i = set + *hand;

		*hand = (uint8_t)((*hand + 1) % CACHE_WAYS);
		/* Readers may mark them as fast as they are unmarked: twice round is enough. */
		if (!atomic_exchange_explicit(&c->used[i], 0, memory_order_relaxed) ||
		    tries > 2 * CACHE_WAYS) {
			c->evictions++;
			return i;
		}
	}
}

void cache_insert(struct qcow2_cache *c, uint64_t key, const uint8_t *disk)
{
	size_t slot = choose(c, key), words = c->slice_bytes / 8;
	uint32_t v = atomic_load_explicit(&c->versions[slot], memory_order_relaxed);

	assert(!(v & 1));
	c->loads_done++;
	atomic_store_explicit(&c->versions[slot], v + 1, memory_order_relaxed);
	atomic_store_explicit(&c->keys[slot], 0, memory_order_release);
	if (disk) {
		_Atomic uint64_t *w = &c->words[slot * words];

		for (size_t i = 0; i < words; i++)
			atomic_store_explicit(&w[i], be64_load(disk + 8 * i), memory_order_release);
	}
	/* The hand has just passed: it is safe until the rest of the set had its turn. */
	atomic_store_explicit(&c->used[slot], 0, memory_order_relaxed);
	atomic_store_explicit(&c->keys[slot], disk ? key : key | CACHE_EMPTY, memory_order_release);
	atomic_store_explicit(&c->versions[slot], v + 2, memory_order_release);
}

bool cache_store(struct qcow2_cache *c, uint64_t key, unsigned word, unsigned n,
		 const uint64_t *values)
{
	bool is_empty;
	long slot = cache_find(c, key, &is_empty);
	_Atomic uint64_t *w;
	uint32_t v;

	if (slot < 0 || is_empty)
		return false;
	assert(word + n <= c->slice_bytes / 8);
	v = atomic_load_explicit(&c->versions[slot], memory_order_relaxed);
	w = &c->words[(size_t)slot * (c->slice_bytes / 8) + word];
	atomic_store_explicit(&c->versions[slot], v + 1, memory_order_relaxed);
	for (unsigned i = 0; i < n; i++)
		atomic_store_explicit(&w[i], values[i], memory_order_release);
	atomic_store_explicit(&c->versions[slot], v + 2, memory_order_release);
	return true;
}

void cache_set_next(struct qcow2_cache *c, uint64_t key, unsigned part, unsigned next)
{
	bool is_empty;
	long slot = cache_find(c, key, &is_empty);

	/* The slot may be another's by now: then nobody takes the word for his. */
	if (slot >= 0)
		atomic_store_explicit(&c->nexts[(size_t)slot * CACHE_PARTS + part],
				      key | (uint64_t)next << CACHE_NEXT_SHIFT,
				      memory_order_release);
}

bool cache_has_word(const struct qcow2_cache *c, unsigned layer, unsigned step, uint64_t mask,
		    uint64_t value)
{
	size_t slots = (size_t)CACHE_WAYS << c->set_bits, words = c->slice_bytes / 8;

	for (size_t i = 0; i < slots; i++) {
		uint64_t k = atomic_load_explicit(&c->keys[i], memory_order_relaxed);

		if (k & CACHE_EMPTY || k >> CACHE_LAYER_SHIFT != layer + 1)
			continue;
		for (size_t j = 0; j < words; j += step)
			if ((atomic_load_explicit(&c->words[i * words + j],
						  memory_order_relaxed) & mask) == value)
				return true;
	}
	return false;
}

void cache_clear(struct qcow2_cache *c)
{
	size_t slots = (size_t)CACHE_WAYS << c->set_bits;

	for (size_t i = 0; i < slots; i++)
		atomic_store_explicit(&c->keys[i], 0, memory_order_release);
}

bool cache_valid(const struct qcow2_cache *c)
{
	size_t slots = (size_t)CACHE_WAYS << c->set_bits, way;

	for (size_t i = 0; i < slots; i++) {
		uint64_t k = atomic_load(&c->keys[i]) & ~CACHE_EMPTY;

		if (!k)
			continue;
		if (cache_set_of(c, k, &way) != i / CACHE_WAYS * CACHE_WAYS)
			return false;
		for (size_t j = i + 1; j < (i / CACHE_WAYS + 1) * CACHE_WAYS; j++)
			if ((atomic_load(&c->keys[j]) & ~CACHE_EMPTY) == k)
				return false;
	}
	return true;
}
