/* SPDX-License-Identifier: MIT */
/* cmd/create.h - what the files behind `byre create` share: cmd_create.c, which reads the command
 * line and makes raw images, and create_qcow2.c. */
#ifndef CMD_CREATE_H
#define CMD_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "ctl/option_list.h"

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
	bool is_done;                   /* --help: nothing else counts */
};

/* Hints to the file system. */
struct create_hints {
	bool is_nocow;
	bool has_extent_hint;
	uint64_t extent_hint;
};

/* Gives them to the file @fd; the file system may not know them. */
void create_give_hints(int fd, const struct create_hints *hints);
int create_write_zeros(int fd, uint64_t len);

struct err;
struct image_name;
struct loop;
struct node;

/* create_export.c, in fibers of @l and @n's home: opens the export that @name is; checks that an
 * image of @size bytes fits into it, and zeroes the first @zeros. */
int create_open_export_wait(const struct image_name *name, struct loop *l, struct node **ret,
			    struct err *err);
int create_zero_export_wait(struct node *n, uint64_t size, uint64_t zeros, struct err *err);

/* `byre create -f qcow2`. Returns an exit code. */
int create_qcow2(struct create_args *a);
/* What -o may have then. */
void create_qcow2_help(bool has_filename);

#endif
