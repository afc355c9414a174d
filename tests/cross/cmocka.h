/* SPDX-License-Identifier: MIT */
/* tests/cross/cmocka.h - as much of cmocka as the unit tests of libraries use, for machines that
 * have no cmocka: found before the real one in builds for them. */
#ifndef CROSS_CMOCKA_H
#define CROSS_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>

struct CMUnitTest {
	const char *name;
	void (*fn)(void **state);
};

#define cmocka_unit_test(f) { #f, f }
#define print_message(...) fprintf(stderr, __VA_ARGS__)

/* A test that fails aborts. */
#define fail_msg(...) do { \
	fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
	fprintf(stderr, __VA_ARGS__); \
	fputc('\n', stderr); \
	abort(); \
} while (0)
#define assert_true(cond) do { \
	if (!(cond)) \
		fail_msg("%s", #cond); \
} while (0)
#define assert_false(cond) assert_true(!(cond))
#define assert_null(p) assert_true(!(p))
#define assert_non_null(p) assert_true(p)
#define assert_int_equal(a, b) assert_true((a) == (b))
#define assert_int_not_equal(a, b) assert_true((a) != (b))
#define assert_ptr_equal(a, b) assert_true((a) == (b))
#define assert_ptr_not_equal(a, b) assert_true((a) != (b))
#define skip() do { \
	print_message("skipped\n"); \
	return; \
} while (0)

#define cmocka_run_group_tests_name(group, tests, setup, teardown) ({ \
	size_t tests_n = sizeof(tests) / sizeof((tests)[0]); \
	for (size_t tests_i = 0; tests_i < tests_n; tests_i++) { \
		printf("%s: %s\n", group, (tests)[tests_i].name); \
		fflush(stdout); \
		(tests)[tests_i].fn(NULL); \
	} \
	0; \
})
#define cmocka_run_group_tests(tests, setup, teardown) \
	cmocka_run_group_tests_name(__FILE__, tests, setup, teardown)

#endif
