/* SPDX-License-Identifier: MIT */
#include "ctl/graph_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"
#include "ctl/confine.h"
#include "ctl/image_name.h"
#include "ctl/nbd_name.h"
#include "drv/vub/vfe.h"
#include "drv/zeroes/zeroes.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/raw/probe.h"
#include "fmt/raw/raw.h"
#include "loop/work.h"

/* An image on its way to becoming a node. */
struct layer {
	const char *path;
	const char *format;             /* NULL: to be probed */
	const struct image_name *image; /* what was said of it; NULL: nothing */
	bool is_probed;
	bool is_top;
	bool writable;
};

static int probe_wait(const struct opening *o, struct node *file, const char **ret,
		      struct err *err)
{
	char head[PROBE_BYTES];
	struct chan *ch;
	int rc = chan_get_wait(file, &ch, err);

	if (rc)
		return rc;
	rc = chan_read_wait(ch, 0, head, sizeof(head));
	chan_put_wait(ch);
	if (rc && o->opts->qemu_words)
		return err_set_errno(err, -rc, "Could not read image for determining its format");
	if (rc)
		return err_set_errno(err, -rc, "cannot read '%s'", file->name);
	*ret = probe_format(head, sizeof(head));
	return 0;
}

static int check_format(const struct opening *o, const struct layer *l, struct err *err)
{
	bool is_export = l->image && l->image->nbd;

	if (image_name_is_bare(l->format) && is_export && strcmp(l->format, "nbd"))
		return graph_cannot_open(o, ENOENT, l->path, err);
	if (!is_export && !strcmp(l->format, "nbd"))
		return err_set(err, EINVAL, "File name string for NBD must start with 'nbd:'");
	if (image_name_is_format(l->format) || image_name_is_bare(l->format))
		return 0;
	if (o->opts->qemu_words && !l->is_probed)
		return image_name_check_format(l->format, err);
	err_set(err, ENOTSUP, "'%s' has the format '%s', which byre does not read", l->path,
		l->format);
	if (l->is_probed && l->is_top)
		err_hint(err, "-f raw takes the bytes of the file as they are");
	else
		err_hint(err, "byre reads qcow2 and raw");
	return -ENOTSUP;
}

/* ---- formats ---- */

static int open_qcow2_wait(struct opening *o, const struct layer *l, struct node *file,
			   struct node **ret, struct err *err)
{
	struct qcow2_opts qo = {
		.writable = l->writable,
		.metadata_only = o->opts->metadata_only,
		.for_check = o->opts->for_check && l->is_top,
		.is_unfinished = o->opts->is_unfinished && l->is_top,
		.snapshot = l->is_top ? o->opts->snapshot : NULL,
		.writethrough = l->writable && graph_is_writethrough(graph_cache_mode(o, l->image)),
		.discard = l->writable && o->opts->discard,
		.compress = l->is_top && o->opts->compress,
		.compression_level = l->is_top ? o->opts->compression_level : 0,
		.deflate_small_window = l->is_top && o->opts->deflate_small_window,
	};
	/* Unlike raw bytes, tables make no sense while somebody changes them. */
	struct file_opts fo = graph_file_opts(o, l->path, -1, l->writable, l->image);
	bool is_file = !l->image || !l->image->nbd;
	int rc = is_file ? file_refuse_writers_wait(file, &fo, err) : 0;

	if (rc)
		return rc;
	if (!o->g.cache) {
		o->g.cache = qcow2_cache_new(o->opts->cache_bytes, o->home);
		if (!o->g.cache)
			return err_set_errno(err, ENOMEM, "the mapping cache of '%s'", l->path);
	}
	qo.cache = o->g.cache;
	rc = qcow2_open_wait(file, &qo, ret, err);
	return rc && !o->opts->qemu_words ? err_wrap(err, rc, "'%s'", file->name) : rc;
}

/* Options that came before the format was known have to fit it. */
static int check_options(const struct layer *l, struct err *err)
{
	const char *unknown = !l->image ? NULL : !strcmp(l->format, "qcow2") ?
			      l->image->unknown_to_qcow2 : l->image->unknown_to_raw;

	if (!unknown)
		return 0;
	return err_set(err, EINVAL, "Block format '%s' does not support the option '%s'", l->format,
		       unknown);
}

