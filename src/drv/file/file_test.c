/* SPDX-License-Identifier: MIT */
#include <limits.h>
#include <sys/stat.h>

#include "drv/file/file_test_util.h"

static const enum loop_backend backends[] = { LOOP_URING, LOOP_POSIX };
static const enum file_cache caches[] = { FILE_CACHE_WRITEBACK, FILE_CACHE_NONE,
					  FILE_CACHE_WRITETHROUGH, FILE_CACHE_DIRECTSYNC,
					  FILE_CACHE_UNSAFE };

/* ---- running a body in a fiber, over a file ---- */

struct ctx {
	struct loop *loop;
	struct node *node;
	struct chan *ch;
	const struct file_opts *opts;
	void (*body)(struct ctx *c);
	struct prng prng;
};

static int run_fiber(void *arg)
{
	struct ctx *c = arg;
	struct err err = { 0 };

	if (file_open_wait(c->opts, c->loop, &c->node, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(chan_get_wait(c->node, &c->ch, &err), 0);
	c->body(c);
	chan_put_wait(c->ch);
	node_put_wait(c->node);
	return 0;
}

static void run_opts(struct loop *l, const struct file_opts *opts, void (*body)(struct ctx *c))
{
	struct ctx c = { .loop = l, .opts = opts, .body = body, .prng.state = 1 };

	assert_int_equal(loop_call(l, run_fiber, &c), 0);
}

/* Runs @body over a file of @size bytes, for every backend and cache mode. */
static void run_all(uint64_t size, void (*body)(struct ctx *c))
{
	for (unsigned b = 0; b < ARRAY_SIZE(backends); b++) {
		if (!has_backend(backends[b]))
			continue;
		for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
			struct loop *l = new_loop(backends[b], 0);
			char path[32];
			struct file_opts o = { .path = path, .fd = -1, .cache = caches[i],
					       .writable = true, .discard = true };

			close(temp_file(size, path));
			run_opts(l, &o, body);
			unlink(path);
			loop_free(l);
		}
	}
}

/* ---- against a model ---- */

enum { MODEL_MAX = 256 << 10, IOVS_MAX = 1500 };

struct model {
	uint8_t bytes[MODEL_MAX];
	uint8_t data[2 * MODEL_MAX];    /* of a request; written parts lie apart */
	uint8_t base[2 * MODEL_MAX + 4096];
	struct iovec iov[IOVS_MAX];
	struct iovec whole;
};

/* Cuts @m->base into iovecs for @len bytes, with some before and after, and gives them to @req. */
static void random_iov(struct prng *p, struct model *m, struct req *req)
{
	bool is_aligned_memory = prng_below(p, 2);
	uint8_t *at = (uint8_t *)align_up((uintptr_t)m->base, 4096) + (is_aligned_memory ? 0 : 1);
	uint64_t unit = prng_below(p, 4) ? 512 : 100;
	uint64_t step = prng_below(p, 4) ? req->len : (req->len / 1200 / unit + 1) * unit;
	uint64_t skip = prng_below(p, 3) ? 0 : is_aligned_memory ? 512 : prng_below(p, 700);
	uint64_t total = skip + req->len + (prng_below(p, 2) ? 0 : 512);
	uint32_t n = 0;

	for (uint64_t done = 0; done < total;) {
		uint64_t part = MIN(total - done, step);

		m->iov[n].iov_base = at + done;
		m->iov[n++].iov_len = part;
		done += part;
		assert(n < IOVS_MAX);
	}
	req->iov = m->iov;
	req->iovcnt = n;
	req->iov_skip = skip;
	m->whole = (struct iovec){ at, total };
}

static void random_range(struct prng *p, struct req *req)
{
	uint64_t unit = prng_below(p, 2) ? 1 : prng_below(p, 2) ? 512 : 4096;
	uint64_t longest = prng_below(p, 8) ? 16384 : MODEL_MAX;

	req->off = align_down(prng_below(p, MODEL_MAX), unit);
	req->len = MIN(align_up(1 + prng_below(p, longest), unit), MODEL_MAX - req->off);
}

static void check_against(struct ctx *c, struct model *m)
{
	uint64_t size = file_size(as_file(c->node));

	assert_true(size <= MODEL_MAX);
	assert_int_equal(chan_read_wait(c->ch, 0, m->data, MODEL_MAX), 0);
	assert_memory_equal(m->data, m->bytes, MODEL_MAX);
}

static void model_op(struct ctx *c, struct model *m)
{
	struct prng *p = &c->prng;
	struct req req = { .kind = (uint8_t)prng_below(p, REQ_DISCARD + 1) };
	uint64_t off, len;
	uint8_t *src = m->data;

	random_range(p, &req);
	random_iov(p, m, &req);
	off = req.off;
	len = req.len;
	if (!prng_below(p, 20))
		req.flags |= REQ_FUA;
	if (req.kind == REQ_ZERO && prng_below(p, 2))
		req.flags |= REQ_MAY_UNMAP;
	if (req.kind == REQ_WRITE) {
		fill(p, src, len);
		req_copy_to(&req, 0, src, len);
	} else {
		memset(m->whole.iov_base, 0xaa, m->whole.iov_len);
	}

	struct req copy = req;

	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	switch (copy.kind) {
	case REQ_READ:
		req_copy_from(&copy, 0, src, len);
		assert_memory_equal(src, m->bytes + off, len);
		/* What is outside the request was left alone. */
		for (uint64_t i = 0; i < copy.iov_skip; i++)
			assert_int_equal(((uint8_t *)m->whole.iov_base)[i], 0xaa);
		for (uint64_t i = copy.iov_skip + len; i < m->whole.iov_len; i++)
			assert_int_equal(((uint8_t *)m->whole.iov_base)[i], 0xaa);
		break;
	case REQ_WRITE:
		memcpy(m->bytes + off, src, len);
		break;
	case REQ_ZERO:
		memset(m->bytes + off, 0, len);
		break;
	case REQ_DISCARD:
		assert_int_equal(chan_read_wait(c->ch, off, src, len), 0);
		for (uint64_t i = 0; i < len; i++)
			assert_true(src[i] == m->bytes[off + i] || src[i] == 0);
		memcpy(m->bytes + off, src, len);
		break;
	}
}

static void model_body(struct ctx *c)
{
	struct model *m = calloc(1, sizeof(*m));
	unsigned ops = as_file(c->node)->is_sim ? 300 : as_file(c->node)->is_dsync ? 40 : 150;

	for (unsigned i = 0; i < ops; i++)
		model_op(c, m);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	check_against(c, m);
	free(m);
}

static void b2_every_cache_mode_does_what_a_model_does(void **state)
{
	run_all(0, model_body);
	run_all(100001, model_body);
}

/* ---- sizes ---- */

static void size_body(struct ctx *c)
{
	char buf[8192];
	struct stat st;
	struct err err = { 0 };
	struct file_node *fn = as_file(c->node);

	/* Inside the last, partial block: the length stays. */
	memset(buf, 'x', sizeof(buf));
	assert_int_equal(chan_write_wait(c->ch, 9998, buf, 2), 0);
	assert_int_equal(fstat(fn->fd, &st), 0);
	assert_int_equal(st.st_size, 10000);
	assert_int_equal(chan_write_wait(c->ch, 9999, buf, 2), 0);
	assert_int_equal(fstat(fn->fd, &st), 0);
	assert_int_equal(st.st_size, 10001);
	assert_int_equal(file_size(fn), 10001);

	/* Zeroing past the end makes it longer, and reads beyond give zeros. */
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 9999, 5001, REQ_MAY_UNMAP), 0);
	assert_int_equal(fstat(fn->fd, &st), 0);
	assert_int_equal(st.st_size, 15000);
	assert_int_equal(file_size(fn), 15000);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 14999, 1001, 0), 0);
	assert_int_equal(fstat(fn->fd, &st), 0);
	assert_int_equal(st.st_size, 16000);
	assert_int_equal(chan_read_wait(c->ch, 9990, buf, 8192), 0);
	assert_int_equal(buf[8], 'x');
	for (unsigned i = 9; i < 8192; i++)
		assert_int_equal(buf[i], 0);
	assert_int_equal(chan_read_wait(c->ch, 1 << 30, buf, 100), 0);
	assert_int_equal(buf[0], 0);

	/* Discarding does not. */
	assert_int_equal(submit_wait(c->ch, REQ_DISCARD, 12000, 100000, 0), 0);
	assert_int_equal(fstat(fn->fd, &st), 0);
	assert_int_equal(st.st_size, 16000);

	assert_int_equal(ftruncate(fn->fd, 20000), 0);
	assert_int_equal(c->node->ops->resize_wait(c->node, &err), 0);
	assert_int_equal(file_size(fn), 20000);

	/* It can be cut, and what comes back is zeros. */
	assert_int_equal(node_truncate_wait(c->node, 9995), 0);
	assert_int_equal(fstat(fn->fd, &st), 0);
	assert_int_equal(st.st_size, 9995);
	assert_int_equal(file_size(fn), 9995);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 15000, 5000, 0), 0);
	assert_int_equal(chan_read_wait(c->ch, 9990, buf, 8192), 0);
	for (unsigned i = 5; i < 8192; i++)
		assert_int_equal(buf[i], 0);
}

