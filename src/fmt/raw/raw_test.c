/* SPDX-License-Identifier: MIT */
#include "fmt/raw/raw.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "blk/blk.h"
#include "drv/file/file.h"
#include "loop/work.h"

enum { FILE_SIZE = 100000 };

static struct workers *workers;

struct ctx {
	struct loop *loop;
	struct raw_opts opts;
	enum file_cache cache;
	char path[32];
	struct node *file, *raw;
	struct chan *ch;                /* of raw */
	void (*body)(struct ctx *c);
	struct err err;
};

static int run_fiber(void *arg)
{
	struct ctx *c = arg;
	struct file_opts fo = { .path = c->path, .fd = -1, .cache = c->cache, .writable = true,
				.discard = true };
	int rc;

	assert_int_equal(file_open_wait(&fo, c->loop, &c->file, &c->err), 0);
	rc = raw_open_wait(c->file, &c->opts, &c->raw, &c->err);
	if (rc) {
		node_put_wait(c->file);
		return rc;
	}
	assert_int_equal(chan_get_wait(c->raw, &c->ch, &c->err), 0);
	c->body(c);
	chan_put_wait(c->ch);
	node_put_wait(c->raw);
	return 0;
}

/* Over a file of FILE_SIZE bytes, each the low byte of its offset. */
static int run(struct raw_opts opts, enum file_cache cache, void (*body)(struct ctx *c),
	       struct err *ret_err)
{
	struct loop_opts lo = { .workers = workers };
	struct ctx c = { .opts = opts, .cache = cache, .body = body, .path = "raw_test.XXXXXX" };
	int fd = mkstemp(c.path), rc;
	char bytes[FILE_SIZE];

	for (unsigned i = 0; i < FILE_SIZE; i++)
		bytes[i] = (char)i;
	assert_int_equal(write(fd, bytes, FILE_SIZE), FILE_SIZE);
	close(fd);
	assert_int_equal(loop_new(&lo, &c.loop, NULL), 0);
	rc = loop_call(c.loop, run_fiber, &c);
	loop_free(c.loop);
	unlink(c.path);
	if (ret_err)
		*ret_err = c.err;
	return rc;
}

static int submit(struct ctx *c, enum req_kind kind, uint64_t off, uint64_t len)
{
	struct req req = { .kind = (uint8_t)kind, .off = off, .len = len };

	return chan_submit_wait(c->ch, &req);
}

static void whole_body(struct ctx *c)
{
	char buf[1024];
	struct req req = { .kind = REQ_MAP, .off = 0, .len = 512 };

	assert_int_equal(node_share_align_wait(c->raw, c->file),
			 node_share_align_wait(c->file, c->file));
	/* 100000 is 195 sectors and 160 bytes. */
	assert_int_equal(c->raw->size, 196 * 512);
	assert_int_equal(chan_read_wait(c->ch, 195 * 512, buf, 512), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal((uint8_t)buf[i], i < 160 ? (195 * 512 + i) & 0xff : 0);
	memset(buf, 'x', sizeof(buf));
	assert_int_equal(chan_write_wait(c->ch, 195 * 512, buf, 512), 0);
	assert_int_equal(submit(c, REQ_ZERO, 195 * 512, 100), 0);
	assert_int_equal(chan_read_wait(c->ch, 194 * 512, buf, 1024), 0);
	for (unsigned i = 512; i < 1024; i++)
		assert_int_equal(buf[i], i < 612 ? 0 : 'x');
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(submit(c, REQ_DISCARD, 0, 8192), 0);
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	assert_ptr_equal(req.map.file, c->file);
	assert_int_equal(req.map.host_off, 0);
	assert_true(c->raw->can_discard && !c->raw->read_only);
}

static void r1_the_whole_file_and_a_tail_of_zeros(void **state)
{
	struct raw_opts o = { .writable = true };

	assert_int_equal(run(o, FILE_CACHE_WRITEBACK, whole_body, NULL), 0);
	assert_int_equal(run(o, FILE_CACHE_NONE, whole_body, NULL), 0);
	o.probed = true;
	assert_int_equal(run(o, FILE_CACHE_NONE, whole_body, NULL), 0);
}

static void part_body(struct ctx *c)
{
	char buf[1024], out[512];
	struct req req = { .kind = REQ_MAP, .off = 0, .len = 1024 };
	struct chan *file;

	assert_int_equal(c->raw->size, 1024);
	assert_int_equal(chan_get_wait(c->file, &file, NULL), 0);
	assert_int_equal(chan_read_wait(c->ch, 0, buf, 1024), 0);
	for (unsigned i = 0; i < 1024; i++)
		assert_int_equal((uint8_t)buf[i], (i + 777) & 0xff);
	memset(out, 'p', sizeof(out));
	assert_int_equal(chan_write_wait(c->ch, 512, out, 512), 0);
	assert_int_equal(chan_read_wait(file, 777 + 500, buf, 536), 0);
	for (unsigned i = 0; i < 536; i++)
		assert_int_equal((uint8_t)buf[i], i >= 12 && i < 524 ? 'p' :
							     (777 + 500 + i) & 0xff);
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	assert_int_equal(req.map.host_off, 777);
	assert_int_equal(node_share_align_wait(c->raw, c->file), 0);
	chan_put_wait(file);
}

static void r1_a_part_of_the_file(void **state)
{
	struct raw_opts o = { .offset = 777, .has_size = true, .size = 1024, .writable = true };

	assert_int_equal(run(o, FILE_CACHE_WRITEBACK, part_body, NULL), 0);
	assert_int_equal(run(o, FILE_CACHE_DIRECTSYNC, part_body, NULL), 0);
}

static void resize_body(struct ctx *c)
{
	assert_int_equal(truncate(c->path, 200001), 0);
	assert_int_equal(c->raw->ops->resize_wait(c->raw, &c->err), 0);
	assert_int_equal(c->raw->size, 200192);
	assert_int_equal(truncate(c->path, 50), 0);
	assert_int_equal(c->raw->ops->resize_wait(c->raw, &c->err),
			 c->opts.offset ? -EINVAL : 0);
	assert_int_equal(c->raw->size, c->opts.offset ? 200192 : 512);
}

static void the_size_follows_the_file(void **state)
{
	struct raw_opts o = { .writable = true };

	assert_int_equal(run(o, FILE_CACHE_WRITEBACK, resize_body, NULL), 0);
	o.offset = 100;
	assert_int_equal(run(o, FILE_CACHE_WRITEBACK, resize_body, NULL), 0);
}

static void unused_body(struct ctx *c)
{
	fail();
}

static void parts_that_are_not_there_are_refused(void **state)
{
	struct raw_opts bad[] = {
		{ .offset = FILE_SIZE + 1 },
		{ .offset = 1, .has_size = true, .size = 512 * 196 },
		{ .has_size = true, .size = 511 },
		{ .has_size = true, .size = 1ULL << 62 },
		{ .offset = UINT64_MAX - 5, .has_size = true, .size = 512 },
	};
	struct err err;

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(run(bad[i], FILE_CACHE_WRITEBACK, unused_body, &err), -EINVAL);
		assert_true(err.text[0]);
	}
}

