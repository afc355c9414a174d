/* SPDX-License-Identifier: MIT */
/* examples/embed.c - xmalloc() in a program that has nothing: no C library, no start-up code, no
 * heap.
 *
 * It stands for a small hypervisor. What such a thing has to bring is between the lines: pages, a
 * lock, a console for bad news, and which heap is meant. The rest uses it. Built with -nostdlib;
 * exits with 0 if every page came back. */
#include <byre/xmalloc.h>

#include <stdint.h>

/* ---- what any machine has: here, two calls into Linux ---- */

#if defined(__x86_64__)
enum { SYS_WRITE = 1, SYS_EXIT = 60 };

static long call(long number, long a, long b, long c)
{
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return ret;
}
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall start\n");
#elif defined(__aarch64__)
enum { SYS_WRITE = 64, SYS_EXIT = 93 };

static long call(long number, long a, long b, long c)
{
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b,
		x2 __asm__("x2") = c;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tbl start\n");
#elif defined(__i386__)
enum { SYS_WRITE = 4, SYS_EXIT = 1 };

static long call(long number, long a, long b, long c)
{
	long ret;

	__asm__ volatile("int $0x80" : "=a"(ret) : "a"(number), "b"(a), "c"(b), "d"(c)
			 : "memory");
	return ret;
}
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %esp\n\tcall start\n");
#else
#error "say here how this machine makes a system call"
#endif

static void print(const char *text)
{
	long len = 0;

	while (text[len])
		len++;
	call(SYS_WRITE, 2, (long)(uintptr_t)text, len);
}

/* ---- what the heap is given ---- */

enum { PAGE = 4096, PAGES = 256 };

static _Alignas(PAGE) char memory[PAGES][PAGE];
static bool is_taken[PAGES];
static unsigned taken, faults;
static volatile char lock_word;
static struct byre_xheap *heap;

/* First fit: slow and obvious. */
static void *get_pages(void *cookie, size_t len)
{
	size_t n = len / PAGE, run = 0;

	for (size_t i = 0; i < PAGES; i++) {
		run = is_taken[i] ? 0 : run + 1;
		if (run < n)
			continue;
		for (size_t k = 0; k < n; k++)
			is_taken[i - k] = true;
		taken += (unsigned)n;
		return memory[i + 1 - n];
	}
	return NULL;
}

static void put_pages(void *cookie, void *pages, size_t len)
{
	size_t first = (size_t)((char *)pages - memory[0]) / PAGE;

	for (size_t i = 0; i < len / PAGE; i++)
		is_taken[first + i] = false;
	taken -= (unsigned)(len / PAGE);
}

static void lock(void *cookie)
{
	while (__atomic_test_and_set(&lock_word, __ATOMIC_ACQUIRE))
		;
}

static void unlock(void *cookie)
{
	__atomic_clear(&lock_word, __ATOMIC_RELEASE);
}

static void report(void *cookie, const struct byre_region_fault *fault)
{
	faults++;
	print("heap: ");
	print(fault->what);
	print("\n");
}

struct byre_xheap *byre_xheap_current(void)
{
	return heap;
}

static const struct byre_xheap_config config = {
	.hooks = {
		.get_pages = get_pages, .put_pages = put_pages,
		.lock = lock, .unlock = unlock, .report = report,
	},
};

/* ---- what it is for: guests, their virtual CPUs, and the pages that they have written ---- */

struct vcpu {
	uint64_t registers[32];
	_Alignas(64) char vector_state[1024];
};

struct guest {
	struct guest *next;
	unsigned number, vcpu_count;
	struct vcpu *vcpus;
	unsigned char *dirty;           /* a bit a page: two pages of bits exactly */
};

enum { GUESTS = 12, DIRTY_BYTES = 2 * PAGE };

static void guest_free(struct guest *g)
{
	xfree(g->dirty);
	xfree(g->vcpus);
	xfree(g);
}

static struct guest *guest_new(unsigned number, struct guest *next)
{
	struct guest *g = xzalloc(struct guest);

	if (!g)
		return NULL;
	g->next = next;
	g->number = number;
	g->vcpu_count = 1 + number % 4;
	g->vcpus = xzalloc_array(struct vcpu, g->vcpu_count);
	g->dirty = xzalloc_array(unsigned char, DIRTY_BYTES);
	if (g->vcpus && g->dirty)
		return g;
	guest_free(g);
	return NULL;
}

/* Another virtual CPU while the guest runs. */
static bool guest_add_vcpu(struct guest *g)
{
	struct vcpu *more = xrealloc_array(g->vcpus, g->vcpu_count + 1);

	if (!more)
		return false;
	g->vcpus = more;
	g->vcpus[g->vcpu_count++].registers[0] = g->number;
	return true;
}

static bool run_guests(void)
{
	struct guest *all = NULL, *g;
	bool ok = true;

	for (unsigned i = 0; i < GUESTS && ok; i++) {
		g = guest_new(i, all);
		ok = g != NULL;
		if (!ok)
			break;
		all = g;
		ok = ((uintptr_t)g->vcpus & 63) == 0 && ((uintptr_t)g->dirty & (PAGE - 1)) == 0;
		g->dirty[DIRTY_BYTES - 1] = (unsigned char)i;
	}
	for (g = all; g && ok; g = g->next)
		ok = guest_add_vcpu(g) && g->dirty[DIRTY_BYTES - 1] == g->number;
	ok = ok && byre_xheap_check(heap, NULL);
	while ((g = all)) {
		all = g->next;
		guest_free(g);
	}
	return ok;
}

/* More is asked for than there is. */
static bool run_out(void)
{
	static void *p[PAGES];
	unsigned n = 0;

	while (n < PAGES && (p[n] = xmalloc_bytes(PAGE)))
		n++;
	for (unsigned i = 0; i < n; i++)
		xfree(p[i]);
	return n > PAGES * 9 / 10 && n < PAGES;
}

/* A mistake is told and does no harm. */
static bool free_twice(void)
{
	char *keep = xmalloc(char), *p = xmalloc(char);

	xfree(p);
	xfree(p);
	xfree(keep);
	return faults == 1 && byre_xheap_check(heap, NULL);
}

/* Called by _start. */
_Noreturn void start(void);
_Noreturn void start(void)
{
	bool ok;

	heap = byre_xheap_open(&config);
	ok = heap && run_guests() && run_out() && free_twice() && byre_xheap_close(heap) && !taken;
	print(ok ? "every page came back\n" : "something is wrong\n");
	for (;;)
		call(SYS_EXIT, !ok, 0, 0);
}
