/* SPDX-License-Identifier: MIT */
/* cmd/cmd_convert.c - `byre convert`: the command line. What is wrong is told in qemu-img's words
 * and in its order. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/convert.h"
#include "job/copy.h"

enum {
	OPT_TARGET_FORMAT = OPT_OWN, OPT_OPTIONS, OPT_TARGET_CACHE, OPT_TARGET_IMAGE_OPTS,
	OPT_SNAPSHOT, OPT_BACKING, OPT_BACKING_FORMAT, OPT_COMPRESS, OPT_NO_CREATE,
	OPT_TARGET_IS_ZERO, OPT_SPARSE_SIZE, OPT_BITMAPS, OPT_SKIP_BROKEN_BITMAPS, OPT_RATE,
	OPT_PARALLEL, OPT_OFFLOAD, OPT_SALVAGE, OPT_OUT_OF_ORDER, OPT_KEEP_CACHE,
};

enum { SECTOR = 512, SPARSE_DEFAULT = 4096, PARALLEL_MAX = 16 };

static const struct opt opts[] = {
	TOOL_OPT_HELP,
	TOOL_OPT_QUIET,
	TOOL_OPT_PROGRESS,
	{ 'f', "source-format", "FMT", "the sources' format; without it, it is found out",
	  OPT_FORMAT },
	{ 0, "image-opts", NULL, "the sources are driver=FMT,file.filename=...", OPT_IMAGE_OPTS },
	{ 0, "source-image-opts", NULL, "the same", OPT_IMAGE_OPTS },
	{ 'l', "source-snapshot", "WHICH", "copy this internal snapshot of the source: its id "
	  "or\nname, or snapshot.id=ID,snapshot.name=NAME", OPT_SNAPSHOT },
	{ 'T', "source-cache", "MODE", "how the sources are read; writeback by default",
	  OPT_CACHE },
	{ 'O', "target-format", "FMT", "the target's format: raw (the default) or qcow2",
	  OPT_TARGET_FORMAT },
	{ 0, "target-image-opts", NULL, "the target is driver=FMT,file.filename=... (with -n)",
	  OPT_TARGET_IMAGE_OPTS },
	{ 'o', "target-options", "OPTIONS", "of the target: key=value,...; 'help' shows them",
	  OPT_OPTIONS },
	{ 'c', "compress", NULL, "store the data compressed (qcow2)", OPT_COMPRESS },
	{ 't', "target-cache", "MODE", "how the target is written; without it, past the page\n"
	  "cache where that can be", OPT_TARGET_CACHE },
	{ 0, "keep-cache", NULL, "leave what was read and written in the page cache",
	  OPT_KEEP_CACHE },
	{ 'B', "backing", "FILENAME", "the target's backing file (qcow2): what the source has in\n"
	  "its own backing file is not copied", OPT_BACKING },
	{ 'F', "backing-format", "FMT", "its format", OPT_BACKING_FORMAT },
	{ 'n', "no-create", NULL, "write into a target that is there", OPT_NO_CREATE },
	{ 0, "target-is-zero", NULL, "the target reads as zeros (with -n)", OPT_TARGET_IS_ZERO },
	{ 'S', "sparse-size", "SIZE", "stretches of zeros of this size are not written; 4k by\n"
	  "default, 0: all are", OPT_SPARSE_SIZE },
	{ 0, "bitmaps", NULL, "copy persistent bitmaps, too", OPT_BITMAPS },
	{ 0, "skip-broken-bitmaps", NULL, "leave those out that are inconsistent",
	  OPT_SKIP_BROKEN_BITMAPS },
	TOOL_OPT_FORCE_SHARE,
	{ 'r', "rate", "RATE", "write at most so many bytes a second", OPT_RATE },
	{ 'm', "parallel", "NUMBER", "so many requests under way, 1 to 16; without it, as many "
	  "as\nthe machine can do with", OPT_PARALLEL },
	{ 'C', "copy-range-offloading", NULL, "let the file system copy, and share, what it can",
	  OPT_OFFLOAD },
	{ 0, "salvage", NULL, "go on where the source cannot be read; zeros are there then",
	  OPT_SALVAGE },
	{ 'W', "oob-writes", NULL, "write in any order", OPT_OUT_OF_ORDER },
	TOOL_OPT_OBJECT,
	TOOL_OPT_UNTRUSTED,
};

static const struct tool_grammar grammar = {
	.command = "convert",
	.usage = "[OPTION]... FILENAME... TARGET",
	.summary = "Copies a disk image, or several one behind the other, into another one.",
	.opts = opts,
	.nopts = ARRAY_SIZE(opts),
};

/* ---- options ---- */

/* A number with @what to be called by. 0, or -errno with the message printed. */
static int take_number(const char *what, const char *text, uint64_t max, uint64_t *ret)
{
	int rc = tool_size(text, ret);

	if (rc == -ERANGE || (!rc && *ret > max))
		tool_error("Invalid %s specified. Must be between 0 and %" PRIu64 ".", what, max);
	else if (rc)
		tool_error("Invalid %s specified: '%s'.", what, text);
	return rc ? rc : *ret > max ? -ERANGE : 0;
}

static int take_sparse(struct convert_args *a, const char *text)
{
	uint64_t size;
	int rc = take_number("buffer size for sparse output", text, INT64_MAX, &size);

	if (rc)
		return rc;
	if (size % SECTOR || size > COPY_SPARSE_MAX) {
		tool_error("Invalid buffer size for sparse output specified. Valid sizes are "
			   "multiples of %d up to %d. Select 0 to disable sparse detection (fully "
			   "allocates output).", SECTOR, COPY_SPARSE_MAX);
		return -EINVAL;
	}
	a->min_sparse = size;
	a->has_sparse = true;
	return 0;
}

