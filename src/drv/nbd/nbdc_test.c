/* SPDX-License-Identifier: MIT */
/* Against a server of our own that misbehaves where it is told to (test_server.h). Without libnbd
 * all of it is skipped but what is said then. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/log.h"
#include "base/prng.h"
#include "drv/nbd/nbdc_impl.h"
#include "drv/nbd/test_server.h"
#include "loop/loop_thread.h"
#include "loop/work.h"

enum { DISK = 4 << 20, BATCH = 48, PIECES = 6, GUARD = 4096, ROOM = 16384 };

struct item {
	struct req req;
	struct iovec iov[PIECES];
	struct ctx *c;
	uint8_t *buf;                   /* GUARD, @room bytes, GUARD */
	uint64_t room, off, len;
	int res;
	bool is_done;
};

struct ctx {
	struct workers *workers;
	struct loop *loop, *other;
	struct loop_thread thread;
	struct test_server server;
	struct nbdc_server to;
	struct nbdc_opts opts;
	struct node *node;
	struct chan *ch;
	struct item items[BATCH];
	unsigned left;
	struct fiber *fiber;
	struct prng prng;
	uint8_t *model;
	void (*body)(struct ctx *c);
	struct err err;
};

static void no_log(enum log_level level, const char *line)
{
	(void)level, (void)line;
}

static bool has_libnbd(void)
{
	return nbdc_lib_get(NULL);
}

/* ---- requests ---- */

static void item_done(struct req *req, int res)
{
	struct item *it = container_of(req, struct item, req);

	assert_false(it->is_done);              /* N10 */
	it->is_done = true;
	it->res = res;
	if (!--it->c->left)
		fiber_wake(it->c->fiber);
}

/* Memory for @len bytes of data. Not the most that there can be: ThreadSanitizer writes four times
 * of what is allocated. */
static void item_room(struct item *it, uint64_t len)
{
	if (len <= it->room)
		return;
	it->buf = realloc(it->buf, len + 2 * GUARD);
	assert_non_null(it->buf);
	memset(it->buf, 0, len + 2 * GUARD);
	it->room = len;
}

/* The data of @it lies in @pieces of memory, with something before and after it. */
static void item_start(struct ctx *c, struct item *it, enum req_kind kind, unsigned flags,
		       uint64_t off, uint64_t len, unsigned pieces)
{
	item_room(it, len);
	*it = (struct item){ .c = c, .buf = it->buf, .room = it->room, .off = off, .len = len };
	it->req = (struct req){ .done = item_done, .kind = (uint8_t)kind, .flags = (uint8_t)flags,
				.off = off, .len = len, .iov = it->iov, .iovcnt = pieces,
				.iov_skip = 3 };
	for (unsigned i = 0; i < pieces; i++) {
		uint64_t at = len * i / pieces, end = len * (i + 1) / pieces;

		it->iov[i] = (struct iovec){ it->buf + GUARD + at, end - at };
	}
	it->iov[0].iov_base = (char *)it->iov[0].iov_base - 3;
	it->iov[0].iov_len += 3;
	c->left++;
	chan_submit(c->ch, &it->req);
	assert_false(it->is_done);
}

static void await(struct ctx *c)
{
	c->fiber = fiber_self();
	while (c->left)
		fiber_park();
}

static int one(struct ctx *c, enum req_kind kind, unsigned flags, uint64_t off, uint64_t len)
{
	item_start(c, &c->items[0], kind, flags, off, len, 1);
	await(c);
	return c->items[0].res;
}

/* ---- the ground ---- */

static int in_fiber(void *arg)
{
	struct ctx *c = arg;
	int rc = nbdc_open_wait(&c->opts, c->loop, &c->node, &c->err);

	if (rc)
		return rc;
	if (c->body) {
		assert_int_equal(chan_get_wait(c->node, &c->ch, NULL), 0);
		c->body(c);
		chan_put_wait(c->ch);
	}
	node_put_wait(c->node);
	return 0;
}

