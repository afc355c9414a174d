/* SPDX-License-Identifier: MIT */
/* Pages of metadata: changes, reads and commits at the same time, against an array. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/endian.h"
#include "base/prng.h"
#include "fmt/qcow2/test_mem.h"
#include "fmt/qcow2/writer.h"

enum { PAGES = 60, PAGE = 512, FILE_BYTES = PAGES * PAGE };

struct world {
	struct loop *loop;
	struct prng prng;
	struct test_mem *mem;
	struct writer w;                /* what meta.c needs of it: the commit, which never runs */
	uint8_t model[FILE_BYTES];      /* with every change */
	uint8_t snapshot[FILE_BYTES];   /* at the last cut */
	unsigned running;
	bool fails;
	/* Where a rule is broken: reads that missed a change; cuts that the file is not as. */
	unsigned nstale, ndiffer;
};

static enum meta_kind kind_of(uint64_t off)
{
	static const enum meta_kind kinds[] = { META_REFBLOCK, META_L2, META_L2, META_L1 };

	return kinds[off / PAGE % ARRAY_SIZE(kinds)];
}

/* One change of 1 to 16 bytes, in the page and in the model at the same moment. */
static void change_wait(struct world *wd)
{
	struct meta *m = &wd->w.meta;
	unsigned width = 1U << prng_below(&wd->prng, 5), first = MIN(width, 8U);
	uint64_t off = align_down(prng_below(&wd->prng, FILE_BYTES), width);
	struct meta_record rec = { .kind = kind_of(off), .width = width, .off = off,
				   .new = prng_next(&wd->prng),
				   .new_second = prng_next(&wd->prng) };
	struct meta_page *p;
	uint8_t be[16];
	int rc = meta_get_wait(m, kind_of(off), off, &p);

	if (rc) {
		assert_true(wd->fails && rc == -EIO);
		return;
	}
	rec.new >>= 64 - 8 * first;
	rec.old = meta_value(m, p, off, first);
	if (width == 16)
		rec.old_second = meta_value(m, p, off + 8, 8);
	be64_store(be, rec.old << (64 - 8 * first));
	be64_store(be + 8, rec.old_second);
	assert_memory_equal(be, wd->model + off, width);
	meta_change(m, p, &rec);
	be64_store(be, rec.new << (64 - 8 * first));
	be64_store(be + 8, rec.new_second);
	memcpy(wd->model + off, be, width);
	meta_put(m, p);
}

/* I2: what was changed before the read ended is seen. */
static void read_wait(struct world *wd)
{
	uint64_t n = 1 + prng_below(&wd->prng, 20), off = prng_below(&wd->prng, PAGES - n) * PAGE;
	uint8_t *buf = malloc(n * PAGE);
	int rc = meta_read_wait(&wd->w.meta, off, buf, n * PAGE);

	if (rc)
		assert_true(wd->fails && rc == -EIO);
	else if (wd->w.broken)
		wd->nstale += memcmp(buf, wd->model + off, n * PAGE) != 0;
	else
		assert_memory_equal(buf, wd->model + off, n * PAGE);
	free(buf);
}

static int changer(void *arg)
{
	struct world *wd = arg;

	for (unsigned i = 0; i < 400; i++) {
		if (prng_below(&wd->prng, 4))
			change_wait(wd);
		else
			read_wait(wd);
	}
	wd->running--;
	return 0;
}

struct changer {
	struct task task;
	struct world *wd;
};

static void changer_task(struct task *t)
{
	changer(container_of(t, struct changer, task)->wd);
}

/* I3, I4: writes all phases, which may fail; where none did, the file is as it was at the cut. */
static void cut_wait(struct world *wd)
{
	struct meta *m = &wd->w.meta;
	struct meta_cut *cut[META_PHASES];
	uint64_t bytes = 0, writes = 0;
	int rc = 0;

	for (unsigned i = 0; i < META_PHASES; i++)
		assert_int_equal(meta_cut(m, i, &cut[i]), 0);
	assert_int_equal(m->ndirty, 0);
	memcpy(wd->snapshot, wd->model, FILE_BYTES);
	for (unsigned i = 0; i < META_PHASES; i++) {
		int one = meta_cut_write_wait(cut[i], &bytes, &writes);

		rc = rc ? rc : one;
		meta_cut_end(cut[i], one);
	}
	assert_true(bytes % PAGE == 0 && writes <= bytes / PAGE);
	if (rc)
		assert_true(wd->fails);
	else if (wd->w.broken)
		wd->ndiffer += memcmp(wd->mem->bytes, wd->snapshot, FILE_BYTES) != 0;
	else
		assert_memory_equal(wd->mem->bytes, wd->snapshot, FILE_BYTES);
}

