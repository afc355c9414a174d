/* SPDX-License-Identifier: MIT */
/* cmd/convert.c - `byre convert`: the images, what is to be copied, and how it ends.
 *
 * A target that was made and not filled is not left behind: what would be taken for an image, and
 * is half of one, goes away with any error, and with a signal, for which no server has to answer
 * (cmd/stop.h). A file that was there before is emptied, for its name may be somebody's link.
 * (qemu-img leaves what it has.) Where nobody is left to do that, a qcow2 target says of itself
 * that it is not finished (Q11 in fmt/qcow2/writer.h). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"
#include "blk/port.h"
#include "cmd/convert.h"
#include "cmd/stop.h"
#include "ctl/compress_opts.h"
#include "ctl/graph.h"
#include "ctl/image_name.h"
#include "drv/file/file.h"
#include "drv/nbd/nbdc.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/codec.h"
#include "fmt/qcow2/format.h"
#include "fmt/qcow2/info.h"
#include "fmt/qcow2/qcow2.h"
#include "job/copy.h"
#include "loop/work.h"

enum { SECTOR = 512, DEPTH_DEFAULT = 8, LAP_CLUSTERS = 8192, LAP_BYTES_MAX = 512 << 20 };

struct conversion {
	struct convert_args *args;
	struct tool tool;
	unsigned nsources;
	struct img *sources;            /* owned */
	struct port_chan **source_pcs;  /* owned */
	uint64_t total;                 /* bytes of all sources */
	struct qcow2_info info;         /* of the first source, for its bitmaps */
	struct qcow2_info target_info;  /* where it is qcow2 */
	struct qcow2_bitmaps_copy bitmaps;
	const char *backing;            /* -B or -o backing_file; NULL: none */
	struct image_name target_name;  /* owned; empty where it is none, which is told when the
					 * target is made or opened */
	struct img target;
	bool preallocates;
	const atomic_bool *is_stopped;  /* by a signal */
	struct progress progress;
	struct copy_opts copy;
	struct copy_result result;
};

/* ---- the sources ---- */

static int open_sources(struct conversion *c)
{
	const struct convert_args *a = c->args;
	int rc;

	for (unsigned i = 0; i < c->nsources; i++) {
		rc = img_open(&c->tool, a->names[i], &a->source, &c->sources[i]);
		if (rc)
			return rc;
	}
	if (a->snapshot.text && a->snapshot.is_either && c->nsources > 1) {
		tool_error("No support for concatenating multiple snapshot");
		return -EINVAL;
	}
	if (a->snapshot.text) {
		rc = snapshot_arg_open(&a->snapshot, a->names[0], &a->source, &c->sources[0]);
		if (rc)
			return rc;
	}
	for (unsigned i = 0; i < c->nsources; i++) {
		c->source_pcs[i] = c->sources[i].pc;
		c->total += img_size(&c->sources[i]);
	}
	return 0;
}

/* ---- making the target ---- */

static const char *target_text(const struct conversion *c)
{
	return c->args->names[c->args->nnames - 1];
}

static void parse_target_name(struct conversion *c)
{
	char *warning = NULL;

	if (c->args->target.image_opts)
		image_name_parse_options(target_text(c), &c->target_name, &warning, NULL);
	else
		image_name_parse(target_text(c), &c->target_name, NULL);
	free(warning);
}

/* NULL: it is no file. */
static const char *target_path(const struct conversion *c)
{
	return c->target_name.nbd ? NULL : c->target_name.path;
}

static const char *option_text(struct create_args *c, const char *key)
{
	const struct option_item *o = option_list_take(&c->options, "", key);

	return o ? o->value : NULL;
}

static int set_option(struct create_args *c, const char *key, const char *value, struct err *err)
{
	int rc = option_list_set(&c->options, key, value, OPTION_TEXT);

	return rc ? err_set_errno(err, -rc, "options") : 0;
}

