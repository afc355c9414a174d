/* SPDX-License-Identifier: MIT */
/* bench/region/memory.c - stands in for the system: one large mapping, handed out in pieces. A
 * stack of numbers tells which are free. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "subject.h"

enum { MAPPING_BYTES = 1 << 30 };

static struct {
	char *base;
	size_t piece_bytes, count, used;        /* @count: those ever handed out */
	uint32_t *free;                         /* a stack */
	size_t free_count;
} memory;

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED) {
		perror("replace: mmap");
		exit(1);
	}
	return p;
}

void memory_open(size_t piece_bytes)
{
	memory.piece_bytes = piece_bytes;
	memory.base = (char *)align_up((uintptr_t)map(MAPPING_BYTES + piece_bytes), piece_bytes);
	/* Huge pages would hide what is resident. */
	madvise(memory.base, MAPPING_BYTES, MADV_NOHUGEPAGE);
	memory.free = map(MAPPING_BYTES / piece_bytes * sizeof(*memory.free));
}

void *memory_get(void)
{
	size_t n = memory.free_count ? memory.free[--memory.free_count] : memory.count++;

	if ((n + 1) * memory.piece_bytes > MAPPING_BYTES)
		return NULL;
	memory.used++;
	return memory_at(n);
}

void memory_put(void *piece)
{
	memory.free[memory.free_count++] = (uint32_t)memory_index(piece);
	memory.used--;
}

size_t memory_held(void)
{
	return memory.used * memory.piece_bytes;
}

size_t memory_index(const void *p)
{
	return (size_t)((const char *)p - memory.base) / memory.piece_bytes;
}

void *memory_at(size_t index)
{
	return memory.base + index * memory.piece_bytes;
}

void memory_drop(void *start, size_t len)
{
	if (madvise(start, len, MADV_DONTNEED) < 0) {
		perror("replace: madvise");
		exit(1);
	}
}

void memory_drop_pieces(void)
{
	for (size_t i = 0; i < memory.free_count; i++)
		memory_drop(memory_at(memory.free[i]), memory.piece_bytes);
}
