/* SPDX-License-Identifier: MIT */
/* cmd/create_qcow2.c - `byre create -f qcow2`: what the options mean, in qemu-img's words and
 * order, and the files.
 *
 * A file that is there is opened and locked, and all is checked, before anything in it changes.
 * What could not be made is removed, as qemu-img does. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
#include "fmt/qcow2/create.h"
#include "fmt/qcow2/format.h"
#include "fmt/qcow2/qcow2.h"
#include "loop/work.h"

enum kind { TEXT, NUMBER, SIZE, SWITCH };
enum { SECTOR = 512, FIRST_BLOCK = 4096 };

/* In the order in which "Formatting" shows them. */
static const struct known {
	const char *key;
	enum kind kind;
	const char *otherwise;          /* shown where it is not given; NULL: nothing */
} known[] = {
	{ "encryption", SWITCH, NULL },
	{ "encrypt.format", TEXT, NULL },
	{ "encrypt.key-secret", TEXT, NULL },
	{ "encrypt.cipher-alg", TEXT, NULL },
	{ "encrypt.cipher-mode", TEXT, NULL },
	{ "encrypt.ivgen-alg", TEXT, NULL },
	{ "encrypt.ivgen-hash-alg", TEXT, NULL },
	{ "encrypt.hash-alg", TEXT, NULL },
	{ "encrypt.iter-time", NUMBER, NULL },
	{ "cluster_size", SIZE, "65536" },
	{ "extended_l2", SWITCH, "off" },
	{ "preallocation", TEXT, NULL },
	{ "compression_type", TEXT, "zlib" },
	{ "size", SIZE, NULL },
	{ "compat", TEXT, NULL },
	{ "backing_file", TEXT, NULL },
	{ "backing_fmt", TEXT, NULL },
	{ "data_file", TEXT, NULL },
	{ "data_file_raw", SWITCH, NULL },
	{ "lazy_refcounts", SWITCH, "off" },
	{ "refcount_bits", NUMBER, "16" },
	{ "nocow", SWITCH, NULL },
	{ "extent_size_hint", SIZE, NULL },
};

/* A file that the image consists of. */
struct part {
	const char *path;
	uint64_t size;                  /* at first */
	int fd;
	struct create_made *made;       /* the caller's */
	struct node *node;              /* owned, as is fd */
};

/* What is to be made. */
struct recipe {
	struct create_args *a;
	struct tool *tool;
	struct err *err;
	struct image_name name;         /* owned */
	struct qcow2_create_opts o;
	struct create_hints hints;
	struct part image, data;
};

/* ---- values ---- */

/* Checked before. */
static uint64_t number_of(const struct option_item *o)
{
	return strtoull(o->value, NULL, 0);
}

static const char *text_of(struct recipe *r, const char *key)
{
	const struct option_item *o = option_list_take(&r->a->options, "", key);

	return o ? o->value : NULL;
}

static bool is_on(struct recipe *r, const char *key)
{
	bool on = false;

	option_bool(option_list_take(&r->a->options, "", key), "", &on, NULL);
	return on;
}

/* 0 where it is not given. */
static uint64_t size_of(struct recipe *r, const char *key)
{
	uint64_t size = 0;

	option_size(option_list_take(&r->a->options, "", key), "", &size, NULL);
	return size;
}

static int check_number(const struct option_item *o, struct err *err)
{
	char *end;

	errno = 0;
	strtoull(o->value, &end, 0);
	if (end == o->value || *end || errno)
		return err_set(err, EINVAL, "Parameter '%s' expects a number", o->key);
	return 0;
}

static int check_value(const struct option_item *o, struct err *err)
{
	uint64_t size;
	bool on;

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
		if (strcmp(known[i].key, o->key))
			continue;
		switch (known[i].kind) {
		case TEXT:
			return 0;
		case NUMBER:
			return check_number(o, err);
		case SIZE:
			return option_size(o, "", &size, err);
		case SWITCH:
			return option_bool(o, "", &on, err);
		}
	}
	return err_set(err, EINVAL, "Invalid parameter '%s'", o->key);
}

