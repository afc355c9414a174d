/* SPDX-License-Identifier: MIT */
/* export/vub/packed.c - packed rings (virtio 1.2, 2.8).
 *
 * One ring has what is available and what is used; two bits of a descriptor's flags, seen with a
 * counter that flips at each wrap, say which. A batch of used entries becomes visible at once: the
 * flags of its first one are written last.
 *
 * Buffer ids are the driver's and mean nothing here, so a request has any free slot. A driver
 * that makes more available than the ring holds has written over what is in flight: `outstanding`
 * sees that (V19). */
#include <errno.h>

#include "base/fence.h"
#include "export/vub/vub_impl.h"

enum {
	FLAG_AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL,
	FLAG_USED = 1 << VRING_PACKED_DESC_F_USED,
	WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR,
};

static int map(struct vub_queue *q)
{
	const struct vub_memory *mem = &q->v->memory;

	q->packed.desc = vub_memory_user(mem, q->addr.descriptor,
					 q->num * sizeof(struct vring_packed_desc));
	q->packed.driver = vub_memory_user(mem, q->addr.available, sizeof(*q->packed.driver));
	q->packed.device = vub_memory_user(mem, q->addr.used, sizeof(*q->packed.device));
	if ((uintptr_t)q->packed.desc % VRING_DESC_ALIGN_SIZE ||
	    (uintptr_t)q->packed.driver % _Alignof(uint32_t) ||
	    (uintptr_t)q->packed.device % _Alignof(uint32_t))
		return -EFAULT;
	return q->packed.desc && q->packed.driver && q->packed.device ? 0 : -EFAULT;
}

static void free_slot(struct vub_queue *q, struct vub_req *vr)
{
	vr->next = q->packed.free;
	q->packed.free = vr;
}

static int prime(struct vub_queue *q)
{
	uint16_t avail = (uint16_t)q->base, used = (uint16_t)(q->base >> 16);

	q->avail = (uint16_t)((avail & ~WRAP) % q->num);
	q->packed.avail_wrap = avail & WRAP;
	q->used = (uint16_t)((used & ~WRAP) % q->num);
	q->packed.used_wrap = used & WRAP;
	q->packed.outstanding = 0;
	q->packed.free = NULL;
	q->called = 0;
	for (unsigned i = q->num; i-- > 0;)
		free_slot(q, &q->reqs[i]);
	return q->inflight ? vub_inflight_prime_packed(q) : 0;
}

static uint32_t base(const struct vub_queue *q)
{
	uint32_t avail = q->avail | (q->packed.avail_wrap ? WRAP : 0u);
	uint32_t used = q->used | (q->packed.used_wrap ? WRAP : 0u);

	return avail | used << 16;
}

/* ---- taking ---- */

static int is_wrong(struct vub_chain *c, const char *why)
{
	c->wrong = why;
	return -1;
}

static bool is_available(const struct vub_queue *q)
{
	uint16_t flags = __atomic_load_n(&q->packed.desc[q->avail].flags, __ATOMIC_ACQUIRE);
	bool avail = flags & FLAG_AVAIL, used = flags & FLAG_USED;

	return avail == q->packed.avail_wrap && used != q->packed.avail_wrap;
}

/* Moves an index on; the counter flips at the end of the ring. */
static void advance(const struct vub_queue *q, uint16_t *at, bool *wrap, unsigned n)
{
	unsigned next = *at + n;

	if (next >= q->num) {
		next -= q->num;
		*wrap = !*wrap;
	}
	*at = (uint16_t)next;
}

static int add_indirect(struct vub_chain *c, const struct vring_packed_desc *d)
{
	struct vring_packed_desc table[VUB_IOV_MAX];
	unsigned n;

	if (!c->q->has_indirect || d->flags & (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE))
		return is_wrong(c, "an indirect table where none may be");
	n = vub_chain_copy_table(c, d->addr, d->len, table, ARRAY_SIZE(table));
	for (unsigned i = 0; i < n; i++) {
		if (table[i].flags & VRING_DESC_F_INDIRECT)
			return is_wrong(c, "an indirect table in another");
		if (!vub_chain_add(c, table[i].addr, table[i].len,
				   table[i].flags & VRING_DESC_F_WRITE))
			return -1;
	}
	return c->wrong ? -1 : 1;
}

static int add(struct vub_chain *c, const struct vring_packed_desc *d)
{
	if (d->flags & VRING_DESC_F_INDIRECT)
		return add_indirect(c, d);
	return vub_chain_add(c, d->addr, d->len, d->flags & VRING_DESC_F_WRITE) ? 1 : -1;
}

/* Takes all of a chain off the ring, also where its buffers are wrong. */
static int take(struct vub_queue *q, struct vub_chain *c)
{
	struct vub_req *vr = c->vr;
	bool is_last = false, is_first = true;

	for (vr->ndescs = 0; !is_last; is_first = false) {
		struct vring_packed_desc d = q->packed.desc[q->avail];

		__asm__ volatile("" ::: "memory");      /* V17 */
		if (q->packed.outstanding == q->num)
			return is_wrong(c, "more was made available than the ring holds");
		is_last = !(d.flags & VRING_DESC_F_NEXT);
		if (q->inflight)
			vub_inflight_take_packed(q, &d, is_first, is_last, &vr->inflight);
		vr->id = d.id;
		vr->ndescs++;
		q->packed.outstanding++;
		advance(q, &q->avail, &q->packed.avail_wrap, 1);
		if (!c->wrong)
			add(c, &d);
	}
	return c->wrong ? -1 : 1;
}

