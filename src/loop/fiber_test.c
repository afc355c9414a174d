/* SPDX-License-Identifier: MIT */
#include "loop/fiber.h"

#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "loop/sanitize.h"
#include "loop/test_loop.h"

static struct workers *workers;
static struct loop *loop;

static int setup(void **state)
{
	if (workers_new(2, &workers, NULL) < 0)
		return -1;
	loop = test_loop_new(LOOP_AUTO, workers);
	loop_turn(loop, false);         /* it is this thread's now */
	return 0;
}

static int teardown(void **state)
{
	loop_free(loop);
	workers_free(workers);
	return 0;
}

static void turn_until_idle(void)
{
	while (loop_turn(loop, false))
		;
}

/* Turns until *@n is @wanted. */
static void turn_until(const int *n, int wanted)
{
	while (*n < wanted) {
		loop_turn(loop, false);
		usleep(200);
	}
}

/* What tests write down, in order. */
static struct {
	int n;
	int what[64];
} notes;

static void note(int what)
{
	assert_true(notes.n < (int)ARRAY_SIZE(notes.what));
	notes.what[notes.n++] = what;
}

static void expect_notes(int n, const int *what)
{
	assert_int_equal(notes.n, n);
	assert_memory_equal(notes.what, what, n * sizeof(*what));
	notes.n = 0;
}
#define EXPECT_NOTES(...) do { \
		const int expected[] = { __VA_ARGS__ }; \
		expect_notes((int)ARRAY_SIZE(expected), expected); \
	} while (0)

/* A task with a number. */
struct numbered {
	struct task task;
	int number;
	struct fiber *fiber;
	struct fiber_gate *gate;
};

static struct numbered *number_of(struct task *t)
{
	return container_of(t, struct numbered, task);
}

/* ---- start, park, wake ---- */

static void note_and_end(struct task *t)
{
	assert_ptr_equal(loop_current(), loop);
	note(number_of(t)->number);
}

static void note_plain(struct task *t)
{
	assert_null(fiber_self());
	note(number_of(t)->number);
}

static void f1_start_is_deferred(void **state)
{
	struct numbered n = { .task.fn = note_and_end, .number = 1 };
	struct loop_stats stats;

	fiber_start(loop, &n.task);
	assert_int_equal(notes.n, 0);
	assert_null(fiber_self());
	turn_until_idle();
	EXPECT_NOTES(1);
	assert_null(fiber_self());
	loop_get_stats(loop, &stats);
	assert_int_equal(stats.fibers_started, 1);
	assert_int_equal(stats.fibers_peak, 1);
}

static void park_twice(struct task *t)
{
	struct numbered *n = number_of(t);

	n->fiber = fiber_self();
	note(n->number);
	fiber_park();
	note(n->number + 1);
	fiber_park();
	note(n->number + 2);
}

static void f1_wake_is_deferred(void **state)
{
	struct numbered n = { .task.fn = park_twice, .number = 10 };

	fiber_start(loop, &n.task);
	turn_until_idle();
	EXPECT_NOTES(10);
	fiber_wake(n.fiber);
	assert_int_equal(notes.n, 0);
	turn_until_idle();
	EXPECT_NOTES(11);
	fiber_wake(n.fiber);
	turn_until_idle();
	EXPECT_NOTES(12);
}

static void wake_self_and_park(struct task *t)
{
	struct numbered *n = number_of(t);

	n->fiber = fiber_self();
	fiber_wake(n->fiber);
	fiber_wake(n->fiber);
	fiber_park();
	note(1);
	fiber_park();
	note(2);
}

static void f2_wake_before_park_counts_once(void **state)
{
	struct numbered n = { .task.fn = wake_self_and_park };

	fiber_start(loop, &n.task);
	turn_until_idle();
	EXPECT_NOTES(1);
	fiber_wake(n.fiber);
	fiber_wake(n.fiber);
	turn_until_idle();
	EXPECT_NOTES(2);
}

static void wake_self_yield_park(struct task *t)
{
	fiber_wake(fiber_self());
	fiber_yield_wait();
	note(1);
	fiber_park();
	note(2);
}

static void f2_wake_before_yield_is_kept(void **state)
{
	struct numbered n = { .task.fn = wake_self_yield_park };

	fiber_start(loop, &n.task);
	turn_until_idle();
	EXPECT_NOTES(1, 2);
}