/* Options are as the list has them from now on. */
static int set_option(struct recipe *r, const char *key, const char *value)
{
	int rc = value ? option_list_set(&r->a->options, key, value, OPTION_TEXT) : 0;

	return rc ? err_set_errno(r->err, -rc, "options") : 0;
}

static int set_size(struct recipe *r, uint64_t size)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, size);
	return set_option(r, "size", text);
}

/* ---- the backing file ---- */

struct backing_call {
	struct recipe *r;
	const struct image_name *name;
	const char *format;
	char detected[32];
	uint64_t size;
};

static int look_at_backing_wait(void *arg)
{
	struct backing_call *c = arg;
	struct graph_opts go = {
		.path = c->name->path,
		.format = c->format ? c->format : c->name->format,
		.read_only = true,
		.cache_bytes = QCOW2_CACHE_BUDGET_DEFAULT,
		.image = c->name,
		.any_file = true,
		.share_raw = true,
		.qemu_words = true,
	};
	struct graph g = { 0 };
	int rc = graph_open_wait(&go, c->r->tool->loop, &g, c->r->err);

	if (rc)
		return rc;
	c->size = atomic_load(&g.top->size);
	snprintf(c->detected, sizeof(c->detected), "%s", g.top->ops->name);
	return graph_close_wait(&g, c->r->err);
}

/* A relative name is relative to the folder of the image. */
static int name_backing(const struct recipe *r, const char *backing, struct image_name *ret)
{
	char *path;
	int rc;

	if (image_name_protocol_len(backing) && strncmp(backing, "file:", 5))
		return image_name_parse(backing, ret, r->err);
	rc = graph_resolve_name("backing file", r->a->filename, backing, &path, r->err);
	if (rc)
		return rc;
	*ret = (struct image_name) { .path = path };
	return 0;
}

static int cannot_open_backing(struct err *err, int rc)
{
	struct err cause = *err;

	return err_set(err, -rc, "%.900s\nCould not open backing image.", cause.text);
}

static int open_backing(struct recipe *r, const char *backing, const char *format)
{
	struct backing_call c = { .r = r, .format = format };
	struct image_name name = { 0 };
	int rc = format ? image_name_check_format(format, r->err) : 0;

	if (!rc)
		rc = name_backing(r, backing, &name);
	c.name = &name;
	if (!rc)
		rc = tool_run(r->tool, look_at_backing_wait, &c);
	image_name_fini(&name);
	if (rc)
		return cannot_open_backing(r->err, rc);
	if (!format)
		return err_set(r->err, EINVAL, "Backing file specified without backing format\n"
			       "Detected format of %s.", c.detected);
	return text_of(r, "size") ? 0 : set_size(r, c.size);
}

static int check_backing(struct recipe *r)
{
	const char *backing = text_of(r, "backing_file"), *format = text_of(r, "backing_fmt");

	if (!backing)
		return 0;
	if (!strcmp(backing, r->a->filename))
		return err_set(r->err, EINVAL, "Error: Trying to create an image with the same "
			       "filename as the backing file");
	if (!backing[0])
		return err_set(r->err, EINVAL, "Expected backing file name, got empty string");
	if (!r->a->is_backing_unsafe)
		return open_backing(r, backing, format);
	if (!format)
		return err_set(r->err, EINVAL, "Backing file specified without backing format");
	return 0;
}

/* ---- what is asked for ---- */

static void show_value(const struct known *k, const struct option_item *o)
{
	uint64_t size = 0;

	printf(" %s=", k->key);
	switch (k->kind) {
	case NUMBER:
		printf("%" PRId64, (int64_t)number_of(o));
		break;
	case SIZE:
		option_size(o, "", &size, NULL);
		printf("%" PRId64, (int64_t)size);
		break;
	case SWITCH:
		printf("%s", o->value);
		break;
	case TEXT:
		for (const char *s = o->value; *s; s++)
			printf(*s == ',' ? ",," : "%c", *s);
		break;
	}
}

