/* SPDX-License-Identifier: MIT */
/* Long backing chains, built in memory: most layers have nothing for most slices, some are shorter,
 * some have other cluster sizes. What is read is compared with a model of the disk; what the cache
 * remembers of the way down, with the tables themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/prng.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/qcow2.h"
#include "loop/loop_thread.h"
#include "loop/work.h"

enum { DISK = 256 << 10, LAYERS_MAX = 70, FILE_BYTES = 2 * DISK };

/* ---- a file in memory ---- */

struct mem {
	struct node node;
	uint8_t bytes[FILE_BYTES];
};

static void mem_submit(struct chan *ch, struct req *req)
{
	const struct mem *m = container_of(ch->node, struct mem, node);

	assert_true(range_within(req->off, req->len, FILE_BYTES));
	req_copy_to(req, 0, m->bytes + req->off, req->len);
	req_finish(ch, req, 0);
}

static const struct node_ops mem_ops = {
	.name = "mem", .chan_size = sizeof(struct chan), .submit = mem_submit,
};

/* ---- chains ---- */

struct chain {
	struct loop *loops[2];
	struct loop_thread threads[2];
	struct workers *workers;
	struct qcow2_cache *cache;
	struct mem *files[LAYERS_MAX];          /* top first */
	struct node *nodes[LAYERS_MAX];
	unsigned nlayers;
	struct prng prng;
	bool is_hollow;                         /* only the last layer has anything */
	uint8_t model[DISK];
};

/* The L2 entry of the cluster at @off, in the bytes of the file; NULL: no table. */
static uint8_t *entry_at(struct mem *m, uint64_t off)
{
	unsigned bits = be32_get(((struct qcow2_header_disk *)(void *)m->bytes)->cluster_bits);
	uint64_t per_table = 1ULL << (2 * bits - 3), n = off % per_table >> bits;
	uint64_t table = be64_load(m->bytes + (2ULL << bits) + off / per_table * 8);

	return table ? m->bytes + (table & QCOW2_OFFSET_MASK) + 8 * n : NULL;
}

static uint64_t cluster_new(uint64_t *free_off, unsigned bits)
{
	uint64_t off = *free_off;

	*free_off += 1ULL << bits;
	assert_true(*free_off <= FILE_BYTES);
	return off;
}

static void put_cluster(struct chain *c, struct mem *m, uint64_t off, unsigned bits,
			uint64_t *free_off)
{
	uint64_t per_table = 1ULL << (2 * bits - 3), size = 1ULL << bits, host;
	uint8_t tag = (uint8_t)prng_next(&c->prng);

	if (!entry_at(m, off))
		be64_store(m->bytes + (2ULL << bits) + off / per_table * 8,
			   cluster_new(free_off, bits) | QCOW2_COPIED);
	host = cluster_new(free_off, bits);
	be64_store(entry_at(m, off), host | QCOW2_COPIED);
	for (uint64_t i = 0; i < size; i++)
		m->bytes[host + i] = (uint8_t)(tag + i / 64);
	memcpy(c->model + off, m->bytes + host, MIN(size, DISK - off));
}

/* Fills some slices of a layer, and in these few clusters. */
static void fill_layer(struct chain *c, struct mem *m, unsigned bits, uint64_t disk, bool is_full)
{
	uint64_t size = 1ULL << bits, free_off = 3 * size, seed = prng_next(&c->prng);

	for (uint64_t off = 0; off < disk; off += size) {
		bool is_wanted = mix64(seed + off / (size * 64)) % 4 == 0 &&
				 !prng_below(&c->prng, 16);

		if (is_full || (!c->is_hollow && is_wanted))
			put_cluster(c, m, off, bits, &free_off);
	}
}

static struct mem *layer_new(struct chain *c, unsigned bits, uint64_t disk, bool is_full)
{
	struct mem *m = calloc(1, sizeof(*m));
	struct qcow2_header_disk *d = (void *)m->bytes;

	assert_int_equal(node_init(&m->node, &mem_ops, "mem.img", c->loops[0]), 0);
	atomic_store(&m->node.size, FILE_BYTES);
	d->magic = be32_make(QCOW2_MAGIC);
	d->version = be32_make(3);
	d->cluster_bits = be32_make(bits);
	d->size = be64_make(disk);
	d->l1_size = be32_make((uint32_t)div_round_up(disk, 1ULL << (2 * bits - 3)));
	d->l1_table_offset = be64_make(2ULL << bits);
	d->refcount_table_offset = be64_make(1ULL << bits);
	d->refcount_table_clusters = be32_make(1);
	d->refcount_order = be32_make(4);
	d->header_length = be32_make(104);
	fill_layer(c, m, bits, disk, is_full);
	return m;
}

