/* SPDX-License-Identifier: MIT */
/* cmd/cmd_info.c - `byre info`: what an image is.
 *
 * A chain (--backing-chain) is read image by image, as qemu-img does, so that what one of them
 * names is shown even where the whole could not be opened; with --untrusted it is opened
 * as a whole, so that it stays within the folder of the first. Output comes when all is known. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"
#include "cmd/info_print.h"
#include "cmd/tool.h"
#include "ctl/image_name.h"
#include "fmt/qcow2/qcow2.h"

enum { OPT_BACKING_CHAIN = OPT_OWN };

static const struct opt info_opts[] = {
	TOOL_OPT_FORMAT,
	TOOL_OPT_IMAGE_OPTS,
	{ 'b', "backing-chain", NULL, "show the backing files, too", OPT_BACKING_CHAIN },
	TOOL_OPT_FORCE_SHARE,
	TOOL_OPT_OUTPUT,
	TOOL_OPT_OBJECT,
	TOOL_OPT_UNTRUSTED,
	TOOL_OPT_HELP,
};

static const struct tool_grammar info_tool = {
	.command = "info",
	.usage = "[OPTION]... FILENAME",
	.summary = "Shows what an image is.",
	.opts = info_opts,
	.nopts = ARRAY_SIZE(info_opts),
};

struct args {
	struct img_opts img;
	const char *filename;
	bool is_json;
	bool is_chain;
};

/* What was found out of one image; facts point into it. All strings owned. */
struct found {
	struct image_facts facts;
	struct qcow2_info qcow2;
	char *name, *format, *file_name, *backing, *backing_path, *backing_format, *data_file;
};

struct chain {
	struct found *found;            /* owned */
	unsigned n;
};

/* ---- finding out ---- */

static int copy_text(char **to, const char *text)
{
	if (!text)
		return 0;
	*to = strdup(text);
	return *to ? 0 : -ENOMEM;
}

static void found_fini(struct found *f)
{
	qcow2_info_fini(&f->qcow2);
	free(f->name);
	free(f->format);
	free(f->file_name);
	free(f->backing);
	free(f->backing_path);
	free(f->backing_format);
	free(f->data_file);
}

/* What the node does not know of its file: XFS's hint, and that a device takes no room. */
static void look_at_file(const char *path, struct file_facts *f)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct fsxattr x;
	struct stat st;

	if (fd < 0)
		return;
	if (!fstat(fd, &st) && !S_ISREG(st.st_mode)) {
		f->is_device = true;
		f->allocated = (uint64_t)st.st_blocks * 512;
	} else if (!ioctl(fd, FS_IOC_FSGETXATTR, &x) && (x.fsx_xflags & FS_XFLAG_EXTSIZE)) {
		f->extent_hint = x.fsx_extsize;
	}
	close(fd);
}

static int look_at_qcow2_wait(struct node *n, struct found *f, struct err *err)
{
	const char *backing = qcow2_backing_name(n);
	int rc = qcow2_info_wait(n, &f->qcow2, err);

	if (rc)
		return rc;
	f->facts.qcow2 = &f->qcow2;
	if (copy_text(&f->data_file, qcow2_data_file_name(n)))
		return -ENOMEM;
	if (!backing)
		return 0;
	if (copy_text(&f->backing, backing) ||
	    copy_text(&f->backing_format, qcow2_backing_format(n)))
		return -ENOMEM;
	if (image_name_protocol_len(backing))
		return copy_text(&f->backing_path, backing);
	return graph_resolve_name("backing file", n->name, backing, &f->backing_path, err);
}

/* Fills @f with what the image @n is. In a fiber. */
static int look_wait(struct node *n, struct found *f, struct err *err)
{
	struct node *file = n->child[CHILD_FILE] ? n->child[CHILD_FILE] : n;
	struct image_facts *facts = &f->facts;
	uint64_t allocated = 0;
	int rc = file->ops->allocated_wait ? file->ops->allocated_wait(file, &allocated) : 0;

	if (rc)
		return err_set_errno(err, -rc, "'%s'", file->name);
	if (copy_text(&f->name, n->name) || copy_text(&f->format, n->ops->name) ||
	    copy_text(&f->file_name, file->name))
		return err_set_errno(err, ENOMEM, "'%s'", file->name);
	facts->file.size = align_up(atomic_load(&file->size), 512);
	facts->file.allocated = allocated;
	look_at_file(file->name, &facts->file);
	facts->size = n == file ? facts->file.size : atomic_load(&n->size);
	facts->allocated = facts->file.allocated;
	if (!strcmp(n->ops->name, "qcow2"))
		rc = look_at_qcow2_wait(n, f, err);
	if (rc == -ENOMEM)
		err_set_errno(err, ENOMEM, "'%s'", file->name);
	facts->name = f->name;
	facts->format = f->format;
	facts->file.name = f->file_name;
	facts->backing = f->backing;
	facts->backing_path = f->backing_path;
	facts->backing_format = f->backing_format;
	facts->data_file = f->data_file;
	return rc;
}

