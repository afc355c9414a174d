/* SPDX-License-Identifier: MIT */
/* model/actors.c - whole threads made of the protocols' parts, and what must hold at the end. */
#include "model/protocol.h"

#include <stddef.h>

/* ---- objects ---- */

static uint8_t bit(uint8_t object)
{
	return (uint8_t)(1 << object);
}

static uint8_t with(uint8_t bitmap, uint8_t object)
{
	return bitmap | bit(object);
}

static uint8_t without(uint8_t bitmap, uint8_t object)
{
	return bitmap & (uint8_t)~bit(object);
}

/* The first object of a bitmap; 0 if there is none. */
static uint8_t lowest(uint8_t bitmap, uint8_t unused)
{
	return bitmap ? (uint8_t)__builtin_ctz(bitmap) : 0;
}

static uint8_t sum(uint8_t a, uint8_t b)
{
	return (uint8_t)(a + b);
}

static void use(struct protocol *o, struct val object)
{
	store(o->p, NULL, plus(object, C_OBJECT - 1), num(o->me), RELAXED);
}

/* What use() wrote is still there. */
static void used(struct protocol *o, struct val object, uint8_t by)
{
	struct val v = load(o->p, NULL, plus(object, C_OBJECT - 1), RELAXED);

	check(o->p, "an object has two users", v, num(by));
}

/* ---- the heap, with the lock ---- */

static void put_back(struct protocol *o, struct val object)
{
	struct val bitmap = load(o->p, NULL, num(C_BITMAP), RELAXED);

	store(o->p, NULL, num(C_BITMAP), set(o->p, with, bitmap, object), RELAXED);
}

static uint8_t newest(uint8_t head, uint8_t unused)
{
	return head & 3;
}

/* All that is in the magazines from the one on that @head names goes to the slabs. */
static void receive(struct protocol *o, struct val head, bool senders_note)
{
	struct program *p = o->p;
	struct val m = variable(p), object;
	int next = label(p), end = label(p);

	if (senders_note)
		check(p, "a sender's writes are not seen", load(p, NULL, num(C_NOTE), RELAXED),
				num(1));
	move(p, m, set(p, newest, head, num(0)));
	place(p, next);
	jump_if(p, m, num(0), end);
	object = load(p, NULL, plus(m, C_CARRIES - 1), RELAXED);
	use(o, object);
	used(o, object, o->me);
	put_back(o, object);
	store(p, NULL, plus(m, C_CARRIES - 1), num(0), RELAXED);
	move(p, m, load(p, NULL, plus(m, C_LINK - 1), RELAXED));
	jump(p, next);
	place(p, end);
}

/* What came for the heap goes to the slabs. */
static void drain(struct protocol *o)
{
	int empty = label(o->p);

	receive(o, protocol_inbox_take(o, empty), false);
	place(o->p, empty);
}

/* All objects of the heap's magazine go back to the bitmap. */
static void flush(struct protocol *o)
{
	struct program *p = o->p;
	struct val top = load(p, NULL, num(C_TOP), RELAXED);
	int end = label(p), one = label(p);

	store(p, NULL, num(C_FLUSHED), num(1), RELAXED);
	if (o->inbox)
		drain(o);
	jump_if(p, top, num(0), end);
	jump_if(p, top, num(1), one);
	put_back(o, load(p, NULL, num(C_SLOT + 1), RELAXED));
	place(p, one);
	put_back(o, load(p, NULL, num(C_SLOT), RELAXED));
	place(p, end);
	/* Even if it is 0: nobody else may be about to change it. */
	store(p, NULL, num(C_TOP), num(0), RELAXED);
}

/* The owner's slow path begins. */
static void lock_own(struct protocol *o)
{
	int not_asked = label(o->p);

	protocol_lock(o, not_asked);
	flush(o);
	place(o->p, not_asked);
}

/* ---- malloc() and free() ---- */

static struct val pop(struct protocol *o, struct val top)
{
	struct val object = load(o->p, NULL, plus(top, C_SLOT - 1), RELAXED);

	store(o->p, NULL, num(C_TOP), plus(top, -1), RELAXED);
	return object;
}

