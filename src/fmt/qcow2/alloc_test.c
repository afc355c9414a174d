/* SPDX-License-Identifier: MIT */
/* Clusters: taken, freed, resting, free again; what the reserve and its target do; tables that must
 * not be handed out; disks that fail and memory that ends, at every place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/log.h"
#include "base/prng.h"
#include "fmt/qcow2/test_image.h"

enum { BITS = 9, CLUSTER = 1 << BITS, ROOM = 256 << 20 };

/* ---- memory that ends ---- */

static int allocations_left = -1;       /* < 0: any number */

static bool may_allocate(void)
{
	if (allocations_left < 0)
		return true;
	return allocations_left-- > 0 || (allocations_left = 0);
}

void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

void *__wrap_calloc(size_t n, size_t size)
{
	return may_allocate() ? __real_calloc(n, size) : NULL;
}

void *__wrap_realloc(void *p, size_t size)
{
	return may_allocate() ? __real_realloc(p, size) : NULL;
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	return may_allocate() ? __real_aligned_alloc(align, size) : NULL;
}

/* ---- helpers ---- */

static void open_wait(struct test_image *im, struct loop *l)
{
	test_image_make(im, l, BITS, 4, ROOM);
	assert_int_equal(test_image_open_wait(im), 0);
}

static void close_wait(struct test_image *im)
{
	assert_int_equal(test_image_close_wait(im), 0);
	test_image_free_wait(im);
}

/* ---- the reserve against a model ---- */

enum { HELD_MAX = 400 };

struct held {
	uint64_t first[HELD_MAX];
	bool is_fresh[HELD_MAX];
	unsigned n;
};

static void reserve_check_wait(struct test_image *im, const struct held *h)
{
	const struct alloc *a = &im->w->alloc;
	uint64_t sum = 0;

	assert_true(a->nruns <= ALLOC_RUNS_MAX);
	assert_true(a->target >= ALLOC_RESERVE_MIN && a->target <= ALLOC_RESERVE_BYTES / CLUSTER);
	for (unsigned i = 0; i < a->nruns; i++) {
		const struct alloc_run *r = &a->runs[i];

		assert_true(r->n && r->first >= TEST_IMAGE_USED);
		if (i)
			assert_true(r->first >= r[-1].first + r[-1].n);
		for (unsigned k = 0; k < h->n; k++)
			assert_false(h->first[k] - r->first < r->n);
		for (uint64_t c = r->first; c < r->first + r->n; c++)
			assert_int_equal(test_count_wait(im, c), 1);
		sum += r->n;
	}
	assert_int_equal(sum, a->reserved);
	for (unsigned k = 0; k < h->n; k++)
		assert_int_equal(test_count_wait(im, h->first[k]), 1);
}

static void one_step_wait(struct test_image *im, struct held *h, struct prng *p)
{
	struct alloc *a = &im->w->alloc;
	unsigned k = h->n ? (unsigned)prng_below(p, h->n) : 0;

	switch (prng_below(p, 8)) {
	case 0:
	case 1:
	case 2:
		if (h->n + 20 < HELD_MAX) {
			struct alloc_run run = test_take_wait(im, 1 + prng_below(p, 20));

			for (uint64_t i = 0; i < run.n; i++) {
				h->is_fresh[h->n] = run.is_fresh;
				h->first[h->n++] = run.first + i;
			}
		}
		return;
	case 3:
		if (h->n) {
			h->n--;
			alloc_untake(a, h->first[h->n], 1, h->is_fresh[h->n]);
		}
		return;
	case 4:
		if (prng_below(p, 4) == 0)
			assert_int_equal(commit_wait(&im->w->commit), 0);
		return;
	default:
		if (h->n) {
			alloc_free(a, h->first[k], 1);
			h->first[k] = h->first[--h->n];
			h->is_fresh[k] = h->is_fresh[h->n];
		}
	}
}

