/* SPDX-License-Identifier: MIT */
/* Small images with tables drawn at random, checked and compared with a model that counts one
 * reference after the other. What each kind of damage is called is tested against the reference, by
 * tests/img-check.sh. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/err.h"
#include "base/prng.h"
#include "fmt/qcow2/check_impl.h"
#include "fmt/qcow2/qcow2.h"

/* ---- a file in memory ---- */

struct mem {
	struct node node;
	uint8_t *bytes;
	uint64_t len;
	int fail_after;                 /* reads until one fails; < 0: never */
	uint64_t bytes_read;
};

static void mem_answer(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct mem *m = container_of(req->ch->node, struct mem, node);
	uint64_t in = req->off < m->len ? MIN(req->len, m->len - req->off) : 0;

	assert_int_equal(req->kind, REQ_READ);
	m->bytes_read += req->len;
	if (m->fail_after >= 0 && m->fail_after-- == 0) {
		req_complete(req, -EIO);
		return;
	}
	req_copy_to(req, 0, m->bytes + req->off, in);
	req_zero_part(req, in, req->len - in);
	req_complete(req, 0);
}

static void mem_submit(struct chan *ch, struct req *req)
{
	const struct mem *m = container_of(ch->node, struct mem, node);

	/* Y3, but for the header, which is read before anybody knows how long it is. */
	assert_true(!req->off || req->off < m->len);
	req->ch = ch;
	req->task.fn = mem_answer;
	loop_defer(ch->loop, &req->task);
}

static int mem_allocated_wait(struct node *n, uint64_t *ret)
{
	*ret = container_of(n, struct mem, node)->len;
	return 0;
}

static void mem_free(struct node *n)
{
	free(container_of(n, struct mem, node));
}

static const struct node_ops mem_ops = {
	.name = "mem", .chan_size = sizeof(struct chan), .submit = mem_submit, .free = mem_free,
	.allocated_wait = mem_allocated_wait,
};

/* ---- images: clusters of 512 bytes ---- */

enum {
	BITS = 9, CLUSTER = 1 << BITS, CLUSTERS = 700, TABLE = CLUSTER / 8,
	L1_ENTRIES = 12, SNAPSHOTS = 5,
	AT_REFTABLE = 1, AT_BLOCKS = 2, NBLOCKS = 3, AT_L1 = 5, AT_SNAPSHOTS = 11, AT_L2 = 12,
	NTABLES = 8, AT_DATA = AT_L2 + NTABLES,
};

struct image {
	struct mem *mem;
	struct qcow2_check expected, found;
	uint64_t bytes_read;
	unsigned said;
	int rc;
	struct err err;
};

static uint8_t bytes[CLUSTERS * CLUSTER];

static void put(unsigned cluster, unsigned word, uint64_t v)
{
	be64_store(bytes + cluster * CLUSTER + word * 8, v);
}

static uint64_t get(unsigned cluster, unsigned word)
{
	return be64_load(bytes + cluster * CLUSTER + word * 8);
}

static void build_header(void)
{
	struct qcow2_header_disk h = {
		.magic = be32_make(QCOW2_MAGIC), .version = be32_make(3),
		.cluster_bits = be32_make(BITS), .size = be64_make(L1_ENTRIES * TABLE * CLUSTER),
		.l1_size = be32_make(L1_ENTRIES), .l1_table_offset = be64_make(AT_L1 * CLUSTER),
		.refcount_table_offset = be64_make(AT_REFTABLE * CLUSTER),
		.refcount_table_clusters = be32_make(1), .nb_snapshots = be32_make(SNAPSHOTS),
		.snapshots_offset = be64_make(AT_SNAPSHOTS * CLUSTER),
		.refcount_order = be32_make(4), .header_length = be32_make(QCOW2_HEADER_V3_BYTES),
	};
	struct qcow2_snapshot_disk s = { .l1_size = be32_make(L1_ENTRIES),
					 .extra_size = be32_make(16) };

	memset(bytes, 0, sizeof(bytes));
	memcpy(bytes, &h, QCOW2_HEADER_V3_BYTES);
	for (unsigned i = 0; i < SNAPSHOTS; i++) {
		s.l1_table_offset = be64_make((AT_L1 + 1 + i) * CLUSTER);
		memcpy(bytes + AT_SNAPSHOTS * CLUSTER + i * 56, &s, sizeof(s));
	}
	for (unsigned i = 0; i < NBLOCKS; i++)
		put(AT_REFTABLE, i, (AT_BLOCKS + i) * CLUSTER);
}

