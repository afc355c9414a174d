/* SPDX-License-Identifier: MIT */
/* loop_event_signal(): nothing that the other side of an eventfd does makes it wait, or lost; and
 * what it takes of the system does not grow. */
#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/log.h"
#include "loop/test_loop.h"

enum { PATIENCE_S = 60 };

static struct loop *start(void)
{
	struct loop *l = test_loop_new(LOOP_SIM, NULL);

	loop_turn(l, false);            /* it is this thread's now */
	return l;
}

/* Contexts of asynchronous I/O that this process has. */
static unsigned count_contexts(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned n = 0;
	char line[512];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, "[aio]") != NULL;
	fclose(f);
	return n;
}

static int new_event(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	assert_true(fd >= 0);
	return fd;
}

/* Loops and eventfds come and go as others like it: a grace period of the kernel's for each would
 * be minutes here, and a context for each more than a machine has. */
static void v25_what_comes_and_goes_leaves_nothing(void **state)
{
	for (unsigned i = 0; i < 100; i++) {
		struct loop *l = start();

		for (unsigned k = 0; k < 100; k++) {
			int fd = new_event();
			eventfd_t count;

			for (unsigned n = 0; n < 3; n++)
				loop_event_signal(l, fd);
			assert_int_equal(eventfd_read(fd, &count), 0);
			assert_int_equal(count, 3);
			close(fd);
		}
		loop_free(l);
	}
	assert_in_range(count_contexts(), 0, 1);
}

static void set_blocking(int fd, bool is_blocking)
{
	int flags = fcntl(fd, F_GETFL) & ~O_NONBLOCK;

	assert_int_equal(fcntl(fd, F_SETFL, is_blocking ? flags : flags | O_NONBLOCK), 0);
}

static void v25_a_full_counter_is_not_waited_for(void **state)
{
	struct pollfd p = { .fd = new_event(), .events = POLLIN };
	struct loop *l = start();

	assert_int_equal(eventfd_write(p.fd, UINT64_MAX - 1), 0);
	set_blocking(p.fd, true);
	alarm(PATIENCE_S);
	for (unsigned i = 0; i < 3; i++) {
		loop_event_signal(l, p.fd);
		assert_int_equal(poll(&p, 1, 0), 1);
	}
	alarm(0);
	loop_free(l);
	close(p.fd);
}

static unsigned warnings;

static void count_warnings(enum log_level level, const char *line)
{
	warnings += level == LOG_LEVEL_WARN;
}

static void limit_memory(rlim_t bytes)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_AS, &r) < 0)
		_exit(2);
	r.rlim_cur = MIN(bytes, r.rlim_max);
	if (setrlimit(RLIMIT_AS, &r) < 0)
		_exit(2);
}

static void on_time(struct timer *t)
{
}

static bool has_one_event(int fd)
{
	eventfd_t count;

	return !eventfd_read(fd, &count) && count == 1;
}

/* There is no context, as where others have all that there may be; then there is one again. */
static void go_without(void)
{
	struct loop *l = start();
	struct timer t = { .fn = on_time };
	int fd = new_event();

	log_set_sink(count_warnings);
	limit_memory(0);
	for (unsigned i = 0; i < 3; i++) {
		loop_event_signal(l, fd);
		if (!has_one_event(fd))
			_exit(3);
	}
	if (eventfd_write(fd, UINT64_MAX - 1))
		_exit(4);
	set_blocking(fd, true);
	alarm(PATIENCE_S);
	loop_event_signal(l, fd);
	if (warnings != 1)
		_exit(5);
	limit_memory(RLIM_INFINITY);
	set_blocking(fd, false);
	eventfd_read(fd, &(eventfd_t){ 0 });
	timer_set(l, &t, loop_now(l) + 2 * NS_PER_SEC);
	while (t.is_set)
		loop_turn(l, true);
	loop_event_signal(l, fd);
	if (!has_one_event(fd) || count_contexts() != 1)
		_exit(6);
	syscall(SYS_exit, 0);
}

static void v25_without_contexts_nothing_is_lost(void **state)
{
	test_in_child(go_without);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v25_without_contexts_nothing_is_lost),  /* there is none yet */
		cmocka_unit_test(v25_what_comes_and_goes_leaves_nothing),
		cmocka_unit_test(v25_a_full_counter_is_not_waited_for),
	};

	return cmocka_run_group_tests_name("loop events", tests, NULL, NULL);
}
