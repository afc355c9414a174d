/* SPDX-License-Identifier: MIT */
/* Refcounts against an array, in all widths, over growth of the blocks and of the table; what is
 * durable when; and what a failing disk leaves. */
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

enum { MODEL_CLUSTERS = 1 << 20 };

struct world {
	struct test_image im;
	struct prng prng;
	uint64_t *model;                /* MODEL_CLUSTERS counts */
	uint64_t *blocks;               /* the refcount table as last seen */
	uint64_t nblocks;
	uint64_t table_off, table_clusters;
	unsigned moves;
	uint64_t end;                   /* clusters from here on were never looked at */
};

static struct refs *refs(struct world *wd)
{
	return &wd->im.w->refs;
}

/* What growth did to the counts. The old table's go down only after a commit. */
static void model_look(struct world *wd)
{
	const struct refs *r = refs(wd);
	uint64_t cluster = wd->im.w->cluster;

	for (uint64_t b = 0; b < r->table_entries; b++) {
		if (b < wd->nblocks && wd->blocks[b])
			continue;
		if (r->table[b])
			wd->model[r->table[b] / cluster] = 1;
	}
	if (wd->nblocks && r->table_off != wd->table_off) {
		for (uint64_t i = 0; i < r->table_entries * 8 / cluster; i++)
			wd->model[r->table_off / cluster + i] = 1;
		for (uint64_t i = 0; i < wd->table_clusters; i++)
			wd->model[wd->table_off / cluster + i] = 0;
		wd->moves++;
	}
	wd->table_off = r->table_off;
	wd->table_clusters = r->table_entries * 8 / cluster;
	free(wd->blocks);
	wd->nblocks = r->table_entries;
	wd->blocks = malloc(wd->nblocks * sizeof(*wd->blocks));
	memcpy(wd->blocks, r->table, wd->nblocks * sizeof(*wd->blocks));
}

static void world_open_wait(struct world *wd)
{
	assert_int_equal(test_image_open_wait(&wd->im), 0);
	assert_int_equal(mark_set_wait(wd->im.w), 0);
}

static void world_init_wait(struct world *wd, struct loop *l, unsigned cluster_bits, unsigned order,
			    uint64_t seed)
{
	*wd = (struct world){ .prng = { seed } };
	test_image_make(&wd->im, l, cluster_bits, order, 1ULL << 30);
	wd->model = calloc(MODEL_CLUSTERS, sizeof(*wd->model));
	for (unsigned i = 0; i < TEST_IMAGE_USED; i++)
		wd->model[i] = 1;
	world_open_wait(wd);
	model_look(wd);
}

static void world_fini_wait(struct world *wd)
{
	test_image_free_wait(&wd->im);
	free(wd->model);
	free(wd->blocks);
}

/* Commits; what quarantine held is free then. */
static void world_commit_wait(struct world *wd)
{
	assert_int_equal(commit_wait(&wd->im.w->commit), 0);
	alloc_settle_wait(&wd->im.w->alloc);
	model_look(wd);
}

static uint64_t model_first_free(const struct world *wd)
{
	uint64_t c = 0;

	while (c < MODEL_CLUSTERS && wd->model[c])
		c++;
	assert_true(c < MODEL_CLUSTERS);
	return c;
}

/* Finds, compares with the model, and takes what was found. */
static void find_and_take_wait(struct world *wd)
{
	struct refs *r = refs(wd);
	uint64_t want = 1 + prng_below(&wd->prng, 300), off = r->table_off, first = 0, n = 0;
	uint64_t per_page = (uint64_t)wd->im.w->meta.page_bytes * 8 >> r->order;

	assert_int_equal(refs_find_wait(r, want, &first, &n), 0);
	if (r->table_off != off)
		world_commit_wait(wd);          /* so that the model knows the old table's place */
	model_look(wd);
	assert_true(n >= 1 && n <= want);
	assert_int_equal(first / per_page, (first + n - 1) / per_page);
	for (uint64_t i = 0; i < n; i++)
		assert_int_equal(wd->model[first + i], 0);
	if (r->table_off == off)
		assert_int_equal(first, model_first_free(wd));
	assert_int_equal(refs_add_wait(r, first, n, 1), 0);
	for (uint64_t i = 0; i < n; i++)
		wd->model[first + i] = 1;
	wd->end = MAX(wd->end, first + n);
}