/* Tables that name each other and the data in every way but a wrong one. */
static void build_tables(struct prng *p)
{
	for (unsigned t = 0; t < NTABLES; t++)
		for (unsigned i = 0; i < TABLE; i++) {
			uint64_t off = (AT_DATA + prng_below(p, CLUSTERS - AT_DATA)) * CLUSTER;
			uint64_t flags = prng_below(p, 2) * QCOW2_COPIED |
					 (prng_below(p, 8) ? 0 : QCOW2_ZERO);

			if (prng_below(p, 2))
				put(AT_L2 + t, i, off | flags);
		}
	for (unsigned l1 = AT_L1; l1 < AT_L1 + 1 + SNAPSHOTS; l1++)
		for (unsigned i = 0; i < L1_ENTRIES; i++)
			if (prng_below(p, 3))
				put(l1, i, (AT_L2 + prng_below(p, NTABLES)) * CLUSTER |
				    prng_below(p, 2) * QCOW2_COPIED);
}

/* ---- the model ---- */

static uint64_t counts[CLUSTERS];

static unsigned refcount(unsigned k)
{
	return be16_load(bytes + AT_BLOCKS * CLUSTER + k * 2);
}

static void model_count(struct qcow2_check *c)
{
	memset(counts, 0, sizeof(counts));
	for (unsigned k = 0; k < AT_L2; k++)
		counts[k] = 1;
	for (unsigned l1 = AT_L1; l1 < AT_L1 + 1 + SNAPSHOTS; l1++)
		for (unsigned i = 0; i < L1_ENTRIES; i++) {
			unsigned table = (unsigned)((get(l1, i) & QCOW2_OFFSET_MASK) / CLUSTER);

			if (!table)
				continue;
			counts[table]++;
			for (unsigned e = 0; e < TABLE; e++) {
				if (!get(table, e))
					continue;
				counts[(get(table, e) & QCOW2_OFFSET_MASK) / CLUSTER]++;
				c->allocated += l1 == AT_L1;
			}
		}
}

static bool model_copied_is_wrong(uint64_t entry)
{
	unsigned k = (unsigned)((entry & QCOW2_OFFSET_MASK) / CLUSTER);

	return k && (refcount(k) == 1) != !!(entry & QCOW2_COPIED);
}

static void model_compare(struct qcow2_check *c)
{
	for (unsigned k = 0; k < CLUSTERS; k++) {
		c->corruptions += refcount(k) < counts[k];
		c->leaks += refcount(k) > counts[k];
		if (refcount(k) || counts[k])
			c->image_end = (k + 1) * CLUSTER;
	}
	for (unsigned i = 0; i < L1_ENTRIES; i++) {
		unsigned table = (unsigned)((get(AT_L1, i) & QCOW2_OFFSET_MASK) / CLUSTER);

		c->corruptions += model_copied_is_wrong(get(AT_L1, i));
		for (unsigned e = 0; table && e < TABLE; e++)
			c->corruptions += model_copied_is_wrong(get(table, e));
	}
}

/* ---- running ---- */

static void count_lines(void *arg, bool is_named, char *text)
{
	struct image *im = arg;

	im->said++;
}

static int check_wait(void *arg)
{
	struct image *im = arg;
	const struct qcow2_check_say say = { .fn = count_lines, .arg = im };
	struct qcow2_cache *cache = qcow2_cache_new(1 << 20, im->mem->node.home);
	struct qcow2_opts qo = { .cache = cache, .for_check = true };
	int fail_after = im->mem->fail_after;
	struct err err = { 0 };
	struct node *n;

	im->mem->fail_after = -1;
	assert_int_equal(node_open_home_wait(&im->mem->node, &err), 0);
	assert_int_equal(qcow2_open_wait(&im->mem->node, &qo, &n, &err), 0);
	im->mem->fail_after = fail_after;
	im->mem->bytes_read = 0;
	im->rc = qcow2_check_wait(n, &say, &im->found, &im->err);
	im->bytes_read = im->mem->bytes_read;
	node_put_wait(n);
	qcow2_cache_free(cache);
	return 0;
}

/* Checks what is in @bytes, in a file of @len. Returns whether a read failed. */
static bool run(struct image *im, uint64_t len, int fail_after)
{
	struct loop_opts lo = { .backend = LOOP_SIM };
	struct loop *l;

	assert_int_equal(loop_new(&lo, &l, NULL), 0);
	im->mem = calloc(1, sizeof(*im->mem));
	assert_int_equal(node_init(&im->mem->node, &mem_ops, "mem.img", l), 0);
	im->mem->bytes = bytes;
	im->mem->len = len;
	im->mem->node.size = len;
	im->mem->fail_after = fail_after;
	im->said = 0;
	loop_call(l, check_wait, im);
	loop_free(l);
	return im->rc || im->found.check_errors;
}

