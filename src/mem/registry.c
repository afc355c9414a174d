/* SPDX-License-Identifier: MIT */
/* mem/registry.c - which heaps there are: starting, threads that come and go, fork.
 *
 * Heaps are numbered from 1 and never unmapped. When a thread ends, its heap keeps the slabs in
 * which something is in use; the next thread that needs a heap gets it.
 *
 * A thread's heap goes with a pthread key. Destructors of other keys may run after ours, and free
 * or allocate: the thread then has no heap any more, and gets none. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "mem/census.h"
#include "mem/decay.h"
#include "mem/heap.h"
#include "mem/lock.h"
#include "mem/stock.h"
#include "mem/sweep.h"

static struct mem_lock lock;
/* Under the lock. */
static uint32_t idle;                   /* heaps without a thread, by next_idle; 0: none */
static struct heap *shared;
static pthread_key_t key;

static _Atomic uint32_t count;          /* written under the lock */
static _Atomic bool started;            /* the same */
static __thread bool ended __attribute__((tls_model("initial-exec")));

uint32_t heap_count(void)
{
	return atomic_load_explicit(&count, memory_order_acquire);
}

/* ---- threads ---- */

/* A heap that never was, under the lock. */
static struct heap *heap_new(bool always)
{
	uint32_t n = heap_count() + 1;
	struct heap *h = heap_at(n);

	if (n >= HEAPS_MAX || os_grow(OS_HEAPS, (n + 1) * (size_t)HEAP_STRIDE))
		return NULL;
	h->key = n << MAP_HEAP_SHIFT;
	handover_init(&h->gate, always ? HANDOVER_ALWAYS : h->key);
	for (unsigned i = 0, c = 0; i < CLASS_TABLE_SLOTS; i++) {
		c += i * 16 > class_info[c].size;
		h->class_of[i] = (uint8_t)c;
	}
	for (unsigned c = 0; c < CLASSES; c++) {
		h->mul[c] = class_info[c].mul;
		h->top[c] = &heap_no_magazine[63];
	}
	for (unsigned i = 0; i < HEAP_OUT; i++)
		h->out[i].top = &heap_no_magazine[63];
	/* Whoever reads the number finds the heap. */
	atomic_store_explicit(&count, n, memory_order_release);
	return h;
}

static struct heap *heap_reuse(void)
{
	struct heap *h = idle ? heap_at(idle) : NULL;

	if (h)
		idle = h->next_idle;
	return h;
}

struct heap *heap_get(void)
{
	struct heap *h = heap_self;

	if (h != &heap_none)
		return h;
	if (ended || !heap_start())
		return NULL;
	mem_lock(&lock);
	h = heap_reuse();
	if (!h)
		h = heap_new(heap_checks);
	mem_unlock(&lock);
	if (!h || !handover_adopt(&h->gate))
		return NULL;
	atomic_store_explicit(&h->idle, false, memory_order_relaxed);
	heap_self = h;
	/* This may allocate: the thread has its heap by now. */
	if (pthread_setspecific(key, h))
		ended = false;          /* its heap stays with it, for good */
	return h;
}

static void thread_ends(void *arg)
{
	struct heap *h = arg;

	heap_self = &heap_none;
	ended = true;
	handover_lock(&h->gate);
	heap_flush(h);
	heap_trim(h);
	atomic_store_explicit(&h->idle, true, memory_order_relaxed);
	handover_orphan(&h->gate);
	mem_lock(&lock);
	h->next_idle = idle;
	idle = heap_number(h);
	mem_unlock(&lock);
}

struct heap *heap_shared_lock(void)
{
	struct heap *h;

	if (!heap_start())
		return NULL;
	mem_lock(&lock);
	if (!shared)
		shared = heap_new(true);
	h = shared;
	mem_unlock(&lock);
	if (h)
		mem_lock(&h->gate.lock);
	return h;
}

/* ---- starting ---- */

static void start_locked(void)
{
	const char *checks = os_getenv("BYRE_MALLOC_CHECK");

	class_start();
	if (pages_start() || pthread_key_create(&key, thread_ends))
		return;
	handover_start();
	heap_checks = checks && !strcmp(checks, "1");
	atomic_store_explicit(&started, true, memory_order_release);
}

bool heap_start(void)
{
	if (atomic_load_explicit(&started, memory_order_acquire))
		return true;
	mem_lock(&lock);
	if (!atomic_load_explicit(&started, memory_order_relaxed))
		start_locked();
	mem_unlock(&lock);
	return atomic_load_explicit(&started, memory_order_relaxed);
}

/* ---- fork ---- */

/* All locks, in their order. Owners in their fast paths are not stopped: the child has their memory
 * as it was between two of their stores, and there a heap is whole. */
static void fork_begins(void)
{
	mem_lock(&lock);
	for (uint32_t i = 1; i <= heap_count(); i++)
		mem_lock(&heap_at(i)->gate.lock);
	pages_lock();
	stock_lock();
}

static void fork_ends_parent(void)
{
	stock_unlock();
	pages_unlock();
	for (uint32_t i = heap_count(); i; i--)
		mem_unlock(&heap_at(i)->gate.lock);
	mem_unlock(&lock);
}

static void fork_ends_child(void)
{
	stock_reset();
	pages_reset();
	idle = 0;
	for (uint32_t i = heap_count(); i; i--) {
		struct heap *h = heap_at(i);

		handover_reset(&h->gate, h == heap_self);
		if (h == heap_self || h == shared)
			continue;
		atomic_store_explicit(&h->idle, true, memory_order_relaxed);
		h->next_idle = idle;
		idle = i;
	}
	mem_lock_init(&lock);
	sweep_reset();
	census_reset();
	decay_reset();
}

/* Before a thread could be forking, not when the first one allocates: that may be within
 * another handler. Handlers of who comes later run before ours, and may allocate. */
__attribute__((constructor)) static void register_fork(void)
{
	pthread_atfork(fork_begins, fork_ends_parent, fork_ends_child);
}
