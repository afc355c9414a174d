/* SPDX-License-Identifier: MIT */
#include "cmd/tool.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/size.h"
#include "loop/fiber.h"
#include "loop/work.h"

static const char *program_path = "byre";       /* argv[0], for getopt's messages */
static const char *program_name = "byre";

/* ---- names and messages ---- */

void tool_set_program(const char *argv0)
{
	const char *slash = strrchr(argv0, '/');

	program_path = argv0;
	program_name = strcmp(slash ? slash + 1 : argv0, "qemu-img") ? "byre" : "qemu-img";
}

bool tool_is_qemu_img(void)
{
	return !strcmp(program_name, "qemu-img");
}

/* Names in a message may come from an image that somebody else made: what a terminal might obey
 * does not reach it. Newlines are ours. */
static void print_message(const char *prefix, const char *text)
{
	bool is_plain = !isatty(STDERR_FILENO);

	fflush(stdout);
	fputs(prefix, stderr);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		fputc(is_plain || c == '\n' || (c >= ' ' && c != 0x7f) ? c : '?', stderr);
	}
	fputc('\n', stderr);
}

static void vreport(const char *kind, const char *fmt, va_list ap)
	__attribute__((format(printf, 2, 0)));
static void vreport(const char *kind, const char *fmt, va_list ap)
{
	char prefix[32], *text;

	snprintf(prefix, sizeof(prefix), "%s: %s", program_name, kind);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	print_message(prefix, text ? text : fmt);
	free(text);
}

int tool_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vreport("", fmt, ap);
	va_end(ap);
	return EXIT_ERROR;
}

void tool_warn(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vreport("warning: ", fmt, ap);
	va_end(ap);
}

int tool_fail(const struct err *err)
{
	tool_error("%s", err->text);
	if (err->hint[0] && !tool_is_qemu_img() && isatty(STDERR_FILENO))
		print_message("hint: ", err->hint);
	return EXIT_ERROR;
}

/* ---- the command line ---- */

enum { ID_BASE = 1000 };                /* above all letters that getopt_long() returns */

/* The walk in progress; getopt_long() has but one, too. */
static struct {
	struct option longs[OPTS_MAX + 1];
	char letters[2 * OPTS_MAX + 2];
	char name[4096];                /* argv[0] while getopt_long() speaks */
	int argc;
	char **argv;
	bool options_ended;
} walk;

void tool_opts_start(const struct tool_grammar *g, int argc, char **argv)
{
	char *s = walk.letters;

	memset(&walk, 0, sizeof(walk));
	*s++ = '-';                     /* operands in their place */
	for (unsigned i = 0; i < g->nopts && i < OPTS_MAX; i++) {
		walk.longs[i].name = g->opts[i].name;
		walk.longs[i].has_arg = g->opts[i].arg ? required_argument : no_argument;
		walk.longs[i].val = ID_BASE + (int)i;
		if (!g->opts[i].letter)
			continue;
		*s++ = g->opts[i].letter;
		if (g->opts[i].arg)
			*s++ = ':';
	}
	snprintf(walk.name, sizeof(walk.name), "%s %s", program_path, g->command);
	walk.argc = argc;
	walk.argv = argv;
	optind = 0;                     /* also makes getopt_long() forget where it was */
	opterr = 1;
}

static void print_try(const struct tool_grammar *g)
{
	fprintf(stderr, "Try '%s %s --help' for more info\n", program_path, g->command);
}

static int letter_id(const struct tool_grammar *g, int letter)
{
	for (unsigned i = 0; i < g->nopts; i++)
		if (g->opts[i].letter == letter)
			return g->opts[i].id;
	return OPTS_ERROR;
}

