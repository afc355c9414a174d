/* SPDX-License-Identifier: MIT */
#include "ctl/graph.h"

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
#include "drv/zeroes/zeroes.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/raw/probe.h"
#include "fmt/raw/raw.h"
#include "loop/work.h"

/* Which file a layer is, whatever it is called (G1). */
struct file_id {
	dev_t dev, rdev;
	ino_t ino;
};

/* A graph in the making. */
struct opening {
	const struct graph_opts *opts;
	struct loop *home;
	struct confine *roots;
	struct file_id *seen;
	size_t nseen;
	struct graph g;
};

/* An image on its way to becoming a node. */
struct layer {
	const char *path;
	const char *format;             /* NULL: to be probed */
	const struct image_name *image; /* what was said of it; NULL: nothing */
	bool is_probed;
	bool is_top;
	bool writable;
};

/* ---- names ---- */

int graph_resolve_name(const char *what, const char *asker, const char *name, char **ret,
		       struct err *err)
{
	const char *slash = strrchr(asker, '/');
	size_t folder = slash ? (size_t)(slash + 1 - asker) : 0;
	char *path;

	if (!strncmp(name, "file:", 5))
		name += 5;
	else if (image_name_protocol_len(name)) {
		err_set(err, ENOTSUP, "%s '%s' of '%s' is no file: '%.*s:' is not supported", what,
			name, asker, (int)image_name_protocol_len(name), name);
		return -ENOTSUP;
	}
	if (!name[0])
		return err_set(err, EINVAL, "'%s' names a %s without a name", asker, what);
	if (name[0] == '/')
		folder = 0;
	path = malloc(folder + strlen(name) + 1);
	if (!path)
		return err_set_errno(err, ENOMEM, "%s '%s'", what, name);
	memcpy(path, asker, folder);
	strcpy(path + folder, name);
	*ret = path;
	return 0;
}

/* ---- errors ---- */

static int cannot_open(const struct opening *o, int errnum, const char *path, struct err *err)
{
	return err_set_errno(err, errnum, "%s '%s'",
			     o->opts->qemu_words ? "Could not open" : "cannot open", path);
}

/* What stands before the error of a data or backing file that @asker names. */
static int wrap_named(const struct opening *o, const char *what, const char *asker, int rc,
		      struct err *err)
{
	return o->opts->qemu_words ? rc : err_wrap(err, rc, "%s of '%s'", what, asker);
}

/* ---- G1 ---- */

static int note_file(struct opening *o, const struct stat *st, const char *path, struct err *err)
{
	struct file_id id = { .dev = st->st_dev, .rdev = st->st_rdev, .ino = st->st_ino };
	struct file_id *grown;

	for (size_t i = 0; i < o->nseen; i++)
		if (o->seen[i].dev == id.dev && o->seen[i].ino == id.ino &&
		    o->seen[i].rdev == id.rdev)
			return err_set(err, ELOOP, "the backing chain leads back to '%s'", path);
	if (o->nseen == GRAPH_LAYERS_MAX)
		return err_set(err, ELOOP, "the backing chain of '%s' is longer than %d images",
			       o->opts->path, GRAPH_LAYERS_MAX);
	grown = realloc(o->seen, (o->nseen + 1) * sizeof(*grown));
	if (!grown)
		return cannot_open(o, ENOMEM, path, err);
	o->seen = grown;
	o->seen[o->nseen++] = id;
	return 0;
}

/* ---- files ---- */

struct named_open {                     /* arguments for a worker */
	const struct opening *o;
	const char *path, *what, *asker;
	int flags;
	int fd;                         /* or -errno */
	struct stat st;
	struct err *err;
};

