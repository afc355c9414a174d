/* SPDX-License-Identifier: MIT */
/* Small writes by the loop itself, on any file system: a file of ours stands for what the kernel
 * says of dirty pages. */
#include "drv/file/file_test_util.h"

enum { PAGE = 4096, PAGES = 64, LARGE = 17, MANY = 40, MUCH = 1 << 20 };

struct ctx {
	struct loop *loop;
	const struct file_opts *opts;
	struct file_chan *fc;
	struct file_node *fn;
	char *buf;
	int vmstat;                     /* what the node takes for it */
};

/* ---- one write ---- */

struct write {
	struct req req;
	struct iovec iov;
	struct fiber *fiber;
	bool is_done;
	int res;
};

static void write_done(struct req *req, int res)
{
	struct write *w = container_of(req, struct write, req);

	w->res = res;
	w->is_done = true;
	fiber_wake(w->fiber);
}

static void write_start(struct ctx *c, struct write *w, uint64_t off, uint64_t len)
{
	*w = (struct write){ .iov = { c->buf, len }, .fiber = fiber_self() };
	w->req = (struct req){ .done = write_done, .kind = REQ_WRITE, .off = off, .len = len,
			       .iov = &w->iov, .iovcnt = 1 };
	chan_submit(&c->fc->chan, &w->req);
	assert_false(w->is_done);       /* L1 */
}

static void write_end(struct write *w)
{
	while (!w->is_done)
		fiber_park();
	assert_int_equal(w->res, 0);
}

/* Has the loop done it by itself? */
static bool is_now(struct ctx *c, uint64_t off, uint64_t len)
{
	uint64_t before = c->fc->now.writes;
	struct write w;

	c->fc->now.rest_until_ns = 0;   /* a busy machine may have held us up */
	write_start(c, &w, off, len);
	write_end(&w);
	return c->fc->now.writes != before;
}

/* The next look says so. */
static void set_pages(struct ctx *c, unsigned dirty, unsigned writeback, unsigned limit)
{
	char text[128];
	int n = snprintf(text, sizeof(text), "nr_dirty %u\nnr_writeback %u\nnr_other 7\n"
			 "nr_dirty_background_threshold %u\n", dirty, writeback, limit);

	assert_int_equal(ftruncate(c->vmstat, 0), 0);
	assert_int_equal(pwrite(c->vmstat, text, (size_t)n, 0), n);
	c->fc->now = (struct file_now){ 0 };
}

/* ---- what is done at once ---- */

static void check_shapes(struct ctx *c)
{
	char in[PAGE];

	set_pages(c, 0, 0, MUCH);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(is_now(c, i * PAGE, PAGE));
	assert_int_equal(chan_read_wait(&c->fc->chan, 5 * PAGE, in, PAGE), 0);
	assert_memory_equal(in, c->buf, PAGE);
	assert_true(is_now(c, 0, (LARGE - 1) * PAGE));
	assert_false(is_now(c, 0, LARGE * PAGE));
	assert_false(is_now(c, 512, PAGE));
	assert_false(is_now(c, 0, 512));
	assert_false(is_now(c, PAGES * PAGE, PAGE));
	assert_true(is_now(c, PAGES * PAGE, PAGE));     /* it has grown meanwhile */
}

static void check_company(struct ctx *c)
{
	struct write w[MANY];

	/* Many in a turn: as many as is fair to others, the rest otherwise. */
	set_pages(c, 0, 0, MUCH);
	for (unsigned i = 0; i < MANY; i++)
		write_start(c, &w[i], i * PAGE, PAGE);
	for (unsigned i = 0; i < MANY; i++)
		write_end(&w[i]);
	assert_in_range(c->fc->now.writes, 1, 32);
	/* A write under way that is not among them. */
	set_pages(c, 0, 0, MUCH);
	write_start(c, &w[0], 0, LARGE * PAGE);
	write_start(c, &w[1], 0, PAGE);
	write_end(&w[1]);
	write_end(&w[0]);
	assert_int_equal(c->fc->now.writes, 0);
	/* Others who write to the file. */
	atomic_fetch_add(&c->fn->batches, 1);
	assert_false(is_now(c, 0, PAGE));
	atomic_fetch_sub(&c->fn->batches, 1);
	atomic_store(&c->fn->is_writing_now, true);
	assert_false(is_now(c, 0, PAGE));
	atomic_store(&c->fn->is_writing_now, false);
	assert_true(is_now(c, 0, PAGE));
	assert_false(atomic_load(&c->fn->is_writing_now));
}