static int model_body(void *arg)
{
	for (uint64_t seed = 1; seed <= 6; seed++) {
		struct held h = { .n = 0 };
		struct prng p = { seed };
		struct test_image im;

		open_wait(&im, arg);
		for (unsigned i = 0; i < 1500; i++) {
			one_step_wait(&im, &h, &p);
			if (i % 20 == 0)
				reserve_check_wait(&im, &h);
		}
		/* Whatever was freed is free after a clean close, what is held is not. */
		while (h.n > 3)
			alloc_free(&im.w->alloc, h.first[--h.n], 1);
		assert_int_equal(test_image_close_wait(&im), 0);
		assert_int_equal(test_image_open_wait(&im), 0);
		for (uint64_t c = TEST_IMAGE_USED; c < 2000; c++) {
			unsigned expected = 0;

			for (unsigned k = 0; k < h.n; k++)
				expected += h.first[k] == c;
			if (!alloc_is_metadata(&im.w->alloc, c, 1))
				assert_int_equal(test_count_wait(&im, c), expected);
		}
		close_wait(&im);
	}
	return 0;
}

/* Doubles where it was used up, halves where it was hardly touched, within its limits. */
static int target_body(void *arg)
{
	struct alloc *a;
	struct test_image im;
	uint64_t last;

	open_wait(&im, arg);
	a = &im.w->alloc;
	assert_int_equal(a->target, ALLOC_RESERVE_MIN);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	assert_int_equal(a->reserved, 0);       /* nobody has written: nothing is changed */
	for (unsigned i = 0; i < 13; i++) {
		last = a->target;
		for (uint64_t n = 0; n < last;)
			n += test_take_wait(&im, last - n).n;
		assert_int_equal(commit_wait(&im.w->commit), 0);
		assert_int_equal(a->target, MIN(2 * last, ALLOC_RESERVE_BYTES / CLUSTER));
		assert_true(a->reserved >= a->target / 2);
	}
	assert_int_equal(a->target, ALLOC_RESERVE_BYTES / CLUSTER);
	while (a->target > ALLOC_RESERVE_MIN) {
		last = a->target;
		test_take_wait(&im, 1);
		assert_int_equal(commit_wait(&im.w->commit), 0);
		assert_int_equal(a->target, MAX(last / 2, (uint64_t)ALLOC_RESERVE_MIN));
	}
	/* A trickle costs a page of refcounts now and then, and no sync of phase A. */
	last = im.w->commit.stats.meta_writes;
	for (unsigned i = 0; i < 40; i++) {
		assert_true(test_take_wait(&im, 1).is_durable);
		assert_false(a->needs_a);
		commit_note(&im.w->commit);
		assert_int_equal(commit_wait(&im.w->commit), 0);
	}
	assert_true(im.w->commit.stats.meta_writes - last <= 8);
	close_wait(&im);
	return 0;
}

/* A cluster that is taken before its refcount is durable needs phase A's sync; so does all that a
 * failed commit had. */
static int needs_a_body(void *arg)
{
	struct test_image im;
	unsigned ndurable = 0;
	struct alloc *a;

	open_wait(&im, arg);
	a = &im.w->alloc;
	assert_false(test_take_wait(&im, 1).is_durable);
	assert_true(alloc_cut(a));
	assert_false(alloc_cut(a));
	alloc_cut_end(a, 0);
	assert_true(test_take_wait(&im, 1).is_durable);
	assert_false(alloc_cut(a));
	alloc_cut_end(a, -EIO);
	assert_true(alloc_cut(a));
	assert_int_equal(alloc_fill_wait(a), 0);
	assert_true(test_take_wait(&im, 1).is_durable);      /* before lower ones that are not */
	alloc_cut_end(a, 0);
	for (unsigned i = 0; i < a->nruns; i++) /* but the cut does not make those durable */
		ndurable += a->runs[i].is_durable;
	assert_true(ndurable && ndurable < a->nruns);
	/* What was cut is durable soon: to take it needs nothing, if that commit ends well. */
	alloc_untake(a, 2000, 1, false);
	alloc_cut(a);
	while (a->runs[0].is_durable)
		test_take_wait(&im, 100);
	while (a->reserved > 1)                 /* what was filled in after the first cut */
		assert_true(test_take_wait(&im, 1).first < 2000);
	assert_int_equal(test_take_wait(&im, 1).first, 2000);
	alloc_cut_end(a, 0);
	assert_false(alloc_cut(a));
	alloc_cut_end(a, 0);
	test_image_close_wait(&im);             /* 2000 was made up: giving back fails or not */
	test_image_free_wait(&im);
	return 0;
}

