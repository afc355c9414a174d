/* SPDX-License-Identifier: MIT */
/* model/protocol.h - the protocols of src/mem as programs: handover.h and inbox.h.
 *
 * For each function there that touches shared memory there is one here, of the same name without
 * the prefix, with the same accesses in the same order, under the names by which the code marks
 * them (MEM_STEP); that a taker looks at busy several times is one look here. same_test.c runs
 * both and compares what they did.
 *
 * What the protocols protect is kept as small as it can be and still go wrong: a heap has one
 * magazine with room for two objects, its slabs are a bitmap in one cell, a magazine on its way
 * carries one object.
 *
 * Every object has a cell. Who has been given an object writes its own number there and finds it
 * again when it lets go: if two have it at a time, one of them finds the other's number. At the end
 * each object is in one place.
 *
 * A *mutant* is a protocol with one thing wrong. Some are wrong everywhere, others only where the
 * processor reorders more than x86 does. */
#ifndef MODEL_PROTOCOL_H
#define MODEL_PROTOCOL_H

#include "model/machine.h"

enum mutant {
	MUTANT_NONE,
	/* handover */
	MUTANT_NO_COMPILER_BARRIER,     /* stop is read before busy is written */
	MUTANT_NO_MEMBARRIER,
	MUTANT_MEMBARRIER_FIRST,        /* before stop is written */
	MUTANT_LEAVE_RELAXED,           /* busy = 0 */
	MUTANT_LOOK_RELAXED,            /* at busy */
	MUTANT_ENTER_RELAXED,           /* stop is read */
	MUTANT_GIVE_RELAXED,            /* stop = open */
	MUTANT_LOCK_RELAXED,
	MUTANT_UNLOCK_RELAXED,
	MUTANT_ANY_TICKET,              /* takes if stopped by anybody */
	MUTANT_TAKE_BUSY,               /* does not look at busy */
	MUTANT_TAKE_UNLOCKED,
	MUTANT_SLOW_UNLOCKED,           /* the owner's slow path */
	MUTANT_SLOW_BUSY,               /* it stays busy */
	MUTANT_ASKED_IN_VAIN,           /* clears stop, and gives nothing back */
	MUTANT_GIVE_AFTER_UNLOCK,
	MUTANT_ADOPT_UNLOCKED,
	MUTANT_ORPHAN_EARLY,            /* before the lock is taken */
	/* inbox */
	MUTANT_POST_RELAXED,
	MUTANT_TAKE_RELAXED,
	MUTANT_POST_NO_EXCHANGE,        /* a load and a store */
	MUTANT_TAKE_NO_EXCHANGE,
	MUTANT_LINK_LATE,               /* after the exchange */
	MUTANT_TAKE_ONE,                /* the newest only, by compare and swap */
	MUTANTS
};

/* Cells. */
enum {
	C_BUSY,
	C_STOP,                         /* 0: open */
	C_LOCK,
	C_OWNED,
	C_TOP,                          /* objects in the heap's magazine */
	C_SLOT,                         /* two */
	C_BITMAP = C_SLOT + 2,          /* of objects that are in the slabs */
	C_OBJECT,                       /* who has it, by its number from 1 on */
	C_HEAD = C_OBJECT + 5,          /* of the inbox: magazines << 2 | newest; 0: empty */
	C_LINK,                         /* of each magazine, by its number from 1 on */
	C_CARRIES = C_LINK + 4,         /* the object in it */
	C_NOTE = C_CARRIES + 4,         /* something a sender wrote before it freed */
	C_FLUSHED,                      /* somebody put the magazine's objects back */
	C_RESULT,                       /* of the takers, by their number */
	C_LAST = C_RESULT + MACHINE_THREADS,
};

enum { RESULT_TAKEN = 1, RESULT_DENIED };

struct protocol {
	struct program *p;
	enum mutant mutant;
	uint8_t me;                     /* from 1 on */
	bool inbox;                     /* the heap's slow path looks into its inbox */
};

/* ---- the parts, as in handover.h and inbox.h ---- */

/* Goes on after @slow with the heap entered in vain. */
void protocol_enter(struct protocol *o, int slow);
void protocol_leave(struct protocol *o);
/* Falls through if asked; else goes to @not_asked. */
void protocol_lock(struct protocol *o, int not_asked);
void protocol_unlock(struct protocol *o);
/* Goes to @taken_by_other without having adopted. */
void protocol_adopt(struct protocol *o, int taken_by_other);
void protocol_orphan(struct protocol *o);
void protocol_stop(struct protocol *o, uint8_t ticket);
void protocol_barrier(struct protocol *o);
/* Goes to @denied, without the lock. */
void protocol_take(struct protocol *o, uint8_t ticket, int denied);
/* The same where membarrier() failed. */
void protocol_take_unfenced(struct protocol *o, int denied);
void protocol_give(struct protocol *o);
void protocol_post(struct protocol *o, struct val magazine);
/* The word that was there; goes to @empty if nothing was. */
struct val protocol_inbox_take(struct protocol *o, int empty);

/* ---- whole threads ---- */

/* malloc() and free() in a heap of its own, @rounds times. */
void protocol_owner(struct protocol *o, int rounds);
/* One round of the taker, over one heap. */
void protocol_taker(struct protocol *o, uint8_t ticket);
/* The same where membarrier() failed. */
void protocol_unfenced_taker(struct protocol *o, uint8_t ticket);
/* A thread that ends, and one that would like its heap. */
void protocol_leaver(struct protocol *o);
void protocol_comer(struct protocol *o);
/* Has an object of the heap's, @object, and sends it in @magazine. With @visit, it then looks after
 * the inbox if the lock is free. */
void protocol_sender(struct protocol *o, uint8_t object, uint8_t magazine, bool visit);
/* Takes what is in the inbox, with the lock, and gives the objects to the slabs. */
void protocol_receiver(struct protocol *o);
/* The inbox holds magazine 1, which leads to 2, and this thread has object 3. It takes both, keeps
 * what is in 2, sends object 3 in magazine 3, and 1 again. */
void protocol_resender(struct protocol *o);

/* NULL, or what is wrong at the end; there are @objects, from 1 on. */
const char *protocol_final(const uint8_t *cells, int objects);

#endif
