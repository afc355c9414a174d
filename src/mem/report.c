/* SPDX-License-Identifier: MIT */
/* mem/report.c - statistics in words, JSON, and as the C library gives them.
 *
 * Texts go to a buffer of fixed size or are only measured: nothing here allocates. */
#include "mem/report.h"

#include <byre/malloc.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mem/api.h"

enum { TEXT_MAX = 32 << 10 };

struct text {
	char *buf;
	size_t size;
	size_t len;                     /* of all, as if there were room */
};

static __attribute__((format(printf, 2, 3))) void say(struct text *t, const char *format, ...)
{
	size_t at = MIN(t->len, t->size);
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(t->size ? t->buf + at : NULL, t->size - at, format, args);
	va_end(args);
	t->len += n > 0 ? (size_t)n : 0;
}

static void say_text(struct text *t, const struct census *c)
{
	static const double mib = 1 << 20;

	say(t, "byre-malloc " BYRE_VERSION "\n"
	    "in use          %12.1f MiB\n"
	    "in magazines    %12.1f MiB\n"
	    "large blocks    %12.1f MiB in %zu\n"
	    "slices in use   %12.1f MiB, at most so far %.1f MiB\n"
	    "free slices     %12.1f MiB of memory, %.1f MiB given back so far\n"
	    "address space   %12.1f MiB\n"
	    "heaps           %12zu\n",
	    (double)c->used / mib, (double)c->cached / mib, (double)c->large_bytes / mib, c->large,
	    (double)c->pages.used / mib, (double)c->pages.peak / mib,
	    (double)c->pages.dirty / mib, (double)c->pages.purged / mib,
	    (double)c->pages.mapped / mib, c->heaps);
	say(t, "\n   size       in use  in magazines     slabs\n");
	for (unsigned i = 0; i < CLASSES; i++)
		if (c->classes[i].slabs)
			say(t, "%7u %12zu %13zu %9zu\n", class_info[i].size, c->classes[i].used,
			    c->classes[i].cached, c->classes[i].slabs);
}

static void say_json(struct text *t, const struct census *c)
{
	const char *comma = "";

	say(t, "{\"version\":\"" BYRE_VERSION "\",\"used\":%zu,\"cached\":%zu,"
	    "\"large\":{\"blocks\":%zu,\"bytes\":%zu},"
	    "\"slices\":{\"used\":%zu,\"peak\":%zu,\"dirty\":%zu,\"mapped\":%zu},"
	    "\"released\":%zu,\"metadata\":%zu,\"heaps\":%zu,\"classes\":[",
	    c->used, c->cached, c->large, c->large_bytes, c->pages.used, c->pages.peak,
	    c->pages.dirty, c->pages.mapped, c->pages.purged, c->metadata, c->heaps);
	for (unsigned i = 0; i < CLASSES; i++) {
		if (!c->classes[i].slabs)
			continue;
		say(t, "%s{\"size\":%u,\"used\":%zu,\"cached\":%zu,\"slabs\":%zu}", comma,
		    class_info[i].size, c->classes[i].used, c->classes[i].cached,
		    c->classes[i].slabs);
		comma = ",";
	}
	say(t, "]}\n");
}

EXPORT size_t byre_malloc_statistics(char *buf, size_t size, enum byre_malloc_format format)
{
	struct text t = { .buf = buf, .size = size };
	struct census c;

	census_take(&c);
	if (size)
		buf[0] = '\0';
	if (format == BYRE_MALLOC_JSON)
		say_json(&t, &c);
	else
		say_text(&t, &c);
	return t.len;
}

void report_print(void)
{
	static char buf[TEXT_MAX];
	static struct mem_lock lock;
	size_t n;

	mem_lock(&lock);
	n = byre_malloc_statistics(buf, sizeof(buf), BYRE_MALLOC_TEXT);
	n = write(STDERR_FILENO, buf, MIN(n, sizeof(buf) - 1)) < 0 ? 0 : n;
	mem_unlock(&lock);
}