static uint64_t random_size(struct chain *c)
{
	switch (c->is_hollow ? 9 : prng_below(&c->prng, 12)) {
	case 0:
		return DISK / 2 + 512 * prng_below(&c->prng, 64);
	case 1:
		return DISK - 512;
	default:
		return DISK;
	}
}

static int open_chain(void *arg)
{
	static const uint8_t bits[] = { 9, 9, 9, 9, 9, 9, 10, 12 };
	struct chain *c = arg;
	uint64_t above = DISK;

	c->cache = qcow2_cache_new(0, c->loops[0]);
	assert_int_equal(cache_setup(c->cache, CACHE_SLICE_BYTES_MIN), 0);
	/* From below, so that the model can be written over. */
	for (unsigned i = c->nlayers; i-- > 0;) {
		unsigned b = c->is_hollow ? 9 : bits[prng_below(&c->prng, ARRAY_SIZE(bits))];
		uint64_t size = i ? random_size(c) : DISK;

		if (size < above)
			memset(c->model + size, 0, DISK - size);
		c->files[i] = layer_new(c, b, size, c->is_hollow && i + 1 == c->nlayers);
		memset(c->model + size, 0, DISK - size);
		above = size;
	}
	for (unsigned i = 0; i < c->nlayers; i++) {
		struct qcow2_opts opts = { .cache = c->cache };

		assert_int_equal(qcow2_open_wait(&c->files[i]->node, &opts, &c->nodes[i], NULL), 0);
		if (i)
			assert_int_equal(node_attach_wait(c->nodes[i - 1], CHILD_BACKING,
							  c->nodes[i], NULL), 0);
	}
	return 0;
}

static int close_chain(void *arg)
{
	struct chain *c = arg;

	node_put_wait(c->nodes[0]);
	qcow2_cache_free(c->cache);
	return 0;
}

static struct chain *chain_new(unsigned nlayers, bool is_hollow, uint64_t seed, unsigned nloops)
{
	struct chain *c = calloc(1, sizeof(*c));
	struct loop_opts o = { .backend = nloops > 1 ? LOOP_AUTO : LOOP_SIM, .sim_seed = seed };

	c->nlayers = nlayers;
	c->is_hollow = is_hollow;
	c->prng.state = seed;
	if (nloops > 1)
		assert_int_equal(workers_new(2, &c->workers, NULL), 0);
	o.workers = c->workers;
	for (unsigned i = 0; i < nloops; i++) {
		assert_int_equal(loop_new(&o, &c->loops[i], NULL), 0);
		if (nloops > 1)
			assert_int_equal(loop_thread_start(&c->threads[i], c->loops[i], "t", NULL),
					 0);
	}
	loop_call(c->loops[0], open_chain, c);
	return c;
}

static void chain_free(struct chain *c)
{
	loop_call(c->loops[0], close_chain, c);
	for (unsigned i = 0; i < 2; i++) {
		if (c->workers)
			loop_thread_stop(&c->threads[i]);
		else
			loop_free(c->loops[i]);
	}
	workers_free(c->workers);
	free(c);
}

/* ---- reading ---- */

struct reads {
	struct chain *c;
	struct loop *loop;
	uint64_t seed;
	unsigned count;
	unsigned wrong;
};

static int read_some(void *arg)
{
	struct reads *r = arg;
	struct prng p = { r->seed };
	static _Thread_local uint8_t buf[8192];
	struct chan *ch;

	assert_int_equal(chan_get_wait(r->c->nodes[0], &ch, NULL), 0);
	for (unsigned i = 0; i < r->count; i++) {
		uint64_t off = prng_below(&p, DISK);
		uint64_t len = 1 + prng_below(&p, MIN((uint64_t)sizeof(buf), DISK - off));

		assert_int_equal(chan_read_wait(ch, off, buf, len), 0);
		r->wrong += memcmp(buf, r->c->model + off, len) != 0;
	}
	chan_put_wait(ch);
	return 0;
}

/* C4 for the part @part of the slice @slice of layer @from, by the tables. */
static void check_next(struct chain *c, unsigned from, unsigned next, uint64_t slice, unsigned part)
{
	const struct qcow2 *q = c->cache->images[from];
	uint64_t bytes = 1ULL << (q->slice_shift - CACHE_PART_BITS);
	uint64_t off = (slice << q->slice_shift) + part * bytes;
	uint64_t end = MIN(off + bytes, (uint64_t)c->nodes[from]->size);

	assert_true(next > from && next < c->nlayers);
	for (unsigned i = from + 1; i < next; i++) {
		assert_true(c->nodes[i]->size >= end);
		for (uint64_t at = off; at < end; at += 512) {
			const uint8_t *entry = entry_at(c->files[i], at);

			assert_true(!entry || !be64_load(entry));
		}
	}
}

