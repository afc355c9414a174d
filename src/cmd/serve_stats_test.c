/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "cmd/serve_stats.h"

static void a_line_has_rates_of_the_interval(void **state)
{
	struct port_stats before = {
		.ops = { [REQ_READ] = 1000, [REQ_WRITE] = 5 },
		.bytes = { [REQ_READ] = 4096000 },
		.latency_ns = 77 * NS_PER_MS,
	};
	struct port_stats now = before;
	char line[256];

	now.ops[REQ_READ] += 2000;
	now.bytes[REQ_READ] += 2000 * 4096;
	now.ops[REQ_WRITE] += 400;
	now.bytes[REQ_WRITE] += 400 * 65536;
	now.ops[REQ_FLUSH] += 100;
	now.latency_ns += 2500 * 150000ULL;
	now.in_flight = 7;
	serve_stats_line("disk", &before, &now, 2 * NS_PER_SEC, line, sizeof(line));
	assert_string_equal(line,
			    "disk             read    1000/s     4.1 MB/s  "
			    "write     200/s    13.1 MB/s      150 us     7 in flight");
}

static void an_idle_disk_divides_by_nothing(void **state)
{
	struct port_stats s = { .errors = 3 }, worse = { .errors = 4 };
	char line[256];

	serve_stats_line("d", &s, &s, 0, line, sizeof(line));
	assert_non_null(strstr(line, "read       0/s     0.0 MB/s"));
	assert_null(strstr(line, "ERRORS"));
	serve_stats_line("d", &s, &worse, NS_PER_SEC, line, sizeof(line));
	assert_non_null(strstr(line, "ERRORS"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_has_rates_of_the_interval),
		cmocka_unit_test(an_idle_disk_divides_by_nothing),
	};

	return cmocka_run_group_tests_name("serve_stats", tests, NULL, NULL);
}
