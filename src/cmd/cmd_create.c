/* SPDX-License-Identifier: MIT */
/* cmd/cmd_create.c - `byre create`: the command line, and new raw images (create_qcow2.c: others).
 *
 * The file is opened without truncating it and locked first, so that an image in use is not lost
 * to a slip of the hand. Its first block is written where nothing else is preallocated: programs
 * that open it later find out what alignment O_DIRECT needs by reading that block, and a hole
 * would tell them nothing. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/size.h"
#include "blk/blk.h"
#include "cmd/create.h"
#include "cmd/tool.h"
#include "ctl/image_name.h"
#include "drv/file/file.h"
#include "loop/work.h"

enum {
	OPT_OPTIONS = OPT_OWN,
	OPT_BACKING,
	OPT_BACKING_FORMAT,
	OPT_BACKING_UNSAFE,
};

enum { SECTOR = 512, FIRST_BLOCK = 4096, ZEROS = 1 << 20, EXTENT_HINT_DEFAULT = 1 << 20 };

static const struct opt create_opts[] = {
	TOOL_OPT_OBJECT,
	TOOL_OPT_QUIET,
	{ 'f', "format", "FMT", "the format: raw, which is the default, or qcow2", OPT_FORMAT },
	{ 'o', "options", "OPTIONS", "key=value,...; 'help' shows them", OPT_OPTIONS },
	{ 'b', "backing", "FILENAME", "the backing file (qcow2)", OPT_BACKING },
	{ 'F', "backing-format", "FMT", "its format", OPT_BACKING_FORMAT },
	{ 'u', "backing-unsafe", NULL, "do not look at the backing file", OPT_BACKING_UNSAFE },
	TOOL_OPT_HELP,
};

static const struct tool_grammar create_tool = {
	.command = "create",
	.usage = "[OPTION]... FILENAME [SIZE]",
	.summary = "Makes a new image. What the file held before is lost.",
	.opts = create_opts,
	.nopts = ARRAY_SIZE(create_opts),
};

enum prealloc { PREALLOC_OFF, PREALLOC_FALLOC, PREALLOC_FULL };

/* What is to be made. */
struct plan {
	struct tool *tool;
	const char *path;
	const struct image_name *image; /* what @name means */
	uint64_t size;                  /* as asked for; the file gets whole sectors */
	enum prealloc prealloc;
	struct create_hints hints;
	int fd;                         /* on the way */
	struct create_made *made;
	const atomic_bool *is_stopped;  /* or NULL */
	struct err *err;
};

/* ---- making it ---- */

int create_open(const char *path, struct create_made *ret)
{
	int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	int fd = open(path, flags | O_EXCL, 0644);
	struct stat st;

	bool is_new = fd >= 0;

	if (fd < 0)
		fd = open(path, flags, 0644);
	if (fd < 0)
		return -errno;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode)) {
		ret->dev = st.st_dev;
		ret->ino = st.st_ino;
		ret->state = is_new ? CREATE_NEW : CREATE_FOUND;
	}
	return fd;
}

int create_empty(int fd, struct create_made *m)
{
	if (m->state == CREATE_FOUND)
		m->state = CREATE_EMPTIED;
	return ftruncate(fd, 0) < 0 ? -errno : 0;
}

bool create_is_ours(const struct create_made *m, const char *path)
{
	struct stat st;

	return m->state >= CREATE_EMPTIED && !stat(path, &st) && st.st_dev == m->dev &&
	       st.st_ino == m->ino;
}

void create_give_hints(int fd, const struct create_hints *h)
{
	struct fsxattr x;
	int flags;
	bool is_set;

	if (h->is_nocow && !ioctl(fd, FS_IOC_GETFLAGS, &flags)) {
		flags |= FS_NOCOW_FL;
		(void)!ioctl(fd, FS_IOC_SETFLAGS, &flags);
	}
	if (h->has_extent_hint && !h->extent_hint)
		return;
	is_set = !ioctl(fd, FS_IOC_FSGETXATTR, &x);
	if (is_set) {
		x.fsx_xflags |= FS_XFLAG_EXTSIZE;
		x.fsx_extsize = h->has_extent_hint ? (uint32_t)h->extent_hint :
						     EXTENT_HINT_DEFAULT;
		is_set = !ioctl(fd, FS_IOC_FSSETXATTR, &x);
	}
	if (!is_set && h->has_extent_hint)
		tool_warn("Failed to set extent size hint: %s", strerror(errno));
}

