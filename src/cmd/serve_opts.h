/* SPDX-License-Identifier: MIT */
/* cmd/serve_opts.h - the command line of `byre serve`, as data. Pure: opens nothing.
 *
 * Invariants:
 *	O1  an option of an image belongs to the next image on the command line and to no other;
 *	    one that no image follows is an error;
 *	O2  an option for all counts wherever it stands;
 *	O3  no two images are served under one name. */
#ifndef CMD_SERVE_OPTS_H
#define CMD_SERVE_OPTS_H

#include <stdbool.h>
#include <stdint.h>

#include "ctl/graph.h"
#include "loop/loop.h"

struct err;

enum { SERVE_IMAGES_MAX = 256, SERVE_LISTEN_MAX = 16, SERVE_ALLOW_MAX = 64 };
enum { SERVE_NAME_MAX = 255 };          /* bytes of an export's name */

/* One image and what was said of it. All strings are argv's. */
struct serve_image {
	const char *path;
	const char *format;             /* NULL: probed */
	const char *name;               /* never NULL after parsing */
	const char *snapshot;           /* NULL: the active state */
	enum file_cache cache;
	bool read_only;
	bool ignore_discard;
	enum graph_zeroes detect_zeroes;
	bool compress;
	bool force_share;               /* then read_only too */
	bool has_name;                  /* --name was given */
};

struct serve_opts {
	struct serve_image *images;
	unsigned nimages;
	const char *listen[SERVE_LISTEN_MAX];
	unsigned nlisten;
	const char *allow[SERVE_ALLOW_MAX];
	unsigned nallow;
	unsigned loops;
	uint64_t cache_bytes;           /* of mapping cache, a disk */
	enum loop_backend backend;
	const char *pid_file;           /* NULL: none */
	bool stats;
	bool help;                      /* nothing else counts */
};

/* Fills @ret from argv[1..]; argv[0] is "serve". 0, or -EINVAL / -ENOMEM with @err set.
 * Call serve_opts_fini() after success. */
int serve_opts_parse(int argc, char **argv, struct serve_opts *ret, struct err *err);
void serve_opts_fini(struct serve_opts *o);

/* Prints the options as --help shows them. */
void serve_opts_print(void);

#endif
