/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/serve_opts.h"

static struct err err;

/* Parses @line, words apart by single spaces. */
static int parse(const char *line, struct serve_opts *ret)
{
	static char text[1024];         /* the result points into it */
	char *argv[64] = { text }, *save = NULL;
	int argc = 1;

	snprintf(text, sizeof(text), "serve %s", line);
	strtok_r(text, " ", &save);
	while ((argv[argc] = strtok_r(NULL, " ", &save)))
		argc++;
	err = (struct err) { 0 };
	return serve_opts_parse(argc, argv, ret, &err);
}

static void must_parse(const char *line, struct serve_opts *ret)
{
	int rc = parse(line, ret);

	if (rc)
		print_error("%s: %s\n", line, err.text);
	assert_int_equal(rc, 0);
}

static void must_fail(const char *line, const char *says)
{
	struct serve_opts o;

	assert_true(parse(line, &o) < 0);
	if (!strstr(err.text, says))
		fail_msg("%s: '%s' does not say '%s'", line, err.text, says);
}

static void defaults(void **state)
{
	struct serve_opts o;

	must_parse("dir/a.qcow2", &o);
	assert_int_equal(o.nimages, 1);
	assert_string_equal(o.images[0].path, "dir/a.qcow2");
	assert_string_equal(o.images[0].name, "a.qcow2");
	assert_null(o.images[0].format);
	assert_null(o.images[0].snapshot);
	assert_int_equal(o.images[0].cache, FILE_CACHE_WRITEBACK);
	assert_false(o.images[0].read_only);
	assert_false(o.images[0].ignore_discard);
	assert_false(o.images[0].force_share);
	assert_int_equal(o.loops, 1);
	assert_int_equal(o.cache_bytes, 32 * MiB);
	assert_int_equal(o.backend, LOOP_AUTO);
	assert_int_equal(o.nlisten, 0);
	assert_null(o.pid_file);
	serve_opts_fini(&o);
}

static void o1_options_belong_to_the_next_image_alone(void **state)
{
	struct serve_opts o;

	must_parse("-f raw --read-only --name x a --cache none b "
		   "--snapshot s1 --discard ignore -U c --compress d", &o);
	assert_int_equal(o.nimages, 4);
	assert_false(o.images[2].compress);
	assert_true(o.images[3].compress);
	assert_string_equal(o.images[0].format, "raw");
	assert_string_equal(o.images[0].name, "x");
	assert_true(o.images[0].read_only);
	assert_int_equal(o.images[0].cache, FILE_CACHE_WRITEBACK);

	assert_null(o.images[1].format);
	assert_string_equal(o.images[1].name, "b");
	assert_false(o.images[1].read_only);
	assert_int_equal(o.images[1].cache, FILE_CACHE_NONE);

	assert_string_equal(o.images[2].snapshot, "s1");
	assert_true(o.images[2].ignore_discard);
	assert_true(o.images[2].force_share);
	assert_true(o.images[2].read_only);     /* -U never writes */
	assert_int_equal(o.images[2].cache, FILE_CACHE_WRITEBACK);

	assert_null(o.images[3].snapshot);
	assert_false(o.images[3].ignore_discard);
	assert_false(o.images[3].force_share);
	assert_false(o.images[3].read_only);
	serve_opts_fini(&o);
}

static void o1_an_option_without_an_image_is_an_error(void **state)
{
	must_fail("a --read-only", "'--read-only' has no image after it");
	must_fail("a -f raw", "'--format' has no image after it");
	must_fail("a --nbd unix:x --name y --loops 2", "'--name' has no image after it");
	must_fail("--name y", "no image");
}

static void o2_options_for_all_stand_anywhere(void **state)
{
	struct serve_opts o;

	must_parse("--nbd unix:/s a --loops 3 --allow /x -r --nbd tcp:h:1 b --stats --allow /y "
		   "--cache-size 1M --backend posix --pid-file p", &o);
	assert_int_equal(o.nimages, 2);
	assert_true(o.images[1].read_only);
	assert_int_equal(o.nlisten, 2);
	assert_string_equal(o.listen[0], "unix:/s");
	assert_string_equal(o.listen[1], "tcp:h:1");
	assert_int_equal(o.nallow, 2);
	assert_string_equal(o.allow[1], "/y");
	assert_int_equal(o.loops, 3);
	assert_int_equal(o.cache_bytes, MiB);
	assert_int_equal(o.backend, LOOP_POSIX);
	assert_string_equal(o.pid_file, "p");
	assert_true(o.stats);
	serve_opts_fini(&o);
}

static void o3_names_are_unique(void **state)
{
	struct serve_opts o;

	must_fail("x/disk y/disk", "'x/disk' and 'y/disk' would both be served as 'disk'");
	must_fail("--name b a b", "served as 'b'");
	must_parse("x/disk --name other y/disk", &o);
	assert_string_equal(o.images[1].name, "other");
	serve_opts_fini(&o);
}

static void wrong_values_are_named(void **state)
{
	must_fail("", "no image");
	must_fail("-f vmdk a", "--format: unknown value 'vmdk'");
	must_fail("--cache fast a", "fast");
	must_fail("--discard maybe a", "--discard: unknown value 'maybe'");
	must_fail("--backend aio a", "--backend: unknown value 'aio'");
	must_fail("--loops 0 a", "--loops");
	must_fail("--loops 65 a", "--loops");
	must_fail("--cache-size lots a", "--cache-size");
	must_fail("--snapshot s -f raw a", "only qcow2 images have snapshots");
	must_fail("dir/", "not the name of an image");
	must_fail("--writeable a", "unknown or ambiguous option '--writeable'");
}

static void limits_hold(void **state)
{
	char line[1024] = "";
	char name[SERVE_NAME_MAX + 2] = "";

	for (unsigned i = 0; i <= SERVE_LISTEN_MAX; i++)
		strcat(line, "--nbd unix:s ");
	must_fail(strcat(line, "a"), "--nbd: given more than 16 times");
	memset(name, 'n', SERVE_NAME_MAX + 1);
	snprintf(line, sizeof(line), "--name %s a", name);
	must_fail(line, "longer than 255 bytes");
	snprintf(line, sizeof(line), "dir/%s", name);
	must_fail(line, "longer than 255 bytes");
}

static void help_wins_over_what_is_missing(void **state)
{
	struct serve_opts o;

	must_parse("--help", &o);
	assert_true(o.help);
	serve_opts_fini(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults),
		cmocka_unit_test(o1_options_belong_to_the_next_image_alone),
		cmocka_unit_test(o1_an_option_without_an_image_is_an_error),
		cmocka_unit_test(o2_options_for_all_stand_anywhere),
		cmocka_unit_test(o3_names_are_unique),
		cmocka_unit_test(wrong_values_are_named),
		cmocka_unit_test(limits_hold),
		cmocka_unit_test(help_wins_over_what_is_missing),
	};

	return cmocka_run_group_tests_name("serve_opts", tests, NULL, NULL);
}