/* Checks all; returns how many there are. */
static unsigned check_nexts(struct chain *c)
{
	size_t slots = (size_t)CACHE_WAYS << c->cache->set_bits;
	unsigned n = 0;

	assert_true(cache_valid(c->cache));
	for (size_t i = 0; i < slots * CACHE_PARTS; i++) {
		uint64_t word = c->cache->nexts[i], key = word & CACHE_KEY_MASK;
		unsigned next = (unsigned)(word >> CACHE_NEXT_SHIFT) & CACHE_LAYERS_MAX;

		if (!next)
			continue;
		check_next(c, (unsigned)(key >> CACHE_LAYER_SHIFT) - 1, next - 1,
			   key & (CACHE_SLICES_MAX - 1), i % CACHE_PARTS);
		n++;
	}
	return n;
}

static void c4_what_is_passed_by_has_nothing(void **state)
{
	unsigned n = 0;

	for (uint64_t seed = 0; seed < 40; seed++) {
		struct chain *c = chain_new(2 + (unsigned)seed % 24, false, seed, 1);

		for (unsigned i = 0; i < 5; i++) {
			struct reads r = { .c = c, .seed = seed + 1000 * i, .count = 150 };

			loop_call(c->loops[0], read_some, &r);
			assert_int_equal(r.wrong, 0);
			n += check_nexts(c);
		}
		chain_free(c);
	}
	assert_true(n > 1000);
}

/* That reads do go where the cache sends them, so that the test above can fail. */
static void a_wrong_next_is_noticed(void **state)
{
	struct chain *c = chain_new(12, false, 4, 1);
	struct reads r = { .c = c, .seed = 5, .count = 300 };

	loop_call(c->loops[0], read_some, &r);
	assert_int_equal(r.wrong, 0);
	for (uint64_t slice = 0; slice < DISK >> 15; slice++)
		for (unsigned i = 0; i < 11 * CACHE_PARTS; i++)
			cache_set_next(c->cache, cache_key(i / CACHE_PARTS, slice),
				       i % CACHE_PARTS, 12 | CACHE_LAST);
	loop_call(c->loops[0], read_some, &r);
	assert_true(r.wrong > 0);
	chain_free(c);
}

static unsigned next_of_top(struct chain *c)
{
	bool is_empty;
	long slot = cache_find(c->cache, cache_key(0, 0), &is_empty);

	assert_true(slot >= 0);
	return cache_next(c->cache, slot, cache_key(0, 0), 0);
}

static int read_once(void *arg)
{
	struct chain *c = arg;
	uint8_t byte;

	assert_int_equal(chan_read_wait(c->nodes[0]->home_chan, 0, &byte, 1), 0);
	assert_int_equal(byte, c->model[0]);
	return 0;
}

static void a_deep_chain_is_short_after_a_few_reads(void **state)
{
	struct chain *c = chain_new(LAYERS_MAX, true, 1, 1);

	/* The steps double: 2, 4, ... 64, and the rest. */
	for (unsigned i = 0; i < 8; i++)
		loop_call(c->loops[0], read_once, c);
	assert_int_equal(next_of_top(c), LAYERS_MAX);
	assert_true(check_nexts(c) > 0);
	chain_free(c);
}

static void *read_on_loop(void *arg)
{
	struct reads *r = arg;

	loop_call(r->loop, read_some, r);
	return NULL;
}

static void c4_holds_while_two_loops_read(void **state)
{
	for (uint64_t seed = 0; seed < 6; seed++) {
		struct chain *c = chain_new(20, false, seed, 2);
		struct reads r[2];
		pthread_t callers[2];

		for (unsigned i = 0; i < 2; i++) {
			r[i] = (struct reads){ c, c->loops[i], 3 + i, 1500, 0 };
			pthread_create(&callers[i], NULL, read_on_loop, &r[i]);
		}
		for (unsigned i = 0; i < 2; i++) {
			pthread_join(callers[i], NULL);
			assert_int_equal(r[i].wrong, 0);
		}
		check_nexts(c);
		chain_free(c);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c4_what_is_passed_by_has_nothing),
		cmocka_unit_test(a_wrong_next_is_noticed),
		cmocka_unit_test(a_deep_chain_is_short_after_a_few_reads),
		cmocka_unit_test(c4_holds_while_two_loops_read),
	};

	return cmocka_run_group_tests_name("qcow2_chain", tests, NULL, NULL);
}
