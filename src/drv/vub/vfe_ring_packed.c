/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_ring_packed.c - the packed layout: one ring of descriptors, which the driver makes
 * available and the device overwrites with used ones. Wrap counters tell the rounds apart. */
#include "drv/vub/vfe_ring.h"

#include <errno.h>

#include "base/bits.h"
#include "base/fence.h"

enum {
	F_AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL,
	F_USED = 1 << VRING_PACKED_DESC_F_USED,
	WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR,
};

static void packed_reset(struct vfe_ring *r)
{
	r->packed.driver->flags = VRING_PACKED_EVENT_FLAG_ENABLE;
}

/* What marks a descriptor as available in the round of @wrap. */
static uint16_t avail_flags(bool wrap)
{
	return wrap ? F_AVAIL : F_USED;
}

static uint16_t seg_flags(const struct vfe_seg *s, bool has_next)
{
	return (uint16_t)((s->is_in ? VRING_DESC_F_WRITE : 0) |
			  (has_next ? VRING_DESC_F_NEXT : 0));
}

static void table_fill(const struct vfe_seg *segs, unsigned n, struct vring_packed_desc *table)
{
	for (unsigned i = 0; i < n; i++)
		table[i] = (struct vring_packed_desc){
			.addr = segs[i].addr,
			.len = segs[i].len,
			.flags = seg_flags(&segs[i], false),
		};
}

/* Writes the descriptor where the next one goes, but for the first one's flags, which are left to
 * *@ret_first: they make the request available (V32). */
static void desc_put(struct vfe_ring *r, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags,
		     bool is_first, uint16_t *ret_first)
{
	volatile struct vring_packed_desc *d = &r->packed.desc[r->avail_idx];

	flags |= avail_flags(r->avail_wrap);
	d->addr = addr;
	d->len = len;
	d->id = id;
	if (is_first)
		*ret_first = flags;
	else
		d->flags = flags;
	if (++r->avail_idx == r->size) {
		r->avail_idx = 0;
		r->avail_wrap = !r->avail_wrap;
	}
}

static void packed_add(struct vfe_ring *r, const struct vfe_seg *segs, unsigned n,
		       const struct vfe_table *table, uint16_t token)
{
	uint16_t id = r->free_head, first = r->avail_idx, flags = 0;
	struct vfe_ring_id *slot = &r->ids[id];

	if (table->at) {
		table_fill(segs, n, table->at);
		desc_put(r, table->addr, n * (uint32_t)sizeof(struct vring_packed_desc), id,
			 VRING_DESC_F_INDIRECT, true, &flags);
		n = 1;
	} else {
		for (unsigned i = 0; i < n; i++)
			desc_put(r, segs[i].addr, segs[i].len, id, seg_flags(&segs[i], i + 1 < n),
				 !i, &flags);
	}
	r->free_head = slot->next_free;
	slot->token = token;
	slot->ndescs = (uint16_t)n;
	r->nfree -= n;
	r->unpublished = (uint16_t)(r->unpublished + n);
	__atomic_store_n(&r->packed.desc[first].flags, flags, __ATOMIC_RELEASE);
}

static bool packed_publish(struct vfe_ring *r)
{
	uint16_t new = r->avail_idx, old = (uint16_t)(new - r->unpublished), flags, event, at;

	r->unpublished = 0;
	/* The descriptors are seen before we look whether somebody waits for them. */
	memory_fence();
	flags = __atomic_load_n(&r->packed.device->flags, __ATOMIC_RELAXED) & 3;
	if (flags != VRING_PACKED_EVENT_FLAG_DESC)
		return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
	event = __atomic_load_n(&r->packed.device->off_wrap, __ATOMIC_RELAXED);
	at = (uint16_t)(event & ~WRAP);
	if (!(event & WRAP) == r->avail_wrap)           /* of the round before */
		at = (uint16_t)(at - r->size);
	return vring_need_event(at, new, old);
}

static bool is_used(const struct vfe_ring *r)
{
	uint16_t flags = __atomic_load_n(&r->packed.desc[r->used_idx].flags, __ATOMIC_ACQUIRE);

	return !(flags & F_AVAIL) == !(flags & F_USED) && !(flags & F_USED) != r->used_wrap;
}

static int packed_take(struct vfe_ring *r, uint16_t *ret_token, uint32_t *ret_len)
{
	volatile struct vring_packed_desc *d = &r->packed.desc[r->used_idx];
	struct vfe_ring_id *slot;
	uint16_t id;

	if (r->nfree == r->size || !is_used(r))
		return 0;
	id = d->id;
	if (id >= r->size || !r->ids[id].ndescs)
		return -EPROTO;
	slot = &r->ids[id];
	*ret_len = d->len;
	*ret_token = slot->token;
	r->nfree += slot->ndescs;
	r->used_idx = (uint16_t)(r->used_idx + slot->ndescs);
	if (r->used_idx >= r->size) {
		r->used_idx = (uint16_t)(r->used_idx - r->size);
		r->used_wrap = !r->used_wrap;
	}
	slot->ndescs = 0;
	slot->next_free = r->free_head;
	r->free_head = id;
	return 1;
}

static bool packed_arm(struct vfe_ring *r)
{
	if (r->has_event_idx) {
		uint16_t at = (uint16_t)(r->used_idx | (r->used_wrap ? WRAP : 0));

		__atomic_store_n(&r->packed.driver->off_wrap, at, __ATOMIC_RELEASE);
		__atomic_store_n(&r->packed.driver->flags, VRING_PACKED_EVENT_FLAG_DESC,
				 __ATOMIC_RELEASE);
	} else {
		__atomic_store_n(&r->packed.driver->flags, VRING_PACKED_EVENT_FLAG_ENABLE,
				 __ATOMIC_RELEASE);
	}
	memory_fence();
	return r->nfree != r->size && is_used(r);
}

static void packed_disarm(struct vfe_ring *r)
{
	__atomic_store_n(&r->packed.driver->flags, VRING_PACKED_EVENT_FLAG_DISABLE,
			 __ATOMIC_RELEASE);
}

const struct vfe_ring_ops vfe_ring_packed_ops = {
	.reset = packed_reset,
	.add = packed_add,
	.publish = packed_publish,
	.take = packed_take,
	.arm = packed_arm,
	.disarm = packed_disarm,
};