/* byre's own options of -c, which are the run's and not the image's. */
static int read_compression(struct conversion *c, struct err *err)
{
	struct graph_opts go = { 0 };
	int rc = compress_options_take(&c->args->create.options, &go, err);

	if (rc)
		return rc;
	if (!c->args->is_compressed && (go.compression_level || go.deflate_small_window))
		return err_set(err, EINVAL,
			       "compression_level and deflate_window are options of -c");
	c->args->target.compression_level = go.compression_level;
	c->args->target.deflate_small_window = go.deflate_small_window;
	return 0;
}

/* Do they fit the kind of compression? It is known when the target is opened, and said before it is
 * made. */
static int check_compression(struct conversion *c, struct err *err)
{
	const char *type = option_text(&c->args->create, "compression_type");
	const struct codec codec = {
		.compression = type && !strcmp(type, "zstd") ? QCOW2_COMPRESSION_ZSTD :
							       QCOW2_COMPRESSION_DEFLATE,
		.level = c->args->target.compression_level,
		.has_small_window = c->args->target.deflate_small_window,
	};

	return codec_check(&codec, err);
}

/* The options of the target that is to be made: those of -o, and what other options mean. */
static int read_options(struct conversion *c, struct err *err)
{
	struct create_args *cr = &c->args->create;
	bool is_qcow2 = !strcmp(cr->format, "qcow2");
	char size[32];
	int rc = create_check_format(cr->format, err);

	if (!rc)
		rc = create_check_protocol(cr->filename, err);
	if (!rc && c->args->options_text)
		rc = option_list_parse(c->args->options_text, NULL, &cr->options, err);
	if (!rc && is_qcow2)
		rc = read_compression(c, err);
	if (!rc)
		rc = create_check_options(cr, err);
	if (!rc && is_qcow2)
		rc = check_compression(c, err);
	if (rc)
		return rc;
	if (cr->backing && !is_qcow2)
		return err_set(err, ENOTSUP, "Backing file not supported for file format '%s'",
			       cr->format);
	if (cr->backing_format && !is_qcow2)
		return err_set(err, ENOTSUP, "Backing file format not supported for file format "
			       "'%s'", cr->format);
	if (cr->backing)
		rc = set_option(cr, "backing_file", cr->backing, err);
	if (!rc && cr->backing_format)
		rc = set_option(cr, "backing_fmt", cr->backing_format, err);
	cr->backing = cr->backing_format = NULL;
	snprintf(size, sizeof(size), "%" PRIu64, c->total);
	return rc ? rc : set_option(cr, "size", size, err);
}

static void note_preallocation(struct conversion *c)
{
	const char *preallocation = option_text(&c->args->create, "preallocation");

	c->preallocates = preallocation && strcmp(preallocation, "off");
}

/* What -c does not go with. */
static int check_compressed(struct conversion *c, struct err *err)
{
	struct create_args *cr = &c->args->create;
	const char *preallocation = option_text(cr, "preallocation");

	if (!c->args->is_compressed)
		return 0;
	if (strcmp(cr->format, "qcow2"))
		return err_set(err, ENOTSUP, "Compression not supported for this file format");
	if (option_text(cr, "encrypt.format") || option_text(cr, "encryption"))
		return err_set(err, EINVAL,
			       "Compression and encryption not supported at the same time");
	if (preallocation && strcmp(preallocation, "off"))
		return err_set(err, EINVAL,
			       "Compression and preallocation not supported at the same time");
	return 0;
}

static int check_backing(struct conversion *c, struct err *err)
{
	const struct convert_args *a = c->args;

	if (a->is_zero && c->backing)
		return err_set(err, EINVAL, "Cannot use --target-is-zero when the destination "
			       "image has a backing file");
	if (c->nsources > 1 && c->backing)
		return err_set(err, EINVAL, "Having a backing file for the target makes no sense "
			       "when concatenating multiple input images");
	if (!a->is_there && c->backing && !option_text(&c->args->create, "backing_fmt"))
		return err_set(err, EINVAL,
			       "Use of backing file requires explicit backing format");
	return 0;
}

