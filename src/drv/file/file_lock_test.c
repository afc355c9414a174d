/* SPDX-License-Identifier: MIT */
/* Image locks: between nodes of this process, and with QEMU's own programs where they are. */
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "drv/file/file_test_util.h"

static struct loop *loop;
static char path[32];

static int setup(void **state)
{
	if (setup_workers(state))
		return -1;
	loop = new_loop(LOOP_AUTO, 0);
	close(temp_file(1 << 20, path));
	return 0;
}

static int teardown(void **state)
{
	unlink(path);
	loop_free(loop);
	return teardown_workers(state);
}

struct try {
	bool writable, no_lock, shares;
	struct node *node;
	struct err err;
};

static int open_fiber(void *arg)
{
	struct try *t = arg;
	struct file_opts o = { .path = path, .fd = -1, .writable = t->writable,
			       .no_lock = t->no_lock, .share_writes = t->shares };

	return file_open_wait(&o, loop, &t->node, &t->err);
}

static int refuse_fiber(void *arg)
{
	struct try *t = arg;
	struct file_opts o = { .path = path, .share_writes = true };

	return file_refuse_writers_wait(t->node, &o, &t->err);
}

static int try_open(struct try *t, bool writable)
{
	*t = (struct try){ .writable = writable };
	return loop_call(loop, open_fiber, t);
}

static int close_fiber(void *arg)
{
	struct try *t = arg;

	node_put_wait(t->node);
	return 0;
}

static void try_close(struct try *t)
{
	loop_call(loop, close_fiber, t);
}

static void readers_share_and_writers_do_not(void **state)
{
	struct try a, b, c;

	assert_int_equal(try_open(&a, false), 0);
	assert_int_equal(try_open(&b, false), 0);
	assert_int_equal(try_open(&c, true), -EBUSY);
	assert_non_null(strstr(c.err.text, path));
	assert_non_null(strstr(c.err.text, "by this process"));
	assert_true(c.err.hint[0]);
	try_close(&a);
	assert_int_equal(try_open(&c, true), -EBUSY);
	try_close(&b);
	assert_int_equal(try_open(&c, true), 0);
	assert_int_equal(try_open(&a, false), -EBUSY);
	assert_int_equal(try_open(&a, true), -EBUSY);

	a = (struct try){ .no_lock = true };
	assert_int_equal(loop_call(loop, open_fiber, &a), 0);
	try_close(&a);
	assert_int_equal(try_open(&b, true), -EBUSY);   /* that took none of c's with it */
	try_close(&c);
	assert_int_equal(try_open(&b, true), 0);
	try_close(&b);
}

static void a_node_says_whether_it_refuses_writers(void **state)
{
	struct try a = { .no_lock = true }, b = { .shares = true };

	assert_int_equal(loop_call(loop, open_fiber, &a), 0);
	assert_false(file_refuses_writers(a.node));
	assert_int_equal(loop_call(loop, open_fiber, &b), 0);
	assert_false(file_refuses_writers(b.node));
	assert_int_equal(loop_call(loop, refuse_fiber, &b), 0);
	assert_true(file_refuses_writers(b.node));
	try_close(&a);
	try_close(&b);
	assert_int_equal(try_open(&a, false), 0);
	assert_true(file_refuses_writers(a.node));
	try_close(&a);
}

/* A descriptor that was refused keeps no lock. */
static void a_refused_descriptor_is_left_unlocked(void **state)
{
	struct try a, b;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct err err = { 0 };

	assert_int_equal(try_open(&a, true), 0);
	assert_int_equal(file_lock_take(fd, path, true, false, &err), -EBUSY);
	try_close(&a);
	assert_int_equal(try_open(&b, true), 0);
	try_close(&b);
	close(fd);
}

/* ---- QEMU ---- */

static bool has_program(const char *name)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "command -v %s >/dev/null", name);
	return !system(cmd);
}

/* A qemu-io that has the image open until its input ends. */
struct holder {
	pid_t pid;
	int in, out;
};

static void wait_ms(unsigned ms)
{
	nanosleep(&(struct timespec){ .tv_nsec = ms * 1000000L }, NULL);
}

static struct holder qemu_io_start(const char *options)
{
	int in[2], out[2];
	struct holder h;
	char cmd[128], buf[512];
	size_t n = 0;

