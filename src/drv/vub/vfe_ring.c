/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_ring.c - what both layouts have in common. */
#include "drv/vub/vfe_ring.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");

enum { DESC_BYTES = 16, EVENTS_BYTES = 16 };
_Static_assert(sizeof(struct vring_desc) == DESC_BYTES, "virtio 1.2, 2.7.5");
_Static_assert(sizeof(struct vring_packed_desc) == DESC_BYTES, "virtio 1.2, 2.8.13");

static const struct vfe_ring_ops *ops(const struct vfe_ring *r)
{
	return r->is_packed ? &vfe_ring_packed_ops : &vfe_ring_split_ops;
}

size_t vfe_ring_bytes(unsigned size, bool is_packed)
{
	if (is_packed)
		return (size_t)size * DESC_BYTES + EVENTS_BYTES;
	return vring_size(size, DESC_BYTES);
}

static void set_places(struct vfe_ring *r, char *mem)
{
	if (!r->is_packed) {
		vring_init(&r->split, r->size, mem, DESC_BYTES);
		return;
	}
	r->packed.desc = (void *)mem;
	r->packed.driver = (void *)(mem + (size_t)r->size * DESC_BYTES);
	r->packed.device = r->packed.driver + 1;
}

int vfe_ring_init(struct vfe_ring *r, void *mem, unsigned size, bool is_packed, bool has_event_idx)
{
	assert(size && size <= VFE_RING_MAX && (is_packed || is_pow2(size)));
	assert(is_aligned((uintptr_t)mem, DESC_BYTES));
	*r = (struct vfe_ring){
		.size = size,
		.is_packed = is_packed,
		.has_event_idx = has_event_idx,
		.ids = calloc(size, sizeof(*r->ids)),
	};
	if (!r->ids)
		return -ENOMEM;
	vfe_ring_move(r, mem);
	return 0;
}

void vfe_ring_move(struct vfe_ring *r, void *mem)
{
	set_places(r, mem);
	vfe_ring_reset(r);
}

void vfe_ring_reset(struct vfe_ring *r)
{
	const void *parts[3];

	vfe_ring_parts(r, parts);
	memset((void *)(uintptr_t)parts[0], 0, vfe_ring_bytes(r->size, r->is_packed));
	for (unsigned i = 0; i < r->size; i++)
		r->ids[i] = (struct vfe_ring_id){ .next_free = (uint16_t)(i + 1) };
	r->nfree = r->size;
	r->free_head = r->avail_idx = r->used_idx = r->unpublished = 0;
	r->avail_wrap = r->used_wrap = true;
	ops(r)->reset(r);
}

void vfe_ring_fini(struct vfe_ring *r)
{
	free(r->ids);
	*r = (struct vfe_ring){ 0 };
}

int vfe_ring_add(struct vfe_ring *r, const struct vfe_seg *segs, unsigned n,
		 const struct vfe_table *table, uint16_t token)
{
	assert(n);
	if ((table->at ? 1 : n) > r->nfree)
		return -EAGAIN;
	ops(r)->add(r, segs, n, table, token);
	return 0;
}

bool vfe_ring_publish(struct vfe_ring *r)
{
	return r->unpublished && ops(r)->publish(r);
}

int vfe_ring_take(struct vfe_ring *r, uint16_t *ret_token, uint32_t *ret_len)
{
	return ops(r)->take(r, ret_token, ret_len);
}

bool vfe_ring_arm(struct vfe_ring *r)
{
	return ops(r)->arm(r);
}

void vfe_ring_disarm(struct vfe_ring *r)
{
	ops(r)->disarm(r);
}

uint32_t vfe_ring_base(const struct vfe_ring *r)
{
	uint32_t half;

	if (!r->is_packed)
		return __atomic_load_n(&r->split.used->idx, __ATOMIC_ACQUIRE);
	half = r->used_idx | (uint32_t)r->used_wrap << VRING_PACKED_EVENT_F_WRAP_CTR;
	return half | half << 16;
}

void vfe_ring_parts(const struct vfe_ring *r, const void *ret[3])
{
	if (r->is_packed) {
		ret[0] = r->packed.desc;
		ret[1] = r->packed.driver;
		ret[2] = r->packed.device;
	} else {
		ret[0] = r->split.desc;
		ret[1] = r->split.avail;
		ret[2] = r->split.used;
	}
}