static void named_open_work(void *arg)
{
	struct named_open *w = arg;

	if (w->o->opts->any_file) {
		/* As drv/file does: what the path names may be a FIFO. */
		w->fd = open(w->path, w->flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		if (w->fd < 0)
			w->fd = cannot_open(w->o, errno, w->path, w->err);
	} else {
		w->fd = confine_open(w->o->roots, w->path, w->flags, w->what, w->asker, w->err);
	}
	if (w->fd >= 0 && fstat(w->fd, &w->st) < 0) {
		int rc = err_set_errno(w->err, errno, "%s '%s' of '%s'", w->what, w->path,
				       w->asker);

		close(w->fd);
		w->fd = rc;
	}
}

/* The cache mode that was said of a file. */
static enum file_cache cache_mode(const struct opening *o, const struct image_name *image)
{
	return image && image->has_cache ? image->cache : o->opts->cache;
}

/* Where the format over it makes writes durable, the file need not. */
static enum file_cache without_sync(enum file_cache cache)
{
	switch (cache) {
	case FILE_CACHE_WRITETHROUGH:
		return FILE_CACHE_WRITEBACK;
	case FILE_CACHE_DIRECTSYNC:
		return FILE_CACHE_NONE;
	default:
		return cache;
	}
}

static bool is_writethrough(enum file_cache cache)
{
	return without_sync(cache) != cache;
}

static struct file_opts file_opts(const struct opening *o, const char *path, int fd, bool writable,
				  const struct image_name *image)
{
	struct file_opts fo = {
		.path = path,
		.fd = fd,
		.cache = cache_mode(o, image),
		.writable = writable,
		.discard = writable && o->opts->discard,
		.no_lock = o->opts->no_lock,
		.share_writes = o->opts->share_raw && !writable,
		.qemu_words = o->opts->qemu_words,
	};

	/* Sharing by force is for readers. */
	if (image && (image->no_lock || (image->is_share_forced && !writable)))
		fo.no_lock = true;
	return fo;
}

/* Opens the file @path that the image @asker names, @writable for that image's format. @note: it is
 * a layer of the chain. */
static int open_named_wait(struct opening *o, const char *what, const char *asker,
			   const char *path, const struct image_name *image, bool writable,
			   bool note, struct node **ret, struct err *err)
{
	struct named_open w = {
		.o = o, .path = path, .what = what, .asker = asker, .err = err,
		.flags = writable ? O_RDWR : O_RDONLY,
	};
	struct file_opts fo;
	int rc;

	loop_work_wait(o->home, named_open_work, &w);
	if (w.fd < 0)
		return w.fd;
	rc = note ? note_file(o, &w.st, path, err) : 0;
	fo = file_opts(o, path, w.fd, writable, image);
	if (writable)
		fo.cache = without_sync(fo.cache);
	if (!rc)
		rc = file_open_wait(&fo, o->home, ret, err);
	if (rc) {
		close(w.fd);
		return wrap_named(o, what, asker, rc, err);
	}
	return 0;
}

static int probe_wait(struct node *file, const char **ret, struct err *err)
{
	char head[PROBE_BYTES];
	struct chan *ch;
	int rc = chan_get_wait(file, &ch, err);

	if (rc)
		return rc;
	rc = chan_read_wait(ch, 0, head, sizeof(head));
	chan_put_wait(ch);
	if (rc)
		return err_set_errno(err, -rc, "cannot read '%s'", file->name);
	*ret = probe_format(head, sizeof(head));
	return 0;
}

/* No format at all: the bytes of the file. */
static bool is_bare(const char *format)
{
	return !strcmp(format, "file") || !strcmp(format, "host_device");
}

static int check_format(const struct opening *o, const struct layer *l, struct err *err)
{
	if (!strcmp(l->format, "qcow2") || !strcmp(l->format, "raw") || is_bare(l->format))
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
		.snapshot = l->is_top ? o->opts->snapshot : NULL,
		.writethrough = l->writable && is_writethrough(cache_mode(o, l->image)),
		.discard = l->writable && o->opts->discard,
		.compress = l->is_top && o->opts->compress,
		.compression_level = l->is_top ? o->opts->compression_level : 0,
		.deflate_small_window = l->is_top && o->opts->deflate_small_window,
	};
	/* Unlike raw bytes, tables make no sense while somebody changes them. */
	struct file_opts fo = file_opts(o, l->path, -1, l->writable, l->image);
	int rc = file_refuse_writers_wait(file, &fo, err);

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
	if (is_bare(l->format)) {
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
		rc = probe_wait(file, &l->format, err);
		if (rc)
			return rc;
		l->is_probed = true;
	}
	rc = check_format(o, l, err);
	return rc ? rc : open_format_wait(o, l, file, ret, err);
}

