/* SPDX-License-Identifier: MIT */
/* mem/start.c - what the environment asks for. See byre-malloc(3).
 *
 * Read by a constructor: a malloc() before that finds the limits as they are without. Only
 * BYRE_MALLOC_CHECK must hold for all, and is read when the first heap is made (registry.c). */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "mem/api.h"
#include "mem/decay.h"
#include "mem/elsewhere.h"
#include "mem/large.h"
#include "mem/report.h"

/* A number, with k, M or G behind it. False: @name is none. */
static bool read_number(const char *name, size_t *ret)
{
	const char *text = secure_getenv(name), *unit;
	static const char units[] = "kMG";
	unsigned long long n;
	unsigned shift = 0;
	char *end;

	if (!text || *text < '0' || *text > '9')
		return false;
	errno = 0;
	n = strtoull(text, &end, 10);
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
	}
	if (errno || *end || n > SIZE_MAX >> shift)
		return false;
	*ret = (size_t)n << shift;
	return true;
}

static void read_limit(const char *name, _Atomic size_t *limit)
{
	size_t n;

	if (read_number(name, &n))
		atomic_store_explicit(limit, n, memory_order_relaxed);
}

static void read_decay(void)
{
	const char *thread = secure_getenv("BYRE_MALLOC_BACKGROUND");
	size_t ms;

	if (read_number("BYRE_MALLOC_DECAY_MS", &ms))
		decay_set((unsigned)MIN(ms, (size_t)UINT_MAX));
	if (thread && !strcmp(thread, "1") && !elsewhere_look())
		decay_background(true);
}

static void print_statistics(void)
{
	if (!elsewhere())
		report_print();
}

__attribute__((constructor)) static void start(void)
{
	const char *stats = secure_getenv("BYRE_MALLOC_STATS");
	int saved = errno;

	read_limit("BYRE_MALLOC_DIRTY_MAX", &large_dirty_max);
	read_limit("BYRE_MALLOC_KEEP_MAX", &large_keep);
	read_decay();
	if (stats && !strcmp(stats, "1"))
		atexit(print_statistics);
	errno = saved;
}
