/* SPDX-License-Identifier: MIT */
/* The simulator itself: that it keeps what must be kept, loses what may be lost, and that its judge
 * sees what is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/bits.h"
#include "base/test_scale.h"
#include "sim/oracle.h"

enum { DISK = 64 << 10, FATES = 24 };

/* A disk and a fiber that writes to it. */
struct rig {
	struct world w;
	struct sim_pages start, medium;
	struct sim_log log;
	struct sim_fault fault;
	struct node *n;
	struct chan *ch;
	bool is_device;
	bool skips_sync;
	uint64_t seed;
	int res;
};

static int open_disk(void *arg)
{
	struct rig *r = arg;
	struct sim_disk_opts o = { .name = "disk", .world = &r->w, .home = r->w.loops[0],
				   .is_device = r->is_device, .size = r->is_device ? DISK : 0,
				   .pages = &r->medium, .log = &r->log, .fault = &r->fault,
				   .seed = r->seed };

	assert_int_equal(sim_disk_open_wait(&o, &r->n), 0);
	r->ch = r->n->home_chan;
	return 0;
}

static int close_disk(void *arg)
{
	node_put_wait(((struct rig *)arg)->n);
	return 0;
}

static void rig_run(struct rig *r, int (*fn)(void *arg), uint64_t seed)
{
	r->seed = seed;
	sim_pages_init(&r->start, NULL, r->is_device ? 99 : 0);
	sim_pages_init(&r->medium, &r->start, r->start.garbage);
	sim_log_init(&r->log);
	world_init(&r->w, 1, seed);
	world_call(&r->w, 0, open_disk, r);
	r->res = world_call(&r->w, 0, fn, r);
}

static void rig_end(struct rig *r)
{
	world_call(&r->w, 0, close_disk, r);
	world_fini(&r->w);
	sim_log_fini(&r->log);
	sim_pages_fini(&r->medium);
	sim_pages_fini(&r->start);
}

static void put(struct rig *r, uint64_t off, uint8_t byte, uint64_t len)
{
	uint8_t buf[8192];

	memset(buf, byte, len);
	assert_int_equal(chan_write_wait(r->ch, off, buf, len), 0);
}

static uint8_t byte_at(struct crash *c, uint64_t off)
{
	uint8_t byte;

	if (off >= c->size)
		return 0;
	sim_pages_read(&c->image, off, &byte, 1);
	return byte;
}

/* Calls fn for the image of each event and some fates. */
static void each_image(struct rig *r, void (*fn)(struct crash *c, void *arg), void *arg)
{
	struct crash c;

	crash_init(&c, &r->log, &r->start, r->is_device ? DISK : 0, r->is_device);
	for (uint32_t k = 0; k <= r->log.nevents; k++) {
		crash_advance(&c, k);
		for (uint64_t fate = 0; fate < FATES; fate++) {
			crash_make(&c, fate);
			fn(&c, arg);
		}
	}
	crash_fini(&c);
}

/* ---- kept, lost, torn ---- */

static int two_generations(void *arg)
{
	struct rig *r = arg;

	put(r, 0, 'a', 4096);
	assert_int_equal(chan_flush_wait(r->ch), 0);
	put(r, 0, 'b', 4096);
	return 0;
}

struct seen {
	uint32_t flushed;               /* the event after which 'a' is durable */
	unsigned lost, kept, torn, growth_lost;
};

static void look_at_generations(struct crash *c, void *arg)
{
	struct seen *s = arg;
	unsigned n[256] = { 0 };

	for (unsigned i = 0; i < 8; i++)
		n[byte_at(c, i * 512)]++;
	assert_int_equal(n[0] + n['a'] + n['b'], 8);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(byte_at(c, i), byte_at(c, i / 512 * 512));
	if (c->at >= s->flushed) {
		assert_int_equal(n[0], 0);
		s->lost += n['a'] == 8;
		s->kept += n['b'] == 8;
		s->torn += n['a'] && n['b'];
	} else {
		s->growth_lost += c->at > 2 && !c->size;
	}
}

static void what_was_flushed_stays_and_the_rest_is_kept_lost_or_torn(void **state)
{
	struct seen s = { 0 };

	for (uint64_t seed = 0; seed < 20; seed++) {
		struct rig r = { 0 };

		rig_run(&r, two_generations, seed);
		s.flushed = r.log.ops[1].done + 1;
		each_image(&r, look_at_generations, &s);
		rig_end(&r);
	}
	assert_true(s.lost > 20 && s.kept > 20 && s.torn > 20 && s.growth_lost > 20);
}

