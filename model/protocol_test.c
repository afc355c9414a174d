/* SPDX-License-Identifier: MIT */
/* model/protocol_test.c - all that a few threads can do with a heap and an inbox; and that each
 * rule of the protocols is needed: without it, the search finds what goes wrong.
 *
 *	BYRE_MODEL_SHOW=1       tells how many states each search had
 *	BYRE_MODEL_LONG=1       has the machine's whole window everywhere: minutes, gigabytes */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/protocol.h"

enum { TICKET = 0x80 };

static struct program programs[MACHINE_THREADS];

/* ---- scenarios: who is there, and what the cells hold at the start ---- */

enum { OBJECTS_MAX = 3 };

struct scenario {
	const char *name;
	void (*thread[MACHINE_THREADS])(struct protocol *o);
	int objects, loaded;            /* the first of them are in the heap's magazine */
	int sent;                       /* the next are in the inbox, one in each magazine */
	bool orphan;                    /* the heap has no owner */
	int window;                     /* where the machine's is too long to be quick */
};

static void owner_once(struct protocol *o)
{
	protocol_owner(o, 1);
}

static void owner_twice(struct protocol *o)
{
	protocol_owner(o, 2);
}

static void taker(struct protocol *o)
{
	protocol_taker(o, TICKET + o->me);
}

static void unfenced(struct protocol *o)
{
	protocol_unfenced_taker(o, TICKET + o->me);
}

/* Has object 1, or 2, and the magazine of that number. */
static void sender_1(struct protocol *o)
{
	protocol_sender(o, 1, 1, false);
}

static void sender_2(struct protocol *o)
{
	protocol_sender(o, 2, 2, false);
}

static void visitor_1(struct protocol *o)
{
	protocol_sender(o, 1, 1, true);
}

static void visitor_2(struct protocol *o)
{
	protocol_sender(o, 2, 2, true);
}

static void owner_receives(struct protocol *o)
{
	o->inbox = true;
	protocol_owner(o, 1);
}

static void taker_receives(struct protocol *o)
{
	o->inbox = true;
	protocol_taker(o, TICKET + o->me);
}

enum which {
	OWNER_TAKER,
	OWNER_TWO_TAKERS,
	BUSY_OWNER_TAKER,
	UNFENCED,
	LEAVER_COMER_TAKER,
	TWO_COMERS,
	LEAVER_TAKER,
	SENDERS_RECEIVER,
	VISITORS,
	TWO_RECEIVERS,
	RESENDER,
	OWNER_SENDER_TAKER,
	SCENARIOS
};

static const struct scenario SCENARIO[SCENARIOS] = {
	[OWNER_TAKER] = { .name = "owner, taker", .objects = 2, .loaded = 2,
		.thread = { owner_once, taker } },
	[OWNER_TWO_TAKERS] = { .name = "owner, two takers", .objects = 1, .loaded = 1,
		.thread = { owner_once, taker, taker }, .window = 5 },
	[BUSY_OWNER_TAKER] = { .name = "owner twice, taker", .objects = 1, .loaded = 1,
		.thread = { owner_twice, taker } },
	[UNFENCED] = { .name = "owner twice, taker without membarrier", .objects = 1, .loaded = 1,
		.thread = { owner_twice, unfenced } },
	[LEAVER_COMER_TAKER] = { .name = "a thread ends, one comes, taker",
		.objects = 1, .loaded = 1,
		.thread = { protocol_leaver, protocol_comer, taker }, .window = 6 },
	[TWO_COMERS] = { .name = "two threads want a heap", .objects = 2, .loaded = 2,
		.thread = { protocol_comer, protocol_comer }, .orphan = true },
	[LEAVER_TAKER] = { .name = "a thread ends, taker", .objects = 1, .loaded = 1,
		.thread = { protocol_leaver, taker } },
	[SENDERS_RECEIVER] = { .name = "two senders, receiver", .objects = 2,
		.thread = { sender_1, sender_2, protocol_receiver } },
	[VISITORS] = { .name = "two senders that look after the inbox", .objects = 2,
		.thread = { visitor_1, visitor_2 } },
	[TWO_RECEIVERS] = { .name = "sender, sender that looks after the inbox, receiver",
		.objects = 2, .thread = { sender_1, visitor_2, protocol_receiver } },
	[RESENDER] = { .name = "receiver, one that takes and sends again",
		.objects = 3, .sent = 2, .thread = { protocol_receiver, protocol_resender } },
	[OWNER_SENDER_TAKER] = { .name = "sender, owner, taker", .objects = 1,
		.thread = { sender_1, owner_receives, taker_receives }, .window = 4 },
};

