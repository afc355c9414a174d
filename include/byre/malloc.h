/* SPDX-License-Identifier: MIT */
/* byre/malloc.h - what libbyre_malloc has beside malloc() and its kin.
 *
 * The library takes over malloc(), free(), calloc(), realloc(), reallocarray(), the aligned forms,
 * malloc_usable_size(), free_sized(), free_aligned_sized(), malloc_trim(), mallinfo(), mallinfo2(),
 * malloc_info(), malloc_stats(), mallopt(), and C++'s operators new and delete, whether it
 * is linked or preloaded; <malloc.h> and <stdlib.h> declare them. The MallocExtension_ functions
 * that gperftools declares in <gperftools/malloc_extension_c.h> are there, too.
 *
 * Programs that may run without the library declare what they use weak:
 *
 *	size_t byre_malloc_release(size_t) __attribute__((weak));
 *
 * All functions may be called by any thread at any time, but not in signal handlers. */
#ifndef BYRE_MALLOC_H
#define BYRE_MALLOC_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Gives memory that nobody uses back to the system: what is free, what threads have set aside for
 * themselves, also threads that sleep, and what threads have freed for others. Stops when
 * @budget bytes have gone, or when there is no more; the next call goes on. Returns how many bytes
 * went. Other threads go on meanwhile; for a while they allocate more slowly. */
size_t byre_malloc_release(size_t budget);

/* The calling thread will not allocate for a while: sends off what it has freed for others, and
 * takes what others have freed for it. Cheap; good before waiting long. */
void byre_malloc_idle(void);

/* What nobody has needed for @milliseconds (1000 if never called) goes back by itself; 0: it stays.
 * Threads see to it when they allocate and free, so a process that sleeps as a whole keeps it,
 * unless byre_malloc_background() has started a thread for that. */
void byre_malloc_decay(unsigned milliseconds);

/* Starts (1) or stops (0) that thread. It is not there in the child of a fork. 0, or -1 and errno
 * says why there is none. */
int byre_malloc_background(int on);

enum byre_malloc_format {
	BYRE_MALLOC_TEXT,               /* for people; may change */
	BYRE_MALLOC_JSON,               /* one object; members may be added */
};

/* Statistics, as snprintf(): writes at most @size bytes to @buf with the terminating 0, and returns
 * how long the whole text is without it. */
size_t byre_malloc_statistics(char *buf, size_t size, enum byre_malloc_format format);

#ifdef __cplusplus
}
#endif

#endif