static void announce(struct recipe *r)
{
	printf("Formatting '%s', fmt=%s", r->a->filename, r->a->format);
	for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
		const struct option_item *o = option_list_take(&r->a->options, "", known[i].key);

		if (o)
			show_value(&known[i], o);
		else if (known[i].otherwise)
			printf(" %s=%s", known[i].key, known[i].otherwise);
	}
	putchar('\n');
}

int create_qcow2_check_options(const struct create_args *a, struct err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < a->options.n && !rc; i++)
		rc = check_value(&a->options.items[i], err);
	return rc;
}

/* All that can be said before anything is made. */
static int prepare(struct recipe *r)
{
	struct create_args *a = r->a;
	int rc = 0;

	if (a->filename[0])
		rc = create_parse_name(a->filename, &r->name, r->err);
	if (!rc)
		rc = create_qcow2_check_options(a, r->err);
	if (!rc && a->has_size && text_of(r, "size"))
		return err_set(r->err, EINVAL, "The image size must be specified only once");
	if (!rc && a->has_size)
		rc = set_size(r, a->size);
	if (!rc)
		rc = set_option(r, "backing_file", a->backing);
	if (!rc)
		rc = set_option(r, "backing_fmt", a->backing_format);
	if (!rc && !a->is_backing_given)
		rc = check_backing(r);
	if (!rc && !text_of(r, "size"))
		return err_set(r->err, EINVAL, "Image creation needs a size parameter");
	return rc;
}

/* ---- what words mean ---- */

static int bad_word(const char *key, const char *value, struct err *err)
{
	return err_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", key, value);
}

static int read_version(const char *compat, unsigned *ret, struct err *err)
{
	if (!compat || !strcmp(compat, "1.1") || !strcmp(compat, "v3"))
		*ret = 3;
	else if (!strcmp(compat, "0.10") || !strcmp(compat, "v2"))
		*ret = 2;
	else
		return bad_word("version", compat, err);
	return 0;
}

static int read_preallocation(const char *mode, enum qcow2_preallocation *ret, struct err *err)
{
	static const char *const modes[] = {
		[QCOW2_PREALLOC_OFF] = "off",
		[QCOW2_PREALLOC_METADATA] = "metadata",
		[QCOW2_PREALLOC_FALLOC] = "falloc",
		[QCOW2_PREALLOC_FULL] = "full",
	};

	for (unsigned i = 0; mode && i < ARRAY_SIZE(modes); i++) {
		if (!strcmp(mode, modes[i])) {
			*ret = (enum qcow2_preallocation)i;
			return 0;
		}
	}
	return mode ? bad_word("preallocation", mode, err) : 0;
}

static int read_compression(const char *type, unsigned *ret, struct err *err)
{
	if (!type || !strcmp(type, "zlib"))
		*ret = QCOW2_COMPRESSION_DEFLATE;
	else if (!strcmp(type, "zstd"))
		*ret = QCOW2_COMPRESSION_ZSTD;
	else
		return bad_word("compression-type", type, err);
	return 0;
}

static int refuse_encryption(struct recipe *r)
{
	bool is_asked = is_on(r, "encryption");

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		is_asked |= !strncmp(known[i].key, "encrypt.", 8) && text_of(r, known[i].key);
	return is_asked ? err_set(r->err, ENOTSUP, "Encrypted images are not supported") : 0;
}

static int read_options(struct recipe *r)
{
	struct qcow2_create_opts *o = &r->o;
	const struct option_item *bits = option_list_take(&r->a->options, "", "refcount_bits");
	int rc = read_version(text_of(r, "compat"), &o->version, r->err);

	o->is_unfinished = r->a->is_unfinished;
	o->is_stopped = r->a->is_stopped;
	o->size = size_of(r, "size");
	o->backing_name = text_of(r, "backing_file");
	o->backing_format = text_of(r, "backing_fmt");
	if (!rc && o->backing_format &&
	    image_name_check_format(o->backing_format, NULL) == -EINVAL)
		rc = bad_word("backing-fmt", o->backing_format, r->err);
	if (!rc)
		rc = refuse_encryption(r);
	if (!rc)
		rc = read_preallocation(text_of(r, "preallocation"), &o->preallocation, r->err);
	if (!rc)
		rc = read_compression(text_of(r, "compression_type"), &o->compression, r->err);
	if (rc)
		return rc;
	/* A size or width of 0 is wrong, but for create.h it would be none; so is 1. */
	o->cluster_size = size_of(r, "cluster_size");
	if (text_of(r, "cluster_size") && !o->cluster_size)
		o->cluster_size = 1;
	if (bits)
		o->refcount_bits = (unsigned)MIN(number_of(bits) - 1, (uint64_t)UINT32_MAX - 1) + 1;
	o->data_file_name = text_of(r, "data_file");
	o->data_file_raw = is_on(r, "data_file_raw");
	o->lazy_refcounts = is_on(r, "lazy_refcounts");
	o->extended_l2 = is_on(r, "extended_l2");
	return qcow2_create_check(o, r->err);
}

