/* SPDX-License-Identifier: MIT */
/* model/machine.c - one step of the machine. */
#include "model/machine.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static const struct instr *instr(const struct machine_world *w, const struct machine *m, int t,
		int k)
{
	return &w->programs[t]->instr[m->threads[t].window[k]];
}

static bool is_done(const struct machine_thread *t, int k)
{
	return t->done >> k & 1;
}

static bool is_local(const struct instr *i)
{
	return i->op == OP_SET || i->op == OP_JUMP || i->op == OP_CHECK || i->op == OP_END;
}

static bool is_memory(const struct instr *i)
{
	return i->op <= OP_LOCK;
}

static uint8_t value(const struct machine_thread *t, struct val v)
{
	return (uint8_t)(v.add + (v.reg < 0 ? 0 : t->regs[v.reg]));
}

/* ---- what waits for what ---- */

/* No earlier instruction that is still to be executed writes what that of place @k reads, nor reads
 * or writes what it writes. */
static bool has_registers(const struct machine *m, const struct machine_world *w, int t, int k)
{
	const struct program *p = w->programs[t];
	const struct machine_thread *th = &m->threads[t];
	const struct instr *i = instr(w, m, t, k);
	uint64_t reads = p->reads[th->window[k]];
	uint64_t writes = i->dest < 0 ? 0 : UINT64_C(1) << i->dest;

	for (int e = 0; e < k; e++) {
		if (is_done(th, e))
			continue;
		int8_t dest = instr(w, m, t, e)->dest;
		uint64_t written = dest < 0 ? 0 : UINT64_C(1) << dest;

		if (written & (reads | writes) || p->reads[th->window[e]] & writes)
			return false;
	}
	return true;
}

/* As has_registers(), for one value. */
static bool is_known(const struct machine *m, const struct machine_world *w, int t, int k,
		struct val v)
{
	for (int e = 0; e < k; e++)
		if (!is_done(&m->threads[t], e) && v.reg >= 0 && instr(w, m, t, e)->dest == v.reg)
			return false;
	return true;
}

static bool is_fence(const struct instr *i)
{
	return i->op == OP_FENCE || i->op == OP_MEMBARRIER;
}

/* @early, of place @e and not executed, and @late both access memory, and @late's address is known:
 * do they have to keep their order because it may be the same? */
static bool same_place_waits(const struct machine *m, const struct machine_world *w, int t, int e,
		const struct instr *late)
{
	const struct instr *early = instr(w, m, t, e);
	const struct machine_thread *th = &m->threads[t];

	if (!is_known(m, w, t, e, early->address))
		return true;
	if (value(th, early->address) != value(th, late->address))
		return false;
	/* A load may take the value from a store that nobody else sees yet. */
	return !(early->op == OP_STORE && late->op == OP_LOAD &&
			is_known(m, w, t, e, early->value));
}

static bool must_wait(const struct machine *m, const struct machine_world *w, int t, int e, int k)
{
	const struct instr *early = instr(w, m, t, e), *late = instr(w, m, t, k);

	if (early->op == OP_JUMP)
		return late->op != OP_LOAD;
	if (early->op == OP_SET || early->op == OP_CHECK)
		return false;
	if (is_fence(early) || is_fence(late))
		return true;
	if (same_place_waits(m, w, t, e, late))
		return true;
	switch (w->model) {
	case MODEL_SC:
		return true;
	case MODEL_TSO:
		return !(early->op == OP_STORE && late->op == OP_LOAD);
	case MODEL_ARM:
		return (early->op != OP_STORE && early->order & ACQUIRE) ||
			(late->op != OP_LOAD && late->order & RELEASE);
	}
	return true;
}

/* May place @k, no local instruction, be executed now? */
static bool is_enabled(const struct machine *m, const struct machine_world *w, int t, int k)
{
	const struct instr *i = instr(w, m, t, k);

	if (i->op == OP_MEMBARRIER || !has_registers(m, w, t, k))
		return false;
	for (int e = 0; e < k; e++)
		if (!is_done(&m->threads[t], e) && must_wait(m, w, t, e, k))
			return false;
	return i->op != OP_LOCK || !m->cells[value(&m->threads[t], i->address)];
}

/* ---- what touches no memory ---- */

static void retire(struct machine_thread *t)
{
	while (t->n && t->done & 1) {
		memmove(t->window, t->window + 1, MACHINE_WINDOW - 1);
		t->window[MACHINE_WINDOW - 1] = 0;
		t->n--;
		t->done >>= 1;
		t->guessed >>= 1;
		t->guess >>= 1;
	}
}

static int window(const struct machine_world *w)
{
	return w->window ? w->window : MACHINE_WINDOW;
}

