/* SPDX-License-Identifier: MIT */
/* mem/test_resident.h - for tests: what the library holds, as the kernel sees it. */
#ifndef MEM_TEST_RESIDENT_H
#define MEM_TEST_RESIDENT_H

#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

#include "mem/os.h"
#include "mem/pages.h"

/* Bytes of slices that the kernel has memory for. */
static inline size_t test_resident(void)
{
	size_t end = atomic_load(&pages_end), n = 0;
	unsigned char there[SLICE_BYTES / OS_PAGE];

	for (size_t i = 1; i < end; i++) {
		if (mincore(slice_at(i), SLICE_BYTES, there))
			continue;
		for (unsigned k = 0; k < sizeof(there); k++)
			n += (size_t)(there[k] & 1) * OS_PAGE;
	}
	return n;
}

#endif
