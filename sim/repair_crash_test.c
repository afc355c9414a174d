/* SPDX-License-Identifier: MIT */
/* Power cuts while damaged images are repaired, or while the walk after a crash (reclaim.h) mends
 * what a snapshot that was begun has left: none may leave an image worse than it was. And for the
 * rules of both, that one which leaves them out is caught.
 *
 *	BYRE_SIM_TRACES=500 BYRE_SIM_IMAGES=60 (a repair)       how much
 *	BYRE_SIM_SEED=1                                         where seeds begin
 *	BYRE_SIM_TEST='y11_*'                                   only these
 *	BYRE_SIM_SAVE=FILE                                      keeps the last damaged image */
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
#include "base/test_scale.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/header.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/repair.h"
#include "fmt/qcow2/writer.h"
#include "sim/crash.h"
#include "sim/crash_main.h"
#include "sim/damage.h"
#include "sim/image.h"
#include "sim/why.h"
#include "sim/world.h"

enum { HEADER_READ = 4096, REDO_EVERY = 3, FAULTY_EVERY = 4, BROKEN_TRACES = 600,
       TOLD_MAX = WHY_MAX + 32 };

enum mender { BY_REPAIR, BY_WALK };

/* One damaged image, and what becomes of it. */
struct repair_case {
	uint64_t seed;
	enum mender mender;
	uint64_t broken;                /* enum repair_break, or enum writer_break */
	bool is_mendable;               /* all its damage can be mended */
	bool has_unreadable;            /* zeros at an impossible place */
	struct sim_image im;
	struct model model;
	struct sim_pages start, medium;
	uint64_t start_size, size;
	struct sim_log log;
	struct flat before;
	bool has_snapshot;
	struct sim_fault fault;         /* of the first repair */
	uint8_t *content;               /* the guest's, then the snapshot's; owned */
	struct world w;
	struct why why;
};

/* What is looked at: a medium, and on the way to it the world, or none. */
struct look {
	struct repair_case *c;
	struct sim_pages *pages;
	uint64_t size;
	struct world *w;
	struct sim_log *log;
	struct sim_fault *fault;
	uint64_t broken;
	struct qcow2_check res;
	int rc;
	uint8_t *content;
	bool is_repaired;               /* all can be read */
};

/* ---- opening ---- */

static struct node *file_open_wait(struct look *l, bool writable)
{
	struct sim_disk_opts so = { .name = "image", .world = l->w, .home = l->c->w.loops[0],
				    .size = l->size, .pages = l->pages, .log = l->log,
				    .read_only = !writable, .fault = l->fault,
				    .seed = l->c->seed };
	struct node *file;
	int rc = sim_disk_open_wait(&so, &file);

	assert_int_equal(rc, 0);
	return file;
}

static int repair_wait(void *arg)
{
	struct look *l = arg;
	struct qcow2_repair_opts ro = { .what = QCOW2_REPAIR_ALL,
					.broken = (unsigned)l->broken };
	uint8_t *buf = malloc(HEADER_READ);
	struct node *file = file_open_wait(l, true);
	struct qcow2_header h = { 0 };
	struct chan *ch;
	size_t need;

	assert_int_equal(chan_get_wait(file, &ch, NULL), 0);
	l->rc = chan_read_wait(ch, 0, buf, HEADER_READ);
	if (!l->rc)
		l->rc = qcow2_header_parse_for_check(buf, HEADER_READ, &h, &need, NULL);
	if (!l->rc)
		l->rc = qcow2_repair_wait(ch, &h, &ro, NULL, &l->res, NULL);
	qcow2_header_fini(&h);
	free(buf);
	l->size = atomic_load(&file->size);
	chan_put_wait(ch);
	node_put_wait(file);
	return 0;
}

/* Opens it for writing, and closes it. */
static int walk_wait(void *arg)
{
	struct look *l = arg;
	struct qcow2_opts qo = { .cache = qcow2_cache_new(0, l->c->w.loops[0]), .writable = true,
				 .broken = l->broken };
	struct node *file = file_open_wait(l, true), *n = file;

	l->rc = qcow2_open_wait(file, &qo, &n, NULL);
	if (!l->rc)
		l->rc = node_settle_wait(n, NULL);
	l->size = atomic_load(&file->size);
	node_put_wait(n);
	qcow2_cache_free(qo.cache);
	return 0;
}