/* A reserve of single clusters holds ALLOC_RUNS_MAX; what comes back then is freed. */
static int crowded_body(void *arg)
{
	struct test_image im;
	uint64_t taken[200], n = 0;
	struct alloc *a;

	open_wait(&im, arg);
	a = &im.w->alloc;
	while (n < ARRAY_SIZE(taken))
		taken[n++] = test_take_wait(&im, 1).first;
	while (a->nruns)
		test_take_wait(&im, 100);
	for (unsigned i = 0; i < n; i += 2)
		alloc_untake(a, taken[i], 1, false);
	assert_int_equal(a->nruns, ALLOC_RUNS_MAX);
	assert_int_equal(a->reserved, ALLOC_RUNS_MAX);
	assert_int_equal(a->quarantine.clusters, n / 2 - ALLOC_RUNS_MAX);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(a);
	assert_int_equal(test_count_wait(&im, taken[n - 2]), 0);
	assert_int_equal(test_count_wait(&im, taken[0]), 1);
	close_wait(&im);
	return 0;
}

/* The blocks cannot grow: what there is without them is handed out all the same. */
static int partial_body(void *arg)
{
	struct test_image im;
	struct alloc *a;

	test_image_make(&im, arg, BITS, 6, ROOM);
	assert_int_equal(test_image_open_wait(&im), 0);
	a = &im.w->alloc;
	a->target = 100;
	assert_int_equal(mark_set_wait(im.w), 0);
	im.mem->fail_kinds = 1 << REQ_FLUSH;
	im.mem->fail_after = 0;
	im.mem->fails_on = true;
	assert_int_equal(alloc_fill_wait(a), 0);
	assert_int_equal(a->reserved, 64 - TEST_IMAGE_USED);
	while (a->nruns)
		test_take_wait(&im, 100);
	assert_int_equal(alloc_fill_wait(a), -EIO);
	im.mem->fail_after = -1;
	assert_int_equal(alloc_fill_wait(a), 0);
	assert_int_equal(a->reserved, 100);
	close_wait(&im);
	return 0;
}

/* ---- fresh clusters ---- */

static int fresh_body(void *arg)
{
	struct test_image im;
	struct alloc_run run, again;

	open_wait(&im, arg);
	run = test_take_wait(&im, 5);
	assert_int_equal(run.first, TEST_IMAGE_USED);
	assert_true(run.is_fresh);
	alloc_untake(&im.w->alloc, run.first, 1, true);
	alloc_untake(&im.w->alloc, run.first + 1, 1, false);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	again = test_take_wait(&im, 5);
	assert_true(again.first == run.first && again.n == 1 && again.is_fresh);
	again = test_take_wait(&im, 5);
	assert_true(again.first == run.first + 1 && again.n == 1 && !again.is_fresh);
	alloc_free(&im.w->alloc, run.first, 5);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	while (im.w->alloc.nruns)
		test_take_wait(&im, 1000);
	again = test_take_wait(&im, 1000);
	assert_true(again.first == run.first && again.n == 5 && !again.is_fresh);
	close_wait(&im);

	test_image_make(&im, arg, BITS, 4, ROOM);
	im.mem->node.holes_read_zero = false;   /* a block device */
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_false(test_take_wait(&im, 5).is_fresh);
	close_wait(&im);

	/* The end of the file lies in the middle of a cluster. */
	test_image_make(&im, arg, BITS, 4, ROOM);
	atomic_store(&im.mem->node.size, 7 * CLUSTER + 1);
	assert_int_equal(test_image_open_wait(&im), 0);
	run = test_take_wait(&im, 100);
	assert_true(run.first == TEST_IMAGE_USED && run.n == 4 && !run.is_fresh);
	run = test_take_wait(&im, 100);
	assert_true(run.first == 8 && run.is_fresh);
	close_wait(&im);
	return 0;
}