/* ---- what a sync covers ---- */

struct async {
	struct req req;
	struct iovec iov;
	uint8_t buf[512];
	bool is_done;
};

static void async_done(struct req *req, int res)
{
	container_of(req, struct async, req)->is_done = true;
}

static void async_put(struct rig *r, struct async *a, uint64_t off, uint8_t byte)
{
	memset(a->buf, byte, sizeof(a->buf));
	a->iov = (struct iovec){ a->buf, sizeof(a->buf) };
	a->is_done = false;
	a->req = (struct req){ .done = async_done, .kind = REQ_WRITE, .off = off, .len = 512,
			       .iov = &a->iov, .iovcnt = 1 };
	chan_submit(r->ch, &a->req);
}

/* Op 0 is under way while op 1 is synced. */
static int sync_meanwhile(void *arg)
{
	static struct async a;
	struct rig *r = arg;

	async_put(r, &a, 0, 'x');
	put(r, 512, 'y', 512);
	assert_int_equal(chan_flush_wait(r->ch), 0);
	while (!a.is_done)
		fiber_yield_wait();
	return 0;
}

static void count_missing(struct crash *c, void *arg)
{
	const struct sim_op *x = &c->log->ops[0], *y = &c->log->ops[1], *sync = &c->log->ops[2];
	unsigned *missing = arg;

	if (c->at <= sync->done)
		return;
	assert_true(y->done < sync->submit);
	assert_int_equal(byte_at(c, 512), 'y');
	if (byte_at(c, 0) == 'x')
		return;
	assert_true(x->done > sync->submit);
	missing[x->done < sync->done]++;
}

/* Nor does it cover what was done before it was, but not before it began. */
static void a_sync_covers_what_was_done_before_it_was_submitted(void **state)
{
	unsigned missing[2] = { 0 };

	for (uint64_t seed = 0; seed < 100; seed++) {
		struct rig r = { 0 };

		rig_run(&r, sync_meanwhile, seed);
		each_image(&r, count_missing, missing);
		rig_end(&r);
	}
	assert_true(missing[0] && missing[1]);
}

static int fua(void *arg)
{
	struct rig *r = arg;
	uint8_t buf[512];
	struct iovec iov = { buf, sizeof(buf) };
	struct req req = { .kind = REQ_WRITE, .flags = REQ_FUA, .off = 512, .len = 512,
			   .iov = &iov, .iovcnt = 1 };

	put(r, 0, 'x', 512);
	memset(buf, 'y', sizeof(buf));
	return chan_submit_wait(r->ch, &req);
}

static void look_at_fua(struct crash *c, void *arg)
{
	unsigned *lost = arg;

	if (c->at <= c->log->ops[1].done)
		return;
	assert_int_equal(byte_at(c, 512), 'y');
	*lost += byte_at(c, 0) != 'x';
}

static void fua_covers_its_own_write_alone(void **state)
{
	struct rig r = { 0 };
	unsigned lost = 0;

	rig_run(&r, fua, 5);
	each_image(&r, look_at_fua, &lost);
	assert_true(lost);
	rig_end(&r);
}

/* ---- media ---- */

static int write_at_8k(void *arg)
{
	put(arg, 8192, 'z', 512);
	return 0;
}

static void count_zeros(struct crash *c, void *arg)
{
	unsigned *zeros = arg;

	for (uint64_t off = 0; off < 8192; off++)
		zeros[!byte_at(c, off)]++;
}

static void holes_are_zeros_in_a_file_and_garbage_on_a_device(void **state)
{
	struct rig file = { 0 }, device = { .is_device = true };
	unsigned n[2] = { 0 };

	rig_run(&file, write_at_8k, 1);
	each_image(&file, count_zeros, n);
	assert_int_equal(n[0], 0);
	rig_end(&file);
	n[1] = 0;
	rig_run(&device, write_at_8k, 1);
	each_image(&device, count_zeros, n);
	assert_true(n[0] > 100 * n[1]);
	rig_end(&device);
}

