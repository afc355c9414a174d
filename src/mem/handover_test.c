/* SPDX-License-Identifier: MIT */
/* mem/handover_test.c - the lock, the hand-over and the inbox, one step at a time; and where
 * membarrier() is forbidden. What threads can do to each other is tested in handover_stress_test.c,
 * and searched in model/. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bits.h"
#include "mem/handover.h"
#include "mem/inbox.h"

enum { OPEN = 0x1200 };

static struct handover owned_heap(void)
{
	struct handover h = { .owned = false };

	handover_init(&h, OPEN);
	assert_true(handover_adopt(&h));
	return h;
}

/* A round over one heap, up to the question. */
static struct handover_round stop(struct handover *h)
{
	struct handover_round round;

	handover_begin(&round);
	handover_stop(h, &round);
	handover_barrier(&round);
	return round;
}

/* ---- the lock ---- */

enum { LOCKERS = 4, LOCK_ROUNDS = 20000 };

static struct mem_lock counter_lock;
static unsigned counter;                /* under the lock */

static void *count_up(void *arg)
{
	for (int i = 0; i < LOCK_ROUNDS; i++) {
		mem_lock(&counter_lock);
		counter++;
		if (i % 64 == 0)
			sched_yield();          /* others come and sleep */
		mem_unlock(&counter_lock);
	}
	return NULL;
}

static void h11_no_sleeper_is_forgotten(void **state)
{
	pthread_t threads[LOCKERS];

	for (int i = 0; i < LOCKERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, count_up, NULL), 0);
	for (int i = 0; i < LOCKERS; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(counter, LOCKERS * LOCK_ROUNDS);
	assert_false(mem_lock_held(&counter_lock));
}

static void lock_keeps_errno(void **state)
{
	pthread_t thread;

	mem_lock(&counter_lock);
	errno = ERANGE;
	assert_int_equal(pthread_create(&thread, NULL, count_up, NULL), 0);
	usleep(1000);
	mem_unlock(&counter_lock);
	assert_int_equal(errno, ERANGE);
	pthread_join(thread, NULL);
}

/* ---- one heap, one step at a time ---- */

static void h12_idle_heap_is_taken_and_given_back(void **state)
{
	struct handover h = owned_heap();
	struct handover_round round = stop(&h);

	if (!round.fenced)
		skip();
	assert_true(handover_take(&h, &round));
	assert_false(handover_enter(&h));
	handover_leave(&h);
	assert_false(handover_visit(&h));
	handover_give(&h);
	assert_true(handover_enter(&h));
	handover_leave(&h);
	assert_int_equal(handover_enter_as(&h), OPEN);
	assert_false(handover_lock(&h));
	handover_unlock(&h);
}

static void h14_busy_heap_is_asked(void **state)
{
	struct handover h = owned_heap();
	struct handover_round round;

	assert_true(handover_enter(&h));
	round = stop(&h);
	assert_false(handover_take(&h, &round));
	handover_leave(&h);
	assert_false(handover_enter(&h));
	assert_true(handover_lock(&h));
	handover_unlock(&h);
	assert_true(handover_enter(&h));
	handover_leave(&h);
	assert_false(handover_lock(&h));
	handover_unlock(&h);
}

/* Whoever stops last may take; for the others the heap is as good as asked. */
static void h12_only_the_last_ticket_counts(void **state)
{
	struct handover h = owned_heap();
	struct handover_round one = stop(&h), other = stop(&h);

	if (!one.fenced)
		skip();
	assert_false(handover_take(&h, &one));
	assert_true(handover_take(&h, &other));
	handover_give(&h);
	assert_false(handover_take(&h, &other));
}

static void h12_owner_that_came_by_takes_the_stop_away(void **state)
{
	struct handover h = owned_heap();
	struct handover_round round = stop(&h);

	assert_false(handover_enter(&h));
	assert_true(handover_lock(&h));
	handover_unlock(&h);
	assert_false(handover_take(&h, &round));
	assert_true(handover_enter(&h));
	handover_leave(&h);
}

static void h15_heap_of_nobody_needs_no_barrier(void **state)
{
	struct handover_round round = { .ticket = HANDOVER_STOPPED | 77 };
	struct handover h = owned_heap();

	handover_stop(&h, &round);
	assert_false(handover_take(&h, &round));
	assert_true(handover_lock(&h));
	handover_orphan(&h);
	assert_true(handover_take(&h, &round));
	handover_give(&h);
	assert_true(handover_adopt(&h));
	assert_false(handover_adopt(&h));
	assert_false(handover_take(&h, &round));
}

static void h15_heap_that_is_never_open_needs_no_barrier(void **state)
{
	struct handover_round round = { .ticket = HANDOVER_STOPPED | 77 };
	struct handover h = { .owned = false };

	handover_init(&h, HANDOVER_ALWAYS);
	assert_true(handover_adopt(&h));
	assert_false(handover_enter(&h));
	assert_false(handover_lock(&h));
	handover_unlock(&h);
	handover_stop(&h, &round);
	assert_true(handover_take(&h, &round));
	handover_give(&h);
	assert_false(handover_enter(&h));
}

static void reset_forgets_threads_that_are_gone(void **state)
{
	struct handover h = owned_heap();

	assert_true(handover_enter(&h));
	stop(&h);
	mem_lock(&h.lock);
	handover_reset(&h, false);
	assert_true(handover_adopt(&h));
	assert_true(handover_enter(&h));
	handover_reset(&h, true);
	assert_false(handover_adopt(&h));
	assert_true(handover_enter(&h));
	handover_leave(&h);
}

