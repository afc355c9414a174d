/* SPDX-License-Identifier: MIT */
/* base/mem_release.h - free memory goes back to the system, whichever malloc the process has. */
#ifndef BASE_MEM_RELEASE_H
#define BASE_MEM_RELEASE_H

/* Any thread, with no lock held; some 30 ms for each 256 MiB that go back. */
void mem_release(void);

/* "byre", "mimalloc", "jemalloc", "tcmalloc" or "libc": who would be asked. */
const char *mem_name(void);

#endif
