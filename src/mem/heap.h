/* SPDX-License-Identifier: MIT */
/* mem/heap.h - a thread's heap: its magazines, its slabs, what it frees for others.
 *
 * malloc() takes a pointer from the magazine of its class, free() puts one there: plain loads and
 * stores, between handover_enter() and handover_leave(). All else, once in 63 calls or so, is done
 * under the heap's lock:
 *
 *	magazine empty   take a full one that is parked; else one that came by the inbox; else
 *	                 have the slabs fill it;
 *	magazine full    park it; beyond the class's limit a parked one goes back to the slabs.
 *
 * *Hot* (handover.h): top[], which is where the loaded magazines stand, and out[]. A loaded
 * magazine has its objects between a NULL, which stops malloc(), and its end, whose address stops
 * free():
 *
 *	slot     0 .. 63-n   63-n+1 .. t   t+1 .. 63            n: its room in class_info
 *	         (NULL last) objects       room                 t: what top[class] points to
 *
 * A class without a magazine points to the end of an empty one that all heaps share.
 *
 * *Remote free*: an object of another heap goes into the outgoing magazine for its (heap, class),
 * which travels when it is full (inbox.h). out[] is a direct-mapped table: another pair in the same
 * place sends it off, and so does, every HEAP_POST_EVERY slow paths, a look at those to which
 * nothing was added since the last. One for a heap whose thread has ended has less room: the next
 * thread will want what is in it. It begins further up, until it is sent:
 *
 *	slot     0      .. 63-r   63-r+1 .. t   t+1 .. 63       r: its room
 *	         (class, r)       objects       room            t: what the outgoing top points to
 *
 * A heap that nobody can use (no memory for one; a thread whose last destructors run) is not
 * needed: heap_alloc_shared() and the owner's lock do, slowly.
 *
 * With checks on (heap_checks) handover's stop is on for good and no magazine is ever loaded:
 * objects go from and to the slabs one by one, so each wrong free is noticed when it happens.
 *
 * Invariants:
 *	M11  an object is handed out once, until it is freed;
 *	M12  what a thread frees for others travels at the latest when it ends or calls heap_idle();
 *	M13  no object is lost: all that were freed can be handed out again;
 *	M14  an invalid free is reported at once, a double one when its magazine goes back to the
 *	     slabs at the latest; with checks on at once;
 *	M15  a magazine that is begun for a heap without a thread travels with HEAP_OUT_IDLE_MAX
 *	     bytes or HEAP_OUT_IDLE_LEAST objects at the latest. */
#ifndef MEM_HEAP_H
#define MEM_HEAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/class.h"
#include "mem/handover.h"
#include "mem/inbox.h"
#include "mem/pages.h"
#include "mem/slab.h"
#include "mem/stock.h"

enum {
	HEAP_STRIDE = 16 << 10,
	HEAPS_MAX = 1 << 17,
	HEAP_OUT_LOG2 = 8,
	HEAP_OUT = 1 << HEAP_OUT_LOG2,
	/* Bytes of objects in an outgoing magazine for a heap without a thread, and how many
	 * objects it may have whatever their size. */
	HEAP_OUT_IDLE_MAX = 4 << 10,
	HEAP_OUT_IDLE_LEAST = 4,
	HEAP_POST_EVERY = 64,           /* slow paths */
	HEAP_LOOK_EVERY = 16,           /* the same: for what came by the inbox */
	HEAP_DECAY_EVERY = 8,           /* the same */
	HEAP_SPARE_MAX = 2 * STOCK_BATCH,       /* empty magazines */
	/* Bytes of objects in parked magazines: a class may have CLASS_MAX, but only CLASS_MIN if
	 * all together have more than MAX. */
	HEAP_PARKED_MAX = 4 << 20,
	HEAP_PARKED_CLASS_MAX = 256 << 10,
	HEAP_PARKED_CLASS_MIN = 128 << 10,
	/* Of those that have a slab each: pages that others could use, and larger runs. */
	HEAP_PARKED_SINGLE_MAX = 1 << 20,
	/* Bytes in an inbox before others look after it; and in one of a heap without a thread. */
	HEAP_INBOX_MAX = 8 << 20,
	HEAP_INBOX_IDLE_MAX = 16 << 10,
};