static int three_ways_to_fail(void *arg)
{
	struct rig *r = arg;
	uint8_t buf[4096] = { 1 };
	int rc;

	r->fault = (struct sim_fault){ 1 << SIM_WRITE, ENOSPC, 2, 1, 0, 0 };
	put(r, 0, 'a', 4096);
	assert_int_equal(chan_write_wait(r->ch, 0, buf, 4096), -ENOSPC);
	put(r, 4096, 'b', 512);
	r->fault = (struct sim_fault){ SIM_READS, EIO, 1, 1, 0, 0 };
	assert_int_equal(chan_read_wait(r->ch, 0, buf, 512), -EIO);
	assert_int_equal(chan_read_wait(r->ch, 0, buf, 512), 0);
	r->fault = (struct sim_fault){ 1 << SIM_SYNC, EIO, 1, 1, 0, 0 };
	assert_int_equal(chan_flush_wait(r->ch), -EIO);
	rc = chan_flush_wait(r->ch);
	return rc;
}

static void expect_never_flushed(struct crash *c, void *arg)
{
	unsigned *lost = arg;

	*lost += c->at == c->log->nevents && !byte_at(c, 4096);
}

static void faults_strike_and_a_failed_sync_is_not_taken_back(void **state)
{
	unsigned lost = 0;
	struct rig r = { 0 };

	rig_run(&r, three_ways_to_fail, 3);
	assert_int_equal(r.res, -EIO);
	each_image(&r, expect_never_flushed, &lost);
	assert_true(lost);
	rig_end(&r);
}

/* ---- a writer that forgets a sync ---- */

/* Records at 4096 and on; a counter in sector 0 says how many there are. */
static int append(void *arg)
{
	struct rig *r = arg;

	for (unsigned i = 1; i <= 6; i++) {
		put(r, i * 4096, 'r', 1024);
		if (!r->skips_sync)
			assert_int_equal(chan_flush_wait(r->ch), 0);
		put(r, 0, (uint8_t)i, 512);
		assert_int_equal(chan_flush_wait(r->ch), 0);
	}
	return 0;
}

static void count_broken(struct crash *c, void *arg)
{
	unsigned *broken = arg, n = byte_at(c, 0);

	for (unsigned i = 1; i <= n; i++)
		*broken += byte_at(c, i * 4096) != 'r' || byte_at(c, i * 4096 + 512) != 'r';
}

static void a_writer_that_skips_a_sync_is_caught(void **state)
{
	for (unsigned skips = 0; skips < 2; skips++) {
		uint64_t broken = 0;

		for (uint64_t seed = 0; seed < 10; seed++) {
			struct rig r = { .skips_sync = skips };

			rig_run(&r, append, seed);
			each_image(&r, count_broken, &broken);
			rig_end(&r);
		}
		assert_int_equal(!broken, !skips);
	}
}

/* ---- order ---- */

static int many_at_once(void *arg)
{
	static struct async a[32];
	struct rig *r = arg;

	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		async_put(r, &a[i], i % 8 * 512, (uint8_t)(i + 1));
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		while (!a[i].is_done)
			fiber_yield_wait();
	return chan_flush_wait(r->ch);
}

/* After the last sync there is one content left: what reads showed. */
static void expect_medium(struct crash *c, void *arg)
{
	struct rig *r = arg;
	uint8_t byte;

	if (c->at < c->log->nevents)
		return;
	for (uint64_t off = 0; off < 4096; off += 512) {
		sim_pages_read(&r->medium, off, &byte, 1);
		assert_int_equal(byte_at(c, off), byte);
	}
}

static void the_order_is_the_seeds_and_the_last_effect_counts(void **state)
{
	uint64_t orders[2] = { 0 }, again;

	for (uint64_t seed = 0; seed < 30; seed++) {
		for (unsigned twice = 0; twice < 2; twice++) {
			struct rig r = { 0 };

			rig_run(&r, many_at_once, seed);
			each_image(&r, expect_medium, &r);
			again = 0;
			for (uint32_t i = 0; i < r.log.nops; i++)
				again = mix64(again + r.log.ops[i].effect);
			assert_true(!twice || again == orders[0]);
			orders[0] = again;
			rig_end(&r);
		}
		assert_true(orders[0] != orders[1]);
		orders[1] = orders[0];
	}
}

/* ---- model ---- */