static void note_address(struct task *t)
{
	struct numbered *n = number_of(t);

	n->fiber = fiber_self();
	if (n->number)
		fiber_park();
}

static void f3_stacks_are_reused_after_the_end(void **state)
{
	struct numbered a = { .task.fn = note_address }, b = a, c = a, d = a;

	c.number = 1;
	fiber_start(loop, &a.task);
	fiber_start(loop, &b.task);
	fiber_start(loop, &c.task);
	fiber_start(loop, &d.task);
	turn_until_idle();
	assert_ptr_equal(a.fiber, b.fiber);
	assert_ptr_equal(b.fiber, c.fiber);
	assert_ptr_not_equal(c.fiber, d.fiber);         /* c is still parked */
	fiber_wake(c.fiber);
	turn_until_idle();
	fiber_start(loop, &a.task);
	turn_until_idle();
	assert_ptr_equal(a.fiber, c.fiber);             /* last in, first out */
}

static void yield_twice(struct task *t)
{
	for (int i = 0; i < 3; i++) {
		note(number_of(t)->number + i);
		if (i < 2)
			fiber_yield_wait();
	}
}

static void f4_starts_and_yields_in_order(void **state)
{
	struct numbered n[3];

	for (int i = 0; i < 3; i++) {
		n[i] = (struct numbered){ .task.fn = yield_twice, .number = (i + 1) * 10 };
		fiber_start(loop, &n[i].task);
	}
	turn_until_idle();
	EXPECT_NOTES(10, 20, 30, 11, 21, 31, 12, 22, 32);
}

static struct numbered follower;

static void start_follower(struct task *t)
{
	fiber_start(loop, &follower.task);
	note(number_of(t)->number);
}

static void f4_what_a_fiber_starts_comes_last(void **state)
{
	struct numbered a = { .task.fn = start_follower, .number = 1 };
	struct numbered b = { .task.fn = note_and_end, .number = 2 };
	struct numbered c = { .task.fn = note_plain, .number = 3 };

	follower = (struct numbered){ .task.fn = note_and_end, .number = 4 };
	fiber_start(loop, &a.task);
	fiber_start(loop, &b.task);
	loop_defer(loop, &c.task);
	turn_until_idle();
	EXPECT_NOTES(1, 2, 3, 4);
}

static void free_task(struct task *t)
{
	free(number_of(t));
	fiber_yield_wait();
	note(1);
}

static void f5_a_task_may_be_freed_by_its_function(void **state)
{
	struct numbered *n = calloc(1, sizeof(*n));

	assert_non_null(n);
	n->task.fn = free_task;
	fiber_start(loop, &n->task);
	turn_until_idle();
	EXPECT_NOTES(1);
}

/* ---- many ---- */

/* TSan takes its time to make one. */
enum { MANY = HAS_TSAN ? 2000 : 10000 };

static int many_started, many_ended;

static void count_and_park(struct task *t)
{
	number_of(t)->fiber = fiber_self();
	many_started++;
	fiber_park();
	many_ended++;
	number_of(t)->fiber = NULL;
}

static size_t mapped_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	size_t pages = 0;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%zu", &pages), 1);
	fclose(f);
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void ten_thousand_and_the_limit(void **state)
{
	struct numbered *n = calloc(MANY, sizeof(*n));
	int limit = HAS_TSAN ? FIBERS_MAX / 8 : FIBERS_MAX;
	struct loop_stats stats;
	size_t before;

	assert_non_null(n);
	many_started = many_ended = 0;
	before = mapped_bytes();
	for (int i = 0; i < MANY; i++) {
		n[i].task.fn = count_and_park;
		fiber_start(loop, &n[i].task);
	}
	turn_until_idle();
	assert_int_equal(many_started, MIN(MANY, limit));       /* the others wait */
	while (many_ended < MANY) {
		for (int i = MANY; i-- > 0; )
			if (n[i].fiber)
				fiber_wake(n[i].fiber);
		turn_until_idle();
	}
	loop_get_stats(loop, &stats);
	assert_int_equal(stats.fibers_started, MANY);
	assert_int_equal(stats.fibers_peak, MIN(MANY, limit));
	if (!is_instrumented())
		assert_true(mapped_bytes() < before + (FIBERS_IDLE_MAX + 16) * 256 * KiB);
	free(n);
}

