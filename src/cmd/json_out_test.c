/* SPDX-License-Identifier: MIT */
#include "base/json_text.h"
#include "cmd/json_out.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void the_shape_is_qemus(void **state)
{
	char *text = NULL;
	size_t n;
	struct json_out j = { .out = open_memstream(&text, &n) };

	json_object(&j, NULL);
	json_array(&j, "none");
	json_end_array(&j);
	json_number(&j, "n", -1);
	json_array(&j, "some");
	json_bool(&j, NULL, true);
	json_object(&j, NULL);
	json_end_object(&j);
	json_end_array(&j);
	json_string(&j, "s", "x");
	json_end_object(&j);
	fclose(j.out);
	assert_string_equal(text, "{\n    \"none\": [\n    ],\n    \"n\": -1,\n    \"some\": [\n"
			    "        true,\n        {\n        }\n    ],\n    \"s\": \"x\"\n}\n");
	free(text);
}

static void check(const char *plain, const char *escaped)
{
	char *text = NULL;
	size_t n;
	FILE *f = open_memstream(&text, &n);

	json_text_print(f, plain);
	fclose(f);
	assert_string_equal(text, escaped);
	free(text);
}

static void strings_become_ascii(void **state)
{
	check("a\"\\/\n\t\x01\x7f", "\"a\\\"\\\\/\\n\\t\\u0001\\u007F\"");
	check("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\"\\u00E9\\u20AC\\uD83D\\uDE00\"");
	/* What is no UTF-8: cut short, overlong, a surrogate, too large, a stray byte. */
	check("\xe2\x82x", "\"\\uFFFDx\"");
	check("\xc0\x80", "\"\\uFFFD\"");
	check("\xed\xa0\x80", "\"\\uFFFD\"");
	check("\xf4\x90\x80\x80", "\"\\uFFFD\"");
	check("\xff" "a", "\"\\uFFFDa\"");
	check("\xf0\x9f", "\"\\uFFFD\"");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_shape_is_qemus),
		cmocka_unit_test(strings_become_ascii),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