static int source_info_wait(void *arg)
{
	struct conversion *c = arg;

	return qcow2_info_wait(c->sources[0].graph.top, &c->info, NULL);
}

/* Can the source's bitmaps be copied? */
static int check_bitmaps(struct conversion *c, struct err *err)
{
	const struct qcow2_info *info = &c->info;

	if (!c->args->has_bitmaps)
		return 0;
	if (c->nsources > 1)
		return err_set(err, EINVAL, "Copying bitmaps only possible with single source");
	if (strcmp(img_format(&c->sources[0]), "qcow2") ||
	    tool_run(&c->tool, source_info_wait, c) || info->version < 3)
		return err_set(err, ENOTSUP, "Source lacks bitmap support");
	for (size_t i = info->nbitmaps; i-- > 0 && !c->args->skips_broken_bitmaps;)
		if (info->bitmaps[i].is_in_use)
			return err_set(err, EINVAL, "Cannot copy inconsistent bitmap '%s'\n"
				       "Try --skip-broken-bitmaps, or use 'qemu-img bitmap "
				       "--remove' to delete it", info->bitmaps[i].name);
	return 0;
}

/* Is the file @st, which is to be written to, the one of @n, and no lock will tell?
 * @looks_at_locks: it is opened by somebody who does. They are those of a name: a device that has
 * two has two sets of them. */
static bool is_unlocked_file(struct node *n, const struct stat *st, bool looks_at_locks)
{
	struct stat own;

	if (!n || stat(n->name, &own))
		return false;
	if (own.st_dev == st->st_dev && own.st_ino == st->st_ino)
		return !looks_at_locks || !file_refuses_writers(n);
	return S_ISBLK(own.st_mode) && S_ISBLK(st->st_mode) && own.st_rdev == st->st_rdev;
}

static bool reads_from(struct node *top, const struct stat *st, bool looks_at_locks)
{
	for (struct node *n = top; n; n = n->child[CHILD_BACKING]) {
		struct node *file = n->child[CHILD_FILE] ? n->child[CHILD_FILE] : n;

		if (is_unlocked_file(file, st, looks_at_locks) ||
		    is_unlocked_file(n->child[CHILD_DATA], st, looks_at_locks))
			return true;
	}
	return false;
}

/* @path: NULL is fine. */
static int check_unread(const struct conversion *c, const char *path, bool looks_at_locks,
			struct err *err)
{
	struct stat st;

	if (path && !stat(path, &st))
		for (unsigned i = 0; i < c->nsources; i++)
			if (reads_from(c->sources[i].graph.top, &st, looks_at_locks))
				return err_set(err, EBUSY, "'%s' is read by this conversion", path);
	return 0;
}

/* Where a source takes no locks (-U, locking=off, of which a backing file's name may tell as well),
 * or the file system has none, nothing but this keeps the target, or the data file that is made
 * with it, from being a file that the sources are read from. */
static int check_overlap(struct conversion *c, struct err *err)
{
	bool is_there = c->args->is_there;
	int rc = check_unread(c, target_path(c), !(is_there && c->target_name.no_lock), err);

	if (!rc && !is_there)
		rc = check_unread(c, option_text(&c->args->create, "data_file"), true, err);
	return rc;
}

/* The same of a target that is there, which has named its data file by now. */
static int check_data_file(const struct conversion *c, struct err *err)
{
	const struct node *data = c->target.graph.top->child[CHILD_DATA];

	return c->args->is_there && data ? check_unread(c, data->name, false, err) : 0;
}