static const char *const NAMES[MACHINE_THREADS] = { "first", "second", "third", "fourth" };

static int objects;

static const char *final(const uint8_t *cells)
{
	return protocol_final(cells, objects);
}

/* What seen() counts: ends in which the taker that is the last thread had this result. */
static int result_cell, result_wanted;

static bool has_result(const uint8_t *cells)
{
	return cells[result_cell] == result_wanted;
}

static void lay_out(const struct scenario *s, uint8_t *cells)
{
	cells[C_OWNED] = !s->orphan;
	cells[C_TOP] = (uint8_t)s->loaded;
	for (int i = 0; i < s->loaded; i++)
		cells[C_SLOT + i] = (uint8_t)(i + 1);
	for (int i = 1; i <= s->sent; i++) {
		cells[C_CARRIES - 1 + i] = (uint8_t)i;
		cells[C_LINK - 1 + i] = (uint8_t)(i < s->sent ? i + 1 : 0);
		cells[C_NOTE] = 1;
	}
	cells[C_HEAD] = (uint8_t)(s->sent << 2 | (s->sent ? 1 : 0));
}

static struct machine_result *run(const struct scenario *s, enum mutant mutant,
		enum machine_model model, int result)
{
	static struct machine_result r;
	struct machine_world w = { .model = model, .final = final };

	objects = s->objects;
	w.window = getenv("BYRE_MODEL_LONG") ? MACHINE_WINDOW : s->window;
	for (; w.threads < MACHINE_THREADS && s->thread[w.threads]; w.threads++) {
		struct program *p = &programs[w.threads];
		struct protocol o = { .p = p, .mutant = mutant, .me = (uint8_t)(w.threads + 1) };

		program_begin(p, NAMES[w.threads]);
		s->thread[w.threads](&o);
		program_end(p);
		w.programs[w.threads] = p;
	}
	result_cell = C_RESULT + w.threads - 1;
	result_wanted = result;
	w.seen = result ? has_result : NULL;
	lay_out(s, w.cells);
	assert_int_equal(machine_search(&w, &r), 0);
	if (getenv("BYRE_MODEL_SHOW"))
		fprintf(stderr, "model %d, mutant %d, %s: %llu states, %s\n", model, mutant,
				s->name, (unsigned long long)r.states,
				r.violation ? r.violation : "right");
	return &r;
}

static void is_right(enum which which)
{
	for (int model = MODEL_SC; model <= MODEL_ARM; model++) {
		struct machine_result *r = run(&SCENARIO[which], MUTANT_NONE, model, 0);

		if (r->violation)
			fail_msg("%s, model %d: %s\n%s", SCENARIO[which].name, model, r->violation,
					r->trace);
		assert_true(r->ends > 0);
	}
}

/* ---- the protocols are right ---- */

static void h12_h13_one_thread_has_the_heap_and_sees_what_was_done(void **state)
{
	is_right(OWNER_TAKER);
	is_right(BUSY_OWNER_TAKER);
	is_right(OWNER_TWO_TAKERS);
}

static void h12_threads_that_end_and_begin(void **state)
{
	is_right(LEAVER_TAKER);
	is_right(TWO_COMERS);
	is_right(LEAVER_COMER_TAKER);
}

static void h15_without_membarrier_nothing_is_taken(void **state)
{
	is_right(UNFENCED);
	assert_true(run(&SCENARIO[UNFENCED], MUTANT_NONE, MODEL_ARM, RESULT_TAKEN)->seen == 0);
}

static void i11_i12_i13_magazines_arrive_once_and_whole(void **state)
{
	is_right(SENDERS_RECEIVER);
	is_right(VISITORS);
	is_right(TWO_RECEIVERS);
	is_right(RESENDER);
	is_right(OWNER_SENDER_TAKER);
}

/* A protocol in which takers never get anything would be right as well. */
static void takers_are_served_and_denied(void **state)
{
	for (int model = MODEL_SC; model <= MODEL_ARM; model++) {
		assert_true(run(&SCENARIO[OWNER_TAKER], 0, model, RESULT_TAKEN)->seen > 0);
		assert_true(run(&SCENARIO[OWNER_TAKER], 0, model, RESULT_DENIED)->seen > 0);
		assert_true(run(&SCENARIO[LEAVER_TAKER], 0, model, RESULT_TAKEN)->seen > 0);
	}
}