/* The format's node over @file, whose reference it takes on success. */
static int open_format_wait(struct opening *o, const struct layer *l, struct node *file,
			    struct node **ret, struct err *err)
{
	struct raw_opts ro = { .probed = l->is_probed, .writable = l->writable };
	int rc = check_options(l, err);

	if (rc)
		return rc;
	if (!strcmp(l->format, "qcow2"))
		return open_qcow2_wait(o, l, file, ret, err);
	if (l->is_top && o->opts->compress)
		return err_set(err, ENOTSUP, "'%s' is %s: only qcow2 images are written "
			       "compressed", l->path, l->format);
	if (image_name_is_bare(l->format)) {
		*ret = file;
		return 0;
	}
	if (l->image) {
		ro.name = l->image->shown;
		ro.offset = l->image->raw_offset;
		ro.has_size = l->image->has_raw_size;
		ro.size = l->image->raw_size;
	}
	if (l->is_top && o->opts->snapshot)
		return err_set(err, EINVAL, "'%s' is raw: only qcow2 images have snapshots",
			       l->path);
	return raw_open_wait(file, &ro, ret, err);
}

/* Finds out the format where it was not given, and opens it over @file: see above. */
static int open_layer_wait(struct opening *o, struct layer *l, struct node *file,
			   struct node **ret, struct err *err)
{
	int rc;

	if (!l->format) {
		rc = probe_wait(o, file, &l->format, err);
		if (rc)
			return rc;
		l->is_probed = true;
	}
	rc = check_format(o, l, err);
	return rc ? rc : open_format_wait(o, l, file, ret, err);
}

/* A layer below the top: what it is called, and what was said of it. */
struct below {
	char *path;                     /* owned */
	const struct image_name *image; /* &parsed, or the caller's; NULL: nothing was said */
	struct image_name parsed;       /* owned; a "json:" name of the image above */
};

static void below_fini(struct below *b)
{
	image_name_fini(&b->parsed);
	free(b->path);
	*b = (struct below) { 0 };
}

/* May an image that is not trusted name this export? Where --allow has it, or its server. */
static int check_allowed(const struct opening *o, const char *what, const char *asker,
			 const struct nbdc_server *nbd, struct err *err)
{
	struct nbdc_server any = *nbd;
	char *name = nbd_name_show(nbd), *server;
	bool is_allowed = o->opts->any_file;

	any.export = NULL;
	server = nbd_name_show(&any);
	for (unsigned i = 0; i < o->opts->nallow && name && server && !is_allowed; i++) {
		struct nbdc_server allowed;
		char *shown = NULL;

		if (!nbd_name_is(o->opts->allow[i]) ||
		    nbd_name_parse(o->opts->allow[i], &allowed, NULL))
			continue;
		shown = nbd_name_show(&allowed);
		is_allowed = shown && (!strcmp(shown, name) || !strcmp(shown, server));
		nbdc_server_fini(&allowed);
		free(shown);
	}
	if (!is_allowed) {
		err_set(err, EPERM, "%s '%s' of '%s' is an NBD export that is not allowed", what,
			name ? name : "", asker);
		err_hint(err, "--allow %.200s permits it", name ? name : "");
	}
	free(name);
	free(server);
	return is_allowed ? 0 : -EPERM;
}

/* What @name means, which the image @asker has for its data or backing file. */
static int understand_named(struct opening *o, const char *what, const char *asker,
			    const char *name, struct below *ret, struct err *err)
{
	int rc;

	/* With a protocol in front it is relative to nothing. */
	if (!nbd_name_is(name) && !(o->opts->any_file && image_name_protocol_len(name)))
		return graph_resolve_name(what, asker, name, &ret->path, err);
	rc = image_name_parse(name, &ret->parsed, err);
	if (!rc && ret->parsed.nbd)
		rc = check_allowed(o, what, asker, ret->parsed.nbd, err);
	if (rc)
		return rc;
	ret->image = &ret->parsed;
	ret->path = strdup(ret->parsed.path);
	return ret->path ? 0 : graph_cannot_open(o, ENOMEM, name, err);
}

