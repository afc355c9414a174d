/* SPDX-License-Identifier: MIT */
/* What a chain says of itself: three layers in memory, of which each has something, and an image
 * far larger than anybody would want to walk through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/qcow2.h"

enum { FILE_BYTES = 64 << 10, BITS = 9, CLUSTER = 1 << BITS };
enum { L1_AT = 2 * CLUSTER, L2_AT = 3 * CLUSTER, DATA_AT = 8 * CLUSTER };

struct mem {
	struct node node;
	uint8_t bytes[FILE_BYTES];
	unsigned reads;
};

static void mem_submit(struct chan *ch, struct req *req)
{
	struct mem *m = container_of(ch->node, struct mem, node);

	if (req->kind == REQ_MAP) {
		req->map = (struct map_run){ .len = req->len, .host_off = req->off,
			.flags = MAP_DATA | MAP_PRESENT | MAP_HOST, .file = &m->node };
	} else if (range_within(req->off, req->len, FILE_BYTES)) {
		req_copy_to(req, 0, m->bytes + req->off, req->len);
	} else {
		req_zero_part(req, 0, req->len);
	}
	m->reads += req->kind == REQ_READ;
	req_finish(ch, req, 0);
}

static void mem_free(struct node *n)
{
	free(container_of(n, struct mem, node));
}

static const struct node_ops mem_ops = {
	.name = "mem", .chan_size = sizeof(struct chan), .submit = mem_submit, .free = mem_free,
};

static struct mem *mem_new(uint64_t size)
{
	struct mem *m = calloc(1, sizeof(*m));

	assert_int_equal(node_init(&m->node, &mem_ops, "mem.img", loop_current()), 0);
	atomic_store(&m->node.size, size);
	return m;
}

/* An image of @size bytes with room for 32 entries in its first L2 table. */
static struct mem *image_new(unsigned bits, uint64_t size, const uint64_t *entries, unsigned n)
{
	struct mem *m = mem_new(FILE_BYTES);
	struct qcow2_header_disk *d = (void *)m->bytes;

	d->magic = be32_make(QCOW2_MAGIC);
	d->version = be32_make(3);
	d->cluster_bits = be32_make(bits);
	d->size = be64_make(size);
	d->l1_size = be32_make((uint32_t)div_round_up(size, 1ULL << (2 * bits - 3)));
	d->l1_table_offset = be64_make(2ULL << bits);
	d->refcount_table_offset = be64_make(1ULL << bits);
	d->refcount_table_clusters = be32_make(1);
	d->refcount_order = be32_make(4);
	d->header_length = be32_make(104);
	if (n)
		be64_store(m->bytes + L1_AT, L2_AT | QCOW2_COPIED);
	for (unsigned i = 0; i < n; i++)
		be64_store(m->bytes + L2_AT + 8 * i, entries[i]);
	return m;
}

static struct node *open_wait(struct mem *m, struct qcow2_cache *cache, struct node *backing)
{
	struct qcow2_opts opts = { .cache = cache };
	struct err err = { 0 };
	struct node *n;

	if (qcow2_open_wait(&m->node, &opts, &n, &err))
		fail_msg("%s", err.text);
	if (backing)
		assert_int_equal(node_attach_wait(n, CHILD_BACKING, backing, NULL), 0);
	return n;
}

static void run(int (*fn)(void *arg))
{
	struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = 1 };
	struct loop *l;

	assert_int_equal(loop_new(&o, &l, NULL), 0);
	loop_call(l, fn, NULL);
	loop_free(l);
}

/* ---- a chain ---- */

struct expected {
	unsigned clusters, depth, flags;
	uint64_t host_off;
	unsigned file;                  /* 0: the top's */
};

static const struct expected all[] = {
	{ 1, 1, MAP_DATA | MAP_PRESENT | MAP_HOST, DATA_AT, 1 },
	{ 1, 1, MAP_ZERO | MAP_PRESENT, 0, 0 },
	{ 1, 0, MAP_DATA | MAP_PRESENT | MAP_HOST, DATA_AT, 0 },
	{ 1, 0, MAP_ZERO | MAP_PRESENT | MAP_HOST, DATA_AT + CLUSTER, 0 },
	{ 1, 2, MAP_DATA | MAP_PRESENT | MAP_HOST, 4 * CLUSTER, 2 },
	{ 3, 1, MAP_ZERO, 0, 0 },       /* behind the end of the lowest */
	{ 2, 0, MAP_ZERO, 0, 0 },       /* behind the end of the middle one */
};

