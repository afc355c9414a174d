/* SPDX-License-Identifier: MIT */
/* mem/os.c - the window and its areas. */
#include "mem/os.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"
#include "base/sanitizers.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* How often os_start() draws. */
enum { DRAWS = 64 };

static const struct area {
	uint64_t below;
	uint64_t max;
	size_t step;                    /* it grows by multiples of this */
	int flags;
} areas[OS_AREAS] = {
	/* Metadata is mapped ahead of its use, so it is not to be counted as committed. */
	[OS_BITS] = { OS_BITS_BELOW, 512 * SLICES_MAX, 256 * KiB, MAP_NORESERVE },
	[OS_SLABS] = { OS_SLABS_BELOW, 64 * SLICES_MAX, 256 * KiB, MAP_NORESERVE },
	[OS_TAGS] = { OS_TAGS_BELOW, 32 * SLICES_MAX, 256 * KiB, MAP_NORESERVE },
	[OS_HEAPS] = { OS_HEAPS_BELOW, 2 * GiB, 256 * KiB, MAP_NORESERVE },
	[OS_STOCK] = { OS_STOCK_BELOW, 4 * GiB, 256 * KiB, MAP_NORESERVE },
	[OS_MAP] = { OS_MAP_BELOW, 4 * SLICES_MAX, 256 * KiB, MAP_NORESERVE },
	[OS_SLICES] = { 0, SLICE_BYTES * SLICES_MAX, SLICE_BYTES, 0 },
};

uintptr_t os_base;
static size_t sizes[OS_AREAS];
static size_t page = OS_PAGE;           /* the kernel's */
static bool huge;                       /* the kernel may use huge pages, as it does for others */

/* A kernel without huge pages does not know this, and none are needed. */
static void no_huge_pages(void *at, size_t len)
{
	if (!huge)
		madvise(at, len, MADV_NOHUGEPAGE);
}

/* Maps [@at, @at + @len), which nobody has. 0 or -errno. */
static int map_at(uintptr_t at, size_t len, int flags)
{
	int saved = errno, err = 0;
	void *got = mmap((void *)at, len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | flags, -1, 0);

	if (got == MAP_FAILED) {
		err = -errno;
	} else if (got != (void *)at) {
		/* A kernel that takes the address for a hint. */
		munmap(got, len);
		err = -EEXIST;
	}
	/* Metadata has no flags of this kind: it lies elsewhere, and is small. */
	if (!err && !(flags & MAP_NORESERVE))
		no_huge_pages(got, len);
	errno = saved;
	return err;
}

/* What makes the window hard to guess: sixteen bytes that the kernel gives to each program, and
 * where it put us. */
static uint64_t random_bits(void)
{
	uint64_t seed = (uintptr_t)&seed;
	const void *kernels = (const void *)getauxval(AT_RANDOM);

	if (kernels) {
		uint64_t words[2];

		memcpy(words, kernels, sizeof(words));
		seed ^= mix64(words[0]) + words[1];
	}
	return seed;
}

int os_start(void)
{
	struct prng p = { random_bits() };
	/* The stack lies at the top of what user space has. In the eighth below its middle there is
	 * nothing unless somebody asks for it by address: programs, libraries and mappings without
	 * an address lie above, or at the bottom. */
	uint64_t top = UINT64_C(1) << log2_ceil((uintptr_t)&p);
	uint64_t first = 3 * (top / 8), room = top / 8;
	const char *ask = os_getenv("BYRE_MALLOC_HUGE");
	/* sysconf() knows it as well, from a table in pages of the C library that a small program
	 * does not touch otherwise. */
	unsigned long size = getauxval(AT_PAGESZ);
	int err = -ENOMEM;

	huge = ask && !strcmp(ask, "1");

#if HAS_TSAN
	/* It keeps that for itself, but for the lowest 512 GiB. */
	first = 256 * GiB;
	room = 128 * GiB;
#endif
	if (size > OS_PAGE)
		page = size;
	if (page > SLICE_BYTES || 3 * (top / 8) < OS_BITS_BELOW)
		return -ENOMEM;
	for (int i = 0; i < DRAWS; i++) {
		uintptr_t at = first + align_down(prng_below(&p, room), 2 * MiB);

		err = map_at(at, SLICE_BYTES, areas[OS_SLICES].flags);
		if (!err) {
			sizes[OS_SLICES] = SLICE_BYTES;
			os_base = at;
			return 0;
		}
		if (err != -EEXIST)
			break;
	}
	return err;
}

int os_grow(enum os_area area, size_t bytes)
{
	const struct area *a = &areas[area];
	size_t have = sizes[area], want;
	int err;

	if (bytes <= have)
		return 0;
	if (bytes > a->max)
		return -ENOMEM;
	want = align_up(bytes, a->step);
	err = map_at(os_base - a->below + have, want - have, a->flags);
	if (err && err != -EEXIST && area != OS_SLICES) {
		/* Memory is short: not more than is needed. */
		want = align_up(bytes, page);
		err = map_at(os_base - a->below + have, want - have, a->flags);
	}
	if (!err)
		sizes[area] = want;
	return err;
}

