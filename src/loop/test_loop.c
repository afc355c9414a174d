/* SPDX-License-Identifier: MIT */
#include "loop/test_loop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "loop/sanitize.h"

struct loop *test_loop_new(enum loop_backend backend, struct workers *workers)
{
	struct loop_opts opts = { .backend = backend, .workers = workers, .sim_seed = 7 };
	struct loop *l = NULL;
	struct err err = { 0 };

	if (loop_new(&opts, &l, &err) < 0)
		fail_msg("%s", err.text);
	return l;
}

void test_in_child(void (*body)(void))
{
	int status = 0;
	pid_t pid;

	if (is_instrumented())
		skip();
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		body();
		/* No other call is allowed to a body that has forbidden the rest. */
		syscall(SYS_exit, 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}