/* ---- tables ---- */

/* The L1 table's own refcount is 0, as no good image has it. */
static int overlap_body(void *arg)
{
	struct test_image im;
	struct alloc_run run;

	test_image_make(&im, arg, BITS, 4, ROOM);
	be16_store(im.mem->bytes + TEST_IMAGE_REFBLOCK * CLUSTER + TEST_IMAGE_L1 * 2, 0);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(alloc_fill_wait(&im.w->alloc), -EUCLEAN);
	assert_int_equal(im.w->dead, -EUCLEAN);
	assert_false(alloc_take(&im.w->alloc, 1, &run));
	test_image_close_wait(&im);
	assert_int_equal(test_image_open_wait(&im), -EROFS);
	assert_true(test_image_was_corrupt(&im));

	im.broken = BREAK_Q6_OVERLAP;
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(test_take_wait(&im, 1).first, TEST_IMAGE_L1);
	test_image_close_wait(&im);
	test_image_free_wait(&im);

	/* An L2 entry that names the refcount table was discarded. */
	open_wait(&im, arg);
	im.w->discard = true;
	test_take_wait(&im, 1);
	alloc_free(&im.w->alloc, TEST_IMAGE_REFTABLE, 1);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	assert_int_equal(im.w->dead, -EUCLEAN);
	assert_int_equal(test_count_wait(&im, TEST_IMAGE_REFTABLE), 1);
	assert_int_equal(im.mem->ops[REQ_DISCARD], 0);
	test_image_close_wait(&im);
	test_image_free_wait(&im);
	return 0;
}

/* What an open finds: header, tables, blocks, L2 tables, snapshots and theirs. */
static int metadata_body(void *arg)
{
	struct qcow2_snapshot_disk s = { .l1_table_offset = be64_make(40 * CLUSTER + 8),
					 .l1_size = be32_make(2 * CLUSTER / 8) };
	struct qcow2_header_disk *h;
	struct test_image im;

	test_image_make(&im, arg, BITS, 4, ROOM);
	h = (void *)im.mem->bytes;
	h->nb_snapshots = be32_make(2);
	h->snapshots_offset = be64_make(30 * CLUSTER);
	be64_store(im.mem->bytes + TEST_IMAGE_L1 * CLUSTER + 8, 20 * CLUSTER | QCOW2_COPIED);
	be64_store(im.mem->bytes + TEST_IMAGE_REFTABLE * CLUSTER + 24, 25 * CLUSTER);
	memcpy(im.mem->bytes + 30 * CLUSTER, &s, sizeof(s));
	s.l1_table_offset = be64_make(50 * CLUSTER);
	memcpy(im.mem->bytes + 30 * CLUSTER + sizeof(s), &s, sizeof(s));
	assert_int_equal(test_image_open_wait(&im), 0);
	for (uint64_t c = 0; c < 100; c++) {
		bool expected = c < 4 || c == 20 || c == 25 || c == 30 || (c >= 40 && c < 43) ||
				c == 50 || c == 51;

		assert_int_equal(alloc_is_metadata(&im.w->alloc, c, 1), expected);
	}
	test_image_close_wait(&im);
	test_image_free_wait(&im);
	return 0;
}

/* ---- failing disks, and no memory ---- */

/* All of it, as far as it goes: take, free, commit, take again. 0, or the first error. */
static int life_wait(struct test_image *im, uint64_t *ret_kept)
{
	struct alloc *a = &im->w->alloc;
	struct alloc_run run = { 0 };
	int rc = 0, rc2;

	for (unsigned round = 0; round < 4 && !rc; round++) {
		while (!rc && !alloc_take(a, 7, &run))
			rc = alloc_fill_wait(a);
		if (rc)
			break;
		/* It keeps one cluster, and says so only once that is durable. */
		if (run.n > 1)
			alloc_free(a, run.first + 1, run.n - 1);
		commit_note(&im->w->commit);
		rc = commit_wait(&im->w->commit);
		if (!rc)
			*ret_kept = run.first;
		else
			alloc_free(a, run.first, 1);
	}
	rc2 = test_image_close_wait(im);
	return rc ? rc : rc2;
}

