/* SPDX-License-Identifier: MIT */
/* model/program.h - small programs for the machine of machine.h: one a thread.
 *
 * A program is built by calls that add an instruction each, so that the model of a protocol is a C
 * function for each function of the protocol, with statements in the same order. Instructions
 * that stand for an access which the code marks with MEM_STEP() have its name. Registers are
 * written once, so that nothing but what the program means orders its instructions. */
#ifndef MODEL_PROGRAM_H
#define MODEL_PROGRAM_H

#include <stdbool.h>
#include <stdint.h>

enum {
	PROGRAM_INSTRS = 160,
	PROGRAM_REGS = 64,
	PROGRAM_LABELS = 48,
};

enum op {
	OP_LOAD,                        /* dest = [address] */
	OP_STORE,                       /* [address] = value */
	OP_SWAP,                        /* dest = [address], [address] = value, at once */
	OP_CAS,                         /* dest = [address]; if that is @other, [address] = value */
	OP_LOCK,                        /* waits until [address] is 0, and makes it 1, at once */
	OP_FENCE,
	OP_MEMBARRIER,
	OP_SET,                         /* dest = fn(value, other) */
	OP_JUMP,                        /* to target if (value == other) == sense */
	OP_CHECK,                       /* value == other, or the search ends */
	OP_END,
};

enum order { RELAXED = 0, ACQUIRE = 1, RELEASE = 2 };

/* A constant, or the sum of a constant and a register. */
struct val {
	int8_t reg;                     /* -1: none */
	uint8_t add;
};

struct instr {
	const char *name;
	enum op op;
	enum order order;
	int8_t dest;                    /* register, -1: none */
	bool sense;
	struct val address, value, other;
	uint8_t (*fn)(uint8_t, uint8_t);
	int target;                     /* a label; once program_end() was called, an instruction */
};

struct program {
	const char *name;
	int n, regs, labels;
	struct instr instr[PROGRAM_INSTRS];
	int label[PROGRAM_LABELS];      /* -1: not placed yet */
	uint64_t reads[PROGRAM_INSTRS]; /* registers, by instruction */
	uint64_t live[PROGRAM_INSTRS];  /* registers that may still be read from there on */
};

static inline struct val num(uint8_t n)
{
	return (struct val){ -1, n };
}

/* @v + @n. */
static inline struct val plus(struct val v, int n)
{
	return (struct val){ v.reg, (uint8_t)(v.add + n) };
}

void program_begin(struct program *p, const char *name);
/* Places the end, resolves labels. */
void program_end(struct program *p);

struct val load(struct program *p, const char *name, struct val address, enum order order);
void store(struct program *p, const char *name, struct val address, struct val value,
		enum order order);
struct val swap(struct program *p, const char *name, struct val address, struct val value,
		enum order order);
/* Returns what was there: it was done if that is @expected. */
struct val cas(struct program *p, const char *name, struct val address, struct val expected,
		struct val value, enum order order);
void lock(struct program *p, const char *name, struct val address, enum order order);
void fence(struct program *p, const char *name);
void membarrier(struct program *p, const char *name);
struct val set(struct program *p, uint8_t (*fn)(uint8_t, uint8_t), struct val a, struct val b);
/* A register that several ways lead to: move() writes it, on each way once. */
struct val variable(struct program *p);
void move(struct program *p, struct val variable, struct val value);
void check(struct program *p, const char *name, struct val a, struct val b);

int label(struct program *p);
void place(struct program *p, int label);
void jump(struct program *p, int label);
void jump_if(struct program *p, struct val a, struct val b, int label);
void jump_unless(struct program *p, struct val a, struct val b, int label);

#endif
