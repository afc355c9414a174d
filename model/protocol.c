/* SPDX-License-Identifier: MIT */
/* model/protocol.c - handover.h: the parts, in the order of the code; and the inbox's. */
#include "model/protocol.h"

#include <stddef.h>

static enum order unless(const struct protocol *o, enum mutant mutant, enum order order)
{
	return o->mutant == mutant ? RELAXED : order;
}

/* ---- mem/lock.h ---- */

static void take_lock(struct protocol *o)
{
	lock(o->p, "lock", num(C_LOCK), unless(o, MUTANT_LOCK_RELAXED, ACQUIRE));
}

static void release_lock(struct protocol *o)
{
	swap(o->p, "unlock", num(C_LOCK), num(0), unless(o, MUTANT_UNLOCK_RELAXED, RELEASE));
}

/* ---- mem/handover.h: the owner ---- */

void protocol_enter(struct protocol *o, int slow)
{
	enum order order = unless(o, MUTANT_ENTER_RELAXED, ACQUIRE);
	struct val stop;

	if (o->mutant == MUTANT_NO_COMPILER_BARRIER) {
		stop = load(o->p, "enter_stop", num(C_STOP), order);
		store(o->p, "enter_busy", num(C_BUSY), num(1), RELAXED);
	} else {
		store(o->p, "enter_busy", num(C_BUSY), num(1), RELAXED);
		stop = load(o->p, "enter_stop", num(C_STOP), order);
	}
	jump_unless(o->p, stop, num(0), slow);
}

void protocol_leave(struct protocol *o)
{
	store(o->p, "leave_busy", num(C_BUSY), num(0), unless(o, MUTANT_LEAVE_RELAXED, RELEASE));
}

static void clear_stop(struct protocol *o)
{
	store(o->p, "clear_stop", num(C_STOP), num(0), unless(o, MUTANT_GIVE_RELAXED, RELEASE));
}

void protocol_lock(struct protocol *o, int not_asked)
{
	struct val stop;

	if (o->mutant != MUTANT_SLOW_BUSY)
		protocol_leave(o);
	if (o->mutant != MUTANT_SLOW_UNLOCKED)
		take_lock(o);
	stop = load(o->p, "asked_stop", num(C_STOP), RELAXED);
	jump_if(o->p, stop, num(0), not_asked);
	clear_stop(o);
	if (o->mutant == MUTANT_ASKED_IN_VAIN)
		jump(o->p, not_asked);
}

void protocol_unlock(struct protocol *o)
{
	if (o->mutant != MUTANT_SLOW_UNLOCKED)
		release_lock(o);
}

void protocol_adopt(struct protocol *o, int taken_by_other)
{
	struct val owned;

	if (o->mutant != MUTANT_ADOPT_UNLOCKED)
		take_lock(o);
	owned = load(o->p, "adopt_owned", num(C_OWNED), RELAXED);
	store(o->p, NULL, num(C_OWNED), num(1), RELAXED);
	if (o->mutant != MUTANT_ADOPT_UNLOCKED)
		release_lock(o);
	jump_unless(o->p, owned, num(0), taken_by_other);
}

void protocol_orphan(struct protocol *o)
{
	if (o->mutant != MUTANT_ORPHAN_EARLY)
		store(o->p, "orphan_owned", num(C_OWNED), num(0), RELAXED);
	release_lock(o);
}

/* ---- mem/handover.h: takers ---- */

void protocol_stop(struct protocol *o, uint8_t ticket)
{
	store(o->p, "stop", num(C_STOP), num(ticket), RELAXED);
}

void protocol_barrier(struct protocol *o)
{
	membarrier(o->p, "membarrier");
}

void protocol_take(struct protocol *o, uint8_t ticket, int denied)
{
	int unlock = label(o->p), mine = label(o->p);
	struct val owned, stop, busy;

	if (o->mutant != MUTANT_TAKE_UNLOCKED)
		take_lock(o);
	owned = load(o->p, "take_owned", num(C_OWNED), RELAXED);
	jump_if(o->p, owned, num(0), mine);
	stop = load(o->p, "take_stop", num(C_STOP), RELAXED);
	if (o->mutant == MUTANT_ANY_TICKET)
		jump_if(o->p, stop, num(0), unlock);
	else
		jump_unless(o->p, stop, num(ticket), unlock);
	busy = load(o->p, "take_busy", num(C_BUSY), unless(o, MUTANT_LOOK_RELAXED, ACQUIRE));
	if (o->mutant != MUTANT_TAKE_BUSY)
		jump_unless(o->p, busy, num(0), unlock);
	jump(o->p, mine);
	place(o->p, unlock);
	if (o->mutant != MUTANT_TAKE_UNLOCKED)
		release_lock(o);
	jump(o->p, denied);
	place(o->p, mine);
}

void protocol_take_unfenced(struct protocol *o, int denied)
{
	int mine = label(o->p);
	struct val owned;

	take_lock(o);
	owned = load(o->p, "take_owned", num(C_OWNED), RELAXED);
	jump_if(o->p, owned, num(0), mine);
	release_lock(o);
	jump(o->p, denied);
	place(o->p, mine);
}

void protocol_give(struct protocol *o)
{
	if (o->mutant == MUTANT_TAKE_UNLOCKED) {
		clear_stop(o);
	} else if (o->mutant == MUTANT_GIVE_AFTER_UNLOCK) {
		release_lock(o);
		clear_stop(o);
	} else {
		clear_stop(o);
		release_lock(o);
	}
}

/* ---- mem/inbox.h ---- */

static uint8_t newest(uint8_t head, uint8_t unused)
{
	return head & 3;
}

/* The head with one more magazine, whose number is to be added. */
static uint8_t counted(uint8_t head, uint8_t unused)
{
	return (uint8_t)(((head >> 2) + 1) << 2);
}

static uint8_t sum(uint8_t a, uint8_t b)
{
	return (uint8_t)(a + b);
}

void protocol_post(struct protocol *o, struct val magazine)
{
	struct program *p = o->p;
	struct val head = variable(p), link = plus(magazine, C_LINK - 1), next, new, old;
	int again = label(p), done = label(p);

	move(p, head, load(p, "post_head", num(C_HEAD), RELAXED));
	place(p, again);
	next = set(p, newest, head, num(0));
	new = set(p, sum, set(p, counted, head, num(0)), magazine);
	if (o->mutant != MUTANT_LINK_LATE)
		store(p, "post_link", link, next, RELAXED);
	if (o->mutant == MUTANT_POST_NO_EXCHANGE) {
		store(p, "post_swap", num(C_HEAD), new, RELEASE);
		return;
	}
	old = cas(p, "post_swap", num(C_HEAD), head, new, unless(o, MUTANT_POST_RELAXED, RELEASE));
	jump_if(p, old, head, done);
	move(p, head, old);
	jump(p, again);
	place(p, done);
	if (o->mutant == MUTANT_LINK_LATE)
		store(p, "post_link", link, next, RELAXED);
}

struct val protocol_inbox_take(struct protocol *o, int empty)
{
	struct program *p = o->p;
	enum order order = unless(o, MUTANT_TAKE_RELAXED, ACQUIRE);
	struct val head;

	jump_if(p, load(p, "inbox_look", num(C_HEAD), RELAXED), num(0), empty);
	if (o->mutant == MUTANT_TAKE_NO_EXCHANGE) {
		head = load(p, "inbox_swap", num(C_HEAD), order);
		store(p, NULL, num(C_HEAD), num(0), RELAXED);
	} else {
		head = swap(p, "inbox_swap", num(C_HEAD), num(0), order);
	}
	return head;
}
