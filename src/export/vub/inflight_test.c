/* SPDX-License-Identifier: MIT */
/* V21: a process that dies at any step of taking and answering leaves a region and a ring from
 * which the next one finds exactly what was taken and not answered, in order. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/prng.h"
#include "base/sanitizers.h"
#include "export/vub/vub_impl.h"

enum { NUM = 8, ROUNDS = 400, RING_BYTES = 4096, BATCH_MAX = 4, CHANGING_ROUNDS = 1000000 };

/* All that outlives a process. */
struct world {
	_Alignas(16) uint8_t ring[RING_BYTES];          /* used ring, or descriptors */
	_Alignas(16) uint8_t region[sizeof(struct vhost_user_inflight_packed) +
				    NUM * sizeof(struct vhost_user_inflight_packed_desc) + 64];
};

/* A process, and what it should know. */
struct run {
	struct world world;
	struct vub_queue q;
	struct vub_req reqs[NUM];
	struct vub_req *taken[NUM];             /* not answered, oldest first */
	unsigned ntaken;
	bool skips_tracking;                    /* the switch: it must be noticed */
	unsigned wrong;
};

static bool is_packed(const struct vub_queue *q)
{
	return q->ops == &vub_packed_ops;
}

static int prime(struct vub_queue *q)
{
	return is_packed(q) ? vub_inflight_prime_packed(q) : vub_inflight_prime_split(q);
}

static void queue_on(struct vub_queue *q, struct world *w, const struct vub_ring_ops *ops)
{
	*q = (struct vub_queue){ .num = NUM, .ops = ops };
	q->inflight = w->region;
	if (is_packed(q)) {
		q->packed.desc = (void *)w->ring;
		q->packed.used_wrap = q->packed.avail_wrap = true;
	} else {
		q->split.used = (void *)w->ring;
		q->used = q->avail = q->split.used->idx;
	}
}

/* Somebody else finds @w: does he know what @r does? @published: how many of the oldest batch, in
 * @batch, count as answered. */
static void recover(struct run *r, struct vub_req **batch, unsigned published)
{
	struct world w = r->world;
	struct vub_pending list[NUM];
	struct vub_queue q;
	unsigned n, k = 0;

	queue_on(&q, &w, r->q.ops);
	assert_int_equal(prime(&q), 0);
	n = vub_inflight_list(&q, list, NUM);
	for (unsigned i = 0; i < r->ntaken; i++) {
		const struct vub_req *vr = r->taken[i];
		bool is_answered = false;

		for (unsigned b = 0; b < published; b++)
			is_answered |= batch[b] == vr;
		if (is_answered)
			continue;
		if (k >= n || list[k].entry != (is_packed(&q) ? vr->inflight : vr->id))
			r->wrong++;
		k++;
	}
	r->wrong += k != n;
	if (!r->wrong && (q.avail != r->q.avail || (is_packed(&q) && q.packed.avail_wrap !=
						      r->q.packed.avail_wrap)))
		r->wrong++;
}

static void advance(struct vub_queue *q, uint16_t *at, bool *wrap, unsigned n)
{
	*wrap ^= *at + n >= q->num;
	*at = (uint16_t)((*at + n) % q->num);
}

static void take_packed(struct run *r, struct vub_req *vr, unsigned ndescs)
{
	struct vring_packed_desc d = { .id = vr->id, .len = 1 };

	vr->ndescs = (uint16_t)ndescs;
	for (unsigned i = 0; i < ndescs; i++) {
		d.addr = (uint64_t)(vr - r->reqs) << 8 | i;
		/* As the driver has it: available in this round. */
		((struct vring_packed_desc *)r->q.packed.desc)[r->q.avail].flags = (uint16_t)
			(r->q.packed.avail_wrap ? 1 << VRING_PACKED_DESC_F_AVAIL
						: 1 << VRING_PACKED_DESC_F_USED);
		if (!r->skips_tracking)
			vub_inflight_take_packed(&r->q, &d, !i, i + 1 == ndescs, &vr->inflight);
		advance(&r->q, &r->q.avail, &r->q.packed.avail_wrap, 1);
		r->q.packed.outstanding++;
	}
}