static int take_parallel(struct convert_args *a, const char *text)
{
	static const char what[] = "number of coroutines";
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 0);
	if (end == text || *end)
		tool_error("Invalid %s specified: '%s'.", what, text);
	else if (errno || n < 1 || n > PARALLEL_MAX)
		tool_error("Invalid %s specified. Must be between 1 and %d.", what, PARALLEL_MAX);
	else
		a->depth = (unsigned)n;
	return a->depth && (long)a->depth == n ? 0 : -EINVAL;
}

/* Those that are words only. False: @id is none. */
static bool take_switch(struct convert_args *a, int id)
{
	switch (id) {
	case OPT_TARGET_IMAGE_OPTS:
		return a->target.image_opts = true;
	case OPT_COMPRESS:
		return a->is_compressed = true;
	case OPT_NO_CREATE:
		return a->is_there = true;
	case OPT_TARGET_IS_ZERO:
		return a->is_zero = true;
	case OPT_BITMAPS:
		return a->has_bitmaps = true;
	case OPT_SKIP_BROKEN_BITMAPS:
		return a->skips_broken_bitmaps = true;
	case OPT_OFFLOAD:
		return a->is_offloaded = true;
	case OPT_SALVAGE:
		return a->is_salvage = true;
	case OPT_OUT_OF_ORDER:
		return a->is_out_of_order = true;
	case OPT_KEEP_CACHE:
		return a->keeps_cache = true;
	case OPT_QUIET:
		return a->is_quiet = true;
	case OPT_PROGRESS:
		return a->is_progress = true;
	}
	return false;
}

/* One option. 0, or -errno with the message printed. */
static int take_option(struct convert_args *a, int id, const char *value)
{
	switch (id) {
	case OPT_TARGET_FORMAT:
		a->target.format = value;
		return 0;
	case OPT_OPTIONS:
		return tool_options_add(&a->options_text, value);
	case OPT_TARGET_CACHE:
		a->target.cache = value;
		return 0;
	case OPT_SNAPSHOT:
		return snapshot_arg_parse(value, &a->snapshot);
	case OPT_BACKING:
		a->create.backing = value;
		return 0;
	case OPT_BACKING_FORMAT:
		a->create.backing_format = value;
		return 0;
	case OPT_SPARSE_SIZE:
		return take_sparse(a, value);
	case OPT_RATE:
		return take_number("rate limit", value, INT64_MAX, &a->rate);
	case OPT_PARALLEL:
		return take_parallel(a, value);
	}
	return take_switch(a, id) ? 0 : img_take_option(&a->source, id, value);
}

/* ---- what does not go together ---- */

static int check_args(const struct convert_args *a)
{
	if (a->skips_broken_bitmaps && !a->has_bitmaps)
		return tool_error("Use of --skip-broken-bitmaps requires --bitmaps");
	if (a->is_compressed && a->is_offloaded)
		return tool_error("Cannot enable copy offloading when -c is used");
	if (a->has_sparse && a->is_offloaded)
		return tool_error("Cannot enable copy offloading when -S is used");
	if (a->is_salvage && a->is_offloaded)
		return tool_error("Cannot use copy offloading in salvaging mode");
	if (a->target.image_opts && !a->is_there)
		return tool_error("--target-image-opts requires use of -n flag");
	if (a->is_there && a->options_text)
		return tool_error("-o has no effect when skipping image creation");
	if (a->is_zero && !a->is_there)
		return tool_error("--target-is-zero requires use of -n flag");
	return EXIT_OK;
}

static int run(struct convert_args *a)
{
	struct create_args *c = &a->create;
	struct err err = { 0 };

	if (check_args(a))
		return EXIT_ERROR;
	if (!a->target.format && !a->target.image_opts)
		a->target.format = "raw";
	c->format = a->target.format;
	c->filename = a->nnames >= 2 ? a->names[a->nnames - 1] : NULL;
	if (a->options_text && create_asks_help(a->options_text)) {
		if (create_check_format(c->format, &err))
			return tool_fail(&err);
		create_print_help(c);
		return EXIT_OK;
	}
	if (a->nnames < 2)
		return tool_error("Must specify image file name");
	return convert(a);
}

static int parse(struct convert_args *a, int argc, char **argv)
{
	const char *value;
	int id;

	tool_opts_start(&grammar, argc, argv);
	while ((id = tool_opts_next(&grammar, &value)) != OPTS_END) {
		if (id == OPT_HELP)
			return tool_help(&grammar);
		if (id == OPTS_OPERAND)
			a->names[a->nnames++] = value;
		else if (id == OPTS_ERROR || take_option(a, id, value))
			return EXIT_ERROR;
	}
	return -1;
}

int cmd_convert(int argc, char **argv)
{
	struct convert_args a = { .min_sparse = SPARSE_DEFAULT };
	int rc;

	a.names = calloc((size_t)argc, sizeof(*a.names));
	if (!a.names)
		return tool_error("%s", strerror(ENOMEM));
	rc = parse(&a, argc, argv);
	if (rc < 0)
		rc = run(&a);
	option_list_fini(&a.create.options);
	snapshot_arg_fini(&a.snapshot);
	free(a.options_text);
	free(a.names);
	return rc;
}