/* ---- the stack ---- */

static volatile unsigned char sink;

/* Touches about @left bytes of stack. */
static __attribute__((noinline)) unsigned deep(size_t left, unsigned seed)
{
	volatile unsigned char frame[512];
	unsigned sum;

	for (size_t i = 0; i < sizeof(frame); i += 64)
		frame[i] = (unsigned char)(seed + i);
	if (left <= 700)
		return frame[0];
	sum = deep(left - 700, seed + 1);
	for (size_t i = 0; i < sizeof(frame); i += 64)
		assert_int_equal(frame[i], (unsigned char)(seed + i));
	sink = frame[64];
	return sum + 1;
}

static void recurse(struct task *t)
{
	unsigned depth = deep(FIBER_STACK_BYTES * 5 / 8, (unsigned)number_of(t)->number);

	assert_true(depth > 50);
	note(number_of(t)->number);
}

static void deep_recursion_fits(void **state)
{
	struct numbered n[2] = {
		{ .task.fn = recurse, .number = 1 }, { .task.fn = recurse, .number = 2 },
	};

	fiber_start(loop, &n[0].task);
	fiber_start(loop, &n[1].task);
	turn_until_idle();
	EXPECT_NOTES(1, 2);
}

static char *stack_near;

/* The fault lies below the stack, within its guard. */
static void on_fault(int sig, siginfo_t *info, void *context)
{
	char *at = info->si_addr;

	_exit(at < stack_near - FIBER_STACK_BYTES / 2 &&
	      at > stack_near - FIBER_STACK_BYTES - 64 * 1024 ? 42 : 43);
}

static void overflow(struct task *t)
{
	volatile char here;

	stack_near = (char *)(uintptr_t)&here;
	deep(SIZE_MAX, 0);
}

