/* SPDX-License-Identifier: MIT */
/* cmd/img.c - opening an image for a tool (tool.h). */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "blk/blk.h"
#include "blk/port.h"
#include "cmd/tool.h"
#include "ctl/image_name.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/info.h"
#include "fmt/qcow2/qcow2.h"
#include "loop/fiber.h"

struct open_call {
	struct img *img;
	const struct img_opts *opts;
	const struct graph_opts *graph_opts;
	struct err *err;
};

/* What was left behind by a program that knows no bitmaps. QEMU ends without a newline. */
static void warn_of_bitmaps(const struct node *n)
{
	const char *warning = qcow2_bitmaps_warning(n);

	if (!warning)
		return;
	tool_warn("%s", warning);
	fprintf(stderr, "Some clusters may be leaked, run 'qemu-img check -r' on the image file to "
		"fix.%s", tool_is_qemu_img() ? "" : "\n");
}

/* QEMU reads the tables of snapshots and bitmaps of all images of a chain when it opens them, and
 * refuses what is damaged; so do the tools. The check finds what is wrong with snapshots itself. */
static int look_at_tables_wait(struct node *n, bool for_check, struct err *err)
{
	struct qcow2_info info = { 0 };
	int rc;

	if (!n || strcmp(n->ops->name, "qcow2"))
		return 0;
	warn_of_bitmaps(n);
	if (for_check)
		return qcow2_bitmaps_judge_wait(n, err);
	rc = qcow2_info_wait(n, &info, err);
	qcow2_info_fini(&info);
	return rc;
}

/* @for_check concerns the top alone. */
static int look_at_chain_wait(struct node *top, bool for_check, struct err *err)
{
	unsigned depth = 0;
	int rc = 0;

	for (struct node *n = top; n && !rc; n = n->child[CHILD_BACKING], depth++)
		rc = look_at_tables_wait(n, for_check && n == top, err);
	for (unsigned i = 1; rc && i < depth; i++)
		err_wrap(err, rc, "Could not open backing file");
	return rc;
}

static int open_wait(void *arg)
{
	struct open_call *c = arg;
	struct img *img = c->img;
	int rc = graph_open_wait(c->graph_opts, img->tool->loop, &img->graph, c->err);

	if (!rc && c->opts->writable && !c->opts->for_check && img->graph.top->read_only)
		rc = err_set(c->err, EACCES, "Block node is read-only");
	if (!rc)
		rc = look_at_chain_wait(img->graph.top, c->opts->for_check, c->err);
	if (!rc)
		rc = port_new(img->graph.top, !c->opts->writable || c->opts->for_check ||
			      img->graph.top->read_only, &img->port, c->err);
	if (!rc)
		rc = port_open_wait(img->port, c->err);
	if (!rc) {
		img->has_port = true;
		img->filename = img->graph.top->name;
		img->pc = port_here(img->port);
	}
	return rc;
}

static int set_cache(const struct img_opts *o, struct graph_opts *go, struct err *err)
{
	if (!o->cache || !file_cache_parse(o->cache, &go->cache, NULL))
		return 0;
	return err_set(err, EINVAL, "Invalid %s option: %s",
		       o->cache_what ? o->cache_what : "source cache", o->cache);
}

/* What @name means, in @ret, and the format that counts, in @ret_format. */
static int understand(const char *name, const struct img_opts *opts, struct image_name *ret,
		      const char **ret_format, struct err *err)
{
	char *warning = NULL;
	int rc = opts->format ? image_name_check_format(opts->format, err) : 0;

	if (rc)
		return rc;
	rc = opts->image_opts ? image_name_parse_options(name, ret, &warning, err) :
				image_name_parse(name, ret, err);
	if (warning)
		tool_warn("%s", warning);
	free(warning);
	if (rc)
		return rc;
	/* A description of a file says nothing of what a format would need. */
	if (opts->format && image_name_is_format(opts->format) && ret->format &&
	    image_name_is_bare(ret->format)) {
		image_name_fini(ret);
		err_set(err, EINVAL, "A block device must be specified for \"file\"");
		return -EINVAL;
	}
	*ret_format = opts->format ? opts->format : ret->format;
	return 0;
}

