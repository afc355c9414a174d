/* SPDX-License-Identifier: MIT */
/* cmd/serve_idle.h - a daemon that has nothing to do gives its free memory back.
 *
 * Control thread only. It looks at what the ports have counted, every SERVE_IDLE_NS; with nothing
 * new since the last look, and something before, it is time. */
#ifndef CMD_SERVE_IDLE_H
#define CMD_SERVE_IDLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"

struct serve;

#define SERVE_IDLE_NS (2 * NS_PER_SEC)

struct serve_idle {
	uint64_t next_ns;               /* look */
	uint64_t seen;
	bool is_clean;                  /* nothing since it was given back */
};

void serve_idle_init(struct serve_idle *idle, uint64_t now_ns);
/* Does what is due. True: memory was given back. */
bool serve_idle_look(struct serve_idle *idle, const struct serve *s, uint64_t now_ns);

#endif