static void begin(struct ctx *c, uint16_t flags)
{
	struct loop_opts lo = { 0 };

	if (!has_libnbd())
		skip();
	*c = (struct ctx){ .prng = { 7 } };
	assert_int_equal(workers_new(2, &c->workers, NULL), 0);
	lo.workers = c->workers;
	assert_int_equal(loop_new(&lo, &c->loop, NULL), 0);
	c->server = (struct test_server){ .size = DISK, .flags = flags, .wrong_after = -1 };
	c->server.disk = calloc(1, DISK);
	c->model = calloc(1, DISK);
	for (unsigned i = 0; i < BATCH; i++)
		item_room(&c->items[i], ROOM);
	c->to = (struct nbdc_server){ .path = c->server.path };
	c->opts = (struct nbdc_opts){ .name = "nbd", .server = &c->to, .writable = true,
				      .discard = true };
	log_set_sink(no_log);
}

static int run(struct ctx *c, void (*body)(struct ctx *c))
{
	c->body = body;
	return loop_call(c->loop, in_fiber, c);
}

static void end(struct ctx *c)
{
	log_set_sink(NULL);
	loop_free(c->loop);
	workers_free(c->workers);
	for (unsigned i = 0; i < BATCH; i++)
		free(c->items[i].buf);
	free(c->server.disk);
	free(c->model);
}

static void fill(struct ctx *c, uint8_t *p, uint64_t n)
{
	for (uint64_t i = 0; i < n; i += sizeof(uint64_t)) {
		uint64_t word = prng_next(&c->prng) | 0x0101010101010101;       /* no zeros */

		memcpy(p + i, &word, MIN(n - i, sizeof(word)));
	}
}

/* ---- what a disk does ---- */

