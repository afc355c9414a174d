/* SPDX-License-Identifier: MIT */
/* bench/region/subject.h - an allocator as replace.c sees it, and where those that do not ask the
 * system themselves get their memory. One subject a process, one thread. */
#ifndef BENCH_REGION_SUBJECT_H
#define BENCH_REGION_SUBJECT_H

#include <stddef.h>

enum { PAGE = 4096 };

struct subject {
	const char *name;
	/* @region_bytes: what it takes from the system at a time, where that can be told. */
	void (*open)(size_t region_bytes);
	void *(*alloc)(size_t size);
	void (*free)(void *p, size_t size);
	/* Bytes it holds now; NULL: ask the kernel what the process has. */
	size_t (*held)(void);
	/* Gives back to the system what is free, page by page. */
	void (*release)(void);
};

extern const struct subject subject_region, subject_slab, subject_malloc;

/* ---- memory: pieces of one size, aligned to it ---- */

void memory_open(size_t piece_bytes);
void *memory_get(void);
void memory_put(void *piece);
size_t memory_held(void);
/* Takes the memory of the pieces that were put back; they stay usable. */
void memory_drop_pieces(void);
void memory_drop(void *start, size_t len);
/* The number of the piece that @p is in, and back. */
size_t memory_index(const void *p);
void *memory_at(size_t index);

#endif