static void sizes_are_exact(void **state)
{
	run_all(10000, size_body);
}

/* ---- map ---- */

static void map_body(struct ctx *c)
{
	static char buf[65536];
	struct req req = { .kind = REQ_MAP, .off = 0, .len = 1 << 20 };

	memset(buf, 'y', sizeof(buf));
	assert_int_equal(chan_write_wait(c->ch, 131072, buf, sizeof(buf)), 0);
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	if (req.map.flags & MAP_DATA)
		skip();                 /* a file system that does not tell */
	assert_int_equal(req.map.flags, MAP_ZERO | MAP_HOST | MAP_PRESENT);
	assert_int_equal(req.map.len, 131072);

	req = (struct req){ .kind = REQ_MAP, .off = 131072 + 512, .len = 1 << 20 };
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	assert_int_equal(req.map.flags, MAP_DATA | MAP_HOST | MAP_PRESENT);
	assert_int_equal(req.map.len, 65536 - 512);
	assert_int_equal(req.map.host_off, 131072 + 512);
	assert_ptr_equal(req.map.file, c->node);

	req = (struct req){ .kind = REQ_MAP, .off = 196608, .len = 1 << 20 };
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	assert_int_equal(req.map.flags, MAP_ZERO | MAP_HOST | MAP_PRESENT);
	assert_int_equal(req.map.len, 1 << 20);

	req = (struct req){ .kind = REQ_MAP, .off = 300000, .len = 1000 };
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	assert_int_equal(req.map.flags, MAP_ZERO | MAP_HOST | MAP_PRESENT);
	assert_int_equal(req.map.len, 1000);
}

