/* SPDX-License-Identifier: MIT */
/* cmd/cmd.h - what main and the subcommands share: one file a subcommand, one table of them
 * (main.c).
 *
 * A subcommand gets its own name as argv[0], prints what it has to say to standard output,
 * errors by cmd_fail(), and returns an exit code. It knows --help. */
#ifndef CMD_CMD_H
#define CMD_CMD_H

struct err;

/* Of every subcommand; byre(1) says what they mean. */
enum { EXIT_OK = 0, EXIT_ERROR = 1, EXIT_USAGE = 2 };

/* Prints @err and its hint to standard error. Returns EXIT_ERROR. */
int cmd_fail(const struct err *err);
/* The same for a command line that is wrong, with a word on where to find help.
 * @command: the subcommand's name, NULL: byre itself. Returns EXIT_USAGE. */
int cmd_fail_usage(const char *command, const struct err *err);

int cmd_bench(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_create(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_map(int argc, char **argv);
int cmd_measure(int argc, char **argv);
int cmd_serve(int argc, char **argv);

#endif