/* All that can be said before anything is made. */
static int prepare(struct conversion *c, struct err *err)
{
	struct convert_args *a = c->args;
	int rc = a->is_there ? 0 : read_options(c, err);

	if (rc)
		return rc;
	c->backing = a->is_there ? a->create.backing :
				   option_text(&a->create, "backing_file");
	rc = check_backing(c, err);
	if (!rc && !a->is_there)
		rc = check_compressed(c, err);
	if (!rc && !a->is_there)
		note_preallocation(c);
	if (!rc)
		rc = check_bitmaps(c, err);
	if (!rc)
		rc = check_overlap(c, err);
	return rc;
}

static int make_target(struct conversion *c, struct err *err)
{
	struct create_args *cr = &c->args->create;
	int rc;

	cr->is_quiet = cr->is_backing_given = cr->is_unfinished = true;
	cr->is_stopped = c->is_stopped;
	rc = create_image(&c->tool, cr, err);
	return rc ? err_wrap(err, rc, "%s: error while converting %s", cr->filename, cr->format) :
		    0;
}

/* ---- the target, open ---- */

/* The target is synced as a whole when it is done. A sync for each write would cut the packed
 * clusters at places that depend on how many writes are under way. */
static const char *cache_of_packed(const char *cache)
{
	if (cache && !strcmp(cache, "writethrough"))
		return "writeback";
	return cache && !strcmp(cache, "directsync") ? "none" : cache;
}

/* Unless something else is asked for, past the page cache: nobody reads the target at once, and
 * what is not copied there need not be dropped again. */
static int open_target(struct conversion *c, struct err *err)
{
	const struct convert_args *a = c->args;
	struct img_opts how = a->target;

	how.cache_what = "cache";
	how.writable = true;
	how.is_unfinished = !a->is_there;
	how.discard = a->min_sparse;
	if (a->is_compressed)
		how.cache = cache_of_packed(how.cache);
	how.drop_pages = !a->keeps_cache && (!how.cache || strcmp(how.cache, "unsafe"));
	if (!how.cache && !a->keeps_cache && !a->is_offloaded) {
		how.cache = "none";
		if (!img_open_quiet(&c->tool, target_text(c), &how, &c->target, err))
			return 0;
		how.cache = NULL;
		*err = (struct err) { 0 };
	}
	return img_open_quiet(&c->tool, target_text(c), &how, &c->target, err);
}

static int target_info_wait(void *arg)
{
	struct conversion *c = arg;

	return qcow2_info_wait(c->target.graph.top, &c->target_info, NULL);
}

/* Does a target that was just made read as zeros, without a look at it? */
static bool is_new_zero(const struct node *top)
{
	const struct node *data = top->child[CHILD_DATA];

	if (!data)
		data = top->child[CHILD_FILE];
	return data && data->holes_read_zero;
}

static unsigned choose_depth(const struct conversion *c)
{
	long wanted = sysconf(_SC_NPROCESSORS_ONLN) * 3;

	if (c->args->depth)
		return c->args->depth;
	if (!c->args->is_compressed || wanted < DEPTH_DEFAULT)
		return DEPTH_DEFAULT;
	return (unsigned)MIN(wanted, (long)COPY_DEPTH_MAX);
}

/* May the target share what the sources store? Nobody looks for zeros in that: not where it was
 * asked for, nor under the name of a tool that does. Nor may it where all of the target shall have
 * space of its own, or where what cannot be read has to be found. */
static bool may_share(const struct conversion *c)
{
	const struct convert_args *a = c->args;

	if (a->is_compressed || a->is_salvage || c->preallocates)
		return false;
	return a->is_offloaded || !(a->has_sparse || tool_is_qemu_img());
}