static int body(void *arg)
{
	struct world *wd = arg;
	struct changer changers[6];
	struct chan *ch;

	wd->mem = test_mem_new(wd->loop, FILE_BYTES);
	assert_int_equal(node_open_home_wait(&wd->mem->node, NULL), 0);
	ch = wd->mem->node.home_chan;
	wd->w.home = wd->loop;
	commit_init(&wd->w.commit);
	meta_init(&wd->w.meta, ch, &wd->w.commit, PAGE);
	wd->w.meta.clean_max = 4;
	for (unsigned i = 0; i < ARRAY_SIZE(changers); i++) {
		changers[i] = (struct changer){ .task.fn = changer_task, .wd = wd };
		wd->running++;
		fiber_start(wd->loop, &changers[i].task);
	}
	while (wd->running) {
		fiber_yield_wait();
		if (wd->fails)
			wd->mem->fail_after = (int)prng_below(&wd->prng, 200);
		if (prng_below(&wd->prng, 30) == 0)
			cut_wait(wd);
	}
	wd->mem->fail_after = -1;
	wd->fails = false;
	cut_wait(wd);
	assert_memory_equal(wd->mem->bytes, wd->model, FILE_BYTES);
	timer_cancel(wd->loop, &wd->w.commit.timer);
	meta_fini(&wd->w.meta);
	node_put_wait(&wd->mem->node);
	return 0;
}

/* How often something was wrong, where a rule is broken. */
static unsigned run(uint64_t seed, bool fails, uint64_t broken)
{
	struct world *wd = calloc(1, sizeof(*wd));
	struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = seed };
	unsigned nwrong;

	wd->prng.state = seed;
	wd->fails = fails;
	wd->w.broken = broken;
	assert_int_equal(loop_new(&o, &wd->loop, NULL), 0);
	loop_call(wd->loop, body, wd);
	loop_free(wd->loop);
	nwrong = broken & BREAK_I2_STALE ? wd->nstale : wd->ndiffer;
	free(wd);
	return nwrong;
}

static void i1_i2_i3_changes_reads_and_cuts(void **state)
{
	for (uint64_t seed = 1; seed < 20; seed++)
		run(seed, false, 0);
}

static void i2_i3_stale_reads_and_late_cuts_are_caught(void **state)
{
	assert_true(run(1, false, BREAK_I2_STALE) > 0);
	assert_true(run(1, false, BREAK_I3_LATE) > 0);
}

static void i4_failed_writes_leave_pages_dirty(void **state)
{
	for (uint64_t seed = 100; seed < 108; seed++)
		run(seed, true, 0);
}

static int forget_body(void *arg)
{
	struct world *wd = arg;
	struct meta *m = &wd->w.meta;
	struct meta_page *p;
	struct meta_cut *cut;
	uint64_t bytes = 0, writes = 0;

	wd->mem = test_mem_new(wd->loop, FILE_BYTES);
	assert_int_equal(node_open_home_wait(&wd->mem->node, NULL), 0);
	wd->w.home = wd->loop;
	commit_init(&wd->w.commit);
	meta_init(m, wd->mem->node.home_chan, &wd->w.commit, PAGE);

	/* A new table is of phase A until it is written, then of phase B. */
	assert_int_equal(meta_new(m, META_L2, 4 * PAGE, NULL, true, &p), 0);
	meta_put(m, p);
	assert_int_equal(meta_cut(m, META_PHASE_B_L2, &cut), 0);
	assert_null(cut);
	assert_int_equal(meta_cut(m, META_PHASE_A_L2, &cut), 0);
	/* Changed while it is written: dirty still, and of phase B. */
	p = meta_try_get(m, 4 * PAGE);
	meta_change(m, p, &(struct meta_record){ .kind = META_L2, .width = 8, .off = 4 * PAGE,
					       .new = 7 });
	meta_put(m, p);
	assert_int_equal(meta_cut_write_wait(cut, &bytes, &writes), 0);
	meta_cut_end(cut, 0);
	assert_int_equal(m->ndirty, 1);
	assert_int_equal(meta_cut(m, META_PHASE_B_L2, &cut), 0);
	assert_non_null(cut);
	/* Forgotten while it is written: another may be made there at once. */
	meta_forget(m, 4 * PAGE, PAGE);
	assert_null(meta_try_get(m, 4 * PAGE));
	assert_int_equal(meta_new(m, META_REFBLOCK, 4 * PAGE, NULL, false, &p), 0);
	meta_put(m, p);
	meta_cut_end(cut, 0);
	/* As another kind, it is damage. */
	assert_int_equal(meta_get_wait(m, META_L1, 4 * PAGE, &p), -EUCLEAN);
	timer_cancel(wd->loop, &wd->w.commit.timer);
	meta_fini(m);
	node_put_wait(&wd->mem->node);
	return 0;
}

static void new_and_forgotten_pages(void **state)
{
	struct world *wd = calloc(1, sizeof(*wd));
	struct loop_opts o = { .backend = LOOP_SIM };

	assert_int_equal(loop_new(&o, &wd->loop, NULL), 0);
	loop_call(wd->loop, forget_body, wd);
	loop_free(wd->loop);
	free(wd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(i1_i2_i3_changes_reads_and_cuts),
		cmocka_unit_test(i2_i3_stale_reads_and_late_cuts_are_caught),
		cmocka_unit_test(i4_failed_writes_leave_pages_dirty),
		cmocka_unit_test(new_and_forgotten_pages),
	};

	return cmocka_run_group_tests_name("qcow2_meta", tests, NULL, NULL);
}
