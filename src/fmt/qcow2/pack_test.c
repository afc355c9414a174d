/* SPDX-License-Identifier: MIT */
/* Compressed writes: at random and compared with a model, with faults, on two loops; what reaches
 * the file, and that it is the same every time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/err.h"
#include "base/log.h"
#include "base/zero.h"
#include "fmt/qcow2/create.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/test_disk.h"
#include "loop/work.h"

enum { DISK_BYTES = TEST_SCALE > 1 ? 5 << 20 : 9 << 20, DEPTH = 24 };
/* Large enough for workers to compress them, small enough for two tables. */
enum { PARTS_CLUSTER = 8 << 10, TABLE_BYTES = 8 << 20 };
enum { FILE_BYTES = 64 << 20, BLOCK = 4096 };

static const uint64_t sizes[] = { [9] = 150 * 1024, [12] = 900 * 1024, [14] = 1200 * 1024,
				  [16] = 3000 * 1024, [21] = 4100 * 1024 };

static struct test_cell cell_of(unsigned i)
{
	static const unsigned bits[] = { 9, 12, 16, 21, 14 };
	static const unsigned refcount_bits[] = { 16, 1, 2, 64, 8 };
	unsigned version = i % 7 == 3 ? 2 : 3;
	struct test_cell c = { .version = version, .cluster_bits = bits[i % 5], .backing = i % 3,
			       .discard = i % 2, .writethrough = i % 11 == 0,
			       .is_extended = version == 3 && i % 5 == 4,
			       .refcount_bits = version == 3 ? refcount_bits[i / 5 % 5] : 16,
			       .packs_every = 1 + i % 4, .packs_all = i % 4 == 1,
			       .packs_zstd = version == 3 && i % 2, .packs_small_window = false };

	c.packs_small_window = !c.packs_zstd && i % 3 == 1;
	c.packs_level = i % 6 == 5 ? 9 : 1;
	c.size = sizes[c.cluster_bits];
	return c;
}

static void z6_z7_compressed_writes_agree_with_the_model(void **state)
{
	for (unsigned i = 0; i < 20; i++) {
		struct test_cell c = cell_of(i);

		test_disk_random(&c, 7000 + i, 30 / TEST_SCALE + 5);
	}
}

static void q9_x3_errors_leave_old_or_new(void **state)
{
	static const unsigned kinds[] = { 0, 1 << REQ_WRITE, 1 << REQ_READ, 1 << REQ_FLUSH };

	for (unsigned i = 0; i < 80 / TEST_SCALE_FAULTS; i++) {
		struct test_cell c = cell_of(i);

		if (c.cluster_bits == 21)
			continue;
		c.size = align_up(c.size / 3, 512);
		test_disk_faults(&c, 8000 + i, (int)(i * 7 % 61), kinds[i % 4]);
	}
}

static void z3_two_loops_write_one_disk(void **state)
{
	for (unsigned i = 0; i < 4; i++) {
		struct test_cell c = { .version = 3, .cluster_bits = i % 2 ? 12 : 16,
				       .backing = i % 3, .discard = i % 2, .packs_every = 2,
				       .packs_all = i > 1, .packs_level = 1, .size = 600 * 1024 };

		test_disk_two_loops(&c, 9000 + i);
	}
}

static int stream_of_small_writes(void *arg)
{
	struct test_disk *d = arg;
	uint8_t buf[4096];
	struct iovec iov = { buf, sizeof(buf) };

	memset(buf, 9, sizeof(buf));
	for (uint64_t off = 0; off < 4 << 16; off += sizeof(buf)) {
		struct test_ask a = { .req = { .kind = REQ_WRITE, .off = off, .len = sizeof(buf),
					       .iov = &iov, .iovcnt = 1 } };

		assert_int_equal(test_ask_wait(d, &a), 0);
		test_model_write(d, off, buf, sizeof(buf), 0);
	}
	return 0;
}

