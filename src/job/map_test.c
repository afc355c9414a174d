/* SPDX-License-Identifier: MIT */
/* Maps and measures of disks in memory, judged by slow and obvious models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>

#include "base/bits.h"
#include "job/map.h"
#include "job/measure.h"
#include "job/test_disk.h"

/* ---- map ---- */

struct taken {
	const struct mem *m;
	uint64_t off;
	unsigned flags;
	bool is_last;
	unsigned n;
};

static int take(void *arg, uint64_t start, const struct map_run *run_, bool is_last)
{
	struct taken *t = arg;

	assert_int_equal(start, t->off);
	assert_true(!t->n || run_->flags != t->flags);
	assert_false(t->is_last);
	for (uint64_t off = start; off < start + run_->len; off += SECTOR)
		assert_int_equal(!(run_->flags & MAP_DATA), t->m->state[off / GRANULE] != 2);
	t->off += run_->len;
	t->flags = run_->flags;
	t->is_last = is_last;
	t->n++;
	return t->n == 1000 ? 7 : 0;
}

static int walk_body(void *arg)
{
	struct prng *prng = arg;
	struct mem *m = mem_new(prng, GRANULES);
	struct port *port = port_on(m);
	uint64_t off = prng_below(prng, 9) * SECTOR, end = port_size(port);
	struct taken t = { .m = m, .off = off };

	assert_int_equal(map_walk_wait(port_here(port), off, end, take, &t), 0);
	assert_int_equal(t.off, end);
	assert_true(t.is_last);

	t = (struct taken){ .m = m, .off = end };
	assert_int_equal(map_walk_wait(port_here(port), end, end, take, &t), 0);
	assert_true(t.is_last && t.n == 1);

	t = (struct taken){ .m = m, .n = 999 };
	t.flags = MAP_COMPRESSED;
	assert_int_equal(map_walk_wait(port_here(port), 0, end, take, &t), 7);

	m->map_fails_at = GRANULES / 2;
	t = (struct taken){ .m = m };
	assert_int_equal(map_walk_wait(port_here(port), 0, end, take, &t), -EIO);
	assert_true(t.off <= (uint64_t)GRANULES / 2 * GRANULE && !t.is_last);
	mem_free_wait(m, port);
	return 0;
}

static void d1_runs_have_no_gap_and_no_likes(void **state)
{
	for (uint64_t seed = 1; seed < 50; seed++)
		run(seed, walk_body);
}

/* ---- measure ---- */

static int data_body(void *arg)
{
	struct prng *prng = arg;
	struct mem *m = mem_new(prng, GRANULES);
	struct port *port = port_on(m);

	for (uint64_t cluster = 512; cluster <= 2 << 20; cluster *= 4) {
		uint64_t step = MIN(cluster, (uint64_t)GRANULE), want = 0, got;

		for (uint64_t c = 0; c < port_size(port); c += cluster) {
			bool is_data = false;

			for (uint64_t off = c; off < MIN(c + cluster, port_size(port)); off += step)
				is_data |= m->state[off / GRANULE] == 2;
			want += is_data ? cluster : 0;
		}
		assert_int_equal(measure_data_wait(port_here(port), port_size(port), cluster, &got),
				 0);
		assert_int_equal(got, want);
	}
	mem_free_wait(m, port);
	return 0;
}

static void data_is_counted_in_clusters(void **state)
{
	for (uint64_t seed = 1; seed < 20; seed++)
		run(seed, data_body);
}

static void d4_metadata_has_room_for_all_refcounts(void **state)
{
	struct prng p = { 1 };
	uint64_t bytes;

	for (unsigned i = 0; i < 20000; i++) {
		struct measure_layout l = { .cluster = 512ULL << prng_below(&p, 13),
			.refcount_order = (unsigned)prng_below(&p, 7) };
		uint64_t size = prng_next(&p) >> (1 + prng_below(&p, 60)), all, l2, l1, own;
		uint64_t entries;

		l.extended_l2 = l.cluster >= 16384 && prng_below(&p, 2);
		entries = l.cluster / (l.extended_l2 ? 16 : 8);
		l2 = div_round_up(div_round_up(size, l.cluster), entries);
		if (l2 > 4 << 20) {
			assert_int_equal(measure_metadata(&l, size, &bytes), -EFBIG);
			continue;
		}
		assert_int_equal(measure_metadata(&l, size, &bytes), 0);
		assert_int_equal(bytes % l.cluster, 0);
		all = bytes / l.cluster + div_round_up(size, l.cluster);
		l1 = div_round_up(l2 * 8, l.cluster);
		own = bytes / l.cluster - 1 - l1 - l2;
		uint64_t blocks = div_round_up(all, l.cluster * 8 >> l.refcount_order);

		assert_int_equal(own, blocks + div_round_up(blocks * 8, l.cluster));
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(d1_runs_have_no_gap_and_no_likes),
		cmocka_unit_test(data_is_counted_in_clusters),
		cmocka_unit_test(d4_metadata_has_room_for_all_refcounts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