static void map_tells_data_from_holes(void **state)
{
	run_all(300000, map_body);
}

static void discard_body(struct ctx *c)
{
	static char buf[1 << 20];
	struct stat st;

	memset(buf, 'z', sizeof(buf));
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 0, 65536, REQ_FAST_ONLY), 0);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(fstat(as_file(c->node)->fd, &st), 0);
	assert_true(st.st_blocks * 512 >= 1 << 20);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 0, 1 << 19, REQ_MAY_UNMAP), 0);
	assert_int_equal(submit_wait(c->ch, REQ_DISCARD, 1 << 19, 1 << 19, REQ_FUA), 0);
	assert_int_equal(fstat(as_file(c->node)->fd, &st), 0);
	assert_true(st.st_blocks * 512 < 1 << 18);
}

static void discard_gives_space_back(void **state)
{
	run_all(1 << 20, discard_body);
}

static void no_discard_body(struct ctx *c)
{
	static char buf[1 << 20], got[1 << 20];
	struct stat st;

	memset(buf, 'z', sizeof(buf));
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(submit_wait(c->ch, REQ_DISCARD, 0, 1 << 19, 0), 0);
	assert_int_equal(chan_read_wait(c->ch, 0, got, sizeof(got)), 0);
	assert_memory_equal(buf, got, sizeof(buf));
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 0, 1 << 20, REQ_MAY_UNMAP), 0);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(fstat(as_file(c->node)->fd, &st), 0);
	assert_true(st.st_blocks * 512 >= 1 << 20);
}

static void without_discard_space_is_kept(void **state)
{
	struct loop *l = new_loop(LOOP_AUTO, 0);
	char path[32];
	struct file_opts o = { .path = path, .fd = -1, .writable = true };

	close(temp_file(0, path));
	run_opts(l, &o, no_discard_body);
	unlink(path);
	loop_free(l);
}

/* ---- many at once: more than there are arrays for cut iovecs ---- */

enum { MANY = 2 * CUTS_MAX };