static void small_writes_gather_in_memory(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .packs_all = true,
			       .size = 1 << 20 };
	struct test_disk *d = test_disk_new(&c, LOOP_SIM, 1, 1);

	loop_call(d->loops[0], test_disk_open, d);
	loop_call(d->loops[0], test_disk_open_port, d);
	loop_call(d->loops[0], stream_of_small_writes, d);
	assert_int_equal(loop_call(d->loops[0], test_disk_flush, d), 0);
	assert_int_equal(d->w->pack.npacked, 4);
	assert_int_equal(d->w->pack.njoined, 4 * 15);
	loop_call(d->loops[0], test_disk_close_port, d);
	loop_call(d->loops[0], test_disk_close, d);
	loop_call(d->loops[0], test_disk_verify, d);
	test_disk_free(d);
}

static int read_wait(struct test_disk *d, uint64_t off, uint8_t *buf, uint64_t len)
{
	struct iovec iov = { buf, len };
	struct test_ask a = { .req = { .kind = REQ_READ, .off = off, .len = len, .iov = &iov,
				       .iovcnt = 1 } };

	return test_ask_wait(d, &a);
}

/* A part of a cluster is read that is damaged, and then is not. */
static int damaged_body(void *arg)
{
	struct test_disk *d = arg;
	uint8_t buf[4096], saved[512], *at;
	unsigned off_bits = 62 - (d->cell.cluster_bits - 8);
	struct l2_at l2;
	int rc;

	stream_of_small_writes(d);
	assert_int_equal(test_disk_flush(d), 0);
	assert_int_equal(l2_get_wait(d->w, 0, false, &l2), 0);
	at = d->file->bytes + (l2_pair(d->w, &l2, 0).entry & ((1ULL << off_bits) - 1));
	assert_true(l2_pair(d->w, &l2, 0).entry & QCOW2_COMPRESSED);
	l2_put(d->w, &l2);
	memcpy(saved, at, sizeof(saved));
	memset(at, 0xff, sizeof(saved));
	assert_int_equal(read_wait(d, 4096, buf, sizeof(buf)), -EIO);
	memcpy(at, saved, sizeof(saved));
	rc = read_wait(d, 8192, buf, sizeof(buf));
	assert_int_equal(rc, d->cell.broken ? -EIO : 0);
	if (!rc)
		test_model_check(d, buf, 8192, sizeof(buf));
	return 0;
}

static void silent(enum log_level level, const char *line)
{
}

static void z2_keeping_what_does_not_inflate_is_caught(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .packs_all = true,
			       .size = 1 << 20 };

	log_set_sink(silent);
	test_disk_with(&c, 1, damaged_body);
	c.broken = BREAK_Z2_KEPT;
	test_disk_with(&c, 1, damaged_body);
	log_set_sink(NULL);
}

/* ---- what reaches the file ---- */

/* What somebody who converts does: writes whole clusters in order, DEPTH at a time. */
struct stream {
	struct task task;
	struct stream_all *all;
	uint8_t *buf;
};

struct stream_all {
	struct loop *loop;
	struct qcow2_opts opts;
	uint64_t cluster;
	uint64_t piece;                 /* X5: plain writes in order, so long but for gaps */
	bool is_filled;                 /* over what is there, compressed; in two laps */
	bool is_mixed;                  /* some is zeroed instead, and not all clusters are whole */
	struct test_mem *file;
	struct node *node;
	struct stream streams[DEPTH];
	uint64_t next, end;
	unsigned running;
	struct fiber *waiter;
	/* Of what is not metadata, which is written in pages. */
	uint64_t nwrites, nsmall, nunaligned;
	bool can_grow;
	uint64_t ngrowing;              /* writes of any kind that made the file longer */
	uint64_t nagain;                /* blocks that were written before, or read afterwards */
	uint8_t is_written[FILE_BYTES / BLOCK];
};

