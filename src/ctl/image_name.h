/* SPDX-License-Identifier: MIT */
/* ctl/image_name.h - an image as somebody names it: a file name, json:{...}, or (--image-opts)
 * driver=qcow2,file.filename=... Pure; the words of errors are QEMU's.
 *
 * byre opens files, exports of NBD servers (nbd_name.h), and "vhost-user:SOCK" (drv/vub/vfe.h),
 * which an image_name has in its path as it is: other protocols, and formats over formats, are
 * refused by name. Options of QEMU's that change nothing here (cache sizes, aio, node names) are
 * taken and checked.
 *
 * Invariants:
 *	O4  an option that nobody understands is an error: nothing is silently different from what
 *	    was asked for;
 *	O5  a name is at most IMAGE_NAME_DEPTH_MAX images deep. */
#ifndef CTL_IMAGE_NAME_H
#define CTL_IMAGE_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "drv/file/file.h"

struct err;
struct nbdc_server;

enum { IMAGE_NAME_DEPTH_MAX = 32 };

struct image_name {
	char *path;                     /* owned: the file, or what the export is called */
	struct nbdc_server *nbd;        /* owned; NULL: it is a file */
	char *format;                   /* owned; "file", "nbd": the file itself; NULL: not said */
	char *shown;                    /* owned: what listings call the image; NULL: path */
	/* Owned; where the format was not said: the first option that makes no sense to it. */
	char *unknown_to_raw, *unknown_to_qcow2;
	struct image_name *backing;     /* owned; NULL: what the image says */
	struct image_name *data_file;   /* owned; NULL: what the image says */
	bool no_backing;
	uint64_t raw_offset, raw_size;  /* raw only: a part of the file */
	bool has_raw_size;              /* else the rest of it */
	bool is_read_only;
	bool is_share_forced;
	bool no_lock;
	bool wants_direct;              /* aio=native: refused where the cache mode is another */
	bool has_cache;                 /* @cache was said */
	enum file_cache cache;
};

/* A file name or json:{...}. 0 or -errno; *@ret only on success, then image_name_fini(). */
int image_name_parse(const char *text, struct image_name *ret, struct err *err);
/* The argument of --image-opts. *@ret_warning, owned, is set to what the person should know even
 * so; it stays as it is where there is nothing to say. */
int image_name_parse_options(const char *text, struct image_name *ret, char **ret_warning,
			     struct err *err);
void image_name_fini(struct image_name *n);

/* Is @format one that byre reads: raw or qcow2? */
bool image_name_is_format(const char *format);
/* Is it no format at all: the bytes of the file or export? */
bool image_name_is_bare(const char *format);
/* -ENOTSUP or -EINVAL for a format that byre does not read, by name. */
int image_name_check_format(const char *format, struct err *err);

/* How many bytes of @name are a protocol: "nbd" of "nbd:x", none of "./a:b". */
size_t image_name_protocol_len(const char *name);
/* Is @name, or an image_name's path, a disk over vhost-user? (A file of that name is "./...".) */
bool image_name_is_vhost_user(const char *name);

#endif
