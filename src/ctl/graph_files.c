/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "ctl/confine.h"
#include "ctl/graph_impl.h"
#include "ctl/nbd_name.h"
#include "loop/work.h"

/* Which file a layer is (G1). */
struct file_id {
	dev_t dev, rdev;
	ino_t ino;
	char *export;                   /* owned; an NBD server's, and the rest is 0 */
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
	else if (nbd_name_is(name))
		folder = 0;
	else if (image_name_protocol_len(name)) {
		err_set(err, ENOTSUP, "%s '%s' of '%s' is no file: '%.*s:' is not supported", what,
			name, asker, (int)image_name_protocol_len(name), name);
		return -ENOTSUP;
	}
	if (!name[0])
		return err_set(err, EINVAL, "'%s' names a %s without a name", asker, what);
	if (name[0] == '/')
		folder = 0;
	else if (nbd_name_is(asker) && !nbd_name_is(name))
		return err_set(err, EINVAL, "Cannot generate a base directory for NBD nodes");
	path = malloc(folder + strlen(name) + 1);
	if (!path)
		return err_set_errno(err, ENOMEM, "%s '%s'", what, name);
	memcpy(path, asker, folder);
	strcpy(path + folder, name);
	*ret = path;
	return 0;
}

/* ---- errors ---- */

int graph_cannot_open(const struct opening *o, int errnum, const char *path, struct err *err)
{
	return err_set_errno(err, errnum, "%s '%s'",
			     o->opts->qemu_words ? "Could not open" : "cannot open", path);
}

int graph_wrap_named(const struct opening *o, const char *what, const char *asker, int rc,
		     struct err *err)
{
	return o->opts->qemu_words ? rc : err_wrap(err, rc, "%s of '%s'", what, asker);
}

/* ---- G1 ---- */

static bool is_same_file(const struct file_id *a, const struct file_id *b)
{
	if (a->export || b->export)
		return a->export && b->export && !strcmp(a->export, b->export);
	return a->dev == b->dev && a->ino == b->ino && a->rdev == b->rdev;
}

static int note_id(struct opening *o, const struct file_id *id, const char *path, struct err *err)
{
	struct file_id *grown;

	for (size_t i = 0; i < o->nseen; i++)
		if (is_same_file(&o->seen[i], id))
			return err_set(err, ELOOP, "the backing chain leads back to '%s'", path);
	if (o->nseen == GRAPH_LAYERS_MAX)
		return err_set(err, ELOOP, "the backing chain of '%s' is longer than %d images",
			       o->opts->path, GRAPH_LAYERS_MAX);
	grown = realloc(o->seen, (o->nseen + 1) * sizeof(*grown));
	if (!grown)
		return graph_cannot_open(o, ENOMEM, path, err);
	o->seen = grown;
	o->seen[o->nseen++] = *id;
	return 0;
}

int graph_note_file(struct opening *o, const struct stat *st, const char *path, struct err *err)
{
	struct file_id id = { .dev = st->st_dev, .rdev = st->st_rdev, .ino = st->st_ino };

	return note_id(o, &id, path, err);
}

int graph_note_export(struct opening *o, const struct nbdc_server *nbd, struct err *err)
{
	struct file_id id = { .export = nbd_name_show(nbd) };
	int rc;

	if (!id.export)
		return graph_cannot_open(o, ENOMEM, "NBD", err);
	rc = note_id(o, &id, id.export, err);
	if (rc)
		free(id.export);
	return rc;
}

void graph_forget_files(struct opening *o)
{
	for (size_t i = 0; i < o->nseen; i++)
		free(o->seen[i].export);
	free(o->seen);
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
			w->fd = graph_cannot_open(w->o, errno, w->path, w->err);
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

enum file_cache graph_cache_mode(const struct opening *o, const struct image_name *image)
{
	return image && image->has_cache ? image->cache : o->opts->cache;
}

enum file_cache graph_without_sync(enum file_cache cache)
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

bool graph_is_writethrough(enum file_cache cache)
{
	return graph_without_sync(cache) != cache;
}

struct file_opts graph_file_opts(const struct opening *o, const char *path, int fd, bool writable,
				 const struct image_name *image)
{
	struct file_opts fo = {
		.path = path,
		.fd = fd,
		.cache = graph_cache_mode(o, image),
		.writable = writable,
		.discard = writable && o->opts->discard,
		.drop_pages = o->opts->drop_pages,
		.no_lock = o->opts->no_lock,
		.share_writes = o->opts->share_raw && !writable,
		.qemu_words = o->opts->qemu_words,
	};

	/* Sharing by force is for readers. */
	if (image && (image->no_lock || (image->is_share_forced && !writable)))
		fo.no_lock = true;
	return fo;
}

int graph_open_export_wait(struct opening *o, const char *name, const struct image_name *image,
			   enum file_cache cache, bool writable, struct node **ret,
			   struct err *err)
{
	struct nbdc_opts no = {
		.name = name,
		.server = image->nbd,
		.writable = writable,
		.discard = writable && o->opts->discard,
		.writethrough = graph_is_writethrough(cache),
		.no_flush = cache == FILE_CACHE_UNSAFE,
	};

	int rc = nbdc_open_wait(&no, o->home, ret, err);

	return rc && !o->opts->qemu_words ? err_wrap(err, rc, "'%s'", name) : rc;
}

/* Opens an export that the image @asker names. */
static int open_named_export_wait(struct opening *o, const char *what, const char *asker,
				  const struct image_name *image, bool writable, bool note,
				  struct node **ret, struct err *err)
{
	enum file_cache cache = graph_cache_mode(o, image);
	int rc = note ? graph_note_export(o, image->nbd, err) : 0;

	if (!rc)
		rc = graph_open_export_wait(o, image->path, image,
					    writable ? graph_without_sync(cache) : cache, writable,
					    ret, err);
	return rc ? graph_wrap_named(o, what, asker, rc, err) : 0;
}

int graph_open_named_wait(struct opening *o, const char *what, const char *asker,
			  const char *path, const struct image_name *image, bool writable,
			  bool note, struct node **ret, struct err *err)
{
	struct named_open w = {
		.o = o, .path = path, .what = what, .asker = asker, .err = err,
		.flags = writable ? O_RDWR : O_RDONLY,
	};
	struct file_opts fo;
	int rc;

	if (image && image->nbd)
		return open_named_export_wait(o, what, asker, image, writable, note, ret, err);
	loop_work_wait(o->home, named_open_work, &w);
	if (w.fd < 0)
		return w.fd;
	rc = note ? graph_note_file(o, &w.st, path, err) : 0;
	fo = graph_file_opts(o, path, w.fd, writable, image);
	if (writable)
		fo.cache = graph_without_sync(fo.cache);
	if (!rc)
		rc = file_open_wait(&fo, o->home, ret, err);
	if (rc) {
		close(w.fd);
		return graph_wrap_named(o, what, asker, rc, err);
	}
	return 0;
}