struct many {
	struct req req;
	struct iovec iov[2];
	unsigned *left;
	struct fiber *fiber;
};

static void many_done(struct req *req, int res)
{
	struct many *m = container_of(req, struct many, req);

	assert_int_equal(res, 0);
	if (!--*m->left)
		fiber_wake(m->fiber);
}

static void many_run(struct ctx *c, struct many *all, enum req_kind kind, char *buf)
{
	unsigned left = MANY;

	for (unsigned i = 0; i < MANY; i++) {
		struct many *m = &all[i];

		/* Two halves and something behind them that is not written: must be cut. */
		m->iov[0] = (struct iovec){ buf + 4096 * i + 2048, 2048 };
		m->iov[1] = (struct iovec){ buf + 4096 * i, 4096 };
		m->req = (struct req){ .done = many_done, .kind = (uint8_t)kind, .off = 4096 * i,
				       .len = 4096, .iov = m->iov, .iovcnt = 2 };
		m->left = &left;
		m->fiber = fiber_self();
		chan_submit(c->ch, &m->req);
	}
	while (left)
		fiber_park();
}

static void many_body(struct ctx *c)
{
	struct many *all = calloc(MANY, sizeof(*all));
	char *out = aligned_alloc(4096, 4096 * MANY), *in = aligned_alloc(4096, 4096 * MANY);

	fill(&c->prng, out, 4096 * MANY);
	many_run(c, all, REQ_WRITE, out);
	many_run(c, all, REQ_READ, in);
	for (unsigned i = 0; i < MANY; i++) {
		assert_memory_equal(in + 4096 * i + 2048, out + 4096 * i + 2048, 2048);
		assert_memory_equal(in + 4096 * i, out + 4096 * i, 2048);
	}
	assert_true(file_chan(c->ch)->ncuts <= CUTS_MAX);
	free(all);
	free(out);
	free(in);
}

static void more_requests_than_arrays_all_finish(void **state)
{
	run_all(0, many_body);
}

/* ---- the data path ---- */

static void hot_body(struct ctx *c)
{
	static _Alignas(4096) char buf[16384];
	struct loop_stats before, after;

	loop_get_stats(c->loop, &before);
	for (unsigned i = 0; i < 16; i++) {
		assert_int_equal(chan_write_wait(c->ch, 16384 * i, buf, sizeof(buf)), 0);
		assert_int_equal(chan_read_wait(c->ch, 16384 * i, buf, sizeof(buf)), 0);
	}
	loop_get_stats(c->loop, &after);
	assert_int_equal(after.fibers_started, before.fibers_started);
	assert_int_equal(after.ios[IO_WRITE], before.ios[IO_WRITE] + 16);
	assert_int_equal(after.ios[IO_READ], before.ios[IO_READ] + 16);
	assert_int_equal(file_chan(c->ch)->ncuts, CUTS_KEPT);
}

static void the_data_path_is_one_io_and_no_fiber(void **state)
{
	run_all(0, hot_body);
}

/* ---- simulated: short counts, errors ---- */

static void run_sim(uint64_t seed, unsigned chance, enum file_cache cache, int (*fault)(void *,
		    const struct io *), void *arg, void (*body)(struct ctx *))
{
	struct loop *l = new_loop(LOOP_SIM, seed);
	int fd = sim_file_new(l, 65536);
	struct file_opts o = { .path = "sim", .fd = fd, .cache = cache, .writable = true,
			       .discard = true, .sim = true };

	sim_set_short(l, chance);
	sim_set_fault(l, fault, arg);
	run_opts(l, &o, body);
	sim_file_free(l, fd);
	loop_free(l);
}

static void b2_short_counts_go_on_where_they_stopped(void **state)
{
	for (uint64_t seed = 0; seed < 10; seed += TEST_SCALE)
		for (unsigned i = 0; i < ARRAY_SIZE(caches); i++)
			run_sim(1 + seed, 128, caches[i], NULL, NULL, model_body);
}

struct fault {
	int op;
	int error;
};

static int fault_op(void *arg, const struct io *io)
{
	const struct fault *f = arg;

	return io->op == f->op ? f->error : 0;
}

static unsigned errors_logged;

static void count_errors(enum log_level level, const char *line)
{
	errors_logged += level == LOG_LEVEL_ERROR;
}

static struct fault *the_fault;