/* After whatever happened the image can be used, and what was kept has its refcount. */
static void usable_wait(struct test_image *im, uint64_t kept)
{
	assert_int_equal(test_image_open_wait(im), 0);
	if (kept)
		assert_true(test_count_wait(im, kept) >= 1);
	for (uint64_t c = 0; c < TEST_IMAGE_USED; c++)
		assert_int_equal(test_count_wait(im, c), 1);
	assert_true(test_take_wait(im, 1).first != kept);
	close_wait(im);
}

static int failing_disk_body(void *arg)
{
	for (int how = 0; how < 2; how++) {
		int rc = -EIO;

		for (int nth = 0; rc; nth++) {
			struct test_image im;
			uint64_t kept = 0;

			assert_true(nth < 200);
			test_image_make(&im, arg, BITS, 6, ROOM);
			im.mem->fails_on = how;
			im.mem->fail_after = nth;
			rc = test_image_open_wait(&im);
			if (!rc)
				rc = life_wait(&im, &kept);
			if (im.mem->fail_after >= 0 && !how)
				assert_int_equal(rc, 0);
			im.mem->fail_after = -1;
			usable_wait(&im, kept);
		}
	}
	return 0;
}

static int no_memory_body(void *arg)
{
	bool is_over = false;

	for (int nth = 0; !is_over; nth++) {
		struct test_image im;
		uint64_t kept = 0;
		int rc;

		assert_true(nth < 500);
		test_image_make(&im, arg, BITS, 6, ROOM);
		assert_int_equal(test_image_open_wait(&im), 0);
		allocations_left = nth;
		rc = life_wait(&im, &kept);
		is_over = allocations_left > 0;
		allocations_left = -1;
		if (is_over)
			assert_int_equal(rc, 0);
		usable_wait(&im, kept);
	}
	return 0;
}

/* ---- */

static void nothing_is_handed_out_twice_or_lost(void **state)
{
	test_image_run(model_body);
}

static void the_reserve_follows_the_writes(void **state)
{
	test_image_run(target_body);
}

static void q1_clusters_without_a_durable_refcount_need_phase_a(void **state)
{
	test_image_run(needs_a_body);
}

static void a_crowded_reserve_loses_nothing(void **state)
{
	test_image_run(crowded_body);
}

static void some_clusters_are_better_than_none(void **state)
{
	test_image_run(partial_body);
}

static void q2_fresh_clusters_were_never_used(void **state)
{
	test_image_run(fresh_body);
}

static void q6_tables_are_never_handed_out(void **state)
{
	test_image_run(overlap_body);
}

static void q6_an_open_finds_all_tables(void **state)
{
	test_image_run(metadata_body);
}

static void q9_disks_may_fail_at_every_place(void **state)
{
	test_image_run(failing_disk_body);
}

static void memory_may_end_at_every_place(void **state)
{
	test_image_run(no_memory_body);
}

static void drop(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_handed_out_twice_or_lost),
		cmocka_unit_test(the_reserve_follows_the_writes),
		cmocka_unit_test(q1_clusters_without_a_durable_refcount_need_phase_a),
		cmocka_unit_test(a_crowded_reserve_loses_nothing),
		cmocka_unit_test(some_clusters_are_better_than_none),
		cmocka_unit_test(q2_fresh_clusters_were_never_used),
		cmocka_unit_test(q6_tables_are_never_handed_out),
		cmocka_unit_test(q6_an_open_finds_all_tables),
		cmocka_unit_test(q9_disks_may_fail_at_every_place),
		cmocka_unit_test(memory_may_end_at_every_place),
	};

	log_set_sink(drop);
	return cmocka_run_group_tests_name("alloc", tests, NULL, NULL);
}
