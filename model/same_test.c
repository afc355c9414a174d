/* SPDX-License-Identifier: MIT */
/* model/same_test.c - the model and the code are the same.
 *
 * Each function of the protocols is run, alone, in the code and in the model, from the same state
 * by the same way; both tell the names of their accesses to shared memory, which must be the same
 * in the same order, and leave the same state behind. The code is compiled with MEM_STEP_HOOK. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "mem/handover.h"
#include "mem/inbox.h"
#include "model/protocol.h"

enum { STEPS_MAX = 64, TICKET = 0x80, OPEN = HANDOVER_OPEN_LEAST };

struct steps {
	const char *name[STEPS_MAX];
	int n;
};

static struct steps code, model;

/* Called by the code, before each access. To look again is no other step. */
void mem_step(const char *name);
void mem_step(const char *name)
{
	assert_true(code.n < STEPS_MAX);
	if (!code.n || strcmp(code.name[code.n - 1], name))
		code.name[code.n++] = name;
}

/* ---- a state, in both ---- */

static struct handover heap;
static struct inbox inbox;
static _Alignas(MAGAZINE_BYTES) struct magazine magazine[3];
static struct handover_round round_;

struct start {
	bool busy, owned, sent;
	uint8_t stop;                   /* 0, or TICKET, the round's, or TICKET + 1 */
};

static uint32_t stop_of(uint8_t stop)
{
	return stop ? round_.ticket + (stop - TICKET) : OPEN;
}

static void start_code(struct start s)
{
	memset(&heap, 0, sizeof(heap));
	memset(&inbox, 0, sizeof(inbox));
	memset(&code, 0, sizeof(code));
	round_ = (struct handover_round){ .ticket = HANDOVER_STOPPED | 16, .fenced = true };
	handover_init(&heap, OPEN);
	heap.owned = s.owned;
	atomic_init(&heap.busy, s.busy);
	atomic_init(&heap.stop, stop_of(s.stop));
	if (s.sent)
		inbox_post(&inbox, &magazine[1], 0, 1, INBOX_UNIT);
	memset(&code, 0, sizeof(code));
}

static struct machine_world start_model(struct start s, struct program *p)
{
	static struct program other;    /* is there for membarrier() to be a step */
	struct machine_world w = { .model = MODEL_SC, .threads = 2, .programs = { p, &other } };

	program_begin(&other, "other");
	program_end(&other);

	w.cells[C_BUSY] = s.busy;
	w.cells[C_OWNED] = s.owned;
	w.cells[C_STOP] = s.stop;
	w.cells[C_HEAD] = s.sent ? 1 << 2 | 1 : 0;
	return w;
}

static void run_model(struct machine_world *w)
{
	const char *violation = NULL;
	struct machine_step step[1 + MACHINE_WINDOW + 2 + MACHINE_THREADS];
	struct machine m;

	memset(&model, 0, sizeof(model));
	machine_init(&m, w);
	while (machine_settle(&m, w, &violation) == MACHINE_RUNS) {
		const uint8_t *window = m.threads[0].window;
		const char *name;

		assert_int_equal(machine_steps(&m, w, step, ARRAY_SIZE(step)), 1);
		name = w->programs[0]->instr[window[step->thread ? 0 : step->which]].name;
		if (name)
			model.name[model.n++] = name;
		machine_execute(&m, w, *step);
	}
	memcpy(w->cells, m.cells, sizeof(m.cells));
}

/* ---- what is compared: the code's way and the model's ---- */

struct way {
	const char *name;
	struct start start;
	void (*code)(void);
	void (*model)(struct protocol *o, int end);
};

static void code_fast(void)
{
	assert_true(handover_enter(&heap));
	handover_leave(&heap);
}

static void model_fast(struct protocol *o, int end)
{
	protocol_enter(o, end);
	protocol_leave(o);
}

static void code_slow(void)
{
	if (!handover_enter(&heap)) {
		assert_true(handover_lock(&heap));
		handover_unlock(&heap);
	}
}

static void model_slow(struct protocol *o, int end)
{
	int slow = label(o->p), not_asked = label(o->p);

	protocol_enter(o, slow);
	place(o->p, slow);
	protocol_lock(o, not_asked);
	place(o->p, not_asked);
	protocol_unlock(o);
}

static void code_lock(void)
{
	assert_false(handover_lock(&heap));
	handover_unlock(&heap);
}

static void model_lock(struct protocol *o, int end)
{
	int not_asked = label(o->p);

	protocol_lock(o, not_asked);
	place(o->p, not_asked);
	protocol_unlock(o);
}

static void code_orphan(void)
{
	assert_false(handover_lock(&heap));
	handover_orphan(&heap);
}

static void model_orphan(struct protocol *o, int end)
{
	int not_asked = label(o->p);

	protocol_lock(o, not_asked);
	place(o->p, not_asked);
	protocol_orphan(o);
}

