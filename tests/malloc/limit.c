/* SPDX-License-Identifier: MIT */
/* tests/malloc/limit.c - little memory: limits, and system calls that fail at any point. */
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "case.h"

/* ---- limits of the process ---- */

enum { HELD_MAX = 100000 };

static void *held[HELD_MAX];

/* Until there is no more; returns how many bytes that were. Leaves nothing. */
static size_t take_all(size_t size)
{
	unsigned count = 0;

	errno = 0;
	while (count < HELD_MAX && (held[count] = malloc(size)))
		memset(held[count++], 1, 1);
	CHECK(count < HELD_MAX && errno == ENOMEM);
	for (unsigned i = 0; i < count; i++)
		free(held[i]);
	return count * size;
}

static _Noreturn void again(const char *name)
{
	execl("/proc/self/exe", program_invocation_name, "-r", name, (char *)NULL);
	case_fail(__FILE__, __LINE__, "exec");
}

/* The limit holds from the start of the process: this program, once more. */
static void under_limit(int which, size_t bytes, size_t at_least)
{
	struct rlimit limit;
	size_t first;

	CHECK(!getrlimit(which, &limit));
	if (limit.rlim_cur != bytes) {
		CHECK(!setrlimit(which, &(struct rlimit){ bytes, limit.rlim_max }));
		again(which == RLIMIT_AS ? "little_address_space" : "little_data");
	}
	first = take_all(60000);
	CHECK(first >= at_least);
	CHECK(take_all(60000) >= first / 10 * 9);
	CHECK(take_all(3 << 20) >= first / 2);
	CHECK(take_all(5000) >= first / 2);
}

static void little_address_space(void)
{
	under_limit(RLIMIT_AS, 300 << 20, 150 << 20);
}

static void little_data(void)
{
	under_limit(RLIMIT_DATA, 300 << 20, 150 << 20);
}

static void *take_in_thread(void *arg)
{
	CHECK(take_all(60000) >= 100 << 20);
	return NULL;
}

static void little_for_threads(void)
{
	pthread_t t;

	CHECK(!setrlimit(RLIMIT_AS, &(struct rlimit){ 3UL << 40, 3UL << 40 }));
	for (unsigned i = 0; i < 3; i++) {
		struct rlimit as = { 400 << 20, RLIM_INFINITY };
		pid_t pid = fork();
		int status;

		if (pid == 0) {
			as.rlim_max = 3UL << 40;
			if (setrlimit(RLIMIT_AS, &as) < 0 ||
			    pthread_create(&t, NULL, take_in_thread, NULL))
				_exit(3);       /* what was reserved before is more than that */
			_exit(pthread_join(t, NULL) ? 1 : 0);
		}
		CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
		CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3);
	}
}

/* ---- the kernel refuses ---- */

enum { REFUSED_CALLS = 5 };
static const int memory_calls[REFUSED_CALLS] = { SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise,
						 SYS_brk };

/* Memory calls of this process now wait for an answer of whoever has the descriptor. */
static int listen_to_memory_calls(void)
{
	struct sock_filter program[REFUSED_CALLS + 3], *p = program;
	struct sock_fprog filter = { .filter = program };

	*p++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
					    offsetof(struct seccomp_data, nr));
	for (unsigned i = 0; i < REFUSED_CALLS; i++) {
		unsigned char to_notify = (unsigned char)(REFUSED_CALLS - i);

		*p++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
						    (unsigned)memory_calls[i], to_notify, 0);
	}
	*p++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	*p++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	filter.len = (unsigned short)(p - program);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
			    &filter);
}

/* Answers until the process is gone; call number @from and the @count - 1 after it fail. Returns
 * how many there were. */
static unsigned answer(int listener, unsigned from, unsigned count)
{
	struct pollfd poll_fd = { .fd = listener, .events = POLLIN };
	unsigned n = 0;

	while (poll(&poll_fd, 1, -1) > 0 && poll_fd.revents & POLLIN) {
		struct seccomp_notif call = { 0 };
		struct seccomp_notif_resp reply = { 0 };

		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
			continue;               /* gone meanwhile */
		reply.id = call.id;
		if (n >= from && n - from < count)      /* brk says no by an address too low */
			reply.error = call.data.nr == SYS_brk ? 0 : -ENOMEM;
		else
			reply.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		n++;
		CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &reply) >= 0 || errno == ENOENT);
	}
	return n;
}

enum { REFUSED_BLOCKS = 150, TRIES = 30 };

static size_t size_of(unsigned i)
{
	size_t size = some_sizes[i * 7 % some_sizes_count];

	return i % 40 ? MIN(size, (size_t)300000) : size;
}

