/* SPDX-License-Identifier: MIT */
/* cmd/serve_stats.h - what `byre serve --stats` shows once a second: a line a disk, redrawn in
 * place on a terminal. Control thread only; it reads the ports' counters, which never waits. */
#ifndef CMD_SERVE_STATS_H
#define CMD_SERVE_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk/port.h"

struct serve;

struct serve_stats {
	struct port_stats *before;      /* a disk: the counters at the last show; owned */
	uint64_t before_ns;
	bool is_tty;
	unsigned drawn;                 /* lines to go back over */
};

/* 0 or -ENOMEM. */
int serve_stats_init(struct serve_stats *st, const struct serve *s, uint64_t now_ns);
void serve_stats_fini(struct serve_stats *st);
/* Prints what happened since the last time to standard output. */
void serve_stats_show(struct serve_stats *st, const struct serve *s, uint64_t now_ns);

/* One disk's line, without a newline. Pure. Returns @buf. */
char *serve_stats_line(const char *name, const struct port_stats *before,
		       const struct port_stats *now, uint64_t interval_ns, char *buf, size_t n);

#endif
