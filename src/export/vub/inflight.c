/* SPDX-License-Identifier: MIT */
/* export/vub/inflight.c - what is in flight, kept in memory that the front end holds for us.
 *
 * The layouts and the order of the steps are the specification's ("Inflight I/O tracking"). Between
 * any two of them we may be killed; who comes after us finds in the region and in the ring whether
 * the last batch was published, and takes again what was not. The order of plain stores is what a
 * later process of the same machine sees, so that the compiler alone must be held back.
 *
 * The region is shared with the front end, which may write anything there: every index that is
 * read is checked against the queue's own size, and nothing else is believed. */
#include <errno.h>
#include <stdlib.h>

#include "export/vub/vub_impl.h"

enum { REGION_ALIGN = 64 };

static inline void barrier(void)
{
	__asm__ volatile("" ::: "memory");
}

/* V17: it may be another number the next time. */
static uint16_t read_once(const uint16_t *at)
{
	return __atomic_load_n(at, __ATOMIC_RELAXED);
}

uint64_t vub_inflight_bytes(unsigned num)
{
	static_assert(sizeof(struct vhost_user_inflight_packed) >=
		      sizeof(struct vhost_user_inflight_split), "either layout");

	return align_up(sizeof(struct vhost_user_inflight_packed) +
			num * sizeof(struct vhost_user_inflight_packed_desc), REGION_ALIGN);
}

/* ---- split ---- */

static void init_split(struct vub_queue *q, struct vhost_user_inflight_split *r)
{
	for (unsigned i = 0; i < q->num; i++)
		r->desc[i] = (struct vhost_user_inflight_split_desc){ 0 };
	r->features = 0;
	r->desc_num = (uint16_t)q->num;
	r->last_batch_head = 0;
	r->used_idx = q->used;
	barrier();
	r->version = VHOST_USER_INFLIGHT_VERSION;
}

/* The last batch was published, but perhaps not all of it taken out of the region. */
static int settle_split(struct vub_queue *q, struct vhost_user_inflight_split *r)
{
	uint16_t n = (uint16_t)(q->used - read_once(&r->used_idx));
	uint16_t head = read_once(&r->last_batch_head);

	if (n > q->num)
		return -EINVAL;
	for (; n; n--) {
		if (head >= q->num)
			return -EINVAL;
		r->desc[head].inflight = 0;
		head = read_once(&r->desc[head].next);
	}
	barrier();
	r->used_idx = q->used;
	return 0;
}

int vub_inflight_prime_split(struct vub_queue *q)
{
	struct vhost_user_inflight_split *r = q->inflight;
	unsigned n = 0;
	int rc;

	q->inflight_counter = 0;
	if (!r->version) {
		init_split(q, r);
		return 0;
	}
	if (r->version != VHOST_USER_INFLIGHT_VERSION || r->desc_num != q->num)
		return -EINVAL;
	rc = settle_split(q, r);
	if (rc)
		return rc;
	for (unsigned i = 0; i < q->num; i++) {
		if (!r->desc[i].inflight)
			continue;
		n++;
		q->inflight_counter = MAX(q->inflight_counter, r->desc[i].counter + 1);
	}
	/* What was taken is what was used and what is in flight. */
	q->avail = (uint16_t)(q->used + n);
	return 0;
}

void vub_inflight_take_split(struct vub_queue *q, uint16_t head)
{
	struct vhost_user_inflight_split *r = q->inflight;

	r->desc[head].counter = q->inflight_counter++;
	barrier();
	r->desc[head].inflight = 1;
	barrier();
}

void vub_inflight_use_split(struct vub_queue *q, struct vub_req *done)
{
	struct vhost_user_inflight_split *r = q->inflight;

	for (const struct vub_req *vr = done; vr; vr = vr->next) {
		r->desc[vr->id].next = r->last_batch_head;
		barrier();
		r->last_batch_head = vr->id;
		barrier();
	}
}

void vub_inflight_used_split(struct vub_queue *q, struct vub_req *done)
{
	struct vhost_user_inflight_split *r = q->inflight;

	barrier();
	for (const struct vub_req *vr = done; vr; vr = vr->next)
		r->desc[vr->id].inflight = 0;
	barrier();
	r->used_idx = q->used;
}

/* ---- packed ---- */

static void init_packed(struct vub_queue *q, struct vhost_user_inflight_packed *r)
{
	for (unsigned i = 0; i < q->num; i++)
		r->desc[i] = (struct vhost_user_inflight_packed_desc){ .next = (uint16_t)(i + 1) };
	r->features = 0;
	r->desc_num = (uint16_t)q->num;
	r->free_head = r->old_free_head = 0;
	r->used_idx = r->old_used_idx = q->used;
	r->used_wrap_counter = r->old_used_wrap_counter = q->packed.used_wrap;
	barrier();
	r->version = VHOST_USER_INFLIGHT_VERSION;
}

/* The entry @i, or some other one where the front end has written nonsense. */
static struct vhost_user_inflight_packed_desc *entry(const struct vub_queue *q, uint16_t i)
{
	struct vhost_user_inflight_packed *r = q->inflight;

	return &r->desc[i < q->num ? i : 0];
}

