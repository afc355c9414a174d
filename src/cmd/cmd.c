/* SPDX-License-Identifier: MIT */
#include "cmd/cmd.h"

#include <stdio.h>

#include "base/err.h"

/* Prints a line in which what a terminal might obey is replaced: names in it may come from an
 * image that somebody else made. */
static void print_plain(const char *prefix, const char *text)
{
	fputs(prefix, stderr);
	for (; *text; text++)
		fputc((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text, stderr);
	fputc('\n', stderr);
}

int cmd_fail(const struct err *err)
{
	fflush(stdout);
	print_plain("byre: ", err->text);
	if (err->hint[0])
		print_plain("hint: ", err->hint);
	return EXIT_ERROR;
}

int cmd_fail_usage(const char *command, const struct err *err)
{
	cmd_fail(err);
	fprintf(stderr, "try 'byre %s%s--help'\n", command ? command : "", command ? " " : "");
	return EXIT_USAGE;
}
