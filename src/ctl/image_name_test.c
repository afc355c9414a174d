/* SPDX-License-Identifier: MIT */
#include "ctl/image_name.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/prng.h"
#include "ctl/option_list.h"

static struct err err;

static void must_refuse(const char *text, int rc, const char *says)
{
	struct image_name n = { 0 };

	assert_int_equal(image_name_parse(text, &n, &err), rc);
	if (!strstr(err.text, says))
		fail_msg("'%s': '%s' does not say '%s'", text, err.text, says);
	assert_null(n.path);
}

static void names_of_files_and_protocols(void **state)
{
	struct image_name n;

	assert_int_equal(image_name_parse("./a:b", &n, &err), 0);
	assert_string_equal(n.path, "./a:b");
	assert_null(n.format);
	image_name_fini(&n);
	assert_int_equal(image_name_parse("file:x,y", &n, &err), 0);
	assert_string_equal(n.path, "x,y");
	image_name_fini(&n);
	assert_int_equal(image_name_parse("file:x:y", &n, &err), 0);
	assert_string_equal(n.path, "./x:y");
	image_name_fini(&n);
	assert_int_equal(image_name_parse("vhost-user:a:b,packed=on", &n, &err), 0);
	assert_string_equal(n.path, "vhost-user:a:b,packed=on");
	assert_true(image_name_is_vhost_user(n.path));
	image_name_fini(&n);
	assert_int_equal(image_name_parse("./vhost-user:a", &n, &err), 0);
	assert_false(image_name_is_vhost_user(n.path));
	image_name_fini(&n);
	must_refuse(":x", -EINVAL, "Unknown protocol ''");
	must_refuse("nbd:x", -EINVAL, "error parsing address 'x'");
	must_refuse("rbd:x", -ENOTSUP, "'rbd' is not supported");
	must_refuse("foo:x", -EINVAL, "Unknown protocol 'foo'");
	must_refuse("", -EINVAL, "requires a file name");
	must_refuse("json:", -EINVAL, "Expecting a JSON value");
	must_refuse("json:[]", -EPROTO, "Invalid JSON object given");
	must_refuse("json:{\"driver\":\"vmdk\",\"file.filename\":\"x\"}", -ENOTSUP, "'vmdk'");
	must_refuse("json:{'driver':'raw','file':{'driver':'raw','file.filename':'x'}}", -ENOTSUP,
		    "A format below a format");
}

static void o4_what_nobody_understands_is_an_error(void **state)
{
	static const char *const options[] = {
		"", "foo=1,", "cache.foo=1,", "offset.x=1,", "backing.foo=1,", "read-only=2,",
		"offset=x,", "backing.file.filename=x,backing.foo=1,",
		"data-file.filename=x,data-file.size=3,", "file.foo=1,",
	};
	char text[256];

	for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		for (int raw = 0; raw < 2; raw++) {
			struct image_name n = { 0 };
			char *warning = NULL;
			int rc;

			snprintf(text, sizeof(text), "%sdriver=%s,file.filename=f", options[i],
				 raw ? "raw" : "qcow2");
			rc = image_name_parse_options(text, &n, &warning, &err);
			if (rc != (i ? -EINVAL : 0))
				fail_msg("'%s': %d", text, rc);
			assert_null(warning);
			image_name_fini(&n);
		}
	}
}

/* O4, where the format is found out later: what does not fit is kept for whoever finds it out. */
static void o4_options_of_one_format_are_noted(void **state)
{
	static const struct { const char *options, *raw, *qcow2; } cases[] = {
		{ "", NULL, NULL }, { "offset=512,", NULL, "offset" }, { "size=1k,", NULL, "size" },
		{ "l2-cache-size=1M,", "l2-cache-size", NULL }, { "foo=1,", "foo", "foo" },
		{ "offset=1,foo=1,", "foo", "offset" }, { "read-only=on,", NULL, NULL },
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct image_name n;
		char *warning = NULL, text[128];

		snprintf(text, sizeof(text), "%sfile.filename=f", cases[i].options);
		assert_int_equal(image_name_parse_options(text, &n, &warning, &err), 0);
		assert_string_equal(n.unknown_to_raw ? n.unknown_to_raw : "",
				    cases[i].raw ? cases[i].raw : "");
		assert_string_equal(n.unknown_to_qcow2 ? n.unknown_to_qcow2 : "",
				    cases[i].qcow2 ? cases[i].qcow2 : "");
		image_name_fini(&n);
	}
}

static void a_description_says_all(void **state)
{
	char *warning = NULL;
	struct image_name n;

	assert_int_equal(image_name_parse_options(
		"driver=qcow2,file.filename=a,,b,file.locking=off,cache.direct=on,noread-only,"
		"backing.driver=raw,backing.offset=1k,backing.file.filename=\"c\","
		"data-file.filename=d", &n, &warning, &err), 0);
	assert_string_equal(n.path, "a,b");
	assert_string_equal(n.format, "qcow2");
	assert_true(n.no_lock && n.has_cache && n.cache == FILE_CACHE_NONE && !n.is_read_only);
	assert_string_equal(n.backing->path, "\"c\"");
	assert_int_equal(n.backing->raw_offset, 1024);
	assert_string_equal(n.backing->shown, "json:{\"offset\": \"1k\", \"driver\": \"raw\", "
			    "\"file\": {\"driver\": \"file\", \"filename\": \"\\\"c\\\"\"}}");
	assert_string_equal(n.data_file->path, "d");
	assert_non_null(strstr(warning, "Please use read-only=off instead"));
	free(warning);
	image_name_fini(&n);
	assert_int_equal(image_name_parse("json:{'driver':'qcow2','backing':null,"
					  "'file':{'filename':'x'}}", &n, &err), 0);
	assert_true(n.no_backing);
	image_name_fini(&n);
}

