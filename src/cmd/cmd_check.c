/* SPDX-License-Identifier: MIT */
/* cmd/cmd_check.c - `byre check`: is an image what it says? Shall it be made so? */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"
#include "cmd/json_out.h"
#include "cmd/tool.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/repair.h"

/* Exit codes, as qemu-img has them. */
enum { EXIT_CORRUPT = 2, EXIT_LEAKS = 3, EXIT_NO_CHECKS = 63 };

enum { OPT_REPAIR = OPT_OWN };

static const struct opt opts[] = {
	TOOL_OPT_HELP,
	TOOL_OPT_QUIET,
	TOOL_OPT_FORMAT,
	TOOL_OPT_IMAGE_OPTS,
	TOOL_OPT_CACHE('T'),
	TOOL_OPT_FORCE_SHARE,
	TOOL_OPT_OUTPUT,
	{ 'r', "repair", "WHAT", "leaks (clusters that nothing uses) or all: mend it", OPT_REPAIR },
	TOOL_OPT_OBJECT,
	TOOL_OPT_UNTRUSTED,
};

static const struct tool_grammar grammar = {
	.command = "check",
	.usage = "[OPTION]... FILENAME",
	.summary = "Looks for damage in an image, and mends it on request. Exit status: 0 none; "
		   "1 the\ncheck was not completed; 2 damage; 3 leaked clusters only; 63 the "
		   "format has no checks.",
	.opts = opts,
	.nopts = ARRAY_SIZE(opts),
};

struct check_args {
	const char *name;
	struct img_opts image;
	enum qcow2_repair repair;
	bool is_json, is_quiet;
};

/* ---- what was found ---- */

static void say(void *arg, bool is_named, char *text)
{
	if (is_named) {
		tool_error("%s", text);
		return;
	}
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';       /* it goes to a terminal */
	fputs_unlocked(text, stderr);
	putc_unlocked('\n', stderr);
}

static void json_nonzero(struct json_out *j, const char *key, uint64_t value)
{
	if (value)
		json_number(j, key, (int64_t)value);
}

static void print_json(const struct img *img, const struct qcow2_check *c)
{
	struct json_out j = { .out = stdout };

	json_object(&j, NULL);
	json_nonzero(&j, "image-end-offset", c->image_end);
	json_nonzero(&j, "compressed-clusters", c->compressed);
	json_nonzero(&j, "total-clusters", c->total_clusters);
	json_nonzero(&j, "corruptions", c->corruptions);
	json_nonzero(&j, "corruptions-fixed", c->corruptions_fixed);
	json_number(&j, "check-errors", (int64_t)c->check_errors);
	json_nonzero(&j, "leaks", c->leaks);
	json_nonzero(&j, "leaks-fixed", c->leaks_fixed);
	json_nonzero(&j, "allocated-clusters", c->allocated);
	json_string(&j, "filename", img->name);
	json_string(&j, "format", img_format(img));
	json_nonzero(&j, "fragmented-clusters", c->fragmented);
	json_end_object(&j);
}

static void print_mended(const struct qcow2_check *c)
{
	printf("The following inconsistencies were found and repaired:\n\n"
	       "    %llu leaked clusters\n"
	       "    %llu corruptions\n\n"
	       "Double checking the fixed image now...\n",
	       (unsigned long long)c->leaks_fixed, (unsigned long long)c->corruptions_fixed);
}

static void print_plain(const struct qcow2_check *c)
{
	if (!c->corruptions && !c->leaks && !c->check_errors)
		printf("No errors were found on the image.\n");
	if (c->corruptions)
		printf("\n%llu errors were found on the image.\n"
		       "Data may be corrupted, or further writes to the image may corrupt it.\n",
		       (unsigned long long)c->corruptions);
	if (c->leaks)
		printf("\n%llu leaked clusters were found on the image.\n"
		       "This means waste of disk space, but no harm to data.\n",
		       (unsigned long long)c->leaks);
	if (c->check_errors)
		printf("\n%llu internal errors have occurred during the check.\n",
		       (unsigned long long)c->check_errors);
	if (c->total_clusters && c->allocated)
		printf("%llu/%llu = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed "
		       "clusters\n", (unsigned long long)c->allocated,
		       (unsigned long long)c->total_clusters,
		       (double)c->allocated * 100.0 / (double)c->total_clusters,
		       (double)c->fragmented * 100.0 / (double)c->allocated,
		       (double)c->compressed * 100.0 / (double)c->allocated);
	if (c->image_end)
		printf("Image end offset: %llu\n", (unsigned long long)c->image_end);
}