static int chain_body(void *arg)
{
	static const uint64_t top[] = { 0, 0, DATA_AT | QCOW2_COPIED,
		(DATA_AT + CLUSTER) | QCOW2_COPIED | QCOW2_ZERO };
	static const uint64_t middle[] = { DATA_AT | QCOW2_COPIED, QCOW2_ZERO };
	struct qcow2_cache *cache = qcow2_cache_new(0, loop_current());
	struct mem *files[] = { image_new(BITS, 10 * CLUSTER, top, 4),
				image_new(BITS, 8 * CLUSTER, middle, 2), mem_new(5 * CLUSTER) };
	struct node *n = open_wait(files[1], cache, &files[2]->node);
	struct chan *ch;
	uint64_t off = 0;

	n = open_wait(files[0], cache, n);
	assert_int_equal(chan_get_wait(n, &ch, NULL), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
		struct req req = { .kind = REQ_MAP, .off = off, .len = 10 * CLUSTER - off };

		assert_int_equal(chan_submit_wait(ch, &req), 0);
		assert_int_equal(req.map.len, all[i].clusters * CLUSTER);
		assert_int_equal(req.map.depth, all[i].depth);
		assert_int_equal(req.map.flags, all[i].flags);
		if (req.map.flags & MAP_HOST) {
			assert_int_equal(req.map.host_off, all[i].host_off);
			assert_ptr_equal(req.map.file, &files[all[i].file]->node);
		}
		off += req.map.len;
	}
	assert_int_equal(off, 10 * CLUSTER);
	chan_put_wait(ch);
	node_put_wait(n);
	qcow2_cache_free(cache);
	return 0;
}

static void e1_e2_each_run_names_its_layer(void **state)
{
	run(chain_body);
}

/* ---- a large image ---- */

static int large_body(void *arg)
{
	uint64_t size = 1ULL << 60;
	struct qcow2_cache *cache = qcow2_cache_new(0, loop_current());
	struct mem *m = image_new(21, size, NULL, 0);
	struct node *n = open_wait(m, cache, NULL);
	unsigned before = m->reads, runs = 0;
	struct chan *ch;

	assert_int_equal(chan_get_wait(n, &ch, NULL), 0);
	for (uint64_t off = 0; off < size; runs++) {
		struct req req = { .kind = REQ_MAP, .off = off, .len = size - off };

		assert_int_equal(chan_submit_wait(ch, &req), 0);
		assert_int_equal(req.map.flags, MAP_ZERO);
		off += req.map.len;
	}
	assert_int_equal(runs, 1);
	/* The L1 table, a page at a time. */
	assert_true(m->reads - before <= (size >> 39) * 8 / L1_PAGE_BYTES + 1);
	/* Who asks for little does not pay for all of it. */
	struct req few = { .kind = REQ_MAP, .off = size / 2, .len = 1 << 20 };

	before = m->reads;
	assert_int_equal(chan_submit_wait(ch, &few), 0);
	assert_true(m->reads - before <= 1);
	chan_put_wait(ch);
	node_put_wait(n);
	qcow2_cache_free(cache);
	return 0;
}

static void an_empty_image_costs_its_l1_table(void **state)
{
	run(large_body);
}

/* ---- reading ahead ---- */

static int ahead_body(void *arg)
{
	uint64_t cluster = 65536, size = 512ULL << 20;
	struct qcow2_cache *cache = qcow2_cache_new(0, loop_current());
	struct mem *m = image_new(16, size, NULL, 0);
	struct node *n;
	struct chan *ch;
	unsigned before;

	/* One L2 table, behind the end of the bytes: it reads as zeros. */
	n = open_wait(m, cache, NULL);
	qcow2_of(n)->l1_off = 0x200;    /* in the header's cluster, where there is room */
	be64_store(m->bytes + 0x200, 4 * cluster | QCOW2_COPIED);
	before = m->reads;
	assert_int_equal(chan_get_wait(n, &ch, NULL), 0);
	for (uint64_t off = 0; off < size;) {
		struct req req = { .kind = REQ_MAP, .off = off, .len = size - off };

		assert_int_equal(chan_submit_wait(ch, &req), 0);
		off += req.map.len;
	}
	assert_true(m->reads - before <= 1 + 2);        /* L1; 16 slices, LOAD_AHEAD_BYTES each */
	chan_put_wait(ch);
	node_put_wait(n);
	qcow2_cache_free(cache);
	return 0;
}

static void a_table_is_read_at_once(void **state)
{
	run(ahead_body);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(e1_e2_each_run_names_its_layer),
		cmocka_unit_test(an_empty_image_costs_its_l1_table),
		cmocka_unit_test(a_table_is_read_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