static bool holds_table(const struct world *wd, uint64_t c)
{
	return c < TEST_IMAGE_USED || alloc_is_metadata(&wd->im.w->alloc, c, 1);
}

/* Adds to a few clusters that hold no table; sometimes more than they bear. */
static void add_wait(struct world *wd)
{
	uint64_t n = 1 + prng_below(&wd->prng, prng_below(&wd->prng, 8) ? 6 : 700);
	uint64_t first = TEST_IMAGE_USED + prng_below(&wd->prng, wd->end + 20), k = 0;
	int delta = prng_below(&wd->prng, 3) ? -1 : 1, expected = 0;
	uint64_t limit = delta > 0 ? refs(wd)->max : 0;

	while (k < n && !holds_table(wd, first + k))
		k++;
	n = k;
	for (uint64_t i = 0; i < n; i++)
		if (wd->model[first + i] == limit ||
		    (first + i) >> refs(wd)->block_bits >= refs(wd)->table_used)
			expected = -ERANGE;
	if (!n)
		return;
	assert_int_equal(refs_add_wait(refs(wd), first, n, delta), expected);
	for (uint64_t i = 0; i < n && !expected; i++)
		wd->model[first + i] += (uint64_t)(int64_t)delta;
	if (!expected)
		wd->end = MAX(wd->end, first + n);
}

static void compare_wait(struct world *wd)
{
	uint64_t count = 0;

	for (uint64_t c = 0; c < wd->end + 3000; c++) {
		assert_int_equal(refs_get_wait(refs(wd), c, &count), 0);
		if (count != wd->model[c])
			fail_msg("cluster %llu: %llu, not %llu", (unsigned long long)c,
				 (unsigned long long)count, (unsigned long long)wd->model[c]);
	}
}

/* ---- against the model ---- */

static void one_width_wait(struct loop *l, unsigned cluster_bits, unsigned order)
{
	struct world wd;

	world_init_wait(&wd, l, cluster_bits, order, 77 + order);
	for (unsigned round = 0; round < 600; round++) {
		if (prng_below(&wd.prng, 3) == 0)
			find_and_take_wait(&wd);
		else
			add_wait(&wd);
		if (prng_below(&wd.prng, 50) == 0)
			world_commit_wait(&wd);
		if (prng_below(&wd.prng, 100) == 0) {
			assert_int_equal(test_image_close_wait(&wd.im), 0);
			world_open_wait(&wd);
		}
	}
	world_commit_wait(&wd);
	compare_wait(&wd);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_open_wait(&wd);
	compare_wait(&wd);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_fini_wait(&wd);
}

static int widths_body(void *arg)
{
	for (unsigned order = 0; order <= 6; order++) {
		one_width_wait(arg, 9, order);
		one_width_wait(arg, 13, order);
	}
	return 0;
}

/* Takes all clusters up to a table that moved twice. */
static int moves_body(void *arg)
{
	struct world wd;

	world_init_wait(&wd, arg, 9, 6, 5);
	while (wd.moves < 1)
		find_and_take_wait(&wd);
	/* The old table's cluster is the lowest free one. */
	assert_int_equal(model_first_free(&wd), TEST_IMAGE_REFTABLE);
	find_and_take_wait(&wd);
	assert_int_equal(wd.model[TEST_IMAGE_REFTABLE], 1);
	while (wd.moves < 2)
		find_and_take_wait(&wd);
	assert_true(refs(&wd)->table_entries >= 256);
	compare_wait(&wd);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_open_wait(&wd);
	compare_wait(&wd);
	find_and_take_wait(&wd);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_fini_wait(&wd);
	return 0;
}

