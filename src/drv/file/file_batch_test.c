/* SPDX-License-Identifier: MIT */
#include <semaphore.h>

#include "drv/file/file_test_util.h"
#include "loop/loop_impl.h"

enum { TOGETHER = 100, LARGE = 128 << 10 };

struct ctx {
	struct loop *loop;
	const struct file_opts *opts;
	struct chan *ch;
	void (*body)(struct ctx *c);
};

struct together {
	struct req req;
	struct iovec iov;
	unsigned *left;
	struct fiber *fiber;
	int res;
};

static void together_done(struct req *req, int res)
{
	struct together *t = container_of(req, struct together, req);

	t->res = res;
	if (!--*t->left)
		fiber_wake(t->fiber);
}

/* Writes @n times @len bytes of @buf in one turn; the last goes where no file reaches. How many
 * went to the loop one by one. */
static uint64_t write_together_wait(struct ctx *c, char *buf, uint64_t len, unsigned n)
{
	struct together *all = calloc(n, sizeof(*all));
	struct loop_stats before, after;
	unsigned left = n;

	loop_get_stats(c->loop, &before);
	for (unsigned i = 0; i < n; i++) {
		struct together *t = &all[i];

		t->iov = (struct iovec){ buf + len * i, len };
		t->req = (struct req){ .done = together_done, .kind = REQ_WRITE, .off = len * i,
				       .len = len, .iov = &t->iov, .iovcnt = 1 };
		if (i == n - 1)
			t->req.off = align_down((uint64_t)INT64_MAX - len, 4096);
		t->left = &left;
		t->fiber = fiber_self();
		chan_submit(c->ch, &t->req);
	}
	while (left)
		fiber_park();
	loop_get_stats(c->loop, &after);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(all[i].res != 0, i == n - 1);
	free(all);
	return after.ios[IO_WRITE] - before.ios[IO_WRITE];
}

static void together_body(struct ctx *c)
{
	bool is_direct = file_node(c->ch)->is_direct;
	char *out = aligned_alloc(4096, 4096 * TOGETHER), *in = malloc(4096 * TOGETHER);
	struct prng prng = { .state = 1 };

	fill(&prng, out, 4096 * TOGETHER);
	assert_int_equal(write_together_wait(c, out, 4096, TOGETHER), is_direct ? TOGETHER : 0);
	assert_int_equal(chan_read_wait(c->ch, 0, in, 4096 * TOGETHER), 0);
	assert_memory_equal(in, out, 4096 * (TOGETHER - 1));
	/* What is large goes by itself, as does a single one. */
	assert_int_equal(write_together_wait(c, out, LARGE, 3), 3);
	assert_int_equal(write_together_wait(c, out, 4096, 1), 1);
	free(out);
	free(in);
}

static int run_fiber(void *arg)
{
	struct ctx *c = arg;
	struct node *node;
	struct err err = { 0 };

	if (file_open_wait(c->opts, c->loop, &node, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(chan_get_wait(node, &c->ch, &err), 0);
	c->body(c);
	chan_put_wait(c->ch);
	node_put_wait(node);
	return 0;
}

static void small_cached_writes_of_a_turn_go_together(void **state)
{
	static const enum loop_backend backends[] = { LOOP_URING, LOOP_POSIX };
	static const enum file_cache caches[] = { FILE_CACHE_WRITEBACK, FILE_CACHE_WRITETHROUGH,
						  FILE_CACHE_NONE };

	for (unsigned i = 0; i < ARRAY_SIZE(backends) * ARRAY_SIZE(caches); i++) {
		enum loop_backend backend = backends[i % ARRAY_SIZE(backends)];
		char path[32];
		struct file_opts o = { .path = path, .fd = -1, .writable = true,
				       .cache = caches[i / ARRAY_SIZE(backends)] };
		struct ctx c = { .opts = &o, .body = together_body };

		if (!has_backend(backend))
			continue;
		c.loop = new_loop(backend, 0);
		close(temp_file(0, path));
		assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
		unlink(path);
		loop_free(c.loop);
	}
}

/* ---- at any time of a turn ---- */

struct late {
	struct task task;
	struct ctx *c;
	struct together *t;
};

struct blocker {
	struct work work;
	sem_t go;
	bool is_done;
};

static void block(struct work *work)
{
	sem_wait(&container_of(work, struct blocker, work)->go);
}

static void unblocked(struct work *work)
{
	container_of(work, struct blocker, work)->is_done = true;
}

static void submit_late(struct task *t)
{
	struct late *late = container_of(t, struct late, task);

	chan_submit(late->c->ch, &late->t->req);
}

/* One is written as the turn ends, before the job of the others begins, another one behind that,
 * while the only worker is busy. */
static void late_body(struct ctx *c)
{
	struct node *node = c->ch->node;
	struct file_node *fn = container_of(node, struct file_node, node);
	struct together all[4] = { 0 };
	struct late late[2] = { { { submit_late, NULL }, c, &all[2] },
				{ { submit_late, NULL }, c, &all[3] } };
	struct blocker b = { .work = { .fn = block, .done = unblocked } };
	char byte = 'x';
	unsigned left = ARRAY_SIZE(all);

	/* Any file system may be one where the loop writes by itself; not these, which are of a
	 * byte each. */
	if (fn->vmstat_fd < 0)
		fn->vmstat_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	sem_init(&b.go, 0, 0);
	loop_work(c->loop, &b.work);
	for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
		all[i] = (struct together){ .iov = { &byte, 1 }, .left = &left,
					    .fiber = fiber_self() };
		all[i].req = (struct req){ .done = together_done, .kind = REQ_WRITE, .off = i,
					   .len = 1, .iov = &all[i].iov, .iovcnt = 1 };
	}
	loop_at_turn_end(c->loop, &late[0].task);
	chan_submit(c->ch, &all[0].req);
	chan_submit(c->ch, &all[1].req);
	fiber_yield_wait();
	loop_at_turn_end(c->loop, &late[1].task);
	fiber_sleep_wait(20 * NS_PER_MS);
	assert_int_equal(left, ARRAY_SIZE(all));
	sem_post(&b.go);
	while (left || !b.is_done)
		fiber_sleep_wait(NS_PER_MS);
	for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
		assert_int_equal(all[i].res, 0);
	sem_destroy(&b.go);
}

static void writes_may_come_as_a_turn_ends(void **state)
{
	static const enum loop_backend backends[] = { LOOP_URING, LOOP_POSIX };
	struct workers *four = workers;

	assert_int_equal(workers_new(1, &workers, NULL), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(backends); i++) {
		char path[32];
		struct file_opts o = { .path = path, .fd = -1, .writable = true,
				       .cache = FILE_CACHE_WRITEBACK };
		struct ctx c = { .opts = &o, .body = late_body };

		if (!has_backend(backends[i]))
			continue;
		c.loop = new_loop(backends[i], 0);
		workers_set_limit(workers, 1);  /* whatever the loop has asked for */
		close(temp_file(4096, path));
		assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
		unlink(path);
		loop_free(c.loop);
	}
	workers_free(workers);
	workers = four;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(small_cached_writes_of_a_turn_go_together),
		cmocka_unit_test(writes_may_come_as_a_turn_ends),
	};

	return cmocka_run_group_tests(tests, setup_workers, teardown_workers);
}