static uint64_t boundary(struct ctx *c)
{
	uint64_t at = prng_below(&c->prng, DISK + 1);

	return prng_below(&c->prng, 2) ? at : at & ~4095ULL;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Requests of all kinds, at once, to parts of the disk that have blocks in common but no byte. */
static void batch(struct ctx *c)
{
	static const enum req_kind kinds[] = { REQ_READ, REQ_WRITE, REQ_WRITE, REQ_ZERO };
	uint64_t cuts[BATCH + 1] = { 0 };

	for (unsigned i = 1; i < BATCH; i++)
		cuts[i] = boundary(c);
	cuts[BATCH] = DISK;
	qsort(cuts, BATCH + 1, sizeof(cuts[0]), compare_u64);
	c->left = 0;
	for (unsigned i = 0; i < BATCH; i++) {
		uint64_t off = cuts[i], len = cuts[i + 1] - off;
		enum req_kind kind = kinds[prng_below(&c->prng, ARRAY_SIZE(kinds))];
		struct item *it = &c->items[i];
		unsigned pieces = 1 + (unsigned)prng_below(&c->prng, PIECES);

		item_room(it, len);
		memset(it->buf, 0xee, GUARD);
		memset(it->buf + GUARD + len, 0xee, GUARD);
		if (kind == REQ_WRITE) {
			fill(c, it->buf + GUARD, len);
			memcpy(c->model + off, it->buf + GUARD, len);
		} else if (kind == REQ_ZERO) {
			memset(c->model + off, 0, len);
		}
		item_start(c, it, kind, 0, off, len, pieces);
	}
	await(c);
}

static void check_disk(struct ctx *c, bool is_same)
{
	int res;

	pthread_mutex_lock(&c->server.lock);
	res = memcmp(c->model, c->server.disk, DISK);
	pthread_mutex_unlock(&c->server.lock);
	assert_int_equal(!res, is_same);
}

static void check_batch(struct ctx *c)
{
	for (unsigned i = 0; i < BATCH; i++) {
		const struct item *it = &c->items[i];

		assert_int_equal(it->res, 0);
		if (it->req.kind == REQ_READ)
			assert_memory_equal(it->buf + GUARD, c->model + it->off, it->len);
		for (unsigned k = 0; k < GUARD; k++)
			assert_true(it->buf[k] == 0xee && it->buf[GUARD + it->len + k] == 0xee);
	}
	check_disk(c, true);
}

static void batches(struct ctx *c)
{
	for (unsigned i = 0; i < 6; i++) {
		batch(c);
		check_batch(c);
	}
}

/* The servers that there are: what they can, their blocks, how they reply. */
static void n10_n13_requests_do_what_they_say(void **state)
{
	static const struct {
		uint16_t flags;
		uint32_t block, max;
		bool is_simple;
	} servers[] = {
		{ SERVER_ALL, 0, 0, false },            { SERVER_ALL, 512, 64 << 10, false },
		{ SERVER_ALL, 4096, 1 << 20, false },   { SERVER_FLUSH, 1, 1 << 20, true },
		{ 0, 65536, 65536, true },
	};
	struct ctx c;

	for (unsigned i = 0; i < ARRAY_SIZE(servers); i++) {
		begin(&c, servers[i].flags);
		c.server.block = servers[i].block;
		c.server.data_max = servers[i].max;
		c.server.is_simple = servers[i].is_simple;
		test_server_start(&c.server);
		assert_int_equal(run(&c, batches), 0);
		test_server_stop(&c.server);
		assert_int_equal(c.server.misaligned, 0);
		end(&c);
	}
}

static void shared_blocks(struct ctx *c)
{
	enum { N = 8, PART = 100 };
	uint8_t want[N * PART];

	fill(c, want, sizeof(want));
	for (unsigned i = 0; i < N; i++) {
		memcpy(c->items[i].buf + GUARD, want + i * PART, PART);
		item_start(c, &c->items[i], REQ_WRITE, 0, 8192 + i * PART, PART, 1);
	}
	await(c);
	memcpy(c->model + 8192, want, sizeof(want));
}

static void without_lock(struct ctx *c)
{
	container_of(c->node, struct nbdc_node, node)->leave_lock_out = true;
	shared_blocks(c);
	check_disk(c, false);
}

static void with_lock(struct ctx *c)
{
	shared_blocks(c);
	check_disk(c, true);
}

static void n12_parts_of_a_block_do_not_undo_each_other(void **state)
{
	struct ctx c;

	for (unsigned i = 0; i < 2; i++) {
		begin(&c, SERVER_ALL);
		c.server.block = 4096;
		test_server_start(&c.server);
		assert_int_equal(run(&c, i ? with_lock : without_lock), 0);
		test_server_stop(&c.server);
		end(&c);
	}
}

static void durable(struct ctx *c)
{
	const struct test_server *s = &c->server;
	bool has_fua = s->flags & SERVER_FUA;

	assert_int_equal(one(c, REQ_WRITE, REQ_FUA, 0, 4096), 0);
	assert_int_equal(one(c, REQ_ZERO, REQ_FUA, 4096, 4096), 0);
	assert_int_equal(s->fuas, has_fua ? 2 : 0);
	assert_int_equal(s->commands[3], has_fua ? 0 : 2);
	assert_int_equal(one(c, REQ_FLUSH, 0, 0, 0), 0);
	assert_int_equal(s->commands[3], has_fua ? 1 : 3);
	assert_int_equal(one(c, REQ_DISCARD, 0, 8192, 4096), 0);
	assert_int_equal(s->commands[4], 1);
	assert_int_equal(one(c, REQ_COPY, 0, 8192, 4096), -ENOTSUP);
}

static void n11_fua_is_a_flush_where_the_server_has_none(void **state)
{
	static const uint16_t flags[] = { SERVER_ALL, SERVER_ALL & ~SERVER_FUA };
	struct ctx c;

	for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
		begin(&c, flags[i]);
		test_server_start(&c.server);
		assert_int_equal(run(&c, durable), 0);
		test_server_stop(&c.server);
		end(&c);
	}
}

