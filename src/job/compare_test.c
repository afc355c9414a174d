/* SPDX-License-Identifier: MIT */
/* Comparisons of disks in memory, beside one byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "job/compare.h"
#include "job/test_disk.h"

struct seen {
	uint64_t done, total;
	unsigned longer;
};

static void on_longer(void *arg)
{
	struct seen *s = arg;

	s->longer++;
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
	struct seen *s = arg;

	assert_true(done >= s->done && done <= total);
	s->done = done;
	s->total = total;
}

/* The first granule, or sector, that differs. Both disks' bytes go on as zeros. */
static uint64_t first_difference(const struct mem *a, const struct mem *b, uint64_t size)
{
	for (uint64_t off = 0; off < size; off += SECTOR)
		if (memcmp(a->bytes + off, b->bytes + off, SECTOR))
			return off;
	return size;
}

struct pair {
	struct prng *prng;
	struct mem *m[2];
	struct port *port[2];
	uint64_t size;                  /* the longer one's */
	struct seen seen;
	struct compare_result result;
};

static void pair_open(struct pair *p)
{
	unsigned granules = GRANULES - (unsigned)prng_below(p->prng, 9);

	for (unsigned i = 0; i < 2; i++) {
		p->m[i] = mem_new(p->prng, i ? granules : GRANULES);
		p->port[i] = port_on(p->m[i]);
	}
	/* Mostly the same, and where the one has data, so does the other. */
	memcpy(p->m[1]->bytes, p->m[0]->bytes, (size_t)granules * GRANULE);
	for (unsigned i = 0; i < granules; i++)
		if (p->m[0]->state[i] == 2 && p->m[0]->bytes[(size_t)i * GRANULE])
			p->m[1]->state[i] = 2;
	if (prng_below(p->prng, 2)) {
		memset(p->m[0]->bytes + (size_t)granules * GRANULE, 0,
		       (size_t)(GRANULES - granules) * GRANULE);
	}
	p->size = (uint64_t)GRANULES * GRANULE;
}

static void pair_compare_wait(struct pair *p, bool is_strict)
{
	unsigned first = (unsigned)prng_below(p->prng, 2);
	struct compare_opts o = {
		.pc = { port_here(p->port[first]), port_here(p->port[!first]) },
		.is_strict = is_strict,
		.on_longer = on_longer,
		.on_progress = on_progress,
		.arg = &p->seen,
	};

	p->seen = (struct seen){ 0 };
	assert_int_equal(compare_run_wait(&o, &p->result), 0);
	if (p->result.verdict >= COMPARE_MAP_FAILED && first)
		p->result.which = !p->result.which;
}

static void pair_close_wait(struct pair *p)
{
	mem_free_wait(p->m[0], p->port[0]);
	mem_free_wait(p->m[1], p->port[1]);
}

static int differ_body(void *arg)
{
	struct pair p = { .prng = arg };
	uint64_t at;

	pair_open(&p);
	for (unsigned i = 0; i < prng_below(p.prng, 4); i++) {
		uint64_t where = prng_below(p.prng, p.size);

		if (p.m[0]->state[where / GRANULE] == 2)
			p.m[0]->bytes[where] ^= 1;
	}
	at = first_difference(p.m[0], p.m[1], p.size);
	pair_compare_wait(&p, false);
	if (at == p.size) {
		assert_int_equal(p.result.verdict, COMPARE_SAME);
		assert_int_equal(p.seen.done, p.size);
		assert_int_equal(p.seen.longer, port_size(p.port[1]) < p.size);
	} else {
		assert_int_equal(p.result.verdict, COMPARE_DIFFERS);
		/* Chunks may begin anywhere; sectors count from there. */
		assert_true(p.result.off <= at + SECTOR - 1 && p.result.off + SECTOR > at);
	}
	pair_close_wait(&p);
	return 0;
}

static void d2_d3_the_first_difference_is_found(void **state)
{
	for (uint64_t seed = 1; seed < 150; seed++)
		run(seed, differ_body);
}

static int fail_body(void *arg)
{
	struct pair p = { .prng = arg };
	unsigned which = (unsigned)prng_below(p.prng, 2), granule;

	pair_open(&p);
	memset(p.m[0]->bytes + port_size(p.port[1]), 0, p.size - port_size(p.port[1]));
	granule = (unsigned)prng_below(p.prng, port_size(p.port[1]) / GRANULE);
	p.m[which]->fails_at = (int)granule;
	pair_compare_wait(&p, false);
	/* Where this disk is zero it is not read. */
	if (p.m[which]->state[granule] == 2) {
		assert_int_equal(p.result.verdict, COMPARE_READ_FAILED);
		assert_int_equal(p.result.error, -EIO);
		assert_int_equal(p.result.which, which);
		assert_true(p.result.off < (granule + 1ULL) * GRANULE);
	} else {
		assert_int_equal(p.result.verdict, COMPARE_SAME);
	}
	p.m[which]->fails_at = -1;
	p.m[which]->map_fails_at = (int)granule;
	pair_compare_wait(&p, false);
	assert_int_equal(p.result.verdict, COMPARE_MAP_FAILED);
	assert_int_equal(p.result.which, which);
	pair_close_wait(&p);
	return 0;
}

static void d2_failures_are_told(void **state)
{
	for (uint64_t seed = 1; seed < 100; seed++)
		run(seed, fail_body);
}

static int strict_body(void *arg)
{
	struct pair p = { .prng = arg };
	unsigned granule = (unsigned)prng_below(p.prng, GRANULES);

	p.m[0] = mem_new(p.prng, GRANULES);
	p.m[1] = mem_new(p.prng, GRANULES);
	memcpy(p.m[1]->bytes, p.m[0]->bytes, sizeof(p.m[0]->bytes));
	memcpy(p.m[1]->state, p.m[0]->state, sizeof(p.m[0]->state));
	for (unsigned i = 0; i < 2; i++)
		p.port[i] = port_on(p.m[i]);
	p.m[0]->state[granule] = 0;
	p.m[1]->state[granule] = 1;
	pair_compare_wait(&p, true);
	assert_int_equal(p.result.verdict, COMPARE_STATUS_DIFFERS);
	pair_close_wait(&p);
	return 0;
}

static void strict_mode_sees_what_is_allocated(void **state)
{
	for (uint64_t seed = 1; seed < 30; seed++)
		run(seed, strict_body);
}

static void bytes_are_compared_by_sectors(void **state)
{
	static uint8_t a[5000], b[5000];

	for (uint64_t len = 0; len <= sizeof(a); len += 1 + len / 3) {
		assert_int_equal(compare_bytes(a, b, len), len);
		assert_int_equal(compare_bytes(a, NULL, len), len);
		for (uint64_t at = 0; at < len; at += 100) {
			b[at] = 1;
			assert_int_equal(compare_bytes(a, b, len), at / SECTOR * SECTOR);
			assert_int_equal(compare_bytes(b, NULL, len), at / SECTOR * SECTOR);
			b[at] = 0;
		}
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(d2_d3_the_first_difference_is_found),
		cmocka_unit_test(d2_failures_are_told),
		cmocka_unit_test(strict_mode_sees_what_is_allocated),
		cmocka_unit_test(bytes_are_compared_by_sectors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