/* Compresses to about a third; now and then to nothing, or not at all. */
static void content(uint64_t off, uint8_t *buf, uint64_t len)
{
	struct prng p = { mix64(off) };
	uint64_t how = prng_below(&p, 8);

	for (uint64_t i = 0; i < len; i++)
		buf[i] = how == 0 ? 7 : how == 1 ? (uint8_t)prng_next(&p) :
			 prng_below(&p, 3) ? (uint8_t)(i >> 5) : (uint8_t)prng_below(&p, 64);
}

/* Whole sectors at the end of what @req is. */
static void make_plain(struct req *req)
{
	struct prng p = { mix64(req->off) };
	uint64_t skip = prng_below(&p, req->len / 512) * 512;

	req->flags = REQ_IN_ORDER;
	req->off += skip;
	req->len -= skip;
}

/* What is left of a cluster, zeroed in part, needs another one; and a table is asked for first by
 * what is compressed in part. */
static void make_mixed(struct req *req)
{
	uint64_t how = is_aligned(req->off, TABLE_BYTES) ? 1 : mix64(req->off) % 4;

	req->flags |= REQ_IN_ORDER;
	if (how > 1)
		return;
	req->len /= 2;
	if (how)
		return;
	req->kind = REQ_ZERO;
	req->flags = REQ_IN_ORDER;
}

static uint64_t step_of(const struct stream_all *a)
{
	return a->piece ? a->piece : a->cluster;
}

static void stream_fiber(struct task *t)
{
	struct stream *s = container_of(t, struct stream, task);
	struct stream_all *a = s->all;

	while (a->next < a->end) {
		struct req req = { .kind = REQ_WRITE, .flags = REQ_COMPRESSED, .off = a->next,
				   .len = MIN(step_of(a), a->end - a->next), .iovcnt = 1 };
		struct iovec iov = { s->buf, step_of(a) };

		a->next += req.len;
		if (a->piece)
			make_plain(&req);
		else if (a->is_mixed)
			make_mixed(&req);
		req.iov = &iov;
		content(req.off, s->buf, req.len);
		assert_int_equal(chan_submit_wait(a->node->home_chan, &req), 0);
		/* Commits fill the reserve, whenever they come. */
		if (a->piece && req.off % 4096 < 2048)
			assert_int_equal(chan_flush_wait(a->node->home_chan), 0);
	}
	if (!--a->running)
		fiber_wake(a->waiter);
}

static void watch(void *arg, const struct req *req)
{
	struct stream_all *a = arg;

	bool is_data = req->kind == REQ_WRITE && req->len > BLOCK;

	a->ngrowing += req->kind == REQ_WRITE && req->off + req->len > a->file->node.size;
	for (uint64_t at = align_down(req->off, BLOCK); at < req->off + req->len; at += BLOCK) {
		a->nagain += a->is_written[at / BLOCK];
		a->is_written[at / BLOCK] |= is_data;
	}
	if (!is_data)
		return;
	a->nwrites++;
	a->nsmall += req->len < 64 << 10;
	a->nunaligned += !is_aligned(req->off | req->len, BLOCK);
}

/* All up to @end. */
static void streams_wait(struct stream_all *a, uint64_t end)
{
	a->end = end;
	a->running = DEPTH;
	a->waiter = fiber_self();
	for (unsigned i = 0; i < DEPTH; i++) {
		a->streams[i] = (struct stream){ .task.fn = stream_fiber, .all = a,
						 .buf = aligned_alloc(4096, step_of(a)) };
		fiber_start(a->loop, &a->streams[i].task);
	}
	while (a->running)
		fiber_park();
	for (unsigned i = 0; i < DEPTH; i++)
		free(a->streams[i].buf);
}