/* A full image is searched once: what was seen to be full is not read again. */
static int search_body(void *arg)
{
	struct world wd;
	uint64_t first, n, reads;

	world_init_wait(&wd, arg, 9, 4, 6);
	for (unsigned i = 0; i < 200; i++)
		find_and_take_wait(&wd);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_open_wait(&wd);
	assert_true(refs(&wd)->table_used > 60);
	assert_int_equal(refs_find_wait(refs(&wd), 1, &first, &n), 0);
	assert_int_equal(refs_add_wait(refs(&wd), first, n, 1), 0);
	assert_int_equal(refs_find_wait(refs(&wd), 1, &first, &n), 0);
	reads = wd.im.mem->ops[REQ_READ];
	/* One is freed at the start, taken again, and the search goes on where it was. */
	for (unsigned i = 0; i < 50; i++) {
		uint64_t again;

		assert_int_equal(refs_add_wait(refs(&wd), 10, 1, -1), 0);
		assert_int_equal(refs_find_wait(refs(&wd), 9, &again, &n), 0);
		assert_true(again == 10 && n == 1);
		assert_int_equal(refs_add_wait(refs(&wd), 10, 1, 1), 0);
		assert_int_equal(refs_find_wait(refs(&wd), 9, &again, &n), 0);
		assert_int_equal(again, first);
	}
	assert_true(wd.im.mem->ops[REQ_READ] - reads <= 1);     /* the page of cluster 10 */
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_fini_wait(&wd);
	return 0;
}

/* ---- what is durable when ---- */

struct order {
	struct world *wd;
	uint64_t unsynced_from;         /* of the region that growth writes; UINT64_MAX: nothing */
	uint64_t base;                  /* bytes: from here on growth writes */
	unsigned too_early;             /* names that were written before what they name */
	bool names_unsynced;
};

static void order_watch(void *arg, const struct req *req)
{
	struct order *o = arg;

	if (req->kind == REQ_FLUSH) {
		o->unsynced_from = UINT64_MAX;
		o->names_unsynced = false;
	} else if (req->kind == REQ_WRITE && req->off >= o->base) {
		o->unsynced_from = req->off;
	} else if (req->kind == REQ_WRITE) {            /* table entries, or the header */
		o->too_early += o->unsynced_from != UINT64_MAX;
		o->names_unsynced = true;
	}
}

/* Fills up to the next growth, and counts what was written in a wrong order. */
static unsigned wrong_orders_wait(struct loop *l, uint64_t broken, bool until_move)
{
	struct order o = { .unsynced_from = UINT64_MAX };
	unsigned wrong = 0;
	struct world wd;

	world_init_wait(&wd, l, 9, 6, 9);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	wd.im.broken = broken;
	world_open_wait(&wd);
	o.wd = &wd;
	wd.im.mem->watch_arg = &o;
	for (bool over = false; !over;) {
		uint64_t used = refs(&wd)->table_used, off = refs(&wd)->table_off, first, n;

		o.base = used << refs(&wd)->block_bits << 9;
		wd.im.mem->watch = order_watch;
		assert_int_equal(refs_find_wait(refs(&wd), 64, &first, &n), 0);
		wd.im.mem->watch = NULL;
		if (refs(&wd)->table_used != used)
			wrong += o.names_unsynced || o.unsynced_from != UINT64_MAX;
		over = until_move ? refs(&wd)->table_off != off : refs(&wd)->table_used != used;
		assert_int_equal(refs_add_wait(refs(&wd), first, n, 1), 0);
	}
	test_image_close_wait(&wd.im);
	world_fini_wait(&wd);
	return wrong + o.too_early;
}

static int q8_body(void *arg)
{
	assert_int_equal(wrong_orders_wait(arg, 0, false), 0);
	assert_int_equal(wrong_orders_wait(arg, BREAK_Q8_GROW, false), 2);
	return 0;
}

static int q7_body(void *arg)
{
	assert_int_equal(wrong_orders_wait(arg, 0, true), 0);
	assert_int_equal(wrong_orders_wait(arg, BREAK_Q7_SWITCH, true), 1);
	return 0;
}

/* ---- damage and limits ---- */