/* ---- the command ---- */

struct check_call {
	struct node *top;
	enum qcow2_repair repair;
	struct qcow2_check result;
	struct err err;
};

static int check_wait(void *arg)
{
	static const struct qcow2_check_say out = { .fn = say };
	struct check_call *c = arg;
	struct qcow2_repair_opts ro = { .what = c->repair };

	if (c->repair)
		return qcow2_repair_node_wait(c->top, &ro, &out, &c->result, &c->err);
	return qcow2_check_wait(c->top, &out, &c->result, &c->err);
}

/* What was mended is checked again. 0, or the first error. */
static int check_twice(struct img *img, const struct check_args *a, struct check_call *c)
{
	int rc = tool_run(img->tool, check_wait, c);
	struct qcow2_check first = c->result;

	if (rc || (!first.corruptions_fixed && !first.leaks_fixed))
		return rc;
	if (!a->is_quiet && !a->is_json)
		print_mended(&first);
	c->repair = QCOW2_REPAIR_NOTHING;
	rc = tool_run(img->tool, check_wait, c);
	c->result.corruptions_fixed = first.corruptions_fixed;
	c->result.leaks_fixed = first.leaks_fixed;
	return rc;
}

static void warn_of_raw(const char *name)
{
	fprintf(stderr, "WARNING: Image format was not specified for '%s' and probing guessed "
		"raw.\n         Automatically detecting the format is dangerous for raw images, "
		"write operations on block 0 will be restricted.\n"
		"         Specify the 'raw' format explicitly to remove the restrictions.\n", name);
}

static int check(struct img *img, const struct check_args *a)
{
	struct check_call c = { .top = img->graph.top, .repair = a->repair };
	static char buffer[1 << 16];
	int rc;

	if (a->repair && !strcmp(img_format(img), "raw") && !a->image.format &&
	    !a->image.image_opts)
		warn_of_raw(a->name);
	if (strcmp(img_format(img), "qcow2")) {
		tool_error("This image format does not support checks");
		return EXIT_NO_CHECKS;
	}
	/* A damaged image may have millions of findings. */
	fflush(stderr);
	setvbuf(stderr, buffer, _IOFBF, sizeof(buffer));
	rc = check_twice(img, a, &c);
	if (rc)
		tool_error("Check failed: %s", tool_is_qemu_img() ? strerror(-rc) : c.err.text);
	else if (c.result.check_errors)
		tool_error("Check failed");
	fflush(stderr);
	setvbuf(stderr, NULL, _IONBF, 0);
	if (rc)
		return EXIT_ERROR;
	if (!a->is_quiet && a->is_json)
		print_json(img, &c.result);
	else if (!a->is_quiet)
		print_plain(&c.result);
	return c.result.check_errors ? EXIT_ERROR : c.result.corruptions ? EXIT_CORRUPT :
	       c.result.leaks ? EXIT_LEAKS : EXIT_OK;
}

/* One option. 0, or -EINVAL with the message printed. */
static int take_option(void *args, int id, const char *value)
{
	struct check_args *a = args;

	switch (id) {
	case OPT_QUIET:
		a->is_quiet = true;
		return 0;
	case OPT_OUTPUT:
		return tool_output(&grammar, value, &a->is_json);
	case OPT_REPAIR:
		a->repair = !strcmp(value, "leaks") ? QCOW2_REPAIR_LEAKS :
			    !strcmp(value, "all") ? QCOW2_REPAIR_ALL : QCOW2_REPAIR_NOTHING;
		a->image.writable = a->repair;
		if (a->repair)
			return 0;
		tool_fail_usage(&grammar, "--repair (-r) expects 'leaks' or 'all' not '%s'",
				value);
		return -EINVAL;
	}
	return img_take_option(&a->image, id, value);
}

int cmd_check(int argc, char **argv)
{
	struct check_args a = { .image.for_check = true };
	struct tool t = { 0 };
	struct img img = { 0 };
	int rc = tool_opts_one(&grammar, argc, argv, take_option, &a, &a.name);

	if (rc >= 0)
		return rc;
	rc = EXIT_ERROR;
	if (!tool_start(&t, LOOP_AUTO) && !img_open(&t, a.name, &a.image, &img))
		rc = check(&img, &a);
	img_close(&img);
	tool_stop(&t);
	return rc;
}
