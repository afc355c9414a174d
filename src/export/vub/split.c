/* SPDX-License-Identifier: MIT */
/* export/vub/split.c - split rings (virtio 1.2, 2.7).
 *
 * The available index pairs with the driver's write barrier by an acquire, the used index with its
 * read barrier by a release. A request's slot is that of its head descriptor, so that a head which
 * is in flight cannot be taken twice (V19). */
#include <errno.h>

#include "base/fence.h"
#include "export/vub/vub_impl.h"

static uint16_t mask(const struct vub_queue *q)
{
	return (uint16_t)(q->num - 1);
}

static uint16_t avail_idx(const struct vub_queue *q)
{
	return __atomic_load_n(&q->split.avail->idx, __ATOMIC_ACQUIRE);
}

/* The two event indices stand behind the rings. */
static const uint16_t *used_event(const struct vub_queue *q)
{
	return &q->split.avail->ring[q->num];
}

static uint16_t *avail_event(const struct vub_queue *q)
{
	return (uint16_t *)(void *)&q->split.used->ring[q->num];
}

static int map(struct vub_queue *q)
{
	const struct vub_memory *mem = &q->v->memory;
	uint64_t n = q->num;

	if (!is_pow2(n))
		return -EINVAL;
	if ((q->addr.descriptor & (VRING_DESC_ALIGN_SIZE - 1)) ||
	    (q->addr.available & (VRING_AVAIL_ALIGN_SIZE - 1)) ||
	    (q->addr.used & (VRING_USED_ALIGN_SIZE - 1)))
		return -EFAULT;
	q->split.desc = vub_memory_user(mem, q->addr.descriptor, n * sizeof(struct vring_desc));
	q->split.avail = vub_memory_user(mem, q->addr.available,
					 sizeof(struct vring_avail) + (n + 1) * sizeof(uint16_t));
	q->split.used = vub_memory_user(mem, q->addr.used, sizeof(struct vring_used) +
					n * sizeof(struct vring_used_elem) + sizeof(uint16_t));
	/* The memory's own mapping may begin anywhere in its file. */
	if ((uintptr_t)q->split.desc % _Alignof(struct vring_desc) ||
	    (uintptr_t)q->split.avail % _Alignof(uint16_t) ||
	    (uintptr_t)q->split.used % _Alignof(struct vring_used_elem))
		return -EFAULT;
	return q->split.desc && q->split.avail && q->split.used ? 0 : -EFAULT;
}

static int prime(struct vub_queue *q)
{
	q->avail = (uint16_t)q->base;
	q->used = __atomic_load_n(&q->split.used->idx, __ATOMIC_RELAXED);
	q->called = q->used;
	return q->inflight ? vub_inflight_prime_split(q) : 0;
}

static uint32_t base(const struct vub_queue *q)
{
	return q->avail;
}

/* ---- taking ---- */

static int is_wrong(struct vub_chain *c, const char *why)
{
	c->wrong = why;
	return -1;
}

/* A copy of the descriptor, which is not read again (V17). */
static struct vring_desc desc_get(const struct vring_desc *table, unsigned i)
{
	struct vring_desc d = table[i];

	__asm__ volatile("" ::: "memory");
	return d;
}

static int walk_indirect(struct vub_chain *c, const struct vring_desc *d)
{
	struct vring_desc table[VUB_IOV_MAX];
	unsigned n, i = 0;

	if (!c->q->has_indirect || d->flags & (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE))
		return is_wrong(c, "an indirect table where none may be");
	n = vub_chain_copy_table(c, d->addr, d->len, table, ARRAY_SIZE(table));
	for (unsigned count = 0; count < n; count++) {
		const struct vring_desc *e = &table[i];

		if (e->flags & VRING_DESC_F_INDIRECT)
			return is_wrong(c, "an indirect table in another");
		if (!vub_chain_add(c, e->addr, e->len, e->flags & VRING_DESC_F_WRITE))
			return -1;
		if (!(e->flags & VRING_DESC_F_NEXT))
			return 1;
		i = e->next;
		if (i >= n)
			return is_wrong(c, "a chain leaves its table");
	}
	return c->wrong ? -1 : is_wrong(c, "a chain is a loop");
}

