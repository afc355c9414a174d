/* SPDX-License-Identifier: MIT */
/* mem/api.h - what libc declares only in part, or not everywhere. */
#ifndef MEM_API_H
#define MEM_API_H

#include <malloc.h>
#include <stddef.h>

void free_sized(void *p, size_t size);
void free_aligned_sized(void *p, size_t align, size_t size);

#endif
