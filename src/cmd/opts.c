/* SPDX-License-Identifier: MIT */
#include "cmd/opts.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"

enum { ID_BASE = 1000 };                /* above all letters that getopt_long() returns */
enum { WORD_MAX = 31, HELP_COLUMN = 28 };

static bool options_ended;              /* the walk is behind "--" or at its end */

/* The forms that getopt_long() wants a table in. */
struct getopt_forms {
	struct option longs[OPTS_MAX + 1];
	char letters[2 * OPTS_MAX + 3];
};

static void make_forms(const struct opt *table, unsigned n, struct getopt_forms *f)
{
	char *s = f->letters;

	assert(n <= OPTS_MAX);
	*s++ = '-';                     /* operands in their place */
	*s++ = ':';                     /* a missing argument is told from an unknown option */
	memset(f->longs, 0, sizeof(f->longs));
	for (unsigned i = 0; i < n; i++) {
		f->longs[i].name = table[i].name;
		f->longs[i].has_arg = table[i].arg ? required_argument : no_argument;
		f->longs[i].val = ID_BASE + (int)i;
		if (!table[i].letter)
			continue;
		*s++ = table[i].letter;
		if (table[i].arg)
			*s++ = ':';
	}
	*s = '\0';
}

/* The number of letters to insert, drop or replace to get from @a to @b. */
static unsigned edit_distance(const char *a, const char *b)
{
	unsigned row[WORD_MAX + 1];
	size_t na = strlen(a), nb = strlen(b);

	if (na > WORD_MAX || nb > WORD_MAX)
		return WORD_MAX;
	for (unsigned j = 0; j <= nb; j++)
		row[j] = j;
	for (unsigned i = 1; i <= na; i++) {
		unsigned diagonal = row[0];

		row[0] = i;
		for (unsigned j = 1; j <= nb; j++) {
			unsigned replaced = diagonal + (a[i - 1] != b[j - 1]);
			unsigned moved = MIN(row[j], row[j - 1]) + 1;

			diagonal = row[j];
			row[j] = MIN(replaced, moved);
		}
	}
	return row[nb];
}

const char *opts_suggest(const char *word, const char *const *names, unsigned n)
{
	unsigned best = 3;              /* farther off than two letters is another word */
	const char *ret = NULL;

	for (unsigned i = 0; i < n; i++) {
		unsigned d = edit_distance(word, names[i]);

		/* Not everything two letters long is a misspelt "rm". */
		if (d < best && d < strlen(names[i])) {
			best = d;
			ret = names[i];
		}
	}
	return ret;
}

static int unknown_option(const struct opt *table, unsigned n, const char *text, struct err *err)
{
	const char *names[OPTS_MAX], *meant = NULL;
	char word[WORD_MAX + 1] = "";

	for (unsigned i = 0; i < n; i++)
		names[i] = table[i].name;
	if (text[0] == '-' && text[1] == '-') {
		strncpy(word, text + 2, WORD_MAX);
		word[strcspn(word, "=")] = '\0';
		meant = opts_suggest(word, names, n);
	}
	err_set(err, EINVAL, "unknown or ambiguous option '%s'", text);
	if (meant)
		err_hint(err, "did you mean --%s?", meant);
	return OPTS_ERROR;
}

/* @c is what getopt_long() complained with. @text is the word it passed last: the complaint is
 * about that unless optopt names a letter, whose word may not be passed yet. */
static int refuse(const struct opt *table, unsigned n, int c, const char *text, struct err *err)
{
	char letter[3] = { '-', (char)optopt, '\0' };

	if (c == ':') {
		if (optopt >= ID_BASE)
			err_set(err, EINVAL, "option '--%s' needs an argument (%s)",
				table[optopt - ID_BASE].name, table[optopt - ID_BASE].arg);
		else
			err_set(err, EINVAL, "option '%s' needs an argument", letter);
		return OPTS_ERROR;
	}
	if (optopt >= ID_BASE) {
		err_set(err, EINVAL, "option '--%s' takes no argument",
			table[optopt - ID_BASE].name);
		return OPTS_ERROR;
	}
	return unknown_option(table, n, optopt ? letter : text, err);
}

void opts_start(void)
{
	optind = 0;                     /* also makes getopt_long() forget where it was */
	opterr = 0;
	options_ended = false;
}

int opts_next(const struct opt *table, unsigned n, int argc, char **argv, const char **ret_value,
	      struct err *err)
{
	struct getopt_forms f;
	int c = -1;

	make_forms(table, n, &f);
	optopt = 0;
	if (!options_ended)
		c = getopt_long(argc, argv, f.letters, f.longs, NULL);
	if (c == -1) {                  /* behind "--" all are operands */
		options_ended = true;
		if (optind >= argc)
			return OPTS_END;
		*ret_value = argv[optind++];
		return OPTS_OPERAND;
	}
	if (c == ':' || c == '?')
		return refuse(table, n, c, argv[optind - 1], err);
	*ret_value = optarg;
	if (c == 1)
		return OPTS_OPERAND;
	if (c >= ID_BASE)
		return table[c - ID_BASE].id;
	for (unsigned i = 0; i < n; i++)
		if (table[i].letter == c)
			return table[i].id;
	assert(false && "getopt_long() knows no other letters than the table");
	return OPTS_ERROR;
}

void opts_print(FILE *out, const struct opt *table, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		const struct opt *o = &table[i];
		const char *line = o->help;
		int at = 0;

		if (o->letter)
			at += fprintf(out, "  -%c, ", o->letter);
		else
			at += fprintf(out, "      ");
		at += fprintf(out, "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
		if (at >= HELP_COLUMN) {
			fputc('\n', out);
			at = 0;
		}
		while (*line) {
			int len = (int)strcspn(line, "\n");

			fprintf(out, "%*s%.*s\n", HELP_COLUMN - at, "", len, line);
			at = 0;
			line += len + (line[len] == '\n');
		}
	}
}
