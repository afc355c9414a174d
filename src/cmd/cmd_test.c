/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "cmd/cmd.h"

/* What @failing prints to standard error. */
static void expect(int (*failing)(const struct err *), const struct err *err, int code,
		   const char *want)
{
	char got[512] = "";
	int saved = dup(STDERR_FILENO), p[2], rc;

	assert_int_equal(pipe(p), 0);
	dup2(p[1], STDERR_FILENO);
	close(p[1]);
	rc = failing(err);
	fflush(stderr);
	dup2(saved, STDERR_FILENO);
	close(saved);
	assert_true(read(p[0], got, sizeof(got) - 1) > 0);
	close(p[0]);
	assert_int_equal(rc, code);
	assert_string_equal(got, want);
}

static int fail_usage(const struct err *err)
{
	return cmd_fail_usage("serve", err);
}

static int fail_main_usage(const struct err *err)
{
	return cmd_fail_usage(NULL, err);
}

static void errors_have_a_hint_and_a_code(void **state)
{
	struct err err = { .text = "no luck" };

	/* All lines in one write: one read must see them all. */
	setvbuf(stderr, NULL, _IOFBF, BUFSIZ);
	expect(cmd_fail, &err, 1, "byre: no luck\n");
	strcpy(err.hint, "try again");
	expect(cmd_fail, &err, 1, "byre: no luck\nhint: try again\n");
	expect(fail_usage, &err, 2, "byre: no luck\nhint: try again\ntry 'byre serve --help'\n");
	err.hint[0] = '\0';
	expect(fail_main_usage, &err, 2, "byre: no luck\ntry 'byre --help'\n");
}

static void terminals_are_not_driven_by_names(void **state)
{
	struct err err = { .text = "file '\033[2J\r\nbyre: ok\x7f' of 'straße'" };

	expect(cmd_fail, &err, 1, "byre: file '?[2J??byre: ok?' of 'straße'\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(errors_have_a_hint_and_a_code),
		cmocka_unit_test(terminals_are_not_driven_by_names),
	};

	return cmocka_run_group_tests_name("cmd", tests, NULL, NULL);
}
