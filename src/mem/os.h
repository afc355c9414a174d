/* SPDX-License-Identifier: MIT */
/* mem/os.h - address space and memory from the kernel, and last words.
 *
 * All memory of the library lies in one *window* of the address space, at a base drawn at random
 * when the process starts. Nothing of it is reserved: an area grows at its end, by a mapping that
 * must not replace another one. So what `ulimit -v`, mlockall() and core dumps count is what is
 * used, and yet everything is found by arithmetic:
 *
 *	base - 24 GiB  OS_BITS      8 GiB   which objects of a slab are free: 512 bytes a slice
 *	base - 14 GiB  OS_SLABS     1 GiB   struct slab: 64 bytes a slice
 *	base - 12 GiB  OS_TAGS    512 MiB   struct tlsf_tag: 32 bytes a slice
 *	base - 11 GiB  OS_HEAPS     2 GiB   struct heap: 16 KiB each
 *	base -  8 GiB  OS_STOCK     4 GiB   magazines: 512 bytes each
 *	base -  1 GiB  OS_MAP      64 MiB   who has a slice: 4 bytes a slice
 *	base           OS_SLICES    1 TiB   slices of 64 KiB: the objects
 *
 * Between the areas nothing is mapped, so what runs beyond an object never meets what the library
 * knows about it. Areas of metadata grow with the slices that they describe, and cost what is
 * touched of them.
 *
 * Each area has one user that grows it, under its own lock. All fits into the 128 GiB that
 * Valgrind gives to a program.
 *
 * Slices are not for huge pages (MADV_NOHUGEPAGE) unless BYRE_MALLOC_HUGE=1 asks for them: one
 * would cost 2 MiB where somebody touches 4 KiB, and khugepaged would fill what was given back.
 *
 * Invariants:
 *	O11  nothing is ever mapped over what somebody else has mapped;
 *	O12  a call that fails has mapped nothing, and may be tried again;
 *	O13  memory is given back with no lock held: tests count them (lock.h);
 *	O14  no slice lies on a huge page that was not asked for. */
#ifndef MEM_OS_H
#define MEM_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bits.h"

enum {
	OS_PAGE = 4096,                 /* what sizes are made of; the kernel's may be larger */
	SLICE_LOG2 = 16,
	SLICE_BYTES = 1 << SLICE_LOG2,
};

#define SLICES_MAX ((size_t)1 << 24)

enum os_area { OS_BITS, OS_SLABS, OS_TAGS, OS_HEAPS, OS_STOCK, OS_MAP, OS_SLICES, OS_AREAS };

#define OS_BITS_BELOW (24 * GiB)
#define OS_SLABS_BELOW (14 * GiB)
#define OS_TAGS_BELOW (12 * GiB)
#define OS_HEAPS_BELOW (11 * GiB)
#define OS_STOCK_BELOW (8 * GiB)
#define OS_MAP_BELOW (1 * GiB)

/* 0 until os_start(). Written once, before there is anything that another thread could free. */
extern uintptr_t os_base __attribute__((visibility("hidden")));

static inline void *os_area_start(uint64_t below)
{
	return (void *)(os_base - below);
}

/* Draws the window. Under a lock of the caller's, once; 0 or -ENOMEM. */
int os_start(void);

/* Makes @area at least @bytes long. 0, or -errno: -EEXIST if something lies in the way. */
int os_grow(enum os_area area, size_t bytes);
/* For tests: how long it is. */
size_t os_size(enum os_area area);
/* Makes @area @bytes long without mapping what is new, as something lies there; what is beyond can
 * be grown again. */
void os_skip(enum os_area area, size_t bytes);

#ifdef MEM_LOCK_COUNT
extern void (*os_drop_hook)(void);
#endif

/* Gives back the memory of whole pages within; they read as zeros afterwards. 0 or -errno. */
int os_drop(void *at, size_t len);
/* The same for @n ranges of pages, in as few system calls as the kernel has for it. Returns how
 * many bytes went: about the others nothing can be done. */
size_t os_drop_all(const struct iovec *ranges, unsigned n);
/* New memory for what was moved away or must look untouched: zeros. 0 or -errno. */
int os_renew(void *at, size_t len);
/* Moves the pages of [@from, @from + @len) to @to, where as much is mapped and of no use; both are
 * whole slices. What was at @from reads as zeros afterwards. 0; or -errno, and nothing changed: for
 * older kernels, and those that nobody told about this. */
int os_move(void *from, size_t len, void *to);

/* Nanoseconds since some point. */
uint64_t os_now(void);

/* As secure_getenv(), but also before libc has started. */
const char *os_getenv(const char *name);

/* Writes "byre-malloc: @what" and, if it is not NULL, the pointer to stderr, and aborts. */
void os_die(const char *what, const void *where) __attribute__((noreturn, cold));

#endif