/* ---- every rule is needed ---- */

enum { SC = 1, TSO = 2, ARM = 4, ALL = SC | TSO | ARM };

static const struct {
	enum mutant mutant;
	const char *name;
	enum which scenario;
	int caught;                     /* in these models */
} MUTANT[] = {
	{ MUTANT_NO_COMPILER_BARRIER, "no compiler barrier", OWNER_TAKER, ALL },
	{ MUTANT_NO_MEMBARRIER, "no membarrier", OWNER_TAKER, TSO | ARM },
	{ MUTANT_MEMBARRIER_FIRST, "membarrier before stop", OWNER_TAKER, TSO | ARM },
	{ MUTANT_LEAVE_RELAXED, "busy = 0 relaxed", OWNER_TAKER, ARM },
	{ MUTANT_LOOK_RELAXED, "busy read relaxed", OWNER_TAKER, ARM },
	{ MUTANT_ENTER_RELAXED, "stop read relaxed", OWNER_TAKER, ARM },
	{ MUTANT_GIVE_RELAXED, "stop = open relaxed", OWNER_TAKER, ARM },
	{ MUTANT_LOCK_RELAXED, "lock relaxed", OWNER_TAKER, ARM },
	{ MUTANT_UNLOCK_RELAXED, "unlock relaxed", OWNER_TAKER, ARM },
	{ MUTANT_ANY_TICKET, "any ticket will do", OWNER_TWO_TAKERS, TSO | ARM },
	{ MUTANT_TAKE_BUSY, "a busy heap is taken", OWNER_TAKER, ALL },
	{ MUTANT_TAKE_UNLOCKED, "taken without the lock", OWNER_TAKER, ALL },
	{ MUTANT_SLOW_UNLOCKED, "slow path without the lock", OWNER_TAKER, ALL },
	{ MUTANT_SLOW_BUSY, "busy in the slow path", OWNER_TAKER, ALL },
	{ MUTANT_ASKED_IN_VAIN, "asked in vain", OWNER_TAKER, ALL },
	{ MUTANT_GIVE_AFTER_UNLOCK, "given back after unlock", OWNER_TWO_TAKERS, ALL },
	{ MUTANT_ADOPT_UNLOCKED, "adopted without the lock", TWO_COMERS, ALL },
	{ MUTANT_ORPHAN_EARLY, "orphan before the lock", LEAVER_COMER_TAKER, ALL },
	{ MUTANT_POST_RELAXED, "sent relaxed", SENDERS_RECEIVER, ARM },
	{ MUTANT_TAKE_RELAXED, "received relaxed", SENDERS_RECEIVER, ARM },
	{ MUTANT_POST_NO_EXCHANGE, "sent by a store", SENDERS_RECEIVER, ALL },
	{ MUTANT_TAKE_NO_EXCHANGE, "received by a load", SENDERS_RECEIVER, ALL },
	{ MUTANT_LINK_LATE, "linked after it was sent", SENDERS_RECEIVER, ALL },
	{ MUTANT_TAKE_ONE, "one is taken of several", RESENDER, ALL },
};

static void h12_h13_h14_i11_i12_every_rule_is_needed(void **state)
{
	assert_int_equal(sizeof(MUTANT) / sizeof(MUTANT[0]), MUTANTS - 1);
	for (size_t i = 0; i < sizeof(MUTANT) / sizeof(MUTANT[0]); i++) {
		for (int model = MODEL_SC; model <= MODEL_ARM; model++) {
			bool expected = MUTANT[i].caught >> model & 1;
			struct machine_result *r = run(&SCENARIO[MUTANT[i].scenario],
					MUTANT[i].mutant, model, 0);

			if (!!r->violation != expected)
				fail_msg("%s in model %d should be %s: %s", MUTANT[i].name, model,
						expected ? "wrong" : "right",
						r->violation ? r->trace : "nothing found");
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(h12_h13_one_thread_has_the_heap_and_sees_what_was_done),
		cmocka_unit_test(h12_threads_that_end_and_begin),
		cmocka_unit_test(h15_without_membarrier_nothing_is_taken),
		cmocka_unit_test(i11_i12_i13_magazines_arrive_once_and_whole),
		cmocka_unit_test(takers_are_served_and_denied),
		cmocka_unit_test(h12_h13_h14_i11_i12_every_rule_is_needed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
