/* SPDX-License-Identifier: MIT */
/* cmd/create.h - new images, for `byre create` and `byre convert`: cmd_create.c, which reads the
 * command line and makes raw images, and create_qcow2.c. */
#ifndef CMD_CREATE_H
#define CMD_CREATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ctl/option_list.h"

struct err;
struct image_name;
struct loop;
struct node;
struct tool;

/* What an image is made in. */
enum create_state {
	CREATE_NONE,                    /* no regular file: a device, an export, nothing yet */
	CREATE_FOUND,                   /* a file that was there, and is as it was */
	CREATE_EMPTIED,                 /* one of which nothing is left */
	CREATE_NEW,                     /* one that was not there before */
};

struct create_made {
	dev_t dev;
	ino_t ino;
	/* Set last: whoever gives up while a worker is at it looks. */
	_Atomic(enum create_state) state;
};

/* The command line; all strings are argv's. */
struct create_args {
	const char *format;
	const char *operands[3];        /* FILENAME, SIZE, and one that should not be there */
	unsigned noperands;             /* at most so many are kept */
	const char *filename;
	bool has_size;                  /* as an operand */
	uint64_t size;
	const char *backing, *backing_format;
	char *options_text;             /* owned; all of -o, or NULL */
	struct option_list options;
	bool is_quiet;
	bool is_backing_unsafe;         /* -u */
	bool is_backing_given;          /* nobody needs to look at the backing file or its format */
	bool is_unfinished;             /* qcow2: nobody can open it before it is filled */
	bool is_done;                   /* --help: nothing else counts */
	const atomic_bool *is_stopped;  /* NULL: it never is; else it ends with -ECANCELED */
	struct create_made made, made_data;     /* out, at any time: the file, and its data file */
};

/* Opens @path, which may be new, for an image. The descriptor or -errno. */
int create_open(const char *path, struct create_made *ret);
/* Empties the file @fd, if it can be emptied. 0 or -errno. */
int create_empty(int fd, struct create_made *m);
/* Is the file @path, with all that it holds, of our making? Somebody may have put another in its
 * place. */
bool create_is_ours(const struct create_made *m, const char *path);

/* Hints to the file system. */
struct create_hints {
	bool is_nocow;
	bool has_extent_hint;
	uint64_t extent_hint;
};

/* Gives them to the file @fd; the file system may not know them. */
void create_give_hints(int fd, const struct create_hints *hints);
int create_write_zeros(int fd, uint64_t len, const atomic_bool *is_stopped);

/* Can images of @format be made? 0 or -errno. */
int create_check_format(const char *format, struct err *err);
/* Does the format of @a know all options, with such values? */
int create_check_options(struct create_args *a, struct err *err);
/* Is there the bare word "help", or "?", among what -o has? */
bool create_asks_help(const char *options);
/* What -o may have for the format of @a. */
void create_print_help(const struct create_args *a);
/* Makes the image; it is announced unless a->is_quiet. 0 or -errno; @err does not name it. */
int create_image(struct tool *t, struct create_args *a, struct err *err);

/* What @filename, which is not empty, means as a target. */
int create_parse_name(const char *filename, struct image_name *ret, struct err *err);
/* Is it of a protocol at all? */
int create_check_protocol(const char *filename, struct err *err);

/* create_export.c, in fibers of @l and @n's home: opens the export that @name is; checks that an
 * image of @size bytes fits into it, and zeroes the first @zeros. */
int create_open_export_wait(const struct image_name *name, struct loop *l, struct node **ret,
			    struct err *err);
int create_zero_export_wait(struct node *n, uint64_t size, uint64_t zeros, struct err *err);

/* create_qcow2.c: the same for qcow2 alone. */
int create_qcow2(struct tool *t, struct create_args *a, struct err *err);
int create_qcow2_check_options(const struct create_args *a, struct err *err);
void create_qcow2_help(bool has_filename);

#endif
