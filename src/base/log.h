/* SPDX-License-Identifier: MIT */
/* base/log.h - what the daemon tells the person who runs it.
 *
 * One line a message, "byre: warning: …" on standard error; for a journal with the priority prefix
 * "<4>". Any thread may log; a line is written with one write(2).
 * Nothing on the data path logs per request: what can repeat is logged once, by its caller. What
 * others can bring about again and again is limited (log_limited()). */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Messages above @level are dropped; the start value is LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);

/* Are lines to have the prefix? The start value is no. */
void log_set_prefix(bool has_prefix);

/* Sends every line to @sink instead (tests); NULL restores standard error. */
void log_set_sink(void (*sink)(enum log_level level, const char *line));

/* Makes control characters in @text question marks: names that came from an image go to terminals
 * and journals. Returns @text. */
char *text_clean(char *text);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The lines of one kind or of one client; zeroed at first. */
struct log_limit {
	_Atomic uint64_t paid_until_ns; /* the lines so far are paid for by the time until then */
	atomic_uint left_out;           /* since the last line */
};

enum { LOG_LIMIT_BURST = 50, LOG_LIMIT_EVERY_S = 10 };

/* May the next line of @limit be written? LOG_LIMIT_BURST may at once, one more each
 * LOG_LIMIT_EVERY_S; and if some were left out before, this says how many. Any thread. */
bool log_may(struct log_limit *limit);

/* log_write(), where log_may(). */
#define log_limited(limit, level, ...) \
	do { \
		if (log_may(limit)) \
			log_write(level, __VA_ARGS__); \
	} while (0)

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
