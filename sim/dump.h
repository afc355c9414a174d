/* SPDX-License-Identifier: MIT */
/* sim/dump.h - the log of a trace, to be read: what was written where, and what it is. */
#ifndef SIM_DUMP_H
#define SIM_DUMP_H

#include <stdio.h>

#include "sim/trace.h"

/* Events up to @k, marked there. What lies where is told by the tables as they were at the end. */
void dump_trace(FILE *to, const struct trace *t, uint32_t k);

#endif
