/* SPDX-License-Identifier: MIT */
#include "ctl/nbd_name.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/prng.h"
#include "ctl/option_list.h"

static struct err err;

/* @name means what @shown says. */
static void means(const char *name, const char *shown)
{
	struct nbdc_server s;
	char *got;

	err = (struct err) { 0 };
	if (nbd_name_parse(name, &s, &err))
		fail_msg("'%s': %s", name, err.text);
	got = nbd_name_show(&s);
	assert_string_equal(got, shown);
	free(got);
	nbdc_server_fini(&s);
}

static void is_refused(const char *name, const char *says)
{
	struct nbdc_server s;

	assert_int_equal(nbd_name_parse(name, &s, &err), -EINVAL);
	assert_string_equal(err.text, says);
}

static void uris_are_understood(void **state)
{
	means("nbd://host", "nbd://host:10809");
	means("nbd://host/", "nbd://host:10809");
	means("nbd://host:/x", "nbd://host:10809/x");
	means("nbd://host:1/x", "nbd://host:1/x");
	means("nbd+tcp://host:1//x/y", "nbd://host:1/x/y");
	means("nbd://[::1]/x", "nbd://::1:10809/x");
	means("nbd://[::1]:7/x", "nbd://::1:7/x");
	means("nbd://user@host:1/x#frag", "nbd://host:1/x");
	means("nbd://host:1/a%20b%2Fc", "nbd://host:1/a b/c");
	means("nbd+unix:///x?socket=/a/b", "nbd+unix:///x?socket=/a/b");
	means("nbd+unix://?socket=/a", "nbd+unix://?socket=/a");
	means("nbd+unix:///?socket=/a%3fb", "nbd+unix://?socket=/a?b");
	means("nbds://host/x?tls-certificates=/pki&tls-verify-peer=0", "nbds://host:10809/x");
	means("nbds+unix://alice@/x?socket=/a&tls-psk-file=/k", "nbds+unix:///x?socket=/a");
}

static void what_is_no_uri_is_refused(void **state)
{
	static const char *const names[] = {
		"nbd://", "nbd:///x", "nbd://:1/x", "nbd://host:abc/x", "nbd://host:1x",
		"nbd://[::1", "nbd://[::1]x/y", "nbd://host/%zz", "nbd://host/%4", "nbd://host/%",
		"nbd://host/%00",
		"nbd://host/x?socket=/a", "nbd://host/x?tls-verify-peer=1", "nbd+unix:///x",
		"nbd+unix:///x?socket=", "nbd+unix:///x?socket=/a&socket=/b",
		"nbd+unix:///x?sockets=/a", "nbd+unix:///x?socket", "nbd+unix://host/x?socket=/a",
		"nbds://host/x?tls-verify-peer=2", "nbd+unix:/x", "nbds:host:1", "nbd:x://y",
	};

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
		is_refused(names[i], "No valid URL specified");
}

static void older_names_are_understood(void **state)
{
	means("nbd:host:1", "nbd://host:1");
	means("nbd:[::1]:1", "nbd://::1:1");
	means("nbd::1", "nbd://:1");
	means("nbd:host:1:exportname=a:b", "nbd://host:1/a:b");
	means("nbd:unix:/a/b", "nbd+unix://?socket=/a/b");
	means("nbd:unix:/a:exportname=x", "nbd+unix:///x?socket=/a");
	is_refused("nbd:", "NBD server address missing");
	is_refused("nbd:host:1:exportname=", "NBD server address missing");
	is_refused("nbd:host", "error parsing address 'host'");
	is_refused("nbd:host:", "error parsing address 'host:'");
	is_refused("nbd:[::1", "error parsing IPv6 address '[::1'");
	is_refused("nbd:[::1]", "error parsing IPv6 address '[::1]'");
}

static void only_its_own_protocols_are_taken(void **state)
{
	assert_true(nbd_name_is("nbd:"));
	assert_true(nbd_name_is("nbds+unix://"));
	assert_false(nbd_name_is("nbd"));
	assert_false(nbd_name_is("./nbd:x"));
	assert_false(nbd_name_is("nbd+foo://x"));
	assert_false(nbd_name_is("nb:x"));
}

static void options(const char *text, const char *shown, const char *says)
{
	struct option_list list = { 0 };
	struct nbdc_server s;
	char *got = NULL;
	int rc;

	assert_int_equal(option_list_parse(text, NULL, &list, &err), 0);
	rc = nbd_name_take(&list, "", &s, &err);
	if (says) {
		assert_true(rc < 0);
		assert_string_equal(err.text, says);
	} else {
		if (rc)
			fail_msg("'%s': %s", text, err.text);
		assert_null(option_list_unused(&list, ""));
		got = nbd_name_show(&s);
		assert_string_equal(got, shown);
		nbdc_server_fini(&s);
	}
	free(got);
	option_list_fini(&list);
}

static void options_are_understood(void **state)
{
	options("server.type=unix,server.path=/a,export=x", "nbd+unix:///x?socket=/a", NULL);
	options("server.type=inet,server.host=h,server.port=1,server.to=2", "nbd://h:1", NULL);
	options("host=h,export=", "nbd://h:10809/", NULL);
	options("path=/a,reconnect-delay=5,open-timeout=0x10", "nbd+unix://?socket=/a", NULL);
	options("export=x", NULL, "NBD server address missing");
	options("path=/a,host=h", NULL, "path and host may not be used at the same time");
	options("path=/a,port=1", NULL, "port may not be used without host");
	options("path=/a,server.type=unix", NULL,
		"Cannot use 'server' and path/host/port at the same time");
	options("server.path=/a", NULL, "Parameter 'type' is missing");
	options("server.type=unix", NULL, "Parameter 'path' is missing");
	options("server.type=inet,server.host=h", NULL, "Parameter 'port' is missing");
	options("server.type=x", NULL, "Parameter 'type' does not accept value 'x'");
	options("server.type=unix,server.path=/a,server.foo=1", NULL,
		"Parameter 'foo' is unexpected");
	options("path=/a,reconnect-delay=x", NULL, "Parameter 'reconnect-delay' expects a number");
	options("path=/a,tls-creds=t", NULL, "No TLS credentials with id 't'");
}

/* Any bytes end in a name or an error. */
static void any_text_is_a_name_or_an_error(void **state)
{
	static const char alphabet[] = "nbds+unix:/?=&#%[]@0a1socket.exportname";
	struct prng p = { 3 };

	for (unsigned i = 0; i < 200000; i++) {
		char text[64] = "nbd";
		size_t n = 3 + prng_below(&p, sizeof(text) - 4);
		struct nbdc_server s;

		if (i % 2)
			strcpy(text, i % 4 == 1 ? "nbd+unix:///x?socket=" : "nbd://");
		for (size_t k = strlen(text); k < n; k++)
			text[k] = alphabet[prng_below(&p, sizeof(alphabet) - 1)];

		char *exact = strdup(text);     /* a byte more would be seen by ASan */

		if (!nbd_name_parse(exact, &s, &err)) {
			assert_true(s.path || (s.host && s.port));
			nbdc_server_fini(&s);
		}
		free(exact);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(uris_are_understood),
		cmocka_unit_test(what_is_no_uri_is_refused),
		cmocka_unit_test(older_names_are_understood),
		cmocka_unit_test(only_its_own_protocols_are_taken),
		cmocka_unit_test(options_are_understood),
		cmocka_unit_test(any_text_is_a_name_or_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