static int damage_body(void *arg)
{
	struct test_image im;
	uint64_t count = 9;

	test_image_make(&im, arg, 9, 4, 1 << 20);
	be64_store(im.mem->bytes + TEST_IMAGE_REFTABLE * 512 + 40, 512 * 7 + 1);
	assert_int_equal(test_image_open_wait(&im), 0); /* reserved bits mean nothing yet */
	assert_int_equal(refs_get_wait(&im.w->refs, 1ULL << 40, &count), 0);
	assert_int_equal(count, 0);
	assert_int_equal(refs_add_wait(&im.w->refs, 1ULL << 40, 3, -1), -ERANGE);
	assert_int_equal(refs_add_wait(&im.w->refs, 254, 4, 1), -ERANGE);
	assert_int_equal(refs_get_wait(&im.w->refs, 255, &count), 0);
	assert_int_equal(count, 0);
	test_image_close_wait(&im);
	test_image_free_wait(&im);
	return 0;
}

/* Of an entry that is damaged nobody hears who does not need it. */
static int damaged_entry_body(void *arg)
{
	static const uint64_t damage[] = { 1ULL << 60 | 512, 513ULL << 9, 1ULL << 56 };
	struct test_image im;
	uint64_t first, n, count;

	for (unsigned i = 0; i < 3; i++) {
		unsigned bits = i == 1 ? 10 : 9;

		test_image_make(&im, arg, bits, 4, 1 << 20);
		be64_store(im.mem->bytes + (TEST_IMAGE_REFTABLE << bits) + 40,
			   damage[i]);
		assert_int_equal(test_image_open_wait(&im), 0);
		assert_int_equal(refs_find_wait(&im.w->refs, 1, &first, &n), 0);
		assert_int_equal(refs_add_wait(&im.w->refs, first, 1, 1), 0);
		assert_int_equal(commit_wait(&im.w->commit), 0);
		assert_int_equal(refs_add_wait(&im.w->refs, first, 1, -1), 0);
		assert_int_equal(refs_get_wait(&im.w->refs, 5ULL << im.w->refs.block_bits, &count),
				 -EUCLEAN);
		assert_int_equal(im.w->dead, -EUCLEAN);
		test_image_close_wait(&im);
		assert_true(test_image_was_corrupt(&im));
		test_image_free_wait(&im);
	}
	return 0;
}

static int overlap_body(void *arg)
{
	struct test_image im;
	uint64_t first, n;

	test_image_make(&im, arg, 9, 4, 1 << 20);

	/* A block that is the L1 table, too: the image is not written any more. */
	be64_store(im.mem->bytes + TEST_IMAGE_REFTABLE * 512 + 40, TEST_IMAGE_L1 * 512);
	assert_int_equal(test_image_open_wait(&im), 0);
	{
		struct meta_page *p;

		assert_int_equal(meta_get_wait(&im.w->meta, META_L1, TEST_IMAGE_L1 * 512, &p), 0);
		assert_int_equal(refs_add_wait(&im.w->refs, 5 * 256, 1, 1), -EUCLEAN);
		assert_int_equal(im.w->dead, -EUCLEAN);
		meta_put(&im.w->meta, p);
	}
	test_image_close_wait(&im);
	assert_true(test_image_was_corrupt(&im));

	/* The header's own block is missing: its place cannot be taken for a new one. */
	memset(im.mem->bytes + TEST_IMAGE_REFTABLE * 512, 0, 512);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(refs_find_wait(&im.w->refs, 1, &first, &n), -EUCLEAN);
	assert_int_equal(im.w->dead, -EUCLEAN);
	test_image_close_wait(&im);
	test_image_free_wait(&im);
	return 0;
}

/* The table is as large as QEMU lets it be. */
static int limit_body(void *arg)
{
	struct test_image im;
	uint64_t entries = QCOW2_REFTABLE_BYTES_MAX / 8, first, n;
	struct refs *r;

	test_image_make(&im, arg, 9, 4, 1 << 20);
	assert_int_equal(test_image_open_wait(&im), 0);
	r = &im.w->refs;
	free(r->table);
	free(r->full);
	r->table = calloc(entries, sizeof(*r->table));
	r->full = malloc((entries / 64 + 1) * sizeof(*r->full));
	memset(r->full, 0xff, (entries / 64 + 1) * sizeof(*r->full));
	for (uint64_t i = 0; i < entries; i++)
		r->table[i] = 512 * TEST_IMAGE_REFBLOCK;
	r->table_entries = r->table_used = entries;
	r->free_from = (entries - 5) << r->block_bits;
	assert_int_equal(refs_find_wait(r, 1, &first, &n), -EFBIG);
	assert_int_equal(refs_find_wait(r, 1, &first, &n), -EFBIG);
	test_image_close_wait(&im);
	test_image_free_wait(&im);
	return 0;
}

