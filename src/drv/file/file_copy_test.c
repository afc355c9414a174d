/* SPDX-License-Identifier: MIT */
/* Copies from file to file: with what the file system says, whatever that is, and with a stand-in
 * for a file system that shares, does so in part, or fails. */
#include "drv/file/file_test_util.h"

enum { BLOCK = 64 << 10, BLOCKS = 8, SIZE = BLOCK * BLOCKS, MANY = 6 };

struct ctx {
	struct loop *loop;
	enum file_cache cache;
	struct node *from, *to;
	struct chan *ch;                /* of `to` */
	struct file_node *fn;
	char *want, *got;               /* SIZE bytes */
	void (*body)(struct ctx *c);
};

/* ---- a file system that can be told how to share ---- */

static struct {
	atomic_uint ncalls;
	unsigned interrupts;            /* that come first */
	int res;                        /* of the others; then a part is done */
	int probe_res;                  /* of what is behind the end of the source */
} fs;

static int fake_clone(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t len)
{
	uint64_t n = fs.res ? len / 2 : len;
	char *buf = aligned_alloc(IOBUF_ALIGN, len);
	int rc = fs.res;

	if (from >= SIZE) {
		free(buf);
		return fs.probe_res;
	}
	fs.ncalls++;
	if (fs.interrupts && fs.interrupts--) {
		n = len / 4;
		rc = -EINTR;
	}
	assert_true(pread(from_fd, buf, n, (off_t)from) == (ssize_t)n);
	assert_true(pwrite(to_fd, buf, n, (off_t)to) == (ssize_t)n);
	free(buf);
	return rc;
}

static void set_fs(struct ctx *c, unsigned interrupts, int res)
{
	fs.ncalls = 0;
	fs.interrupts = interrupts;
	fs.res = res;
	c->fn->clone = fake_clone;
	c->fn->share_align = BLOCK;
}

/* ---- requests ---- */

static int copy_wait(struct ctx *c, uint64_t off, uint64_t from_off, uint64_t len, unsigned flags)
{
	struct req req = { .kind = REQ_COPY, .off = off, .from = c->from, .from_off = from_off,
			   .len = len, .flags = (uint8_t)flags };

	return chan_submit_wait(c->ch, &req);
}

/* The target is what it was made to be but for [@off, @off + @len), which is the source's from
 * @from_off on. */
static void check_target(struct ctx *c, uint64_t off, uint64_t from_off, uint64_t len)
{
	assert_int_equal(chan_read_wait(c->from->home_chan, from_off, c->want, len), 0);
	assert_int_equal(chan_read_wait(c->ch, 0, c->got, SIZE), 0);
	assert_memory_equal(c->got + off, c->want, len);
	for (uint64_t i = 0; i < SIZE; i++)
		if (i < off || i >= off + len)
			assert_int_equal(c->got[i], 0x11);
}

static int body_wait(void *arg)
{
	struct ctx *c = arg;
	char source[32], target[32];
	int from_fd = temp_file(0, source), to_fd = temp_file(0, target);
	struct file_opts fo = { .path = source, .fd = -1 };
	struct file_opts to = { .path = target, .fd = -1, .cache = c->cache, .writable = true };
	struct prng p = { 7 };

	fill(&p, c->want, SIZE);
	assert_true(pwrite(from_fd, c->want, SIZE, 0) == SIZE);
	memset(c->want, 0x11, SIZE);
	assert_true(pwrite(to_fd, c->want, SIZE, 0) == SIZE);
	assert_int_equal(fsync(to_fd), 0);
	assert_int_equal(file_open_wait(&fo, c->loop, &c->from, NULL), 0);
	if (!file_open_wait(&to, c->loop, &c->to, NULL)) {      /* else: there is no O_DIRECT */
		assert_int_equal(chan_get_wait(c->to, &c->ch, NULL), 0);
		c->fn = as_file(c->to);
		c->body(c);
		chan_put_wait(c->ch);
		node_put_wait(c->to);
	}
	node_put_wait(c->from);
	unlink(source);
	unlink(target);
	close(from_fd);
	close(to_fd);
	return 0;
}

static void run(enum file_cache cache, void (*body)(struct ctx *c))
{
	struct ctx c = { .loop = new_loop(LOOP_AUTO, 0), .cache = cache, .body = body };

	c.want = aligned_alloc(IOBUF_ALIGN, SIZE);
	c.got = aligned_alloc(IOBUF_ALIGN, SIZE);
	loop_call(c.loop, body_wait, &c);
	free(c.want);
	free(c.got);
	loop_free(c.loop);
}

