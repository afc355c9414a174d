/* SPDX-License-Identifier: MIT */
/* Power cuts while qcow2 images are written: none may hurt. And for each rule of the writer, that a
 * writer which leaves it out is caught.
 * How much, and which case, as sim/crash_main.h has it; a case also with
 *
 *	BYRE_SIM_BROKEN=0x4                                     a rule left out
 *	BYRE_SIM_FAULTS=1                                       faults
 *	BYRE_SIM_COPIES=1                                       half of the writes are a COPY */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>

#include "base/bits.h"
#include "fmt/qcow2/writer.h"
#include "sim/crash_main.h"

enum { BROKEN_TRACES = 40 * TRACE_CELLS, BROKEN_IMAGES = 24 };

/* Q1, Q2, Q3, Q4, Q5, Q7, Q8, Q12 of writer.h. */
static void no_power_cut_hurts(void **state)
{
	struct campaign c = crash_campaign(NULL);

	crash_expect_clean(&c);
}

/* ---- faults ---- */

static void add_fault(struct trace_opts *o, uint64_t seed)
{
	static const unsigned kinds[] = { 1 << SIM_WRITE, SIM_METADATA, 1 << SIM_SYNC, SIM_READS,
					  1 << SIM_ZERO | 1 << SIM_DISCARD };
	struct prng p = { mix64(seed) };

	o->fault = (struct sim_fault){ .kinds = kinds[prng_below(&p, ARRAY_SIZE(kinds))],
				       .error = prng_below(&p, 2) ? ENOSPC : EIO,
				       .nth = 1 + prng_below(&p, 40),
				       .count = 1 + prng_below(&p, 3) };
	if (o->fault.kinds & (SIM_READS | 1 << SIM_SYNC))
		o->fault.error = EIO;
}

static void q9_what_fails_is_not_done(void **state)
{
	struct campaign c = crash_campaign(add_fault);

	c.traces = 1 + c.traces / 4;
	c.reopen_every = 0;
	crash_expect_clean(&c);
}

/* Data that does not come through here, whole or failing in the middle. */
static void copy_half(struct trace_opts *o, uint64_t seed)
{
	if (seed % 4 == 0)
		add_fault(o, seed);
	if (o->packs == PACKS_ALL)      /* those refuse it */
		o->packs = PACKS_ASKED;
	o->copies = true;
}

static void no_power_cut_in_a_copy_hurts(void **state)
{
	struct campaign c = crash_campaign(copy_half);

	c.traces = 1 + c.traces / 4;
	crash_expect_clean(&c);
}

/* As the next trace shall fail. */
static struct sim_fault next_fault;

static void fail_next(struct trace_opts *o, uint64_t seed)
{
	o->nops = 14;
	o->nfibers = MAX(o->nloops, 2u);
	o->reopen_after = 0;
	o->fault = next_fault;
}

/* A short trace of each kind: its first request of a kind fails, then its second, and so on. */
static unsigned fail_each(uint64_t seed, unsigned kinds, int error, unsigned count)
{
	for (unsigned nth = 1;; nth++) {
		struct campaign c = { .first_seed = seed, .traces = 1, .images = 3,
				      .change = fail_next };

		next_fault = (struct sim_fault){ .kinds = kinds, .error = error, .nth = nth,
						 .count = count };
		if (!campaign_run(&c))
			fail_msg("request %u of kinds %#x: %s", nth, kinds, c.why);
		if (!c.struck)
			return nth - 1;
	}
}

static void q9_any_request_may_fail(void **state)
{
	static const struct { unsigned kinds; int error; unsigned count; } faults[] = {
		{ SIM_READS, EIO, 1 }, { 1 << SIM_SYNC, EIO, 1 }, { 1 << SIM_WRITE, ENOSPC, 1 },
		{ 1 << SIM_WRITE | 1 << SIM_ZERO, ENOSPC, 1000 }, { SIM_METADATA, EIO, 2 },
	};
	unsigned failed = 0;

	for (unsigned cell = 0; cell < TRACE_CELLS; cell += 11)
		for (unsigned i = 0; i < ARRAY_SIZE(faults); i++)
			failed += fail_each(cell + TRACE_CELLS * (uint64_t)i, faults[i].kinds,
					    faults[i].error, faults[i].count);
	print_message("%u requests failed, one by one\n", failed);
}