/* ---- as the C library has it ---- */

EXPORT void malloc_stats(void)
{
	report_print();
}

EXPORT struct mallinfo2 mallinfo2(void)
{
	struct census c;
	size_t small = 0, cached = 0;

	census_take(&c);
	for (unsigned i = 0; i < CLASSES; i++)
		cached += c.classes[i].cached;
	small = c.pages.used - MIN(c.pages.used, c.large_bytes);
	return (struct mallinfo2){
		.arena = small + c.pages.dirty,
		.ordblks = cached,
		.hblks = c.large,
		.hblkhd = c.large_bytes,
		.usmblks = 0,
		.uordblks = c.used - c.large_bytes,
		.fordblks = small + c.pages.dirty - MIN(small, c.used - c.large_bytes),
		.keepcost = c.pages.dirty,
	};
}

/* The old one counts in int: what is too large for that is as large as can be. */
static int as_int(size_t n)
{
	return n > INT_MAX ? INT_MAX : (int)n;
}

EXPORT struct mallinfo mallinfo(void)
{
	struct mallinfo2 m = mallinfo2();

	return (struct mallinfo){
		.arena = as_int(m.arena),
		.ordblks = as_int(m.ordblks),
		.hblks = as_int(m.hblks),
		.hblkhd = as_int(m.hblkhd),
		.uordblks = as_int(m.uordblks),
		.fordblks = as_int(m.fordblks),
		.keepcost = as_int(m.keepcost),
	};
}

/* The elements are those of glibc, for those who read them: one heap of all, totals, the system. */
EXPORT int malloc_info(int options, FILE *f)
{
	struct mallinfo2 m;
	struct census c;

	if (options)
		return EINVAL;
	census_take(&c);
	m = mallinfo2();
	fputs("<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n", f);
	for (unsigned i = 0; i < CLASSES; i++) {
		const struct census_class *k = &c.classes[i];
		size_t size = class_info[i].size;

		if (k->cached)
			fprintf(f, "  <size from=\"%zu\" to=\"%zu\" total=\"%zu\" "
				"count=\"%zu\"/>\n",
				i ? class_info[i - 1].size + (size_t)1 : 1, size, k->cached * size,
				k->cached);
	}
	fprintf(f, "</sizes>\n"
		"<total type=\"fast\" count=\"%zu\" size=\"%zu\"/>\n"
		"<total type=\"rest\" count=\"%zu\" size=\"%zu\"/>\n"
		"<system type=\"current\" size=\"%zu\"/>\n"
		"<system type=\"max\" size=\"%zu\"/>\n"
		"<aspace type=\"total\" size=\"%zu\"/>\n"
		"<aspace type=\"mprotect\" size=\"%zu\"/>\n"
		"</heap>\n", m.ordblks, c.cached, (size_t)0, m.fordblks - MIN(m.fordblks, c.cached),
		m.arena, c.pages.peak, c.pages.mapped, c.pages.mapped);
	fprintf(f, "<total type=\"fast\" count=\"%zu\" size=\"%zu\"/>\n"
		"<total type=\"rest\" count=\"%zu\" size=\"%zu\"/>\n"
		"<total type=\"mmap\" count=\"%zu\" size=\"%zu\"/>\n"
		"<system type=\"current\" size=\"%zu\"/>\n"
		"<system type=\"max\" size=\"%zu\"/>\n"
		"<aspace type=\"total\" size=\"%zu\"/>\n"
		"<aspace type=\"mprotect\" size=\"%zu\"/>\n"
		"</malloc>\n", m.ordblks, c.cached, (size_t)0,
		m.fordblks - MIN(m.fordblks, c.cached), m.hblks, m.hblkhd, m.arena + m.hblkhd,
		c.pages.peak, c.pages.mapped, c.pages.mapped);
	return ferror(f) ? EIO : 0;
}