static void fetch(struct machine_thread *t, const struct machine_world *w,
		const struct program *p)
{
	while (t->n < window(w) && !t->held) {
		enum op op = p->instr[t->next].op;

		t->window[t->n++] = t->next++;
		t->held = op == OP_JUMP || op == OP_END;
	}
}

static bool takes_jump(const struct machine_thread *t, const struct instr *i)
{
	return (value(t, i->value) == value(t, i->other)) == i->sense;
}

static void follow(struct machine_thread *t, const struct instr *jump, int k, bool taken)
{
	t->next = (uint8_t)(taken ? jump->target : t->window[k] + 1);
	t->held = false;
}

static bool waits_for_branch(const struct machine *m, const struct machine_world *w, int t, int k)
{
	for (int e = 0; e < k; e++)
		if (!is_done(&m->threads[t], e) && instr(w, m, t, e)->op == OP_JUMP)
			return true;
	return false;
}

/* Executes the local instruction at place @k. */
static enum machine_state do_local(struct machine *m, const struct machine_world *w, int t, int k)
{
	struct machine_thread *th = &m->threads[t];
	const struct instr *i = instr(w, m, t, k);

	th->done |= (uint8_t)(1 << k);
	switch (i->op) {
	case OP_SET:
		th->regs[i->dest] = i->fn(value(th, i->value), value(th, i->other));
		return MACHINE_RUNS;
	case OP_CHECK:
		return value(th, i->value) == value(th, i->other) ? MACHINE_RUNS : MACHINE_VIOLATED;
	default:
		assert(i->op == OP_JUMP);
		if (!(th->guessed >> k & 1))
			follow(th, i, k, takes_jump(th, i));
		else if ((th->guess >> k & 1) != takes_jump(th, i))
			return MACHINE_MISPREDICTED;
		return MACHINE_RUNS;
	}
}

/* A membarrier() begins when all before it is done, and ends when all threads have passed. */
static bool pass_membarrier(struct machine *m, const struct machine_world *w, int t)
{
	struct machine_thread *th = &m->threads[t];

	if (!th->in_barrier) {
		th->in_barrier = true;
		for (int u = 0; u < w->threads; u++)
			if (u != t)
				th->awaits |= (uint8_t)(1 << u);
	}
	if (th->awaits)
		return false;
	th->in_barrier = false;
	th->done |= 1;
	return true;
}

static bool has_ended(const struct machine *m, const struct machine_world *w, int t)
{
	return m->threads[t].n && instr(w, m, t, 0)->op == OP_END;
}

/* Registers that no instruction will read: equal states shall look alike. */
static void forget_registers(struct machine_thread *t, const struct program *p)
{
	uint64_t live = t->n ? p->live[t->window[0]] : p->live[t->next];

	for (int k = 0; k < t->n; k++)
		if (is_done(t, k) && p->instr[t->window[k]].dest >= 0)
			live |= UINT64_C(1) << p->instr[t->window[k]].dest;
	for (int r = 0; r < p->regs; r++)
		if (!(live >> r & 1))
			t->regs[r] = 0;
}

static enum machine_state settle_thread(struct machine *m, const struct machine_world *w, int t,
		const char **ret_violation)
{
	struct machine_thread *th = &m->threads[t];
	bool changed = true;

	while (changed) {
		changed = false;
		retire(th);
		fetch(th, w, w->programs[t]);
		for (int k = 0; k < th->n; k++) {
			const struct instr *i = instr(w, m, t, k);
			enum machine_state state;

			if (is_done(th, k) || !is_local(i) || i->op == OP_END ||
					!has_registers(m, w, t, k) ||
					(i->op == OP_CHECK && waits_for_branch(m, w, t, k)))
				continue;
			state = do_local(m, w, t, k);
			if (state == MACHINE_VIOLATED)
				*ret_violation = i->name;
			if (state != MACHINE_RUNS)
				return state;
			changed = true;
		}
		if (th->n && !(th->done & 1) && instr(w, m, t, 0)->op == OP_MEMBARRIER)
			changed |= pass_membarrier(m, w, t);
	}
	forget_registers(th, w->programs[t]);
	return MACHINE_RUNS;
}

enum machine_state machine_settle(struct machine *m, const struct machine_world *w,
		const char **ret_violation)
{
	int ended = 0;

	for (int t = 0; t < w->threads; t++) {
		enum machine_state state = settle_thread(m, w, t, ret_violation);

		if (state != MACHINE_RUNS)
			return state;
		ended += has_ended(m, w, t);
	}
	return ended == w->threads ? MACHINE_ENDED : MACHINE_RUNS;
}

void machine_init(struct machine *m, const struct machine_world *w)
{
	memset(m, 0, sizeof(*m));
	memcpy(m->cells, w->cells, sizeof(m->cells));
}

/* ---- what does ---- */

