/* SPDX-License-Identifier: MIT */
/* Power cuts at every step of whole copies into new images, as convert makes them: from the first
 * write of the header to the last of the close. What is left is either refused by everybody or
 * is whole: clean, and equal to the sources; once the close has returned well it is whole.
 *
 * The copy is job/copy with several pieces under way, compressed or not; the image is created
 * unfinished and finished as cmd/convert.c does that. In some cases requests fail on the way.
 *
 *	BYRE_SIM_TRACES=500 BYRE_SIM_IMAGES=4 (an event)        how much
 *	BYRE_SIM_SEED=1                                         where seeds begin
 *	BYRE_SIM_TEST='q11_a_*'                                 only these */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/port.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/create.h"
#include "fmt/qcow2/format.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/writer.h"
#include "job/copy.h"
#include "sim/crash.h"
#include "sim/crash_main.h"
#include "sim/why.h"
#include "sim/world.h"

enum { BLOCK = 4096, SOURCES_MAX = 2, FAULTY_EVERY = 4, BROKEN_TRACES = 40,
       TOLD_MAX = WHY_MAX + 64, AT_ONCE = 4, FATES_AT_END = 12 };

/* One copy, and what became of it. */
struct copy_case {
	uint64_t seed;
	struct qcow2_create_opts create;
	struct qcow2_opts open;
	struct copy_opts copy;
	uint64_t sizes[SOURCES_MAX];    /* each holds the beginning of `content`, */
	uint64_t total;                 /* and this is what they are together */
	uint8_t *content;               /* owned */
	bool flushes;                   /* before the close, as the command does */
	struct sim_pages source, start, medium;
	uint64_t file_size;
	struct sim_log log;
	struct sim_fault fault;
	struct world w;
	int rc;                         /* what whoever converts is told */
	unsigned under_way;             /* requests at a time, at most */
	uint64_t naccepted, nrefused;
	struct why why;
};

static void call(struct copy_case *c, int (*fn)(void *arg), void *arg)
{
	if (world_call(&c->w, 0, fn, arg))
		fail_msg("seed %llu: somebody waits for ever", (unsigned long long)c->seed);
}

/* ---- the copy ---- */

static struct node *target_open_wait(struct copy_case *c)
{
	struct sim_disk_opts so = { .name = "target", .world = &c->w, .home = c->w.loops[0],
				    .size = c->file_size, .pages = &c->medium, .log = &c->log,
				    .fault = &c->fault, .seed = c->seed + c->log.nevents };
	struct node *file;

	assert_int_equal(sim_disk_open_wait(&so, &file), 0);
	return file;
}

static int create_wait(struct copy_case *c)
{
	struct node *file = target_open_wait(c);
	struct err err = { 0 };
	int rc = qcow2_create_wait(file, NULL, &c->create, &err);

	if (!rc)
		rc = chan_flush_wait(file->home_chan);
	c->file_size = atomic_load(&file->size);
	node_put_wait(file);
	return rc;
}

struct sources {
	struct node *nodes[SOURCES_MAX];
	struct port *ports[SOURCES_MAX];
	struct port_chan *pcs[SOURCES_MAX];
};

static void sources_open_wait(struct copy_case *c, struct sources *s)
{
	struct sim_disk_opts so = { .name = "source", .world = &c->w, .home = c->w.loops[0],
				    .pages = &c->source, .read_only = true, .seed = c->seed };

	for (unsigned i = 0; i < c->copy.nsources; i++) {
		so.size = c->sizes[i];
		assert_int_equal(sim_disk_open_wait(&so, &s->nodes[i]), 0);
		assert_int_equal(port_new(s->nodes[i], true, &s->ports[i], NULL), 0);
		assert_int_equal(port_open_wait(s->ports[i], NULL), 0);
		s->pcs[i] = port_here(s->ports[i]);
	}
}

static void sources_close_wait(struct copy_case *c, struct sources *s)
{
	for (unsigned i = 0; i < c->copy.nsources; i++) {
		port_close_wait(s->ports[i]);
		port_free(s->ports[i]);
		node_put_wait(s->nodes[i]);
	}
}

/* Into @n, which is then closed: 0 if it is whole. */
static int fill_wait(struct copy_case *c, struct node *n)
{
	const struct req flush = { .kind = REQ_FLUSH };
	struct copy_opts o = c->copy;
	struct copy_result res = { 0 };
	struct sources s;
	struct port *port;
	int rc;

	assert_int_equal(port_new(n, false, &port, NULL), 0);
	assert_int_equal(port_open_wait(port, NULL), 0);
	sources_open_wait(c, &s);
	o.sources = s.pcs;
	o.target = port_here(port);
	rc = copy_run_wait(&o, &res);
	if (!rc && c->flushes)
		rc = port_submit_wait(o.target, &flush);
	if (!rc)
		qcow2_finish(n);
	sources_close_wait(c, &s);
	port_close_wait(port);
	port_free(port);
	return rc;
}