/* ---- tests ---- */

/* A try either works or leaves the file alone. */
static void real_body(struct ctx *c)
{
	uint32_t align = node_share_align_wait(c->to, c->from);
	int rc;

	check_target(c, 0, 0, 0);
	assert_true(c->fn->share_align > 0 && is_pow2(c->fn->share_align));
	if (c->fn->share_align > BLOCK)
		return;
	rc = copy_wait(c, BLOCK, 3 * BLOCK, 2 * BLOCK, REQ_SHARE);
	assert_true(!rc || file_is_unsupported(rc) || rc == -EINVAL || rc == -EPERM);
	assert_true(!rc == !!align);
	check_target(c, BLOCK, 3 * BLOCK, rc ? 0 : 2 * BLOCK);
}

static void shared_body(struct ctx *c)
{
	set_fs(c, 0, 0);
	assert_int_equal(copy_wait(c, BLOCK, 3 * BLOCK, 2 * BLOCK, REQ_SHARE), 0);
	check_target(c, BLOCK, 3 * BLOCK, 2 * BLOCK);
	assert_int_equal(fs.ncalls, 1);
	/* A signal is no reason. */
	set_fs(c, 2, 0);
	assert_int_equal(copy_wait(c, BLOCK, 3 * BLOCK, 4 * BLOCK, REQ_SHARE), 0);
	check_target(c, BLOCK, 3 * BLOCK, 4 * BLOCK);
	assert_int_equal(fs.ncalls, 3);
	/* It makes the file longer. */
	assert_int_equal(copy_wait(c, SIZE, 0, BLOCK, REQ_SHARE), 0);
	assert_int_equal(file_size(c->fn), SIZE + BLOCK);
	assert_int_equal(submit_wait(c->ch, REQ_FLUSH, 0, 0, 0), 0);
}

static void failed_body(struct ctx *c)
{
	static const int errors[] = { -EOPNOTSUPP, -EXDEV, -ENOSPC, -EIO };

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		set_fs(c, 0, errors[i]);
		assert_int_equal(copy_wait(c, 0, 2 * BLOCK, 4 * BLOCK, REQ_SHARE), errors[i]);
		assert_int_equal(fs.ncalls, 1);
		check_target(c, 0, 2 * BLOCK, 2 * BLOCK);
		assert_int_equal(file_size(c->fn), SIZE);
	}
	/* A write is what puts it right. */
	memset(c->want, 0x11, SIZE);
	assert_int_equal(chan_write_wait(c->ch, 0, c->want, SIZE), 0);
	check_target(c, 0, 0, 0);
}

/* What a probe says, which is no try. */
static void probe_body(struct ctx *c)
{
	static const struct node_ops other_ops = { .name = "other" };
	struct node other = { .ops = &other_ops };

	set_fs(c, 0, 0);
	fs.probe_res = -EINVAL;
	assert_int_equal(node_share_align_wait(c->to, c->from), BLOCK);
	assert_int_equal(node_share_align_wait(c->to, &other), 0);
	fs.probe_res = -EXDEV;
	assert_int_equal(node_share_align_wait(c->to, c->from), 0);
	fs.probe_res = -EINVAL;
	c->fn->share_align = 0;
	assert_int_equal(node_share_align_wait(c->to, c->from), 0);
	assert_int_equal(fs.ncalls, 0);
	check_target(c, 0, 0, 0);
}

/* What is refused without a try. */
static void refused_body(struct ctx *c)
{
	static const struct node_ops other_ops = { .name = "other" };
	struct node other = { .ops = &other_ops }, *from = c->from;

	set_fs(c, 0, 0);
	assert_int_equal(copy_wait(c, 512, BLOCK, BLOCK, REQ_SHARE), -EINVAL);
	assert_int_equal(copy_wait(c, BLOCK, 512, BLOCK, REQ_SHARE), -EINVAL);
	assert_int_equal(copy_wait(c, BLOCK, BLOCK, 512, REQ_SHARE), -EINVAL);
	assert_int_equal(copy_wait(c, BLOCK, BLOCK, 0, REQ_SHARE), 0);
	c->from = &other;
	assert_int_equal(copy_wait(c, BLOCK, BLOCK, BLOCK, REQ_SHARE), -ENOTSUP);
	c->from = from;
	c->fn->share_align = 0;
	assert_int_equal(copy_wait(c, BLOCK, BLOCK, BLOCK, REQ_SHARE), -ENOTSUP);
	c->fn->node.read_only = true;
	assert_int_equal(copy_wait(c, BLOCK, BLOCK, BLOCK, REQ_SHARE), -EROFS);
	c->fn->node.read_only = false;
	assert_int_equal(fs.ncalls, 0);
	check_target(c, 0, 0, 0);
}