/* No slice has this key. */
#define HEAP_NO_KEY 0xffffff00u

/* Cold: one class of a heap. */
struct bin {
	struct magazine *parked;        /* with objects, by magazine_next() */
	uint32_t parked_objects;
	uint32_t out;                   /* objects that are not in their slabs */
	struct slab_list slabs;
};

/* Hot: objects of one class of another heap, on their way. */
struct outgoing {
	uint32_t key;                   /* their map word; 0: none */
	uint32_t seen;                  /* low half of @top when it was looked at last; cold */
	void **top;                     /* as in struct heap, but begins further up */
};

struct heap {
	void **top[CLASSES];            /* hot */
	struct handover gate;           /* its open is the key, so one comparison tests both */
	uint32_t key;                   /* number << MAP_HEAP_SHIFT; const */
	uint32_t mul[CLASSES];          /* const: class_mul() */
	uint8_t class_of[CLASS_TABLE_SLOTS];    /* const: of (size + 15) / 16 */
	struct outgoing out[HEAP_OUT];  /* hot */
	/* A line of its own: who sends writes it. */
	_Alignas(64) struct inbox inbox;
	/* Its thread has ended: what comes is not to wait. A hint, so no order is needed. */
	_Atomic bool idle;
	/* Cold from here on. */
	_Alignas(64) struct magazine *received; /* from the inbox, any class, the newest first */
	struct bin bins[CLASSES];
	struct magazine *spare;         /* empty, by magazine_next() */
	uint32_t spares;
	uint32_t slow_paths;
	size_t parked_bytes;
	uint32_t next_idle;             /* under the registry's lock */
	uint32_t seen_slow_paths;       /* at decay's last look */
	bool flushed;                   /* and nothing since */
};

/* The thread's own; &heap_none if it has none. */
extern __thread struct heap *heap_self
	__attribute__((tls_model("initial-exec"), visibility("hidden")));
extern struct heap heap_none;
/* The end of a magazine that is empty and full. */
extern void *heap_no_magazine[64];
extern bool heap_checks;                /* const after the start */

static inline struct heap *heap_at(uint32_t number)
{
	return (struct heap *)(void *)((char *)os_area_start(OS_HEAPS_BELOW) +
				       (size_t)number * HEAP_STRIDE);
}

static inline uint32_t heap_number(const struct heap *h)
{
	return h->key >> MAP_HEAP_SHIFT;
}

static inline bool heap_magazine_full(void **top)
{
	return !((uintptr_t)(top + 1) & (MAGAZINE_BYTES - 1));
}

/* What malloc() of up to CLASS_TABLE bytes does, if there is something in the magazine; else NULL,
 * and then the heap is still entered: the slow path follows at once. */
static inline __attribute__((always_inline)) void *heap_alloc_fast(struct heap *h, size_t size)
{
	void **t, *p;
	size_t c;

	if (!handover_enter(&h->gate) || __builtin_expect(size > CLASS_TABLE, 0))
		return NULL;
	c = h->class_of[(size + 15) / 16];
	t = h->top[c];
	p = *t;
	if (__builtin_expect(!p, 0))
		return NULL;
	h->top[c] = t - 1;
	handover_leave(&h->gate);
	return p;
}

/* The same for free(); where it fails, heap_free_key() makes of *@ret_c what is known by then. */
static inline __attribute__((always_inline)) bool heap_free_fast(struct heap *h, void *p,
								 size_t *ret_c)
{
	size_t c = map_of(p) ^ handover_enter_as(&h->gate);
	void **t;

	/* One register for all uses: gcc takes a second one for the index. */
	__asm__("" : "+r"(c));
	*ret_c = c;
	if (__builtin_expect(c >= CLASSES, 0))
		return false;
	handover_entered(&h->gate);
	t = h->top[c] + 1;
	if (__builtin_expect(!class_is_object(h->mul[c], slice_offset(p)), 0) ||
	    __builtin_expect(!((uintptr_t)t & (MAGAZINE_BYTES - 1)), 0))
		return false;
	*t = p;
	h->top[c] = t;
	handover_leave(&h->gate);
	return true;
}