/* ---- damage ---- */

/* How often something was written to where the snapshot's L1 table lies, which has no refcounts. */
static unsigned writes_to_table(uint64_t seed, uint64_t broken)
{
	struct trace *t = malloc(sizeof(*t));
	struct trace_opts o;
	unsigned n = 0;

	assert_non_null(t);
	trace_opts_init(&o, seed);
	o.image.is_damaged = true;
	o.broken = broken;
	o.fault.struck = 1;             /* requests may fail */
	trace_run(t, &o);
	for (uint32_t i = 0; i < t->log.nops; i++) {
		const struct sim_op *op = &t->log.ops[i];

		n += op->kind != SIM_SYNC && ranges_overlap(op->off, op->len, t->im.damaged_off,
							    t->im.damaged_len);
	}
	trace_fini(t);
	free(t);
	return n;
}

static void q6_metadata_is_never_handed_out(void **state)
{
	uint64_t broken = 0;

	for (unsigned i = 0; i < 24; i++) {
		unsigned cells = TRACE_SIZES * WORLD_LOOPS_MAX;
		uint64_t seed = i / cells * TRACE_CELLS + TRACE_SHARED * cells + i % cells;

		assert_int_equal(writes_to_table(seed, 0), 0);
		broken += writes_to_table(seed, BREAK_Q6_OVERLAP) > 0;
	}
	assert_true(broken > 12);
}

/* ---- rules left out ---- */

static uint64_t broken;

static void leave_out(struct trace_opts *o, uint64_t seed)
{
	o->broken = broken;
}

/* As q9_what_fails_is_not_done() where only metadata fails. */
static void leave_out_with_faults(struct trace_opts *o, uint64_t seed)
{
	add_fault(o, seed);
	o->fault.kinds = SIM_METADATA;
	o->broken = broken;
}

/* The same where only writes of data fail, and more than one. */
static void leave_out_where_data_fails(struct trace_opts *o, uint64_t seed)
{
	add_fault(o, seed);
	o->fault.kinds = 1 << SIM_WRITE;
	o->fault.count += 1 + seed % 3;
	o->broken = broken;
}

/* Requests that wait long in clusters that are freed and taken again meanwhile. */
static void leave_out_and_race(struct trace_opts *o, uint64_t seed)
{
	o->is_racy = true;
	o->nfibers = 10;
	o->nops = 400;
	o->reopen_after = 0;
	o->broken = broken;
}

/* The traces of @kind and @size, or all (TRACE_KINDS), must betray a writer that leaves @rule
 * out. */
static void expect_caught_in(enum writer_break rule, enum trace_kind kind, unsigned size)
{
	struct campaign c = { .step = 11, .traces = BROKEN_TRACES, .images = BROKEN_IMAGES,
			      .change = leave_out };

	if (kind != TRACE_KINDS) {
		c.first_seed = ((uint64_t)kind * TRACE_SIZES + size) * WORLD_LOOPS_MAX;
		c.step = TRACE_CELLS;
	}
	if (rule == BREAK_Q9_IGNORE)
		c.change = leave_out_with_faults;
	if (rule & (BREAK_W7_RAW | BREAK_W7_ONCE))
		c.change = leave_out_where_data_fails;
	if (rule == BREAK_Q4_NO_EPOCH)
		c.change = leave_out_and_race;
	broken = rule;
	crash_expect_caught(&c);
}

static void expect_caught(enum writer_break rule, enum trace_kind kind)
{
	expect_caught_in(rule, kind, 0);
}

static void q1_no_refcounts_is_caught(void **state)
{
	expect_caught(BREAK_Q1_NO_REFS, TRACE_KINDS);
}

static void q1_early_decrements_are_caught(void **state)
{
	expect_caught(BREAK_Q1_EARLY_REF_MINUS, TRACE_KINDS);
}

static void q1_dropping_shared_compressed_clusters_is_caught(void **state)
{
	expect_caught(BREAK_Q1_PACKED, TRACE_PACKED);
}

static void q1_lazy_refcounts_without_the_dirty_bit_are_caught(void **state)
{
	expect_caught(BREAK_Q1_NOT_DIRTY, TRACE_LAZY);
}

static void q2_a_missing_sync_is_caught(void **state)
{
	expect_caught(BREAK_Q2_NO_SYNC_A, TRACE_KINDS);
}

