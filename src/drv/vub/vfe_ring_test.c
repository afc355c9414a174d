/* SPDX-License-Identifier: MIT */
/* Both layouts of rings against a device in the same thread, which answers in a seeded order, and
 * against one that lies. */
#include "drv/vub/vfe_ring.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"
#include "drv/vub/test_device.h"

enum { TOKENS = 256, SEGS = 6, STEPS = 3000, TABLE_BYTES = 16 * SEGS };
#define ADDR 0x40000000ULL

struct world {
	struct prng prng;
	struct vfe_ring ring;
	struct dev dev;
	char *mem;                      /* the ring, then a table a token */
	size_t tables;
	bool is_indirect;
	struct dev_req held[TOKENS];    /* taken by the device, not given back */
	unsigned nheld;
	bool is_live[TOKENS];
	unsigned nlive;
	bool was_kicked, was_called;
	bool dev_sleeps, driver_sleeps;
};

static void world_init(struct world *w, uint64_t seed)
{
	struct prng p = { seed };
	bool packed = prng_below(&p, 2), event = prng_below(&p, 2);
	unsigned size = 1u << prng_below(&p, 8);

	if (packed && prng_below(&p, 2))
		size = 1 + (unsigned)prng_below(&p, 200);
	*w = (struct world){ .prng = p, .is_indirect = prng_below(&p, 2) };
	w->tables = align_up(vfe_ring_bytes(size, packed), 16);
	w->mem = aligned_alloc(16, w->tables + (size_t)TOKENS * TABLE_BYTES);
	assert_int_equal(vfe_ring_init(&w->ring, w->mem, size, packed, event), 0);
	w->dev = dev_on(&w->ring, w->mem, ADDR);
}

static void world_fini(struct world *w)
{
	vfe_ring_fini(&w->ring);
	free(w->mem);
}

/* What segment @i of token @t looks like. */
static struct vfe_seg seg_of(unsigned t, unsigned i)
{
	return (struct vfe_seg){ ADDR + t * 7919ULL + i * 64ULL, t * SEGS + i + 1,
				 (t + i) % 3 == 0 };
}

static bool add_one(struct world *w)
{
	unsigned t = (unsigned)prng_below(&w->prng, TOKENS);
	unsigned n = 1 + (unsigned)prng_below(&w->prng, SEGS);
	size_t at = w->tables + (size_t)t * TABLE_BYTES;
	struct vfe_table table = { w->mem + at, ADDR + at };
	struct vfe_seg segs[SEGS];
	unsigned need = w->is_indirect ? 1 : n;
	int rc;

	if (w->is_live[t])
		return false;
	if (!w->is_indirect)
		table = (struct vfe_table){ 0 };
	for (unsigned i = 0; i < n; i++)
		segs[i] = seg_of(t, i);
	rc = vfe_ring_add(&w->ring, segs, n, &table, (uint16_t)t);
	if (rc) {
		assert_int_equal(rc, -EAGAIN);
		return false;
	}
	assert_true(need <= w->ring.size);
	w->is_live[t] = true;
	w->nlive++;
	return true;
}

static void check_segs(const struct dev_req *q)
{
	unsigned t = (q->segs[0].len - 1) / SEGS;

	for (unsigned i = 0; i < q->n; i++) {
		struct vfe_seg s = seg_of(t, i);

		assert_int_equal(q->segs[i].addr, s.addr);
		assert_int_equal(q->segs[i].len, s.len);
		assert_int_equal(q->segs[i].is_in, s.is_in);
	}
}

/* The device takes what there is, and sleeps if it asked for a kick and there was nothing. */
static void dev_work(struct world *w)
{
	struct dev_req q;

	if (w->dev_sleeps && !w->was_kicked)
		return;
	w->dev_sleeps = w->was_kicked = false;
	while (w->nheld < TOKENS && dev_pop(&w->dev, &q)) {
		check_segs(&q);
		w->held[w->nheld++] = q;
		if (!prng_below(&w->prng, 4))
			return;
	}
	dev_arm(&w->dev);
	if (dev_pop(&w->dev, &q)) {
		check_segs(&q);
		w->held[w->nheld++] = q;
		return;
	}
	w->dev_sleeps = true;
}

static void dev_answer(struct world *w)
{
	while (w->nheld && prng_below(&w->prng, 3)) {
		unsigned i = (unsigned)prng_below(&w->prng, w->nheld);

		dev_push(&w->dev, &w->held[i], w->held[i].segs[0].len);
		w->held[i] = w->held[--w->nheld];
	}
	w->was_called |= dev_must_call(&w->dev);
}

