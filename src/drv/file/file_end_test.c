/* SPDX-License-Identifier: MIT */
/* Files that somebody else cuts while they are open, and files that only look like that. */
#include <pthread.h>

#include "base/zero.h"
#include "drv/file/file_test_util.h"
#include "loop/loop_thread.h"

enum { SIZE = 64 << 10, CUT = 20000, ROUNDS = 300, STEP = 700 };

static const enum loop_backend backends[] = { LOOP_URING, LOOP_POSIX };
static const enum file_cache caches[] = { FILE_CACHE_WRITEBACK, FILE_CACHE_NONE,
					  FILE_CACHE_WRITETHROUGH, FILE_CACHE_DIRECTSYNC,
					  FILE_CACHE_UNSAFE };

/* ---- what was logged ---- */

static unsigned lines_logged;
static char last_line[1024];

static void keep_line(enum log_level level, const char *line)
{
	lines_logged++;
	snprintf(last_line, sizeof(last_line), "%s", line);
}

static int setup(void **state)
{
	log_set_sink(keep_line);
	return setup_workers(state);
}

/* ---- a file, on one loop, in every mode ---- */

struct ctx {
	struct file_opts opts;
	struct loop *loop;
	struct node *node;
	struct chan *ch;
	void (*body)(struct ctx *c);
	char buf[SIZE];
};

static int run_fiber(void *arg)
{
	struct ctx *c = arg;
	struct err err = { 0 };

	if (file_open_wait(&c->opts, c->loop, &c->node, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(chan_get_wait(c->node, &c->ch, &err), 0);
	c->body(c);
	chan_put_wait(c->ch);
	node_put_wait(c->node);
	return 0;
}

static void fill_file(int fd, uint64_t len)
{
	char buf[512];

	memset(buf, 'd', sizeof(buf));
	for (uint64_t off = 0; off < len; off += sizeof(buf))
		assert_true(pwrite(fd, buf, MIN(len - off, sizeof(buf)), (off_t)off) > 0);
}

/* Runs @body over a file of @size bytes of data, for every backend and cache mode. */
static void run_all(uint64_t size, bool writable, void (*body)(struct ctx *c))
{
	static struct ctx c;

	for (unsigned i = 0; i < ARRAY_SIZE(backends) * ARRAY_SIZE(caches); i++) {
		char path[32];
		int fd;

		if (!has_backend(backends[i % ARRAY_SIZE(backends)]))
			continue;
		fd = temp_file(0, path);
		fill_file(fd, size);
		close(fd);
		c = (struct ctx){ .loop = new_loop(backends[i % ARRAY_SIZE(backends)], 0),
				  .body = body };
		c.opts = (struct file_opts){ .path = path, .fd = -1, .writable = writable,
					     .cache = caches[i / ARRAY_SIZE(backends)],
					     .discard = true };
		lines_logged = 0;
		assert_int_equal(loop_call(c.loop, run_fiber, &c), 0);
		loop_free(c.loop);
		unlink(path);
	}
}

static void cut_file(struct ctx *c, uint64_t size)
{
	assert_int_equal(truncate(c->opts.path, (off_t)size), 0);
}

static void assert_refused(struct ctx *c)
{
	assert_int_equal(chan_write_wait(c->ch, 0, c->buf, 512), -EIO);
	assert_int_equal(chan_write_wait(c->ch, SIZE - 100, c->buf, 100), -EIO);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, SIZE - 4096, 4096, REQ_MAY_UNMAP), -EIO);
	assert_int_equal(submit_wait(c->ch, REQ_DISCARD, 0, 4096, 0), -EIO);
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
}

/* What is in whole blocks is there still. */
static void assert_readable(struct ctx *c)
{
	uint64_t len = align_down(CUT, as_file(c->node)->block);

	memset(c->buf, 'q', SIZE);
	assert_int_equal(chan_read_wait(c->ch, 0, c->buf, len), 0);
	for (uint64_t i = 0; i < len; i++)
		assert_int_equal(c->buf[i], 'd');
}

static uint64_t length(const struct ctx *c)
{
	int fd = open(c->opts.path, O_RDONLY);
	off_t end = lseek(fd, 0, SEEK_END);

	close(fd);
	return (uint64_t)end;
}