/* ---- the chain ---- */

static struct found *add(struct chain *c)
{
	struct found *found;

	if (!is_pow2(c->n) && c->n)
		return &c->found[c->n++];
	found = realloc(c->found, 2 * MAX(c->n, 1u) * sizeof(*found));
	if (!found)
		return NULL;
	/* The facts point to what has moved. */
	for (unsigned i = 0; i < c->n; i++)
		if (found[i].facts.qcow2)
			found[i].facts.qcow2 = &found[i].qcow2;
	c->found = found;
	return &c->found[c->n++];
}

struct look_call {
	struct chain *chain;
	struct node *top;
	bool with_backing;              /* all nodes of the chain, not the top alone */
	struct err *err;
};

static int look_all_wait(void *arg)
{
	struct look_call *c = arg;
	int rc = 0;

	for (struct node *n = c->top; n && !rc; n = n->child[CHILD_BACKING]) {
		struct found *f = add(c->chain);

		if (!f)
			return err_set_errno(c->err, ENOMEM, "'%s'", n->name);
		*f = (struct found) { 0 };
		rc = look_wait(n, f, c->err);
		if (!c->with_backing)
			break;
	}
	return rc;
}

static bool is_loop(const struct chain *c, const char *name)
{
	for (unsigned i = 0; i < c->n; i++)
		if (!strcmp(c->found[i].name, name))
			return true;
	return false;
}

/* Opens @name and puts what it is at the end of @c. */
static int look_at(struct tool *t, const char *name, const struct img_opts *opts, bool with_backing,
		   struct chain *c)
{
	struct img img = { 0 };
	struct err err = { 0 };
	struct look_call call = { .chain = c, .with_backing = with_backing, .err = &err };
	int rc = img_open(t, name, opts, &img);

	if (rc)
		return rc;
	call.top = img.graph.top;
	rc = tool_run(t, look_all_wait, &call);
	if (rc) {
		err_wrap(&err, rc, "Could not open '%s'", name);
		tool_fail(&err);
	}
	img_close(&img);
	return rc;
}

static int collect(struct tool *t, const struct args *a, struct chain *c)
{
	struct img_opts opts = a->img;
	const char *name = a->filename;
	int rc;

	opts.metadata_only = true;
	if (a->is_chain && opts.untrusted)
		return look_at(t, name, &opts, true, c);
	opts.no_backing = true;
	rc = look_at(t, name, &opts, false, c);
	while (!rc && a->is_chain && c->found[c->n - 1].backing) {
		struct found *last = &c->found[c->n - 1];

		if (is_loop(c, last->backing_path)) {
			tool_error("Backing file '%s' creates an infinite loop.",
				   last->backing_path);
			return -ELOOP;
		}
		if (c->n == GRAPH_LAYERS_MAX) {
			tool_error("The chain is longer than %d images", GRAPH_LAYERS_MAX);
			return -ELOOP;
		}
		opts.image_opts = false;
		opts.format = last->backing_format;
		rc = look_at(t, last->backing_path, &opts, false, c);
	}
	return rc;
}

static int print(const struct args *a, const struct chain *c)
{
	struct image_facts *facts = calloc(c->n, sizeof(*facts));

	if (!facts)
		return tool_error("%s", strerror(ENOMEM));
	for (unsigned i = 0; i < c->n; i++) {
		facts[i] = c->found[i].facts;
		if (a->is_json)
			continue;
		if (i)
			putchar('\n');
		info_print_text(stdout, &facts[i]);
	}
	if (a->is_json)
		info_print_json(stdout, facts, c->n, a->is_chain);
	free(facts);
	return EXIT_OK;
}

/* ---- the command ---- */

/* One option. 0, or -EINVAL with the message printed. */
static int take_option(void *args, int id, const char *value)
{
	struct args *a = args;

	switch (id) {
	case OPT_BACKING_CHAIN:
		a->is_chain = true;
		return 0;
	case OPT_OUTPUT:
		return tool_output(&info_tool, value, &a->is_json);
	}
	return img_take_option(&a->img, id, value);
}

int cmd_info(int argc, char **argv)
{
	struct args a = { 0 };
	struct chain c = { 0 };
	struct tool t;
	int rc = tool_opts_one(&info_tool, argc, argv, take_option, &a, &a.filename);

	if (rc >= 0)
		return rc;
	if (tool_start(&t, LOOP_AUTO))
		return EXIT_ERROR;
	rc = collect(&t, &a, &c) ? EXIT_ERROR : print(&a, &c);
	for (unsigned i = 0; i < c.n; i++)
		found_fini(&c.found[i]);
	free(c.found);
	tool_stop(&t);
	return rc;
}
