/* SPDX-License-Identifier: MIT */
/* drv/vub/vfe_ring_split.c - the split layout: a table of descriptors, a ring of heads that are
 * available, a ring of heads that were used.
 *
 * Which descriptors follow each other is kept in ids[].next_free, not read from the table. */
#include "drv/vub/vfe_ring.h"

#include <errno.h>

#include "base/bits.h"
#include "base/fence.h"

static void split_reset(struct vfe_ring *r)
{
	(void)r;                        /* zeros are an empty ring */
}

static void desc_set(volatile struct vring_desc *d, const struct vfe_seg *s, bool has_next,
		     unsigned next)
{
	d->addr = s->addr;
	d->len = s->len;
	d->flags = (uint16_t)((s->is_in ? VRING_DESC_F_WRITE : 0) |
			      (has_next ? VRING_DESC_F_NEXT : 0));
	d->next = has_next ? (uint16_t)next : 0;
}

static void table_fill(const struct vfe_seg *segs, unsigned n, struct vring_desc *table)
{
	for (unsigned i = 0; i < n; i++)
		desc_set(&table[i], &segs[i], i + 1 < n, i + 1);
}

/* Fills @n descriptors of the free list; returns the one behind them. */
static uint16_t chain_fill(struct vfe_ring *r, const struct vfe_seg *segs, unsigned n)
{
	uint16_t at = r->free_head;

	for (unsigned i = 0; i < n; i++) {
		uint16_t next = r->ids[at].next_free;

		desc_set(&r->split.desc[at], &segs[i], i + 1 < n, next);
		at = next;
	}
	return at;
}

static void split_add(struct vfe_ring *r, const struct vfe_seg *segs, unsigned n,
		      const struct vfe_table *table, uint16_t token)
{
	uint16_t head = r->free_head;
	struct vfe_ring_id *id = &r->ids[head];

	if (table->at) {
		struct vring_desc *d = &r->split.desc[head];

		table_fill(segs, n, table->at);
		d->addr = table->addr;
		d->len = n * (uint32_t)sizeof(struct vring_desc);
		d->flags = VRING_DESC_F_INDIRECT;
		d->next = 0;
		r->free_head = id->next_free;
		id->ndescs = 1;
	} else {
		r->free_head = chain_fill(r, segs, n);
		id->ndescs = (uint16_t)n;
	}
	id->token = token;
	r->nfree -= id->ndescs;
	r->split.avail->ring[r->avail_idx & (r->size - 1)] = head;
	r->avail_idx++;
	r->unpublished++;
}

static bool split_publish(struct vfe_ring *r)
{
	uint16_t old = (uint16_t)(r->avail_idx - r->unpublished);

	__atomic_store_n(&r->split.avail->idx, r->avail_idx, __ATOMIC_RELEASE);
	r->unpublished = 0;
	/* The index is seen before we look whether somebody waits for it. */
	memory_fence();
	if (r->has_event_idx)
		return vring_need_event(__atomic_load_n(&vring_avail_event(&r->split),
							__ATOMIC_RELAXED), r->avail_idx, old);
	return !(__atomic_load_n(&r->split.used->flags, __ATOMIC_RELAXED) &
		 VRING_USED_F_NO_NOTIFY);
}

/* Puts the chain that starts at @head back; the last that was used is the next to be used. */
static void chain_free(struct vfe_ring *r, uint16_t head)
{
	uint16_t last = head;
	unsigned n = r->ids[head].ndescs;

	for (unsigned i = 1; i < n; i++)
		last = r->ids[last].next_free;
	r->ids[last].next_free = r->free_head;
	r->ids[head].ndescs = 0;
	r->free_head = head;
	r->nfree += n;
}

static int split_take(struct vfe_ring *r, uint16_t *ret_token, uint32_t *ret_len)
{
	uint16_t idx = __atomic_load_n(&r->split.used->idx, __ATOMIC_ACQUIRE);
	volatile struct vring_used_elem *e;
	uint32_t head;

	if (idx == r->used_idx)
		return 0;
	if ((uint16_t)(idx - r->used_idx) > r->size)
		return -EPROTO;
	e = &r->split.used->ring[r->used_idx & (r->size - 1)];
	head = e->id;
	if (head >= r->size || !r->ids[head].ndescs)
		return -EPROTO;
	*ret_len = e->len;
	*ret_token = r->ids[head].token;
	chain_free(r, (uint16_t)head);
	r->used_idx++;
	return 1;
}

static bool split_arm(struct vfe_ring *r)
{
	if (r->has_event_idx)
		__atomic_store_n(&vring_used_event(&r->split), r->used_idx, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&r->split.avail->flags, 0, __ATOMIC_RELAXED);
	memory_fence();
	return __atomic_load_n(&r->split.used->idx, __ATOMIC_RELAXED) != r->used_idx;
}

static void split_disarm(struct vfe_ring *r)
{
	/* An event index stays as it is, and is passed: a call for each round of it. */
	if (!r->has_event_idx)
		__atomic_store_n(&r->split.avail->flags, VRING_AVAIL_F_NO_INTERRUPT,
				 __ATOMIC_RELAXED);
}

const struct vfe_ring_ops vfe_ring_split_ops = {
	.reset = split_reset,
	.add = split_add,
	.publish = split_publish,
	.take = split_take,
	.arm = split_arm,
	.disarm = split_disarm,
};
