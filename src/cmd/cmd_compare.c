/* SPDX-License-Identifier: MIT */
/* cmd/cmd_compare.c - `byre compare`: have two images the same content? */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/tool.h"
#include "job/compare.h"

enum { OPT_OTHER_FORMAT = OPT_OWN, OPT_STRICT };

/* As qemu-img's. */
enum {
	EXIT_SAME = 0, EXIT_DIFFERS = 1, EXIT_NOT_OPENED = 2, EXIT_NOT_MAPPED = 3,
	EXIT_NOT_READ = 4,
};

static const struct opt opts[] = {
	TOOL_OPT_HELP,
	{ 'f', "a-format", "FMT", "the first image's format; without it, it is found out",
	  OPT_FORMAT },
	{ 'F', "b-format", "FMT", "the second image's", OPT_OTHER_FORMAT },
	TOOL_OPT_IMAGE_OPTS,
	{ 's', "strict", NULL, "sizes and what is allocated must be the same, too", OPT_STRICT },
	TOOL_OPT_CACHE('T'),
	TOOL_OPT_FORCE_SHARE,
	TOOL_OPT_PROGRESS,
	TOOL_OPT_QUIET,
	TOOL_OPT_OBJECT,
	TOOL_OPT_UNTRUSTED,
};

static const struct tool_grammar grammar = {
	.command = "compare",
	.usage = "[OPTION]... FILENAME1 FILENAME2",
	.summary = "Tells whether two images have the same content.",
	.opts = opts,
	.nopts = ARRAY_SIZE(opts),
};

struct compare_args {
	const char *names[2];
	unsigned nnames;
	struct img_opts images[2];
	bool is_strict, is_quiet, is_progress;
};

struct comparison {
	const struct compare_args *args;
	struct img img[2];
	struct progress progress;
	struct compare_result result;
};

static void __attribute__((format(printf, 2, 3))) say(const struct comparison *c,
						      const char *fmt, ...)
{
	va_list ap;

	if (c->args->is_quiet)
		return;
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
}

static void on_longer(void *arg)
{
	say(arg, "Warning: Image size mismatch!\n");
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
	struct comparison *c = arg;

	progress_set(&c->progress, done, total);
}

static int run_wait(void *arg)
{
	struct comparison *c = arg;
	struct compare_opts o = {
		.pc = { c->img[0].pc, c->img[1].pc },
		.is_strict = c->args->is_strict,
		.on_longer = on_longer,
		.on_progress = on_progress,
		.arg = c,
	};

	return compare_run_wait(&o, &c->result);
}

static int tell(const struct comparison *c)
{
	const struct compare_result *r = &c->result;

	switch (r->verdict) {
	case COMPARE_SAME:
		say(c, "Images are identical.\n");
		return EXIT_SAME;
	case COMPARE_DIFFERS:
		say(c, "Content mismatch at offset %" PRIu64 "!\n", r->off);
		return EXIT_DIFFERS;
	case COMPARE_STATUS_DIFFERS:
		say(c, "Strict mode: Offset %" PRIu64 " block status mismatch!\n", r->off);
		return EXIT_DIFFERS;
	case COMPARE_MAP_FAILED:
		tool_error("Sector allocation test failed for %s", c->args->names[r->which]);
		return EXIT_NOT_MAPPED;
	case COMPARE_READ_FAILED:
		break;
	}
	tool_error("Error while reading offset %" PRIu64 " of %s: %s", r->off,
		   c->args->names[r->which], strerror(r->error == -EUCLEAN ? EIO : -r->error));
	return EXIT_NOT_READ;
}

static int compare(struct comparison *c)
{
	int rc;

	progress_start(&c->progress, c->args->is_progress && !c->args->is_quiet, 2);
	if (c->args->is_strict && img_size(&c->img[0]) != img_size(&c->img[1])) {
		say(c, "Strict mode: Image size mismatch!\n");
		return EXIT_DIFFERS;
	}
	rc = tool_run(c->img[0].tool, run_wait, c);
	if (!rc)
		return tell(c);
	tool_error("%s", strerror(-rc));
	return EXIT_NOT_READ;
}

/* One option. 0, or -EINVAL with the message printed. */
static int take_option(struct compare_args *a, int id, const char *value)
{
	switch (id) {
	case OPT_FORMAT:
		a->images[0].format = value;
		return 0;
	case OPT_OTHER_FORMAT:
		a->images[1].format = value;
		return 0;
	case OPT_IMAGE_OPTS:
		a->images[0].image_opts = a->images[1].image_opts = true;
		return 0;
	case OPT_CACHE:
		a->images[0].cache = a->images[1].cache = value;
		return 0;
	case OPT_FORCE_SHARE:
		a->images[0].force_share = a->images[1].force_share = true;
		return 0;
	case OPT_UNTRUSTED:
		a->images[0].untrusted = a->images[1].untrusted = true;
		return 0;
	case OPT_STRICT:
		a->is_strict = true;
		return 0;
	case OPT_QUIET:
		a->is_quiet = true;
		return 0;
	case OPT_PROGRESS:
		a->is_progress = true;
		return 0;
	case OPT_OBJECT:
		return tool_object(value);
	}
	return -EINVAL;
}

int cmd_compare(int argc, char **argv)
{
	struct compare_args a = { .nnames = 0 };
	struct comparison c = { .args = &a };
	struct tool t = { 0 };
	int id, rc = EXIT_NOT_OPENED;
	const char *value;

	tool_opts_start(&grammar, argc, argv);
	while ((id = tool_opts_next(&grammar, &value)) != OPTS_END) {
		if (id == OPT_HELP)
			return tool_help(&grammar);
		if (id == OPTS_OPERAND) {
			a.names[a.nnames % 2] = value;
			a.nnames++;
		} else if (id == OPTS_ERROR) {
			return EXIT_ERROR;
		} else if (take_option(&a, id, value)) {
			return EXIT_NOT_OPENED;
		}
	}
	if (a.nnames != 2)
		return tool_fail_usage(&grammar, "Expecting two image file names");
	if (!tool_start(&t, LOOP_AUTO) && !img_open(&t, a.names[0], &a.images[0], &c.img[0]) &&
	    !img_open(&t, a.names[1], &a.images[1], &c.img[1]))
		rc = compare(&c);
	img_close(&c.img[0]);
	img_close(&c.img[1]);
	if (a.is_progress && !a.is_quiet)
		putchar('\n');
	tool_stop(&t);
	return rc;
}
