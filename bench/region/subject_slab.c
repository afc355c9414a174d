/* SPDX-License-Identifier: MIT */
/* bench/region/subject_slab.c - slabs for powers of two, as kernels and hypervisors have used for
 * such objects: a page belongs to one size, and is given back when its last object is.
 *
 * All that is not the objects themselves lies outside and is not counted, and a slab is only a
 * page: nothing with power-of-two sizes can hold less. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "subject.h"

enum { SIZE_MIN_LOG2 = 4, SIZE_MAX_LOG2 = 12, CLASSES = SIZE_MAX_LOG2 - SIZE_MIN_LOG2 + 1 };
enum { SLABS_MAX = (1 << 30) / PAGE, WORDS = PAGE / (1 << SIZE_MIN_LOG2) / 64 };

struct slab {
	struct slab *next, *prev;       /* in its class's ring of slabs with room, if it has some */
	uint64_t free[WORDS];           /* a bit an object */
	uint16_t free_count, total;
	uint8_t size_log2;
};

static struct slab *slabs;              /* by number of the piece of memory */
static struct slab rings[CLASSES];

static void ring_add(struct slab *s)
{
	struct slab *ring = &rings[s->size_log2 - SIZE_MIN_LOG2];

	s->next = ring->next;
	s->prev = ring;
	s->next->prev = ring->next = s;
}

static void ring_del(struct slab *s)
{
	s->prev->next = s->next;
	s->next->prev = s->prev;
}

static unsigned size_log2(size_t size)
{
	return MAX(log2_ceil(size), (unsigned)SIZE_MIN_LOG2);
}

static void slab_open(size_t region_bytes)
{
	(void)region_bytes;
	memory_open(PAGE);
	slabs = mmap(NULL, SLABS_MAX * sizeof(*slabs), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (slabs == MAP_FAILED) {
		perror("replace: mmap");
		exit(1);
	}
	for (unsigned i = 0; i < CLASSES; i++)
		rings[i].next = rings[i].prev = &rings[i];
}

static struct slab *slab_new(unsigned log2)
{
	void *page = memory_get();
	struct slab *s;

	if (!page)
		return NULL;
	s = &slabs[memory_index(page)];
	*s = (struct slab){ .size_log2 = (uint8_t)log2 };
	s->free_count = s->total = (uint16_t)(PAGE >> log2);
	for (unsigned i = 0; i < s->total; i++)
		s->free[i / 64] |= 1ULL << i % 64;
	ring_add(s);
	return s;
}

static void *slab_alloc(size_t size)
{
	unsigned log2 = size_log2(size), word = 0, bit;
	struct slab *s = rings[log2 - SIZE_MIN_LOG2].next;
	char *page;

	if (s == &rings[log2 - SIZE_MIN_LOG2])
		s = slab_new(log2);
	if (!s)
		return NULL;
	while (!s->free[word])
		word++;
	bit = (unsigned)__builtin_ctzll(s->free[word]);
	s->free[word] &= s->free[word] - 1;
	if (--s->free_count == 0)
		ring_del(s);
	page = memory_at((size_t)(s - slabs));
	return page + ((64 * word + bit) << log2);
}

static void slab_free(void *p, size_t size)
{
	struct slab *s = &slabs[memory_index(p)];
	unsigned n = (unsigned)((uintptr_t)p % PAGE >> s->size_log2);

	(void)size;
	s->free[n / 64] |= 1ULL << n % 64;
	if (s->free_count++ == 0)
		ring_add(s);
	if (s->free_count < s->total)
		return;
	ring_del(s);
	memory_put((char *)p - (uintptr_t)p % PAGE);
}

const struct subject subject_slab = {
	.name = "slab",
	.open = slab_open,
	.alloc = slab_alloc,
	.free = slab_free,
	.held = memory_held,
	.release = memory_drop_pieces,
};