int create_write_zeros(int fd, uint64_t len, const atomic_bool *is_stopped)
{
	char *zeros = calloc(1, ZEROS);
	uint64_t off = 0;
	int rc = zeros ? 0 : -ENOMEM;

	while (off < len && !rc) {
		ssize_t n = pwrite(fd, zeros, MIN(len - off, (uint64_t)ZEROS), (off_t)off);

		if (n > 0)
			off += (uint64_t)n;
		else if (n == 0 || errno != EINTR)
			rc = n ? -errno : -EIO;
		if (is_stopped && atomic_load(is_stopped))
			rc = -ECANCELED;
	}
	free(zeros);
	return rc;
}

static int preallocate(const struct plan *p, uint64_t size)
{
	int rc;

	switch (p->prealloc) {
	case PREALLOC_OFF:
		return create_write_zeros(p->fd, MIN(size, (uint64_t)FIRST_BLOCK), NULL);
	case PREALLOC_FALLOC:
		return size ? -posix_fallocate(p->fd, 0, (off_t)size) : 0;
	case PREALLOC_FULL:
		rc = create_write_zeros(p->fd, size, p->is_stopped);
		return rc || !fsync(p->fd) ? rc : -errno;
	}
	return 0;
}

/* A device has its size. What it held shall not be taken for an image's header. */
static int fill_device(const struct plan *p, uint64_t size)
{
	uint64_t room;
	int rc;

	if (ioctl(p->fd, BLKGETSIZE64, &room) < 0)
		return err_set_errno(p->err, errno, "Could not create '%s'", p->path);
	if (size > room)
		return err_set(p->err, EINVAL, "Cannot grow device files");
	rc = create_write_zeros(p->fd, MIN(room, (uint64_t)SECTOR), NULL);
	return rc ? err_set_errno(p->err, -rc, "Could not create '%s'", p->path) : 0;
}

static int fill(const struct plan *p)
{
	uint64_t size = align_up(p->size, SECTOR);
	struct stat st;
	int rc;

	if (!fstat(p->fd, &st) && S_ISBLK(st.st_mode))
		return fill_device(p, size);
	if (p->hints.extent_hint > UINT32_MAX)
		return err_set(p->err, EINVAL, "Extent size hint is too large");
	rc = create_empty(p->fd, p->made);
	if (rc)
		return err_set_errno(p->err, -rc, "Could not create '%s'", p->path);
	create_give_hints(p->fd, &p->hints);
	if (p->size > INT64_MAX)
		return err_set_errno(p->err, EINVAL, "Could not resize file");
	if (ftruncate(p->fd, (off_t)size) < 0) {
		if (errno == EFBIG)
			return err_set(p->err, EFBIG,
				       "The image size is too large for file format 'raw'");
		return err_set_errno(p->err, errno, "Could not resize file");
	}
	rc = preallocate(p, size);
	if (!rc)
		return 0;
	/* As long as it is, it looks like a disk. */
	if (ftruncate(p->fd, 0) < 0)
		tool_warn("Failed to restore old file length: %s", strerror(errno));
	return err_set_errno(p->err, -rc, "Could not preallocate data for the new file");
}

static void open_work(void *arg)
{
	struct plan *p = arg;

	p->fd = create_open(p->path, p->made);
	if (p->fd < 0)
		err_set_errno(p->err, -p->fd, "Could not create '%s'", p->path);
}

struct fill_call {
	const struct plan *plan;
	int rc;
};

/* The node learns how long the file is now, lest it takes what was cut for lost. @rc: what went
 * wrong before. */
static int learn_size_wait(const struct plan *p, struct node *file, int rc)
{
	int learned = file->ops->resize_wait(file, rc ? NULL : p->err);

	return rc ? rc : learned;
}

static void fill_work(void *arg)
{
	struct fill_call *c = arg;

	c->rc = fill(c->plan);
}

static int make_in_export_wait(struct plan *p)
{
	struct node *n;
	int rc = create_open_export_wait(p->image, p->tool->loop, &n, p->err);

	if (rc)
		return rc;
	rc = create_zero_export_wait(n, p->size, SECTOR, p->err);
	if (!rc)
		rc = node_settle_wait(n, p->err);
	node_put_wait(n);
	return rc;
}

/* In a fiber. The node holds the locks meanwhile, and owns the descriptor. */
static int make_wait(void *arg)
{
	struct plan *p = arg;
	struct fill_call c = { .plan = p };
	struct file_opts fo = { .path = p->path, .writable = true, .qemu_words = true };
	struct loop *l = p->tool->loop;
	struct node *file;
	int rc;

	if (p->image->nbd)
		return make_in_export_wait(p);
	loop_work_wait(l, open_work, p);
	if (p->fd < 0)
		return p->fd;
	fo.fd = p->fd;
	rc = file_open_wait(&fo, l, &file, p->err);
	if (rc) {
		close(p->fd);
		return rc;
	}
	loop_work_wait(l, fill_work, &c);
	rc = learn_size_wait(p, file, c.rc);
	node_put_wait(file);
	return rc;
}