static int open_named(struct img *img, const char *name, const struct image_name *image,
		      const char *format, const struct img_opts *opts, struct graph_opts *go,
		      struct err *err)
{
	struct open_call c = { .img = img, .opts = opts, .graph_opts = go, .err = err };

	if (opts->writable && (opts->force_share || image->is_share_forced))
		return err_set(err, EINVAL,
			       "force-share=on can only be used with read-only images");
	if (opts->writable && opts->for_check && image->is_read_only)
		return err_set(err, EACCES, "Block node is read-only");
	go->path = image->path;
	go->format = format;
	go->snapshot = opts->snapshot;
	go->read_only = !opts->writable || image->is_read_only;
	go->no_lock = opts->force_share;
	go->cache_bytes = opts->cache_bytes ? opts->cache_bytes : QCOW2_CACHE_BUDGET_DEFAULT;
	go->image = image;
	go->any_file = !opts->untrusted;
	go->share_raw = !opts->no_writers;
	go->discard = opts->discard;
	go->drop_pages = opts->drop_pages;
	go->no_backing = opts->no_backing;
	go->metadata_only = opts->metadata_only;
	go->for_check = opts->for_check;
	go->is_unfinished = opts->is_unfinished;
	go->compression_level = opts->compression_level;
	go->deflate_small_window = opts->deflate_small_window;
	go->qemu_words = true;
	img->name = strdup(name);
	if (!img->name)
		return err_set_errno(err, ENOMEM, "Could not open '%s'", image->path);
	return tool_run(img->tool, open_wait, &c);
}

int img_open_quiet(struct tool *t, const char *name, const struct img_opts *opts, struct img *ret,
		   struct err *err)
{
	struct graph_opts go = { 0 };
	struct img img = { .tool = t };
	struct image_name image = { 0 };
	const char *format;
	int rc;

	if (opts->image_opts && opts->format)
		return err_set(err, EINVAL, "--image-opts and --format are mutually exclusive");
	rc = set_cache(opts, &go, err);
	if (rc)
		return rc;
	rc = understand(name, opts, &image, &format, err);
	if (!rc)
		rc = open_named(&img, name, &image, format, opts, &go, err);
	image_name_fini(&image);
	if (rc) {
		err_wrap(err, rc, "Could not open '%s'", name);
		img_close(&img);
		return rc;
	}
	*ret = img;
	return 0;
}

int img_open(struct tool *t, const char *name, const struct img_opts *opts, struct img *ret)
{
	struct err err = { 0 };
	int rc = img_open_quiet(t, name, opts, ret, &err);

	if (rc)
		tool_fail(&err);
	return rc;
}

struct close_call {
	struct img *img;
	struct err err;
};

static int close_wait(void *arg)
{
	struct close_call *c = arg;
	struct img *img = c->img;

	if (img->has_port)
		port_close_wait(img->port);
	port_free(img->port);
	return graph_close_wait(&img->graph, &c->err);
}

int img_close_quiet(struct img *img, struct err *err)
{
	struct close_call c = { .img = img };
	int rc = img->tool ? tool_run(img->tool, close_wait, &c) : 0;

	free(img->name);
	*img = (struct img) { 0 };
	if (rc)
		*err = c.err;
	return rc;
}

int img_close(struct img *img)
{
	struct err err = { 0 };
	int rc = img_close_quiet(img, &err);

	if (rc)
		tool_fail(&err);
	return rc;
}

int img_take_option(struct img_opts *opts, int id, const char *value)
{
	switch (id) {
	case OPT_FORMAT:
		opts->format = value;
		return 0;
	case OPT_IMAGE_OPTS:
		opts->image_opts = true;
		return 0;
	case OPT_CACHE:
		opts->cache = value;
		return 0;
	case OPT_FORCE_SHARE:
		opts->force_share = true;
		return 0;
	case OPT_UNTRUSTED:
		opts->untrusted = true;
		return 0;
	case OPT_OBJECT:
		return tool_object(value);
	}
	return -EINVAL;
}

const char *img_format(const struct img *img)
{
	return img->graph.top->ops->name;
}

uint64_t img_size(const struct img *img)
{
	return atomic_load(&img->graph.top->size);
}
