/* SPDX-License-Identifier: MIT */
/* mem/report.h - statistics for people. */
#ifndef MEM_REPORT_H
#define MEM_REPORT_H

#include "mem/census.h"
#include "mem/lock.h"

/* To stderr, as text. */
void report_print(void);

#endif