/* ---- the files ---- */

struct part_call {                      /* arguments for a worker */
	const struct recipe *r;
	struct part *part;
	int rc;
};

static void open_work(void *arg)
{
	struct part_call *c = arg;
	struct part *p = c->part;

	p->fd = create_open(p->path, p->made);
	if (p->fd < 0)
		c->rc = err_set_errno(c->r->err, -p->fd, "Could not create '%s'", p->path);
}

/* Empties the file. The first block is there where it has any, for the reason that
 * cmd_create.c's head gives. */
static void empty_work(void *arg)
{
	struct part_call *c = arg;
	struct part *p = c->part;

	if (p->made->state == CREATE_NONE)
		return;
	c->rc = create_empty(p->fd, p->made);
	if (c->rc) {
		err_set_errno(c->r->err, -c->rc, "Could not create '%s'", p->path);
		return;
	}
	create_give_hints(p->fd, &c->r->hints);
	if (ftruncate(p->fd, (off_t)p->size) < 0)
		c->rc = err_set_errno(c->r->err, errno, "Could not resize file");
	else
		c->rc = create_write_zeros(p->fd, MIN(p->size, (uint64_t)FIRST_BLOCK), NULL);
}

/* The file of a conversion that was there before keeps its name, which may be somebody's link. */
static void remove_work(void *arg)
{
	const struct part_call *c = arg;
	const struct part *p = c->part;
	bool keeps_name = c->r->a->is_unfinished && p->made->state != CREATE_NEW;

	if (!create_is_ours(p->made, p->path))
		return;
	if (keeps_name ? truncate(p->path, 0) : unlink(p->path))
		tool_warn("'%s' holds a part of the image only: %s", p->path, strerror(errno));
}

/* What the metadata of an image takes at most where none is preallocated: its L1 table, and what
 * counts that. */
static uint64_t metadata_bytes(const struct recipe *r)
{
	uint64_t cluster = r->o.cluster_size ? r->o.cluster_size : 64 * KiB;
	uint64_t coverage = cluster * (cluster / (r->o.extended_l2 ? 16 : 8));

	if (r->o.preallocation != QCOW2_PREALLOC_OFF)
		return UINT64_MAX;
	return 16 * cluster + 2 * 8 * div_round_up(r->o.size, coverage);
}

static int open_part_wait(struct recipe *r, struct part *p)
{
	struct part_call c = { .r = r, .part = p };
	struct file_opts fo = { .path = p->path, .writable = true, .qemu_words = true };
	int rc;

	if (p == &r->image && r->name.nbd)
		return create_open_export_wait(&r->name, r->tool->loop, &p->node, r->err);
	loop_work_wait(r->tool->loop, open_work, &c);
	if (c.rc)
		return c.rc;
	fo.fd = p->fd;
	rc = file_open_wait(&fo, r->tool->loop, &p->node, r->err);
	if (rc)
		close(p->fd);
	return rc;
}

static int empty_export_wait(struct recipe *r, struct part *p)
{
	uint64_t size = r->o.preallocation != QCOW2_PREALLOC_OFF ? r->o.size : 0;
	int rc = create_zero_export_wait(p->node, size, metadata_bytes(r), r->err);

	if (size <= atomic_load(&p->node->size))
		return rc;
	return err_wrap(r->err, rc, "Could not resize image: Failed to resize underlying file");
}