static int convert_wait(struct copy_case *c)
{
	struct qcow2_opts qo = c->open;
	struct node *file, *n;
	struct err err = { 0 };
	int rc = create_wait(c), rc2;

	if (rc)
		return rc;
	file = target_open_wait(c);
	qo.cache = qcow2_cache_new(0, c->w.loops[0]);
	assert_non_null(qo.cache);
	rc = qcow2_open_wait(file, &qo, &n, &err);
	if (rc) {
		node_put_wait(file);
	} else {
		rc = fill_wait(c, n);
		rc2 = node_settle_wait(n, &err);
		rc = rc ? rc : rc2;
		c->file_size = atomic_load(&file->size);
		node_put_wait(n);
	}
	qcow2_cache_free(qo.cache);
	return rc;
}

static int convert(void *arg)
{
	struct copy_case *c = arg;

	c->rc = convert_wait(c);
	return 0;
}

/* ---- judging what a power cut left ---- */

struct look {
	struct copy_case *c;
	struct sim_pages *pages;
	uint64_t size;
	bool must_be_whole;
};

static void judge_content_wait(struct look *l, struct node *n)
{
	struct copy_case *c = l->c;
	uint64_t size = atomic_load(&n->size);
	uint8_t *buf = malloc(c->total);
	int rc;

	assert_non_null(buf);
	if (size != c->total)
		why_say(&c->why, "it is accepted, and has %llu bytes of %llu",
			(unsigned long long)size, (unsigned long long)c->total);
	rc = chan_read_wait(n->home_chan, 0, buf, MIN(size, c->total));
	if (rc)
		why_say(&c->why, "it is accepted, and reading fails: %s", strerror(-rc));
	else if (memcmp(buf, c->content, MIN(size, c->total)))
		why_say(&c->why, "it is accepted, and differs from its sources");
	free(buf);
}

/* Content first: that is what would hurt most. */
static void judge_open_wait(struct look *l, struct node *n)
{
	struct qcow2_check res = { 0 };
	int rc;

	judge_content_wait(l, n);
	rc = qcow2_check_wait(n, NULL, &res, NULL);
	if (rc || res.corruptions || res.check_errors || res.leaks)
		why_say(&l->c->why, "it is accepted, and has %llu errors, %llu leaks (checked %s)",
			(unsigned long long)(res.corruptions + res.check_errors),
			(unsigned long long)res.leaks, rc ? strerror(-rc) : "to its end");
}

static int judge_wait(void *arg)
{
	struct look *l = arg;
	struct copy_case *c = l->c;
	struct sim_disk_opts so = { .name = "left", .home = c->w.loops[0], .size = l->size,
				    .pages = l->pages, .read_only = true, .seed = c->seed };
	struct qcow2_opts qo = { .cache = qcow2_cache_new(0, c->w.loops[0]) };
	struct err err = { 0 };
	struct node *file, *n;

	assert_non_null(qo.cache);
	assert_int_equal(sim_disk_open_wait(&so, &file), 0);
	if (qcow2_open_wait(file, &qo, &n, &err)) {
		c->nrefused++;
		if (l->must_be_whole)
			why_say(&c->why, "it was told to be whole, and is refused: %s", err.text);
		node_put_wait(file);
	} else {
		c->naccepted++;
		judge_open_wait(l, n);
		node_put_wait(n);
	}
	qcow2_cache_free(qo.cache);
	return 0;
}

static void judge(struct copy_case *c, struct crash *cr, uint32_t k, uint64_t fate)
{
	struct look l = { .c = c, .pages = &cr->image, .must_be_whole = !c->rc &&
							k == c->log.nevents };

	crash_make(cr, fate);
	l.size = cr->size;
	call(c, judge_wait, &l);
	if (c->why.text[0])
		why_add(&c->why, " (event %u of %u, fate %llu)", k, c->log.nevents,
			(unsigned long long)fate);
}

/* Where the version is written for the last time: before that all is refused but for a mistake. */
static uint32_t event_of_finish(const struct copy_case *c)
{
	uint32_t found = c->log.nevents;

	for (uint32_t i = 0; i < c->log.nops; i++)
		if (c->log.ops[i].kind == SIM_WRITE && c->log.ops[i].off < SIM_SECTOR)
			found = c->log.ops[i].submit;
	return found;
}