/* ---- failing disks ---- */

/* The n-th I/O of a growth fails, once or with all that follow; then it goes well. Returns whether
 * anything failed. */
static bool growth_fails_wait(struct loop *l, bool moves, bool fails_on, int nth)
{
	struct world wd;
	uint64_t first, n, used;
	int rc;

	world_init_wait(&wd, l, 9, 6, 11);
	do {
		find_and_take_wait(&wd);
		used = wd.model[(refs(&wd)->table_used << refs(&wd)->block_bits) - 1];
	} while (!used || (moves && refs(&wd)->table_used < refs(&wd)->table_entries));
	world_commit_wait(&wd);
	used = refs(&wd)->table_used;
	wd.im.mem->fails_on = fails_on;
	wd.im.mem->fail_after = nth;
	rc = refs_find_wait(refs(&wd), 7, &first, &n);
	wd.im.mem->fail_after = -1;
	if (rc) {
		assert_int_equal(rc, -EIO);
		assert_true(refs(&wd)->table_used >= used);
		assert_int_equal(refs_find_wait(refs(&wd), 7, &first, &n), 0);
	}
	world_commit_wait(&wd);
	assert_int_equal(refs_add_wait(refs(&wd), first, n, 1), 0);
	for (uint64_t i = 0; i < n; i++) {
		assert_int_equal(wd.model[first + i], 0);
		wd.model[first + i] = 1;
	}
	compare_wait(&wd);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_open_wait(&wd);
	compare_wait(&wd);
	assert_int_equal(test_image_close_wait(&wd.im), 0);
	world_fini_wait(&wd);
	return rc;
}

static int failing_body(void *arg)
{
	for (int how = 0; how < 4; how++) {
		int nth = 0;

		while (growth_fails_wait(arg, how & 1, how & 2, nth))
			nth++;
		assert_true(nth >= 4);          /* blocks, sync, names, sync */
	}
	return 0;
}

/* ---- */

static void counts_of_all_widths_agree_with_a_model(void **state)
{
	test_image_run(widths_body);
}

static void a_full_table_moves(void **state)
{
	test_image_run(moves_body);
}

static void what_was_full_is_not_read_again(void **state)
{
	test_image_run(search_body);
}

static void q8_blocks_are_durable_before_their_names(void **state)
{
	test_image_run(q8_body);
}

static void q7_a_table_is_durable_before_the_header_names_it(void **state)
{
	test_image_run(q7_body);
}

static void q6_damaged_tables_are_errors(void **state)
{
	test_image_run(damage_body);
	test_image_run(overlap_body);
}

static void q6_a_damaged_entry_counts_when_it_is_needed(void **state)
{
	test_image_run(damaged_entry_body);
}

static void the_largest_table_is_the_end(void **state)
{
	test_image_run(limit_body);
}

static void q9_a_growth_that_failed_can_be_done_again(void **state)
{
	test_image_run(failing_body);
}

static void drop(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(counts_of_all_widths_agree_with_a_model),
		cmocka_unit_test(a_full_table_moves),
		cmocka_unit_test(what_was_full_is_not_read_again),
		cmocka_unit_test(q8_blocks_are_durable_before_their_names),
		cmocka_unit_test(q7_a_table_is_durable_before_the_header_names_it),
		cmocka_unit_test(q6_damaged_tables_are_errors),
		cmocka_unit_test(q6_a_damaged_entry_counts_when_it_is_needed),
		cmocka_unit_test(the_largest_table_is_the_end),
		cmocka_unit_test(q9_a_growth_that_failed_can_be_done_again),
	};

	log_set_sink(drop);
	return cmocka_run_group_tests_name("refs", tests, NULL, NULL);
}
