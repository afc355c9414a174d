/* SPDX-License-Identifier: MIT */
/* cmd/measure_target.h - what `byre measure` is to work out the size of: -O and -o, as data. */
#ifndef CMD_MEASURE_TARGET_H
#define CMD_MEASURE_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "job/measure.h"

enum measure_format { MEASURE_RAW, MEASURE_QCOW2 };

struct measure_target {
	enum measure_format format;
	struct measure_layout layout;   /* qcow2 */
	bool is_old;                    /* compat=0.10: without bitmaps */
	bool is_full;                   /* all data is allocated at once */
	bool has_backing;               /* what a copy will not need to hold is not known */
};

/* @format: -O. @options: all of -o, joined by commas; or NULL. 0, or -EINVAL with qemu-img's
 * message printed. */
int measure_target_parse(const char *format, const char *options, struct measure_target *ret);

#endif