static int attach_data_file_wait(struct opening *o, struct node *n, const char *asker,
				 const struct image_name *image, struct err *err)
{
	struct below b = { .image = image ? image->data_file : NULL };
	const char *name = b.image ? b.image->path : qcow2_data_file_name(n);
	struct node *data;
	int rc;

	if (!name && o->opts->qemu_words)
		return err_set(err, EINVAL, "'data-file' is required for this image");
	if (!name)
		return err_set(err, EINVAL, "'%s' needs a data file and does not name it", asker);
	if (!b.image)
		rc = understand_named(o, "data file", asker, name, &b, err);
	else
		rc = graph_resolve_name("data file", "", name, &b.path, err);
	if (!rc)
		rc = graph_open_named_wait(o, "data file", asker, b.path, b.image, !n->read_only,
					   false, &data, err);
	below_fini(&b);
	if (rc)
		return rc;
	rc = node_attach_wait(n, CHILD_DATA, data, err);
	if (rc)
		node_put_wait(data);
	return rc;
}

/* Finds out what the backing file of @n is, which is called @asker and described by @image. */
static int find_backing(struct opening *o, struct node *n, const char *asker,
			const struct image_name *image, struct below *ret, struct err *err)
{
	const char *name = qcow2_backing_name(n);

	if (image && image->backing) {
		ret->image = image->backing;
		ret->path = strdup(image->backing->path);
		return ret->path ? 0 : graph_cannot_open(o, ENOMEM, image->backing->path, err);
	}
	return understand_named(o, "backing file", asker, name, ret, err);
}

/* What @b is opened as, which @n has as its backing file: what options say; else what the image
 * says, whatever driver a "json:" name of its own has; else that. NULL: it is probed. */
static const char *backing_format(const struct node *n, const struct below *b)
{
	const char *said = qcow2_backing_format(n);

	if (b->image && b->image->format && (b->image != &b->parsed || !said))
		return b->image->format;
	return said;
}

/* Opens @b, which @n, called @asker, has as its backing file, as a layer of its own. */
static int open_backing_wait(struct opening *o, struct node *n, const char *asker,
			     const struct below *b, struct node **ret, struct err *err)
{
	struct layer l = { .path = b->path, .image = b->image };
	struct node *file;
	int rc;

	/* Its description would be a format's, which lies in a file and has no name of its own. */
	if (b->image == &b->parsed && qcow2_backing_format(n) && b->image->format &&
	    image_name_is_bare(b->image->format))
		return err_set(err, EINVAL, "A block device must be specified for \"file\"");
	rc = graph_open_named_wait(o, "backing file", asker, b->path, b->image, false, true,
				   &file, err);
	if (rc)
		return rc;
	l.format = backing_format(n, b);
	rc = open_layer_wait(o, &l, file, ret, err);
	if (rc) {
		node_put_wait(file);
		return graph_wrap_named(o, "backing file", asker, rc, err);
	}
	return 0;
}

/* Attaches what @n, called @asker, needs below it. *@ret_next is its backing node, or NULL where
 * it has none, and *@ret_below what that is. */
static int attach_below_wait(struct opening *o, struct node *n, const struct below *asker,
			     struct node **ret_next, struct below *ret_below, struct err *err)
{
	const struct image_name *image = asker->image;
	struct node *backing;
	int rc = 0;

	*ret_next = NULL;
	if (strcmp(n->ops->name, "qcow2"))
		return 0;
	if (image && image->data_file && !qcow2_needs_data_file(n) && !o->opts->metadata_only)
		return err_set(err, EINVAL, "'data-file' can only be set for images with an "
			       "external data file");
	if (qcow2_needs_data_file(n) && !o->opts->metadata_only)
		rc = attach_data_file_wait(o, n, asker->path, image, err);
	if (rc || o->opts->no_backing || (image && image->no_backing) ||
	    (!qcow2_backing_name(n) && !(image && image->backing)))
		return rc;
	rc = find_backing(o, n, asker->path, image, ret_below, err);
	if (rc && nbd_name_is(asker->path))
		return rc;
	if (!rc)
		rc = open_backing_wait(o, n, asker->path, ret_below, &backing, err);
	if (!rc) {
		rc = node_attach_wait(n, CHILD_BACKING, backing, err);
		if (rc)
			node_put_wait(backing);
	}
	if (!rc)
		*ret_next = backing;
	else if (o->opts->qemu_words)
		err_wrap(err, rc, "Could not open backing file");
	return rc;
}

