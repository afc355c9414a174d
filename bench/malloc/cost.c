/* SPDX-License-Identifier: MIT */
/* bench/malloc/cost.c - runs a program with a library preloaded, and tells what it cost.
 *
 *	cost -o FILE [-p LIBRARY] COMMAND...
 *
 * A JSON line goes to FILE: CPU time of the program and of all that it waited for, user and
 * system, in microseconds; the most that one of these had resident, in KiB; page faults. Exits as
 * the program did. SIGTERM and SIGINT are passed on.
 *
 * This is a program of its own, small and linked statically, because the kernel counts what a
 * process was before exec as part of its peak: started from Python, all peaks were Python's. */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile pid_t child;

static void pass_on(int sig)
{
	if (child > 0)
		kill(child, sig);
}

static _Noreturn void die(const char *what)
{
	perror(what);
	exit(125);
}

static _Noreturn void become(const char *library, char **command)
{
	if (library && setenv("LD_PRELOAD", library, 1) < 0)
		_exit(125);
	execvp(command[0], command);
	perror(command[0]);
	_exit(127);
}

static uint64_t usec(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_usec;
}

static void tell(const char *path, const struct rusage *use, int status)
{
	FILE *f = fopen(path, "w");

	if (!f)
		die(path);
	fprintf(f, "{\"user_us\": %lu, \"sys_us\": %lu, \"rss_kib\": %ld, \"faults\": %ld, "
		"\"switches\": %ld, \"status\": %d}\n",
		usec(use->ru_utime), usec(use->ru_stime), use->ru_maxrss, use->ru_minflt,
		use->ru_nvcsw, status);
	if (fclose(f))
		die(path);
}

int main(int argc, char **argv)
{
	const char *library = NULL, *out = NULL;
	struct rusage use;
	int c, status, code;

	while ((c = getopt(argc, argv, "+o:p:")) != -1) {
		if (c == 'o')
			out = optarg;
		else if (c == 'p')
			library = optarg;
		else
			return 125;
	}
	if (!out || !argv[optind]) {
		fprintf(stderr, "usage: cost -o FILE [-p LIBRARY] COMMAND...\n");
		return 125;
	}
	signal(SIGTERM, pass_on);
	signal(SIGINT, pass_on);
	child = fork();
	if (child < 0)
		die("fork");
	if (child == 0)
		become(library, argv + optind);
	while (wait4(child, &status, 0, &use) < 0) {
		if (errno != EINTR)
			die("wait4");
	}
	code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	tell(out, &use, code);
	return code;
}