static void q2_a_missing_sync_of_the_data_file_is_caught(void **state)
{
	expect_caught(BREAK_Q2_NO_SYNC_DATA, TRACE_DATA_FILE);
}

static void q2_taking_all_for_zero_is_caught(void **state)
{
	expect_caught(BREAK_Q2_ALWAYS_ZERO, TRACE_KINDS);
}

static void q2_mapping_before_writing_is_caught(void **state)
{
	expect_caught(BREAK_Q2_EARLY_MAP, TRACE_KINDS);
}

/* Data that is copied follows the same rules. */
static void leave_out_and_copy(struct trace_opts *o, uint64_t seed)
{
	copy_half(o, 1);
	o->broken = broken;
}

static void q2_q3_broken_copies_are_caught(void **state)
{
	static const enum writer_break rules[] = { BREAK_Q2_NO_SYNC_A, BREAK_Q2_EARLY_MAP,
						   BREAK_Q2_ALWAYS_ZERO, BREAK_Q3_COPIED };

	for (unsigned i = 0; i < ARRAY_SIZE(rules); i++) {
		struct campaign c = { .step = 11, .traces = BROKEN_TRACES, .images = BROKEN_IMAGES,
				      .change = leave_out_and_copy };

		broken = rules[i];
		crash_expect_caught(&c);
	}
}

static void q2_joining_late_is_caught(void **state)
{
	expect_caught(BREAK_Q2_JOIN_LATE, TRACE_KINDS);
}

/* The rules that subclusters rest on. */
static void q2_u12_broken_subclusters_are_caught(void **state)
{
	expect_caught(BREAK_Q2_KEPT_FRESH, TRACE_KINDS);
	for (unsigned size = TRACE_EXTENDED; size < TRACE_SIZES; size++) {
		expect_caught_in(BREAK_Q2_KEPT_FRESH, TRACE_ZEROES, size);
		expect_caught_in(BREAK_Q2_NO_SYNC_A, TRACE_RAW_BACKING, size);
		expect_caught_in(BREAK_U12_ALL, TRACE_RAW_BACKING, size);
		expect_caught_in(BREAK_Q2_EARLY_MAP, TRACE_DISCARD, size);
		expect_caught_in(BREAK_Q3_COPIED, TRACE_SHARED, size);
	}
}

static void q3_writing_to_shared_clusters_is_caught(void **state)
{
	expect_caught(BREAK_Q3_COPIED, TRACE_SHARED);
}

static void q4_reuse_before_the_commit_is_caught(void **state)
{
	expect_caught(BREAK_Q4_NO_COMMIT, TRACE_KINDS);
}

static void q4_reuse_under_requests_is_caught(void **state)
{
	expect_caught(BREAK_Q4_NO_EPOCH, TRACE_DISCARD);
}

static void q4_requests_that_race_hurt_nobody(void **state)
{
	struct campaign c = crash_campaign(leave_out_and_race);

	c.traces = TRACE_CELLS / 2;
	c.images = 8;
	c.reopen_every = 0;
	broken = 0;
	crash_expect_clean(&c);
}

static void q5_an_old_autoclear_bit_is_caught(void **state)
{
	expect_caught(BREAK_Q5_AUTOCLEAR, TRACE_KINDS);
}

static void q7_a_table_used_too_early_is_caught(void **state)
{
	expect_caught(BREAK_Q7_SWITCH, TRACE_GROWTH);
}

static void q7_blocks_named_in_two_sectors_are_caught(void **state)
{
	expect_caught(BREAK_Q7_APART, TRACE_GROWTH);
}

static void q8_a_block_used_too_early_is_caught(void **state)
{
	expect_caught(BREAK_Q8_GROW, TRACE_GROWTH);
}

static void q9_an_ignored_error_is_caught(void **state)
{
	expect_caught(BREAK_Q9_IGNORE, TRACE_KINDS);
}

/* A single cluster more. */
static void a_leak_is_caught(void **state)
{
	struct campaign c = { .step = 11, .traces = BROKEN_TRACES, .images = BROKEN_IMAGES,
			      .fewer_leaks = 1 };

	crash_expect_caught(&c);
}

static void w7_what_stays_in_a_raw_file_is_caught(void **state)
{
	expect_caught(BREAK_W7_RAW, TRACE_DATA_FILE);
	expect_caught(BREAK_W7_ONCE, TRACE_DATA_FILE);
}