static void commit(struct vhost_user_inflight_packed *r)
{
	r->old_free_head = r->free_head;
	r->old_used_idx = r->used_idx;
	r->old_used_wrap_counter = r->used_wrap_counter;
}

/* Was the batch that was under way published? Then it counts; else it is undone. Sets where the
 * ring was used up to. */
static int settle_packed(struct vub_queue *q, struct vhost_user_inflight_packed *r)
{
	uint16_t used = read_once(&r->used_idx), old = read_once(&r->old_used_idx), i;
	bool wrap = r->used_wrap_counter, old_wrap = r->old_used_wrap_counter;

	if (old >= q->num || used >= q->num)
		return -EINVAL;
	q->used = old;
	q->packed.used_wrap = old_wrap;
	if (used != old || wrap != old_wrap) {
		uint16_t flags = q->packed.desc[old].flags;
		bool is_avail = flags & 1 << VRING_PACKED_DESC_F_AVAIL;
		bool is_used = flags & 1 << VRING_PACKED_DESC_F_USED;

		if (is_avail == old_wrap && is_used == old_wrap) {
			commit(r);
			q->used = used;
			q->packed.used_wrap = wrap;
		}
	}
	i = read_once(&r->old_free_head);
	r->free_head = i;
	r->used_idx = q->used;
	r->used_wrap_counter = q->packed.used_wrap;
	for (unsigned n = 0; n < q->num && i < q->num; n++) {
		r->desc[i].inflight = 0;
		i = read_once(&r->desc[i].next);
	}
	return 0;
}

int vub_inflight_prime_packed(struct vub_queue *q)
{
	struct vhost_user_inflight_packed *r = q->inflight;
	unsigned taken = 0;
	int rc;

	q->inflight_counter = 0;
	if (!r->version) {
		init_packed(q, r);
		return 0;
	}
	if (r->version != VHOST_USER_INFLIGHT_VERSION || r->desc_num != q->num)
		return -EINVAL;
	rc = settle_packed(q, r);
	if (rc)
		return rc;
	for (unsigned i = 0; i < q->num; i++) {
		if (!r->desc[i].inflight)
			continue;
		taken += r->desc[i].num;
		q->inflight_counter = MAX(q->inflight_counter, r->desc[i].counter + 1);
	}
	if (taken > q->num)
		return -EINVAL;
	/* What was taken is what was used and what is in flight. */
	q->avail = (uint16_t)((q->used + taken) % q->num);
	q->packed.avail_wrap = q->packed.used_wrap ^ (q->used + taken >= q->num);
	return 0;
}

void vub_inflight_take_packed(struct vub_queue *q, const struct vring_packed_desc *d,
			      bool is_first, bool is_last, uint16_t *ret_entry)
{
	struct vhost_user_inflight_packed *r = q->inflight;
	struct vhost_user_inflight_packed_desc *head = entry(q, read_once(&r->old_free_head));
	struct vhost_user_inflight_packed_desc *e = entry(q, read_once(&r->free_head));

	if (is_first) {
		*ret_entry = (uint16_t)(head - r->desc);
		head->num = 0;
		head->counter = q->inflight_counter++;
		barrier();
		head->inflight = 1;
	}
	if (is_last)
		head->last = r->free_head;
	head->num++;
	e->addr = d->addr;
	e->len = d->len;
	e->flags = d->flags;
	e->id = d->id;
	barrier();
	r->free_head = e->next;
	barrier();
	if (is_last)
		r->old_free_head = r->free_head;
	barrier();
}

void vub_inflight_use_packed(struct vub_queue *q, struct vub_req *done, uint16_t used,
			     bool used_wrap)
{
	struct vhost_user_inflight_packed *r = q->inflight;

	for (const struct vub_req *vr = done; vr; vr = vr->next) {
		entry(q, read_once(&entry(q, vr->inflight)->last))->next = r->free_head;
		barrier();
		r->free_head = vr->inflight;
		barrier();
	}
	r->used_idx = used;
	r->used_wrap_counter = used_wrap;
	barrier();
}

void vub_inflight_used_packed(struct vub_queue *q, struct vub_req *done)
{
	barrier();
	for (const struct vub_req *vr = done; vr; vr = vr->next)
		entry(q, vr->inflight)->inflight = 0;
	barrier();
	commit(q->inflight);
}

/* ---- what to take again ---- */

static int compare(const void *a, const void *b)
{
	const struct vub_pending *x = a, *y = b;

	return x->counter < y->counter ? -1 : x->counter > y->counter;
}

unsigned vub_inflight_list(struct vub_queue *q, struct vub_pending *list, unsigned max)
{
	const struct vhost_user_inflight_split *split = q->inflight;
	const struct vhost_user_inflight_packed *packed = q->inflight;
	bool is_packed = q->ops == &vub_packed_ops;
	unsigned n = 0;

	for (unsigned i = 0; i < q->num && n < max; i++) {
		bool is_in = is_packed ? packed->desc[i].inflight : split->desc[i].inflight;

		if (is_in)
			list[n++] = (struct vub_pending){
				.counter = is_packed ? packed->desc[i].counter
						     : split->desc[i].counter,
				.entry = (uint16_t)i,
			};
	}
	qsort(list, n, sizeof(*list), compare);
	return n;
}