static void take(struct run *r, struct prng *p)
{
	unsigned i = (unsigned)prng_below(p, NUM), n = 1 + (unsigned)prng_below(p, 3);
	struct vub_req *vr = &r->reqs[i];

	for (unsigned k = 0; k < r->ntaken; k++)
		if (r->taken[k] == vr)
			return;
	vr->id = (uint16_t)i;
	vr->used_len = 1;
	if (is_packed(&r->q) && r->q.packed.outstanding + n > NUM)
		return;
	if (is_packed(&r->q)) {
		take_packed(r, vr, n);
	} else {
		r->q.avail++;
		if (!r->skips_tracking)
			vub_inflight_take_split(&r->q, vr->id);
	}
	r->taken[r->ntaken++] = vr;
	recover(r, NULL, 0);
}

static void forget(struct run *r, struct vub_req *vr)
{
	unsigned k = 0;

	while (r->taken[k] != vr)
		k++;
	memmove(&r->taken[k], &r->taken[k + 1], (--r->ntaken - k) * sizeof(vr));
}

/* The steps of split.c's publish(), with a death behind each. */
static void answer_split(struct run *r, struct vub_req **batch, unsigned n)
{
	struct vhost_user_inflight_split *region = r->q.inflight;
	struct world whole;

	for (unsigned i = 0; i < n; i++) {
		batch[i]->next = NULL;
		vub_inflight_use_split(&r->q, batch[i]);
		recover(r, batch, 0);
	}
	r->q.used = (uint16_t)(r->q.used + n);
	r->q.split.used->idx = r->q.used;
	recover(r, batch, n);
	whole = r->world;
	for (unsigned i = 0; i < n; i++) {      /* in the middle of vub_inflight_used_split() */
		region->desc[batch[i]->id].inflight = 0;
		recover(r, batch, n);
	}
	r->world = whole;
	for (unsigned i = 0; i + 1 < n; i++)
		batch[i]->next = batch[i + 1];
	vub_inflight_used_split(&r->q, batch[0]);
	recover(r, batch, n);
}

static void answer_packed(struct run *r, struct vub_req **batch, unsigned n)
{
	struct vhost_user_inflight_packed *region = r->q.inflight;
	struct vring_packed_desc *first = &r->q.packed.desc[r->q.used];
	bool wrap = r->q.packed.used_wrap;

	for (unsigned i = 0; i < n; i++) {
		batch[i]->next = i + 1 < n ? batch[i + 1] : NULL;
		advance(&r->q, &r->q.used, &r->q.packed.used_wrap, batch[i]->ndescs);
		r->q.packed.outstanding -= batch[i]->ndescs;
	}
	vub_inflight_use_packed(&r->q, batch[0], r->q.used, r->q.packed.used_wrap);
	recover(r, batch, 0);
	first->flags = (uint16_t)(wrap ? 1 << VRING_PACKED_DESC_F_AVAIL |
					 1 << VRING_PACKED_DESC_F_USED : 0);
	recover(r, batch, n);
	for (unsigned i = 0; i < n; i++) {      /* in the middle of vub_inflight_used_packed() */
		region->desc[batch[i]->inflight].inflight = 0;
		recover(r, batch, n);
	}
	vub_inflight_used_packed(&r->q, batch[0]);
	recover(r, batch, n);
}

static void answer(struct run *r, struct prng *p)
{
	struct vub_req *batch[BATCH_MAX];
	unsigned n = 1 + (unsigned)prng_below(p, BATCH_MAX);

	n = n > r->ntaken ? r->ntaken : n;
	if (!n)
		return;
	for (unsigned i = 0; i < n; i++) {      /* out of order, each once */
		bool is_new;

		do {
			batch[i] = r->taken[prng_below(p, r->ntaken)];
			is_new = true;
			for (unsigned k = 0; k < i; k++)
				is_new &= batch[k] != batch[i];
		} while (!is_new);
	}
	if (is_packed(&r->q))
		answer_packed(r, batch, n);
	else
		answer_split(r, batch, n);
	for (unsigned i = 0; i < n; i++)
		forget(r, batch[i]);
	recover(r, NULL, 0);
}

static unsigned run(const struct vub_ring_ops *ops, bool skips_tracking)
{
	struct run *r = calloc(1, sizeof(*r));
	struct prng p = { 1 };
	unsigned wrong;

	queue_on(&r->q, &r->world, ops);
	r->skips_tracking = skips_tracking;
	assert_int_equal(prime(&r->q), 0);
	for (unsigned i = 0; i < ROUNDS && !r->wrong; i++) {
		if (prng_below(&p, 3))
			take(r, &p);
		else
			answer(r, &p);
	}
	wrong = r->wrong;
	free(r);
	return wrong;
}

