/* SPDX-License-Identifier: MIT */
/* export/vub/memory.h - the front end's memory: slots, and addresses in them.
 *
 * A slot is a part of a file of the front end's, mapped here for as long as the slot is there. It
 * has a guest address, which descriptors name, and a user address, which the front end names
 * rings by. Nothing of it is ever registered with a ring of the kernel's: pages that are pinned
 * would go stale when a balloon or a hot-unplug takes them out of the file.
 *
 * The table changes only while no queue of the device runs and no request is in flight; queues
 * read it without locks (V15).
 *
 * Invariants:
 *	V14  a translated address lies, for the length that was returned, in one mapping;
 *	V15  a slot's mapping outlives every request that names it;
 *	V16  no two slots share a guest address or a user address, and none wraps. */
#ifndef EXPORT_VUB_MEMORY_H
#define EXPORT_VUB_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/vhost_user.h"

struct vub_guard;

enum { VUB_SLOTS_MAX = 256 };

/* A shared mapping, guarded. */
struct vub_mapping {
	void *start;                    /* NULL: none */
	size_t len;
	struct vub_guard *guard;
};

/* Maps [@off, @off + @len) of @fd, which was vetted (descriptor.h), any range; *@ret_at is where
 * @off is. 0 or -errno: a regular file that is shorter is -EINVAL. */
int vub_mapping_init(struct vub_mapping *m, int fd, uint64_t off, uint64_t len, void **ret_at);
void vub_mapping_fini(struct vub_mapping *m);

struct vub_slot {
	uint64_t guest, user, size;
	uint8_t *host;
	struct vub_mapping mapping;
};

/* Slots by guest address. A zeroed one is empty. */
struct vub_memory {
	unsigned n;
	struct vub_slot slots[VUB_SLOTS_MAX];
};

/* Maps @fd (the caller still closes it) where @r says. 0; -ENOSPC: no slot is left; -EINVAL: a
 * range that wraps, overlaps or is empty; or mmap's error. */
int vub_memory_add(struct vub_memory *mem, const struct vhost_user_region *r, int fd);
/* Unmaps the slot that is @r (its place in the file does not count). 0 or -ENOENT. */
int vub_memory_remove(struct vub_memory *mem, const struct vhost_user_region *r);
void vub_memory_clear(struct vub_memory *mem);

/* Where the guest's @addr is, and how many bytes from there on lie in the same slot: 1 or more, in
 * *@ret_len. NULL: nowhere. *@hint: the slot that was last looked up. */
void *vub_memory_guest(const struct vub_memory *mem, uint64_t addr, unsigned *hint,
		       uint64_t *ret_len);
/* Where the front end's [@addr, @addr + @len) is, in one slot. NULL: nowhere. */
void *vub_memory_user(const struct vub_memory *mem, uint64_t addr, uint64_t len);
/* The guest's address of @host, which lies in a slot. False: it does not. */
bool vub_memory_where(const struct vub_memory *mem, const void *host, uint64_t *ret_guest);

/* Has any slot lost its file (V13)? */
bool vub_memory_is_lost(const struct vub_memory *mem);

#endif