static int empty_part_wait(struct recipe *r, struct part *p)
{
	struct part_call c = { .r = r, .part = p };
	int rc;

	if (p == &r->image && r->name.nbd)
		return empty_export_wait(r, p);
	loop_work_wait(r->tool->loop, empty_work, &c);
	/* In any case, lest the node takes what was cut for lost. */
	rc = p->node->ops->resize_wait(p->node, c.rc ? NULL : r->err);
	return c.rc ? c.rc : rc;
}

/* Closes it; where @rc is not 0, it goes away. */
static int close_part_wait(struct recipe *r, struct part *p, int rc)
{
	struct part_call c = { .r = r, .part = p };

	if (!rc && p->node) {
		rc = chan_flush_wait(p->node->home_chan);
		if (rc)
			err_set_errno(r->err, -rc, "Could not write '%s'", p->path);
	}
	if (rc)
		loop_work_wait(r->tool->loop, remove_work, &c);
	node_put_wait(p->node);
	return rc;
}

/* In a fiber. */
static int make_wait(void *arg)
{
	struct recipe *r = arg;
	const char *data = text_of(r, "data_file");
	int rc;

	r->image.path = r->name.path ? r->name.path : "";
	r->data.path = data;
	r->data.size = align_up(size_of(r, "size"), SECTOR);
	rc = open_part_wait(r, &r->image);
	if (!rc && data)
		rc = open_part_wait(r, &r->data);
	if (!rc)
		rc = read_options(r);
	if (!rc)
		rc = empty_part_wait(r, &r->image);
	if (!rc && data)
		rc = empty_part_wait(r, &r->data);
	if (!rc)
		rc = qcow2_create_wait(r->image.node, r->data.node, &r->o, r->err);
	if (data)
		rc = close_part_wait(r, &r->data, rc);
	return close_part_wait(r, &r->image, rc);
}

static int create(struct recipe *r)
{
	int rc = prepare(r);

	if (!rc && !r->a->is_quiet)
		announce(r);
	r->hints.is_nocow = is_on(r, "nocow");
	r->hints.has_extent_hint = text_of(r, "extent_size_hint");
	r->hints.extent_hint = size_of(r, "extent_size_hint");
	return rc ? rc : tool_run(r->tool, make_wait, r);
}

int create_qcow2(struct tool *t, struct create_args *a, struct err *err)
{
	struct recipe r = {
		.a = a, .tool = t, .err = err,
		.image.made = &a->made, .data.made = &a->made_data,
	};
	int rc = create(&r);

	image_name_fini(&r.name);
	return rc;
}

void create_qcow2_help(bool has_filename)
{
	printf("Supported %soptions:\n"
	       "  backing_file=<str>     - the backing file\n"
	       "  backing_fmt=<str>      - its format\n"
	       "  cluster_size=<size>    - 512 to 2M; 64k by default\n"
	       "  compat=<str>           - the version: 1.1 (v3) or 0.10 (v2)\n"
	       "  compression_type=<str> - of clusters that are compressed: zlib or zstd\n"
	       "  data_file=<str>        - a file of its own for the data\n"
	       "  data_file_raw=<bool (on/off)> - the data file is a raw image at all times\n"
	       "  extended_l2=<bool (on/off)> - clusters are allocated in 32 parts\n",
	       has_filename ? "" : "qcow2 ");
	if (has_filename)
		printf("  extent_size_hint=<size> - the extent size hint on XFS, 0 for none\n");
	printf("  lazy_refcounts=<bool (on/off)> - refcounts may be behind the image\n");
	if (has_filename)
		printf("  nocow=<bool (on/off)>  - no copy on write on btrfs\n");
	printf("  preallocation=<str>    - off, metadata, falloc or full\n"
	       "  refcount_bits=<num>    - the width of a refcount: 1 to 64; 16 by default\n"
	       "  size=<size>            - the size of the disk\n");
	if (!has_filename)
		printf("\nThe file may support further options; give its name to see them.\n");
}
