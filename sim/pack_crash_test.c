/* SPDX-License-Identifier: MIT */
/* Power cuts and faults while clusters are written compressed; and for each rule of pack.h, that a
 * writer which leaves it out is caught.
 * How much, and which case, as sim/crash_main.h has it; a case also with
 *
 *	BYRE_SIM_BROKEN=0x4                                     a rule left out
 *	BYRE_SIM_FAULTS=1 or BYRE_SIM_RACES=1                   faults, or more fibers */
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

enum { BROKEN_TRACES = 40 * TRACE_CELLS, BROKEN_IMAGES = 16 };

static uint64_t broken;

/* A third of the traces compresses all that is new; the rest, what asks for it. */
static void packed(struct trace_opts *o, uint64_t seed)
{
	o->packs = o->image.has_data_file ? PACKS_NOTHING :
		   mix64(seed + 7) % 3 ? PACKS_ASKED : PACKS_ALL;
	o->broken = broken;
}

static void packed_with_faults(struct trace_opts *o, uint64_t seed)
{
	static const unsigned kinds[] = { 1 << SIM_WRITE, SIM_METADATA, 1 << SIM_SYNC, SIM_READS };
	struct prng p = { mix64(seed) };

	packed(o, seed);
	o->fault = (struct sim_fault){ .kinds = kinds[prng_below(&p, ARRAY_SIZE(kinds))],
				       .error = prng_below(&p, 2) ? ENOSPC : EIO,
				       .nth = 1 + prng_below(&p, 40),
				       .count = 1 + prng_below(&p, 5) };
	if (o->fault.kinds & (SIM_READS | 1 << SIM_SYNC))
		o->fault.error = EIO;
}

static void packed_and_racing(struct trace_opts *o, uint64_t seed)
{
	packed(o, seed);
	o->is_racy = true;
	o->nfibers = 10;
	o->nops = 300;
	o->reopen_after = 0;
}

static void z6_z7_z8_no_power_cut_hurts(void **state)
{
	struct campaign c = crash_campaign(packed);

	crash_expect_clean(&c);
}

static void q9_what_fails_is_not_done(void **state)
{
	struct campaign c = crash_campaign(packed_with_faults);

	crash_expect_clean(&c);
}

static void z9_requests_that_race_hurt_nobody(void **state)
{
	struct campaign c = crash_campaign(packed_and_racing);

	c.traces = c.traces / 4 + 1;
	crash_expect_clean(&c);
}

/* ---- rules left out ---- */

static void expect_caught(enum writer_break rule, enum trace_kind kind,
			  void (*change)(struct trace_opts *o, uint64_t seed))
{
	struct campaign c = { .step = 11, .traces = BROKEN_TRACES, .images = BROKEN_IMAGES,
			      .change = change };

	if (kind != TRACE_KINDS) {
		c.first_seed = (uint64_t)kind * TRACE_SIZES * WORLD_LOOPS_MAX;
		c.step = 1;
	}
	broken = rule;
	crash_expect_caught(&c);
	broken = 0;
}

static void z3_stale_content_is_caught(void **state)
{
	expect_caught(BREAK_Z3_STALE, TRACE_DISCARD, packed_and_racing);
}

static void z6_uncounted_clusters_are_caught(void **state)
{
	expect_caught(BREAK_Z6_UNCOUNTED, TRACE_KINDS, packed);
}

static void z7_mapping_before_writing_is_caught(void **state)
{
	expect_caught(BREAK_Z7_EARLY_MAP, TRACE_KINDS, packed);
}

static void z8_a_flush_that_leaves_buffers_is_caught(void **state)
{
	expect_caught(BREAK_Z8_NO_PUSH, TRACE_KINDS, packed);
}

static void z9_host_clusters_without_a_hold_are_caught(void **state)
{
	expect_caught(BREAK_Z9_NO_HOLD, TRACE_KINDS, packed);
}

/* A single cluster more. */
static void a_leak_is_caught(void **state)
{
	struct campaign c = { .step = 11, .traces = BROKEN_TRACES, .images = BROKEN_IMAGES,
			      .fewer_leaks = 1, .change = packed };

	crash_expect_caught(&c);
}

/* ---- one case ---- */

static void change_one(struct trace_opts *o, uint64_t seed)
{
	broken = crash_number("BYRE_SIM_BROKEN", 0);
	if (crash_number("BYRE_SIM_FAULTS", 0))
		packed_with_faults(o, seed);
	else if (crash_number("BYRE_SIM_RACES", 0))
		packed_and_racing(o, seed);
	else
		packed(o, seed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(z6_z7_z8_no_power_cut_hurts),
		cmocka_unit_test(q9_what_fails_is_not_done),
		cmocka_unit_test(z9_requests_that_race_hurt_nobody),
		cmocka_unit_test(z3_stale_content_is_caught),
		cmocka_unit_test(z6_uncounted_clusters_are_caught),
		cmocka_unit_test(z7_mapping_before_writing_is_caught),
		cmocka_unit_test(z8_a_flush_that_leaves_buffers_is_caught),
		cmocka_unit_test(z9_host_clusters_without_a_hold_are_caught),
		cmocka_unit_test(a_leak_is_caught),
	};
	int shown = crash_main_show(change_one);

	if (shown >= 0)
		return shown;
	crash_main_init();
	return cmocka_run_group_tests_name("pack_crash", tests, NULL, NULL);
}
