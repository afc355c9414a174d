/* SPDX-License-Identifier: MIT */
/* tests/malloc/behave.c - runs the cases, each in a process of its own, and prints TAP.
 *
 *	behave [PREFIX]         all cases, or those whose names begin with PREFIX
 *	behave -r NAME          this one, in this process
 *
 * MALLOC_IS=byre in the environment makes the suite insist that byre's malloc is the one. With
 * MALLOC_RUNNER cases are run by the emulator of that name, which must have run this. */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>

#include "case.h"

/* For what hangs; none needs more than some seconds of a processor. */
enum { LIMIT_SECONDS = 600, OUTPUT_MAX = 4000 };

static const struct test_case *const tables[] = {
	cases_size, cases_align, cases_info, cases_thread, cases_fork, cases_early, cases_limit,
	cases_misuse, cases_churn, cases_back,
};

static unsigned number, failed;

void case_fail(const char *file, int line, const char *what)
{
	dprintf(STDERR_FILENO, "%s:%d: %s (errno %d)\n", file, line, what, errno);
	_exit(1);
}

void case_skip(const char *why)
{
	dprintf(STDERR_FILENO, "%s\n", why);
	_exit(SKIPPED);
}

bool is_byre(void)
{
	const char *is = getenv("MALLOC_IS");

	return is && !strcmp(is, "byre");
}

void *must_find(const char *name)
{
	void *fn = dlsym(RTLD_DEFAULT, name);

	if (!fn && is_byre())
		case_fail(__FILE__, __LINE__, name);
	if (!fn)
		case_skip("this malloc does not have it");
	return fn;
}

static int run_here(const struct test_case *c)
{
	alarm(LIMIT_SECONDS);
	c->run();
	return 0;
}

static _Noreturn void become(const struct test_case *c, const char *program, int out)
{
	const char *runner = getenv("MALLOC_RUNNER");

	if (dup2(out, STDERR_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0)
		_exit(1);
	if (c->flags & CHECKED)
		setenv("BYRE_MALLOC_CHECK", "1", 1);
	if (runner)
		execlp(runner, runner, program, "-r", c->name, (char *)NULL);
	else
		execl("/proc/self/exe", program, "-r", c->name, (char *)NULL);
	_exit(1);
}

/* The wait status, and what the case said in @output, a string. */
static int run_case(const struct test_case *c, const char *program, char *output)
{
	size_t len = 0;
	int pipe_fds[2], status;
	ssize_t n;
	pid_t pid;
	char rest[512];

	if (pipe2(pipe_fds, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		perror("behave");
		exit(1);
	}
	if (pid == 0)
		become(c, program, pipe_fds[1]);
	close(pipe_fds[1]);
	while (len < OUTPUT_MAX && (n = read(pipe_fds[0], output + len, OUTPUT_MAX - len)) > 0)
		len += (size_t)n;
	output[len] = '\0';
	while (read(pipe_fds[0], rest, sizeof(rest)) > 0)       /* or it waits for room */
		;
	close(pipe_fds[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

/* NULL: as it must. */
static const char *judge(const struct test_case *c, int status, const char *output)
{
	if (!(c->flags & DIES))
		return WIFEXITED(status) && !WEXITSTATUS(status) ? NULL : "did not hold";
	if (WIFEXITED(status))
		return "was not noticed";
	if (!is_byre())
		return NULL;
	if (WTERMSIG(status) != SIGABRT)
		return "died, but not by abort()";
	return c->says && !strstr(output, c->says) ? "has another message" : NULL;
}

static void print_output(const char *output)
{
	char copy[OUTPUT_MAX + 1], *line, *rest = copy;

	strcpy(copy, output);
	while ((line = strsep(&rest, "\n"))) {
		if (*line)
			printf("# %s\n", line);
	}
}

static void report(const struct test_case *c, const char *program)
{
	static char output[OUTPUT_MAX + 1];
	const char *wrong;
	int status;

	number++;
	if (c->flags & BYRE_ONLY && !is_byre()) {
		printf("ok %u - %s # SKIP only byre promises this\n", number, c->name);
		return;
	}
	if (c->flags & NATIVE && getenv("MALLOC_RUNNER")) {
		printf("ok %u - %s # SKIP an emulator cannot\n", number, c->name);
		return;
	}
	status = run_case(c, program, output);
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) {
		printf("ok %u - %s # SKIP %s", number, c->name, output);
		return;
	}
	wrong = judge(c, status, output);
	if (!wrong) {
		printf("ok %u - %s\n", number, c->name);
		return;
	}
	failed++;
	printf("not ok %u - %s\n# it %s (%s %d)\n", number, c->name, wrong,
	       WIFEXITED(status) ? "status" : "signal",
	       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	print_output(output);
}

int main(int argc, char **argv)
{
	bool here = argc == 3 && !strcmp(argv[1], "-r");
	const char *prefix = argc == 2 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (unsigned t = 0; t < ARRAY_SIZE(tables); t++) {
		for (const struct test_case *c = tables[t]; c->name; c++) {
			if (here && !strcmp(c->name, argv[2]))
				return run_here(c);
			if (!here && !strncmp(c->name, prefix, strlen(prefix)))
				report(c, argv[0]);
		}
	}
	if (!number) {
		fprintf(stderr, "behave: no such case\n");
		return 2;
	}
	printf("1..%u\n", number);
	return failed > 0;
}