static void the_model_knows_old_from_new(void **state)
{
	uint8_t buf[1024];
	struct model m;

	model_init(&m, 4096, 8192);
	assert_int_equal(model_begin(&m, MODEL_WRITE, 4096, 1024, false, 10), 0);
	model_end(&m, 0, 0, false, 20);
	model_flushed(&m, model_mark(&m), 30);
	assert_int_equal(model_begin(&m, MODEL_WRITE, 4096 + 100, 100, false, 40), 1);
	stamp_fill(0, 4096, buf, sizeof(buf));
	assert_true(model_check_crash(&m, 4096, buf, 50));
	assert_false(model_check_crash(&m, 4608, buf, 50));
	assert_true(model_check_crash(&m, 4608, buf + 512, 50));
	stamp_fill(1, 4096 + 100, buf + 100, 100);
	assert_true(model_check_crash(&m, 4096, buf, 50));
	assert_false(model_check_crash(&m, 4096, buf, 35));
	assert_true(model_check_read(&m, 4096, buf, 1024, model_mark(&m)));
	stamp_fill(0, 4096, buf, sizeof(buf));
	assert_true(model_check_read(&m, 4096, buf, 1024, model_mark(&m)));
	model_end(&m, 1, 0, false, 45);
	assert_true(model_check_read(&m, 4096, buf, 1024, model_mark(&m) - 1));
	assert_false(model_check_read(&m, 4096, buf, 1024, model_mark(&m)));
	stamp_fill(1, 4096 + 100, buf + 100, 100);
	stamp_fill(1, 4096 + 200, buf + 200, 8);
	assert_false(model_check_crash(&m, 4096, buf, 50));
	memset(buf, 0, sizeof(buf));
	assert_true(model_check_crash(&m, 4096, buf, 25));
	assert_false(model_check_crash(&m, 4096, buf, 30));
	model_fini(&m);
}

static void what_a_discard_did_is_decided_by_looking(void **state)
{
	uint8_t buf[1024] = { 0 };
	struct model m;

	model_init(&m, 0, 1024);
	memset(m.initial, MODEL_OWN, 2);
	model_begin(&m, MODEL_DISCARD, 0, 1024, false, 1);
	model_end(&m, 0, 0, false, 2);
	stamp_fill(STAMP_OWN, 0, buf, 512);
	assert_true(model_check_read(&m, 0, buf, 1024, model_mark(&m)));
	assert_true(model_check_read(&m, 0, buf, 1024, model_mark(&m)));
	memset(buf, 0, 512);
	assert_false(model_check_read(&m, 0, buf, 1024, model_mark(&m)));
	model_fini(&m);
}

/* A raw data file may have what the guest does not read, if it was seen there, until a flush brings
 * it back. */
static void what_a_failed_write_leaves_in_a_raw_file_is_right_for_a_while(void **state)
{
	static const uint8_t zeros[512];
	uint8_t buf[512];
	struct model m;

	model_init(&m, 0, 1024);
	stamp_fill(0, 0, buf, sizeof(buf));
	model_begin(&m, MODEL_WRITE, 0, 1024, false, 1);
	model_end(&m, 0, -EIO, false, 2);
	assert_true(model_check_raw(&m, 0, buf, 3));
	assert_true(model_check_raw(&m, 0, zeros, 3));
	/* In the first sector it stays, in the second not. */
	for (uint64_t off = 0; off < 1024; off += 512) {
		assert_true(model_check_read(&m, off, zeros, 512, model_mark(&m)));
		model_note_raw(&m, off, off ? zeros : buf);
	}
	model_flushed(&m, model_mark(&m), 5);
	assert_true(model_check_raw(&m, 0, buf, 6));
	assert_true(model_check_raw(&m, 0, zeros, 6));
	assert_false(model_check_crash(&m, 0, buf, 6));
	stamp_fill(0, 512, buf, sizeof(buf));
	assert_true(model_check_raw(&m, 512, buf, 4));
	assert_false(model_check_raw(&m, 512, buf, 6));
	assert_true(model_check_raw(&m, 512, zeros, 6));
	stamp_fill(0, 0, buf, sizeof(buf));
	model_restored(&m, model_mark(&m), 8);
	assert_true(model_check_raw(&m, 0, buf, 7));
	assert_false(model_check_raw(&m, 0, buf, 9));
	model_fini(&m);
}