/* The heap @h is entered, and the object is none of its own: its map word is *@ret_word. False: not
 * entered, or it is one of its own. */
static inline bool heap_free_key(const struct heap *h, size_t c, uint32_t *ret_word)
{
	/* A heap that is stopped has the highest bit there, and no map word has it. */
	if (__builtin_expect((int32_t)c < CLASSES, 0))
		return false;
	*ret_word = (uint32_t)c ^ h->key;
	return true;
}

/* The factor spreads the words of neighbouring heaps and classes: of all that were tried, few let
 * fewer of them meet, for one heap with all classes up to 64 heaps with three. */
static inline struct outgoing *heap_outgoing(struct heap *h, uint32_t word)
{
	return &h->out[word * 0xcafdfd7fu >> (32 - HEAP_OUT_LOG2)];
}

/* What free() does in the heap @h, which is entered, with an object of another one, if there is a
 * magazine that it fits in; @word is its map word, which names a heap. If not, @h still is. */
static inline __attribute__((always_inline)) bool heap_send_fast(struct heap *h, void *p,
								 uint32_t word)
{
	struct outgoing *o = heap_outgoing(h, word);
	void **t;

	handover_entered(&h->gate);
	if (__builtin_expect(!class_is_object(h->mul[word & MAP_CLASS_MASK], slice_offset(p)), 0) ||
	    __builtin_expect(o->key != word, 0))
		return false;
	t = o->top + 1;
	if (__builtin_expect(!((uintptr_t)t & (MAGAZINE_BYTES - 1)), 0))
		return false;
	*t = p;
	o->top = t;
	handover_leave(&h->gate);
	return true;
}

/* ---- heap.c: any thread, for itself ---- */

/* An object of @class; NULL if there is no memory. */
void *heap_alloc(unsigned class);
/* Frees @p, whose map word @word names a heap, where the fast ways fail. Does not return if @p is
 * no object. Keeps errno. */
void heap_free(void *p, uint32_t word);
/* Sends off what the thread has freed for others. */
void heap_idle(void);
/* Bytes of objects that the thread keeps for itself. */
size_t heap_cached_bytes(void);
/* Gives up what the thread keeps of objects that have a slab each, so that their pages join what is
 * free beside them: for who is about to move a large block. */
void heap_clear_runs(void);

/* ---- heap.c: with the lock of @h as by handover_lock() or handover_take() ---- */

/* How many objects of @class lie in the magazine, up to @top. */
unsigned heap_objects_below(void **top, unsigned class);
/* The same for an outgoing magazine that has a key. */
unsigned heap_objects_outgoing(const struct outgoing *o);
/* Puts all objects that the heap has in magazines back into slabs, its inbox's too. */
void heap_flush(struct heap *h);

/* ---- heap.c: with the lock of @h alone ---- */

/* Puts what came by the inbox into slabs. */
void heap_drain(struct heap *h);
/* Puts up to @magazines of parked ones, and what came by the inbox, into slabs. True: there are
 * more. For who is not to keep the owner waiting. */
bool heap_flush_parked(struct heap *h, unsigned magazines);
/* Gives slabs that are free to the pages. */
void heap_trim(struct heap *h);

/* ---- registry.c ---- */

/* The heap of this thread, got or made if need be; NULL if it can have none. */
struct heap *heap_get(void);
/* One heap for all that have none. Locked; NULL if there is no memory for it. */
struct heap *heap_shared_lock(void);
/* How many heaps there are: their numbers are 1 to this. */
uint32_t heap_count(void);
/* Makes the library ready if it is not. False if there is no memory for that. */
bool heap_start(void);

#endif