/* Compressed clusters all over the disk. */
static void fill_wait(struct stream_all *a)
{
	uint8_t *buf = aligned_alloc(4096, align_up(a->cluster, 4096));

	for (uint64_t off = 0; off < DISK_BYTES; off += a->cluster) {
		struct iovec iov = { buf, a->cluster };
		struct req req = { .kind = REQ_WRITE, .flags = REQ_COMPRESSED | REQ_IN_ORDER,
				   .off = off, .len = a->cluster, .iov = &iov, .iovcnt = 1 };

		content(off + DISK_BYTES, buf, a->cluster);
		assert_int_equal(chan_submit_wait(a->node->home_chan, &req), 0);
	}
	assert_int_equal(chan_flush_wait(a->node->home_chan), 0);
	free(buf);
}

static int stream_wait(void *arg)
{
	struct stream_all *a = arg;
	struct qcow2_create_opts co = { .size = DISK_BYTES, .version = 3,
					.cluster_size = a->cluster };
	struct err err = { 0 };

	a->file = test_mem_new(a->loop, FILE_BYTES);
	a->file->node.holes_read_zero = true;
	assert_int_equal(qcow2_create_wait(&a->file->node, NULL, &co, &err), 0);
	a->opts.cache = qcow2_cache_new(0, a->loop);
	a->opts.writable = true;
	assert_int_equal(qcow2_open_wait(node_get(&a->file->node), &a->opts, &a->node, &err), 0);
	a->file->can_grow = a->can_grow;
	a->file->watch = watch;
	a->file->watch_arg = a;
	if (a->is_filled) {
		fill_wait(a);
		streams_wait(a, DISK_BYTES / 8);
		assert_int_equal(qcow2_reuse_wait(a->node), 0);
	}
	streams_wait(a, DISK_BYTES);
	assert_int_equal(node_settle_wait(a->node, &err), 0);
	node_put_wait(a->node);
	qcow2_cache_free(a->opts.cache);
	return 0;
}

static int drop(void *arg)
{
	node_put_wait(arg);
	return 0;
}

/* The bytes of the file; *@ret_len of them, owned. */
static uint8_t *stream_run(struct stream_all *a, enum loop_backend backend, unsigned threads,
			   uint64_t seed, uint64_t *ret_len)
{
	struct loop_opts lo = { .backend = backend, .sim_seed = seed };
	struct workers *ws = NULL;
	uint8_t *bytes;

	if (backend != LOOP_SIM)
		assert_int_equal(workers_new(threads, &ws, NULL), 0);
	lo.workers = ws;
	assert_int_equal(loop_new(&lo, &a->loop, NULL), 0);
	loop_call(a->loop, stream_wait, a);
	*ret_len = atomic_load(&a->file->node.size);
	bytes = malloc(*ret_len);
	memcpy(bytes, a->file->bytes, *ret_len);
	loop_call(a->loop, drop, &a->file->node);
	loop_free(a->loop);
	workers_free(ws);
	return bytes;
}

/* Does each of several runs of what @first is make the same bytes? All but one with @broken. */
static bool is_alike(const struct stream_all *first, uint64_t broken)
{
	struct stream_all a = *first;
	uint64_t len, other_len;
	uint8_t *bytes = stream_run(&a, LOOP_SIM, 0, 1, &len), *other;
	bool is_same = true;

	/* Where races are looked for, only those with threads. */
	for (unsigned n = HAS_TSAN ? 2 : 0; n < 4; n++) {
		a = *first;
		a.opts.broken = broken;
		other = stream_run(&a, n < 2 ? LOOP_SIM : LOOP_AUTO, n, 2 + n, &other_len);
		is_same &= !memcmp(other, bytes, MIN(len, other_len));
		/* The reserve, which no file keeps but one that cannot be cut. */
		is_same &= bytes_are_zero(len > other_len ? bytes + other_len : other + len,
					  MAX(len, other_len) - MIN(len, other_len));
		free(other);
	}
	free(bytes);
	return is_same;
}

static void z10_any_number_of_threads_makes_the_same_bytes(void **state)
{
	static const unsigned bits[] = { 16, 12, 21 };

	for (unsigned i = 0; i < ARRAY_SIZE(bits); i++)
		assert_true(is_alike(&(struct stream_all){ .cluster = 1ULL << bits[i] }, 0));
}

