/* SPDX-License-Identifier: MIT */
/* model/machine.h - a machine with a few threads whose memory accesses may be out of order, and the
 * search of everything that it can do.
 *
 * Each thread has a window of the next instructions of its program. Any of them may be executed
 * next that no earlier one in the window holds up; memory itself is one array, what is executed is
 * seen by all (as on x86 and on aarch64, which are multi-copy atomic). The models differ in what
 * holds up what, see must_wait():
 *	SC   everything, so there is no reordering;
 *	TSO  everything but an earlier store a later load. The stores that later loads have
 *	     overtaken are the store buffer: a load takes what it needs from the youngest
 *	     of them that fits;
 *	ARM  only what the architecture promises: acquire, release, fences; data and address
 *	     dependencies; a store waits for the branches before it, a load does not (it may
 *	     run ahead by prediction); accesses of one place. Release followed by acquire is
 *	     not ordered (LDAPR rather than LDAR).
 * A wrong prediction ends that branch of the search: what the processor would take back has never
 * happened, and the right prediction is searched as well.
 *
 * membarrier() is what the kernel promises: between its begin and its end, every other thread has a
 * moment at which all that comes before in its program has been done and nothing that comes
 * after. That is a state in which nothing in its window is executed (the executed ones at the
 * front have left it): such a moment is taken, or not taken yet, as a step of its own.
 *
 * What is not modelled: a processor that predicts values; accesses larger than a cell; a window
 * longer than the world's; a read-modify-write whose write is seen later than its read.
 *
 * The search is complete: all interleavings and reorderings, each state once, known by a hash of
 * 128 bits. */
#ifndef MODEL_MACHINE_H
#define MODEL_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/program.h"

enum {
	MACHINE_THREADS = 4,
	MACHINE_CELLS = 48,
	MACHINE_WINDOW = 8,
	MACHINE_TRACE = 4096,
};

enum machine_model { MODEL_SC, MODEL_TSO, MODEL_ARM };

struct machine_thread {
	uint8_t regs[PROGRAM_REGS];
	uint8_t window[MACHINE_WINDOW]; /* instructions */
	uint8_t n;
	uint8_t done, guessed, guess;   /* masks over the window */
	uint8_t next;                   /* the instruction to fetch */
	uint8_t held;                   /* nothing is fetched: a branch or the end is the last */
	uint8_t in_barrier;             /* its membarrier() has begun... */
	uint8_t awaits;                 /* ...and these threads have yet to pass one */
};

struct machine {
	uint8_t cells[MACHINE_CELLS];
	struct machine_thread threads[MACHINE_THREADS];
};

/* What is searched. */
struct machine_world {
	enum machine_model model;
	int threads;
	int window;                     /* instructions; 0: MACHINE_WINDOW */
	const struct program *programs[MACHINE_THREADS];
	uint8_t cells[MACHINE_CELLS];   /* at the start */
	/* All programs have ended: NULL, or what is wrong. */
	const char *(*final)(const uint8_t *cells);
	/* Counts something about a final state, for tests that ask whether it can be. Or NULL. */
	bool (*seen)(const uint8_t *cells);
};

struct machine_result {
	uint64_t states, ends;
	uint64_t seen;                  /* ends of which seen() was true */
	const char *violation;          /* NULL, or the first one's name */
	char trace[MACHINE_TRACE];      /* and how it comes about */
};

struct machine_step {
	uint8_t thread;
	enum { STEP_EXECUTE, STEP_PREDICT, STEP_BARRIER } kind;
	uint8_t which;                  /* in the window; taken or not; whose membarrier() */
};

enum machine_state { MACHINE_RUNS, MACHINE_ENDED, MACHINE_MISPREDICTED, MACHINE_VIOLATED };

/* ---- machine.c: one step ---- */

void machine_init(struct machine *m, const struct machine_world *w);
/* Does what touches no memory, in all threads: until machine_steps() are all there is. Returns the
 * state; sets @ret_violation with MACHINE_VIOLATED. */
enum machine_state machine_settle(struct machine *m, const struct machine_world *w,
		const char **ret_violation);
/* What can be done; returns how many. */
int machine_steps(const struct machine *m, const struct machine_world *w,
		struct machine_step *steps, int max);
void machine_execute(struct machine *m, const struct machine_world *w, struct machine_step step);
/* For traces. */
void machine_describe(const struct machine *m, const struct machine_world *w,
		struct machine_step step, char *buf, int bytes);

/* ---- search.c ---- */

/* Searches all; ends with the first violation. Returns 0 or -ENOMEM. */
int machine_search(const struct machine_world *w, struct machine_result *ret);

#endif