/* Reads into @to, which is zeros: what cannot be read before it is mended would be. */
static int read_wait(struct look *l, struct node *n, uint8_t *to)
{
	uint64_t size = l->c->im.guest_size, step = l->c->before.cluster;
	int rc = 0;

	for (uint64_t off = 0; off < size && !rc; off += step) {
		rc = chan_read_wait(n->home_chan, off, to + off, MIN(step, size - off));
		if (rc == -EUCLEAN && l->c->has_unreadable && !l->is_repaired)
			rc = 0;
	}
	return rc;
}

/* Checks, and reads the active state or the snapshot. */
static int look_wait(struct look *l, const char *snapshot, uint8_t *to)
{
	struct loop *loop = l->c->w.loops[0];
	struct qcow2_opts qo = { .cache = qcow2_cache_new(0, loop), .snapshot = snapshot };
	struct node *file = file_open_wait(l, false), *n;
	struct err err = { 0 };
	int rc = qcow2_open_wait(file, &qo, &n, &err);

	if (rc) {
		why_say(&l->c->why, "it cannot be opened: %s", err.text);
		node_put_wait(file);
		qcow2_cache_free(qo.cache);
		return rc;
	}
	if (!snapshot)
		rc = qcow2_check_wait(n, NULL, &l->res, &err);
	if (rc)
		why_say(&l->c->why, "the check ends with '%s'", err.text);
	if (!rc) {
		rc = read_wait(l, n, to);
		if (rc)
			why_say(&l->c->why, "reading: %s", strerror(-rc));
	}
	node_put_wait(n);
	qcow2_cache_free(qo.cache);
	return rc;
}

static int look_all_wait(void *arg)
{
	struct look *l = arg;

	l->rc = look_wait(l, NULL, l->content);
	if (!l->rc && l->c->has_snapshot)
		l->rc = look_wait(l, "1", l->content + l->c->im.guest_size);
	return 0;
}

static void call(struct repair_case *c, int (*fn)(void *arg), struct look *l)
{
	if (world_call(&c->w, 0, fn, l))
		fail_msg("seed %llu: somebody waits for ever", (unsigned long long)c->seed);
}

static void mend(struct repair_case *c, struct look *l)
{
	call(c, c->mender == BY_WALK ? walk_wait : repair_wait, l);
}

/* ---- judging what a power cut left ---- */

static void judge_refcounts(struct repair_case *c, const struct flat *f)
{
	uint64_t n = MAX(f->size, c->before.size) / f->cluster + 1;
	uint32_t *counts = malloc(n * sizeof(*counts));

	assert_non_null(counts);
	flat_count(f, counts, n);
	for (uint64_t k = 0; k < n; k++) {
		uint64_t was = flat_refcount(&c->before, k), is = flat_refcount(f, k);

		if (is < MIN(was, (uint64_t)counts[k]))
			why_say(&c->why, "Y11: cluster %llu has %u names, and its refcount "
				"went from %llu to %llu", (unsigned long long)k, counts[k],
				(unsigned long long)was, (unsigned long long)is);
	}
	free(counts);
}

struct flags {
	struct repair_case *c;
	const struct flat *f;
};

static void judge_flag(void *arg, uint64_t where, uint64_t entry)
{
	struct flags *a = arg;
	const struct flat *b = &a->c->before;
	uint64_t k = (entry & QCOW2_OFFSET_MASK) >> b->cluster_bits;

	if (!k || !(entry & QCOW2_COPIED) || where + 8 > b->size ||
	    (be64_load(b->b + where) & QCOW2_COPIED) || flat_refcount(a->f, k) == 1)
		return;
	why_say(&a->c->why, "Y12: entry %#llx at %#llx has the flag now, and a refcount of %llu",
		(unsigned long long)entry, (unsigned long long)where,
		(unsigned long long)flat_refcount(a->f, k));
}