/* Walks down from the top until an image names nothing below it. QEMU, which recurses, has as many
 * "Could not open backing file" before a message as there are layers above. */
static int open_chain_wait(struct opening *o, struct err *err)
{
	struct node *n = o->g.top;
	struct below asker = { .path = strdup(o->opts->path), .image = o->opts->image };
	int rc = asker.path ? 0 : graph_cannot_open(o, ENOMEM, o->opts->path, err);

	while (n && !rc) {
		struct below below = { 0 };
		struct node *next;

		rc = attach_below_wait(o, n, &asker, &next, &below, err);
		for (unsigned i = 0; rc && o->opts->qemu_words && i < o->g.layers; i++)
			err_wrap(err, rc, "Could not open backing file");
		below_fini(&asker);
		asker = below;
		if (asker.image == &below.parsed)
			asker.image = &asker.parsed;
		n = next;
		o->g.layers++;
	}
	below_fini(&asker);
	return rc;
}

/* ---- the top ---- */

static bool is_direct(enum file_cache cache)
{
	return cache == FILE_CACHE_NONE || cache == FILE_CACHE_DIRECTSYNC;
}

static int open_top_file_wait(struct opening *o, const struct layer *l, struct node **ret,
			      struct err *err)
{
	struct file_opts fo = graph_file_opts(o, o->opts->path, -1, l->writable, o->opts->image);
	int rc;

	/* Nothing here needs it, but scripts find out what is refused. */
	if (l->image && l->image->wants_direct && !is_direct(fo.cache))
		return err_set(err, EINVAL, "aio=native was specified, but it requires "
			       "cache.direct=on, which was not specified.");
	if (l->writable && !strcmp(l->format, "qcow2"))
		fo.cache = graph_without_sync(fo.cache);
	if (l->image && l->image->nbd)
		return graph_open_export_wait(o, l->path, l->image, fo.cache, l->writable, ret,
					      err);
	rc = file_open_wait(&fo, o->home, ret, err);
	/* The image tools have no such option. */
	if (l->writable && !o->opts->qemu_words &&
	    (rc == -EACCES || rc == -EPERM || rc == -EROFS) && !eaccess(o->opts->path, R_OK))
		err_hint(err, "use --read-only to serve it without writing");
	return rc;
}

/* A disk over vhost-user: what the guest of another has, so never taken for a format. */
static int open_vhost_user_wait(struct opening *o, struct layer *l, struct err *err)
{
	const char *name = strchr(l->path, ':') + 1;
	struct vfe_opts vo;
	struct node *n;
	int rc = 0;

	if (!l->format)
		l->format = "raw";
	if (strcmp(l->format, "raw") && !image_name_is_bare(l->format))
		rc = err_set(err, ENOTSUP, "A disk over vhost-user is raw, not '%s'", l->format);
	if (!rc)
		rc = vfe_opts_parse(name, &vo, err);
	if (rc)
		return rc;
	rc = vfe_open_wait(&vo, !l->writable, o->home, &n, err);
	vfe_opts_fini(&vo);
	if (rc)
		return rc;
	rc = open_format_wait(o, l, n, &o->g.top, err);
	if (rc)
		node_put_wait(n);
	return rc;
}

/* How a file is opened to be written depends on its format, which may be known only after a look at
 * it: where nobody said, it is first opened for reading. */