static void zero(struct ctx *c)
{
	const struct test_server *s = &c->server;

	memset(c->server.disk, 1, 3 * 65536);
	memset(c->model, 1, 3 * 65536);
	atomic_store(&c->server.wrong_after, 0);
	assert_int_equal(one(c, REQ_ZERO, REQ_FAST_ONLY, 65536, 65536), -ENOTSUP);
	check_disk(c, true);
	for (unsigned i = 0; i < 2; i++) {
		uint64_t off = 65536 + i * 100, len = 65536 - i * 200;

		atomic_store(&c->server.wrong_after, 0);
		assert_int_equal(one(c, REQ_ZERO, 0, off, len), 0);
		memset(c->model + off, 0, len);
		check_disk(c, true);
	}
	assert_true(s->commands[6] >= 2 && s->commands[1] >= 2);
}

static void zeros_are_written_where_the_server_cannot_zero(void **state)
{
	struct ctx c;

	for (unsigned i = 0; i < 2; i++) {
		begin(&c, SERVER_ALL);
		c.server.block = i ? 4096 : 0;
		c.server.wrong = WRONG_ERROR;
		c.server.error = 95;            /* NBD_ENOTSUP */
		test_server_start(&c.server);
		assert_int_equal(run(&c, zero), 0);
		test_server_stop(&c.server);
		end(&c);
	}
}

static void ends(struct ctx *c)
{
	memset(c->items[0].buf, 0xee, 3 * GUARD);
	assert_int_equal(one(c, REQ_READ, 0, DISK - 512, 4096), 0);
	for (unsigned i = 512; i < 4096; i++)
		assert_int_equal(c->items[0].buf[GUARD + i], 0);
	assert_int_equal(one(c, REQ_READ, 0, DISK + 512, 4096), 0);
	assert_int_equal(one(c, REQ_WRITE, 0, DISK - 512, 4096), -ENOSPC);
	assert_int_equal(one(c, REQ_ZERO, 0, DISK, 512), -ENOSPC);
	assert_int_equal(one(c, REQ_DISCARD, 0, DISK - 512, 4096), 0);
	assert_int_equal(one(c, REQ_MAP, 0, DISK, 512), 0);
	assert_int_equal(c->items[0].req.map.flags, MAP_HOST | MAP_PRESENT | MAP_ZERO);
}

static void behind_the_end_there_are_zeros(void **state)
{
	struct ctx c;

	begin(&c, SERVER_ALL);
	test_server_start(&c.server);
	assert_int_equal(run(&c, ends), 0);
	test_server_stop(&c.server);
	end(&c);
}

static void map(struct ctx *c)
{
	const struct map_run *m = &c->items[0].req.map;

	memset(c->server.disk + 8192, 1, 4096);
	assert_int_equal(one(c, REQ_MAP, 0, 100, DISK - 100), 0);
	if (c->server.has_no_map) {
		assert_int_equal(m->len, DISK - 100);
		assert_int_equal(m->flags, MAP_HOST | MAP_PRESENT | MAP_DATA);
		return;
	}
	assert_int_equal(m->len, 8092);
	assert_int_equal(m->host_off, 100);
	assert_int_equal(m->flags, MAP_HOST | MAP_PRESENT | MAP_ZERO);
	assert_int_equal(one(c, REQ_MAP, 0, 8192, DISK - 8192), 0);
	assert_int_equal(m->len, 4096);
	assert_int_equal(m->flags, MAP_HOST | MAP_PRESENT | MAP_DATA);
}

static void holes_are_what_the_server_says(void **state)
{
	struct ctx c;

	for (unsigned i = 0; i < 3; i++) {
		begin(&c, SERVER_ALL);
		c.server.has_no_map = i == 0;
		c.server.block = i == 2 ? 512 : 0;
		test_server_start(&c.server);
		assert_int_equal(run(&c, map), 0);
		test_server_stop(&c.server);
		end(&c);
	}
}

/* ---- a server that fails ---- */

