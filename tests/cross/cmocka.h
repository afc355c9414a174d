/* SPDX-License-Identifier: MIT */
/* tests/cross/cmocka.h - as much of cmocka as unit tests with plain asserts use, for machines that
 * have no cmocka: found before the real one in builds for them. */
#ifndef CROSS_CMOCKA_H
#define CROSS_CMOCKA_H

#include <stdio.h>

struct CMUnitTest {
	const char *name;
	void (*fn)(void **state);
};

#define cmocka_unit_test(f) { #f, f }
#define print_message(...) fprintf(stderr, __VA_ARGS__)

/* A test that fails aborts. */
#define cmocka_run_group_tests_name(group, tests, setup, teardown) ({ \
	size_t tests_n = sizeof(tests) / sizeof((tests)[0]); \
	for (size_t tests_i = 0; tests_i < tests_n; tests_i++) { \
		printf("%s: %s\n", group, (tests)[tests_i].name); \
		fflush(stdout); \
		(tests)[tests_i].fn(NULL); \
	} \
	0; \
})

#endif
