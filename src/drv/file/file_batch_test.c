/* SPDX-License-Identifier: MIT */
#include "drv/file/file_test_util.h"

enum { TOGETHER = 100, LARGE = 128 << 10 };

struct ctx {
	struct loop *loop;
	const struct file_opts *opts;
	struct chan *ch;
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
	together_body(c);
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
		struct ctx c = { .opts = &o };

		if (!has_backend(backend))
			continue;
		c.loop = new_loop(backend, 0);
		close(temp_file(0, path));
		assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
		unlink(path);
		loop_free(c.loop);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(small_cached_writes_of_a_turn_go_together),
	};

	return cmocka_run_group_tests(tests, setup_workers, teardown_workers);
}
