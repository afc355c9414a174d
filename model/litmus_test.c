/* SPDX-License-Identifier: MIT */
/* model/litmus_test.c - does the machine do what x86 and aarch64 do? The tests that the literature
 * describes these architectures by: two to four threads, and an outcome that is possible or not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "model/machine.h"

enum { X, Y, R0, R1, R2, R3 };          /* cells; results are stored in R* */

enum { SC = 1, TSO = 2, ARM = 4 };

struct litmus {
	const char *name;
	int threads;
	void (*build)(struct program *p, int thread);
	uint8_t outcome[6];             /* of the cells; ANY */
	int allowed;                    /* by these models */
};

#define ANY 255

/* ---- two threads that write one place each and read the other's ---- */

static void store_buffer(struct program *p, int t, bool fenced, bool asymmetric)
{
	struct val r;

	store(p, "write", num((uint8_t)(X + t)), num(1), RELAXED);
	if (asymmetric && t)
		membarrier(p, "membarrier");
	else if (fenced)
		fence(p, "fence");
	r = load(p, "read", num((uint8_t)(Y - t)), RELAXED);
	store(p, "result", num((uint8_t)(R0 + t)), r, RELAXED);
}

static void sb(struct program *p, int t)
{
	store_buffer(p, t, false, false);
}

static void sb_fences(struct program *p, int t)
{
	store_buffer(p, t, true, false);
}

static void sb_membarrier(struct program *p, int t)
{
	store_buffer(p, t, false, true);
}

/* One's own store is seen at once, by others later. */
static void sb_forward(struct program *p, int t)
{
	struct val own, r;

	store(p, "write", num((uint8_t)(X + t)), num(1), RELAXED);
	own = load(p, "own", num((uint8_t)(X + t)), RELAXED);
	r = load(p, "read", num((uint8_t)(Y - t)), RELAXED);
	check(p, "own store not seen", own, num(1));
	store(p, "result", num((uint8_t)(R0 + t)), r, RELAXED);
}

static void sb_exchange(struct program *p, int t)
{
	struct val r;

	swap(p, "write", num((uint8_t)(X + t)), num(1), ACQUIRE | RELEASE);
	r = load(p, "read", num((uint8_t)(Y - t)), RELAXED);
	store(p, "result", num((uint8_t)(R0 + t)), r, RELAXED);
}

/* ---- a message and a flag ---- */

enum reader { PLAIN, ACQUIRING, BRANCHING, DEPENDING };

static uint8_t zero(uint8_t a, uint8_t b)
{
	return 0;
}

static void message(struct program *p, int t, enum order order, enum reader reader)
{
	struct val flag, r, address = num(X);
	int end = label(p);

	if (t == 0) {
		store(p, "message", num(X), num(1), RELAXED);
		store(p, "flag", num(Y), num(1), order);
		place(p, end);
		return;
	}
	flag = load(p, "flag", num(Y), reader == ACQUIRING ? ACQUIRE : RELAXED);
	if (reader == BRANCHING)
		jump_unless(p, flag, num(1), end);
	if (reader == DEPENDING)
		address = set(p, zero, flag, num(0));
	r = load(p, "message", address, RELAXED);
	store(p, "flag result", num(R0), flag, RELAXED);
	store(p, "result", num(R1), plus(r, 1), RELAXED);
	place(p, end);
}

static void mp(struct program *p, int t)
{
	message(p, t, RELAXED, PLAIN);
}

static void mp_release(struct program *p, int t)
{
	message(p, t, RELEASE, PLAIN);
}

static void mp_acquire(struct program *p, int t)
{
	message(p, t, RELAXED, ACQUIRING);
}

static void mp_release_acquire(struct program *p, int t)
{
	message(p, t, RELEASE, ACQUIRING);
}

static void mp_release_branch(struct program *p, int t)
{
	message(p, t, RELEASE, BRANCHING);
}

static void mp_release_address(struct program *p, int t)
{
	message(p, t, RELEASE, DEPENDING);
}

/* ---- others ---- */

/* Each reads what the other writes afterwards. */
static void lb(struct program *p, int t)
{
	struct val r = load(p, "read", num((uint8_t)(X + t)), RELAXED);

	store(p, "write", num((uint8_t)(Y - t)), num(1), RELAXED);
	store(p, "result", num((uint8_t)(R0 + t)), r, RELAXED);
}

static void lb_data(struct program *p, int t)
{
	struct val r = load(p, "read", num((uint8_t)(X + t)), RELAXED);

	store(p, "write", num((uint8_t)(Y - t)), r, RELAXED);
	store(p, "result", num((uint8_t)(R0 + t)), r, RELAXED);
}

static void two_writes(struct program *p, int t)
{
	store(p, "first", num((uint8_t)(X + t)), num(1), RELAXED);
	store(p, "second", num((uint8_t)(Y - t)), num(2), RELAXED);
}

/* One place never goes backwards. */
static void coherence(struct program *p, int t)
{
	struct val a, b;

	if (t == 0) {
		store(p, "write", num(X), num(1), RELAXED);
		return;
	}
	a = load(p, "first", num(X), RELAXED);
	b = load(p, "second", num(X), RELAXED);
	store(p, "result", num(R0), a, RELAXED);
	store(p, "result", num(R1), plus(b, 1), RELAXED);
}

/* Two readers and two writers: do they agree on the order of the writes? */
static void iriw(struct program *p, int t)
{
	struct val a, b;

	if (t < 2) {
		store(p, "write", num((uint8_t)(X + t)), num(1), RELAXED);
		return;
	}
	a = load(p, "first", num((uint8_t)(t == 2 ? X : Y)), ACQUIRE);
	b = load(p, "second", num((uint8_t)(t == 2 ? Y : X)), RELAXED);
	store(p, "result", num((uint8_t)(R0 + 2 * (t - 2))), a, RELAXED);
	store(p, "result", num((uint8_t)(R1 + 2 * (t - 2))), plus(b, 1), RELAXED);
}