static unsigned warnings;

static void count(enum log_level level, const char *line)
{
	warnings += level == LOG_LEVEL_WARN && strstr(line, "-f raw") != NULL;
}

/* A request of @len bytes @data at @off, in two iovecs, the first of one byte. */
static int write_at(struct ctx *c, uint64_t off, const void *data, uint64_t len)
{
	char *copy = malloc(len);
	struct iovec iov[2] = { { copy, 1 }, { copy + 1, len - 1 } };
	struct req req = { .kind = REQ_WRITE, .off = off, .len = len, .iov = iov, .iovcnt = 2 };
	int rc;

	memcpy(copy, data, len);
	rc = chan_submit_wait(c->ch, &req);
	free(copy);
	return rc;
}

static void probed_body(struct ctx *c)
{
	static char big[32768];
	char sector[512] = "harmless", old[16];

	warnings = 0;
	memset(big, 0, sizeof(big));
	memcpy(big, "QFI\xfb\0\0\0\3", 8);
	assert_int_equal(write_at(c, 0, big, sizeof(big)), -EPERM);
	assert_int_equal(write_at(c, 0, big, 512), -EPERM);
	assert_int_equal(write_at(c, 0, "LUKS\xba\xbe\0\1", 8), -EPERM);
	assert_int_equal(chan_read_wait(c->ch, 0, old, sizeof(old)), 0);
	for (unsigned i = 0; i < sizeof(old); i++)
		assert_int_equal(old[i], i);    /* untouched */
	assert_int_equal(write_at(c, 0, sector, 512), 0);
	assert_int_equal(write_at(c, 512, big, 512), 0);
	assert_int_equal(write_at(c, 4096, big, sizeof(big)), 0);

	/* In small steps: the last is the one too many. */
	assert_int_equal(write_at(c, 0, "QE", 2), 0);
	assert_int_equal(write_at(c, 2, "Dx", 2), 0);
	assert_int_equal(submit(c, REQ_ZERO, 3, 1), -EPERM);
	assert_int_equal(submit(c, REQ_DISCARD, 3, 10), -EPERM);
	assert_int_equal(submit(c, REQ_COPY, 3, 10), -ENOTSUP);
	assert_int_equal(submit(c, REQ_ZERO, 0, 10000), 0);

	/* What is harmless is written whole, and what follows with it. */
	memset(big, 'w', sizeof(big));
	assert_int_equal(write_at(c, 3, big, sizeof(big)), 0);
	memset(big, 0, sizeof(big));
	assert_int_equal(chan_read_wait(c->ch, 3, big, sizeof(big)), 0);
	for (unsigned i = 0; i < sizeof(big); i++)
		assert_int_equal(big[i], 'w');
	assert_int_equal(warnings, 1);
}

static void r2_a_probed_disk_never_looks_like_a_format(void **state)
{
	struct raw_opts o = { .probed = true, .writable = true };

	log_set_sink(count);
	assert_int_equal(run(o, FILE_CACHE_WRITEBACK, probed_body, NULL), 0);
	assert_int_equal(run(o, FILE_CACHE_NONE, probed_body, NULL), 0);
	log_set_sink(NULL);
}

static void given_body(struct ctx *c)
{
	assert_int_equal(write_at(c, 0, "QFI\xfb\0\0\0\3", 8), 0);
}

static void a_disk_given_as_raw_may_hold_anything(void **state)
{
	assert_int_equal(run((struct raw_opts){ .writable = true }, FILE_CACHE_WRITEBACK,
			     given_body, NULL), 0);
}

static int setup(void **state)
{
	return workers_new(2, &workers, NULL);
}

static int teardown(void **state)
{
	workers_free(workers);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(r1_the_whole_file_and_a_tail_of_zeros),
		cmocka_unit_test(r1_a_part_of_the_file),
		cmocka_unit_test(the_size_follows_the_file),
		cmocka_unit_test(parts_that_are_not_there_are_refused),
		cmocka_unit_test(r2_a_probed_disk_never_looks_like_a_format),
		cmocka_unit_test(a_disk_given_as_raw_may_hold_anything),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
