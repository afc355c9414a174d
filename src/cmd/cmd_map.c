/* SPDX-License-Identifier: MIT */
/* cmd/cmd_map.c - `byre map`: which parts of an image hold what, and where.
 *
 * Large images have millions of parts, so the lines are put together here, without printf(3). */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/tool.h"
#include "job/map.h"

enum { OPT_START = OPT_OWN, OPT_LENGTH };

static const struct opt opts[] = {
	TOOL_OPT_HELP,
	TOOL_OPT_FORMAT,
	TOOL_OPT_IMAGE_OPTS,
	{ 's', "start-offset", "BYTES", "begin there", OPT_START },
	{ 'l', "max-length", "BYTES", "go no further than that from the beginning", OPT_LENGTH },
	TOOL_OPT_OUTPUT,
	TOOL_OPT_FORCE_SHARE,
	TOOL_OPT_OBJECT,
	TOOL_OPT_UNTRUSTED,
};

static const struct tool_grammar grammar = {
	.command = "map",
	.usage = "[OPTION]... FILENAME",
	.summary = "Shows which parts of an image hold what, and where in which file.",
	.opts = opts,
	.nopts = ARRAY_SIZE(opts),
};

struct map_args {
	const char *name;
	struct img_opts image;
	bool is_json;
	uint64_t start, length;
};

/* ---- lines ---- */

struct lines {
	bool is_json;
	size_t used;
	char text[1 << 16];
};

enum { NO_PLACE = 1 };                  /* take(): a run that plain lines cannot tell of */

static void flush_lines(struct lines *l)
{
	fwrite(l->text, 1, l->used, stdout);
	l->used = 0;
}

static void put(struct lines *l, const char *text, size_t n)
{
	if (l->used + n > sizeof(l->text))
		flush_lines(l);
	if (n > sizeof(l->text)) {
		fwrite(text, 1, n, stdout);
		return;
	}
	memcpy(l->text + l->used, text, n);
	l->used += n;
}

#define PUT(l, literal) put(l, literal, sizeof(literal) - 1)

static void put_number(struct lines *l, uint64_t n)
{
	char digits[20];
	size_t at = sizeof(digits);

	do {
		digits[--at] = (char)('0' + n % 10);
		n /= 10;
	} while (n);
	put(l, digits + at, sizeof(digits) - at);
}

/* As "%#-16" PRIx64. */
static void put_hex(struct lines *l, uint64_t n)
{
	char text[24];
	size_t at = sizeof(text), len;
	bool is_zero = !n;

	do {
		text[--at] = "0123456789abcdef"[n % 16];
		n /= 16;
	} while (n);
	if (!is_zero) {
		text[--at] = 'x';
		text[--at] = '0';
	}
	len = sizeof(text) - at;
	put(l, text + at, len);
	put(l, "                ", len < 16 ? 16 - len : 0);
}

static void put_bool(struct lines *l, bool is_true)
{
	if (is_true)
		PUT(l, "true");
	else
		PUT(l, "false");
}

static void put_json(struct lines *l, uint64_t start, const struct map_run *run, bool is_last)
{
	PUT(l, "{ \"start\": ");
	put_number(l, start);
	PUT(l, ", \"length\": ");
	put_number(l, run->len);
	PUT(l, ", \"depth\": ");
	put_number(l, run->depth);
	PUT(l, ", \"present\": ");
	put_bool(l, run->flags & MAP_PRESENT);
	PUT(l, ", \"zero\": ");
	put_bool(l, run->flags & MAP_ZERO);
	PUT(l, ", \"data\": ");
	put_bool(l, run->flags & MAP_DATA);
	PUT(l, ", \"compressed\": ");
	put_bool(l, run->flags & MAP_COMPRESSED);
	if (run->flags & MAP_HOST) {
		PUT(l, ", \"offset\": ");
		put_number(l, run->host_off);
	}
	if (is_last)
		PUT(l, "}]\n");
	else
		PUT(l, "},\n");
}

static void put_plain(struct lines *l, uint64_t start, const struct map_run *run)
{
	put_hex(l, start);
	put_hex(l, run->len);
	put_hex(l, run->host_off);
	put(l, run->file->name, strlen(run->file->name));
	PUT(l, "\n");
}

static int take(void *arg, uint64_t start, const struct map_run *run, bool is_last)
{
	struct lines *l = arg;

	if (l->is_json) {
		put_json(l, start, run, is_last);
	} else if ((run->flags & (MAP_DATA | MAP_ZERO)) == MAP_DATA) {
		if (!(run->flags & MAP_HOST))
			return NO_PLACE;
		put_plain(l, start, run);
	}
	return 0;
}

/* ---- the command ---- */

struct walk {
	struct img *img;
	const struct map_args *args;
	struct lines *lines;
};

static int walk_wait(void *arg)
{
	struct walk *w = arg;
	uint64_t size = img_size(w->img), off = w->args->start;
	uint64_t end = MAX(off, off + MIN(w->args->length, off < size ? size - off : 0));

	return map_walk_wait(w->img->pc, off, end, take, w->lines);
}

static int print_map(struct img *img, const struct map_args *a)
{
	static struct lines lines;
	struct walk w = { img, a, &lines };
	int rc;

	lines = (struct lines){ .is_json = a->is_json };
	if (a->is_json)
		PUT(&lines, "[");
	else
		printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
	rc = tool_run(img->tool, walk_wait, &w);
	flush_lines(&lines);
	if (rc == NO_PLACE)
		return tool_error("File contains external, encrypted or compressed clusters.");
	if (rc)
		return tool_error("Could not read file metadata: %s",
				  strerror(rc == -EUCLEAN ? EIO : -rc));
	return EXIT_OK;
}

static int parse_offset(const char *what, const char *text, uint64_t *ret)
{
	int rc = tool_size(text, ret);

	if (rc == -ERANGE)
		tool_error("Invalid %s specified. Must be between 0 and %lld.", what,
			   (long long)INT64_MAX);
	else if (rc)
		tool_error("Invalid %s specified: '%s'.", what, text);
	return rc;
}

/* One option. 0, or -EINVAL with the message printed. */
static int take_option(void *args, int id, const char *value)
{
	struct map_args *a = args;

	switch (id) {
	case OPT_OUTPUT:
		return tool_output(&grammar, value, &a->is_json);
	case OPT_START:
		return parse_offset("start offset", value, &a->start);
	case OPT_LENGTH:
		return parse_offset("max length", value, &a->length);
	}
	return img_take_option(&a->image, id, value);
}

int cmd_map(int argc, char **argv)
{
	struct map_args a = { .length = UINT64_MAX };
	struct tool t = { 0 };
	struct img img = { 0 };
	int rc = tool_opts_one(&grammar, argc, argv, take_option, &a, &a.name);

	if (rc >= 0)
		return rc;
	rc = EXIT_ERROR;
	if (!tool_start(&t, LOOP_AUTO) && !img_open(&t, a.name, &a.image, &img))
		rc = print_map(&img, &a);
	img_close(&img);
	tool_stop(&t);
	return rc;
}
