/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/endian.h"
#include "base/err.h"
#include "base/list.h"
#include "base/log.h"
#include "base/prng.h"
#include "base/size.h"
#include "base/zero.h"

static void sizes_parse(void **state)
{
	static const struct { const char *text; int rc; uint64_t value; } cases[] = {
		{ "0", 0, 0 }, { "512", 0, 512 }, { "1k", 0, 1024 }, { "1K", 0, 1024 },
		{ "1.5M", 0, 1536 * KiB }, { "64k", 0, 64 * KiB }, { "2T", 0, 2 * TiB },
		{ "0x10", 0, 16 }, { "7E", 0, 7ULL << 60 }, { "512b", 0, 512 },
		{ "9223372036854775807", 0, INT64_MAX }, { "9223372036854775808", -ERANGE, 0 },
		{ "8E", -ERANGE, 0 }, { "", -EINVAL, 0 }, { "k", -EINVAL, 0 }, { "-1", -EINVAL, 0 },
		{ "1kk", -EINVAL, 0 }, { "1.5", -EINVAL, 0 }, { "1x", -EINVAL, 0 },
		{ " 1", -EINVAL, 0 }, { "0x", -EINVAL, 0 }, { "1e3", -EINVAL, 0 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = { 0 };
		uint64_t v = 77;

		assert_int_equal(size_parse(cases[i].text, "size", &v, &err), cases[i].rc);
		assert_int_equal(v, cases[i].rc ? 77 : cases[i].value);
		assert_int_equal(err.code, -cases[i].rc);
	}
}

static void sizes_read_as_qemu_img_does(void **state)
{
	static const struct { const char *text; int rc; uint64_t value; } cases[] = {
		{ " \t+1k", 0, 1024 }, { ".5k", 0, 512 }, { "1.k", 0, 1024 }, { "1.", 0, 1 },
		{ "1.0", 0, 1 }, { ".0", 0, 0 }, { ".", -EINVAL, 0 }, { ".k", -EINVAL, 0 },
		{ "1.1", -EINVAL, 0 }, { "1.5e1k", -EINVAL, 0 }, { "1.5 k", -EINVAL, 0 },
		{ "0.0005k", 0, 1 }, { "0.000488k", 0, 0 }, { "0.00048828125k", 0, 1 },
		{ "1.99999999999999999999k", 0, 2048 }, { "1.1T", 0, 1209462790554 },
		{ "7.9E", 0, 9108079886394091136 }, { "9007199254740993.0", 0, 9007199254740993 },
		{ "16E", -ERANGE, 0 }, { "15.99999999999999999999E", -ERANGE, 0 },
		{ "8E", 0, 8ULL << 60 }, { "18446744073709551615", 0, UINT64_MAX },
		{ "18446744073709551616", -ERANGE, 0 }, { "0xffffffffffffffff", 0, UINT64_MAX },
		{ "0x10000000000000000", -ERANGE, 0 }, { "0x10k", -EINVAL, 0 },
		{ "0x-5", -EINVAL, 0 }, { "0x1.8k", -EINVAL, 0 }, { "-5", -ERANGE, 0 },
		{ "-0", -ERANGE, 0 }, { "-5k", -EINVAL, 0 }, { "-0x5", -EINVAL, 0 },
		{ "-", -EINVAL, 0 }, { "+-1", -EINVAL, 0 }, { "inf", -EINVAL, 0 },
		{ "1 ", -EINVAL, 0 }, { "", -EINVAL, 0 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t v = 77;

		if (size_read(cases[i].text, &v) != cases[i].rc)
			fail_msg("'%s'", cases[i].text);
		assert_int_equal(v, cases[i].rc ? 77 : cases[i].value);
	}
}

static void numbers_parse(void **state)
{
	uint64_t v = 7;

	assert_int_equal(number_parse("12", "n", 1, 12, &v, NULL), 0);
	assert_int_equal(v, 12);
	assert_int_equal(number_parse("13", "n", 1, 12, &v, NULL), -ERANGE);
	assert_int_equal(number_parse("0", "n", 1, 12, &v, NULL), -ERANGE);
	assert_int_equal(number_parse("1 ", "n", 1, 12, &v, NULL), -EINVAL);
	assert_int_equal(number_parse("", "n", 1, 12, &v, NULL), -EINVAL);
	assert_int_equal(v, 12);
}

static void sizes_print_as_qemu_img_does(void **state)
{
	static const struct { uint64_t bytes; const char *text; } cases[] = {
		{ 0, "0 B" }, { 512, "512 B" }, { 1000, "0.977 KiB" }, { 1024, "1 KiB" },
		{ 196616, "192 KiB" }, { 10 * GiB, "10 GiB" }, { 1536 * MiB, "1.5 GiB" },
		{ 64 * TiB, "64 TiB" }, { 1023 * MiB, "0.999 GiB" },
	};
	char buf[16];

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
		assert_string_equal(size_format(cases[i].bytes, buf, sizeof(buf)), cases[i].text);
}

static void ranges(void **state)
{
	assert_true(range_within(0, 0, 0));
	assert_true(range_within(5, 5, 10));
	assert_false(range_within(5, 6, 10));
	assert_false(range_within(UINT64_MAX, 2, 10));
	assert_false(range_within(2, UINT64_MAX, 10));
	assert_true(ranges_overlap(0, 2, 1, 2));
	assert_false(ranges_overlap(0, 2, 2, 2));
	assert_int_equal(align_up(513, 512), 1024);
	assert_int_equal(align_down(513, 512), 512);
	assert_int_equal(log2_floor(1), 0);
	assert_int_equal(log2_ceil(1), 0);
	assert_int_equal(log2_ceil(65537), 17);
}

static void big_endian_fields(void **state)
{
	static const uint8_t bytes[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9 };
	uint8_t out[8];

	assert_int_equal(be16_load(bytes + 1), 0x0203);
	assert_int_equal(be32_load(bytes + 1), 0x02030405);
	assert_true(be64_load(bytes + 1) == 0x0203040506070809ULL);
	be64_store(out, 0x0203040506070809ULL);
	assert_memory_equal(out, bytes + 1, 8);
	assert_int_equal(be32_get(be32_make(0xdeadbeef)), 0xdeadbeef);
}

static void errors_gain_context(void **state)
{
	struct err err = { 0 };

	assert_int_equal(err_set_errno(&err, ENOENT, "cannot open '%s'", "x"), -ENOENT);
	err_hint(&err, "create it first");
	assert_int_equal(err_wrap(&err, -ENOENT, "backing file of '%s'", "y"), -ENOENT);
	assert_string_equal(err.text,
			    "backing file of 'y': cannot open 'x': No such file or directory");
	assert_string_equal(err.hint, "create it first");
	assert_int_equal(err_set(&err, EINVAL, "bad"), -EINVAL);
	assert_string_equal(err.hint, "");
	assert_int_equal(err_set(NULL, EINVAL, "bad"), -EINVAL);
	memset(&err, 0, sizeof(err));
	err_wrap(&err, -EIO, "disk");
	assert_string_equal(err.text, "disk: Input/output error");
	/* Too long a text is cut, not overrun. */
	for (int i = 0; i < 100; i++)
		err_wrap(&err, -EIO, "a rather long piece of context, the %d-th of its kind", i);
	assert_true(strlen(err.text) < sizeof(err.text));
}

struct item {
	int value;
	struct list_node link;
};

static void lists(void **state)
{
	struct list_node head;
	struct item items[4];
	int seen = 0;

	list_init(&head);
	assert_null(list_pop(&head));
	for (int i = 0; i < 4; i++) {
		items[i].value = i;
		list_add_tail(&head, &items[i].link);
	}
	list_for_each(n, &head) {
		struct item *it = list_entry(n, struct item, link);

		assert_int_equal(it->value, seen++);
		if (it->value == 2)
			list_del(n);
	}
	assert_int_equal(seen, 4);
	list_del(&items[2].link);               /* twice is fine */
	assert_ptr_equal(list_pop(&head), &items[0].link);
	assert_ptr_equal(list_pop(&head), &items[1].link);
	assert_ptr_equal(list_pop(&head), &items[3].link);
	assert_true(list_is_empty(&head));
}

static char logged[256];

static void sink(enum log_level level, const char *line)
{
	snprintf(logged, sizeof(logged), "%d %s", (int)level, line);
}

static void log_lines(void **state)
{
	log_set_sink(sink);
	log_warn("disk %s is full", "a");
	assert_string_equal(logged, "1 byre: warning: disk a is full");
	log_error("file '%s'", "x\n<0>fake\x1b[31m");
	assert_string_equal(logged, "0 byre: error: file 'x?<0>fake?[31m'");
	logged[0] = '\0';
	log_debug("quiet");
	assert_string_equal(logged, "");
	log_set_sink(NULL);
}

static unsigned lines;

static void count_lines(enum log_level level, const char *line)
{
	lines++;
	sink(level, line);
}

/* What a client can bring about at will does not fill the disk. */
static void limited_lines(void **state)
{
	struct log_limit limit = { 0 };

	log_set_sink(count_lines);
	lines = 0;
	for (unsigned i = 0; i < 1000; i++)
		log_limited(&limit, LOG_LEVEL_WARN, "line %u", i);
	assert_int_equal(lines, LOG_LIMIT_BURST);
	assert_int_equal(limit.left_out, 1000 - LOG_LIMIT_BURST);
	/* As if time had passed. */
	limit.paid_until_ns -= LOG_LIMIT_EVERY_S * 1000000000ULL;
	log_limited(&limit, LOG_LEVEL_WARN, "one more");
	assert_int_equal(lines, LOG_LIMIT_BURST + 2);
	assert_string_equal(logged, "1 byre: warning: one more");
	log_limited(&limit, LOG_LEVEL_WARN, "and not two");
	assert_int_equal(lines, LOG_LIMIT_BURST + 2);
	limit.paid_until_ns = 0;
	log_limited(&limit, LOG_LEVEL_WARN, "after a long time");
	assert_int_equal(lines, LOG_LIMIT_BURST + 4);
	log_set_sink(NULL);
}

/* Reads what a warning writes to standard error. */
static void warn_and_read(char *ret, size_t n)
{
	int saved = dup(STDERR_FILENO), fds[2];
	ssize_t got;

	assert_int_equal(pipe(fds), 0);
	assert_true(dup2(fds[1], STDERR_FILENO) >= 0);
	log_warn("disk is full");
	assert_true(dup2(saved, STDERR_FILENO) >= 0);
	got = read(fds[0], ret, n - 1);
	assert_true(got > 0);
	ret[got] = '\0';
	close(saved);
	close(fds[0]);
	close(fds[1]);
}

static void a_journal_is_told_priorities(void **state)
{
	char line[64];

	warn_and_read(line, sizeof(line));
	assert_string_equal(line, "byre: warning: disk is full\n");
	log_set_prefix(true);
	warn_and_read(line, sizeof(line));
	assert_string_equal(line, "<4>byre: warning: disk is full\n");
	log_set_prefix(false);
}

static void prng_is_fair_and_repeats(void **state)
{
	struct prng a = { 1 }, b = { 1 };
	unsigned count[10] = { 0 };

	for (int i = 0; i < 10000; i++) {
		uint64_t v = prng_below(&a, 10);

		assert_true(v == prng_below(&b, 10));
		count[v]++;
	}
	for (int i = 0; i < 10; i++)
		assert_in_range(count[i], 850, 1150);
}

/* Every length and alignment around the widths that are compared at once, one bit set anywhere. */
static void one_bit_is_not_zero(void **state)
{
	enum { LONGEST = 2 * 256 + 40 };
	unsigned char buf[LONGEST + 32] = { 0 };

	for (unsigned len = 0; len <= LONGEST; len += len < 80 ? 1 : 13) {
		for (unsigned at = 0; at < 32; at += 5) {
			memset(buf, 0xff, sizeof(buf));
			memset(buf + at, 0, len);
			assert_true(bytes_are_zero(buf + at, len));
			for (unsigned i = 0; i < len; i++) {
				buf[at + i] = (unsigned char)(1u << i % 8);
				assert_false(bytes_are_zero(buf + at, len));
				buf[at + i] = 0;
			}
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_parse),
		cmocka_unit_test(sizes_read_as_qemu_img_does),
		cmocka_unit_test(numbers_parse),
		cmocka_unit_test(sizes_print_as_qemu_img_does),
		cmocka_unit_test(ranges),
		cmocka_unit_test(big_endian_fields),
		cmocka_unit_test(errors_gain_context),
		cmocka_unit_test(lists),
		cmocka_unit_test(log_lines),
		cmocka_unit_test(limited_lines),
		cmocka_unit_test(a_journal_is_told_priorities),
		cmocka_unit_test(one_bit_is_not_zero),
		cmocka_unit_test(prng_is_fair_and_repeats),
	};

	return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