static void tickets_differ(void **state)
{
	struct handover_round a, b;

	handover_begin(&a);
	handover_begin(&b);
	assert_int_not_equal(a.ticket, b.ticket);
	assert_true(a.ticket & b.ticket & HANDOVER_STOPPED);
	assert_int_not_equal(a.ticket, HANDOVER_ALWAYS);
}

/* ---- no membarrier() ---- */

/* From now on it returns -@err in this process. False if the kernel has no filters. */
static bool forbid_membarrier(int err)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { .len = ARRAY_SIZE(code), .filter = code };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
		!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

/* What the child finds: 0 right, 77 no filters. */
static int without_membarrier(int err)
{
	struct handover h = { .owned = false };
	struct handover_round round;

	if (!forbid_membarrier(err))
		return 77;
	handover_init(&h, OPEN);
	if (!handover_adopt(&h))
		return 1;
	handover_begin(&round);
	handover_stop(&h, &round);
	errno = ERANGE;
	if (handover_barrier(&round) != -err || round.fenced || errno != ERANGE)
		return 2;
	if (handover_take(&h, &round))
		return 3;
	if (handover_enter(&h) || !handover_lock(&h))
		return 4;
	handover_orphan(&h);
	handover_stop(&h, &round);
	if (!handover_take(&h, &round))
		return 5;
	handover_give(&h);
	return 0;
}

static void h15_h14_without_membarrier_the_owner_is_asked(void **state)
{
	const int errors[] = { EPERM, ENOSYS };

	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		pid_t pid = fork();
		int status;

		assert_true(pid >= 0);
		if (!pid)
			_exit(without_membarrier(errors[i]));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		if (WEXITSTATUS(status) == 77)
			skip();
		assert_int_equal(WEXITSTATUS(status), 0);
	}
}

/* The child of a fork can do without having registered. */
static void barrier_works_in_the_child_of_a_fork(void **state)
{
	struct handover_round round;
	int status;
	pid_t pid;

	handover_begin(&round);
	if (handover_barrier(&round))
		skip();
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(-handover_barrier(&round));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* ---- the inbox ---- */

static _Alignas(MAGAZINE_BYTES) struct magazine magazines[3];

static void i11_inbox_gives_what_it_got_once(void **state)
{
	struct inbox inbox = { 0 };
	struct magazine *m;

	assert_null(inbox_take(&inbox));
	for (unsigned i = 0; i < 3; i++)
		inbox_post(&inbox, &magazines[i], 250 - i, i + 61, 1);
	m = inbox_take(&inbox);
	assert_null(inbox_take(&inbox));
	for (unsigned i = 3; i--; m = magazine_next(m)) {
		assert_ptr_equal(m, &magazines[i]);
		assert_int_equal(magazine_class(m), 250 - i);
		assert_int_equal(magazine_count(m), i + 61);
	}
	assert_null(m);
}

static void i13_inbox_counts_bytes(void **state)
{
	struct inbox inbox = { 0 };

	assert_int_equal(inbox_bytes(&inbox), 0);
	assert_int_equal(inbox_post(&inbox, &magazines[0], 1, 1, 1), INBOX_UNIT);
	assert_int_equal(inbox_post(&inbox, &magazines[1], 1, 1, 3 * INBOX_UNIT), 4 * INBOX_UNIT);
	assert_int_equal(inbox_bytes(&inbox), 4 * INBOX_UNIT);
	inbox_take(&inbox);
	assert_int_equal(inbox_bytes(&inbox), 0);
}

static void i13_sum_stops_at_the_most(void **state)
{
	uint64_t most = ((UINT64_C(1) << (64 - MAGAZINE_ADDRESS_BITS)) - 1) * INBOX_UNIT;
	struct inbox inbox = { 0 };

	assert_int_equal(inbox_post(&inbox, &magazines[0], 1, 1, most - INBOX_UNIT),
			most - INBOX_UNIT);
	assert_int_equal(inbox_post(&inbox, &magazines[1], 1, 1, 1), most);
	assert_int_equal(inbox_post(&inbox, &magazines[2], 1, 1, 5 * GiB), most);
	assert_ptr_equal(inbox_take(&inbox), &magazines[2]);
	assert_ptr_equal(magazine_next(magazine_next(&magazines[2])), &magazines[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(h11_no_sleeper_is_forgotten),
		cmocka_unit_test(lock_keeps_errno),
		cmocka_unit_test(h12_idle_heap_is_taken_and_given_back),
		cmocka_unit_test(h14_busy_heap_is_asked),
		cmocka_unit_test(h12_only_the_last_ticket_counts),
		cmocka_unit_test(h12_owner_that_came_by_takes_the_stop_away),
		cmocka_unit_test(h15_heap_of_nobody_needs_no_barrier),
		cmocka_unit_test(h15_heap_that_is_never_open_needs_no_barrier),
		cmocka_unit_test(reset_forgets_threads_that_are_gone),
		cmocka_unit_test(tickets_differ),
		cmocka_unit_test(h15_h14_without_membarrier_the_owner_is_asked),
		cmocka_unit_test(barrier_works_in_the_child_of_a_fork),
		cmocka_unit_test(i11_inbox_gives_what_it_got_once),
		cmocka_unit_test(i13_inbox_counts_bytes),
		cmocka_unit_test(i13_sum_stops_at_the_most),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