/* A lock keeps two increments apart. */
static void locked(struct program *p, int t)
{
	struct val r;

	lock(p, "lock", num(Y), ACQUIRE);
	r = load(p, "read", num(X), RELAXED);
	store(p, "write", num(X), plus(r, 1), RELAXED);
	store(p, "unlock", num(Y), num(0), RELEASE);
}

static void locked_badly(struct program *p, int t)
{
	struct val r;

	lock(p, "lock", num(Y), ACQUIRE);
	r = load(p, "read", num(X), RELAXED);
	store(p, "write", num(X), plus(r, 1), RELAXED);
	store(p, "unlock", num(Y), num(0), RELAXED);
}

static const struct litmus TESTS[] = {
	{ "SB", 2, sb, { 1, 1, 0, 0, ANY, ANY }, TSO | ARM },
	{ "SB+fences", 2, sb_fences, { 1, 1, 0, 0, ANY, ANY }, 0 },
	{ "SB+membarrier", 2, sb_membarrier, { 1, 1, 0, 0, ANY, ANY }, 0 },
	{ "SB+forward", 2, sb_forward, { 1, 1, 0, 0, ANY, ANY }, TSO | ARM },
	{ "SB+exchanges", 2, sb_exchange, { 1, 1, 0, 0, ANY, ANY }, 0 },
	{ "MP", 2, mp, { 1, 1, 1, 1, ANY, ANY }, ARM },
	{ "MP+release", 2, mp_release, { 1, 1, 1, 1, ANY, ANY }, ARM },
	{ "MP+acquire", 2, mp_acquire, { 1, 1, 1, 1, ANY, ANY }, ARM },
	{ "MP+release+acquire", 2, mp_release_acquire, { 1, 1, 1, 1, ANY, ANY }, 0 },
	{ "MP+release+branch", 2, mp_release_branch, { 1, 1, 1, 1, ANY, ANY }, ARM },
	{ "MP+release+address", 2, mp_release_address, { 1, 1, 1, 1, ANY, ANY }, 0 },
	{ "LB", 2, lb, { 1, 1, 1, 1, ANY, ANY }, ARM },
	{ "LB+data", 2, lb_data, { ANY, ANY, 1, 1, ANY, ANY }, 0 },
	{ "2+2W", 2, two_writes, { 1, 1, ANY, ANY, ANY, ANY }, ARM },
	{ "CoRR", 2, coherence, { 1, ANY, 1, 1, ANY, ANY }, 0 },
	{ "IRIW+acquires", 4, iriw, { 1, 1, 1, 1, 1, 1 }, 0 },
	{ "lock", 2, locked, { 1, 0, ANY, ANY, ANY, ANY }, 0 },
	{ "lock, unlock relaxed", 2, locked_badly, { 1, 0, ANY, ANY, ANY, ANY }, ARM },
};

static const struct litmus *running;

static bool is_outcome(const uint8_t *cells)
{
	for (int i = 0; i < 6; i++)
		if (running->outcome[i] != ANY && running->outcome[i] != cells[i])
			return false;
	return true;
}

static bool can_be(const struct litmus *l, enum machine_model model)
{
	static struct program programs[MACHINE_THREADS];
	struct machine_world w = { .model = model, .threads = l->threads, .seen = is_outcome };
	struct machine_result result;

	running = l;
	for (int t = 0; t < l->threads; t++) {
		program_begin(&programs[t], t ? "other" : "one");
		l->build(&programs[t], t);
		program_end(&programs[t]);
		w.programs[t] = &programs[t];
	}
	assert_int_equal(machine_search(&w, &result), 0);
	assert_null(result.violation);
	assert_true(result.ends > 0);
	return result.seen > 0;
}

static void machine_allows_what_the_processors_do(void **state)
{
	for (size_t i = 0; i < sizeof(TESTS) / sizeof(TESTS[0]); i++) {
		for (int model = MODEL_SC; model <= MODEL_ARM; model++) {
			bool allowed = TESTS[i].allowed >> model & 1;

			if (can_be(&TESTS[i], model) != allowed)
				fail_msg("%s in model %d should be %s", TESTS[i].name, model,
						allowed ? "possible" : "impossible");
		}
	}
}

static void take_twice(struct program *p, int first)
{
	lock(p, "lock", num((uint8_t)(X + first)), ACQUIRE);
	lock(p, "lock", num((uint8_t)(Y - first)), ACQUIRE);
	store(p, "unlock", num((uint8_t)(Y - first)), num(0), RELEASE);
	store(p, "unlock", num((uint8_t)(X + first)), num(0), RELEASE);
}

static void search_finds_deadlocks(void **state)
{
	struct program one, other;
	struct machine_world w = { .threads = 2, .programs = { &one, &other } };
	struct machine_result result;

	for (int model = MODEL_SC; model <= MODEL_ARM; model++) {
		for (int opposite = 0; opposite < 2; opposite++) {
			program_begin(&one, "one");
			take_twice(&one, 0);
			program_end(&one);
			program_begin(&other, "other");
			take_twice(&other, opposite);
			program_end(&other);
			w.model = model;
			assert_int_equal(machine_search(&w, &result), 0);
			if (opposite)
				assert_string_equal(result.violation, "deadlock");
			else
				assert_null(result.violation);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(machine_allows_what_the_processors_do),
		cmocka_unit_test(search_finds_deadlocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