/* Sets @object to 0 where there is none. */
static void model_malloc(struct protocol *o, struct val object)
{
	struct program *p = o->p;
	int slow = label(p), slabs = label(p), unlock = label(p), done = label(p);
	struct val top, bitmap, found;

	protocol_enter(o, slow);
	top = load(p, NULL, num(C_TOP), RELAXED);
	jump_if(p, top, num(0), slow);
	move(p, object, pop(o, top));
	protocol_leave(o);
	jump(p, done);

	place(p, slow);
	lock_own(o);
	top = load(p, NULL, num(C_TOP), RELAXED);
	jump_if(p, top, num(0), slabs);
	move(p, object, pop(o, top));
	jump(p, unlock);
	place(p, slabs);
	if (o->inbox)
		drain(o);
	bitmap = load(p, NULL, num(C_BITMAP), RELAXED);
	found = set(p, lowest, bitmap, num(0));
	store(p, NULL, num(C_BITMAP), set(p, without, bitmap, found), RELAXED);
	move(p, object, found);
	place(p, unlock);
	protocol_unlock(o);
	place(p, done);
}

static void model_free(struct protocol *o, struct val object)
{
	struct program *p = o->p;
	int slow = label(p), done = label(p);
	struct val top;

	protocol_enter(o, slow);
	top = load(p, NULL, num(C_TOP), RELAXED);
	jump_if(p, top, num(2), slow);
	store(p, NULL, plus(top, C_SLOT), object, RELAXED);
	store(p, NULL, num(C_TOP), plus(top, 1), RELAXED);
	protocol_leave(o);
	jump(p, done);
	place(p, slow);
	lock_own(o);
	put_back(o, object);
	protocol_unlock(o);
	place(p, done);
}

void protocol_owner(struct protocol *o, int rounds)
{
	for (int i = 0; i < rounds; i++) {
		struct val object = variable(o->p);
		int none = label(o->p);

		model_malloc(o, object);
		jump_if(o->p, object, num(0), none);
		use(o, object);
		used(o, object, o->me);
		model_free(o, object);
		place(o->p, none);
	}
}

/* ---- takers ---- */

static void note_result(struct protocol *o, uint8_t result)
{
	store(o->p, NULL, num((uint8_t)(C_RESULT + o->me - 1)), num(result), RELAXED);
}

/* What a taker does with a heap. The memory that it finds is nobody else's. */
static void give_back(struct protocol *o)
{
	struct program *p = o->p;
	int none = label(p);
	struct val object;

	flush(o);
	object = set(p, lowest, load(p, NULL, num(C_BITMAP), RELAXED), num(0));
	jump_if(p, object, num(0), none);
	use(o, object);
	used(o, object, o->me);
	place(p, none);
}

void protocol_taker(struct protocol *o, uint8_t ticket)
{
	int denied = label(o->p), done = label(o->p);

	if (o->mutant == MUTANT_MEMBARRIER_FIRST)
		protocol_barrier(o);
	protocol_stop(o, ticket);
	if (o->mutant != MUTANT_NO_MEMBARRIER && o->mutant != MUTANT_MEMBARRIER_FIRST)
		protocol_barrier(o);
	protocol_take(o, ticket, denied);
	give_back(o);
	protocol_give(o);
	note_result(o, RESULT_TAKEN);
	jump(o->p, done);
	place(o->p, denied);
	note_result(o, RESULT_DENIED);
	place(o->p, done);
}

void protocol_unfenced_taker(struct protocol *o, uint8_t ticket)
{
	int denied = label(o->p), done = label(o->p);

	protocol_stop(o, ticket);
	protocol_take_unfenced(o, denied);
	give_back(o);
	protocol_give(o);
	note_result(o, RESULT_TAKEN);
	jump(o->p, done);
	place(o->p, denied);
	note_result(o, RESULT_DENIED);
	place(o->p, done);
}

/* ---- threads that end and begin ---- */

void protocol_leaver(struct protocol *o)
{
	protocol_owner(o, 1);
	if (o->mutant == MUTANT_ORPHAN_EARLY)
		store(o->p, "orphan_owned", num(C_OWNED), num(0), RELAXED);
	lock_own(o);
	protocol_orphan(o);
}

void protocol_comer(struct protocol *o)
{
	int taken_by_other = label(o->p);

	protocol_adopt(o, taken_by_other);
	protocol_owner(o, 1);
	place(o->p, taken_by_other);
}

/* ---- senders and receivers ---- */