/* ---- understanding ---- */

static void print_options_help(bool has_filename)
{
	printf("Supported %soptions:\n", has_filename ? "" : "raw ");
	if (has_filename)
		printf("  extent_size_hint=<size> - the extent size hint on XFS, 0 for none\n"
		       "  nocow=<bool (on/off)>  - no copy on write on btrfs\n"
		       "  preallocation=<str>    - off, falloc or full\n");
	printf("  size=<size>            - the size of the disk\n");
	if (!has_filename)
		printf("\nThe file may support further options; give its name to see them.\n");
}

static int check_prealloc(const struct option_item *o, struct plan *p, struct err *err)
{
	static const char *const names[] = { "off", "falloc", "full" };

	if (!o)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(o->value, names[i]))
			continue;
		p->prealloc = (enum prealloc)i;
		return 0;
	}
	if (!strcmp(o->value, "metadata"))
		return err_set(err, ENOTSUP, "Unsupported preallocation mode: metadata");
	return err_set(err, EINVAL, "invalid parameter value: %s", o->value);
}

/* The size, from the operand or the options. */
static int find_size(const struct create_args *a, const struct option_item *o, uint64_t *ret,
		     struct err *err)
{
	if (a->has_size && o)
		return err_set(err, EINVAL, "The image size must be specified only once");
	if (o && option_size(o, "", ret, err))
		return -EINVAL;
	if (o && *ret != UINT64_MAX)            /* which is QEMU's word for none */
		return 0;
	if (!a->has_size)
		return err_set(err, EINVAL, "Image creation needs a size parameter");
	*ret = a->size;
	return 0;
}

static int check_format(const char *f, struct err *err)
{
	if (!strcmp(f, "raw") || !strcmp(f, "file"))
		return 0;
	if (image_name_check_format(f, NULL) == -EINVAL)
		return err_set(err, EINVAL, "Unknown file format '%s'", f);
	return err_set(err, ENOTSUP, "byre creates qcow2 and raw images, not '%s'", f);
}

/* The operands and options, as far as they can be judged without a look at the disk. */
static int make_plan(struct create_args *a, struct image_name *name, struct plan *p,
		     struct err *err)
{
	const struct option_item *size, *prealloc, *nocow, *hint, *unused;
	int rc = check_format(a->format, err);

	if (rc)
		return rc;
	size = option_list_take(&a->options, "", "size");
	prealloc = option_list_take(&a->options, "", "preallocation");
	nocow = option_list_take(&a->options, "", "nocow");
	hint = option_list_take(&a->options, "", "extent_size_hint");
	unused = option_list_unused(&a->options, "");
	if (unused)
		return err_set(err, EINVAL, "Invalid parameter '%s'", unused->key);
	if (a->backing)
		return err_set(err, ENOTSUP, "Backing file not supported for file format '%s'",
			       a->format);
	if (a->backing_format)
		return err_set(err, ENOTSUP, "Backing file format not supported for file "
			       "format '%s'", a->format);
	rc = find_size(a, size, &p->size, err);
	if (rc)
		return rc;
	p->hints.has_extent_hint = hint;
	rc = option_bool(nocow, "", &p->hints.is_nocow, err);
	if (!rc)
		rc = option_size(hint, "", &p->hints.extent_hint, err);
	if (!rc && a->filename[0])
		rc = create_parse_name(a->filename, name, err);
	if (rc)
		return rc;
	p->path = name->path ? name->path : "";
	p->image = name;
	if (!a->is_quiet)
		printf("Formatting '%s', fmt=%s size=%" PRId64 "%s%s%s%s", a->filename, a->format,
		       (int64_t)p->size, nocow ? " nocow=" : "", nocow ? nocow->value : "",
		       prealloc ? " preallocation=" : "", prealloc ? prealloc->value : "");
	if (!a->is_quiet && hint)
		printf(" extent_size_hint=%" PRId64, (int64_t)p->hints.extent_hint);
	if (!a->is_quiet)
		putchar('\n');
	return check_prealloc(prealloc, p, err);
}

static int make_raw(struct tool *t, struct create_args *a, struct err *err)
{
	struct image_name name = { 0 };
	struct plan p = { .tool = t, .made = &a->made, .is_stopped = a->is_stopped, .err = err };
	int rc = make_plan(a, &name, &p, err);

	if (!rc)
		rc = tool_run(t, make_wait, &p);
	image_name_fini(&name);
	return rc;
}

int create_check_format(const char *format, struct err *err)
{
	return strcmp(format, "qcow2") ? check_format(format, err) : 0;
}

