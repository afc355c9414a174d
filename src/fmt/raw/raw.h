/* SPDX-License-Identifier: MIT */
/* fmt/raw/raw.h - a disk that is its file, or a part of it, byte for byte. */
#ifndef FMT_RAW_RAW_H
#define FMT_RAW_RAW_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct node;

struct raw_opts {
	const char *name;               /* what the node is called; NULL: as its file */
	uint64_t offset;                /* where the disk begins in the file */
	bool has_size;                  /* else the rest of the file */
	uint64_t size;                  /* its length, a multiple of 512 */
	bool probed;                    /* the format was guessed: see R2 in raw.c */
	bool writable;
};

/* In a fiber of @file's home loop. Takes the reference to @file on success. */
int raw_open_wait(struct node *file, const struct raw_opts *opts, struct node **ret,
		  struct err *err);

#endif