static void cut_everywhere(struct copy_case *c, unsigned images)
{
	struct prng p = { mix64(c->seed + 5) };
	uint32_t finish = event_of_finish(c);
	struct crash cr;

	crash_init(&cr, &c->log, &c->start, 0, false);
	for (uint32_t k = 0; k <= c->log.nevents && !c->why.text[0]; k++) {
		unsigned n = k > finish ? FATES_AT_END : images;

		crash_advance(&cr, k);
		for (unsigned i = 0; i < n && !c->why.text[0]; i++) {
			uint64_t fate = prng_below(&p, 2) ? prng_below(&p, FATES_NAMED) :
					FATES_NAMED + prng_below(&p, 1 << 20);

			judge(c, &cr, k, n == FATES_AT_END && i < FATES_NAMED ? i : fate);
		}
	}
	crash_fini(&cr);
}

/* ---- a case ---- */

/* Blocks of zeros, of what compresses well, and of what does not. */
static void draw_content(struct copy_case *c, struct prng *p)
{
	uint64_t size = MAX(c->sizes[0], c->sizes[1]), kind = 0;
	uint8_t *buf = calloc(1, align_up(size, BLOCK));

	c->content = malloc(c->total);
	assert_true(buf && c->content);
	for (uint64_t off = 0; off < size; off += BLOCK) {
		if (prng_below(p, 2))
			kind = prng_below(p, 4);
		if (kind == 1)
			sim_garbage(prng_next(p) | 1, off, buf + off, BLOCK);
		else if (kind)
			stamp_fill((unsigned)prng_below(p, STAMP_OPS_MAX), off, buf + off, BLOCK);
	}
	sim_pages_write(&c->source, 0, buf, size);
	memcpy(c->content, buf, c->sizes[0]);
	memcpy(c->content + c->sizes[0], buf, c->sizes[1]);
	free(buf);
}

static void draw_target(struct copy_case *c, struct prng *p)
{
	static const unsigned bits[] = { 9, 12, 14, 16 };
	unsigned cluster_bits = bits[prng_below(p, ARRAY_SIZE(bits))];
	uint64_t cluster = 1ULL << cluster_bits, most = MIN(320 * cluster, 3 * MiB);

	c->copy.nsources = prng_below(p, 4) ? 1 : 2;
	for (unsigned i = 0; i < c->copy.nsources; i++)
		c->sizes[i] = align_up(most / 4 + prng_below(p, most / c->copy.nsources), 512);
	c->total = c->sizes[0] + c->sizes[1];
	c->create = (struct qcow2_create_opts){
		.size = c->total, .version = prng_below(p, 4) ? 3 : 2, .cluster_size = cluster,
		.is_unfinished = true,
	};
	if (c->create.version == 3) {
		c->create.refcount_bits = 1u << prng_below(p, 7);
		c->create.lazy_refcounts = !prng_below(p, 4);
		c->create.extended_l2 = cluster_bits >= 14 && !prng_below(p, 3);
		c->create.compression = prng_below(p, 2) ? QCOW2_COMPRESSION_ZSTD :
							   QCOW2_COMPRESSION_DEFLATE;
	}
	c->open = (struct qcow2_opts){ .writable = true, .is_unfinished = true,
				       .discard = prng_below(p, 2) };
}

static void draw_copy(struct copy_case *c, struct prng *p, bool is_compressed)
{
	c->copy.min_sparse = prng_below(p, 4) ? BLOCK : 0;
	c->copy.align = MAX(c->copy.min_sparse, 512ULL);
	c->copy.target_is_zero = c->copy.min_sparse && prng_below(p, 2);
	c->copy.cluster = is_compressed ? c->create.cluster_size : 0;
	c->copy.out_of_order = !prng_below(p, 3);
	c->copy.depth = 1 + (unsigned)prng_below(p, 12);
	c->flushes = prng_below(p, 2);
}

static void draw_fault(struct copy_case *c, struct prng *p)
{
	static const unsigned kinds[] = { 1 << SIM_WRITE, 1 << SIM_SYNC, SIM_READS };

	c->fault = (struct sim_fault){ .kinds = kinds[prng_below(p, ARRAY_SIZE(kinds))],
				       .error = EIO, .nth = 1 + prng_below(p, 60),
				       .count = 1 + prng_below(p, 3) };
	if (c->fault.kinds == 1 << SIM_SYNC)
		c->fault.nth = 1 + prng_below(p, 6);
}

