/* SPDX-License-Identifier: MIT */
/* ctl/compress_opts.h - how a qcow2 image is written compressed: byre's own options among those of
 * an image that is made, as `convert -o` takes them.
 *
 *	compression_level=N     1 to 12 (deflate; 9 with the small window) or 22 (zstd). The default
 *				makes an image no larger than QEMU's
 *	deflate_window=4k|32k   how far deflate looks back (default: 32k, all that the format
 *				allows). QEMU looks back 4k, and so may a reader that keeps no more
 *
 * They count for this run: an image does not remember them, for QEMU would not know them. */
#ifndef CTL_COMPRESS_OPTS_H
#define CTL_COMPRESS_OPTS_H

struct err;
struct graph_opts;
struct option_list;

/* Moves them from @l to @ret. Whether the level is one of the image's compression type is found
 * when it is opened. 0 or -EINVAL. */
int compress_options_take(struct option_list *l, struct graph_opts *ret, struct err *err);

#endif