static void check_dirty_pages(struct ctx *c)
{
	set_pages(c, MUCH, 0, MUCH);
	assert_false(is_now(c, 0, PAGE));
	set_pages(c, MUCH / 2, MUCH / 2, MUCH);
	assert_false(is_now(c, 0, PAGE));
	set_pages(c, MUCH / 2, MUCH / 4, MUCH);
	assert_true(is_now(c, 0, PAGE));
	assert_int_equal(c->fc->now.room, MUCH / 4 / 16 * (uint64_t)sysconf(_SC_PAGESIZE) - PAGE);
}

static int run_fiber(void *arg)
{
	struct ctx *c = arg;
	struct err err = { 0 };
	struct node *node;
	struct chan *ch;

	if (file_open_wait(c->opts, c->loop, &node, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(chan_get_wait(node, &ch, &err), 0);
	c->fc = file_chan(ch);
	c->fn = as_file(node);
	/* As if this were the right file system for it. */
	if (c->fn->vmstat_fd >= 0)
		close(c->fn->vmstat_fd);
	c->fn->vmstat_fd = c->vmstat;
	c->fn->now_align = PAGE;
	check_shapes(c);
	check_company(c);
	check_dirty_pages(c);
	chan_put_wait(ch);
	node_put_wait(node);            /* closes it */
	return 0;
}

static void f16_only_a_few_small_writes_of_whole_pages_are_the_loops_own(void **state)
{
	static const enum loop_backend backends[] = { LOOP_URING, LOOP_POSIX };

	for (unsigned i = 0; i < ARRAY_SIZE(backends); i++) {
		char path[32], vmstat[32];
		struct file_opts o = { .path = path, .fd = -1, .writable = true };
		struct ctx c = { .opts = &o };
		struct prng prng = { .state = 1 };

		if (!has_backend(backends[i]))
			continue;
		c.buf = malloc(16 * PAGE);
		fill(&prng, c.buf, 16 * PAGE);
		c.loop = new_loop(backends[i], 0);
		c.vmstat = temp_file(0, vmstat);
		close(temp_file(PAGES * PAGE, path));
		assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
		unlink(path);
		unlink(vmstat);
		loop_free(c.loop);
		free(c.buf);
	}
}

/* ---- what the kernel says ---- */

static void f16_room_is_what_is_missing_to_write_back(void **state)
{
	static const char most[] = "nr_free_pages 9\nnr_dirty_x 5\nnr_dirty 100\nnr_writeback 20\n";
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	char text[256];

	snprintf(text, sizeof(text), "%snr_dirty_background_threshold 1720\n", most);
	assert_int_equal(file_now_room(text), 100 * page);
	snprintf(text, sizeof(text), "%snr_dirty_background_threshold 120\n", most);
	assert_int_equal(file_now_room(text), 0);
	snprintf(text, sizeof(text), "%snr_dirty_background_threshold 99\n", most);
	assert_int_equal(file_now_room(text), 0);
	/* Cut off, or not there. */
	snprintf(text, sizeof(text), "%snr_dirty_background_threshold 1720", most);
	assert_int_equal(file_now_room(text), 0);
	assert_int_equal(file_now_room(most), 0);
	assert_int_equal(file_now_room("nr_dirty x\nnr_writeback\n"), 0);
	assert_int_equal(file_now_room(""), 0);
}

static void f17_who_was_held_up_rests_for_a_multiple(void **state)
{
	const struct file_node fn = { .now_align = PAGE, .vmstat_fd = -1 };
	uint64_t held = 0, end = 1000 * NS_PER_SEC, took = 5 * NS_PER_MS;
	struct file_now n = { 0 };

	/* A clock of milliseconds, and a disk that holds up each write. */
	for (uint64_t now = 0; now < end; now += NS_PER_MS) {
		n.looked_ns = now;
		n.room = UINT64_MAX;
		if (!file_now_may(&n, &fn, now))
			continue;
		file_now_took(&n, now, now + took);
		now += took;
		held += took;
	}
	assert_true(held > 0 && held <= end / FILE_NOW_SHARE);
	/* What is quick needs none. */
	n = (struct file_now){ .room = PAGE };
	file_now_took(&n, 0, NS_PER_MS / 100);
	assert_int_equal(file_now_may(&n, &fn, NS_PER_MS / 100), PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(f16_only_a_few_small_writes_of_whole_pages_are_the_loops_own),
		cmocka_unit_test(f16_room_is_what_is_missing_to_write_back),
		cmocka_unit_test(f17_who_was_held_up_rests_for_a_multiple),
	};

	return cmocka_run_group_tests(tests, setup_workers, teardown_workers);
}
