/* SPDX-License-Identifier: MIT */
/* Power cuts and faults while clusters are written compressed; and for each rule of pack.h, that a
 * writer which leaves it out is caught.
 *
 *	BYRE_SIM_TRACES=500 BYRE_SIM_IMAGES=60 (a trace)        how much
 *	BYRE_SIM_SEED=1                                         where seeds begin
 *	BYRE_SIM_TEST='z4_*'                                    only these
 *	BYRE_SIM_CASE=SEED:EVENT:FATE                           one case, with its log
 *	BYRE_SIM_BROKEN=0x4                                     the same, with a rule left out */
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
#include "base/log.h"
#include "fmt/qcow2/writer.h"
#include "sim/campaign.h"

enum { BROKEN_TRACES = 40 * TRACE_CELLS, BROKEN_IMAGES = 16 };

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static void silent(enum log_level level, const char *line)
{
}

static unsigned broken;

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

static void run(struct campaign *c)
{
	if (!campaign_run(c))
		fail_msg("%s", c->why);
	print_message("%u traces, %llu events, %llu power cuts (%llu written on), %llu left leaks, "
		      "%llu at most\n", c->ran, (unsigned long long)c->events,
		      (unsigned long long)c->judged, (unsigned long long)c->reopened,
		      (unsigned long long)c->leaked, (unsigned long long)c->most_leaks);
}

static struct campaign some(void (*change)(struct trace_opts *o, uint64_t seed))
{
	return (struct campaign){
		.first_seed = number("BYRE_SIM_SEED", 0), .step = 1, .change = change,
		.traces = (unsigned)number("BYRE_SIM_TRACES", TRACE_CELLS),
		.images = (unsigned)number("BYRE_SIM_IMAGES", 16),
		.reopen_every = (unsigned)number("BYRE_SIM_REOPEN", 8),
	};
}

static void z6_z7_z8_no_power_cut_hurts(void **state)
{
	struct campaign c = some(packed);

	run(&c);
}

static void q9_what_fails_is_not_done(void **state)
{
	struct campaign c = some(packed_with_faults);

	run(&c);
}

static void z9_requests_that_race_hurt_nobody(void **state)
{
	struct campaign c = some(packed_and_racing);

	c.traces = c.traces / 4 + 1;
	run(&c);
}

/* ---- rules left out ---- */

static void expect_caught(enum writer_break rule, enum trace_kind kind,
			  void (*change)(struct trace_opts *o, uint64_t seed))
{
	struct campaign c = { .step = 11, .traces = BROKEN_TRACES, .images = BROKEN_IMAGES,
			      .change = change };
	bool is_clean;

	if (kind != TRACE_KINDS) {
		c.first_seed = (uint64_t)kind * TRACE_SIZES * WORLD_LOOPS_MAX;
		c.step = 1;
	}
	broken = rule;
	is_clean = campaign_run(&c);
	broken = 0;
	if (is_clean)
		fail_msg("%u traces, %llu power cuts: nothing noticed", c.ran,
			 (unsigned long long)c.judged);
	print_message("caught by trace %u: %s\n", c.ran, c.why);
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

/* ---- one case ---- */

static int show(const char *text)
{
	struct campaign c = { .change = packed,
			      .reopen_every = (unsigned)number("BYRE_SIM_REOPEN", 8) };
	unsigned long long seed, fate = 0;
	unsigned k = UINT32_MAX;

	broken = (unsigned)number("BYRE_SIM_BROKEN", 0);
	if (number("BYRE_SIM_FAULTS", 0))
		c.change = packed_with_faults;
	if (number("BYRE_SIM_RACES", 0))
		c.change = packed_and_racing;
	if (sscanf(text, "%llu:%u:%llu", &seed, &k, &fate) < 1)
		return 2;
	campaign_show(&c, seed, k, fate);
	return 0;
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
	};
	const char *one = getenv("BYRE_SIM_CASE");

	if (one)
		return show(one);
	if (getenv("BYRE_SIM_TEST"))
		cmocka_set_test_filter(getenv("BYRE_SIM_TEST"));
	log_set_sink(silent);
	return cmocka_run_group_tests_name("pack_crash", tests, NULL, NULL);
}
