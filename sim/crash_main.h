/* SPDX-License-Identifier: MIT */
/* sim/crash_main.h - what the programs that cut the power have in common: how much they do, and
 * which one case they show, comes from the environment.
 *
 *	BYRE_SIM_TRACES=500 BYRE_SIM_IMAGES=60 (a trace)        how much
 *	BYRE_SIM_SEED=1                                         where seeds begin
 *	BYRE_SIM_REOPEN=8                                       one of so many is written on
 *	BYRE_SIM_TEST='q4_*'                                    only these tests
 *	BYRE_SIM_CASE=SEED:EVENT:FATE                           one case, with its log */
#ifndef SIM_CRASH_MAIN_H
#define SIM_CRASH_MAIN_H

#include "sim/campaign.h"

/* The number in the environment's @name, or @otherwise. */
uint64_t crash_number(const char *name, uint64_t otherwise);
/* As much as the environment asks for, of traces that @change (may be NULL) changes. */
struct campaign crash_campaign(void (*change)(struct trace_opts *o, uint64_t seed));
/* Inside a test, which fails if the campaign finds something. Prints what was done. */
void crash_expect_clean(struct campaign *c);
/* Inside a test, which fails if the campaign finds nothing. */
void crash_expect_caught(struct campaign *c);
/* Makes logs silent, as damage is what is looked for, and chooses tests. */
void crash_main_init(void);
/* Shows the one case that is asked for, of traces as @change makes them: the exit code; < 0: none
 * is. Before crash_main_init(). */
int crash_main_show(void (*change)(struct trace_opts *o, uint64_t seed));

#endif