static void reads_of_a_liar(struct ctx *c)
{
	uint8_t *guard = c->items[0].buf;

	atomic_store(&c->server.wrong_after, 1);
	memset(guard, 0xee, 3 * GUARD);
	assert_int_equal(one(c, REQ_READ, 0, 0, 4096), 0);
	one(c, c->server.wrong >= WRONG_EXTENT_NONE && c->server.wrong <= WRONG_EXTENT_LONG ?
	       REQ_MAP : REQ_READ, 0, 4096, 4096);
	for (unsigned i = 0; i < GUARD; i++)
		assert_true(guard[i] == 0xee && guard[GUARD + 4096 + i] == 0xee);
	for (unsigned i = 0; i < 4096 && !c->items[0].res && c->items[0].req.kind == REQ_READ; i++)
		assert_int_equal(guard[GUARD + i], 0);
	switch (c->server.wrong) {
	case WRONG_SHORT:                       /* libnbd takes it for zeros */
	case WRONG_TWICE:                       /* the first of them counts */
	case WRONG_SIMPLE:                      /* libnbd takes it */
	case WRONG_EXTENT_LONG:                 /* cut */
		if (!c->items[0].res)
			break;
		__attribute__((fallthrough));
	case WRONG_ERROR:
		if (c->server.wrong == WRONG_ERROR) {
			assert_int_equal(c->items[0].res, -ENOSPC);
			assert_int_equal(one(c, REQ_READ, 0, 0, 4096), 0);
			break;
		}
		__attribute__((fallthrough));
	default:
		if (!c->items[0].res)
			fail_msg("%d is taken", c->server.wrong);
	}
	if (c->server.wrong == WRONG_EXTENT_LONG)
		assert_true(c->items[0].res || c->items[0].req.map.len == 4096);
	/* Whatever became of the connection, there is an answer. */
	one(c, REQ_READ, 0, 0, 4096);
	one(c, REQ_FLUSH, 0, 0, 0);
}

static void n13_no_reply_harms(void **state)
{
	struct ctx c;

	for (int wrong = WRONG_CLOSE; wrong < WRONGS; wrong++) {
		for (unsigned i = 0; i < (wrong == WRONG_NOISE ? 20 : 1); i++) {
			begin(&c, SERVER_ALL);
			c.server.wrong = (enum server_wrong)wrong;
			c.server.error = ENOSPC;
			c.server.noise = i;
			test_server_start(&c.server);
			run(&c, reads_of_a_liar);
			test_server_stop(&c.server);
			end(&c);
		}
	}
}

static void a_greeting_may_be_noise(void **state)
{
	struct ctx c;

	begin(&c, 0);
	c.server.greets_wrong = true;
	test_server_start(&c.server);
	assert_true(run(&c, NULL) < 0);
	assert_true(c.err.text[0]);
	test_server_stop(&c.server);
	end(&c);
}

static void opening_says_what_is_wrong(void **state)
{
	char nobody[] = "nobody";
	struct ctx c;

	begin(&c, SERVER_READ_ONLY);
	c.to.path = nobody;
	assert_int_equal(run(&c, NULL), -ENOENT);
	assert_string_equal(c.err.text, "Failed to connect to 'nobody': No such file or directory");
	c.to.path = c.server.path;
	test_server_start(&c.server);
	assert_int_equal(run(&c, NULL), -EACCES);
	c.opts.writable = false;
	assert_int_equal(run(&c, NULL), 0);
	test_server_stop(&c.server);
	c.server.block = 4096;
	c.server.size = DISK - 512;
	test_server_start(&c.server);
	assert_int_equal(run(&c, NULL), -EINVAL);
	test_server_stop(&c.server);
	end(&c);
}

/* ---- a server that goes away ---- */

static void lose_it(struct ctx *c)
{
	for (unsigned i = 0; i < BATCH; i++)
		item_start(c, &c->items[i], i % 2 ? REQ_READ : REQ_WRITE, 0, i * 65536ULL, 65536,
			   1);
	await(c);

	unsigned failed = 0;

	for (unsigned i = 0; i < BATCH; i++) {
		assert_true(!c->items[i].res || c->items[i].res == -EIO);
		failed += c->items[i].res != 0;
	}
	assert_true(failed >= BATCH - 10);
	assert_int_equal(one(c, REQ_READ, 0, 0, 4096), -EIO);
	assert_int_equal(one(c, REQ_FLUSH, 0, 0, 0), -EIO);
}

