/* SPDX-License-Identifier: MIT */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"

static _Atomic(enum log_level) max_level = LOG_LEVEL_INFO;
static atomic_bool is_prefixed;
static _Atomic(void (*)(enum log_level, const char *)) log_sink;

static const struct {
	const char *word;
	int priority;           /* syslog(3)'s numbers */
} levels[] = {
	[LOG_LEVEL_ERROR] = { "error: ", 3 },
	[LOG_LEVEL_WARN] = { "warning: ", 4 },
	[LOG_LEVEL_INFO] = { "", 6 },
	[LOG_LEVEL_DEBUG] = { "debug: ", 7 },
};

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&max_level, level, memory_order_relaxed);
}

void log_set_prefix(bool has_prefix)
{
	atomic_store_explicit(&is_prefixed, has_prefix, memory_order_relaxed);
}

void log_set_sink(void (*sink)(enum log_level level, const char *line))
{
	atomic_store(&log_sink, sink);
}

char *text_clean(char *text)
{
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return text;
}

void log_write(enum log_level level, const char *fmt, ...)
{
	void (*sink)(enum log_level, const char *) = atomic_load(&log_sink);
	char line[2048];
	size_t n = 0;
	va_list ap;

	if (level > atomic_load_explicit(&max_level, memory_order_relaxed))
		return;
	if (!sink && atomic_load_explicit(&is_prefixed, memory_order_relaxed))
		n = (size_t)snprintf(line, sizeof(line), "<%d>", levels[level].priority);
	n += (size_t)snprintf(line + n, sizeof(line) - n, "byre: %s", levels[level].word);
	va_start(ap, fmt);
	vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
	va_end(ap);
	text_clean(line + n);
	if (sink) {
		sink(level, line);
		return;
	}
	n = strlen(line);
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, n) < 0)
		return;                 /* nobody is left to tell */
}

bool log_may(struct log_limit *limit)
{
	const uint64_t line_ns = LOG_LIMIT_EVERY_S * 1000000000ULL;
	uint64_t now, until, from;
	struct timespec ts;
	unsigned left_out;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
	until = atomic_load(&limit->paid_until_ns);
	do {
		from = MAX(until, now);
		if (from - now > (LOG_LIMIT_BURST - 1) * line_ns) {
			atomic_fetch_add(&limit->left_out, 1);
			return false;
		}
	} while (!atomic_compare_exchange_weak(&limit->paid_until_ns, &until, from + line_ns));
	left_out = atomic_exchange(&limit->left_out, 0);
	if (left_out)
		log_write(LOG_LEVEL_WARN, "%u lines like the next one were left out", left_out);
	return true;
}
