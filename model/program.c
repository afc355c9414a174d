/* SPDX-License-Identifier: MIT */
/* model/program.c - building programs. */
#include "model/program.h"

#include <assert.h>
#include <string.h>

static const struct val NONE = { -1, 0 };

static struct instr *add(struct program *p, const char *name, enum op op)
{
	struct instr *i = &p->instr[p->n++];

	assert(p->n < PROGRAM_INSTRS);
	*i = (struct instr){ .name = name, .op = op, .dest = -1, .target = -1,
			.address = NONE, .value = NONE, .other = NONE };
	return i;
}

static int8_t new_reg(struct program *p)
{
	assert(p->regs < PROGRAM_REGS);
	return (int8_t)p->regs++;
}

void program_begin(struct program *p, const char *name)
{
	memset(p, 0, sizeof(*p));
	p->name = name;
}

struct val load(struct program *p, const char *name, struct val address, enum order order)
{
	struct instr *i = add(p, name, OP_LOAD);

	i->address = address;
	i->order = order;
	i->dest = new_reg(p);
	return (struct val){ i->dest, 0 };
}

void store(struct program *p, const char *name, struct val address, struct val value,
		enum order order)
{
	struct instr *i = add(p, name, OP_STORE);

	i->address = address;
	i->value = value;
	i->order = order;
}

struct val swap(struct program *p, const char *name, struct val address, struct val value,
		enum order order)
{
	struct instr *i = add(p, name, OP_SWAP);

	i->address = address;
	i->value = value;
	i->order = order;
	i->dest = new_reg(p);
	return (struct val){ i->dest, 0 };
}

struct val cas(struct program *p, const char *name, struct val address, struct val expected,
		struct val value, enum order order)
{
	struct instr *i = add(p, name, OP_CAS);

	i->address = address;
	i->other = expected;
	i->value = value;
	i->order = order;
	i->dest = new_reg(p);
	return (struct val){ i->dest, 0 };
}

void lock(struct program *p, const char *name, struct val address, enum order order)
{
	struct instr *i = add(p, name, OP_LOCK);

	i->address = address;
	i->order = order;
}

void fence(struct program *p, const char *name)
{
	add(p, name, OP_FENCE);
}

void membarrier(struct program *p, const char *name)
{
	add(p, name, OP_MEMBARRIER);
}

struct val set(struct program *p, uint8_t (*fn)(uint8_t, uint8_t), struct val a, struct val b)
{
	struct instr *i = add(p, NULL, OP_SET);

	i->fn = fn;
	i->value = a;
	i->other = b;
	i->dest = new_reg(p);
	return (struct val){ i->dest, 0 };
}

static uint8_t first(uint8_t a, uint8_t b)
{
	return a;
}

struct val variable(struct program *p)
{
	return (struct val){ new_reg(p), 0 };
}

void move(struct program *p, struct val variable, struct val value)
{
	struct instr *i = add(p, NULL, OP_SET);

	i->fn = first;
	i->value = value;
	i->dest = variable.reg;
}

void check(struct program *p, const char *name, struct val a, struct val b)
{
	struct instr *i = add(p, name, OP_CHECK);

	i->value = a;
	i->other = b;
}

int label(struct program *p)
{
	assert(p->labels < PROGRAM_LABELS);
	p->label[p->labels] = -1;
	return p->labels++;
}

void place(struct program *p, int label)
{
	assert(p->label[label] < 0);
	p->label[label] = p->n;
}

static void add_jump(struct program *p, struct val a, struct val b, bool sense, int label)
{
	struct instr *i = add(p, NULL, OP_JUMP);

	i->value = a;
	i->other = b;
	i->sense = sense;
	i->target = label;
}

void jump(struct program *p, int label)
{
	add_jump(p, num(0), num(0), true, label);
}

void jump_if(struct program *p, struct val a, struct val b, int label)
{
	add_jump(p, a, b, true, label);
}

void jump_unless(struct program *p, struct val a, struct val b, int label)
{
	add_jump(p, a, b, false, label);
}

static uint64_t bit(int8_t reg)
{
	return reg < 0 ? 0 : UINT64_C(1) << reg;
}

/* Which registers matter from each instruction on: the others are no part of a state. */
static void find_live(struct program *p)
{
	bool changed = true;

	while (changed) {
		changed = false;
		for (int k = p->n - 1; k >= 0; k--) {
			const struct instr *i = &p->instr[k];
			uint64_t after = i->op == OP_END ? 0 : p->live[k + 1];

			if (i->op == OP_JUMP)
				after |= p->live[i->target];
			after = (after & ~bit(i->dest)) | p->reads[k];
			changed |= after != p->live[k];
			p->live[k] = after;
		}
	}
}

void program_end(struct program *p)
{
	add(p, NULL, OP_END);
	for (int k = 0; k < p->n; k++) {
		struct instr *i = &p->instr[k];

		p->reads[k] = bit(i->address.reg) | bit(i->value.reg) | bit(i->other.reg);
		if (i->op == OP_JUMP) {
			i->target = p->label[i->target];
			assert(i->target >= 0);
		}
	}
	find_live(p);
}