/* What is to be copied how. */
static int plan(struct conversion *c, struct err *err)
{
	const struct convert_args *a = c->args;
	const struct node *top = c->target.graph.top;
	const struct node *backing = top->child[CHILD_BACKING];
	struct copy_opts *o = &c->copy;
	uint64_t sparse_align = a->min_sparse ? 1ULL << log2_floor(a->min_sparse) : 1;

	if (!strcmp(img_format(&c->target), "qcow2") &&
	    tool_run(&c->tool, target_info_wait, c))
		return err_set(err, EIO, "could not get block driver info");
	if (a->has_bitmaps && c->target_info.version < 3)
		return err_set(err, ENOTSUP, "Format driver '%s' does not support bitmaps",
			       img_format(&c->target));
	if (a->is_compressed && strcmp(img_format(&c->target), "qcow2"))
		return err_set(err, ENOTSUP, "Compression not supported for this file format");
	if (a->is_there && img_size(&c->target) < c->total)
		return err_set(err, EINVAL, "output file is smaller than input file");
	o->cluster = a->is_compressed ? c->target_info.cluster_size : 0;
	o->sources = c->source_pcs;
	o->nsources = c->nsources;
	o->target = c->target.pc;
	o->min_sparse = a->min_sparse;
	o->align = MAX(sparse_align, (uint64_t)top->align);
	o->align = MAX(o->align, (uint64_t)SECTOR);
	o->target_has_backing = c->backing;
	o->target_is_zero = !c->backing && a->min_sparse &&
			    (a->is_there ? a->is_zero : is_new_zero(top));
	o->backing_size = backing && !a->is_there ? atomic_load(&backing->size) : UINT64_MAX;
	/* In whole clusters: zeros of a part of one would have to be stored. */
	if (backing && !a->is_there && !a->is_compressed)
		o->backing_size = align_up(o->backing_size, c->target_info.cluster_size);
	o->out_of_order = a->is_out_of_order;
	o->salvage = a->is_salvage;
	o->shares = may_share(c);
	o->offloads = a->is_offloaded && !strcmp(img_format(&c->target), "raw");
	if (a->is_there && !a->is_out_of_order && c->target_info.cluster_size)
		o->lap = MIN(c->target_info.cluster_size * LAP_CLUSTERS, (uint64_t)LAP_BYTES_MAX);
	o->depth = choose_depth(c);
	o->rate = a->rate;
	o->is_stopped = c->is_stopped;
	return 0;
}

/* ---- copying ---- */

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
	struct conversion *c = arg;

	progress_set(&c->progress, done, total);
}

static const char *error_text(int rc)
{
	return strerror(rc == -EUCLEAN ? EIO : -rc);
}

static void on_lost(void *arg, enum copy_fault fault, uint64_t off, int error)
{
	const struct conversion *c = arg;

	if (!c->args->is_quiet)
		tool_warn("error while reading %s%" PRIu64 ": %s",
			  fault == COPY_MAP_FAILED ? "block status at offset " : "offset ", off,
			  error_text(error));
}

/* What a target that was there has lost so far is used again. */
static int reuse_wait(void *arg)
{
	struct conversion *c = arg;

	return qcow2_reuse_wait(c->target.graph.top);
}

static int copy_wait(void *arg)
{
	struct conversion *c = arg;
	const struct req flush = { .kind = REQ_FLUSH };
	int rc;

	c->copy.on_progress = on_progress;
	c->copy.on_lost = on_lost;
	c->copy.on_lap_wait = c->copy.lap ? reuse_wait : NULL;
	if (c->args->is_there && c->target_info.cluster_size)
		c->copy.on_no_room_wait = reuse_wait;
	c->copy.arg = c;
	rc = copy_run_wait(&c->copy, &c->result);
	return rc ? rc : port_submit_wait(c->target.pc, &flush);
}

static void tell_failure(const struct conversion *c, int rc)
{
	const struct copy_result *r = &c->result;
	uint64_t off = tool_is_qemu_img() ? r->chunk_off : r->off;

	switch (r->fault) {
	case COPY_MAP_FAILED:
		tool_error("error while reading block status at offset %" PRIu64 ": %s", r->off,
			   error_text(rc));
		return;
	case COPY_READ_FAILED:
		tool_error("error while reading at byte %" PRIu64 ": %s", off, error_text(rc));
		return;
	case COPY_WRITE_FAILED:
		tool_error("error while writing at byte %" PRIu64 ": %s", off, error_text(rc));
		return;
	}
	if (rc == -ECANCELED)
		return;
	tool_error("error while writing '%s': %s", c->target.name, error_text(rc));
}