static void v21_split_after_any_step(void **state)
{
	assert_int_equal(run(&vub_split_ops, false), 0);
	assert_true(run(&vub_split_ops, true));
}

static void v21_packed_after_any_step(void **state)
{
	assert_int_equal(run(&vub_packed_ops, false), 0);
	assert_true(run(&vub_packed_ops, true));
}

/* A region is the front end's: whatever it writes there, no index is believed. */
struct changing {
	struct world w;
	struct prng prng;
	atomic_bool is_over;
};

/* A front end that writes what is right and what is not, over and over. */
static void *change_thread(void *arg)
{
	struct changing *c = arg;
	struct vhost_user_inflight_packed *r = (void *)c->w.region;
	uint16_t *fields[] = { &r->used_idx, &r->old_used_idx, &r->free_head, &r->old_free_head,
			       &r->desc[0].next, &r->desc[0].num, &r->desc[0].last };

	while (!atomic_load_explicit(&c->is_over, memory_order_relaxed)) {
		uint16_t *field = fields[prng_below(&c->prng, 7)];

		__atomic_store_n(field, prng_below(&c->prng, 2) ? 1 : UINT16_MAX,
				 __ATOMIC_RELAXED);
	}
	return NULL;
}

/* An index that was right when it was looked at is the one that is used. */
static void v17_a_region_that_changes_meanwhile(void **state)
{
	static struct changing c = { .prng = { 3 } };
	struct vhost_user_inflight_packed *r = (void *)c.w.region;
	unsigned taken = 0, refused = 0;
	pthread_t thread;

	if (HAS_TSAN)                   /* which sees no more than that: a race */
		skip();
	r->version = VHOST_USER_INFLIGHT_VERSION;
	r->desc_num = NUM;
	assert_int_equal(pthread_create(&thread, NULL, change_thread, &c), 0);
	while (taken < CHANGING_ROUNDS || refused < CHANGING_ROUNDS) {
		struct vub_queue q;
		int rc;

		queue_on(&q, &c.w, &vub_packed_ops);
		rc = prime(&q);
		taken += !rc;
		refused += !!rc;
		assert_in_range(q.used, 0, NUM - 1);
		assert_in_range(q.avail, 0, NUM - 1);
	}
	atomic_store(&c.is_over, true);
	pthread_join(thread, NULL);
}

static void v17_regions_of_noise(void **state)
{
	struct prng p = { 7 };

	for (unsigned i = 0; i < 20000; i++) {
		struct vub_pending list[NUM];
		struct vub_req vr = { .id = 3, .inflight = (uint16_t)prng_below(&p, NUM) };
		struct vring_packed_desc d = { 0 };
		struct world w = { 0 };
		struct vub_queue q;

		for (unsigned b = 0; b < sizeof(w.region); b += 2) {
			uint16_t v = (uint16_t)prng_below(&p, prng_below(&p, 4) ? NUM + 2 : 65536);

			memcpy(w.region + b, &v, sizeof(v));
		}
		((struct vhost_user_inflight_split *)(void *)w.region)->version = 1;
		((struct vhost_user_inflight_split *)(void *)w.region)->desc_num = NUM;
		queue_on(&q, &w, i % 2 ? &vub_packed_ops : &vub_split_ops);
		if (prime(&q))
			continue;
		assert_true(vub_inflight_list(&q, list, NUM) <= NUM);
		if (!is_packed(&q)) {
			vub_inflight_use_split(&q, &vr);
			vub_inflight_used_split(&q, &vr);
			continue;
		}
		assert_true(q.avail < NUM && q.used < NUM);
		for (unsigned n = 0; n < 3; n++)
			vub_inflight_take_packed(&q, &d, !n, n == 2, &vr.inflight);
		assert_true(vr.inflight < NUM);
		vub_inflight_use_packed(&q, &vr, 1, true);
		vub_inflight_used_packed(&q, &vr);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v21_split_after_any_step),
		cmocka_unit_test(v21_packed_after_any_step),
		cmocka_unit_test(v17_regions_of_noise),
		cmocka_unit_test(v17_a_region_that_changes_meanwhile),
	};

	return cmocka_run_group_tests_name("vub_inflight", tests, NULL, NULL);
}
