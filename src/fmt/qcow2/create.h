/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/create.h - new images. */
#ifndef FMT_QCOW2_CREATE_H
#define FMT_QCOW2_CREATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct err;
struct node;

enum qcow2_preallocation {
	QCOW2_PREALLOC_OFF,
	QCOW2_PREALLOC_METADATA,        /* every cluster mapped, none written */
	QCOW2_PREALLOC_FALLOC,          /* and its space allocated */
	QCOW2_PREALLOC_FULL,            /* and zeros written */
};

/* What is 0 or NULL is not said and gets QEMU's default. */
struct qcow2_create_opts {
	uint64_t size;                  /* bytes; rounded up to whole sectors */
	unsigned version;               /* 2 or 3 */
	uint64_t cluster_size;          /* 512 .. 2 MiB */
	unsigned refcount_bits;         /* 1 .. 64 */
	const char *backing_name;       /* as it will stand in the image */
	const char *backing_format;
	const char *data_file_name;
	bool data_file_raw;
	bool lazy_refcounts;
	bool extended_l2;
	unsigned compression;           /* QCOW2_COMPRESSION_* */
	enum qcow2_preallocation preallocation;
	bool is_unfinished;             /* nobody can open it until qcow2_finish() */
	const atomic_bool *is_stopped;  /* NULL: it never is; else a long preallocation ends with
					 * -ECANCELED */
};

/* Checks the options against each other as QEMU does, in its words. Pure. */
int qcow2_create_check(const struct qcow2_create_opts *o, struct err *err);

/* Writes a new image into @file, which is empty (all zeros). @data: the data file, or NULL. Layout
 * and bytes are those of QEMU 10, so that both make the same image. Durable only after a flush. In
 * a fiber of the nodes' home loop. */
int qcow2_create_wait(struct node *file, struct node *data, const struct qcow2_create_opts *o,
		      struct err *err);

#endif
