/* SPDX-License-Identifier: MIT */
/* model/search.c - depth first through all states. */
#include "model/machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	STEPS_MAX = 96,                 /* that are possible in a state */
	DEPTH_MAX = 1024,
	TABLE_FIRST_LOG2 = 16,
	LINE = 96,
};

struct key { uint64_t a, b; };

struct search {
	const struct machine_world *w;
	struct machine_result *result;
	struct key *table;              /* {0, 0} is free */
	uint64_t slots, used;
	int err;
	struct { struct machine before; struct machine_step step; } *path;
};

/* ---- the states seen ---- */

static uint64_t mix(uint64_t h, uint64_t v)
{
	h ^= v;
	h *= UINT64_C(0x9fb21c651e98df25);
	return h ^ h >> 29;
}

static struct key key_of(const struct machine *m)
{
	struct key k = { 1, 2 };
	uint64_t word;

	_Static_assert(sizeof(*m) % sizeof(word) == 0, "is hashed by words");
	for (size_t at = 0; at < sizeof(*m); at += sizeof(word)) {
		memcpy(&word, (const char *)m + at, sizeof(word));
		k.a = mix(k.a, word);
		k.b = mix(k.b + k.a, word * UINT64_C(0xd6e8feb86659fd93));
	}
	k.a |= 1;
	return k;
}

static struct key *find_slot(struct key *table, uint64_t slots, struct key k)
{
	uint64_t i = k.b & (slots - 1);

	while (table[i].a && (table[i].a != k.a || table[i].b != k.b))
		i = (i + 1) & (slots - 1);
	return &table[i];
}

static int grow(struct search *s)
{
	uint64_t slots = s->slots ? s->slots * 4 : UINT64_C(1) << TABLE_FIRST_LOG2;
	struct key *table = calloc(slots, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (uint64_t i = 0; i < s->slots; i++)
		if (s->table[i].a)
			*find_slot(table, slots, s->table[i]) = s->table[i];
	free(s->table);
	s->table = table;
	s->slots = slots;
	return 0;
}

/* Notes @m; true if it is new. */
static bool is_new(struct search *s, const struct machine *m)
{
	struct key k = key_of(m), *slot;

	if (s->used * 2 >= s->slots) {
		s->err = grow(s);
		if (s->err)
			return false;
	}
	slot = find_slot(s->table, s->slots, k);
	if (slot->a)
		return false;
	*slot = k;
	s->used++;
	return true;
}

/* ---- the search ---- */

static void report(struct search *s, const char *violation, int depth)
{
	char line[LINE];
	int at = 0;

	s->result->violation = violation;
	for (int d = 0; d < depth && at < MACHINE_TRACE - LINE - 1; d++) {
		machine_describe(&s->path[d].before, s->w, s->path[d].step, line, LINE);
		at += snprintf(s->result->trace + at, (size_t)(MACHINE_TRACE - at), "%s\n", line);
	}
}

static void look_at_end(struct search *s, const struct machine *m, int depth)
{
	const char *wrong = s->w->final ? s->w->final(m->cells) : NULL;

	s->result->ends++;
	s->result->seen += s->w->seen && s->w->seen(m->cells);
	if (wrong)
		report(s, wrong, depth);
}

static void visit(struct search *s, struct machine *m, int depth)
{
	struct machine_step steps[STEPS_MAX];
	const char *violation = NULL;
	enum machine_state state = machine_settle(m, s->w, &violation);
	int n;

	if (state == MACHINE_VIOLATED)
		report(s, violation, depth);
	if (state == MACHINE_VIOLATED || state == MACHINE_MISPREDICTED || !is_new(s, m))
		return;
	if (state == MACHINE_ENDED) {
		look_at_end(s, m, depth);
		return;
	}
	n = machine_steps(m, s->w, steps, STEPS_MAX);
	if (!n || depth == DEPTH_MAX) {
		report(s, n ? "too deep" : "deadlock", depth);
		return;
	}
	for (int i = 0; i < n && !s->result->violation && !s->err; i++) {
		struct machine next = *m;

		s->path[depth].before = *m;
		s->path[depth].step = steps[i];
		machine_execute(&next, s->w, steps[i]);
		visit(s, &next, depth + 1);
	}
}

int machine_search(const struct machine_world *w, struct machine_result *ret)
{
	struct search s = { .w = w, .result = ret };
	struct machine m;

	memset(ret, 0, sizeof(*ret));
	s.path = calloc(DEPTH_MAX, sizeof(*s.path));
	s.err = s.path ? grow(&s) : -ENOMEM;
	if (!s.err) {
		machine_init(&m, w);
		visit(&s, &m, 0);
	}
	ret->states = s.used;
	free(s.table);
	free(s.path);
	return s.err;
}
