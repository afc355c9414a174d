/* SPDX-License-Identifier: MIT */
/* ctl/graph.h - from a file name and options to one node that a port can hold.
 *
 * The image is opened, its format given or probed, then its data file, then its backing chain,
 * from the top down in a loop: each layer is attached to the one above before the next is looked
 * for, so neither the depth of a chain nor a failure in its middle needs recursion.
 *
 * Names in images follow QEMU: a relative name is relative to the folder of the image that says it
 * (by that image's own name, not by what its links lead to); "file:" in front is dropped; NBD is
 * the only other protocol. Where such files may lie is confine.h's business, and an export has to
 * be allowed by name, unless @any_file is set: then they may be anywhere, and be described by
 * "json:" too. The image itself may be a disk over vhost-user ("vhost-user:SOCK"), which is raw.
 *
 * Invariants:
 *	G1  a chain that comes back to a file it has passed is an error that names the file;
 *	G2  data and backing files are opened for reading only, unless the image itself is written
 *	    and the file is its data file;
 *	G3  an image whose format was probed as raw keeps its first sector from becoming another
 *	    format's header (fmt/raw enforces it). */
#ifndef CTL_GRAPH_H
#define CTL_GRAPH_H

#include <stdbool.h>
#include <stddef.h>

#include "drv/file/file.h"

struct err;
struct image_name;
struct loop;
struct node;
struct qcow2_cache;

enum { GRAPH_LAYERS_MAX = 10000 };      /* images in a chain */

/* What becomes of writes of zeros (drv/zeroes). */
enum graph_zeroes {
	GRAPH_ZEROES_OFF,               /* they are written */
	GRAPH_ZEROES_ON,                /* zeroed */
	GRAPH_ZEROES_UNMAP,             /* zeroed, and with @discard space is given back */
};

struct graph_opts {
	const char *path;
	const char *format;             /* "qcow2", "raw"; NULL: probed */
	const char *snapshot;           /* internal snapshot to read; NULL: the active state */
	enum file_cache cache;
	bool read_only;
	bool discard;                   /* discards reach the file */
	bool drop_pages;                /* files do not fill the page cache */
	enum graph_zeroes detect_zeroes;
	/* Of the image itself, which has to be qcow2: */
	bool compress;                  /* what is written to new clusters is compressed */
	int compression_level;          /* of that, and of what asks for it; 0: the default */
	bool deflate_small_window;      /* 4 KiB, for readers that take no more */
	bool no_lock;                   /* no image locks; only with read_only */
	size_t cache_bytes;             /* of mapping cache, for all layers together */
	const char *const *allow;       /* folders where named files may lie, besides the image's;
					 * and NBD exports, or servers, that may be named */
	unsigned nallow;
	/* The image tools'. */
	const struct image_name *image; /* what was said of the image besides @path; borrowed */
	bool any_file;                  /* named files may lie anywhere */
	bool share_raw;                 /* what is read as raw others may write meanwhile */
	bool no_backing;                /* backing files are left alone */
	bool metadata_only;             /* nobody reads the content: it may be encrypted, and the
					 * data file missing */
	bool for_check;                 /* the image may be damaged: it is to be checked */
	bool is_unfinished;             /* it was created so, a moment ago (fmt/qcow2/qcow2.h) */
	bool qemu_words;                /* errors say what QEMU says */
};

/* A disk: the top of its graph and what all layers share. */
struct graph {
	struct node *top;               /* owned; the image */
	struct node *filter;            /* owned; over it, what a port shall hold; NULL: none */
	struct qcow2_cache *cache;      /* owned; NULL where no layer is qcow2 */
	unsigned layers;                /* images in the chain */
};

/* In a fiber of @home, which becomes the home of all nodes. 0 or -errno; @ret only on success. */
int graph_open_wait(const struct graph_opts *opts, struct loop *home, struct graph *ret,
		    struct err *err);
/* What a port shall hold. */
struct node *graph_head(const struct graph *g);
/* In a fiber of that loop, with no port open on it: writes back, closes, frees. The first error of
 * writing back; closed it is all the same. A zeroed graph is fine. */
int graph_close_wait(struct graph *g, struct err *err);

/* What the name @name means in the image @asker: a path, or the name of an NBD export, returned
 * owned in @ret. @what ("backing file") is for messages. Pure. 0, -ENOTSUP (another protocol),
 * -EINVAL or -ENOMEM. */
int graph_resolve_name(const char *what, const char *asker, const char *name, char **ret,
		       struct err *err);

#endif