int tool_opts_next(const struct tool_grammar *g, const char **ret_value)
{
	char *argv0 = walk.argv[0];
	int c = -1;

	if (!walk.options_ended) {
		fflush(stdout);
		walk.argv[0] = walk.name;
		c = getopt_long(walk.argc, walk.argv, walk.letters, walk.longs, NULL);
		walk.argv[0] = argv0;
	}
	if (c == -1) {                  /* behind "--" all are operands */
		walk.options_ended = true;
		if (optind >= walk.argc)
			return OPTS_END;
		*ret_value = walk.argv[optind++];
		return OPTS_OPERAND;
	}
	if (c == '?') {
		print_try(g);
		return OPTS_ERROR;
	}
	*ret_value = optarg;
	if (c == 1)
		return OPTS_OPERAND;
	return c >= ID_BASE ? g->opts[c - ID_BASE].id : letter_id(g, c);
}

int tool_opts_one(const struct tool_grammar *g, int argc, char **argv,
		  int (*take)(void *args, int id, const char *value), void *args,
		  const char **ret_name)
{
	unsigned noperands = 0;
	const char *value;
	int id;

	tool_opts_start(g, argc, argv);
	while ((id = tool_opts_next(g, &value)) != OPTS_END) {
		if (id == OPT_HELP)
			return tool_help(g);
		if (id == OPTS_OPERAND) {
			*ret_name = value;
			noperands++;
		} else if (id == OPTS_ERROR || take(args, id, value)) {
			return EXIT_ERROR;
		}
	}
	return noperands == 1 ? -1 : tool_fail_usage(g, "Expecting one image file name");
}

int tool_help(const struct tool_grammar *g)
{
	printf("usage: %s %s %s\n\n%s\n\n", program_name, g->command, g->usage, g->summary);
	opts_print(stdout, g->opts, g->nopts);
	return EXIT_OK;
}

int tool_fail_usage(const struct tool_grammar *g, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vreport("", fmt, ap);
	va_end(ap);
	print_try(g);
	return EXIT_ERROR;
}

int tool_output(const struct tool_grammar *g, const char *text, bool *ret_is_json)
{
	bool is_json = !strcmp(text, "json");

	if (!is_json && strcmp(text, "human")) {
		tool_fail_usage(g, "--output expects 'human' or 'json' not '%s'", text);
		return -EINVAL;
	}
	*ret_is_json = is_json;
	return 0;
}

bool tool_options_valid(const char *text)
{
	size_t n = strlen(text), commas = 0;

	if (!n || text[0] == ',')
		return false;
	while (commas < n && text[n - 1 - commas] == ',')
		commas++;
	return commas % 2 == 0;         /* two are one that belongs to the value */
}

int tool_options_add(char **all, const char *text)
{
	char *both;

	if (!tool_options_valid(text)) {
		tool_error("Invalid option list: %s", text);
		return -EINVAL;
	}
	if (asprintf(&both, "%s%s%s", *all ? *all : "", *all ? "," : "", text) < 0) {
		tool_error("%s", strerror(ENOMEM));
		return -ENOMEM;
	}
	free(*all);
	*all = both;
	return 0;
}

int tool_size(const char *text, uint64_t *ret)
{
	uint64_t size;
	int rc = size_read(text, &size);

	if (!rc && size > INT64_MAX)
		rc = -ERANGE;
	if (!rc)
		*ret = size;
	return rc;
}

/* ---- the loop ---- */

int tool_start(struct tool *t, enum loop_backend backend)
{
	struct loop_opts lo = { .backend = backend };
	struct err err = { 0 };
	int rc;

	*t = (struct tool) { 0 };
	rc = workers_new(0, &t->workers, &err);
	lo.workers = t->workers;
	if (!rc)
		rc = loop_new(&lo, &t->loop, &err);
	if (rc) {
		tool_fail(&err);
		tool_stop(t);
	}
	return rc;
}

void tool_stop(struct tool *t)
{
	if (t->loop)
		loop_free(t->loop);
	workers_free(t->workers);
	*t = (struct tool) { 0 };
}

int tool_run(struct tool *t, int (*fn)(void *arg), void *arg)
{
	return loop_call(t->loop, fn, arg);
}
