/* SPDX-License-Identifier: MIT */
/* cmd/main.c - the command line: a table of subcommands, and help. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/cmd.h"
#include "cmd/opts.h"

/* The whole command line. Each has a man page byre-NAME(1). */
static const struct subcommand {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} subcommands[] = {
	{ "serve", cmd_serve, "serve disk images to virtual machines over NBD" },
};

enum { OPT_HELP = 1, OPT_VERSION };

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

int main(int argc, char **argv)
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
