/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/qcow2.h - qcow2 images as nodes: what the control path and other folders may use.
 *
 * The format: specification "qcow2" of the QEMU project, versions 2 and 3. This file opens
 * images for reading; everything that qemu-img creates but encryption is read. */
#ifndef FMT_QCOW2_QCOW2_H
#define FMT_QCOW2_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct loop;
struct node;
struct qcow2_cache;

enum { QCOW2_CACHE_BUDGET_DEFAULT = 32 << 20 };

struct qcow2_opts {
	bool writable;
	bool metadata_only;             /* nobody reads the content: it may be encrypted */
	bool for_check;                 /* open also what only a check can look at */
	bool is_unfinished;             /* the image was created so: it may be */
	const char *snapshot;           /* id or name of an internal snapshot; or NULL */
	struct qcow2_cache *cache;      /* borrowed until the node is gone */
	/* Where it is written: */
	bool writethrough;              /* a write is answered when it is durable; the file itself
					 * is opened for write-back */
	bool discard;                   /* freed clusters are given back to the file's medium */
	bool compress;                  /* what the guest writes to new clusters is compressed */
	int compression_level;          /* 0: the default (codec.h) */
	bool deflate_small_window;      /* 4 KiB, for readers that take no more */
	uint64_t broken;                /* tests: enum writer_break, rules that are left out */
};

/* Opens the image in @file. In a fiber of the home loop, which is the cache's. *Takes* @file
 * on success. Messages do not name it. The caller then attaches a data file and a backing file
 * where the image wants them (node_attach_wait()); before that it must not be read.
 * -EINVAL: not a qcow2 image, or damaged; -ENOTSUP: a feature that byre does not know, named in
 * @err; -EROFS: marked corrupt and to be written; -ENOENT: no such snapshot; or an I/O error. */
int qcow2_open_wait(struct node *file, const struct qcow2_opts *opts, struct node **ret,
		    struct err *err);

/* @n, which was created unfinished and is written, has all its content: when it is closed, and
 * nothing has failed, others can open it (Q11). Home loop. */
void qcow2_finish(struct node *n);

/* What the header says; the strings live with @n. NULL: none. */
const char *qcow2_backing_name(const struct node *n);
const char *qcow2_backing_format(const struct node *n);
const char *qcow2_data_file_name(const struct node *n);
bool qcow2_needs_data_file(const struct node *n);

/* The mapping cache of one disk, shared by all layers of its chain, within @budget bytes of
 * tables (at least 256 KiB), and some percent to manage them. Memory is touched as it fills.
 * NULL: no memory. */
struct qcow2_cache *qcow2_cache_new(size_t budget, struct loop *home);
/* After the last node that borrows it. NULL is fine. */
void qcow2_cache_free(struct qcow2_cache *c);

/* Of an image that is open for writing; in a fiber of its home loop, not on behalf of a request,
 * with none in flight that changes @n: what writes in order (X5) have freed is used again from now
 * on. Until then it rests, however long the file becomes. 0 or -errno. */
int qcow2_reuse_wait(struct node *n);

#endif