static void judge_content(struct repair_case *c, struct look *l)
{
	uint64_t n = c->im.guest_size;

	l->content = calloc(2, n);
	assert_non_null(l->content);
	call(c, look_all_wait, l);
	if (!l->rc && memcmp(l->content, c->content, n))
		why_say(&c->why, "Y14: the guest's content has changed");
	if (!l->rc && c->has_snapshot && memcmp(l->content + n, c->content + n, n))
		why_say(&c->why, "Y14: the snapshot has changed");
	free(l->content);
}

static void judge_bits(struct repair_case *c, const struct flat *f, const struct qcow2_check *res)
{
	if ((c->before.incompatible & ~f->incompatible) &&
	    (res->corruptions || res->check_errors))
		why_say(&c->why, "Y15: bits went, and there are %llu errors",
			(unsigned long long)res->corruptions);
}

static void judge(struct repair_case *c, struct sim_pages *pages, uint64_t size)
{
	struct look l = { .c = c, .pages = pages, .size = size };
	struct flat f;

	flat_init(&f, pages, size);
	judge_refcounts(c, &f);
	flat_active(&f, judge_flag, &(struct flags){ c, &f });
	judge_content(c, &l);
	judge_bits(c, &f, &l.res);
	flat_fini(&f);
}

/* Repairs @pages, which then must be right. */
static void redo(struct repair_case *c, struct sim_pages *pages, uint64_t size)
{
	struct look l = { .c = c, .pages = pages, .size = size };

	mend(c, &l);
	l.is_repaired = c->is_mendable;
	if (c->is_mendable && l.rc)
		why_say(&c->why, "a second repair ends with '%s'", strerror(-l.rc));
	judge_content(c, &l);
	if (c->is_mendable && (l.res.corruptions || l.res.leaks || l.res.check_errors))
		why_say(&c->why, "after a second repair there are %llu errors, %llu leaks",
			(unsigned long long)l.res.corruptions, (unsigned long long)l.res.leaks);
}

/* ---- a case ---- */

static void draw_image(struct sim_image_opts *o, struct prng *p)
{
	static const unsigned bits[] = { 9, 12 };

	*o = (struct sim_image_opts){ .cluster_bits = bits[prng_below(p, 2)] };
	o->version = prng_below(p, 4) ? 3 : 2;
	o->is_shared = prng_below(p, 2);
	o->refcount_order = o->version == 2 ? 4 : (unsigned)prng_below(p, 7);
	if (o->is_shared)
		o->refcount_order = MAX(o->refcount_order, 1u);
	o->own_every = 1 + (unsigned)prng_below(p, 3);
	o->stale = (unsigned)prng_below(p, 12);
	o->window = (32ULL + prng_below(p, 96)) << (o->cluster_bits + 1);
	o->is_odd = o->version == 3 && !prng_below(p, 3);
}

static void save(const struct flat *f)
{
	const char *name = getenv("BYRE_SIM_SAVE");
	FILE *out = name ? fopen(name, "w") : NULL;

	if (!out)
		return;
	assert_int_equal(fwrite(f->b, 1, f->size, out), f->size);
	assert_int_equal(fclose(out), 0);
}

/* Nothing but what the walk is for. */
static void put_leaks(struct flat *f, struct prng *p)
{
	for (uint64_t left = prng_below(p, 3); left; left--)
		flat_damage(f, DAMAGE_LEAK, p);
	for (uint64_t left = 1 + prng_below(p, 8); left; left--)
		flat_half_snapshot(f, p);
	flat_mark(f);
}

static void put_damage(struct repair_case *c, struct flat *f, struct prng *p)
{
	unsigned n[DAMAGES] = { 0 };

	for (uint64_t left = 1 + prng_below(p, 5); left; left--)
		n[prng_below(p, DAMAGES)]++;
	c->is_mendable = !n[DAMAGE_BLOCK_RESERVED];
	c->has_unreadable = n[DAMAGE_UNALIGNED_ZERO];
	/* Refcounts first: what is written to a block that lies elsewhere would be other damage. */
	for (unsigned i = 0; i < DAMAGES; i++)
		while (n[i]--)
			flat_damage(f, (enum damage)i, p);
}

