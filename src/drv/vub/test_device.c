/* SPDX-License-Identifier: MIT */
#include "drv/vub/test_device.h"

#include <assert.h>
#include <string.h>

#include "base/fence.h"

enum { AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL, USED = 1 << VRING_PACKED_DESC_F_USED, WRAP = 32768 };

struct dev dev_on(const struct vfe_ring *r, char *base, uint64_t base_addr)
{
	const void *parts[3];

	vfe_ring_parts(r, parts);
	return (struct dev){
		.desc = parts[0], .driver = parts[1], .device = (void *)(uintptr_t)parts[2],
		.size = r->size, .is_packed = r->is_packed, .has_event_idx = r->has_event_idx,
		.avail_wrap = true, .used_wrap = true, .base = base, .base_addr = base_addr,
	};
}

void *dev_at(const struct dev *d, uint64_t addr)
{
	return d->base + (addr - d->base_addr);
}

static void add_seg(struct dev_req *q, uint64_t addr, uint32_t len, uint16_t flags)
{
	assert(q->n < DEV_SEGS_MAX);
	q->segs[q->n++] = (struct vfe_seg){ addr, len, flags & VRING_DESC_F_WRITE };
}

/* ---- split ---- */

static void walk_split(const struct vring_desc *table, unsigned at, struct dev_req *q)
{
	for (;;) {
		add_seg(q, table[at].addr, table[at].len, table[at].flags);
		if (!(table[at].flags & VRING_DESC_F_NEXT))
			return;
		at = table[at].next;
	}
}

static bool pop_split(struct dev *d, struct dev_req *q)
{
	const struct vring_desc *desc = d->desc;
	const struct vring_avail *avail = d->driver;

	if (__atomic_load_n(&avail->idx, __ATOMIC_ACQUIRE) == d->avail)
		return false;
	q->id = avail->ring[d->avail++ & (d->size - 1)];
	if (desc[q->id].flags & VRING_DESC_F_INDIRECT)
		walk_split(dev_at(d, desc[q->id].addr), 0, q);
	else
		walk_split(desc, q->id, q);
	return true;
}

static void push_split(struct dev *d, const struct dev_req *q, uint32_t len)
{
	struct vring_used *used = d->device;

	used->ring[d->used & (d->size - 1)] = (struct vring_used_elem){ .id = q->id, .len = len };
	__atomic_store_n(&used->idx, ++d->used, __ATOMIC_RELEASE);
}

static bool must_call_split(struct dev *d)
{
	const struct vring_avail *avail = d->driver;

	if (!d->has_event_idx)
		return !(avail->flags & VRING_AVAIL_F_NO_INTERRUPT);
	return vring_need_event(__atomic_load_n(&avail->ring[d->size], __ATOMIC_RELAXED), d->used,
				d->told);
}

/* ---- packed ---- */

static bool is_avail(const struct dev *d, uint16_t flags)
{
	return !!(flags & AVAIL) == d->avail_wrap && !!(flags & USED) != d->avail_wrap;
}

static void advance(uint16_t *at, bool *wrap, unsigned n, unsigned size)
{
	*at = (uint16_t)(*at + n);
	if (*at >= size) {
		*at = (uint16_t)(*at - size);
		*wrap = !*wrap;
	}
}

static bool pop_packed(struct dev *d, struct dev_req *q)
{
	const struct vring_packed_desc *desc = d->desc, *at = &desc[d->avail], *table;
	uint16_t flags = __atomic_load_n(&at->flags, __ATOMIC_ACQUIRE);

	if (!is_avail(d, flags))
		return false;
	if (flags & VRING_DESC_F_INDIRECT) {
		table = dev_at(d, at->addr);
		for (unsigned i = 0; i < at->len / sizeof(*at); i++)
			add_seg(q, table[i].addr, table[i].len, table[i].flags);
		q->ndescs = 1;
		q->id = at->id;
		advance(&d->avail, &d->avail_wrap, 1, d->size);
		return true;
	}
	do {
		at = &desc[d->avail];
		flags = at->flags;
		add_seg(q, at->addr, at->len, flags);
		q->ndescs++;
		q->id = at->id;
		advance(&d->avail, &d->avail_wrap, 1, d->size);
	} while (flags & VRING_DESC_F_NEXT);
	return true;
}

static void push_packed(struct dev *d, const struct dev_req *q, uint32_t len)
{
	struct vring_packed_desc *desc = (void *)(uintptr_t)d->desc, *at = &desc[d->used];

	at->id = q->id;
	at->len = len;
	__atomic_store_n(&at->flags, d->used_wrap ? AVAIL | USED : 0, __ATOMIC_RELEASE);
	advance(&d->used, &d->used_wrap, q->ndescs, d->size);
	/* A split ring's count, for dev_must_call(). */
	d->told = (uint16_t)(d->told + q->ndescs);
}

static bool must_call_packed(struct dev *d)
{
	const struct vring_packed_desc_event *e = d->driver;
	uint16_t off_wrap = __atomic_load_n(&e->off_wrap, __ATOMIC_RELAXED), event;

	if (e->flags != VRING_PACKED_EVENT_FLAG_DESC)
		return e->flags == VRING_PACKED_EVENT_FLAG_ENABLE;
	event = (uint16_t)(off_wrap & ~WRAP);
	if (!!(off_wrap & WRAP) != d->used_wrap)
		event = (uint16_t)(event - d->size);
	return vring_need_event(event, d->used, (uint16_t)(d->used - d->told));
}

/* ---- both ---- */

bool dev_pop(struct dev *d, struct dev_req *ret)
{
	ret->n = 0;
	ret->ndescs = 0;
	return d->is_packed ? pop_packed(d, ret) : pop_split(d, ret);
}

void dev_push(struct dev *d, const struct dev_req *q, uint32_t len)
{
	if (d->is_packed)
		push_packed(d, q, len);
	else
		push_split(d, q, len);
}

bool dev_must_call(struct dev *d)
{
	bool must;

	memory_fence();
	must = d->is_packed ? must_call_packed(d) : must_call_split(d);
	d->told = d->is_packed ? 0 : d->used;
	return must;
}

void dev_arm(struct dev *d)
{
	if (d->is_packed && d->has_event_idx) {
		struct vring_packed_desc_event *e = d->device;

		e->off_wrap = (uint16_t)(d->avail | (d->avail_wrap ? WRAP : 0));
		e->flags = VRING_PACKED_EVENT_FLAG_DESC;
	} else if (d->has_event_idx) {
		struct vring_used *used = d->device;

		__atomic_store_n((uint16_t *)(void *)&used->ring[d->size], d->avail,
				 __ATOMIC_RELAXED);
	}
	memory_fence();
}