static void q9_body(struct ctx *c)
{
	struct err why = { 0 };
	char buf[512] = "x";

	assert_int_equal(chan_flush_wait(c->ch), 0);
	assert_int_equal(node_settle_wait(c->node, NULL), 0);
	the_fault->error = -EIO;
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
	the_fault->error = 0;           /* Linux would say all is well now */
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 0, 512, REQ_FUA), -EIO);
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
	/* Who lets the disk go hears of it, too. */
	assert_int_equal(node_settle_wait(c->node, &why), -EIO);
	assert_non_null(strstr(why.text, "may be lost"));
	assert_int_equal(errors_logged, 1);
}

static void q9_failed_sync_latches_the_node(void **state)
{
	struct fault f = { IO_SYNC, 0 };

	the_fault = &f;
	log_set_sink(count_errors);
	errors_logged = 0;
	run_sim(1, 0, FILE_CACHE_WRITEBACK, fault_op, &f, q9_body);
	f.error = 0;
	errors_logged = 0;
	run_sim(1, 0, FILE_CACHE_NONE, fault_op, &f, q9_body);
	log_set_sink(NULL);
}

static void q9_dsync_body(struct ctx *c)
{
	char buf[512] = "x";

	the_fault->error = -ENOSPC;     /* of the write: nothing else is lost */
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), -ENOSPC);
	the_fault->error = 0;
	assert_int_equal(chan_flush_wait(c->ch), 0);
	the_fault->error = -EIO;
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), -EIO);
	the_fault->error = 0;
	assert_int_equal(chan_flush_wait(c->ch), -EIO);
}

static void q9_failed_durable_write_latches_the_node(void **state)
{
	struct fault f = { IO_WRITE, 0 };

	the_fault = &f;
	log_set_sink(count_errors);
	errors_logged = 0;
	run_sim(1, 0, FILE_CACHE_DIRECTSYNC, fault_op, &f, q9_dsync_body);
	log_set_sink(NULL);
	assert_int_equal(errors_logged, 1);
}

static void errors_body(struct ctx *c)
{
	char buf[512] = "x";

	the_fault->op = IO_WRITE;
	the_fault->error = -ENOSPC;
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), -ENOSPC);
	assert_int_equal(chan_write_wait(c->ch, 3, buf, 100), -ENOSPC);
	the_fault->error = -EIO;
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), -EIO);
	the_fault->error = 0;
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(chan_flush_wait(c->ch), 0);
	the_fault->op = IO_READ;
	the_fault->error = -EIO;
	assert_int_equal(chan_read_wait(c->ch, 0, buf, sizeof(buf)), -EIO);
	assert_int_equal(chan_read_wait(c->ch, 7, buf, 9), -EIO);
	the_fault->op = IO_ALLOCATE;
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 0, 4096, REQ_FAST_ONLY), -EIO);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 0, 4096, REQ_MAY_UNMAP), -EIO);
	assert_int_equal(submit_wait(c->ch, REQ_DISCARD, 0, 4096, 0), -EIO);
	the_fault->error = 0;
	assert_int_equal(chan_read_wait(c->ch, 0, buf, sizeof(buf)), 0);
}

static void errors_are_reported_as_they_are(void **state)
{
	struct fault f = { 0 };

	the_fault = &f;
	run_sim(1, 0, FILE_CACHE_WRITEBACK, fault_op, &f, errors_body);
	run_sim(1, 0, FILE_CACHE_NONE, fault_op, &f, errors_body);
}

static void no_fallocate_body(struct ctx *c)
{
	char buf[3000];

	the_fault->op = IO_ALLOCATE;
	the_fault->error = -EOPNOTSUPP;
	memset(buf, 'x', sizeof(buf));
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 1, 2998, REQ_FAST_ONLY), -ENOTSUP);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 1, 2998, REQ_FAST_ONLY), -ENOTSUP);
	assert_int_equal(submit_wait(c->ch, REQ_DISCARD, 1, 2998, 0), 0);
	assert_int_equal(submit_wait(c->ch, REQ_DISCARD, 1, 2998, 0), 0);
	assert_int_equal(chan_read_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(buf[1500], 'x');
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 1, 2998, REQ_MAY_UNMAP | REQ_FUA), 0);
	assert_int_equal(chan_read_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(buf[0], 'x');
	for (unsigned i = 1; i < 2999; i++)
		assert_int_equal(buf[i], 0);
	assert_int_equal(buf[2999], 'x');
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 60000, 3000000, 0), 0);
	assert_int_equal(file_size(as_file(c->node)), 3060000);
}