/* ---- bitmaps ---- */

struct bitmaps_call {
	struct conversion *c;
	struct err err;
};

static int copy_bitmaps_wait(void *arg)
{
	struct bitmaps_call *b = arg;

	return qcow2_bitmaps_copy_wait(b->c->sources[0].graph.top, b->c->target.graph.top,
				       &b->c->bitmaps, &b->err);
}

/* What is wrong with the first bitmap that cannot be copied: its name is taken, or its disk is not
 * as large. QEMU goes from the last to the first. */
static int judge_bitmaps(const struct conversion *c, struct err *err)
{
	const struct qcow2_info *from = &c->info, *to = &c->target_info;
	uint64_t size = img_size(&c->sources[0]), target_size = img_size(&c->target);

	for (size_t i = from->nbitmaps; i-- > 0;) {
		const char *name = from->bitmaps[i].name;

		if (from->bitmaps[i].is_in_use)
			continue;
		for (size_t k = 0; k < to->nbitmaps; k++)
			if (!strcmp(name, to->bitmaps[k].name))
				return err_set(err, EEXIST, "Failed to create bitmap %s: Bitmap "
					       "already exists: %s", name, name);
		if (size != target_size)
			return err_set(err, EINVAL, "Failed to populate bitmap %s: Bitmaps are of "
				       "different sizes (destination size is %" PRIu64 ", source "
				       "size is %" PRIu64 ") and can't be merged", name,
				       target_size, size);
	}
	return 0;
}

static int copy_bitmaps(struct conversion *c)
{
	struct bitmaps_call b = { .c = c };
	int rc;

	if (!c->info.nbitmaps)
		return 0;
	for (size_t i = c->info.nbitmaps; i-- > 0;)
		if (c->info.bitmaps[i].is_in_use)
			tool_warn("Skipping inconsistent bitmap '%s'", c->info.bitmaps[i].name);
	rc = judge_bitmaps(c, &b.err);
	if (!rc)
		rc = tool_run(&c->tool, copy_bitmaps_wait, &b);
	if (rc)
		tool_fail(&b.err);
	return rc;
}

static int name_bitmaps_wait(void *arg)
{
	struct bitmaps_call *b = arg;
	const struct image_name *name = &b->c->target_name;
	struct file_opts fo = { .path = name->path, .fd = -1, .writable = true,
				.qemu_words = true };
	struct nbdc_opts no = { .name = name->path, .server = name->nbd, .writable = true };
	struct loop *l = b->c->tool.loop;
	struct node *file;
	int rc = name->nbd ? nbdc_open_wait(&no, l, &file, &b->err) :
			     file_open_wait(&fo, l, &file, &b->err);

	if (rc)
		return rc;
	rc = qcow2_bitmaps_name_wait(file, &b->c->bitmaps, &b->err);
	node_put_wait(file);
	return rc;
}

/* The target is closed. */
static int name_bitmaps(struct conversion *c)
{
	struct bitmaps_call b = { .c = c };
	int rc = c->bitmaps.n ? tool_run(&c->tool, name_bitmaps_wait, &b) : 0;

	if (rc)
		tool_fail(&b.err);
	return rc;
}

/* ---- the whole ---- */

static int finish_wait(void *arg)
{
	struct conversion *c = arg;

	qcow2_finish(c->target.graph.top);
	return 0;
}