static void spoil(struct repair_case *c, struct prng *p)
{
	struct flat f;

	flat_init(&f, &c->start, c->start_size);
	c->is_mendable = true;
	if (c->mender == BY_WALK)
		put_leaks(&f, p);
	else
		put_damage(c, &f, p);
	sim_pages_write(&c->start, 0, f.b, f.size);
	flat_fini(&f);
	flat_init(&c->before, &c->start, c->start_size);
	save(&c->before);
}

static void put_fault(struct repair_case *c, struct prng *p)
{
	static const unsigned kinds[] = { 1 << SIM_WRITE, 1 << SIM_SYNC, SIM_READS };

	c->fault = (struct sim_fault){ .kinds = kinds[prng_below(p, ARRAY_SIZE(kinds))],
				       .error = EIO, .nth = 1 + prng_below(p, 12),
				       .count = 1 + prng_below(p, 2) };
}

/* Makes it, damages it, and repairs it. */
static void case_init(struct repair_case *c, uint64_t seed, enum mender mender, uint64_t broken)
{
	struct prng p = { mix64(seed + 9) };
	struct sim_image_opts o;
	struct look l = { .c = c, .pages = &c->start }, r;

	*c = (struct repair_case){ .seed = seed, .mender = mender, .broken = broken };
	world_init(&c->w, 1, seed);
	sim_pages_init(&c->start, NULL, 0);
	sim_pages_init(&c->medium, NULL, 0);
	sim_log_init(&c->log);
	draw_image(&o, &p);
	if (mender == BY_WALK)
		o.refcount_order = MAX(o.refcount_order, 1u);
	sim_image_make(&o, &c->start, &c->model, &c->im);
	c->has_snapshot = o.is_shared;
	c->start_size = align_up(c->im.file_size, 512);
	spoil(c, &p);
	sim_pages_copy(&c->medium, &c->start);
	l.size = c->start_size;
	c->content = l.content = calloc(2, c->im.guest_size);
	assert_non_null(c->content);
	call(c, look_all_wait, &l);
	r = (struct look){ .c = c, .pages = &c->medium, .size = c->start_size, .w = &c->w,
			   .log = &c->log, .fault = &c->fault, .broken = broken };
	if (seed % FAULTY_EVERY == 0)
		put_fault(c, &p);
	mend(c, &r);
	c->size = r.size;
	if (c->fault.struck)
		return;
	if (mender == BY_WALK && !r.rc) {
		r = (struct look){ .c = c, .pages = &c->medium, .size = c->size };
		judge_content(c, &r);
	}
	if (c->is_mendable && r.rc)
		why_say(&c->why, "the repair ends with '%s'", strerror(-r.rc));
	if (c->is_mendable && (r.res.corruptions || r.res.leaks || r.res.check_errors))
		why_say(&c->why, "the repair leaves %llu errors, %llu leaks",
			(unsigned long long)r.res.corruptions, (unsigned long long)r.res.leaks);
}

static void case_fini(struct repair_case *c)
{
	free(c->content);
	flat_fini(&c->before);
	model_fini(&c->model);
	sim_log_fini(&c->log);
	sim_pages_fini(&c->medium);
	sim_pages_fini(&c->start);
	world_fini(&c->w);
}

static void cut(struct repair_case *c, unsigned images)
{
	struct prng p = { mix64(c->seed + 5) };
	struct crash cr;

	crash_init(&cr, &c->log, &c->start, c->start_size, false);
	/* Every event where there are few. */
	for (unsigned i = 0; i <= images && !c->why.text[0]; i++) {
		uint32_t k = (uint32_t)((uint64_t)c->log.nevents * i / images);
		uint64_t fate = prng_below(&p, 2) ? prng_below(&p, FATES_NAMED) :
				FATES_NAMED + prng_below(&p, 1 << 20);

		crash_advance(&cr, k);
		crash_make(&cr, fate);
		judge(c, &cr.image, cr.size);
		if (!c->why.text[0] && i % REDO_EVERY == 0)
			redo(c, &cr.image, cr.size);
		if (c->why.text[0])
			why_add(&c->why, " (event %u of %u, fate %llu)", k, c->log.nevents,
				(unsigned long long)fate);
	}
	crash_fini(&cr);
}