static void without_fallocate_zeros_are_written(void **state)
{
	struct fault f = { 0 };

	the_fault = &f;
	run_sim(1, 0, FILE_CACHE_WRITEBACK, fault_op, &f, no_fallocate_body);
	run_sim(1, 0, FILE_CACHE_DIRECTSYNC, fault_op, &f, no_fallocate_body);
}

/* ---- opening ---- */

struct open_try {
	struct loop *loop;
	struct file_opts opts;
	struct err err;
};

static int try_open(void *arg)
{
	struct open_try *t = arg;
	struct node *n;
	int rc = file_open_wait(&t->opts, t->loop, &n, &t->err);

	if (!rc)
		node_put_wait(n);
	return rc;
}

static void expect_error(struct loop *l, const char *path, enum file_cache cache, bool writable,
			 int code, const char *text)
{
	struct open_try t = { .loop = l, .opts = { .path = path, .fd = -1, .cache = cache,
						   .writable = writable } };

	assert_int_equal(loop_call(l, try_open, &t), -code);
	assert_int_equal(t.err.code, code);
	if (!strstr(t.err.text, text))
		fail_msg("'%s' lacks '%s'", t.err.text, text);
	assert_true(t.err.hint[0]);
}

static void errors_of_open_say_what_to_do(void **state)
{
	struct loop *l = new_loop(LOOP_AUTO, 0);
	char path[32];

	expect_error(l, "/nowhere/at/all", FILE_CACHE_NONE, true, ENOENT, "No such file");
	expect_error(l, "/tmp", FILE_CACHE_WRITEBACK, false, EISDIR, "a directory");
	expect_error(l, "/tmp", FILE_CACHE_WRITEBACK, true, EISDIR, "irectory");
	expect_error(l, "/dev/null", FILE_CACHE_WRITEBACK, true, EINVAL, "a character device");
	expect_error(l, "/proc/version", FILE_CACHE_NONE, false, EINVAL, "cache=none");
	close(temp_file(0, path));
	unlink(path);
	assert_int_equal(mkfifo(path, 0600), 0);
	expect_error(l, path, FILE_CACHE_WRITEBACK, false, EINVAL, "a FIFO");
	expect_error(l, path, FILE_CACHE_WRITEBACK, true, EINVAL, "a FIFO");
	unlink(path);
	if (geteuid()) {
		close(temp_file(0, path));
		assert_int_equal(chmod(path, 0400), 0);
		expect_error(l, path, FILE_CACHE_WRITEBACK, true, EACCES, "for writing");
		unlink(path);
	}
	loop_free(l);
}

static void a_descriptor_is_taken_only_on_success(void **state)
{
	struct loop *l = new_loop(LOOP_AUTO, 0);
	char path[32];
	struct open_try t = { .loop = l, .opts = { .path = path, .cache = FILE_CACHE_NONE } };
	int fd = temp_file(4096, path), wronly = open(path, O_WRONLY);

	t.opts.fd = wronly;
	assert_int_equal(loop_call(l, try_open, &t), -EBADF);
	assert_true(fcntl(wronly, F_GETFL) >= 0);
	close(wronly);

	t.opts.fd = fd;
	assert_int_equal(loop_call(l, try_open, &t), 0);
	assert_true(fcntl(fd, F_GETFL) < 0);
	unlink(path);
	loop_free(l);
}

static void read_only_body(struct ctx *c)
{
	char buf[512];

	assert_true(c->node->read_only);
	assert_int_equal(chan_read_wait(c->ch, 0, buf, sizeof(buf)), 0);
	assert_int_equal(chan_write_wait(c->ch, 0, buf, sizeof(buf)), -EROFS);
	assert_int_equal(submit_wait(c->ch, REQ_ZERO, 0, 1, 0), -EROFS);
	assert_int_equal(chan_flush_wait(c->ch), 0);
}

static void a_read_only_node_writes_nothing(void **state)
{
	struct loop *l = new_loop(LOOP_AUTO, 0);
	char path[32];
	struct file_opts o = { .path = path, .fd = -1, .cache = FILE_CACHE_NONE };

	close(temp_file(4096, path));
	run_opts(l, &o, read_only_body);
	unlink(path);
	loop_free(l);
}

