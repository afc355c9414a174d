/* SPDX-License-Identifier: MIT */
#include "sim/campaign.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "sim/dump.h"

enum { NEAR = 6 };

static void note(struct campaign *c, const struct trace *t, uint32_t k, uint64_t fate,
		 const char *why)
{
	char what[256];

	trace_describe(&t->o, what, sizeof(what));
	c->has_failed = true;
	c->seed = t->o.seed;
	c->k = k;
	c->fate = fate;
	snprintf(c->why, sizeof(c->why), "%s: event %u of %u, fate %llu: %s\n"
		 "again, in detail: BYRE_SIM_CASE=%llu:%u:%llu", what, k, t->log.nevents,
		 (unsigned long long)fate, why, (unsigned long long)t->o.seed, k,
		 (unsigned long long)fate);
}

/* Where to cut: half of them anywhere, half about the end of a sync. */
static uint32_t draw_event(const struct trace *t, struct prng *p)
{
	uint32_t n = t->log.nevents, k = (uint32_t)prng_below(p, n + 1);

	if (prng_below(p, 2))
		return k;
	for (uint32_t i = 0; i < n; i++) {
		const struct sim_event *e = &t->log.events[(k + i) % n];

		if (t->log.ops[e->op].kind != SIM_SYNC)
			continue;
		k = (k + i) % n + (uint32_t)prng_below(p, 2 * NEAR);
		return k > NEAR ? MIN(k - NEAR, n) : 0;
	}
	return k;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static bool judge_cut(struct campaign *c, struct oracle *o, struct trace *t, struct crash *cr,
		      uint32_t k, uint64_t fate)
{
	crash_advance(cr, k);
	crash_make(cr, fate);
	c->judged++;
	if (!oracle_judge(o, t, &cr->image, cr->size, k)) {
		note(c, t, k, fate, o->why);
		return false;
	}
	/* What is dirty can be judged only when it was repaired. */
	if (!o->is_dirty && (!c->reopen_every || mix64(fate + k) % c->reopen_every))
		return true;
	c->reopened++;
	if (!oracle_reopen(o, t, &cr->image, cr->size, k, fate)) {
		char why[1200];

		snprintf(why, sizeof(why), "written on: %s", o->why);
		note(c, t, k, fate, why);
		return false;
	}
	return true;
}

static void cut(struct campaign *c, struct oracle *o, struct trace *t)
{
	struct prng p = { mix64(t->o.seed + 5) };
	uint32_t *ks = malloc((c->images + 1) * sizeof(*ks));
	struct crash cr;

	assert(ks);
	for (unsigned i = 0; i < c->images; i++)
		ks[i] = draw_event(t, &p);
	qsort(ks, c->images, sizeof(*ks), compare);
	crash_init(&cr, &t->log, &t->start, t->start_size, t->o.is_device);
	for (unsigned i = 0; i < c->images && !c->has_failed; i++) {
		uint64_t fate = prng_below(&p, 2) ? prng_below(&p, FATES_NAMED) :
						    FATES_NAMED + prng_below(&p, 1 << 20);

		judge_cut(c, o, t, &cr, ks[i], fate);
	}
	crash_fini(&cr);
	free(ks);
}

static void run_one(struct campaign *c, struct oracle *o, uint64_t seed)
{
	struct trace_opts to;
	struct trace *t = malloc(sizeof(*t));

	assert(t);
	trace_opts_init(&to, seed);
	if (c->change)
		c->change(&to, seed);
	if (!trace_run(t, &to))
		note(c, t, t->log.nevents, 0, t->why.text);
	else if (t->is_closed && !t->o.fault.struck && !oracle_judge_closed(o, t))
		note(c, t, t->log.nevents, 0, o->why);
	else
		cut(c, o, t);
	c->events += t->log.nevents;
	c->struck += t->o.fault.struck;
	trace_fini(t);
	free(t);
}

bool campaign_run(struct campaign *c)
{
	struct oracle o;

	oracle_init(&o, c->first_seed);
	o.fewer = c->fewer_leaks;
	for (unsigned i = 0; i < c->traces && !c->has_failed; i++) {
		run_one(c, &o, c->first_seed + i * c->step);
		c->ran++;
	}
	c->leaked = o.leaked;
	c->most_leaks = o.most_leaks;
	oracle_fini(&o);
	return !c->has_failed;
}

void campaign_show(const struct campaign *c, uint64_t seed, uint32_t k, uint64_t fate)
{
	struct campaign one = *c;
	struct trace_opts to;
	struct trace *t = malloc(sizeof(*t));
	struct oracle o;
	struct crash cr;
	char what[256];

	assert(t);
	oracle_init(&o, seed);
	trace_opts_init(&to, seed);
	if (c->change)
		c->change(&to, seed);
	trace_describe(&to, what, sizeof(what));
	fprintf(stderr, "%s\n", what);
	trace_run(t, &to);
	k = MIN(k, t->log.nevents);
	dump_trace(stderr, t, k);
	if (t->why.text[0]) {
		fprintf(stderr, "the trace itself: %s\n", t->why.text);
	} else {
		if (k == t->log.nevents && t->is_closed && !oracle_judge_closed(&o, t))
			fprintf(stderr, "closed: %s\n", o.why);
		crash_init(&cr, &t->log, &t->start, t->start_size, t->o.is_device);
		one.has_failed = false;
		if (judge_cut(&one, &o, t, &cr, k, fate))
			fprintf(stderr, "nothing is wrong (%llu leaks, %llu allowed)\n",
				(unsigned long long)o.leaks, (unsigned long long)o.leaks_max);
		else
			fprintf(stderr, "%s\n", one.why);
		crash_fini(&cr);
	}
	trace_fini(t);
	free(t);
	oracle_fini(&o);
}
