/* SPDX-License-Identifier: MIT */
/* mem/test_names.h - other names for malloc() and its kin, for tests.
 *
 * A test includes this before anything else, and gets api.c compiled with the same. So there are
 * both: this library's functions by the names in the test's source; and for all else, cmocka and
 * the sanitizers, the C library's. */
#ifndef MEM_TEST_NAMES_H
#define MEM_TEST_NAMES_H

#define malloc tested_malloc
#define calloc tested_calloc
#define realloc tested_realloc
#define reallocarray tested_reallocarray
#define free tested_free
#define free_sized tested_free_sized
#define free_aligned_sized tested_free_aligned_sized
#define aligned_alloc tested_aligned_alloc
#define posix_memalign tested_posix_memalign
#define memalign tested_memalign
#define valloc tested_valloc
#define pvalloc tested_pvalloc
#define malloc_usable_size tested_malloc_usable_size

#endif