/* Nothing is done ahead of something that is not: the thread is at one point of its program. */
static bool is_in_order(const struct machine *m, const struct machine_world *w, int t)
{
	for (int k = 0; k < m->threads[t].n; k++)
		if (is_done(&m->threads[t], k) && is_memory(instr(w, m, t, k)))
			return false;
	return true;
}

/* Prediction only brings loads forward, and only the ARM model lets it. */
static bool can_predict(const struct machine *m, const struct machine_world *w, int t)
{
	const struct machine_thread *th = &m->threads[t];
	int last = th->n - 1;

	return w->model == MODEL_ARM && th->held && th->n < window(w) &&
		!is_done(th, last) && instr(w, m, t, last)->op == OP_JUMP;
}

int machine_steps(const struct machine *m, const struct machine_world *w,
		struct machine_step *steps, int max)
{
	int n = 0;

	for (int t = 0; t < w->threads; t++) {
		for (int k = 0; k < m->threads[t].n; k++) {
			if (is_done(&m->threads[t], k) || is_local(instr(w, m, t, k)) ||
					!is_enabled(m, w, t, k))
				continue;
			steps[n++] = (struct machine_step){ (uint8_t)t, STEP_EXECUTE, (uint8_t)k };
		}
		for (int taken = 0; taken < 2 && can_predict(m, w, t); taken++)
			steps[n++] = (struct machine_step){ (uint8_t)t, STEP_PREDICT,
				(uint8_t)taken };
		for (int u = 0; u < w->threads; u++)
			if (m->threads[u].awaits >> t & 1 && is_in_order(m, w, t))
				steps[n++] = (struct machine_step){ (uint8_t)t, STEP_BARRIER,
					(uint8_t)u };
		assert(n <= max - MACHINE_WINDOW - 2 - MACHINE_THREADS);
	}
	return n;
}

/* What a load of place @k gets: from its own youngest store that fits, or from memory. */
static uint8_t read_cell(const struct machine *m, const struct machine_world *w, int t, int k,
		uint8_t address)
{
	const struct machine_thread *th = &m->threads[t];

	for (int e = k - 1; e >= 0; e--) {
		const struct instr *i = instr(w, m, t, e);

		if (!is_done(th, e) && i->op == OP_STORE && value(th, i->address) == address)
			return value(th, i->value);
	}
	return m->cells[address];
}

static void access_memory(struct machine *m, const struct machine_world *w, int t, int k)
{
	struct machine_thread *th = &m->threads[t];
	const struct instr *i = instr(w, m, t, k);
	uint8_t address = value(th, i->address), new = value(th, i->value);
	uint8_t other = value(th, i->other), old;

	assert(address < MACHINE_CELLS);
	old = i->op == OP_LOAD ? read_cell(m, w, t, k, address) : m->cells[address];
	if (i->op == OP_LOCK)
		m->cells[address] = 1;
	else if (i->op == OP_STORE || i->op == OP_SWAP || (i->op == OP_CAS && old == other))
		m->cells[address] = new;
	if (i->dest >= 0)
		th->regs[i->dest] = old;
}

void machine_execute(struct machine *m, const struct machine_world *w, struct machine_step step)
{
	struct machine_thread *th = &m->threads[step.thread];

	switch (step.kind) {
	case STEP_BARRIER:
		m->threads[step.which].awaits &= (uint8_t)~(1 << step.thread);
		break;
	case STEP_PREDICT:
		th->guessed |= (uint8_t)(1 << (th->n - 1));
		th->guess |= (uint8_t)(step.which << (th->n - 1));
		follow(th, instr(w, m, step.thread, th->n - 1), th->n - 1, step.which);
		break;
	case STEP_EXECUTE:
		if (is_memory(instr(w, m, step.thread, step.which)))
			access_memory(m, w, step.thread, step.which);
		th->done |= (uint8_t)(1 << step.which);
		break;
	}
}

void machine_describe(const struct machine *m, const struct machine_world *w,
		struct machine_step step, char *buf, int bytes)
{
	const struct machine_thread *th = &m->threads[step.thread];
	const char *name = w->programs[step.thread]->name;
	const struct instr *i;

	if (step.kind == STEP_BARRIER) {
		snprintf(buf, (size_t)bytes, "%s passes a barrier for %s", name,
				w->programs[step.which]->name);
		return;
	}
	if (step.kind == STEP_PREDICT) {
		snprintf(buf, (size_t)bytes, "%s predicts %d", name, step.which);
		return;
	}
	i = instr(w, m, step.thread, step.which);
	snprintf(buf, (size_t)bytes, "%s %s%s: %s [%d] %d", name, step.which ? "early " : "",
			i->name ? i->name : "-",
			i->op == OP_LOAD ? "loads" : i->op == OP_STORE ? "stores" : "exchanges",
			value(th, i->address), i->op == OP_LOAD ?
			read_cell(m, w, step.thread, step.which, value(th, i->address)) :
			value(th, i->value));
}