static int fill_target(struct conversion *c)
{
	struct err err = { 0 };
	int rc = prepare(c, &err);

	if (!rc && !c->args->is_there)
		rc = make_target(c, &err);
	if (!rc)
		rc = open_target(c, &err);
	if (!rc)
		rc = check_data_file(c, &err);
	if (!rc)
		rc = plan(c, &err);
	if (rc) {
		if (rc != -ECANCELED)
			tool_fail(&err);
		return rc;
	}
	rc = tool_run(&c->tool, copy_wait, c);
	if (rc)
		tell_failure(c, rc);
	if (!rc && c->args->has_bitmaps)
		rc = copy_bitmaps(c);
	/* Where bitmaps have to be named, the image is whole only then. */
	if (!rc && !c->bitmaps.n && !strcmp(img_format(&c->target), "qcow2"))
		rc = tool_run(&c->tool, finish_wait, c);
	return rc;
}

/* Making the target has left a few pages. */
static void forget_file_pages(const char *path)
{
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;

	if (fd >= 0) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		close(fd);
	}
}

static void forget_pages(struct conversion *c)
{
	forget_file_pages(target_path(c));
	forget_file_pages(option_text(&c->args->create, "data_file"));
}

/* @path: NULL is fine. */
static void take_file_away(const char *path, const struct create_made *made)
{
	if (path && create_is_ours(made, path) &&
	    (made->state == CREATE_NEW ? unlink(path) : truncate(path, 0)))
		tool_warn("'%s' holds a part of the image only: %s", path, strerror(errno));
}

/* Half an image is none. */
static void take_away(struct conversion *c)
{
	struct create_args *cr = &c->args->create;

	take_file_away(target_path(c), &cr->made);
	take_file_away(option_text(cr, "data_file"), &cr->made_data);
}

/* The images stay open: who closes them may have to wait. */
static void give_up(void *arg)
{
	struct conversion *c = arg;

	progress_end(&c->progress, false);
	take_away(c);
}

static int run(struct conversion *c)
{
	const struct convert_args *a = c->args;
	enum file_cache cache;
	int rc;

	if (a->source.cache && file_cache_parse(a->source.cache, &cache, NULL)) {
		tool_error("Invalid source cache option: %s", a->source.cache);
		return -EINVAL;
	}
	c->is_stopped = stop_watch(c->tool.loop, give_up, c);
	parse_target_name(c);
	progress_start(&c->progress, a->is_progress && !a->is_quiet, 1);
	rc = open_sources(c);
	if (!rc)
		rc = fill_target(c);
	if (rc && a->create.made.state != CREATE_NONE)
		img_close_quiet(&c->target, &(struct err) { 0 });       /* it goes away */
	else if (img_close(&c->target) && !rc)
		rc = -EIO;
	if (!rc)
		rc = name_bitmaps(c);
	if (rc)
		take_away(c);
	else if (!a->is_there && !a->keeps_cache)
		forget_pages(c);
	progress_end(&c->progress, !rc);
	for (unsigned i = 0; i < c->nsources; i++)
		img_close(&c->sources[i]);
	return rc;
}

int convert(struct convert_args *a)
{
	struct conversion c = { .args = a, .nsources = a->nnames - 1 };
	int rc = -ENOMEM;

	a->source.no_writers = true;
	a->source.drop_pages = !a->keeps_cache;
	c.sources = calloc(c.nsources, sizeof(*c.sources));
	c.source_pcs = calloc(c.nsources, sizeof(struct port_chan *));
	signal(SIGPIPE, SIG_IGN);       /* nobody who reads what -p says is no reason to end */
	if (!c.sources || !c.source_pcs)
		tool_error("%s", strerror(ENOMEM));
	else
		rc = tool_start(&c.tool, LOOP_AUTO);
	if (!rc)
		rc = run(&c);
	stop_unwatch();
	tool_stop(&c.tool);
	qcow2_info_fini(&c.info);
	qcow2_info_fini(&c.target_info);
	image_name_fini(&c.target_name);
	free(c.sources);
	free(c.source_pcs);
	if (rc)
		stop_end();
	return rc ? EXIT_ERROR : EXIT_OK;
}