/* Whoever asks for durability hears of what is lost. */
static void durable_body(struct ctx *c)
{
	set_fs(c, 0, 0);
	assert_int_equal(copy_wait(c, 0, 0, BLOCK, REQ_SHARE | REQ_FUA), 0);
	atomic_store(&c->fn->sync_failed, true);
	assert_int_equal(copy_wait(c, 0, 0, BLOCK, REQ_SHARE | REQ_FUA), -EIO);
	assert_int_equal(copy_wait(c, 0, 0, BLOCK, REQ_SHARE), c->fn->is_dsync ? -EIO : 0);
}

static void plain_body(struct ctx *c)
{
	assert_int_equal(copy_wait(c, BLOCK, 3 * BLOCK, 2 * BLOCK, 0), 0);
	check_target(c, BLOCK, 3 * BLOCK, 2 * BLOCK);
	/* The source ends too early. */
	assert_int_equal(copy_wait(c, 0, SIZE, BLOCK, 0), -EIO);
}

struct ask {
	struct req req;
	struct fiber *fiber;
	unsigned *missing;
};

static void answered(struct req *req, int res)
{
	struct ask *a = container_of(req, struct ask, req);

	assert_int_equal(res, 0);
	if (!--*a->missing)
		fiber_wake(a->fiber);
}

/* K1: a part of a block is written beside a copy to it; neither undoes the other. */
static void beside_body(struct ctx *c)
{
	char few[100];
	struct iovec iov = { few, sizeof(few) };
	unsigned missing = MANY + 1;
	struct ask asks[MANY + 1];

	set_fs(c, 0, 0);
	memset(few, 0x22, sizeof(few));
	for (unsigned i = 0; i <= MANY; i++) {
		asks[i] = (struct ask){ .fiber = fiber_self(), .missing = &missing };
		asks[i].req = (struct req){ .done = answered, .kind = REQ_WRITE, .len = sizeof(few),
					    .off = i * 10000 + 4, .iov = &iov, .iovcnt = 1 };
	}
	asks[MANY / 2].req = (struct req){ .done = answered, .kind = REQ_COPY, .flags = REQ_SHARE,
					   .len = SIZE, .from = c->from };
	for (unsigned i = 0; i <= MANY; i++)
		chan_submit(c->ch, &asks[i].req);
	while (missing)
		fiber_park();
	assert_int_equal(chan_read_wait(c->from->home_chan, 0, c->want, SIZE), 0);
	assert_int_equal(chan_read_wait(c->ch, 0, c->got, SIZE), 0);
	for (unsigned i = 0; i <= MANY; i++)
		if (!memcmp(c->got + i * 10000 + 4, few, sizeof(few)))
			memcpy(c->want + i * 10000 + 4, few, sizeof(few));
	assert_memory_equal(c->got, c->want, SIZE);
}

static void run_both(void (*body)(struct ctx *c))
{
	run(FILE_CACHE_WRITEBACK, body);
	run(FILE_CACHE_NONE, body);
}

static void f18_a_try_works_or_leaves_the_file_alone(void **state)
{
	run_both(real_body);
}

static void f18_what_is_shared_is_there(void **state)
{
	run_both(shared_body);
}

static void f18_what_fails_is_old_or_new(void **state)
{
	run_both(failed_body);
}

static void what_cannot_be_is_not_tried(void **state)
{
	run_both(probe_body);
	run_both(refused_body);
}

static void q9_a_copy_that_shall_be_durable_is(void **state)
{
	run_both(durable_body);
	run(FILE_CACHE_WRITETHROUGH, durable_body);
}

static void f18_the_file_system_copies(void **state)
{
	run(FILE_CACHE_WRITEBACK, plain_body);
}

static void k1_a_part_of_a_block_beside_a_copy(void **state)
{
	run_both(beside_body);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(f18_a_try_works_or_leaves_the_file_alone),
		cmocka_unit_test(f18_what_is_shared_is_there),
		cmocka_unit_test(f18_what_fails_is_old_or_new),
		cmocka_unit_test(what_cannot_be_is_not_tried),
		cmocka_unit_test(q9_a_copy_that_shall_be_durable_is),
		cmocka_unit_test(f18_the_file_system_copies),
		cmocka_unit_test(k1_a_part_of_a_block_beside_a_copy),
	};

	return cmocka_run_group_tests(tests, setup_workers, teardown_workers);
}
