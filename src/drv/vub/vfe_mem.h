/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_mem.h - memory that is shared with a back end: a memfd, mapped here, which the back
 * end maps as well. Nothing of it costs memory before it is touched. */
#ifndef DRV_VUB_VFE_MEM_H
#define DRV_VUB_VFE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Guest addresses are this much above offsets: unlike both offsets and our own addresses, so that
 * who mixes them up is seen. */
#define VFE_MEM_GUEST (1ULL << 30)

struct vfe_mem {
	int fd;
	char *map;                      /* NULL: none */
	size_t size;
};

/* 0 or -errno; @size is a multiple of the page size. */
int vfe_mem_init(struct vfe_mem *m, size_t size);
/* Its size stays: who else has it cannot take it away from under us (V38). 0 or -errno. */
int vfe_mem_seal(const struct vfe_mem *m);
/* A zeroed @m is fine. */
void vfe_mem_fini(struct vfe_mem *m);

static inline bool vfe_mem_has(const struct vfe_mem *m, const void *at, size_t len)
{
	uintptr_t off = (uintptr_t)at - (uintptr_t)m->map;

	return off <= m->size && len <= m->size - off;
}

/* What the back end is told of an address within. */
static inline uint64_t vfe_mem_guest(const struct vfe_mem *m, const void *at)
{
	return VFE_MEM_GUEST + (uint64_t)((const char *)at - m->map);
}

#endif