size_t os_size(enum os_area area)
{
	return sizes[area];
}

void os_skip(enum os_area area, size_t bytes)
{
	sizes[area] = bytes;
}

/* ---- giving back ---- */

/* O13. */
#ifdef MEM_LOCK_COUNT
__thread int mem_locks_held;
void (*os_drop_hook)(void);             /* the test's: what is held just now? */

static void no_lock_held(void)
{
	assert(!mem_locks_held);
	if (os_drop_hook)
		os_drop_hook();
}
#define NO_LOCK_HELD() no_lock_held()
#else
#define NO_LOCK_HELD() ((void)0)
#endif

int os_drop(void *at, size_t len)
{
	uintptr_t lo = align_up((uintptr_t)at, page);
	uintptr_t hi = align_down((uintptr_t)at + len, page);
	int saved = errno, err = 0;

	NO_LOCK_HELD();
	if (lo < hi && madvise((void *)lo, hi - lo, MADV_DONTNEED))
		err = -errno;
	errno = saved;
	return err;
}

/* Linux 6.13 and later take MADV_DONTNEED for the caller's own memory, 6.15 his own pidfd by a name
 * of this value, and from 6.16 on all ranges of a call share their TLB flushes, which is most of
 * what small ones cost. */
#define PIDFD_OF_SELF (-10000)

/* How many bytes of the first ranges went in one call; 0 where the kernel has no such call. */
static size_t drop_vector(const struct iovec *ranges, unsigned n)
{
	long went = -1;

#ifdef SYS_process_madvise
	went = syscall(SYS_process_madvise, PIDFD_OF_SELF, ranges, (size_t)n, MADV_DONTNEED, 0);
#endif
	return went > 0 ? (size_t)went : 0;
}

size_t os_drop_all(const struct iovec *ranges, unsigned n)
{
	/* 1: the kernel has no such call. A hint, which every thread may find out for itself. */
	static _Atomic bool singly;
	int saved = errno;
	size_t gone = 0, went = 0;
	unsigned done = 0;

	NO_LOCK_HELD();
	if (n > 1 && page == OS_PAGE && !atomic_load_explicit(&singly, memory_order_relaxed)) {
		gone = went = drop_vector(ranges, n);
		/* All of them, or whole ones up to one that cannot be dropped. */
		for (; done < n && went >= ranges[done].iov_len; done++)
			went -= ranges[done].iov_len;
	}
	for (unsigned i = done; i < n; i++) {
		if (os_drop(ranges[i].iov_base, ranges[i].iov_len))
			continue;
		gone += ranges[i].iov_len;
		/* What failed together and works alone is the call's fault. */
		if (n > 1 && !i)
			atomic_store_explicit(&singly, true, memory_order_relaxed);
	}
	errno = saved;
	return gone;
}

int os_renew(void *at, size_t len)
{
	int saved = errno, err = 0;
	void *got;

	NO_LOCK_HELD();
	got = mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (got == MAP_FAILED)
		err = -errno;
	else
		no_huge_pages(at, len);
	errno = saved;
	return err;
}

int os_move(void *from, size_t len, void *to)
{
	int saved = errno, err = 0;

	if (mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) ==
	    MAP_FAILED)
		err = -errno;
	/* The old place gets a mapping like any other. It has one already, but emulators (qemu's
	 * user mode) do not know MREMAP_DONTUNMAP. */
	if (!err)
		os_renew(from, len);
	errno = saved;
	return err;
}

/* ---- the environment, time, words ---- */

/* Of the dynamic linker's: what the kernel put on the stack, the number of arguments first. */
extern void *__libc_stack_end __attribute__((weak));

const char *os_getenv(const char *name)
{
	size_t len = strlen(name);
	char **env = environ;

	if (getauxval(AT_SECURE))
		return NULL;
	if (!env && &__libc_stack_end && __libc_stack_end) {
		/* Functions in .preinit_array run before libc knows its environment. */
		env = (char **)__libc_stack_end + 1;
		while (*env)
			env++;
		env++;
	}
	for (; env && *env; env++)
		if (!strncmp(*env, name, len) && (*env)[len] == '=')
			return *env + len + 1;
	return NULL;
}

uint64_t os_now(void)
{
	struct timespec t = { 0 };

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_SEC + (uint64_t)t.tv_nsec;
}

/* The text of @v in @buf, which has room for 24 characters; returns where it begins. */
static char *number(char *buf, uint64_t v, unsigned base)
{
	char *at = buf + 23;

	*at = '\0';
	do {
		*--at = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	return at;
}

void os_die(const char *what, const void *where)
{
	char line[256] = "byre-malloc: ", digits[24];

	strncat(line, what, 160);
	if (where) {
		strcat(line, " 0x");
		strcat(line, number(digits, (uintptr_t)where, 16));
	}
	strcat(line, "\n");
	if (write(STDERR_FILENO, line, strlen(line)) < 0)
		abort();
	abort();
}