/* ---- reads ---- */

static const struct { uint64_t off, len; } lost[] = {
	{ CUT, 1 }, { CUT - 1, 2 }, { 16384, 4096 }, { 24576, 4096 }, { 0, SIZE }, { 30001, 77 },
	{ SIZE - 512, 512 }, { SIZE - 512, 1024 },
};

static void read_body(struct ctx *c)
{
	assert_int_equal(chan_read_wait(c->ch, 0, c->buf, SIZE), 0);
	cut_file(c, CUT);
	for (unsigned i = 0; i < ARRAY_SIZE(lost); i++)
		assert_int_equal(chan_read_wait(c->ch, lost[i].off, c->buf, lost[i].len), -EIO);
	assert_readable(c);
	assert_int_equal(lines_logged, 1);
	assert_non_null(strstr(last_line, c->opts.path));
	assert_non_null(strstr(last_line, "from 65536 to 20000 bytes"));
	/* That it has its length again does not bring anything back. */
	cut_file(c, SIZE);
	assert_int_equal(chan_read_wait(c->ch, 30001, c->buf, 77), -EIO);
	if (c->opts.writable) {
		assert_refused(c);
		assert_int_equal(lines_logged, 1);
	} else {
		assert_int_equal(chan_flush_wait(c->ch), 0);    /* it wrote nothing */
	}
}

static void f11_what_is_missing_is_an_error(void **state)
{
	run_all(SIZE, true, read_body);
	run_all(SIZE, false, read_body);
}

/* Each of the reads as the one that finds it. */
static unsigned which;

static void read_first_body(struct ctx *c)
{
	cut_file(c, CUT);
	memset(c->buf, 'q', SIZE);
	assert_int_equal(chan_read_wait(c->ch, lost[which].off, c->buf, lost[which].len), -EIO);
	assert_int_equal(lines_logged, 1);
}

static void f11_any_read_finds_out(void **state)
{
	for (which = 0; which < ARRAY_SIZE(lost); which++)
		run_all(SIZE, which % 2, read_first_body);
}

static void map_body(struct ctx *c)
{
	struct req req = { .kind = REQ_MAP, .off = 32768, .len = SIZE };

	cut_file(c, CUT);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(chan_submit_wait(c->ch, &req), 0);
		assert_int_equal(req.map.flags & MAP_ZERO, 0);
		assert_int_equal(req.map.len, SIZE - 32768);
		cut_file(c, SIZE);      /* a hole now, but not one of ours */
		req = (struct req){ .kind = REQ_MAP, .off = 32768, .len = SIZE };
	}
	assert_int_equal(lines_logged, 1);
}

static void f11_no_map_calls_it_zeros(void **state)
{
	run_all(SIZE, false, map_body);
}

/* ---- flushes ---- */

static void flush_body(struct ctx *c)
{
	if (c->opts.cache == FILE_CACHE_UNSAFE)
		return;                 /* its flushes do nothing */
	assert_int_equal(chan_write_wait(c->ch, 0, c->buf, 4096), 0);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	cut_file(c, CUT);
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
	assert_refused(c);
	assert_int_equal(length(c), CUT);
	assert_int_equal(lines_logged, 1);
	assert_non_null(strstr(last_line, "from 65536 to 20000 bytes"));
	assert_int_equal(chan_read_wait(c->ch, CUT, c->buf, 512), -EIO);
}

static void f12_a_flush_finds_out(void **state)
{
	run_all(SIZE, true, flush_body);
}

/* A write that comes first makes it longer, but not as long as it was. */
static void stretch_body(struct ctx *c)
{
	int res;

	if (c->opts.cache == FILE_CACHE_UNSAFE)
		return;
	cut_file(c, CUT);
	res = chan_write_wait(c->ch, 40960, c->buf, 4096);
	if (c->opts.cache != FILE_CACHE_WRITETHROUGH)
		assert_int_equal(res, 0);
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
	assert_refused(c);
	assert_int_equal(length(c), 45056);
}

static void f12_a_write_before_the_flush_hides_nothing(void **state)
{
	run_all(SIZE, true, stretch_body);
}

