/* SPDX-License-Identifier: MIT */
#include "sim/crash_main.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/log.h"

enum { IMAGES = 16, REOPEN_EVERY = 8 };

uint64_t crash_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

struct campaign crash_campaign(void (*change)(struct trace_opts *o, uint64_t seed))
{
	return (struct campaign){
		.first_seed = crash_number("BYRE_SIM_SEED", 0), .step = 1, .change = change,
		.traces = (unsigned)crash_number("BYRE_SIM_TRACES", TRACE_CELLS),
		.images = (unsigned)crash_number("BYRE_SIM_IMAGES", IMAGES),
		.reopen_every = (unsigned)crash_number("BYRE_SIM_REOPEN", REOPEN_EVERY),
	};
}

void crash_expect_clean(struct campaign *c)
{
	print_message("seeds from %llu\n", (unsigned long long)c->first_seed);
	if (!campaign_run(c))
		fail_msg("%s", c->why);
	print_message("%u traces, %llu events, %llu power cuts (%llu written on), %llu left leaks, "
		      "%llu at most\n", c->ran, (unsigned long long)c->events,
		      (unsigned long long)c->judged, (unsigned long long)c->reopened,
		      (unsigned long long)c->leaked, (unsigned long long)c->most_leaks);
}

void crash_expect_caught(struct campaign *c)
{
	if (campaign_run(c))
		fail_msg("%u traces, %llu power cuts: nothing noticed", c->ran,
			 (unsigned long long)c->judged);
	print_message("caught by trace %u: %s\n", c->ran, c->why);
}

static void silent(enum log_level level, const char *line)
{
}

void crash_main_init(void)
{
	log_set_sink(silent);
	if (getenv("BYRE_SIM_TEST"))
		cmocka_set_test_filter(getenv("BYRE_SIM_TEST"));
}

int crash_main_show(void (*change)(struct trace_opts *o, uint64_t seed))
{
	struct campaign c = { .change = change, .reopen_every = (unsigned)
			      crash_number("BYRE_SIM_REOPEN", REOPEN_EVERY) };
	const char *text = getenv("BYRE_SIM_CASE");
	unsigned long long seed, fate = 0;
	unsigned k = UINT32_MAX;

	if (!text)
		return -1;
	if (sscanf(text, "%llu:%u:%llu", &seed, &k, &fate) < 1) {
		fprintf(stderr, "BYRE_SIM_CASE=%s: expected SEED:EVENT:FATE\n", text);
		return 2;
	}
	campaign_show(&c, seed, k, fate);
	return 0;
}
