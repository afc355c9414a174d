/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/bits.h"
#include "base/err.h"
#include "ctl/compress_opts.h"
#include "ctl/graph.h"
#include "ctl/option_list.h"

static void options_are_taken_and_the_rest_is_left(void **state)
{
	static const struct {
		const char *text;
		int rc, level;
		bool is_small;
		unsigned left;
	} cases[] = {
		{ "cluster_size=4k", 0, 0, false, 1 },
		{ "compression_level=9,cluster_size=4k", 0, 9, false, 1 },
		{ "size=1M,deflate_window=4k,compression_level=1,compat=1.1", 0, 1, true, 2 },
		{ "deflate_window=4096", 0, 0, true, 0 },
		{ "deflate_window=32k", 0, 0, false, 0 },
		{ "compression_level=0", -EINVAL, 0, false, 1 },
		{ "compression_level=23", -EINVAL, 0, false, 1 },
		{ "compression_level=much", -EINVAL, 0, false, 1 },
		{ "deflate_window=8k", -EINVAL, 0, false, 1 },
		{ "deflate_window=", -EINVAL, 0, false, 1 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct option_list l = { 0 };
		struct graph_opts go = { 0 };
		struct err err = { 0 };

		assert_int_equal(option_list_parse(cases[i].text, NULL, &l, &err), 0);
		assert_int_equal(compress_options_take(&l, &go, &err), cases[i].rc);
		assert_int_equal(!err.text[0], !cases[i].rc);
		assert_int_equal(go.compression_level, cases[i].level);
		assert_int_equal(go.deflate_small_window, cases[i].is_small);
		assert_int_equal(l.n, cases[i].left);
		option_list_fini(&l);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_are_taken_and_the_rest_is_left),
	};

	return cmocka_run_group_tests_name("compress_opts", tests, NULL, NULL);
}