static void own_cut_body(struct ctx *c)
{
	cut_file(c, CUT);
	assert_int_equal(node_truncate_wait(c->node, 30000), -EIO);
	assert_int_equal(length(c), CUT);
	assert_refused(c);
	assert_int_equal(node_grow_wait(c->node, 2 * SIZE, true), -EIO);
	assert_int_equal(length(c), CUT);
}

static void growth_body(struct ctx *c)
{
	cut_file(c, CUT);
	assert_int_equal(node_grow_wait(c->node, 2 * SIZE, true), -EIO);
	assert_int_equal(length(c), CUT);
	assert_int_equal(file_size(as_file(c->node)), SIZE);
	assert_refused(c);
}

static void f12_what_we_do_to_the_length_stretches_nothing(void **state)
{
	run_all(SIZE, true, own_cut_body);
	run_all(SIZE, true, growth_body);
}

/* ---- what is in order ---- */

static void fine_body(struct ctx *c)
{
	uint64_t size = file_size(as_file(c->node));

	/* Somebody makes it longer, and takes that back: we knew of neither. */
	cut_file(c, size + 5000);
	assert_int_equal(chan_read_wait(c->ch, size, c->buf, 8192), 0);
	cut_file(c, size);
	memset(c->buf, 'q', SIZE);
	assert_int_equal(chan_read_wait(c->ch, size - 100, c->buf, 8192), 0);
	assert_int_equal(c->buf[99], 'd');
	assert_int_equal(c->buf[100], 0);
	assert_int_equal(c->buf[8191], 0);
	assert_int_equal(chan_write_wait(c->ch, size + 1000, c->buf, 333), 0);
	assert_int_equal(chan_read_wait(c->ch, size, c->buf, 8192), 0);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(node_truncate_wait(c->node, 5001), 0);
	assert_int_equal(chan_read_wait(c->ch, 4096, c->buf, 8192), 0);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(length(c), 5001);
	assert_int_equal(node_grow_wait(c->node, 4000, true), 0);
	assert_int_equal(length(c), 5001);
	assert_int_equal(node_grow_wait(c->node, 20001, false), 0);
	assert_int_equal(length(c), 20001);
	assert_int_equal(file_size(as_file(c->node)), 20001);
	assert_int_equal(chan_read_wait(c->ch, 4096, c->buf, 20480), 0);
	assert_int_equal(c->buf[904], 'd');
	assert_true(bytes_are_zero(c->buf + 905, 20480 - 905));
	assert_int_equal(node_grow_wait(c->node, 22222, true), 0);
	assert_int_equal(length(c), 22222);
	cut_file(c, 30000);                     /* longer than we ask for: so it stays */
	assert_int_equal(node_grow_wait(c->node, 25000, true), 0);
	assert_int_equal(length(c), 30000);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(lines_logged, 0);
}

/* Parts of the last block, written while the file becomes longer. */
struct tail_writer {
	struct ctx *c;
	struct task task;
	bool is_done;
};

static void tail_writer_main(struct task *t)
{
	struct tail_writer *tw = container_of(t, struct tail_writer, task);
	char part[STEP];

	memset(part, 'w', sizeof(part));
	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t at = file_size(as_file(tw->c->node)) - 99;

		assert_int_equal(chan_write_wait(tw->c->ch, at, part, 99), 0);
	}
	tw->is_done = true;
}

static void grow_under_writes_body(struct ctx *c)
{
	struct tail_writer tw = { .c = c, .task.fn = tail_writer_main };
	uint64_t size = 10000;

	fiber_start(c->loop, &tw.task);
	while (!tw.is_done) {
		size += STEP;
		assert_int_equal(node_grow_wait(c->node, size, size % 3), 0);
		assert_true(length(c) >= size);         /* a whole block, just now */
	}
	assert_int_equal(length(c), size);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(lines_logged, 0);
}

static void f13_k1_growth_beside_writes_of_parts_is_in_order(void **state)
{
	run_all(10000, true, grow_under_writes_body);
}

static void f13_ends_and_growth_are_in_order(void **state)
{
	run_all(10000, true, fine_body);
	run_all(8192, true, fine_body);
}

