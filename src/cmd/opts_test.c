/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/opts.h"

enum { OPT_FORMAT = 1, OPT_FORCE, OPT_QUIET };

static const struct opt table[] = {
	{ 'f', "format", "FORMAT", "the format", OPT_FORMAT },
	{ 0, "force", NULL, "really\ndo it", OPT_FORCE },
	{ 'q', "quiet", NULL, "say nothing", OPT_QUIET },
};

static struct err err;

static char *word(const char *text)
{
	return (char *)(uintptr_t)text;
}

/* Walks through @argv, which starts at its second word, and checks that it yields @ids and
 * @values. */
static void expect(const char *const *args, const int *ids, const char *const *values)
{
	char *argv[16] = { word("test") };
	int argc = 1, i = 0, id;
	const char *value;

	while (args[argc - 1]) {
		argv[argc] = word(args[argc - 1]);
		argc++;
	}
	opts_start();
	do {
		value = NULL;
		err = (struct err) { 0 };
		id = opts_next(table, ARRAY_SIZE(table), argc, argv, &value, &err);
		assert_int_equal(id, ids[i]);
		if (values[i])
			assert_string_equal(value, values[i]);
		i++;
	} while (id != OPTS_END && id != OPTS_ERROR);
}

static void order_of_options_and_operands_is_kept(void **state)
{
	expect((const char *[]) { "a", "-f", "raw", "b", "--force", "-", "-qfqcow2", NULL },
	       (int[]) { OPTS_OPERAND, OPT_FORMAT, OPTS_OPERAND, OPT_FORCE, OPTS_OPERAND, OPT_QUIET,
			 OPT_FORMAT, OPTS_END },
	       (const char *[]) { "a", "raw", "b", NULL, "-", NULL, "qcow2", NULL });
}

static void equals_sign_and_short_forms_of_long_options(void **state)
{
	expect((const char *[]) { "--format=raw", "--form", "x", "--qui", NULL },
	       (int[]) { OPT_FORMAT, OPT_FORMAT, OPT_QUIET, OPTS_END },
	       (const char *[]) { "raw", "x", NULL, NULL });
}

static void behind_two_dashes_all_are_operands(void **state)
{
	expect((const char *[]) { "-q", "--", "-q", "--", "--force", NULL },
	       (int[]) { OPT_QUIET, OPTS_OPERAND, OPTS_OPERAND, OPTS_OPERAND, OPTS_END },
	       (const char *[]) { NULL, "-q", "--", "--force", NULL });
	expect((const char *[]) { "--", NULL }, (int[]) { OPTS_END }, (const char *[]) { NULL });
}

static void expect_error(const char *arg, const char *text, const char *hint)
{
	expect((const char *[]) { arg, NULL }, (int[]) { OPTS_ERROR }, (const char *[]) { NULL });
	assert_string_equal(err.text, text);
	assert_string_equal(err.hint, hint);
}

static void errors_name_the_option(void **state)
{
	expect_error("--fromat", "unknown or ambiguous option '--fromat'",
		     "did you mean --format?");
	expect_error("--fromat=raw", "unknown or ambiguous option '--fromat=raw'",
		     "did you mean --format?");
	expect_error("--elephant", "unknown or ambiguous option '--elephant'", "");
	expect_error("--fo", "unknown or ambiguous option '--fo'", "");
	expect_error("--format", "option '--format' needs an argument (FORMAT)", "");
	expect_error("--force=1", "option '--force' takes no argument", "");
	expect_error("-f", "option '-f' needs an argument", "");
	expect_error("-xf", "unknown or ambiguous option '-x'", "");
	expect((const char *[]) { "--force", "-qxf", NULL },
	       (int[]) { OPT_FORCE, OPT_QUIET, OPTS_ERROR }, (const char *[]) { NULL, NULL, NULL });
	assert_string_equal(err.text, "unknown or ambiguous option '-x'");
}

static void suggestions_are_near(void **state)
{
	static const char *const names[] = { "serve", "convert", "rm" };

	assert_string_equal(opts_suggest("sreve", names, 3), "serve");
	assert_string_equal(opts_suggest("server", names, 3), "serve");
	assert_string_equal(opts_suggest("covert", names, 3), "convert");
	assert_null(opts_suggest("xy", names, 3));
	assert_null(opts_suggest("", names, 3));
	assert_null(opts_suggest("snapshot", names, 3));
	assert_null(opts_suggest("a-word-that-is-much-longer-than-any-command-has", names, 3));
}

static void help_shows_every_line(void **state)
{
	char *text = NULL;
	size_t n;
	FILE *out = open_memstream(&text, &n);

	opts_print(out, table, ARRAY_SIZE(table));
	fclose(out);
	assert_string_equal(text,
			    "  -f, --format FORMAT       the format\n"
			    "      --force               really\n"
			    "                            do it\n"
			    "  -q, --quiet               say nothing\n");
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(order_of_options_and_operands_is_kept),
		cmocka_unit_test(equals_sign_and_short_forms_of_long_options),
		cmocka_unit_test(behind_two_dashes_all_are_operands),
		cmocka_unit_test(errors_name_the_option),
		cmocka_unit_test(suggestions_are_near),
		cmocka_unit_test(help_shows_every_line),
	};

	return cmocka_run_group_tests_name("opts", tests, NULL, NULL);
}