/* Blocks of all kinds; each is there or ENOMEM is told, and what is there is right. */
static void use_what_there_is(void)
{
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < REFUSED_BLOCKS; i++) {
			size_t size = size_of(i);

			errno = 0;
			held[i] = i % 3 ? malloc(size) : memalign(4096, size);
			CHECK(held[i] || errno == ENOMEM);
			if (held[i])
				fill(held[i], size, i);
		}
		for (unsigned i = 0; i < REFUSED_BLOCKS; i++) {
			size_t size = size_of(i), more = size * 3 + 5000;
			void *p;

			if (!held[i])
				continue;
			CHECK(is_filled(held[i], size, i));
			p = realloc(held[i], more);
			CHECK(is_filled(p ? p : held[i], size, i));
			free(p ? p : held[i]);
		}
		malloc_trim(0);
	}
	free(hide(malloc(1000)));
}

static void *use_in_thread(void *arg)
{
	void *p = malloc(100);

	CHECK(p || errno == ENOMEM);
	free(p);
	return NULL;
}

static _Noreturn void be_refused(int ready)
{
	int listener;
	pthread_t t;

	prctl(PR_SET_PDEATHSIG, SIGKILL);       /* or it waited forever for an answer */
	listener = listen_to_memory_calls();
	if (write(ready, &listener, sizeof(listener)) < 0 || listener < 0)
		_exit(SKIPPED);
	use_what_there_is();
	if (!pthread_create(&t, NULL, use_in_thread, NULL))
		pthread_join(t, NULL);
	_exit(0);
}

/* How many memory calls the child made, of which some failed; or it could not be tried. */
static int try_refusing(unsigned from, unsigned count)
{
	int ready[2], listener, pidfd, status;
	unsigned calls;
	pid_t pid;

	CHECK(!pipe(ready));
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		be_refused(ready[1]);
	CHECK(read(ready[0], &listener, sizeof(listener)) == sizeof(listener));
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	listener = (int)syscall(SYS_pidfd_getfd, pidfd, listener, 0);
	if (listener < 0) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		return -1;
	}
	calls = answer(listener, from, count);
	CHECK(waitpid(pid, &status, 0) == pid);
	close(listener);
	close(pidfd);
	close(ready[0]);
	close(ready[1]);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		dprintf(STDERR_FILENO, "memory calls %u to %u refused: status %x\n", from,
			from + count - 1, (unsigned)status);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	return (int)calls;
}

/* Calls all over the run fail, first alone, then with all that follow. */
static void refused(unsigned count)
{
	int calls = try_refusing(~0U, 0);

	if (calls < 0)
		case_skip("cannot answer for the kernel here");
	for (int n = 0; n < calls; n += calls / TRIES + 1)
		calls = MAX(calls, try_refusing((unsigned)n, count));
}

static void one_call_refused(void)
{
	refused(1);
}

static void calls_refused_from_then_on(void)
{
	refused(~0U);
}

/* ---- membarrier is forbidden ---- */

static void *allocate_a_while(void *arg)
{
	void *p[100];

	for (unsigned round = 0; round < 200; round++) {
		for (unsigned i = 0; i < 100; i++) {
			p[i] = malloc(100 + i * 10);
			CHECK(p[i]);
			fill(p[i], 100, i);
		}
		for (unsigned i = 0; i < 100; i++) {
			CHECK(is_filled(p[i], 100, i));
			free(p[i]);
		}
	}
	return NULL;
}

static void forbid(int call)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { ARRAY_SIZE(program), program };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
		case_skip("no seccomp here");
}

static void release_beside_threads(void)
{
	pthread_t threads[4];

	for (unsigned i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, allocate_a_while, NULL));
	for (unsigned i = 0; i < 20; i++) {
		malloc_trim(0);
		usleep(2000);
	}
	for (unsigned i = 0; i < 4; i++)
		CHECK(!pthread_join(threads[i], NULL));
	allocate_a_while(NULL);
	malloc_trim(0);
}

static void membarrier_forbidden(void)
{
	forbid(SYS_membarrier);
	release_beside_threads();
}

/* The same from the first instruction on: the filter stays over exec. */
static void membarrier_forbidden_from_the_start(void)
{
	if (syscall(SYS_membarrier, 0, 0, 0) < 0 && errno == EPERM) {
		release_beside_threads();
		return;
	}
	forbid(SYS_membarrier);
	again("membarrier_forbidden_from_the_start");
}

const struct test_case cases_limit[] = {
	{ .name = "little_address_space", .run = little_address_space, .flags = NATIVE },
	{ .name = "little_data", .run = little_data, .flags = NATIVE },
	{ .name = "little_for_threads", .run = little_for_threads, .flags = NATIVE },
	{ .name = "one_call_refused", .run = one_call_refused },
	{ .name = "calls_refused_from_then_on", .run = calls_refused_from_then_on },
	{ .name = "membarrier_forbidden", .run = membarrier_forbidden },
	{ .name = "membarrier_forbidden_from_the_start",
	  .run = membarrier_forbidden_from_the_start },
	{ .name = NULL },
};