/* Looks after somebody else's inbox, if nobody does. */
static void visit_inbox(struct protocol *o)
{
	struct program *p = o->p;
	int busy = label(p);
	struct val held = cas(p, "lock", num(C_LOCK), num(0), num(1), ACQUIRE);

	jump_unless(p, held, num(0), busy);
	drain(o);
	swap(p, "unlock", num(C_LOCK), num(0), RELEASE);
	place(p, busy);
}

void protocol_sender(struct protocol *o, uint8_t object, uint8_t magazine, bool visit)
{
	struct program *p = o->p;

	used(o, num(object), 0);
	store(p, NULL, num(C_NOTE), num(1), RELAXED);
	store(p, NULL, num((uint8_t)(C_CARRIES - 1 + magazine)), num(object), RELAXED);
	protocol_post(o, num(magazine));
	if (visit)
		visit_inbox(o);
}

/* Only the newest: what an inbox must not do. */
static struct val take_one(struct protocol *o, int empty)
{
	struct program *p = o->p;
	struct val head = load(p, "inbox_look", num(C_HEAD), RELAXED), m, next, old;

	jump_if(p, head, num(0), empty);
	m = set(p, newest, head, num(0));
	next = load(p, NULL, plus(m, C_LINK - 1), RELAXED);
	old = cas(p, "inbox_swap", num(C_HEAD), head, set(p, sum, num(1 << 2), next),
			ACQUIRE | RELEASE);
	jump_unless(p, old, head, empty);
	store(p, NULL, plus(m, C_LINK - 1), num(0), RELAXED);
	return m;
}

void protocol_receiver(struct protocol *o)
{
	int empty = label(o->p);
	bool one = o->mutant == MUTANT_TAKE_ONE;
	struct val head;

	lock(o->p, "lock", num(C_LOCK), ACQUIRE);
	head = one ? take_one(o, empty) : protocol_inbox_take(o, empty);
	receive(o, head, !one);
	place(o->p, empty);
	swap(o->p, "unlock", num(C_LOCK), num(0), RELEASE);
}

void protocol_resender(struct protocol *o)
{
	struct program *p = o->p;
	int empty = label(p), not_both = label(p);
	struct val head = protocol_inbox_take(o, empty);

	lock(p, "lock", num(C_LOCK), ACQUIRE);
	put_back(o, load(p, NULL, num(C_CARRIES + 1), RELAXED));
	swap(p, "unlock", num(C_LOCK), num(0), RELEASE);
	place(p, empty);
	store(p, NULL, num(C_CARRIES + 2), num(3), RELAXED);
	protocol_post(o, num(3));
	jump_unless(p, set(p, newest, head, num(0)), num(1), not_both);
	protocol_post(o, num(1));
	place(p, not_both);
}

/* ---- the end ---- */

/* Counts each object where it is; false if something is where nothing can be. */
static bool count_magazine(const uint8_t *cells, uint8_t *seen)
{
	for (int i = 0; i < cells[C_TOP]; i++)
		seen[cells[C_SLOT + i] & 7]++;
	return cells[C_TOP] <= 2;
}

static bool count_inbox(const uint8_t *cells, uint8_t *seen)
{
	int n = 0;

	for (uint8_t m = cells[C_HEAD] & 3; m; m = cells[C_LINK - 1 + m]) {
		seen[cells[C_CARRIES - 1 + m] & 7]++;
		if (++n > 3)
			return false;
	}
	return n == cells[C_HEAD] >> 2;
}

const char *protocol_final(const uint8_t *cells, int objects)
{
	uint8_t seen[8] = { 0 };

	if (cells[C_BUSY] || cells[C_LOCK])
		return "a heap stays busy or locked";
	if (!count_magazine(cells, seen))
		return "the magazine is damaged";
	if (!count_inbox(cells, seen))
		return "the inbox does not count right";
	for (int i = 1; i <= objects; i++) {
		seen[i] = (uint8_t)(seen[i] + (cells[C_BITMAP] >> i & 1));
		if (seen[i] != 1)
			return seen[i] ? "an object is in two places" : "an object is lost";
	}
	for (int t = 0; t < MACHINE_THREADS; t++)
		if (cells[C_RESULT + t] == RESULT_DENIED && !cells[C_STOP] && !cells[C_FLUSHED])
			return "a heap was asked in vain";
	return NULL;
}
