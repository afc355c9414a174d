/* SPDX-License-Identifier: MIT */
/* cmd/main.c - the command line: a table of subcommands, and help. Called as qemu-img, the program
 * has the image tools only and speaks as qemu-img does. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "cmd/cmd.h"
#include "cmd/opts.h"
#include "cmd/tool.h"

/* The whole command line. Each has a man page byre-NAME(1). */
static const struct subcommand {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
	bool is_tool;                   /* qemu-img has it too */
} subcommands[] = {
	{ "bench", cmd_bench, "measure how fast an image is read or written", true },
	{ "check", cmd_check, "look for damage in an image, and mend it", true },
	{ "compare", cmd_compare, "tell whether two images have the same content", true },
	{ "convert", cmd_convert, "copy disk images into another image", true },
	{ "create", cmd_create, "make a new image", true },
	{ "info", cmd_info, "show what an image is", true },
	{ "map", cmd_map, "show which parts of an image hold what", true },
	{ "measure", cmd_measure, "work out how large a new image would be", true },
	{ "serve", cmd_serve, "serve disk images to virtual machines over NBD and vhost-user",
	  false },
};

enum { OPT_VERSION = OPT_OWN };

static const struct opt main_opts[] = {
	{ 'h', "help", NULL, "show this", OPT_HELP },
	{ 'V', "version", NULL, "show the version", OPT_VERSION },
};

static int print_help(void)
{
	printf("usage: byre COMMAND [ARGUMENTS]\n"
	       "       byre help COMMAND\n"
	       "       byre --version\n"
	       "\nbyre keeps the disks of virtual machines.\n"
	       "\nCommands:\n");
	for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++)
		printf("  %-10s %s\n", subcommands[i].name, subcommands[i].help);
	printf("\nOptions:\n");
	opts_print(stdout, main_opts, ARRAY_SIZE(main_opts));
	return EXIT_OK;
}

static const struct subcommand *find(const char *name, struct err *err)
{
	const char *names[ARRAY_SIZE(subcommands)], *meant;

	for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++) {
		if (!strcmp(name, subcommands[i].name))
			return &subcommands[i];
		names[i] = subcommands[i].name;
	}
	meant = opts_suggest(name, names, ARRAY_SIZE(names));
	err_set(err, EINVAL, "unknown command '%s'", name);
	if (meant)
		err_hint(err, "did you mean 'byre %s'?", meant);
	return NULL;
}

static int help_on(const char *name)
{
	char help[] = "--help", *argv[] = { (char *)(uintptr_t)name, help, NULL };
	struct err err = { 0 };
	const struct subcommand *c = find(name, &err);

	return c ? c->run(2, argv) : cmd_fail_usage(NULL, &err);
}

static int run_command(int argc, char **argv)
{
	struct err err = { 0 };
	const struct subcommand *c;

	if (!strcmp(argv[0], "help"))
		return argc > 1 ? help_on(argv[1]) : print_help();
	c = find(argv[0], &err);
	return c ? c->run(argc, argv) : cmd_fail_usage(NULL, &err);
}

/* ---- as qemu-img ---- */

static void print_qemu_img_version(void)
{
	printf("qemu-img version 10.0.2 (byre " BYRE_VERSION ")\n");
}

static int print_qemu_img_help(void)
{
	print_qemu_img_version();
	printf("usage: qemu-img COMMAND [--help | ARGUMENTS]\n"
	       "       qemu-img --help | --version\n"
	       "\nbyre, under the name of qemu-img.\n"
	       "\nCommands:\n");
	for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++)
		if (subcommands[i].is_tool)
			printf("  %-10s %s\n", subcommands[i].name, subcommands[i].help);
	printf("\nSupported formats: raw qcow2\n");
	return EXIT_OK;
}

static int fail_as_qemu_img(const char *argv0)
{
	fprintf(stderr, "Try '%s --help' for more info\n", argv0);
	return EXIT_ERROR;
}

static int run_as_qemu_img(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ "trace", required_argument, NULL, 'T' },
		{ 0 },
	};
	const char *argv0 = argv[0];
	int c;

	signal(SIGPIPE, SIG_IGN);       /* as qemu-img: a reader that leaves is no failure */

	while ((c = getopt_long(argc, argv, "+hVT:", longs, NULL)) != -1) {
		if (c == 'h')
			return print_qemu_img_help();
		if (c == 'V') {
			print_qemu_img_version();
			return EXIT_OK;
		}
		if (c == '?')
			return fail_as_qemu_img(argv0);
	}
	argc -= optind;
	argv += optind;
	if (!argc) {
		tool_error("Not enough arguments");
		return fail_as_qemu_img(argv0);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++)
		if (subcommands[i].is_tool && !strcmp(argv[0], subcommands[i].name))
			return subcommands[i].run(argc, argv);
	tool_error("Command not found: %s", argv[0]);
	return fail_as_qemu_img(argv0);
}

/* Output that nobody could read is a failure, said once at the end. qemu-img says nothing. */
static int end(int rc)
{
	bool is_lost = fflush(stdout) || ferror(stdout);

	if (!is_lost || tool_is_qemu_img())
		return rc;
	tool_error("the output could not be written");
	return rc ? rc : EXIT_ERROR;
}

static int run_as_byre(int argc, char **argv)
{
	struct err err = { 0 };
	const char *value;

	if (argc > 1 && argv[1][0] != '-')
		return run_command(argc - 1, argv + 1);
	opts_start();
	switch (opts_next(main_opts, ARRAY_SIZE(main_opts), argc, argv, &value, &err)) {
	case OPT_HELP:
		return print_help();
	case OPT_VERSION:
		puts("byre " BYRE_VERSION);
		return EXIT_OK;
	case OPTS_ERROR:
		break;
	default:
		err_set(&err, EINVAL, "no command given");
	}
	return cmd_fail_usage(NULL, &err);
}

/* Here and not in the log: `serve` takes variables out of the environment while its threads run. */
static void set_up_log(void)
{
	const char *level = getenv("BYRE_LOG");

	if (level && !strcmp(level, "debug"))
		log_set_level(LOG_LEVEL_DEBUG);
	log_set_prefix(getenv("JOURNAL_STREAM"));
}

int main(int argc, char **argv)
{
	/* A file that may not grow further (RLIMIT_FSIZE) is an error like a full disk, and no end
	 * that leaves half an image, or a guest without its disk. */
	signal(SIGXFSZ, SIG_IGN);
	set_up_log();
	tool_set_program(argc ? argv[0] : "byre");
	return end(tool_is_qemu_img() ? run_as_qemu_img(argc, argv) : run_as_byre(argc, argv));
}
