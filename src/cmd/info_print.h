/* SPDX-License-Identifier: MIT */
/* cmd/info_print.h - what `info` found out, as text or JSON, in qemu-img's order of things. */
#ifndef CMD_INFO_PRINT_H
#define CMD_INFO_PRINT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "fmt/qcow2/info.h"

/* A file below a format. */
struct file_facts {
	const char *name;
	const char *protocol;           /* "file", "host_device", "nbd" */
	uint64_t size;                  /* whole sectors */
	uint64_t allocated;
	bool has_allocated;             /* else nobody can tell */
	uint64_t extent_hint;           /* XFS: bytes; 0: none */
};

/* An image. */
struct image_facts {
	const char *name;
	const char *format;             /* @file's protocol: @file alone */
	uint64_t size;
	const char *backing;            /* as the image says it; NULL: none */
	const char *backing_path;       /* what that means; NULL: nobody can tell */
	const char *backing_format;     /* NULL: not said */
	const char *data_file;          /* NULL: none */
	const struct qcow2_info *qcow2; /* NULL: another format */
	struct file_facts file;
};

void info_print_text(FILE *out, const struct image_facts *f);
/* The images of a chain, or the only one. */
void info_print_json(FILE *out, const struct image_facts *f, unsigned n, bool is_list);

#endif