static int open_top_wait(struct opening *o, struct err *err)
{
	struct layer l = {
		.path = o->opts->path,
		.format = o->opts->format,
		.image = o->opts->image,
		.is_top = true,
	};
	struct node *file;
	int rc;

	l.writable = !o->opts->read_only && !o->opts->snapshot;
	if (image_name_is_vhost_user(l.path))
		return open_vhost_user_wait(o, &l, err);
	l.writable = false;
	if (!l.format) {
		rc = open_top_file_wait(o, &l, &file, err);
		if (rc)
			return rc;
		rc = probe_wait(o, file, &l.format, err);
		l.is_probed = true;
		if (rc)
			goto fail;
	}
	rc = check_format(o, &l, err);
	if (rc && l.is_probed)
		goto fail;
	if (rc)
		return rc;
	l.writable = !o->opts->read_only && !o->opts->snapshot;
	if (l.is_probed && l.writable)
		node_put_wait(file);
	if (!l.is_probed || l.writable)
		rc = open_top_file_wait(o, &l, &file, err);
	if (rc)
		return rc;
	rc = open_format_wait(o, &l, file, &o->g.top, err);
	if (!rc)
		return 0;
fail:
	node_put_wait(file);
	return rc;
}

/* The first file of the chain, and its folder, below which others may lie. */
static int prepare_file(struct opening *o, struct err *err)
{
	const char *path = o->opts->path, *slash = strrchr(path, '/');
	size_t n = slash ? (size_t)(slash - path) : 0;
	char *folder = slash ? strndup(path, n ? n : 1) : strdup(".");
	struct stat st;
	int rc;

	if (!folder)
		rc = graph_cannot_open(o, ENOMEM, path, err);
	else if (image_name_is_vhost_user(path))
		rc = 0;
	else if (stat(path, &st) < 0)
		rc = graph_cannot_open(o, errno, path, err);
	else
		rc = graph_note_file(o, &st, path, err);
	if (!rc && !image_name_is_vhost_user(path))
		rc = confine_allow(o->roots, folder, err);
	free(folder);
	return rc;
}

static int allow(struct opening *o, const char *name, struct err *err)
{
	struct nbdc_server nbd;
	int rc;

	if (!nbd_name_is(name))
		return confine_allow(o->roots, name, err);
	rc = nbd_name_parse(name, &nbd, err);   /* check_allowed() looks at it again */
	if (!rc)
		nbdc_server_fini(&nbd);
	return rc;
}

/* The roots below which named files may lie, and the first file of the chain. Blocks a little: the
 * names are the operator's own. An export has no folder. */
static int prepare(struct opening *o, struct err *err)
{
	const struct nbdc_server *nbd = o->opts->image ? o->opts->image->nbd : NULL;
	int rc;

	o->roots = confine_new();
	if (!o->roots)
		return graph_cannot_open(o, ENOMEM, o->opts->path, err);
	rc = nbd ? graph_note_export(o, nbd, err) : prepare_file(o, err);
	for (unsigned i = 0; i < o->opts->nallow && !rc; i++) {
		rc = allow(o, o->opts->allow[i], err);
		if (rc)
			err_wrap(err, rc, "--allow");
	}
	return rc;
}

static int add_filter_wait(struct opening *o, struct err *err)
{
	bool unmap = o->opts->detect_zeroes == GRAPH_ZEROES_UNMAP && o->opts->discard;
	struct node *top = node_get(o->g.top);
	int rc = zeroes_open_wait(top, unmap, &o->g.filter, err);

	if (rc)
		node_put_wait(top);
	return rc;
}

struct node *graph_head(const struct graph *g)
{
	return g->filter ? g->filter : g->top;
}

int graph_open_wait(const struct graph_opts *opts, struct loop *home, struct graph *ret,
		    struct err *err)
{
	struct opening o = { .opts = opts, .home = home };
	int rc = prepare(&o, err);

	if (!rc)
		rc = open_top_wait(&o, err);
	if (!rc)
		rc = open_chain_wait(&o, err);
	if (!rc && opts->detect_zeroes != GRAPH_ZEROES_OFF && !o.g.top->read_only)
		rc = add_filter_wait(&o, err);
	confine_free(o.roots);
	graph_forget_files(&o);
	if (rc) {
		graph_close_wait(&o.g, NULL);
		return rc;
	}
	*ret = o.g;
	return 0;
}

int graph_close_wait(struct graph *g, struct err *err)
{
	int rc;

	node_put_wait(g->filter);
	rc = node_close_wait(g->top, err);
	qcow2_cache_free(g->cache);
	*g = (struct graph) { 0 };
	return rc;
}