static void n11_what_was_lost_has_failed(void **state)
{
	struct ctx c;

	begin(&c, SERVER_ALL);
	c.server.wrong = WRONG_CLOSE;
	c.server.wrong_after = 10;
	test_server_start(&c.server);
	assert_int_equal(run(&c, lose_it), 0);
	test_server_stop(&c.server);
	end(&c);
}

static void lose_and_find_it(struct ctx *c)
{
	for (unsigned i = 0; i < 4; i++) {
		atomic_store(&c->server.wrong_after, 5 + 9 * (int)i);
		batch(c);
		check_batch(c);
	}
	assert_true(c->server.connections >= 4);
}

static void n11_with_a_delay_what_was_lost_is_sent_again(void **state)
{
	static const uint32_t blocks[] = { 0, 4096 };
	struct ctx c;

	for (unsigned i = 0; i < ARRAY_SIZE(blocks); i++) {
		begin(&c, SERVER_ALL);
		c.to.reconnect_delay_s = 30;
		c.server.block = blocks[i];
		c.server.wrong = WRONG_CLOSE;
		test_server_start(&c.server);
		assert_int_equal(run(&c, lose_and_find_it), 0);
		test_server_stop(&c.server);
		end(&c);
	}
}

static atomic_uint lines;

static void count_line(enum log_level level, const char *line)
{
	atomic_fetch_add(&lines, 1);
}

static void lose_it_often(struct ctx *c)
{
	uint64_t begin = loop_now(loop_current()), later;

	log_set_sink(count_line);
	for (unsigned i = 0; i < LOG_LIMIT_BURST; i++) {        /* two lines each */
		atomic_store(&c->server.wrong_after, 1);
		for (unsigned k = 0; k < 2; k++)
			assert_int_equal(one(c, REQ_READ, 0, 0, 4096), 0);
	}
	assert_true(c->server.connections > LOG_LIMIT_BURST / 2);
	later = (loop_now(loop_current()) - begin) / (LOG_LIMIT_EVERY_S * NS_PER_SEC) + 1;
	assert_in_range(atomic_load(&lines), LOG_LIMIT_BURST / 2, LOG_LIMIT_BURST + 2 * later);
}

static void n11_the_log_of_losses_is_limited(void **state)
{
	struct ctx c;

	begin(&c, SERVER_ALL);
	c.to.reconnect_delay_s = 30;
	c.server.wrong = WRONG_CLOSE;
	test_server_start(&c.server);
	assert_int_equal(run(&c, lose_it_often), 0);
	test_server_stop(&c.server);
	end(&c);
}

static void nobody_comes(struct ctx *c)
{
	test_server_stop(&c->server);
	assert_int_equal(one(c, REQ_WRITE, 0, 0, 4096), -EIO);
	assert_int_equal(one(c, REQ_READ, 0, 0, 4096), -EIO);
	/* Then it is there again, and so is the disk. */
	test_server_start(&c->server);
	for (unsigned i = 0; i < 100 && one(c, REQ_WRITE, 0, 0, 4096); i++)
		fiber_sleep_wait(100 * NS_PER_MS);
	assert_int_equal(c->items[0].res, 0);
	test_server_stop(&c->server);
}

static void n11_after_the_delay_requests_fail_until_it_is_back(void **state)
{
	struct ctx c;

	begin(&c, SERVER_ALL);
	c.to.reconnect_delay_s = 1;
	test_server_start(&c.server);
	assert_int_equal(run(&c, nobody_comes), 0);
	end(&c);
}

static void another_comes(struct ctx *c)
{
	test_server_stop(&c->server);
	c->server.size = DISK / 2;
	test_server_start(&c->server);
	assert_int_equal(one(c, REQ_WRITE, 0, 0, 4096), -EIO);
	assert_int_equal(one(c, REQ_READ, 0, 0, 4096), -EIO);
	assert_int_equal(c->server.commands[1], 0);
	test_server_stop(&c->server);
}

static void n14_another_disk_is_not_taken(void **state)
{
	struct ctx c;

	begin(&c, SERVER_ALL);
	c.to.reconnect_delay_s = 30;
	test_server_start(&c.server);
	assert_int_equal(run(&c, another_comes), 0);
	end(&c);
}