/* With a refcount table that is outgrown; a disk that is made smaller for a sanitizer's sake does
 * not do that. */
static void x5_growth_does_not_depend_on_commits(void **state)
{
	static const unsigned bits[] = { 9, 10 };

	for (unsigned i = 0; i < ARRAY_SIZE(bits); i++) {
		struct stream_all a = { .cluster = 1ULL << bits[i], .piece = 192 << 10 };

		assert_true(is_alike(&a, 0));
		assert_true(TEST_SCALE > 1 || !is_alike(&a, BREAK_X5_ANY_GROWTH));
	}
}

static void x5_what_is_in_order_lies_at_the_same_place(void **state)
{
	static const unsigned bits[] = { 12, 16 };
	unsigned nseen = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(bits); i++) {
		struct stream_all a = { .cluster = 1ULL << bits[i], .piece = 192 << 10 };

		assert_true(is_alike(&a, 0));
		nseen += !is_alike(&a, BREAK_X5_ANY_ORDER);
	}
	assert_int_equal(nseen, ARRAY_SIZE(bits));
}

/* Each has its turn, for its table, too. */
static void x5_compressed_or_not_does_not_matter(void **state)
{
	static const struct stream_all cells[] = {
		{ .cluster = 65536, .is_mixed = true, .is_filled = true },
		{ .cluster = 4096, .is_mixed = true, .is_filled = true },
		{ .cluster = PARTS_CLUSTER, .is_mixed = true },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cells); i++) {
		assert_true(is_alike(&cells[i], 0));
		assert_true(TEST_SCALE > 1 || !is_alike(&cells[i], BREAK_X5_ANY_ORDER));
	}
}

static void x5_what_becomes_free_does_not_depend_on_commits(void **state)
{
	struct stream_all a = { .cluster = 4096, .piece = 8 << 10, .is_filled = true };

	assert_true(is_alike(&a, 0));
	assert_true(TEST_SCALE > 1 || !is_alike(&a, BREAK_X5_ANY_REUSE));
}

static void z5_each_write_is_large_aligned_and_new(void **state)
{
	for (unsigned bits = 16; bits <= 21; bits += 5) {
		struct stream_all *a = calloc(1, sizeof(*a));
		uint64_t len;

		a->cluster = 1ULL << bits;
		a->can_grow = true;
		free(stream_run(a, LOOP_SIM, 0, 5, &len));
		assert_int_equal(a->ngrowing, 0);
		assert_true(a->nwrites > 1);
		assert_true(a->nsmall <= 1);    /* the last one */
		assert_int_equal(a->nunaligned, 0);
		assert_int_equal(a->nagain, 0);
		/* Where there is no other way, writes do. */
		*a = (struct stream_all){ .cluster = 1ULL << bits };
		free(stream_run(a, LOOP_SIM, 0, 5, &len));
		assert_true(a->ngrowing > 0);
		free(a);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(z6_z7_compressed_writes_agree_with_the_model),
		cmocka_unit_test(q9_x3_errors_leave_old_or_new),
		cmocka_unit_test(z3_two_loops_write_one_disk),
		cmocka_unit_test(small_writes_gather_in_memory),
		cmocka_unit_test(z2_keeping_what_does_not_inflate_is_caught),
		cmocka_unit_test(z10_any_number_of_threads_makes_the_same_bytes),
		cmocka_unit_test(x5_what_is_in_order_lies_at_the_same_place),
		cmocka_unit_test(x5_compressed_or_not_does_not_matter),
		cmocka_unit_test(x5_growth_does_not_depend_on_commits),
		cmocka_unit_test(x5_what_becomes_free_does_not_depend_on_commits),
		cmocka_unit_test(z5_each_write_is_large_aligned_and_new),
	};

	return cmocka_run_group_tests_name("qcow2_pack", tests, NULL, NULL);
}