static void a_race_leaves_either(void **state)
{
	uint8_t buf[512];
	struct model m;

	model_init(&m, 0, 512);
	model_begin(&m, MODEL_WRITE, 0, 512, false, 1);
	model_begin(&m, MODEL_ZERO, 0, 512, true, 2);
	model_end(&m, 1, 0, true, 3);
	model_end(&m, 0, 0, true, 3);
	for (unsigned i = 0; i < 2; i++) {
		stamp_fill(0, 0, buf, 512);
		assert_true(model_check_read(&m, 0, buf, 512, model_mark(&m)));
		memset(buf, 0, sizeof(buf));
		assert_true(model_check_read(&m, 0, buf, 512, model_mark(&m)));
		assert_true(model_check_crash(&m, 0, buf, 9));
		stamp_fill(0, 512, buf, 512);
		assert_false(model_check_read(&m, 0, buf, 512, model_mark(&m)));
	}
	model_fini(&m);
}

/* ---- images, and the judge ---- */

/* A trace in which nothing has happened. @is_full: with nothing but what means something. */
static void still_trace(struct trace *t, uint64_t seed, bool is_full)
{
	struct trace_opts o;

	trace_opts_init(&o, seed);
	if (is_full) {
		o.is_device = false;
		o.image.stale = 0;
		o.image.has_stale_within = false;
		o.image.full_blocks = 0;
	}
	o.nops = 0;
	o.reopen_after = 0;
	if (!trace_run(t, &o))
		fail_msg("seed %llu: %s", (unsigned long long)seed, t->why.text);
}

static void the_judge_finds_nothing_in_images_as_made(void **state)
{
	struct oracle o;

	oracle_init(&o, 1);
	for (uint64_t seed = 0; seed < 2 * TRACE_CELLS / TEST_SCALE; seed++) {
		struct trace t;

		still_trace(&t, seed, false);
		if (!oracle_judge_closed(&o, &t))
			fail_msg("seed %llu: %s", (unsigned long long)seed, o.why);
		trace_fini(&t);
	}
	oracle_fini(&o);
}

/* One wrong byte each: in a refcount, an L2 entry, data, the name of the backing file. */
static void the_judge_sees_what_is_wrong(void **state)
{
	unsigned caught = 0, tried = 0;
	struct oracle o;

	oracle_init(&o, 1);
	for (uint64_t seed = 0; tried < 120 / TEST_SCALE; seed++) {
		struct prng p = { seed };
		struct trace t;
		uint64_t off;
		uint8_t was, is;

		still_trace(&t, seed, true);
		/* Bytes that mean something: all that is not zero. */
		do {
			off = prng_below(&p, t.start_size);
			sim_pages_read(&t.medium, off, &was, 1);
		} while (!was || sim_pages_find(&t.medium, off / SIM_PAGE) == NULL);
		is = was ^ 0x10;
		sim_pages_write(&t.medium, off, &is, 1);
		caught += !oracle_judge_closed(&o, &t);
		tried++;
		trace_fini(&t);
	}
	/* What lies behind the end of the disk may be anything, and some fields of the header. */
	if (caught < tried * 9 / 10)
		fail_msg("%u of %u caught", caught, tried);
	oracle_fini(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_flushed_stays_and_the_rest_is_kept_lost_or_torn),
		cmocka_unit_test(a_sync_covers_what_was_done_before_it_was_submitted),
		cmocka_unit_test(fua_covers_its_own_write_alone),
		cmocka_unit_test(holes_are_zeros_in_a_file_and_garbage_on_a_device),
		cmocka_unit_test(faults_strike_and_a_failed_sync_is_not_taken_back),
		cmocka_unit_test(a_writer_that_skips_a_sync_is_caught),
		cmocka_unit_test(the_order_is_the_seeds_and_the_last_effect_counts),
		cmocka_unit_test(the_model_knows_old_from_new),
		cmocka_unit_test(what_a_discard_did_is_decided_by_looking),
		cmocka_unit_test(what_a_failed_write_leaves_in_a_raw_file_is_right_for_a_while),
		cmocka_unit_test(a_race_leaves_either),
		cmocka_unit_test(the_judge_finds_nothing_in_images_as_made),
		cmocka_unit_test(the_judge_sees_what_is_wrong),
	};

	return cmocka_run_group_tests_name("sim", tests, NULL, NULL);
}
