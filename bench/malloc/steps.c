/* SPDX-License-Identifier: MIT */
/* bench/malloc/steps.c - user instructions of malloc and free, single-stepped, with whatever malloc
 * the process has.
 *
 * The processor's trap flag is set around each call, and a handler counts the traps that find
 * the process outside of the few functions that make the calls: the jump through the PLT and the
 * function with its return, not the call. For each kind of call the median of many is the fast
 * path; the most is what a slow path takes. Prints a JSON line; x86-64 only, elsewhere it
 * exits 77. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include "base/bits.h"

#if defined(__x86_64__) && defined(__OPTIMIZE__)
#define TRAP_ON() __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq" : : : "memory", "cc")
#define TRAP_OFF() __asm__ volatile("pushfq; andl $~0x100, (%%rsp); popfq" : : : "memory", "cc")
#define PLACE(context) ((uintptr_t)(context)->uc_mcontext.gregs[REG_RIP])
#else
#define TRAP_ON() ((void)0)             /* then there are 0 traps */
#define TRAP_OFF() ((void)0)
#define PLACE(context) ((uintptr_t)(context))
#endif

/* The functions that make the calls are in a section of their own. */
#define CALLER __attribute__((noinline, section("callers")))
extern const char __start_callers[], __stop_callers[];

enum { SKIPPED = 77, CALLS = 1000, SIZE = 64 };

static volatile unsigned traps;
static void *blocks[CALLS];

struct samples {
	unsigned count, traps[CALLS];
};

static struct samples lifo_malloc, lifo_free, fifo_malloc, fifo_free, foreign_free;

static void on_trap(int sig, siginfo_t *info, void *context)
{
	uintptr_t place = PLACE((ucontext_t *)context);

	if (place < (uintptr_t)__start_callers || place >= (uintptr_t)__stop_callers)
		traps++;
}

static void note(struct samples *s)
{
	s->traps[s->count++ % CALLS] = traps;
}

static CALLER void *count_malloc(void)
{
	void *p;

	traps = 0;
	TRAP_ON();
	p = malloc(SIZE);
	TRAP_OFF();
	return p;
}

static CALLER void count_free(void *p)
{
	traps = 0;
	TRAP_ON();
	free(p);
	TRAP_OFF();
}

static void lifo(void)
{
	for (unsigned i = 0; i < CALLS; i++) {
		void *p = count_malloc();

		note(&lifo_malloc);
		count_free(p);
		note(&lifo_free);
	}
}

static void fifo(void)
{
	for (unsigned i = 0; i < CALLS; i++) {
		blocks[i] = count_malloc();
		note(&fifo_malloc);
	}
	for (unsigned i = 0; i < CALLS; i++) {
		count_free(blocks[i]);
		note(&fifo_free);
	}
}

static void *free_foreign(void *arg)
{
	for (unsigned i = 0; i < CALLS; i++) {
		count_free(blocks[i]);
		note(&foreign_free);
	}
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;

	return x < y ? -1 : x > y;
}

static void print(const char *name, struct samples *s, const char *after)
{
	unsigned n = MIN(s->count, (unsigned)CALLS);
	unsigned long sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += s->traps[i];
	qsort(s->traps, n, sizeof(s->traps[0]), by_value);
	printf("\"%s\": {\"median\": %u, \"mean\": %.1f, \"most\": %u}%s", name, s->traps[n / 2],
	       (double)sum / n, s->traps[n - 1], after);
}

int main(void)
{
	struct sigaction sa = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };
	pthread_t t;

	if (sigaction(SIGTRAP, &sa, NULL) < 0)
		return 1;
	free(count_malloc());
	if (!traps) {
		puts("skipped: cannot count instructions on this machine, or in this build");
		return SKIPPED;
	}
	lifo();
	fifo();
	for (unsigned i = 0; i < CALLS; i++)
		blocks[i] = malloc(SIZE);
	if (pthread_create(&t, NULL, free_foreign, NULL) || pthread_join(t, NULL))
		return 1;
	printf("{");
	print("lifo malloc", &lifo_malloc, ", ");
	print("lifo free", &lifo_free, ", ");
	print("fifo malloc", &fifo_malloc, ", ");
	print("fifo free", &fifo_free, ", ");
	print("foreign free", &foreign_free, "}\n");
	return 0;
}
