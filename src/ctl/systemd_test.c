/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
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

#include "base/err.h"
#include "base/log.h"
#include "ctl/systemd.h"

static char dir[] = "/tmp/byre-systemd-XXXXXX";
static struct err err;
static unsigned logged;

static void count_line(enum log_level level, const char *line)
{
	logged++;
}

static int make_dir(void **state)
{
	log_set_sink(count_line);
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	log_set_sink(NULL);
	return rmdir(dir);
}

/* A datagram socket as the service manager has it; @name as NOTIFY_SOCKET says it. */
static int manager(const char *name)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);

	assert_true(fd >= 0);
	memcpy(sa.sun_path, name, strlen(name));
	if (name[0] == '@')
		sa.sun_path[0] = '\0';
	assert_int_equal(bind(fd, (struct sockaddr *)&sa,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
					  strlen(name))), 0);
	return fd;
}

static void told_at(const char *name)
{
	struct notify n;
	char got[64] = "";
	int fd = manager(name);

	setenv("NOTIFY_SOCKET", name, 1);
	notify_init(&n);
	assert_null(getenv("NOTIFY_SOCKET"));
	notify_send(&n, "READY=1\nSTATUS=%u disks", 3);
	assert_true(recv(fd, got, sizeof(got) - 1, 0) > 0);
	assert_string_equal(got, "READY=1\nSTATUS=3 disks");
	notify_fini(&n);
	close(fd);
}

static void the_manager_is_told(void **state)
{
	char name[64];

	snprintf(name, sizeof(name), "%s/notify", dir);
	told_at(name);
	unlink(name);
	snprintf(name, sizeof(name), "@byre-test-%d", (int)getpid());
	told_at(name);
}

static void s1_without_a_manager_nothing_is_sent(void **state)
{
	struct notify n;

	unsetenv("NOTIFY_SOCKET");
	notify_init(&n);
	assert_int_equal(n.fd, -1);
	notify_send(&n, "READY=1");
	notify_fini(&n);
}

static void s1_a_dead_or_full_manager_is_no_obstacle(void **state)
{
	char name[64];
	struct notify n;
	int fd;

	snprintf(name, sizeof(name), "%s/notify", dir);
	fd = manager(name);
	setenv("NOTIFY_SOCKET", name, 1);
	notify_init(&n);
	for (unsigned i = 0; i < 10000; i++)
		notify_send(&n, "STATUS=%u", i);
	close(fd);
	unlink(name);
	notify_send(&n, "READY=1");
	notify_fini(&n);
}

static void s1_an_unusable_address_is_logged(void **state)
{
	char too_long[200] = "/";
	const char *const wrong[] = { "relative", "", "@", too_long };

	memset(too_long + 1, 'x', sizeof(too_long) - 2);
	for (unsigned i = 0; i < 4; i++) {
		struct notify n;

		logged = 0;
		setenv("NOTIFY_SOCKET", wrong[i], 1);
		notify_init(&n);
		assert_int_equal(n.fd, -1);
		assert_int_equal(logged, 1);
		assert_null(getenv("NOTIFY_SOCKET"));
	}
}

/* Puts @n descriptors made by @make in a row; returns the lowest. */
static int row_of(int n, int (*make)(int i))
{
	const int first = 40;

	for (int i = 0; i < n; i++) {
		int fd = make(i);

		assert_int_equal(dup2(fd, first + i), first + i);
		close(fd);
	}
	return first;
}

static int listener(int i)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };      /* the kernel picks a name */
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa_family_t)), 0);
	assert_int_equal(listen(fd, 1), 0);
	return fd;
}

static int second_is_no_listener(int i)
{
	return i == 1 ? socket(AF_UNIX, SOCK_STREAM, 0) : listener(i);
}

static int second_is_a_datagram(int i)
{
	return i == 1 ? socket(AF_INET, SOCK_DGRAM, 0) : listener(i);
}

static int plain_file(int i)
{
	return open("/dev/null", O_RDWR);
}

static int take(int first, const char *pid, const char *n, int *fds)
{
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", n, 1);
	setenv("LISTEN_FDNAMES", "nbd", 1);

	int rc = systemd_take_sockets(first, fds, 4, &err);

	assert_null(getenv("LISTEN_PID"));
	assert_null(getenv("LISTEN_FDS"));
	assert_null(getenv("LISTEN_FDNAMES"));
	return rc;
}

static const char *own_pid(void)
{
	static char text[16];

	snprintf(text, sizeof(text), "%d", (int)getpid());
	return text;
}

static void s2_listening_sockets_are_taken(void **state)
{
	int fds[4], first = row_of(3, listener);

	assert_int_equal(take(first, own_pid(), "3", fds), 3);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(fds[i], first + i);
		assert_true(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
		close(fds[i]);
	}
}

static void s2_other_descriptors_are_refused(void **state)
{
	int (*const makers[])(int) = { second_is_no_listener, second_is_a_datagram, plain_file };
	int fds[4];

	for (unsigned i = 0; i < 3; i++) {
		int first = row_of(2, makers[i]);

		assert_int_equal(take(first, own_pid(), "2", fds), -EINVAL);
		close(first);
		close(first + 1);
	}
	assert_int_equal(take(200, own_pid(), "1", fds), -EINVAL);      /* not open at all */
}

static void s2_what_is_not_meant_for_us_is_left_alone(void **state)
{
	int fds[4], first = row_of(1, listener);

	assert_int_equal(take(first, "1", "1", fds), 0);
	assert_int_equal(take(first, own_pid(), "0", fds), 0);
	assert_int_equal(take(first, own_pid(), "5", fds), -ERANGE);
	assert_int_equal(take(first, own_pid(), "x", fds), -EINVAL);
	assert_int_equal(take(first, "", "1", fds), -EINVAL);
	assert_int_equal(systemd_take_sockets(first, fds, 4, &err), 0);
	assert_false(fcntl(first, F_GETFD) & FD_CLOEXEC);
	close(first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_manager_is_told),
		cmocka_unit_test(s1_without_a_manager_nothing_is_sent),
		cmocka_unit_test(s1_a_dead_or_full_manager_is_no_obstacle),
		cmocka_unit_test(s1_an_unusable_address_is_logged),
		cmocka_unit_test(s2_listening_sockets_are_taken),
		cmocka_unit_test(s2_other_descriptors_are_refused),
		cmocka_unit_test(s2_what_is_not_meant_for_us_is_left_alone),
	};

	return cmocka_run_group_tests_name("systemd", tests, make_dir, remove_dir);
}