static int attach_data_file_wait(struct opening *o, struct node *n, const char *asker,
				 const struct image_name *image, struct err *err)
{
	const struct image_name *said = image ? image->data_file : NULL;
	const char *name = said ? said->path : qcow2_data_file_name(n);
	struct node *data;
	char *path;
	int rc;

	if (!name && o->opts->qemu_words)
		return err_set(err, EINVAL, "'data-file' is required for this image");
	if (!name)
		return err_set(err, EINVAL, "'%s' needs a data file and does not name it", asker);
	rc = graph_resolve_name("data file", said ? "" : asker, name, &path, err);
	if (rc)
		return rc;
	rc = open_named_wait(o, "data file", asker, path, said, !n->read_only, false, &data, err);
	free(path);
	if (rc)
		return rc;
	rc = node_attach_wait(n, CHILD_DATA, data, err);
	if (rc)
		node_put_wait(data);
	return rc;
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

/* Finds out what the backing file of @n is, which is called @asker and described by @image. */
static int find_backing(struct opening *o, struct node *n, const char *asker,
			const struct image_name *image, struct below *ret, struct err *err)
{
	const char *name = qcow2_backing_name(n);
	int rc;

	if (image && image->backing) {
		ret->image = image->backing;
		ret->path = strdup(image->backing->path);
		return ret->path ? 0 : cannot_open(o, ENOMEM, image->backing->path, err);
	}
	/* With a protocol in front it is relative to nothing. */
	if (o->opts->any_file && image_name_protocol_len(name)) {
		rc = image_name_parse(name, &ret->parsed, err);
		if (rc)
			return rc;
		ret->image = &ret->parsed;
		ret->path = strdup(ret->parsed.path);
		return ret->path ? 0 : cannot_open(o, ENOMEM, name, err);
	}
	return graph_resolve_name("backing file", asker, name, &ret->path, err);
}

/* Opens @b, which @n, called @asker, has as its backing file, as a layer of its own. */
static int open_backing_wait(struct opening *o, struct node *n, const char *asker,
			     const struct below *b, struct node **ret, struct err *err)
{
	struct layer l = { .path = b->path, .image = b->image };
	struct node *file;
	int rc = open_named_wait(o, "backing file", asker, b->path, b->image, false, true, &file,
				 err);

	if (rc)
		return rc;
	l.format = b->image && b->image->format ? b->image->format : qcow2_backing_format(n);
	rc = open_layer_wait(o, &l, file, ret, err);
	if (rc) {
		node_put_wait(file);
		return wrap_named(o, "backing file", asker, rc, err);
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
	int rc = asker.path ? 0 : cannot_open(o, ENOMEM, o->opts->path, err);

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

static int open_top_file_wait(struct opening *o, const struct layer *l, struct node **ret,
			      struct err *err)
{
	struct file_opts fo = file_opts(o, o->opts->path, -1, l->writable, o->opts->image);
	int rc;

	if (l->writable && !strcmp(l->format, "qcow2"))
		fo.cache = without_sync(fo.cache);
	rc = file_open_wait(&fo, o->home, ret, err);
	if (l->writable && (rc == -EACCES || rc == -EPERM || rc == -EROFS) &&
	    !eaccess(o->opts->path, R_OK))
		err_hint(err, "use --read-only to serve it without writing");
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

	if (!l.format) {
		rc = open_top_file_wait(o, &l, &file, err);
		if (rc)
			return rc;
		rc = probe_wait(file, &l.format, err);
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

/* The roots below which named files may lie, and the first file of the chain. Blocks a little: the
 * names are the operator's own. */
static int prepare(struct opening *o, struct err *err)
{
	const char *path = o->opts->path, *slash = strrchr(path, '/');
	size_t n = slash ? (size_t)(slash - path) : 0;
	char *folder = slash ? strndup(path, n ? n : 1) : strdup(".");
	struct stat st;
	int rc;

	o->roots = confine_new();
	if (!o->roots || !folder)
		rc = cannot_open(o, ENOMEM, path, err);
	else if (stat(path, &st) < 0)
		rc = cannot_open(o, errno, path, err);
	else
		rc = note_file(o, &st, path, err);
	if (!rc)
		rc = confine_allow(o->roots, folder, err);
	for (unsigned i = 0; i < o->opts->nallow && !rc; i++) {
		rc = confine_allow(o->roots, o->opts->allow[i], err);
		if (rc)
			err_wrap(err, rc, "--allow");
	}
	free(folder);
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
	free(o.seen);
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
	rc = g->top ? node_settle_wait(g->top, err) : 0;
	node_put_wait(g->top);
	qcow2_cache_free(g->cache);
	*g = (struct graph) { 0 };
	return rc;
}
