/* SPDX-License-Identifier: MIT */
/* The daemon inside this process, on each backend: starts, failed starts and ends, and that they
 * leave nothing behind. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/port.h"
#include "cmd/serve.h"
#include "cmd/serve_stats.h"

static char dir[] = "/tmp/byre-serve-XXXXXX";
static char first[64], second[64], missing[64], address[64];
static struct err err;

static const enum loop_backend backends[] = { LOOP_AUTO, LOOP_POSIX };

static void make_disk(const char *path)
{
	int fd = open(path, O_CREAT | O_WRONLY, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)MiB), 0);
	close(fd);
}

static int set_up(void **state)
{
	if (!mkdtemp(dir))
		return -1;
	snprintf(first, sizeof(first), "%s/first", dir);
	snprintf(second, sizeof(second), "%s/second", dir);
	snprintf(missing, sizeof(missing), "%s/missing", dir);
	snprintf(address, sizeof(address), "unix:%s/sock", dir);
	make_disk(first);
	make_disk(second);
	return 0;
}

static int tear_down(void **state)
{
	unlink(first);
	unlink(second);
	return rmdir(dir);              /* fails if a socket was left */
}

/* Parses the words @args, up to NULL, after "serve" and the backend. */
static void options(enum loop_backend backend, const char *const *args, struct serve_opts *ret)
{
	char *argv[16] = { (char *)(uintptr_t)"serve" };
	int argc = 1;

	for (; *args; args++)
		argv[argc++] = (char *)(uintptr_t)*args;
	assert_int_equal(serve_opts_parse(argc, argv, ret, &err), 0);
	ret->backend = backend;
}

static unsigned entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int connect_to_it(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(sa.sun_path, address + 5);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

static void greet(void)
{
	char magic[9] = "";
	int fd = connect_to_it();

	assert_int_equal(recv(fd, magic, 8, MSG_WAITALL), 8);
	assert_string_equal(magic, "NBDMAGIC");
	close(fd);
}

static void a_start_and_an_end_leave_nothing(void **state)
{
	const char *const words[] = { "--loops", "3", "--nbd", address, first, "-r", second, NULL };
	unsigned before = entries("/proc/self/fd");

	for (unsigned i = 0; i < ARRAY_SIZE(backends); i++) {
		struct serve_opts o;
		struct serve_stats st;
		struct serve s = { 0 };

		options(backends[i], words, &o);
		assert_int_equal(serve_start(&s, &o, &err), 0);
		assert_int_equal(port_size(s.disks[0].port), MiB);
		assert_false(s.disks[0].port->read_only);
		assert_true(s.disks[1].port->read_only);
		assert_ptr_equal(s.disks[1].home, s.loops[1].loop);
		greet();
		assert_int_equal(serve_stats_init(&st, &s, 0), 0);
		serve_stats_fini(&st);
		assert_int_equal(serve_stop(&s, &err), 0);
		serve_opts_fini(&o);
		assert_int_equal(entries("/proc/self/fd"), before);
	}
}

/* A client that sees its end finds no file to connect to. */
static void *look_for_the_socket(void *arg)
{
	int *fd = arg, found = 0;
	char byte;

	while (recv(*fd, &byte, 1, 0) > 0)
		;
	found = !access(address + 5, F_OK);
	close(*fd);
	*fd = found;
	return NULL;
}

static void who_is_cut_off_finds_nobody(void **state)
{
	const char *const nbd[] = { "--nbd", address, first, second, NULL };
	const char *const vub[] = { "--vhost-user", address + 5, first, NULL };

	for (unsigned i = 0; i < 32; i++) {
		struct serve_opts o;
		struct serve s = { 0 };
		pthread_t client;
		int fd;

		options(LOOP_AUTO, i % 2 ? nbd : vub, &o);
		assert_int_equal(serve_start(&s, &o, &err), 0);
		fd = connect_to_it();
		assert_int_equal(pthread_create(&client, NULL, look_for_the_socket, &fd), 0);
		assert_int_equal(serve_stop(&s, &err), 0);
		pthread_join(client, NULL);
		assert_int_equal(fd, 0);
		serve_opts_fini(&o);
	}
}

/* Each word list fails at another step. */
static void a_failed_start_leaves_nothing(void **state)
{
	const char *const bad_image[] = { "--nbd", address, first, missing, NULL };
	const char *const bad_allow[] = { "--nbd", address, "--allow", missing, first, NULL };
	const char *const same_twice[] = { "--nbd", address, first, "--name", "x", first, NULL };
	const char *const bad_socket[] = { "--nbd", address, "--nbd", "unix:/none/x", first, NULL };
	const char *const no_socket[] = { first, second, NULL };
	static const int codes[] = { -ENOENT, -ENOENT, -EBUSY, -ENOENT, -EDESTADDRREQ };
	const char *const *const lists[] = {
		bad_image, bad_allow, same_twice, bad_socket, no_socket,
	};
	unsigned before = entries("/proc/self/fd");

	for (unsigned i = 0; i < ARRAY_SIZE(backends) * ARRAY_SIZE(lists); i++) {
		struct serve_opts o;
		struct serve s = { 0 };

		options(backends[i % 2], lists[i / 2], &o);
		err = (struct err) { 0 };
		assert_int_equal(serve_start(&s, &o, &err), codes[i / 2]);
		assert_true(err.text[0]);
		assert_null(s.disks);
		assert_int_equal(s.nloops, 0);
		serve_opts_fini(&o);
		assert_int_equal(entries("/proc/self/fd"), before);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_start_and_an_end_leave_nothing),
		cmocka_unit_test(who_is_cut_off_finds_nobody),
		cmocka_unit_test(a_failed_start_leaves_nothing),
	};

	return cmocka_run_group_tests_name("serve", tests, set_up, tear_down);
}