static int next(struct vub_queue *q, struct vub_chain *c)
{
	struct vub_req *vr = q->packed.free;

	if (!is_available(q))
		return 0;
	if (!vr)
		return is_wrong(c, "more was made available than the ring holds");
	q->packed.free = vr->next;
	vub_chain_begin(c, q, vr);
	return take(q, c);
}

static int again(struct vub_queue *q, uint16_t entry, struct vub_chain *c)
{
	const struct vhost_user_inflight_packed *r = q->inflight;
	struct vub_req *vr = q->packed.free;
	uint16_t num = __atomic_load_n(&r->desc[entry].num, __ATOMIC_RELAXED);  /* V17 */
	unsigned count = MIN(num, q->num - q->packed.outstanding);
	uint16_t at = entry;

	if (!vr || !count)
		return is_wrong(c, "more is in flight than the ring holds");
	q->packed.free = vr->next;
	vub_chain_begin(c, q, vr);
	vr->inflight = entry;
	vr->ndescs = (uint16_t)count;
	q->packed.outstanding += count;
	for (unsigned i = 0; i < count && at < q->num; i++) {
		const struct vhost_user_inflight_packed_desc *e = &r->desc[at];
		struct vring_packed_desc d = { e->addr, e->len, e->id, e->flags };

		at = __atomic_load_n(&e->next, __ATOMIC_RELAXED);
		__asm__ volatile("" ::: "memory");      /* V17 */
		vr->id = d.id;
		if (add(c, &d) < 0)
			return -1;
	}
	return 1;
}

/* addr.log has the device's event area... */
static void log_event(struct vub_queue *q)
{
	vub_log_ring(q, 0, sizeof(*q->packed.device));
}

static bool arm(struct vub_queue *q)
{
	struct vring_packed_desc_event *e = q->packed.device;
	uint16_t flags = VRING_PACKED_EVENT_FLAG_ENABLE;

	if (q->has_event_idx) {
		__atomic_store_n(&e->off_wrap, q->avail | (q->packed.avail_wrap ? WRAP : 0),
				 __ATOMIC_RELAXED);
		flags = VRING_PACKED_EVENT_FLAG_DESC;
	}
	__atomic_store_n(&e->flags, flags, __ATOMIC_RELEASE);
	log_event(q);
	/* Either the driver sees what was just written, or we see what it has made available. */
	memory_fence();
	return is_available(q);
}

static void disarm(struct vub_queue *q)
{
	__atomic_store_n(&q->packed.device->flags, VRING_PACKED_EVENT_FLAG_DISABLE,
			 __ATOMIC_RELAXED);
	log_event(q);
}

/* ---- answering ---- */

/* Writes the entry of @vr and returns where; its flags are *@ret_flags. */
static struct vring_packed_desc *put(struct vub_queue *q, struct vub_req *vr, uint16_t *ret_flags)
{
	struct vring_packed_desc *d = &q->packed.desc[q->used];

	d->id = vr->id;
	d->len = vr->used_len;
	*ret_flags = (uint16_t)((q->packed.used_wrap ? FLAG_AVAIL | FLAG_USED : 0) |
				(vr->used_len ? VRING_DESC_F_WRITE : 0));
	advance(q, &q->used, &q->packed.used_wrap, vr->ndescs);
	q->called = (uint16_t)(q->called + vr->ndescs);
	return d;
}

/* ...and nothing says where the ring is but the memory. */
static void log_ring(struct vub_queue *q)
{
	uint64_t guest;

	if (!q->is_logging || !(q->addr.flags & VHOST_USER_VRING_F_LOG))
		return;
	log_event(q);
	if (vub_memory_where(&q->v->memory, q->packed.desc, &guest))
		vub_log_mark(q, guest, q->num * sizeof(*q->packed.desc));
}

static void publish(struct vub_queue *q, struct vub_req *done)
{
	struct vring_packed_desc *first = NULL;
	uint16_t first_flags = 0, flags;

	for (struct vub_req *vr = done; vr; vr = vr->next) {
		struct vring_packed_desc *d = put(q, vr, &flags);

		if (!first) {
			first = d;
			first_flags = flags;
		} else {
			d->flags = flags;
		}
		assert(q->packed.outstanding >= vr->ndescs);
		q->packed.outstanding -= vr->ndescs;
	}
	if (q->inflight)
		vub_inflight_use_packed(q, done, q->used, q->packed.used_wrap);
	__atomic_store_n(&first->flags, first_flags, __ATOMIC_RELEASE);
	log_ring(q);
	if (q->inflight)
		vub_inflight_used_packed(q, done);
}

static bool wants_call(struct vub_queue *q)
{
	const struct vring_packed_desc_event *e = q->packed.driver;
	uint16_t flags, where, before = (uint16_t)(q->used - q->called);

	q->called = 0;
	/* As in arm(), the other way round. */
	memory_fence();
	flags = __atomic_load_n(&e->flags, __ATOMIC_ACQUIRE);
	if (flags != VRING_PACKED_EVENT_FLAG_DESC || !q->has_event_idx)
		return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
	where = __atomic_load_n(&e->off_wrap, __ATOMIC_RELAXED);
	if (!!(where & WRAP) != q->packed.used_wrap)
		return vring_need_event((uint16_t)((where & ~WRAP) - q->num), q->used, before);
	return vring_need_event((uint16_t)(where & ~WRAP), q->used, before);
}

static void release(struct vub_queue *q, struct vub_req *list)
{
	while (list) {
		struct vub_req *vr = list;

		list = vr->next;
		free_slot(q, vr);
	}
}

const struct vub_ring_ops vub_packed_ops = {
	.map = map,
	.prime = prime,
	.base = base,
	.next = next,
	.again = again,
	.arm = arm,
	.disarm = disarm,
	.publish = publish,
	.wants_call = wants_call,
	.release = release,
	.log = log_ring,
};
