/* SPDX-License-Identifier: MIT */
/* ctl/graph_impl.h - what graph.c, which makes layers of files, shares with graph_files.c, which
 * finds and opens the files. */
#ifndef CTL_GRAPH_IMPL_H
#define CTL_GRAPH_IMPL_H

#include <sys/stat.h>

#include "ctl/graph.h"
#include "ctl/image_name.h"
#include "drv/file/file.h"

struct confine;
struct file_id;

/* A graph in the making. */
struct opening {
	const struct graph_opts *opts;
	struct loop *home;
	struct confine *roots;
	struct file_id *seen;           /* nseen files, whatever they are called (G1) */
	size_t nseen;
	struct graph g;
};

/* ---- errors ---- */

/* Sets @err; returns -@errnum. */
int graph_cannot_open(const struct opening *o, int errnum, const char *path, struct err *err);
/* What stands before the error of a data or backing file that @asker names. Returns @rc. */
int graph_wrap_named(const struct opening *o, const char *what, const char *asker, int rc,
		     struct err *err);

/* ---- G1 ---- */

/* The chain has come to a file, or an export; -ELOOP: it was there already. */
int graph_note_file(struct opening *o, const struct stat *st, const char *path, struct err *err);
int graph_note_export(struct opening *o, const struct nbdc_server *nbd, struct err *err);
void graph_forget_files(struct opening *o);

/* ---- files ---- */

/* The cache mode that was said of a file; @image: what was said of it, or NULL. */
enum file_cache graph_cache_mode(const struct opening *o, const struct image_name *image);
/* Where the format over it makes writes durable, the file need not. */
enum file_cache graph_without_sync(enum file_cache cache);
bool graph_is_writethrough(enum file_cache cache);
struct file_opts graph_file_opts(const struct opening *o, const char *path, int fd, bool writable,
				 const struct image_name *image);
/* Opens the export that @image is. */
int graph_open_export_wait(struct opening *o, const char *name, const struct image_name *image,
			   enum file_cache cache, bool writable, struct node **ret,
			   struct err *err);
/* Opens the file @path that the image @asker names, @writable for that image's format. @note: it is
 * a layer of the chain. */
int graph_open_named_wait(struct opening *o, const char *what, const char *asker,
			  const char *path, const struct image_name *image, bool writable,
			  bool note, struct node **ret, struct err *err);

#endif