static void driver_take(struct world *w)
{
	uint16_t token;
	uint32_t len;
	int rc;

	if (w->driver_sleeps && !w->was_called)
		return;
	w->driver_sleeps = w->was_called = false;
	do {
		while ((rc = vfe_ring_take(&w->ring, &token, &len)) > 0) {
			assert_true(token < TOKENS && w->is_live[token]);
			assert_int_equal((len - 1) / SEGS, token);
			w->is_live[token] = false;
			w->nlive--;
		}
		assert_int_equal(rc, 0);
	} while (vfe_ring_arm(&w->ring));
	w->driver_sleeps = true;
}

/* Everything comes to an end though both sides sleep unless they are woken. */
static void settle(struct world *w)
{
	if (vfe_ring_publish(&w->ring))
		w->was_kicked = true;
	for (unsigned i = 0; i < 100 * TOKENS && w->nlive; i++) {
		dev_work(w);
		dev_answer(w);
		driver_take(w);
	}
	assert_int_equal(w->nlive, 0);
	assert_int_equal(w->ring.nfree, w->ring.size);
}

static void v31_v32_v33_every_token_comes_back_once(void **state)
{
	for (uint64_t seed = 1; seed <= 60; seed++) {
		struct world *w = malloc(sizeof(*w));

		world_init(w, seed);
		for (unsigned step = 0; step < STEPS; step++) {
			switch (prng_below(&w->prng, 5)) {
			case 0:
			case 1:
				while (add_one(w) && prng_below(&w->prng, 4))
					;
				if (vfe_ring_publish(&w->ring))
					w->was_kicked = true;
				break;
			case 2:
				dev_work(w);
				break;
			case 3:
				dev_answer(w);
				break;
			default:
				driver_take(w);
			}
			if (!prng_below(&w->prng, 500))
				settle(w);
		}
		settle(w);
		world_fini(w);
		free(w);
	}
}

/* Without the look after asking for a call, calls are lost: the switch of V33. */
static void v33_arming_without_a_look_would_lose_calls(void **state)
{
	bool was_missed = false;

	for (uint64_t seed = 1; seed <= 200 && !was_missed; seed++) {
		struct world *w = malloc(sizeof(*w));
		struct dev_req q;

		world_init(w, seed);
		if (w->ring.has_event_idx && w->ring.size >= SEGS && add_one(w)) {
			vfe_ring_publish(&w->ring);
			vfe_ring_arm(&w->ring);
			/* It has seen an older wish for a call than the one that follows. */
			assert_true(dev_pop(&w->dev, &q));
			dev_push(&w->dev, &q, 1);
			(void)dev_must_call(&w->dev);
			was_missed = vfe_ring_arm(&w->ring);
		}
		world_fini(w);
		free(w);
	}
	assert_true(was_missed);
}

/* Random bytes wherever the device may write; whatever comes, tokens come back once at most. */
static void v31_a_device_that_lies_is_an_error(void **state)
{
	unsigned nerrors = 0;

	for (uint64_t seed = 1; seed <= 400; seed++) {
		struct world *w = malloc(sizeof(*w));
		uint16_t token;
		uint32_t len;
		int rc = 0;

		world_init(w, seed);
		while (add_one(w))
			;
		vfe_ring_publish(&w->ring);
		for (unsigned i = 0; i < 200 && rc >= 0; i++) {
			size_t at = prng_below(&w->prng, w->tables);

			w->mem[at] = (char)prng_next(&w->prng);
			if (!w->ring.is_packed)
				w->ring.split.used->idx = (uint16_t)prng_below(&w->prng, 300);
			while ((rc = vfe_ring_take(&w->ring, &token, &len)) > 0) {
				assert_true(token < TOKENS && w->is_live[token]);
				w->is_live[token] = false;
			}
			vfe_ring_arm(&w->ring);
		}
		nerrors += rc < 0;
		assert_true(w->ring.nfree <= w->ring.size);
		world_fini(w);
		free(w);
	}
	assert_true(nerrors > 100);
}

static void the_base_says_where_the_device_goes_on(void **state)
{
	for (uint64_t seed = 1; seed <= 40; seed++) {
		struct world *w = malloc(sizeof(*w));

		world_init(w, seed);
		for (unsigned i = 0; i < 300; i++) {
			struct dev *d = &w->dev;
			uint32_t half;

			while (add_one(w))
				;
			settle(w);
			half = d->used | (uint32_t)d->used_wrap << 15;
			assert_int_equal(vfe_ring_base(&w->ring),
					 d->is_packed ? half | half << 16 : d->used);
		}
		world_fini(w);
		free(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v31_v32_v33_every_token_comes_back_once),
		cmocka_unit_test(v33_arming_without_a_look_would_lose_calls),
		cmocka_unit_test(v31_a_device_that_lies_is_an_error),
		cmocka_unit_test(the_base_says_where_the_device_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