static void cache_modes_have_qemus_names(void **state)
{
	enum file_cache cache;
	struct err err = { 0 };

	for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
		assert_int_equal(file_cache_parse(file_cache_name(caches[i]), &cache, &err), 0);
		assert_int_equal(cache, caches[i]);
	}
	assert_int_equal(file_cache_parse("off", &cache, &err), 0);
	assert_int_equal(cache, FILE_CACHE_NONE);
	assert_int_equal(file_cache_parse("wonderful", &cache, &err), -EINVAL);
	assert_non_null(strstr(err.hint, "writethrough"));
}

/* ---- block devices: a loop device over a file, where we may make one ---- */

static void device_body(struct ctx *c)
{
	struct file_node *fn = as_file(c->node);
	struct req req = { .kind = REQ_MAP, .off = 4096, .len = 1 << 20 };
	struct err err = { 0 };
	char buf[4096] = "";

	assert_true(fn->is_block_device);
	assert_int_equal(file_size(fn), MODEL_MAX);
	assert_int_equal(fn->block, fn->is_direct ? 4096 : 1);
	assert_int_equal(c->node->ops->resize_wait(c->node, &err), 0);
	assert_int_equal(file_size(fn), MODEL_MAX);
	assert_int_equal(node_truncate_wait(c->node, 4096), -ENOTSUP);
	assert_int_equal(node_grow_wait(c->node, 2 * MODEL_MAX, false), -ENOTSUP);
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	assert_int_equal(req.map.flags, MAP_DATA | MAP_HOST | MAP_PRESENT);
	assert_int_equal(req.map.len, MODEL_MAX - 4096);
	assert_int_equal(chan_write_wait(c->ch, MODEL_MAX, buf, sizeof(buf)), -ENOSPC);
	model_body(c);
	assert_int_equal(file_size(fn), MODEL_MAX);
}

static void a_block_device_of_4096_bytes_a_sector(void **state)
{
	char path[32], cmd[96], dev[64];
	FILE *f;

	if (geteuid())
		skip();
	close(temp_file(MODEL_MAX, path));
	snprintf(cmd, sizeof(cmd), "losetup -f --show -b 4096 %s 2>/dev/null", path);
	f = popen(cmd, "r");
	assert_non_null(f);
	if (!fgets(dev, sizeof(dev), f))
		dev[0] = '\0';
	if (pclose(f) || !dev[0]) {
		unlink(path);
		skip();
	}
	dev[strcspn(dev, "\n")] = '\0';
	for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
		struct loop *l = new_loop(LOOP_AUTO, 0);
		struct file_opts o = { .path = dev, .fd = -1, .cache = caches[i],
				       .writable = true, .discard = true };

		snprintf(cmd, sizeof(cmd), "cat /dev/zero 2>/dev/null >%s", dev);
		(void)!system(cmd);
		run_opts(l, &o, device_body);
		loop_free(l);
	}
	snprintf(cmd, sizeof(cmd), "losetup -d %s", dev);
	assert_int_equal(system(cmd), 0);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cache_modes_have_qemus_names),
		cmocka_unit_test(errors_of_open_say_what_to_do),
		cmocka_unit_test(a_descriptor_is_taken_only_on_success),
		cmocka_unit_test(a_read_only_node_writes_nothing),
		cmocka_unit_test(the_data_path_is_one_io_and_no_fiber),
		cmocka_unit_test(b2_every_cache_mode_does_what_a_model_does),
		cmocka_unit_test(sizes_are_exact),
		cmocka_unit_test(map_tells_data_from_holes),
		cmocka_unit_test(discard_gives_space_back),
		cmocka_unit_test(without_discard_space_is_kept),
		cmocka_unit_test(more_requests_than_arrays_all_finish),
		cmocka_unit_test(a_block_device_of_4096_bytes_a_sector),
		cmocka_unit_test(b2_short_counts_go_on_where_they_stopped),
		cmocka_unit_test(q9_failed_sync_latches_the_node),
		cmocka_unit_test(q9_failed_durable_write_latches_the_node),
		cmocka_unit_test(errors_are_reported_as_they_are),
		cmocka_unit_test(without_fallocate_zeros_are_written),
	};

	return cmocka_run_group_tests(tests, setup_workers, teardown_workers);
}