	snprintf(cmd, sizeof(cmd), "exec qemu-io %s %s", options, path);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	h = (struct holder){ .pid = fork(), .in = in[1], .out = out[0] };
	assert_true(h.pid >= 0);
	if (!h.pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		execl("/bin/sh", "sh", "-c", cmd, NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	assert_int_equal(write(h.in, "read 0 512\n", 11), 11);
	do {
		ssize_t got = read(h.out, buf + n, sizeof(buf) - 1 - n);

		assert_true(got > 0);
		n += (size_t)got;
		buf[n] = '\0';
	} while (!strstr(buf, "read 512/512"));
	return h;
}

static void qemu_io_end(struct holder *h)
{
	char buf[512];
	int status;

	close(h->in);
	while (read(h->out, buf, sizeof(buf)) > 0)
		continue;
	close(h->out);
	assert_int_equal(waitpid(h->pid, &status, 0), h->pid);
}

static int qemu(const char *cmd, const char *options)
{
	char line[160];

	snprintf(line, sizeof(line), "%s %s %s >/dev/null 2>&1", cmd, options, path);
	return system(line);
}

/* QEMU's raw readers let others write; those of qcow2 do not. */
static void make_qcow2(void)
{
	char line[160];

	snprintf(line, sizeof(line), "qemu-img create -q -f qcow2 %s 64k", path);
	assert_int_equal(system(line), 0);
}

static void qemu_writes_and_we_are_refused(void **state)
{
	struct holder h;
	struct try t;

	if (!has_program("qemu-io"))
		skip();
	h = qemu_io_start("-f raw");
	assert_int_equal(try_open(&t, false), -EBUSY);
	assert_non_null(strstr(t.err.text, "in use by qemu-io (pid "));
	assert_non_null(strstr(t.err.text, "for writing"));
	assert_int_equal(try_open(&t, true), -EBUSY);
	qemu_io_end(&h);
	assert_int_equal(try_open(&t, true), 0);
	try_close(&t);
}

static void qemu_reads_and_we_may_read(void **state)
{
	struct holder h;
	struct try t;

	if (!has_program("qemu-io"))
		skip();
	make_qcow2();
	h = qemu_io_start("-r -f qcow2");
	assert_int_equal(try_open(&t, false), 0);
	try_close(&t);
	assert_int_equal(try_open(&t, true), -EBUSY);
	assert_non_null(strstr(t.err.text, "qemu-io"));
	assert_non_null(strstr(t.err.text, "lets nobody else write"));
	qemu_io_end(&h);
}

static void we_write_and_qemu_is_refused(void **state)
{
	struct try t;

	if (!has_program("qemu-io") || !has_program("qemu-img"))
		skip();
	make_qcow2();
	assert_int_equal(try_open(&t, true), 0);
	assert_int_not_equal(qemu("qemu-io", "-f qcow2 -c quit"), 0);
	assert_int_not_equal(qemu("qemu-io", "-r -f qcow2 -c quit"), 0);
	assert_int_not_equal(qemu("qemu-img", "info -f qcow2"), 0);
	assert_int_equal(qemu("qemu-img", "info -U -f qcow2"), 0);
	try_close(&t);
	assert_int_equal(qemu("qemu-io", "-f qcow2 -c quit"), 0);
}

static void we_read_and_qemu_may_read(void **state)
{
	struct try t;

	if (!has_program("qemu-io") || !has_program("qemu-img"))
		skip();
	make_qcow2();
	assert_int_equal(try_open(&t, false), 0);
	assert_int_not_equal(qemu("qemu-io", "-f qcow2 -c quit"), 0);
	assert_int_equal(qemu("qemu-io", "-r -f qcow2 -c quit"), 0);
	assert_int_equal(qemu("qemu-img", "info -f qcow2"), 0);
	try_close(&t);
}

static void qemu_nbd_serves_and_we_are_refused(void **state)
{
	char cmd[192];
	struct try t;
	FILE *f;
	int pid;

	if (!has_program("qemu-nbd"))
		skip();
	snprintf(cmd, sizeof(cmd), "qemu-nbd --fork --pid-file=%s.pid -t -f raw -k $PWD/%s.sock %s",
		 path, path, path);
	if (system(cmd))
		skip();
	snprintf(cmd, sizeof(cmd), "%s.pid", path);
	f = fopen(cmd, "r");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &pid), 1);
	fclose(f);
	assert_int_equal(try_open(&t, false), -EBUSY);
	snprintf(cmd, sizeof(cmd), "in use by qemu-nbd (pid %d)", pid);
	kill(pid, SIGTERM);
	assert_non_null(strstr(t.err.text, cmd));
	for (unsigned i = 0; i < 5000 && !kill(pid, 0); i++)
		wait_ms(20);
	assert_int_equal(try_open(&t, true), 0);
	try_close(&t);
	snprintf(cmd, sizeof(cmd), "%s.pid", path);
	unlink(cmd);
	snprintf(cmd, sizeof(cmd), "%s.sock", path);
	unlink(cmd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(readers_share_and_writers_do_not),
		cmocka_unit_test(a_node_says_whether_it_refuses_writers),
		cmocka_unit_test(a_refused_descriptor_is_left_unlocked),
		cmocka_unit_test(qemu_writes_and_we_are_refused),
		cmocka_unit_test(qemu_reads_and_we_may_read),
		cmocka_unit_test(we_write_and_qemu_is_refused),
		cmocka_unit_test(we_read_and_qemu_may_read),
		cmocka_unit_test(qemu_nbd_serves_and_we_are_refused),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