static int walk(struct vub_chain *c, uint16_t head)
{
	const struct vub_queue *q = c->q;
	uint16_t i = head;

	for (unsigned count = 0; count < q->num; count++) {
		struct vring_desc d = desc_get(q->split.desc, i);

		if (d.flags & VRING_DESC_F_INDIRECT)
			return walk_indirect(c, &d);
		if (!vub_chain_add(c, d.addr, d.len, d.flags & VRING_DESC_F_WRITE))
			return -1;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 1;
		i = d.next;
		if (i >= q->num)
			return is_wrong(c, "a chain leaves its ring");
	}
	return is_wrong(c, "a chain is a loop");
}

static int take(struct vub_queue *q, uint16_t head, struct vub_chain *c)
{
	struct vub_req *vr = &q->reqs[head];

	vub_chain_begin(c, q, vr);
	vr->id = head;
	return walk(c, head);
}

static int next(struct vub_queue *q, struct vub_chain *c)
{
	uint16_t idx = avail_idx(q), head;

	if (idx == q->avail)
		return 0;
	if ((uint16_t)(idx - q->avail) > q->num)
		return is_wrong(c, "the available index has jumped");
	head = __atomic_load_n(&q->split.avail->ring[q->avail & mask(q)], __ATOMIC_RELAXED);
	if (head >= q->num)
		return is_wrong(c, "the available ring names a descriptor that is not there");
	if (q->reqs[head].is_busy)
		return is_wrong(c, "a chain was made available twice");
	q->avail++;
	if (q->inflight)
		vub_inflight_take_split(q, head);
	return take(q, head, c);
}

static int again(struct vub_queue *q, uint16_t head, struct vub_chain *c)
{
	if (q->reqs[head].is_busy)
		return is_wrong(c, "a chain was in flight twice");
	return take(q, head, c);
}

/* The used ring begins where addr.log says. */
static void log_word(struct vub_queue *q, const uint16_t *at)
{
	vub_log_ring(q, (uint64_t)((const char *)at - (const char *)q->split.used), sizeof(*at));
}

static void set_flags(struct vub_queue *q, uint16_t flags)
{
	__atomic_store_n(&q->split.used->flags, flags, __ATOMIC_RELAXED);
	log_word(q, &q->split.used->flags);
}

static bool arm(struct vub_queue *q)
{
	if (q->has_event_idx) {
		__atomic_store_n(avail_event(q), q->avail, __ATOMIC_RELAXED);
		log_word(q, avail_event(q));
	} else {
		set_flags(q, 0);
	}
	/* Either the driver sees what was just written, or we see what it has made available. */
	memory_fence();
	return avail_idx(q) != q->avail;
}

static void disarm(struct vub_queue *q)
{
	/* With event indices the last one stays as it is, and is passed. */
	if (!q->has_event_idx)
		set_flags(q, VRING_USED_F_NO_NOTIFY);
}

/* ---- answering ---- */

static void log_ring(struct vub_queue *q)
{
	vub_log_ring(q, 0, sizeof(*q->split.used) + sizeof(*avail_event(q)) +
		     q->num * sizeof(struct vring_used_elem));
}

static void publish(struct vub_queue *q, struct vub_req *done)
{
	struct vring_used *used = q->split.used;

	if (q->inflight)
		vub_inflight_use_split(q, done);
	for (const struct vub_req *vr = done; vr; vr = vr->next) {
		used->ring[q->used & mask(q)] = (struct vring_used_elem){ vr->id, vr->used_len };
		q->used++;
	}
	__atomic_store_n(&used->idx, q->used, __ATOMIC_RELEASE);
	log_ring(q);
	if (q->inflight)
		vub_inflight_used_split(q, done);
}

static bool wants_call(struct vub_queue *q)
{
	uint16_t before = q->called;

	/* As in arm(), the other way round. */
	memory_fence();
	q->called = q->used;
	if (q->has_event_idx)
		return vring_need_event(__atomic_load_n(used_event(q), __ATOMIC_RELAXED), q->used,
					before);
	return !(__atomic_load_n(&q->split.avail->flags, __ATOMIC_RELAXED) &
		 VRING_AVAIL_F_NO_INTERRUPT);
}

const struct vub_ring_ops vub_split_ops = {
	.map = map,
	.prime = prime,
	.base = base,
	.next = next,
	.again = again,
	.arm = arm,
	.disarm = disarm,
	.publish = publish,
	.wants_call = wants_call,
	.log = log_ring,
};
