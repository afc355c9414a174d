/* SPDX-License-Identifier: MIT */
/* cmd/snapshot_arg.h - -l: which internal snapshot of an image is meant. */
#ifndef CMD_SNAPSHOT_ARG_H
#define CMD_SNAPSHOT_ARG_H

#include <stdbool.h>

struct img;
struct img_opts;

struct snapshot_arg {
	const char *text;               /* as written; NULL: none is asked for */
	char *id, *name;                /* owned; what it asks for; NULL: either */
	bool is_either;                 /* `text` is an id, or else a name */
};

/* Understands @text: an id or a name, or snapshot.id=ID,snapshot.name=NAME. 0, or -errno with
 * the message printed. */
int snapshot_arg_parse(const char *text, struct snapshot_arg *ret);
void snapshot_arg_fini(struct snapshot_arg *a);

/* Opens the snapshot that @a asks for in the place of the active state of @img, which was opened as
 * @name with @how. 0, or -errno with the message printed; @img is closed or not then. */
int snapshot_arg_open(const struct snapshot_arg *a, const char *name, const struct img_opts *how,
		      struct img *img);

#endif