/* Runs @t as a fiber in a child, whose messages are not shown. Returns its wait status. */
static int status_of_child(struct task *t)
{
	static char alt[64 * 1024];
	stack_t ss = { .ss_sp = alt, .ss_size = sizeof(alt) };
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	int status = 0;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct rlimit none = { 0, 0 };
		struct loop *l;

		setrlimit(RLIMIT_CORE, &none);
		if (!freopen("/dev/null", "w", stderr))
			_exit(1);
		signal(SIGABRT, SIG_DFL);
		if (!is_instrumented()) {
			sigaltstack(&ss, NULL);
			sigaction(SIGSEGV, &sa, NULL);
		}
		l = test_loop_new(LOOP_AUTO, workers);
		loop_turn(l, false);
		loop = l;
		fiber_start(l, t);
		turn_until_idle();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void overflow_hits_the_guard(void **state)
{
	struct numbered n = { .task.fn = overflow };
	int status = status_of_child(&n.task);

	if (is_instrumented())
		assert_true(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
	else
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

static void wake_the_dead(struct task *t)
{
	fiber_wake(number_of(t)->fiber);
}

static void end_and_be_woken(struct task *t)
{
	static struct numbered killer;

	killer = (struct numbered){ .task.fn = wake_the_dead, .fiber = fiber_self() };
	loop_defer(loop, &killer.task);
}

static void waking_an_ended_fiber_aborts(void **state)
{
	struct numbered n = { .task.fn = end_and_be_woken };
	int status = status_of_child(&n.task);

	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

/* ---- without memory ---- */

static void yield_and_count(struct task *t)
{
	fiber_yield_wait();
	many_ended++;
}

static void limit_address_space(size_t more)
{
	struct rlimit rl = { .rlim_max = RLIM_INFINITY };

	rl.rlim_cur = more == SIZE_MAX ? RLIM_INFINITY : mapped_bytes() + more;
	if (setrlimit(RLIMIT_AS, &rl) < 0)
		_exit(2);
}

/* In a child: there is room for a few stacks, then for none, then again. */
static void run_short_of_memory(void)
{
	struct numbered n[200];

	loop = test_loop_new(LOOP_AUTO, workers);
	loop_turn(loop, false);
	many_ended = 0;
	limit_address_space(600 * KiB);
	for (int i = 0; i < 200; i++) {
		n[i] = (struct numbered){ .task.fn = yield_and_count };
		fiber_start(loop, &n[i].task);
	}
	turn_until(&many_ended, 200);
	loop_free(loop);

	loop = test_loop_new(LOOP_AUTO, workers);
	loop_turn(loop, false);
	limit_address_space(0);
	fiber_start(loop, &n[0].task);
	for (int i = 0; i < 5; i++)
		loop_turn(loop, false);
	if (many_ended != 200)
		_exit(3);
	limit_address_space(SIZE_MAX);
	turn_until(&many_ended, 201);
	loop_free(loop);
	_exit(0);
}

static void f4_without_memory_tasks_wait(void **state)
{
	test_in_child(run_short_of_memory);
}

/* ---- registers ---- */

/* Fills all registers that a function must preserve from @seed, calls @fn, and returns 0 if they
 * have kept their values. */
int registers_kept(void (*fn)(void), uint64_t seed);

#if defined(__x86_64__)
__asm__(
	".text\n"
	".globl registers_kept\n"
	".type registers_kept, @function\n"
	"registers_kept:\n"
	"	pushq %rbp\n	pushq %rbx\n	pushq %r12\n"
	"	pushq %r13\n	pushq %r14\n	pushq %r15\n"
	"	pushq %rsi\n"                           /* now aligned to 16 */
	"	leaq 1(%rsi), %rbp\n	leaq 2(%rsi), %rbx\n	leaq 3(%rsi), %r12\n"
	"	leaq 4(%rsi), %r13\n	leaq 5(%rsi), %r14\n	leaq 6(%rsi), %r15\n"
	"	call *%rdi\n"
	"	popq %rsi\n"
	"	movl $1, %eax\n"
	"	subq $1, %rbp\n	cmpq %rsi, %rbp\n	jne 1f\n"
	"	subq $2, %rbx\n	cmpq %rsi, %rbx\n	jne 1f\n"
	"	subq $3, %r12\n	cmpq %rsi, %r12\n	jne 1f\n"
	"	subq $4, %r13\n	cmpq %rsi, %r13\n	jne 1f\n"
	"	subq $5, %r14\n	cmpq %rsi, %r14\n	jne 1f\n"
	"	subq $6, %r15\n	cmpq %rsi, %r15\n	jne 1f\n"
	"	xorl %eax, %eax\n"
	"1:	popq %r15\n	popq %r14\n	popq %r13\n"
	"	popq %r12\n	popq %rbx\n	popq %rbp\n"
	"	ret\n"
	".size registers_kept, . - registers_kept\n");
#elif defined(__aarch64__)
#define EACH_X(op) op(19) op(20) op(21) op(22) op(23) op(24) op(25) op(26) op(27) op(28)
#define EACH_D(op) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define SET_X(n) "	add x" #n ", x1, #" #n "\n"
#define SET_D(n) "	add x9, x1, #(" #n " + 100)\n	fmov d" #n ", x9\n"
#define CHECK_X(n) "	add x9, x1, #" #n "\n	cmp x" #n ", x9\n	b.ne 1f\n"
#define CHECK_D(n) "	add x9, x1, #(" #n " + 100)\n	fmov x10, d" #n "\n" \
		"	cmp x10, x9\n	b.ne 1f\n"
__asm__(
	".text\n"
	".globl registers_kept\n"
	".type registers_kept, %function\n"
	"registers_kept:\n"
	"	stp x29, x30, [sp, #-176]!\n	str x1, [sp, #160]\n"
	"	stp x19, x20, [sp, #16]\n	stp x21, x22, [sp, #32]\n"
	"	stp x23, x24, [sp, #48]\n	stp x25, x26, [sp, #64]\n"
	"	stp x27, x28, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]\n	stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]\n	stp d14, d15, [sp, #144]\n"
	EACH_X(SET_X) EACH_D(SET_D)
	"	blr x0\n"
	"	ldr x1, [sp, #160]\n	mov w0, #1\n"
	EACH_X(CHECK_X) EACH_D(CHECK_D)
	"	mov w0, #0\n"
	"1:	ldp x19, x20, [sp, #16]\n	ldp x21, x22, [sp, #32]\n"
	"	ldp x23, x24, [sp, #48]\n	ldp x25, x26, [sp, #64]\n"
	"	ldp x27, x28, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]\n	ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]\n	ldp d14, d15, [sp, #144]\n"
	"	ldp x29, x30, [sp], #176\n"
	"	ret\n"
	".size registers_kept, . - registers_kept\n");
#endif

static void hold_registers(struct task *t)
{
	struct numbered *n = number_of(t);

	for (int i = 0; i < 10; i++) {
		uint64_t seed = 0x1234567800000000ULL + (uint64_t)n->number * 1000 + (uint64_t)i;

		assert_int_equal(registers_kept(fiber_yield_wait, seed), 0);
	}
	note(n->number);
}

static void registers_are_kept_over_a_switch(void **state)
{
	struct numbered n[3];

	for (int i = 0; i < 3; i++) {
		n[i] = (struct numbered){ .task.fn = hold_registers, .number = i };
		fiber_start(loop, &n[i].task);
	}
	turn_until_idle();
	EXPECT_NOTES(0, 1, 2);
}

static double third(void)
{
	volatile double one = 1.0, three = 3.0;

	return one / three;
}

static void round_as_told(struct task *t)
{
	static const int modes[] = { FE_UPWARD, FE_DOWNWARD };
	int mode = modes[number_of(t)->number];
	double before;

	assert_int_equal(fegetround(), FE_TONEAREST);
	fesetround(mode);
	before = third();
	for (int i = 0; i < 5; i++) {
		fiber_yield_wait();
		assert_int_equal(fegetround(), mode);
		assert_true(third() == before);
	}
	assert_true(before * 3.0 != 0.5);
	note(number_of(t)->number);
}

static void rounding_mode_is_a_fibers_own(void **state)
{
	struct numbered n[2];

	for (int i = 0; i < 2; i++) {
		n[i] = (struct numbered){ .task.fn = round_as_told, .number = i };
		fiber_start(loop, &n[i].task);
	}
	while (loop_turn(loop, false))
		assert_int_equal(fegetround(), FE_TONEAREST);
	EXPECT_NOTES(0, 1);
}

/* ---- time and gates ---- */

static void sleep_and_note(struct task *t)
{
	struct numbered *n = number_of(t);
	uint64_t before = loop_now(loop);

	fiber_sleep_wait((uint64_t)n->number * NS_PER_MS);
	assert_true(loop_now(loop) - before >= (uint64_t)n->number * NS_PER_MS);
	note(n->number);
}

static void sleepers_wake_in_order(void **state)
{
	static const int ms[] = { 30, 10, 20, 0 };
	struct numbered n[4];

	for (int i = 0; i < 4; i++) {
		n[i] = (struct numbered){ .task.fn = sleep_and_note, .number = ms[i] };
		fiber_start(loop, &n[i].task);
	}
	turn_until(&notes.n, 4);
	EXPECT_NOTES(0, 10, 20, 30);
}

static int in_gate, in_gate_peak;

static void through_gate(struct task *t)
{
	struct numbered *n = number_of(t);

	note(n->number);
	in_gate_peak = MAX(in_gate_peak, ++in_gate);
	for (int i = 0; i <= n->number % 3; i++)
		fiber_yield_wait();
	in_gate--;
	fiber_gate_leave(loop, n->gate);
}

static void f4_gate_limits_and_keeps_order(void **state)
{
	struct fiber_gate gate;
	struct numbered n[10];

	in_gate = in_gate_peak = 0;
	fiber_gate_init(&gate, 3);
	for (int i = 0; i < 10; i++) {
		n[i] = (struct numbered){ .task.fn = through_gate, .number = i, .gate = &gate };
		fiber_gate_start(loop, &gate, &n[i].task);
	}
	turn_until_idle();
	EXPECT_NOTES(0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
	assert_int_equal(in_gate_peak, 3);
	assert_int_equal(gate.running, 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		T(f1_start_is_deferred),
		T(f1_wake_is_deferred),
		T(f2_wake_before_park_counts_once),
		T(f2_wake_before_yield_is_kept),
		T(f3_stacks_are_reused_after_the_end),
		T(f4_starts_and_yields_in_order),
		T(f4_what_a_fiber_starts_comes_last),
		T(f5_a_task_may_be_freed_by_its_function),
		T(ten_thousand_and_the_limit),
		T(deep_recursion_fits),
		T(overflow_hits_the_guard),
		T(waking_an_ended_fiber_aborts),
		T(f4_without_memory_tasks_wait),
		T(registers_are_kept_over_a_switch),
		T(rounding_mode_is_a_fibers_own),
		T(sleepers_wake_in_order),
		T(f4_gate_limits_and_keeps_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
