/* SPDX-License-Identifier: MIT */
/* export/vub/guard.c - the list of guarded mappings, and the signal's handler.
 *
 * The handler may interrupt anything, so that the list is read without locks: entries are added at
 * its head and never taken out; a free one has the length 0 and is used again. */
#include "export/vub/guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/bits.h"

struct vub_guard {
	struct vub_guard *next;         /* const once it is in the list */
	_Atomic uintptr_t start;
	_Atomic size_t len;             /* 0: free. The release that sets it pairs with the
					 * handler's acquire: start and page are right */
	_Atomic size_t page;
	atomic_bool is_lost;
};

static _Atomic(struct vub_guard *) guards;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;        /* of adding and reusing */
static struct sigaction before;

static struct vub_guard *find(uintptr_t addr)
{
	struct vub_guard *g = atomic_load_explicit(&guards, memory_order_acquire);

	for (; g; g = g->next) {
		size_t len = atomic_load_explicit(&g->len, memory_order_acquire);

		if (addr - atomic_load_explicit(&g->start, memory_order_relaxed) < len)
			return g;
	}
	return NULL;
}

static void handle(int sig, siginfo_t *info, void *context)
{
	int saved = errno;
	uintptr_t addr = (uintptr_t)info->si_addr;
	struct vub_guard *g = find(addr);
	void *page, *at;

	if (g) {
		size_t size = atomic_load_explicit(&g->page, memory_order_relaxed);

		atomic_store(&g->is_lost, true);
		page = (void *)(addr & ~(uintptr_t)(size - 1));
		at = mmap(page, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		g = at == MAP_FAILED ? NULL : g;
	}
	if (!g)                         /* the access faults again, and has its way */
		sigaction(sig, &before, NULL);
	errno = saved;
}

/* Once, and where somebody else has taken the signal since. */
static void install(void)
{
	struct sigaction sa = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO }, now;

	if (!sigaction(SIGBUS, NULL, &now) && now.sa_flags & SA_SIGINFO &&
	    now.sa_sigaction == handle)
		return;
	before = now;
	sigemptyset(&sa.sa_mask);
	sigaction(SIGBUS, &sa, NULL);
}

static struct vub_guard *get(void)
{
	struct vub_guard *g = atomic_load_explicit(&guards, memory_order_relaxed);

	while (g && atomic_load_explicit(&g->len, memory_order_relaxed))
		g = g->next;
	if (g)
		return g;
	g = calloc(1, sizeof(*g));
	if (!g)
		return NULL;
	g->next = atomic_load_explicit(&guards, memory_order_relaxed);
	atomic_store_explicit(&guards, g, memory_order_release);
	return g;
}

struct vub_guard *vub_guard_new(void *start, size_t len, size_t page)
{
	struct vub_guard *g;

	pthread_mutex_lock(&lock);
	install();
	g = get();
	if (g) {
		atomic_store(&g->is_lost, false);
		atomic_store(&g->start, (uintptr_t)start);
		atomic_store(&g->page, page);
		atomic_store_explicit(&g->len, len, memory_order_release);
	}
	pthread_mutex_unlock(&lock);
	return g;
}

void vub_guard_free(struct vub_guard *g)
{
	if (g)
		atomic_store_explicit(&g->len, 0, memory_order_release);
}

bool vub_guard_is_lost(const struct vub_guard *g)
{
	return atomic_load_explicit(&g->is_lost, memory_order_relaxed);
}
