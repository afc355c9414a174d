/* SPDX-License-Identifier: MIT */
/* cmd/opts.h - one table of options a subcommand: what is parsed is what --help prints.
 *
 * Options and operands are handed out in the order they were written, so that a subcommand can
 * let an option belong to the operand after it. "--" ends the options. Long options may be
 * shortened as far as they stay unambiguous, as everywhere with getopt_long(3), which does the
 * work; its state is global, so one walk at a time. */
#ifndef CMD_OPTS_H
#define CMD_OPTS_H

#include <stdio.h>

struct err;

enum { OPTS_MAX = 48 };                 /* options in one table */

struct opt {
	char letter;                    /* of the short form; 0: none */
	const char *name;               /* of the long form, without the dashes */
	const char *arg;                /* what --help calls its argument; NULL: it takes none */
	const char *help;               /* may have several lines */
	int id;                         /* what opts_next() returns; above 0 */
};

enum { OPTS_END = 0, OPTS_OPERAND = -1, OPTS_ERROR = -2 };

/* Begins a walk through argv[1..]; argv[0] is the subcommand's name. */
void opts_start(void);
/* The next option's id, OPTS_OPERAND or OPTS_END; OPTS_ERROR with @err set.
 * *@ret_value is the option's argument or the operand. */
int opts_next(const struct opt *table, unsigned n, int argc, char **argv, const char **ret_value,
	      struct err *err);

/* Prints the table, an option a paragraph. */
void opts_print(FILE *out, const struct opt *table, unsigned n);

/* The one of @names that @word was probably meant to be, or NULL. Pure. */
const char *opts_suggest(const char *word, const char *const *names, unsigned n);

#endif