int create_check_options(struct create_args *a, struct err *err)
{
	static const char *const raw[] = { "size", "preallocation", "nocow", "extent_size_hint" };

	if (!strcmp(a->format, "qcow2"))
		return create_qcow2_check_options(a, err);
	for (unsigned i = 0; i < a->options.n; i++) {
		const struct option_item *o = &a->options.items[i];
		bool is_known = false;

		for (unsigned k = 0; k < ARRAY_SIZE(raw); k++)
			is_known |= !strcmp(o->key, raw[k]);
		if (!is_known)
			return err_set(err, EINVAL, "Invalid parameter '%s'", o->key);
	}
	return 0;
}

int create_image(struct tool *t, struct create_args *a, struct err *err)
{
	return strcmp(a->format, "qcow2") ? make_raw(t, a, err) : create_qcow2(t, a, err);
}

void create_print_help(const struct create_args *a)
{
	if (strcmp(a->format, "qcow2"))
		print_options_help(a->filename);
	else
		create_qcow2_help(a->filename);
}

static int create(struct create_args *a)
{
	struct err err = { 0 };
	struct tool t = { 0 };
	int rc = tool_start(&t, LOOP_AUTO);

	if (rc)
		return EXIT_ERROR;
	rc = create_image(&t, a, &err);
	if (rc) {
		err_wrap(&err, rc, "%s", a->filename);
		tool_fail(&err);
	}
	tool_stop(&t);
	return rc ? EXIT_ERROR : EXIT_OK;
}

/* ---- the command line ---- */

/* Returns what opts_next() did, or OPTS_ERROR. */
static int take_option(struct create_args *a, int id, const char *value)
{
	switch (id) {
	case OPTS_OPERAND:
		if (a->noperands < ARRAY_SIZE(a->operands))
			a->operands[a->noperands++] = value;
		break;
	case OPT_HELP:
		tool_help(&create_tool);
		a->is_done = true;
		break;
	case OPT_QUIET:
		a->is_quiet = true;
		break;
	case OPT_FORMAT:
		a->format = value;
		break;
	case OPT_OPTIONS:
		return tool_options_add(&a->options_text, value) ? OPTS_ERROR : id;
	case OPT_BACKING:
		a->backing = value;
		break;
	case OPT_BACKING_FORMAT:
		a->backing_format = value;
		break;
	case OPT_BACKING_UNSAFE:
		a->is_backing_unsafe = true;
		break;
	case OPT_OBJECT:
		return tool_object(value) ? OPTS_ERROR : id;
	}
	return id;
}

static int take_size(struct create_args *a, const char *text)
{
	int rc = tool_size(text, &a->size);

	if (rc == -ERANGE)
		tool_error("Invalid image size specified. Must be between 0 and %" PRId64 ".",
			   INT64_MAX);
	else if (rc)
		tool_error("Invalid image size specified: '%s'.", text);
	a->has_size = true;
	return rc;
}

bool create_asks_help(const char *options)
{
	while (*options) {
		size_t n = 0;

		while (options[n] && (options[n] != ',' || options[n + 1] == ','))
			n += options[n] == ',' ? 2 : 1;
		if ((n == 4 && !strncmp(options, "help", n)) || (n == 1 && *options == '?'))
			return true;
		options += n + (options[n] == ',');
	}
	return false;
}

static int run(struct create_args *a)
{
	struct err err = { 0 };

	a->filename = a->operands[0];
	if (a->options_text && create_asks_help(a->options_text)) {
		if (create_check_format(a->format, &err))
			return tool_fail(&err);
		create_print_help(a);
		return EXIT_OK;
	}
	if (!a->filename)
		return tool_fail_usage(&create_tool, "Expecting image file name");
	if (a->operands[1] && take_size(a, a->operands[1]))
		return EXIT_ERROR;
	if (a->operands[2])
		return tool_fail_usage(&create_tool, "Unexpected argument: %s", a->operands[2]);
	if (a->options_text && option_list_parse(a->options_text, NULL, &a->options, &err))
		return tool_fail(&err);
	return create(a);
}

int cmd_create(int argc, char **argv)
{
	struct create_args a = { .format = "raw" };
	const char *value;
	int id, rc = EXIT_ERROR;

	tool_opts_start(&create_tool, argc, argv);
	do {
		id = tool_opts_next(&create_tool, &value);
		id = take_option(&a, id, value);
	} while (id != OPTS_END && id != OPTS_ERROR && !a.is_done);
	if (a.is_done)
		rc = EXIT_OK;
	else if (id == OPTS_END)
		rc = run(&a);
	option_list_fini(&a.options);
	free(a.options_text);
	return rc;
}