static void *start_late(void *arg)
{
	struct ctx *c = arg;

	usleep(300000);
	test_server_start(&c->server);
	return NULL;
}

static void an_open_may_wait_for_its_server(void **state)
{
	struct ctx c;
	pthread_t late;

	begin(&c, SERVER_ALL);
	snprintf(c.server.path, sizeof(c.server.path), "nbdc_test.%d.late", (int)getpid());
	c.to.open_timeout_s = 1;
	assert_int_equal(run(&c, NULL), -ENOENT);
	c.to.open_timeout_s = 30;
	assert_int_equal(pthread_create(&late, NULL, start_late, &c), 0);
	assert_int_equal(run(&c, batches), 0);
	pthread_join(late, NULL);
	test_server_stop(&c.server);
	end(&c);
}

/* ---- two loops ---- */

static int other_fiber(void *arg)
{
	struct ctx *c = arg;

	assert_int_equal(chan_get_wait(c->node, &c->ch, NULL), 0);
	batches(c);
	assert_int_equal(one(c, REQ_FLUSH, 0, 0, 0), 0);
	chan_put_wait(c->ch);
	return 0;
}

static void from_the_other_loop(struct ctx *c)
{
	bool is_multi = (c->server.flags & SERVER_MULTI_CONN) && c->server.block <= 1 &&
			!c->server.accept_max;

	chan_put_wait(c->ch);
	assert_int_equal(loop_call_wait(c->other, other_fiber, c), 0);
	assert_int_equal(c->server.connections, is_multi ? 2 : 1);
	assert_int_equal(chan_get_wait(c->node, &c->ch, NULL), 0);
}

static void n10_a_loop_has_a_connection_or_uses_the_homes(void **state)
{
	static const struct {
		uint16_t flags;
		uint32_t block;
		unsigned accept_max;
	} servers[] = { { SERVER_ALL, 0, 0 }, { SERVER_ALL | SERVER_MULTI_CONN, 0, 0 },
			{ SERVER_ALL | SERVER_MULTI_CONN, 512, 0 },
			{ SERVER_ALL | SERVER_MULTI_CONN, 0, 1 } };
	struct ctx c;

	for (unsigned i = 0; i < ARRAY_SIZE(servers); i++) {
		struct loop_opts lo = { 0 };

		begin(&c, servers[i].flags);
		c.server.block = servers[i].block;
		c.server.accept_max = servers[i].accept_max;
		test_server_start(&c.server);
		lo.workers = c.workers;
		assert_int_equal(loop_new(&lo, &c.other, NULL), 0);
		assert_int_equal(loop_thread_start(&c.thread, c.other, "other", NULL), 0);
		assert_int_equal(run(&c, from_the_other_loop), 0);
		loop_thread_stop(&c.thread);
		test_server_stop(&c.server);
		end(&c);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(n10_n13_requests_do_what_they_say),
		cmocka_unit_test(n12_parts_of_a_block_do_not_undo_each_other),
		cmocka_unit_test(n11_fua_is_a_flush_where_the_server_has_none),
		cmocka_unit_test(zeros_are_written_where_the_server_cannot_zero),
		cmocka_unit_test(behind_the_end_there_are_zeros),
		cmocka_unit_test(holes_are_what_the_server_says),
		cmocka_unit_test(n13_no_reply_harms),
		cmocka_unit_test(a_greeting_may_be_noise),
		cmocka_unit_test(opening_says_what_is_wrong),
		cmocka_unit_test(n11_what_was_lost_has_failed),
		cmocka_unit_test(n11_with_a_delay_what_was_lost_is_sent_again),
		cmocka_unit_test(n11_the_log_of_losses_is_limited),
		cmocka_unit_test(n11_after_the_delay_requests_fail_until_it_is_back),
		cmocka_unit_test(n14_another_disk_is_not_taken),
		cmocka_unit_test(an_open_may_wait_for_its_server),
		cmocka_unit_test(n10_a_loop_has_a_connection_or_uses_the_homes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
