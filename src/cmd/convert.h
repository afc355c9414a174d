/* SPDX-License-Identifier: MIT */
/* cmd/convert.h - what the files of `byre convert` share: cmd_convert.c, which reads the command
 * line, and convert.c, which does what it says. */
#ifndef CMD_CONVERT_H
#define CMD_CONVERT_H

#include <stdbool.h>
#include <stdint.h>

#include "cmd/create.h"
#include "cmd/snapshot_arg.h"
#include "cmd/tool.h"

/* The command line; all strings are argv's unless it says otherwise. */
struct convert_args {
	const char **names;             /* owned; the sources, then the target */
	unsigned nnames;
	struct img_opts source;
	struct snapshot_arg snapshot;
	struct img_opts target;         /* format: -O; image_opts: --target-image-opts */
	char *options_text;             /* owned; all of -o, or NULL */
	struct create_args create;      /* of the target, unless it is there already (-n) */
	bool is_there;                  /* -n */
	bool is_zero;                   /* --target-is-zero */
	bool is_compressed, is_offloaded, is_out_of_order, is_salvage;
	bool has_bitmaps, skips_broken_bitmaps;
	bool has_sparse;
	bool keeps_cache;
	uint64_t min_sparse, rate;
	unsigned depth;                 /* 0: not said */
	bool is_quiet, is_progress;
};

/* Returns an exit code. */
int convert(struct convert_args *a);

#endif
