/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "cmd/serve_listen.h"
#include "cmd/serve_opts.h"

static struct err err;

static void expect_tcp(const char *text, const char *host, const char *port)
{
	struct listen_address a;

	assert_int_equal(listen_address_parse(text, &a, &err), 0);
	assert_null(a.path);
	assert_string_equal(a.host, host);
	assert_string_equal(a.port, port);
}

static void addresses_are_taken_apart(void **state)
{
	struct listen_address a;

	assert_int_equal(listen_address_parse("unix:/run/a:b", &a, &err), 0);
	assert_string_equal(a.path, "/run/a:b");
	expect_tcp("tcp:localhost:10810", "localhost", "10810");
	expect_tcp("tcp:localhost", "localhost", "");
	expect_tcp("tcp:[::1]:10810", "[::1]", "10810");
	expect_tcp("tcp:[::1]", "[::1]", "");
	expect_tcp("tcp:127.0.0.1:nbd", "127.0.0.1", "nbd");
}

static void wrong_addresses_are_refused(void **state)
{
	static const char *const wrong[] = {
		"", "unix:", "unix", "/run/x", "tcp:", "tcp::10809", "tcp:host:", "udp:host:1",
		"tcp:host:12345678901234567890123456789012",
	};
	struct listen_address a;
	char text[600] = "tcp:";

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(listen_address_parse(wrong[i], &a, &err), -EINVAL);
	memset(text + 4, 'h', LISTEN_HOST_MAX + 1);
	assert_int_equal(listen_address_parse(text, &a, &err), -EINVAL);
	text[4 + LISTEN_HOST_MAX] = '\0';
	assert_int_equal(listen_address_parse(text, &a, &err), 0);
}

static void uris_are_escaped(void **state)
{
	char dir[] = "/tmp/byre-listen-XXXXXX", path[64], address[80], uri[256], want[256];
	struct serve_listen l = { 0 };
	struct serve_opts o = { .nlisten = 1 };
	struct stat st;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/a b.sock", dir);
	snprintf(address, sizeof(address), "unix:%s", path);
	o.listen[0] = address;
	assert_int_equal(serve_listen_open(&o, &l, &err), 0);
	assert_int_equal(l.n, 1);
	snprintf(want, sizeof(want), "nbd+unix:///disk%%231?socket=%s/a%%20b.sock", dir);
	assert_string_equal(serve_listen_uri(l.fds[0], "disk#1", uri, sizeof(uri)), want);
	/* Short of room it is cut, not overrun. */
	assert_true(strlen(serve_listen_uri(l.fds[0], "disk#1", uri, 20)) < 20);
	serve_listen_close(&l);
	assert_int_equal(stat(path, &st), -1);
	rmdir(dir);
}

static void tcp_uris_have_the_port_in_use(void **state)
{
	struct serve_listen l = { 0 };
	struct serve_opts o = { .nlisten = 1, .listen = { "tcp:127.0.0.1:0" } };
	char uri[256];
	unsigned port = 0;

	assert_int_equal(serve_listen_open(&o, &l, &err), 0);
	serve_listen_uri(l.fds[0], "", uri, sizeof(uri));
	assert_int_equal(sscanf(uri, "nbd://127.0.0.1:%u/", &port), 1);
	assert_true(port > 0);
	serve_listen_close(&l);
}

static void one_bad_address_closes_the_good_ones(void **state)
{
	char dir[] = "/tmp/byre-listen-XXXXXX", address[80];
	struct serve_listen l = { 0 };
	struct serve_opts o = { .nlisten = 2 };
	struct stat st;

	assert_non_null(mkdtemp(dir));
	snprintf(address, sizeof(address), "unix:%s/s", dir);
	o.listen[0] = address;
	o.listen[1] = "unix:/nonexistent/folder/s";
	assert_true(serve_listen_open(&o, &l, &err) < 0);
	assert_int_equal(l.n, 0);
	assert_int_equal(stat(address + 5, &st), -1);
	o.nlisten = 0;
	assert_int_equal(serve_listen_open(&o, &l, &err), -EDESTADDRREQ);
	rmdir(dir);
}

static void sockets_for_machines_are_the_owners(void **state)
{
	char dir[] = "/tmp/byre-listen-XXXXXX", path[64];
	struct serve_image images[2] = { { .path = "a" }, { .path = "b" } };
	struct serve_opts o = { .images = images, .nimages = 2, .nlisten = 1,
				.listen = { "tcp:127.0.0.1:0" } };
	struct serve_listen l = { 0 };
	struct stat st;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/vm", dir);
	images[1].vhost_user = path;
	assert_int_equal(serve_listen_open(&o, &l, &err), 0);
	assert_int_equal(l.n, 1);
	assert_int_equal(l.nvub, 2);
	assert_int_equal(l.vub_fds[0], -1);
	assert_true(l.vub_fds[1] >= 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	serve_listen_close(&l);
	assert_int_equal(stat(path, &st), -1);
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addresses_are_taken_apart),
		cmocka_unit_test(wrong_addresses_are_refused),
		cmocka_unit_test(uris_are_escaped),
		cmocka_unit_test(tcp_uris_have_the_port_in_use),
		cmocka_unit_test(one_bad_address_closes_the_good_ones),
		cmocka_unit_test(sockets_for_machines_are_the_owners),
	};

	return cmocka_run_group_tests_name("serve_listen", tests, NULL, NULL);
}