/* Requests that change something, between their submission and their end. */
static unsigned most_at_once(const struct sim_log *log)
{
	unsigned now = 0, most = 0;

	for (uint32_t i = 0; i < log->nevents; i++) {
		now += log->events[i].kind == SIM_SUBMIT;
		most = MAX(most, now);
		now -= log->events[i].kind == SIM_DONE;
	}
	return most;
}

static void case_init(struct copy_case *c, uint64_t seed, uint64_t broken)
{
	struct prng p = { mix64(seed + 9) };

	*c = (struct copy_case){ .seed = seed };
	world_init(&c->w, 1, seed);
	sim_pages_init(&c->source, NULL, 0);
	sim_pages_init(&c->start, NULL, 0);
	sim_pages_init(&c->medium, NULL, 0);
	sim_log_init(&c->log);
	draw_target(c, &p);
	c->open.broken = broken;
	draw_content(c, &p);
	draw_copy(c, &p, seed % 2);
	if (seed / 2 % FAULTY_EVERY == 0)
		draw_fault(c, &p);
	call(c, convert, c);
	c->under_way = most_at_once(&c->log);
	if (c->rc && !c->fault.struck)
		why_say(&c->why, "the copy ends with '%s'", strerror(-c->rc));
}

static void case_fini(struct copy_case *c)
{
	free(c->content);
	sim_log_fini(&c->log);
	sim_pages_fini(&c->medium);
	sim_pages_fini(&c->start);
	sim_pages_fini(&c->source);
	world_fini(&c->w);
}

/* ---- the tests ---- */

struct totals {
	uint64_t events, accepted, refused, failed, wide, cut;
	char why[TOLD_MAX];
};

/* Runs cases until one goes wrong. True: none does. */
static bool run(struct totals *t, uint64_t first, unsigned n, unsigned images, uint64_t broken)
{
	*t = (struct totals){ 0 };
	for (uint64_t seed = first; seed < first + n && !t->why[0]; seed++) {
		struct copy_case c;

		case_init(&c, seed, broken);
		if (!c.why.text[0])
			cut_everywhere(&c, images);
		if (c.why.text[0])
			snprintf(t->why, sizeof(t->why), "seed %llu, %s: %s",
				 (unsigned long long)seed,
				 c.copy.cluster ? "compressed" : "not compressed", c.why.text);
		t->events += c.log.nevents;
		t->accepted += c.naccepted;
		t->refused += c.nrefused;
		t->failed += c.rc != 0;
		t->wide += c.under_way >= AT_ONCE;
		t->cut += !c.rc && c.file_size % c.create.cluster_size;
		case_fini(&c);
	}
	return !t->why[0];
}

/* Q10: some end with the last of what was packed. */
static void q11_q10_no_power_cut_leaves_half_an_image(void **state)
{
	unsigned n = (unsigned)crash_number("BYRE_SIM_TRACES", 16);
	struct totals t;

	if (!run(&t, crash_number("BYRE_SIM_SEED", 0), n,
		 (unsigned)crash_number("BYRE_SIM_IMAGES", 1), 0))
		fail_msg("%s", t.why);
	print_message("%u copies, %llu of them failed as they were told to, %llu with %u requests "
		      "and more at a time; %llu events; %llu power cuts left an image that is "
		      "refused, %llu one that is whole\n", n, (unsigned long long)t.failed,
		      (unsigned long long)t.wide, AT_ONCE, (unsigned long long)t.events,
		      (unsigned long long)t.refused, (unsigned long long)t.accepted);
	assert_true(n < 8 || (t.wide > n / 2 && t.failed && t.accepted && t.refused && t.cut));
}

static void q11_an_image_that_is_opened_too_early_is_caught(void **state)
{
	struct totals t;

	if (run(&t, 0, BROKEN_TRACES, 1, BREAK_Q11_EARLY))
		fail_msg("nothing noticed");
	print_message("%s\n", t.why);
}

/* Nothing is durable of what is accepted here: the content itself is wrong. */
static void q11_an_image_that_is_opened_before_its_data_is_caught(void **state)
{
	struct totals t;

	if (run(&t, 0, BROKEN_TRACES, 1, BREAK_Q11_AT_ONCE))
		fail_msg("nothing noticed");
	print_message("%s\n", t.why);
	assert_non_null(strstr(t.why, "differs"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(q11_q10_no_power_cut_leaves_half_an_image),
		cmocka_unit_test(q11_an_image_that_is_opened_too_early_is_caught),
		cmocka_unit_test(q11_an_image_that_is_opened_before_its_data_is_caught),
	};

	crash_main_init();
	return cmocka_run_group_tests_name("convert_crash", tests, NULL, NULL);
}