static void expect_equal(const struct image *im)
{
	assert_int_equal(im->rc, 0);
	assert_int_equal(im->found.corruptions, im->expected.corruptions);
	assert_int_equal(im->found.leaks, im->expected.leaks);
	assert_int_equal(im->found.check_errors, 0);
	assert_int_equal(im->found.allocated, im->expected.allocated);
	assert_int_equal(im->found.image_end, im->expected.image_end);
}

/* Y1: tables shared by the active state and snapshots, refcounts right, nearly right, anything. */
static void y1_findings_are_those_of_a_model(void **state)
{
	for (unsigned seed = 0; seed < 200; seed++) {
		struct image im = { 0 };
		struct prng p = { seed };

		build_header();
		build_tables(&p);
		model_count(&im.expected);
		for (unsigned k = 0; k < CLUSTERS; k++)
			be16_store(bytes + AT_BLOCKS * CLUSTER + k * 2, (uint16_t)(
				   seed % 4 == 0 ? counts[k] :
				   prng_below(&p, 20) ? counts[k] : prng_below(&p, 3)));
		model_compare(&im.expected);
		run(&im, sizeof(bytes), -1);
		expect_equal(&im);
	}
}

/* Y2: an L1 table of which every entry names one L2 table, whose cluster names itself. */
static void y2_tables_named_often_are_read_once(void **state)
{
	struct image im = { 0 };

	build_header();
	be32_store(bytes + 36, 64 * TABLE);
	be32_store(bytes + 60, 0);
	for (unsigned i = 0; i < 64 * TABLE; i++)
		put(100, i, 50 * CLUSTER);
	be64_store(bytes + 40, 100 * CLUSTER);
	for (unsigned i = 0; i < TABLE; i++)
		put(50, i, 60 * CLUSTER);
	run(&im, sizeof(bytes), -1);
	assert_int_equal(im.rc, 0);
	assert_int_equal(im.found.allocated, 64 * TABLE * TABLE);
	assert_true(im.bytes_read < 4 * sizeof(bytes));
	/* 262144 references, of which 65535 can be counted. */
	assert_true(im.said > 2 * (262144 - 65536));
}

/* Y3: mem_submit() looks at where reads begin. */
static void y3_nothing_behind_the_end_is_read(void **state)
{
	for (unsigned seed = 0; seed < 300; seed++) {
		struct image im = { 0 };
		struct prng p = { seed };
		uint64_t len = (1 + prng_below(&p, CLUSTERS * 2)) * (CLUSTER / 2);

		build_header();
		build_tables(&p);
		for (unsigned i = 0; i < 50; i++)
			put(1 + (unsigned)prng_below(&p, AT_DATA),
			    (unsigned)prng_below(&p, TABLE), prng_next(&p) >> prng_below(&p, 60));
		run(&im, MIN(len, sizeof(bytes)), -1);
	}
}

/* Each read in turn fails: the check ends, and says so. */
static void an_unreadable_table_is_an_error(void **state)
{
	struct prng p = { 3 };
	unsigned failed = 0;

	build_header();
	build_tables(&p);
	for (int n = 0;; n++) {
		struct image im = { 0 };

		if (!run(&im, sizeof(bytes), n))
			break;
		failed++;
		assert_true(n < 1000);
	}
	assert_true(failed > 10);
}

/* More clusters than are counted: given up before anything is read, and a word about why. */
static void a_file_with_too_many_clusters_is_not_checked(void **state)
{
	struct image im = { 0 };

	build_header();
	be32_store(bytes + 60, 0);
	run(&im, (uint64_t)CHECK_CLUSTERS_MAX * CLUSTER + CLUSTER, -1);
	assert_int_equal(im.rc, -EFBIG);
	assert_string_equal(im.err.text,
			    "the file has 2147483648 clusters, and only 2147483647 can be checked");
	assert_int_equal(im.found.check_errors, 1);
	assert_int_equal(im.said, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(y1_findings_are_those_of_a_model),
		cmocka_unit_test(y2_tables_named_often_are_read_once),
		cmocka_unit_test(y3_nothing_behind_the_end_is_read),
		cmocka_unit_test(an_unreadable_table_is_an_error),
		cmocka_unit_test(a_file_with_too_many_clusters_is_not_checked),
	};

	return cmocka_run_group_tests_name("qcow2_check", tests, NULL, NULL);
}