static void o5_a_name_is_not_too_deep(void **state)
{
	for (unsigned depth = 1; depth < 80; depth++) {
		char text[16384] = "json:";
		struct image_name n = { 0 };
		int rc;

		for (unsigned i = 0; i < depth; i++)
			strcat(text, "{'driver':'qcow2','file':{'filename':'x'},'backing':");
		strcat(text, "null");
		for (unsigned i = 0; i < depth; i++)
			strcat(text, "}");
		rc = image_name_parse(text, &n, &err);
		assert_int_equal(rc, depth <= IMAGE_NAME_DEPTH_MAX ? 0 : -EINVAL);
		image_name_fini(&n);
	}
}

/* O6: neither length nor depth nor nonsense does harm; what is parsed stays within its limit. */
static void o6_any_text_ends_in_a_list_or_an_error(void **state)
{
	static const char alphabet[] = "{}[]\"':,=.\\u0aD8-1e+ntrfx ";
	struct prng p = { 7 };
	char *text = malloc(100001);

	memset(text, '[', 100000);
	text[100000] = '\0';
	for (int round = 0; round < 20000; round++) {
		struct option_list l = { 0 };

		if (!option_list_parse_json(text, &l, NULL))
			assert_true(l.n <= OPTIONS_MAX);
		option_list_fini(&l);
		if (!option_list_parse(text, "file", &l, NULL))
			assert_true(l.n <= OPTIONS_MAX);
		option_list_fini(&l);

		size_t n = prng_below(&p, 60);

		for (size_t i = 0; i < n; i++)
			text[i] = alphabet[prng_below(&p, sizeof(alphabet) - 1)];
		if (n && round % 2)
			text[0] = '{';
		text[n] = '\0';
	}
	text[0] = '\0';
	for (unsigned i = 0; i <= OPTIONS_MAX; i++) {
		struct option_list l = { 0 };

		if (i % 32 == 0) {
			assert_int_equal(option_list_parse(text, NULL, &l, &err), 0);
			assert_int_equal(l.n, i);
			option_list_fini(&l);
		}
		sprintf(text + strlen(text), "k%u=v,", i);
	}
	assert_int_equal(option_list_parse(text, NULL, &(struct option_list) { 0 }, &err), -E2BIG);
	free(text);
}

static void strings_are_unescaped(void **state)
{
	struct option_list l;

	assert_int_equal(option_list_parse_json("{\"a\":\"\\u00e9\\ud83d\\ude00\\n\\/\",\"b\":[1,"
						"{\"c\":true}],\"d\":{}}", &l, &err), 0);
	assert_int_equal(l.n, 4);
	assert_string_equal(l.items[0].value, "\xc3\xa9\xf0\x9f\x98\x80\n/");
	assert_string_equal(l.items[1].key, "b.0");
	assert_string_equal(l.items[2].key, "b.1.c");
	assert_int_equal(l.items[2].kind, OPTION_BOOL);
	assert_int_equal(l.items[3].kind, OPTION_EMPTY);
	option_list_fini(&l);
}

static void numbers_are_kept_as_they_are_shown(void **state)
{
	static const struct { const char *text, *value; } cases[] = {
		{ "0", "0" }, { "-0", "0" }, { "-5", "-5" }, { "512.0", "512" }, { "1e3", "1000" },
		{ "9223372036854775807", "9223372036854775807" },
		{ "18446744073709551615", "18446744073709551615" },
		{ "18446744073709551616", "1.8446744073709552e+19" }, { "1E400", "inf" },
		{ "0.5", "0.5" }, { "-18446744073709551616", "-1.8446744073709552e+19" },
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct option_list l;
		char text[64];

		snprintf(text, sizeof(text), "{\"n\":%s}", cases[i].text);
		assert_int_equal(option_list_parse_json(text, &l, &err), 0);
		assert_string_equal(l.items[0].value, cases[i].value);
		assert_int_equal(l.items[0].kind, OPTION_NUMBER);
		option_list_fini(&l);
	}
}

/* What is no token is found first, up to the end of the first value. */
static void stray_characters_come_first(void **state)
{
	must_refuse("json:{\"a\" 1,K}", -EINVAL, "stray 'K'");
	must_refuse("json:{\"a\":\"\t1\"}", -EINVAL, "stray '\"\t'");
	must_refuse("json:{\"a\":\"x", -EINVAL, "stray '\"x'");
	must_refuse("json:{\"a\":\"x\\", -EINVAL, "stray '\"x\\'");
	must_refuse("json:{\"a\":1 2}K", -EINVAL, "expected separator in dict");
	must_refuse("json:{\"a\":1}\"x", -EINVAL, "at most one JSON value");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_of_files_and_protocols),
		cmocka_unit_test(o4_what_nobody_understands_is_an_error),
		cmocka_unit_test(o4_options_of_one_format_are_noted),
		cmocka_unit_test(a_description_says_all),
		cmocka_unit_test(o5_a_name_is_not_too_deep),
		cmocka_unit_test(o6_any_text_ends_in_a_list_or_an_error),
		cmocka_unit_test(strings_are_unescaped),
		cmocka_unit_test(numbers_are_kept_as_they_are_shown),
		cmocka_unit_test(stray_characters_come_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
