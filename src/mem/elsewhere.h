/* SPDX-License-Identifier: MIT */
/* mem/elsewhere.h - the allocator to use instead of ours, in programs that must have another.
 *
 * A program built with AddressSanitizer or one of its kin is run to find errors, by an allocator
 * made for that. Where our names come first all the same (preloaded, or linked before it), requests
 * go on to whoever has the names next. (Valgrind takes over by itself whatever allocator it finds.)
 * */
#ifndef MEM_ELSEWHERE_H
#define MEM_ELSEWHERE_H

#include <stddef.h>

struct elsewhere {
	void *(*malloc)(size_t size);
	void *(*memalign)(size_t align, size_t size);
	void *(*realloc)(void *p, size_t size);
	void (*free)(void *p);
	size_t (*usable_size)(const void *p);
};

/* NULL, or where to go on. */
extern const struct elsewhere *elsewhere_found __attribute__((visibility("hidden")));

static inline const struct elsewhere *elsewhere(void)
{
	return elsewhere_found;
}

/* As elsewhere(), looking for it the first time. */
const struct elsewhere *elsewhere_look(void);

#endif