static void code_adopt(void)
{
	handover_adopt(&heap);
}

static void model_adopt(struct protocol *o, int end)
{
	protocol_adopt(o, end);
}

static void code_round(void)
{
	handover_stop(&heap, &round_);
	if (handover_barrier(&round_))
		skip();
	if (handover_take(&heap, &round_))
		handover_give(&heap);
}

static void model_round(struct protocol *o, int end)
{
	protocol_stop(o, TICKET);
	protocol_barrier(o);
	protocol_take(o, TICKET, end);
	protocol_give(o);
}

/* The owner has been by since the stop. */
static void code_take(void)
{
	assert_false(handover_take(&heap, &round_));
}

static void model_take(struct protocol *o, int end)
{
	protocol_take(o, TICKET, end);
	protocol_give(o);
}

static void code_unfenced(void)
{
	round_.fenced = false;
	handover_stop(&heap, &round_);
	if (handover_take(&heap, &round_))
		handover_give(&heap);
}

static void model_unfenced(struct protocol *o, int end)
{
	protocol_stop(o, TICKET);
	protocol_take_unfenced(o, end);
	protocol_give(o);
}

static void code_post(void)
{
	inbox_post(&inbox, &magazine[2], 0, 1, 1);
}

static void model_post(struct protocol *o, int end)
{
	protocol_post(o, num(2));
}

static void code_inbox_take(void)
{
	inbox_take(&inbox);
}

static void model_inbox_take(struct protocol *o, int end)
{
	protocol_inbox_take(o, end);
}

static const struct way WAYS[] = {
	{ "fast path", { .owned = true }, code_fast, model_fast },
	{ "fast path, stopped", { .owned = true, .stop = TICKET }, code_slow, model_slow },
	{ "slow path", { .owned = true, .busy = true }, code_lock, model_lock },
	{ "thread ends", { .owned = true }, code_orphan, model_orphan },
	{ "thread begins", { .owned = false }, code_adopt, model_adopt },
	{ "thread begins, too late", { .owned = true }, code_adopt, model_adopt },
	{ "taken", { .owned = true }, code_round, model_round },
	{ "taken from nobody", { .owned = false }, code_round, model_round },
	{ "denied, busy", { .owned = true, .busy = true }, code_round, model_round },
	{ "denied, open again", { .owned = true }, code_take, model_take },
	{ "denied, another's", { .owned = true, .stop = TICKET + 1 }, code_take, model_take },
	{ "unfenced", { .owned = true }, code_unfenced, model_unfenced },
	{ "unfenced, from nobody", { .owned = false }, code_unfenced, model_unfenced },
	{ "sent to an empty inbox", { .sent = false }, code_post, model_post },
	{ "sent", { .sent = true }, code_post, model_post },
	{ "received nothing", { .sent = false }, code_inbox_take, model_inbox_take },
	{ "received", { .sent = true }, code_inbox_take, model_inbox_take },
};

static void same_state(const uint8_t *cells)
{
	uint8_t newest = cells[C_HEAD] & 3;

	assert_int_equal(atomic_load(&heap.busy), cells[C_BUSY]);
	assert_int_equal(atomic_load(&heap.stop), stop_of(cells[C_STOP]));
	assert_int_equal(mem_lock_held(&heap.lock), cells[C_LOCK]);
	assert_int_equal(heap.owned, cells[C_OWNED]);
	assert_int_equal(inbox_bytes(&inbox), (cells[C_HEAD] >> 2) * INBOX_UNIT);
	assert_ptr_equal(magazine_at(atomic_load(&inbox.head)), newest ? &magazine[newest] : NULL);
	if (newest == 2)
		assert_ptr_equal(magazine_next(&magazine[2]),
				cells[C_LINK + 1] ? &magazine[cells[C_LINK + 1]] : NULL);
}

static void each_step_of_the_code_is_one_of_the_model(void **state)
{
	static struct program p;

	for (size_t i = 0; i < ARRAY_SIZE(WAYS); i++) {
		struct protocol o = { .p = &p, .me = 1 };
		struct machine_world w = start_model(WAYS[i].start, &p);
		int end;

		start_code(WAYS[i].start);
		WAYS[i].code();
		program_begin(&p, "alone");
		end = label(&p);
		WAYS[i].model(&o, end);
		place(&p, end);
		program_end(&p);
		run_model(&w);
		for (int k = 0; k < code.n && k < model.n; k++)
			if (strcmp(code.name[k], model.name[k]))
				fail_msg("%s, step %d: %s in the code, %s in the model",
						WAYS[i].name, k, code.name[k], model.name[k]);
		if (code.n != model.n)
			fail_msg("%s: %d and %d steps", WAYS[i].name, code.n, model.n);
		same_state(w.cells);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_step_of_the_code_is_one_of_the_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