static void t31_bitmaps_without_a_mark_are_caught(void **state)
{
	expect_caught(BREAK_T31_NO_MARK, TRACE_BITMAPS);
}

static void t31_marks_that_go_early_are_caught(void **state)
{
	expect_caught(BREAK_T31_EARLY, TRACE_BITMAPS);
}

static void t34_tables_before_refcounts_are_caught(void **state)
{
	expect_caught(BREAK_T34_EARLY, TRACE_BITMAPS);
}

static void q10_cutting_too_much_is_caught(void **state)
{
	expect_caught(BREAK_Q10_CUT, TRACE_KINDS);
}

static void q12_a_file_that_ends_early_is_caught(void **state)
{
	expect_caught(BREAK_Q12_SHORT, TRACE_KINDS);
}

static void i3_a_late_cut_is_caught(void **state)
{
	expect_caught(BREAK_I3_LATE, TRACE_KINDS);
}

/* ---- one case ---- */

static void change_one(struct trace_opts *o, uint64_t seed)
{
	if (crash_number("BYRE_SIM_FAULTS", 0))
		add_fault(o, seed);
	if (crash_number("BYRE_SIM_COPIES", 0))
		copy_half(o, seed);
	if (crash_number("BYRE_SIM_BROKEN", 0) == BREAK_Q9_IGNORE)
		leave_out_with_faults(o, seed);
	if (crash_number("BYRE_SIM_BROKEN", 0) & (BREAK_W7_RAW | BREAK_W7_ONCE))
		leave_out_where_data_fails(o, seed);
	o->broken = crash_number("BYRE_SIM_BROKEN", 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_power_cut_hurts),
		cmocka_unit_test(no_power_cut_in_a_copy_hurts),
		cmocka_unit_test(q9_what_fails_is_not_done),
		cmocka_unit_test(q9_any_request_may_fail),
		cmocka_unit_test(q6_metadata_is_never_handed_out),
		cmocka_unit_test(q1_no_refcounts_is_caught),
		cmocka_unit_test(q1_early_decrements_are_caught),
		cmocka_unit_test(q1_dropping_shared_compressed_clusters_is_caught),
		cmocka_unit_test(q1_lazy_refcounts_without_the_dirty_bit_are_caught),
		cmocka_unit_test(q2_a_missing_sync_is_caught),
		cmocka_unit_test(q2_a_missing_sync_of_the_data_file_is_caught),
		cmocka_unit_test(q2_taking_all_for_zero_is_caught),
		cmocka_unit_test(q2_mapping_before_writing_is_caught),
		cmocka_unit_test(q2_q3_broken_copies_are_caught),
		cmocka_unit_test(q2_joining_late_is_caught),
		cmocka_unit_test(q2_u12_broken_subclusters_are_caught),
		cmocka_unit_test(q3_writing_to_shared_clusters_is_caught),
		cmocka_unit_test(q4_reuse_before_the_commit_is_caught),
		cmocka_unit_test(q4_reuse_under_requests_is_caught),
		cmocka_unit_test(q4_requests_that_race_hurt_nobody),
		cmocka_unit_test(q5_an_old_autoclear_bit_is_caught),
		cmocka_unit_test(q7_a_table_used_too_early_is_caught),
		cmocka_unit_test(q7_blocks_named_in_two_sectors_are_caught),
		cmocka_unit_test(q8_a_block_used_too_early_is_caught),
		cmocka_unit_test(q9_an_ignored_error_is_caught),
		cmocka_unit_test(q10_cutting_too_much_is_caught),
		cmocka_unit_test(q12_a_file_that_ends_early_is_caught),
		cmocka_unit_test(a_leak_is_caught),
		cmocka_unit_test(w7_what_stays_in_a_raw_file_is_caught),
		cmocka_unit_test(t31_bitmaps_without_a_mark_are_caught),
		cmocka_unit_test(t31_marks_that_go_early_are_caught),
		cmocka_unit_test(i3_a_late_cut_is_caught),
		cmocka_unit_test(t34_tables_before_refcounts_are_caught),
	};
	int shown = crash_main_show(change_one);

	if (shown >= 0)
		return shown;
	crash_main_init();
	return cmocka_run_group_tests_name("qcow2_crash", tests, NULL, NULL);
}