/* ---- two loops: one makes it longer, the other reads where it ends, and flushes ---- */

struct bed {
	struct file_opts opts;
	struct loop_thread r[2];
	struct node *node;
	atomic_bool is_over;
};

struct side {
	struct bed *b;
	unsigned i;
};

static int bed_open(void *arg)
{
	struct bed *b = arg;

	return file_open_wait(&b->opts, b->r[0].loop, &b->node, NULL);
}

static int bed_close(void *arg)
{
	node_put_wait(((struct bed *)arg)->node);
	return 0;
}

static int append(struct chan *ch)
{
	char buf[STEP];
	int rc = 0;

	memset(buf, 'a', sizeof(buf));
	for (uint64_t n = 0; n < ROUNDS && !rc; n++) {
		if (n % 7 == 3)
			rc = submit_wait(ch, REQ_ZERO, n * STEP, STEP, REQ_MAY_UNMAP);
		else
			rc = chan_write_wait(ch, n * STEP, buf, STEP);
	}
	return rc;
}

static int follow(struct bed *b, struct chan *ch)
{
	char buf[8192];
	int rc = 0;

	for (unsigned n = 0; !rc && !atomic_load(&b->is_over); n++) {
		uint64_t end = file_size(as_file(b->node));

		rc = chan_read_wait(ch, align_down(end, n % 2 ? 4096 : 1), buf, sizeof(buf));
		if (!rc && n % 16 == 0)
			rc = chan_flush_wait(ch);
	}
	return rc;
}

static int side_body(void *arg)
{
	struct side *s = arg;
	struct chan *ch;
	int rc;

	assert_int_equal(chan_get_wait(s->b->node, &ch, NULL), 0);
	rc = s->i ? append(ch) : follow(s->b, ch);
	chan_put_wait(ch);
	return rc;
}

static void *follow_thread(void *arg)
{
	struct side s = { arg, 0 };

	return (void *)(intptr_t)loop_call(s.b->r[0].loop, side_body, &s);
}

static void grow_on_two_loops(enum loop_backend backend, enum file_cache cache)
{
	struct bed b = { .opts = { .fd = -1, .cache = cache, .writable = true, .discard = true } };
	struct side s = { &b, 1 };
	pthread_t thread;
	char path[32];
	void *res;

	b.opts.path = path;
	close(temp_file(0, path));
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(loop_thread_start(&b.r[i], new_loop(backend, 0), "t", NULL), 0);
	assert_int_equal(loop_call(b.r[0].loop, bed_open, &b), 0);
	assert_int_equal(pthread_create(&thread, NULL, follow_thread, &b), 0);
	assert_int_equal(loop_call(b.r[1].loop, side_body, &s), 0);
	atomic_store(&b.is_over, true);
	pthread_join(thread, &res);
	assert_int_equal((intptr_t)res, 0);
	assert_int_equal(file_size(as_file(b.node)), ROUNDS * STEP);
	loop_call(b.r[0].loop, bed_close, &b);
	for (unsigned i = 0; i < 2; i++)
		loop_thread_stop(&b.r[i]);
	unlink(path);
}

static void f13_growth_on_another_loop_is_in_order(void **state)
{
	lines_logged = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(backends); i++) {
		if (!has_backend(backends[i]))
			continue;
		grow_on_two_loops(backends[i], FILE_CACHE_WRITEBACK);
		grow_on_two_loops(backends[i], FILE_CACHE_NONE);
	}
	assert_int_equal(lines_logged, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(f11_what_is_missing_is_an_error),
		cmocka_unit_test(f11_any_read_finds_out),
		cmocka_unit_test(f11_no_map_calls_it_zeros),
		cmocka_unit_test(f12_a_flush_finds_out),
		cmocka_unit_test(f12_a_write_before_the_flush_hides_nothing),
		cmocka_unit_test(f12_what_we_do_to_the_length_stretches_nothing),
		cmocka_unit_test(f13_ends_and_growth_are_in_order),
		cmocka_unit_test(f13_k1_growth_beside_writes_of_parts_is_in_order),
		cmocka_unit_test(f13_growth_on_another_loop_is_in_order),
	};

	return cmocka_run_group_tests(tests, setup, teardown_workers);
}