/* ---- the tests ---- */

/* Runs cases until one fails: its seed + 1; 0: none did. */
static uint64_t run(uint64_t first, unsigned n, unsigned images, enum mender mender,
		    uint64_t broken, char *why)
{
	uint64_t failed = 0;

	for (uint64_t seed = first; seed < first + n && !failed; seed++) {
		struct repair_case c;

		case_init(&c, seed, mender, broken);
		if (!c.why.text[0])
			judge(&c, &c.medium, c.size);
		if (!c.why.text[0])
			cut(&c, images);
		if (c.why.text[0]) {
			failed = seed + 1;
			snprintf(why, TOLD_MAX, "seed %llu: %s", (unsigned long long)seed,
				 c.why.text);
		}
		case_fini(&c);
	}
	return failed;
}

static void expect_safe(enum mender mender)
{
	uint64_t first = crash_number("BYRE_SIM_SEED", 0);
	unsigned traces = (unsigned)crash_number("BYRE_SIM_TRACES", 60 / TEST_SCALE);
	char why[TOLD_MAX];

	if (run(first, traces, (unsigned)crash_number("BYRE_SIM_IMAGES", 24), mender, 0, why))
		fail_msg("%s", why);
}

/* Y11, Y12, Y13, Y14, Y15 of repair.h; now and then requests fail, too (Q9). */
static void no_power_cut_makes_it_worse(void **state)
{
	expect_safe(BY_REPAIR);
}

/* The same of the walk: a refcount is never lower than the names, a flag never set where it is not
 * 1; and whatever is left, the next walk mends. */
static void r7_no_power_cut_hurts_the_walk(void **state)
{
	expect_safe(BY_WALK);
}

/* From seed @first on, soon before one that tells. */
static void expect_caught_by(enum mender mender, uint64_t rule, uint64_t first)
{
	char why[TOLD_MAX];

	if (!run(first, BROKEN_TRACES, 40, mender, rule, why))
		fail_msg("nothing noticed");
	print_message("%s\n", why);
}

static void expect_caught(enum repair_break rule, uint64_t first)
{
	expect_caught_by(BY_REPAIR, rule, first);
}

static void y11_early_decrements_are_caught(void **state)
{
	expect_caught(BREAK_Y11_EARLY_MINUS, 90);
}

static void y12_early_flags_are_caught(void **state)
{
	expect_caught(BREAK_Y12_EARLY_COPIED, 475);
}

static void y13_a_table_named_too_early_is_caught(void **state)
{
	expect_caught(BREAK_Y13_SWITCH, 0);
}

static void y14_writing_over_metadata_is_caught(void **state)
{
	expect_caught(BREAK_Y14_OVERWRITE, 75);
}

static void y15_bits_that_go_too_early_are_caught(void **state)
{
	expect_caught(BREAK_Y15_BITS, 0);
}

static void r7_flags_before_refcounts_are_caught(void **state)
{
	expect_caught_by(BY_WALK, BREAK_R7_EARLY, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_power_cut_makes_it_worse),
		cmocka_unit_test(r7_no_power_cut_hurts_the_walk),
		cmocka_unit_test(y11_early_decrements_are_caught),
		cmocka_unit_test(y12_early_flags_are_caught),
		cmocka_unit_test(y13_a_table_named_too_early_is_caught),
		cmocka_unit_test(y14_writing_over_metadata_is_caught),
		cmocka_unit_test(y15_bits_that_go_too_early_are_caught),
		cmocka_unit_test(r7_flags_before_refcounts_are_caught),
	};

	crash_main_init();
	return cmocka_run_group_tests_name("repair_crash", tests, NULL, NULL);
}
