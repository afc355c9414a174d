/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/test_disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/err.h"
#include "base/prng.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/create.h"
#include "fmt/qcow2/qcow2.h"
#include "loop/work.h"

enum { CHECK_BYTES = 4096 };

/* ---- an image and what is below it ---- */

static void no_err(int rc, const struct err *err)
{
	if (rc)
		fail_msg("%d: %s", rc, err->text);
}

static void create(struct test_disk *d, struct test_mem *m, const struct qcow2_create_opts *o)
{
	struct err err = { 0 };

	no_err(qcow2_create_wait(&m->node, NULL, o, &err), &err);
}

static uint64_t backing_size(const struct test_disk *d)
{
	return d->cell.backing ? d->cell.size * 3 / 4 + 700 : 0;
}

static struct node *open_image(struct test_disk *d, struct test_mem *m, bool writable, bool lower)
{
	struct qcow2_opts o = { .writable = writable, .cache = d->cache,
				.writethrough = !lower && d->cell.writethrough,
				.compress = !lower && d->cell.packs_all,
				.compression_level = lower ? 0 : d->cell.packs_level,
				.deflate_small_window = d->cell.packs_small_window,
				.discard = d->cell.discard, .broken = lower ? 0 : d->cell.broken };
	struct err err = { 0 };
	struct node *n;

	no_err(qcow2_open_wait(node_get(&m->node), &o, &n, &err), &err);
	return n;
}

/* The middle layer: half of it is its own, some of it zeros, the rest is the raw file's. */
static void make_lower(struct test_disk *d, struct prng *p, uint64_t size)
{
	struct qcow2_create_opts o = { .size = align_up(size, 512), .version = 3,
				       .cluster_size = 4096, .backing_name = "raw",
				       .backing_format = "raw" };
	uint8_t buf[3000];
	struct node *n;

	d->lower = test_mem_new(d->loops[0], 32 << 20);
	create(d, d->lower, &o);
	n = open_image(d, d->lower, true, true);
	assert_int_equal(node_attach_wait(n, CHILD_BACKING, node_get(&d->raw->node), NULL), 0);
	for (uint64_t off = 0; off + sizeof(buf) < size; off += 1 + prng_below(p, 20000)) {
		struct req zero = { .kind = REQ_ZERO, .off = off,
				    .len = MIN(size - off, 1 + prng_below(p, 20000)) };

		if (prng_below(p, 3)) {
			memset(buf, (int)prng_next(p), sizeof(buf));
			memcpy(d->model + off, buf, sizeof(buf));
			assert_int_equal(chan_write_wait(n->home_chan, off, buf, sizeof(buf)), 0);
		} else {
			memset(d->model + off, 0, zero.len);
			assert_int_equal(chan_submit_wait(n->home_chan, &zero), 0);
		}
	}
	node_put_wait(n);
}

/* The files and the model of what they show. */
static int make(void *arg)
{
	struct test_disk *d = arg;
	struct prng p = { d->seed };
	uint64_t size = backing_size(d);
	struct qcow2_create_opts o = {
		.size = d->cell.size, .version = d->cell.version,
		.cluster_size = 1ULL << d->cell.cluster_bits,
		.refcount_bits = d->cell.refcount_bits,
		.extended_l2 = d->cell.is_extended,
		.compression = d->cell.packs_zstd ? QCOW2_COMPRESSION_ZSTD :
						    QCOW2_COMPRESSION_DEFLATE,
		.backing_name = size ? "below" : NULL,
		.backing_format = size ? "raw" : NULL,
	};

	d->cache = qcow2_cache_new(0, d->loops[0]);
	cache_setup(d->cache, CACHE_SLICE_BYTES_MIN);
	d->file = test_mem_new(d->loops[0], 64 << 20);
	d->file->node.holes_read_zero = true;
	create(d, d->file, &o);
	if (size) {
		/* A third of it is holes. */
		d->raw = test_mem_new(d->loops[0], size);
		for (uint64_t i = 0; i < size; i += 100)
			if (i / 70000 % 3)
				memset(d->raw->bytes + i, (int)(mix64(i / 100) & 0xff) | 1,
				       MIN(size - i, 100u));
		atomic_store(&d->raw->node.size, size);
		memcpy(d->model, d->raw->bytes, MIN(size, d->cell.size));
	}
	if (d->cell.backing == BACK_QCOW2)
		make_lower(d, &p, size);
	return 0;
}

int test_disk_open(void *arg)
{
	struct test_disk *d = arg;

	d->top = open_image(d, d->file, true, false);
	d->w = qcow2_of(d->top)->writer;
	if (d->cell.backing == BACK_RAW) {
		assert_int_equal(node_attach_wait(d->top, CHILD_BACKING, node_get(&d->raw->node),
						  NULL), 0);
	} else if (d->cell.backing == BACK_QCOW2) {
		struct node *lower = open_image(d, d->lower, false, true);

		assert_int_equal(node_attach_wait(lower, CHILD_BACKING, node_get(&d->raw->node),
						  NULL), 0);
		assert_int_equal(node_attach_wait(d->top, CHILD_BACKING, lower, NULL), 0);
	}
	assert_int_equal(port_new(d->top, false, &d->port, NULL), 0);
	return 0;
}

int test_disk_open_port(void *arg)
{
	struct test_disk *d = arg;

	assert_int_equal(port_open_wait(d->port, NULL), 0);
	return 0;
}

int test_disk_close_port(void *arg)
{
	struct test_disk *d = arg;

	port_close_wait(d->port);
	return 0;
}

int test_disk_close(void *arg)
{
	struct test_disk *d = arg;
	struct err err = { 0 };

	port_free(d->port);
	no_err(node_settle_wait(d->top, &err), &err);
	node_put_wait(d->top);
	qcow2_cache_free(d->cache);
	d->cache = qcow2_cache_new(0, d->loops[0]);
	cache_setup(d->cache, CACHE_SLICE_BYTES_MIN);
	return 0;
}

static int drop_files(void *arg)
{
	struct test_disk *d = arg;

	qcow2_cache_free(d->cache);
	node_put_wait(&d->file->node);
	if (d->raw)
		node_put_wait(&d->raw->node);
	if (d->lower)
		node_put_wait(&d->lower->node);
	return 0;
}

struct test_disk *test_disk_new(const struct test_cell *cell, enum loop_backend backend,
				unsigned nloops, uint64_t seed)
{
	struct test_disk *d = calloc(1, sizeof(*d));

	d->cell = *cell;
	d->seed = seed;
	d->nloops = nloops;
	d->modelled = cell->size < GiB ? cell->size : 0;
	d->model = calloc(1, d->modelled);
	d->other = calloc(1, d->modelled);
	d->doubt = calloc(1, d->modelled);
	pthread_mutex_init(&d->lock, NULL);
	if (backend != LOOP_SIM)
		assert_int_equal(workers_new(2, &d->workers, NULL), 0);
	for (unsigned i = 0; i < nloops; i++) {
		struct loop_opts o = { .backend = backend, .workers = d->workers,
				       .sim_seed = seed };

		assert_int_equal(loop_new(&o, &d->loops[i], NULL), 0);
		if (nloops > 1)
			assert_int_equal(loop_thread_start(&d->threads[i], d->loops[i], "t", NULL),
					 0);
	}
	loop_call(d->loops[0], make, d);
	return d;
}

void test_disk_free(struct test_disk *d)
{
	loop_call(d->loops[0], drop_files, d);
	for (unsigned i = 0; i < d->nloops; i++) {
		if (d->nloops > 1)
			loop_thread_stop(&d->threads[i]);
		else
			loop_free(d->loops[i]);
	}
	workers_free(d->workers);
	free(d->model);
	free(d->other);
	free(d->doubt);
	free(d);
}

/* ---- the model ---- */

static void *say_where(const struct test_disk *d, uint64_t off)
{
	fail_msg("seed %llu, version %u, clusters of 2^%u, backing %d: byte %llu",
		 (unsigned long long)d->seed, d->cell.version, d->cell.cluster_bits,
		 d->cell.backing, (unsigned long long)off);
	return NULL;
}

static void check_bytes(struct test_disk *d, const uint8_t *got, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++) {
		if (got[i] == d->model[off + i] || d->doubt[off + i] == ANYTHING ||
		    (d->doubt[off + i] == OLD_OR_NEW && got[i] == d->other[off + i]))
			continue;
		d->nwrong++;
		if (d->cell.broken)
			continue;
		print_error("got %02x, not %02x\n", got[i], d->model[off + i]);
		say_where(d, off + i);
	}
}

void test_model_check(struct test_disk *d, const uint8_t *got, uint64_t off, uint64_t len)
{
	uint64_t n;

	/* TSan makes a loop over bytes dear, and a memcmp() cheap. */
	for (uint64_t at = 0; at < len; at += n) {
		n = MIN(len - at, (uint64_t)CHECK_BYTES);
		if (memcmp(got + at, d->model + off + at, n))
			check_bytes(d, got + at, off + at, n);
	}
}

/* [@off, @off + @len) was to become @bytes (NULL: zeros); @res says whether it did. */
void test_model_write(struct test_disk *d, uint64_t off, const uint8_t *bytes, uint64_t len,
		      int res)
{
	if (!res) {
		if (bytes)
			memcpy(d->model + off, bytes, len);
		else
			memset(d->model + off, 0, len);
		memset(d->doubt + off, KNOWN, len);
		return;
	}
	for (uint64_t i = 0; i < len; i++) {
		if (d->doubt[off + i] == KNOWN) {
			d->other[off + i] = bytes ? bytes[i] : 0;
			d->doubt[off + i] = OLD_OR_NEW;
		} else {
			d->doubt[off + i] = ANYTHING;
		}
	}
}

/* Discards change whole clusters alone. */
void test_model_discard(struct test_disk *d, uint64_t off, uint64_t len, int res)
{
	uint64_t cluster = 1ULL << d->cell.cluster_bits;
	uint64_t first = align_up(off, cluster), last = align_down(off + len, cluster);

	if (off + len == d->cell.size)
		last = d->cell.size;
	if (first >= last || (d->cell.version == 2 && d->cell.backing))
		return;
	test_model_write(d, first, NULL, last - first, res);
}

/* ---- those who work on it ---- */

struct worker {
	struct task task;
	struct test_disk *d;
	struct prng prng;
	unsigned rounds;
	unsigned *running;
	struct fiber *waiter;
	uint8_t *buf;
	uint64_t stream;                /* where its sequential writes go on */
};

static void asked(struct req *req, int res)
{
	struct test_ask *a = container_of(req, struct test_ask, req);

	a->res = res;
	a->is_done = true;
	fiber_wake(a->fiber);
}

int test_ask_wait(struct test_disk *d, struct test_ask *a)
{
	a->fiber = fiber_self();
	a->is_done = false;
	a->req.done = asked;
	port_submit(port_here(d->port), &a->req);
	while (!a->is_done)
		fiber_park();
	return a->res;
}

/* Takes [@off, @off + @len) for the caller alone, if nobody has a byte of it. */
static struct test_range *range_take(struct test_disk *d, uint64_t off, uint64_t len)
{
	struct test_range *vacant = NULL;

	pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < TEST_ACTIVE_MAX; i++) {
		struct test_range *r = &d->active[i];

		if (!r->len)
			vacant = r;
		else if (ranges_overlap(r->off, r->len, off, len)) {
			vacant = NULL;
			break;
		}
	}
	if (vacant)
		*vacant = (struct test_range){ off, len };
	pthread_mutex_unlock(&d->lock);
	return vacant;
}

static void range_give(struct test_disk *d, struct test_range *r)
{
	pthread_mutex_lock(&d->lock);
	r->len = 0;
	pthread_mutex_unlock(&d->lock);
}

/* Somewhere: small or large, aligned or not, or a stream's next. */
static struct test_range *pick(struct worker *wk, uint64_t *ret_off, uint64_t *ret_len)
{
	struct test_disk *d = wk->d;
	uint64_t cluster = 1ULL << d->cell.cluster_bits;
	uint64_t off = prng_below(&wk->prng, d->cell.size), len = 1 + prng_below(&wk->prng, 5000);

	switch (prng_below(&wk->prng, 8)) {
	case 0:
		len = 1 + prng_below(&wk->prng, MIN(d->cell.size, 40 * cluster));
		break;
	case 1:
		off = align_down(off, cluster);
		len = cluster * (1 + prng_below(&wk->prng, 4));
		break;
	case 2:
	case 3:
		off = align_down(off, 4096);
		len = 4096;
		break;
	case 4:
	case 5:
		off = wk->stream % d->cell.size;
		len = 4096;
		wk->stream = off + 4096;
		break;
	default:
		break;
	}
	*ret_off = off;
	*ret_len = MIN(len, d->cell.size - off);
	return range_take(d, off, *ret_len);
}

/* What tells one write from another, and one place from another. */
static void draw_bytes(struct prng *p, uint8_t *buf, uint64_t off, uint64_t len)
{
	uint8_t tag = (uint8_t)prng_next(p);
	uint64_t n;

	for (uint64_t at = 0; at < len; at += n) {
		n = MIN(len - at, 61 - (off + at) % 61);
		memset(buf + at, (uint8_t)(tag + (off + at) / 61), n);
	}
}

static int do_write(struct worker *wk, struct test_ask *a, uint64_t off, uint64_t len)
{
	struct iovec iov[3];
	int rc;

	draw_bytes(&wk->prng, wk->buf, off, len);
	iov[0] = (struct iovec){ wk->buf, prng_below(&wk->prng, len + 1) };
	iov[1] = (struct iovec){ wk->buf + iov[0].iov_len,
				 prng_below(&wk->prng, len - iov[0].iov_len + 1) };
	iov[2] = (struct iovec){ wk->buf + iov[0].iov_len + iov[1].iov_len,
				 len - iov[0].iov_len - iov[1].iov_len };
	a->req.kind = REQ_WRITE;
	if (wk->d->cell.packs_every && !prng_below(&wk->prng, wk->d->cell.packs_every))
		a->req.flags |= REQ_COMPRESSED;
	a->req.iov = iov;
	a->req.iovcnt = 3;
	rc = test_ask_wait(wk->d, a);
	test_model_write(wk->d, off, wk->buf, len, rc);
	return rc;
}

/* As a write of what another file holds. */
static int do_copy(struct worker *wk, struct test_ask *a, uint64_t off, uint64_t len)
{
	struct test_mem source = { .bytes = wk->buf };
	int rc;

	draw_bytes(&wk->prng, wk->buf, off, len);
	a->req.kind = REQ_COPY;
	a->req.from = &source.node;
	if (prng_below(&wk->prng, 2))
		a->req.flags |= REQ_SHARE;
	rc = test_ask_wait(wk->d, a);
	if (wk->d->cell.packs_all) {
		assert_int_equal(rc, -ENOTSUP);
		return 0;
	}
	test_model_write(wk->d, off, wk->buf, len, rc);
	return rc;
}

static int do_zero(struct worker *wk, struct test_ask *a, uint64_t off, uint64_t len)
{
	int rc;

	a->req.kind = REQ_ZERO;
	if (prng_below(&wk->prng, 2))
		a->req.flags |= REQ_MAY_UNMAP;
	if (prng_below(&wk->prng, 4) == 0)
		a->req.flags |= REQ_FAST_ONLY;
	rc = test_ask_wait(wk->d, a);
	test_model_write(wk->d, off, NULL, len, rc);
	return rc == -ENOTSUP ? 0 : rc;
}

static int do_read(struct worker *wk, struct test_ask *a, uint64_t off, uint64_t len)
{
	struct iovec iov = { wk->buf, len };
	int rc;

	a->req.kind = REQ_READ;
	a->req.iov = &iov;
	a->req.iovcnt = 1;
	rc = test_ask_wait(wk->d, a);
	if (!rc)
		test_model_check(wk->d, wk->buf, off, len);
	else if (rc == -ENOSPC && wk->d->has_room_to_read)
		say_where(wk->d, off);
	return rc;
}

static int one(struct worker *wk, uint64_t off, uint64_t len)
{
	struct test_ask a = { .req = { .off = off, .len = len } };
	uint64_t what = prng_below(&wk->prng, 32);
	int rc;

	if (prng_below(&wk->prng, 10) == 0)
		a.req.flags = REQ_FUA;
	if (what < 16 && wk->d->cell.copies_every &&
	    !prng_below(&wk->prng, wk->d->cell.copies_every))
		return do_copy(wk, &a, off, len);
	if (what < 16)
		return do_write(wk, &a, off, len);
	if (what < 24)
		return do_read(wk, &a, off, len);
	if (what < 28)
		return do_zero(wk, &a, off, len);
	if (what < 30) {
		a.req.kind = REQ_DISCARD;
		rc = test_ask_wait(wk->d, &a);
		test_model_discard(wk->d, off, len, rc);
		return rc;
	}
	a.req.kind = what == 30 ? REQ_FLUSH : REQ_MAP;
	rc = test_ask_wait(wk->d, &a);
	if (what == 31 && rc == -ENOSPC && wk->d->has_room_to_read)
		say_where(wk->d, off);
	/* Not while errors leave it open what is there. */
	if (!rc && what == 31 && a.req.map.flags & MAP_ZERO && !wk->d->may_fail) {
		memset(wk->buf, 0, a.req.map.len);
		test_model_check(wk->d, wk->buf, off, a.req.map.len);
	}
	return rc;
}

static void work(struct task *t)
{
	struct worker *wk = container_of(t, struct worker, task);
	struct test_disk *d = wk->d;

	wk->stream = prng_below(&wk->prng, d->cell.size);
	for (unsigned i = 0; i < wk->rounds; i++) {
		uint64_t off, len;
		struct test_range *r = pick(wk, &off, &len);
		int rc;

		if (!r) {
			fiber_yield_wait();
			continue;
		}
		wk->buf = malloc(len);
		rc = one(wk, off, len);
		free(wk->buf);
		if (rc && !d->may_fail) {
			print_error("error %d\n", rc);
			say_where(d, off);
		}
		range_give(d, r);
	}
	if (!--*wk->running)
		fiber_wake(wk->waiter);
}

int test_disk_work(void *arg)
{
	struct test_work *a = arg;
	unsigned running = TEST_WORKERS;
	struct worker wk[TEST_WORKERS];

	for (unsigned i = 0; i < TEST_WORKERS; i++) {
		wk[i] = (struct worker){ .task.fn = work, .d = a->d, .rounds = a->rounds,
			.prng = { a->seed * 1000 + i }, .running = &running,
			.waiter = fiber_self() };
		fiber_start(loop_current(), &wk[i].task);
	}
	while (running)
		fiber_park();
	return 0;
}

int test_disk_flush(void *arg)
{
	struct test_ask a = { .req = { .kind = REQ_FLUSH } };

	return test_ask_wait(arg, &a);
}

/* ---- judging ---- */

static void say(void *arg, bool is_named, char *text)
{
	print_error("%s\n", text);
}

int test_disk_verify(void *arg)
{
	struct test_disk *d = arg;
	struct qcow2_check_say how = { .fn = say };
	struct qcow2_check res;
	struct node *n = open_image(d, d->file, false, false);
	uint8_t *buf = malloc(d->modelled);

	assert_int_equal(qcow2_check_wait(n, &how, &res, NULL), 0);
	if (res.corruptions || res.leaks || res.check_errors) {
		print_error("%llu corruptions, %llu leaks\n", (unsigned long long)res.corruptions,
			    (unsigned long long)res.leaks);
		say_where(d, 0);
	}
	if (d->cell.backing) {
		struct node *below = &d->raw->node;

		if (d->cell.backing == BACK_QCOW2) {
			below = open_image(d, d->lower, false, true);
			assert_int_equal(node_attach_wait(below, CHILD_BACKING,
							  node_get(&d->raw->node), NULL), 0);
		} else {
			node_get(below);
		}
		assert_int_equal(node_attach_wait(n, CHILD_BACKING, below, NULL), 0);
	}
	if (d->modelled) {
		assert_int_equal(chan_read_wait(n->home_chan, 0, buf, d->modelled), 0);
		test_model_check(d, buf, 0, d->modelled);
	}
	free(buf);
	node_put_wait(n);
	qcow2_cache_free(d->cache);
	d->cache = qcow2_cache_new(0, d->loops[0]);
	cache_setup(d->cache, CACHE_SLICE_BYTES_MIN);
	return 0;
}

void test_disk_with(const struct test_cell *cell, uint64_t seed, int (*body)(void *disk))
{
	struct test_disk *d = test_disk_new(cell, LOOP_SIM, 1, seed);

	loop_call(d->loops[0], test_disk_open, d);
	loop_call(d->loops[0], test_disk_open_port, d);
	loop_call(d->loops[0], body, d);
	loop_call(d->loops[0], test_disk_close_port, d);
	loop_call(d->loops[0], test_disk_close, d);
	loop_call(d->loops[0], test_disk_verify, d);
	test_disk_free(d);
}

/* ---- whole runs ---- */

void test_disk_random(const struct test_cell *cell, uint64_t seed, unsigned rounds)
{
	struct test_disk *d;

	/* One thread: races are looked for in test_disk_two_loops(). */
	if (HAS_TSAN && seed % 4)
		return;
	d = test_disk_new(cell, LOOP_SIM, 1, seed);
	/* The second time over what the first one left. */
	for (unsigned i = 0; i < 2; i++) {
		struct test_work a = { d, rounds, seed * 2 + i };

		loop_call(d->loops[0], test_disk_open, d);
		loop_call(d->loops[0], test_disk_open_port, d);
		loop_call(d->loops[0], test_disk_work, &a);
		assert_int_equal(loop_call(d->loops[0], test_disk_flush, d), 0);
		loop_call(d->loops[0], test_disk_close_port, d);
		loop_call(d->loops[0], test_disk_close, d);
		loop_call(d->loops[0], test_disk_verify, d);
	}
	test_disk_free(d);
}

void test_disk_faults(const struct test_cell *cell, uint64_t seed, int nth, unsigned kinds)
{
	struct test_disk *d = test_disk_new(cell, LOOP_SIM, 1, seed);
	struct test_work a = { d, 25, seed };
	int rc;

	d->may_fail = true;
	d->has_room_to_read = kinds && !(kinds >> REQ_READ & 1);
	loop_call(d->loops[0], test_disk_open, d);
	loop_call(d->loops[0], test_disk_open_port, d);
	loop_call(d->loops[0], test_disk_work, &a);
	for (unsigned round = 0; round < 2; round++) {
		struct test_mem *m = round && d->raw ? d->raw : d->file;

		m->fail_with = seed % 2 ? -EIO : -ENOSPC;
		m->fail_kinds = kinds;
		m->fails_on = seed % 3 == 0;
		atomic_store(&m->fail_after, nth);
		a.seed++;
		loop_call(d->loops[0], test_disk_work, &a);
		loop_call(d->loops[0], test_disk_flush, d);
		atomic_store(&m->fail_after, -1);
	}
	/* The first one may be answered by a commit that failed. */
	rc = loop_call(d->loops[0], test_disk_flush, d);
	if (rc)
		rc = loop_call(d->loops[0], test_disk_flush, d);
	assert_int_equal(rc, 0);
	loop_call(d->loops[0], test_disk_close_port, d);
	loop_call(d->loops[0], test_disk_close, d);
	loop_call(d->loops[0], test_disk_verify, d);
	test_disk_free(d);
}

struct caller {
	struct loop *loop;
	struct test_work args;
};

static void *call_workers(void *arg)
{
	struct caller *c = arg;

	loop_call(c->loop, test_disk_work, &c->args);
	return NULL;
}

void test_disk_two_loops(const struct test_cell *cell, uint64_t seed)
{
	struct test_disk *d = test_disk_new(cell, LOOP_AUTO, 2, seed);
	/* Two threads: what ThreadSanitizer is for. */
	unsigned rounds = HAS_TSAN ? 50 : 200;
	struct caller callers[2];
	pthread_t threads[2];

	loop_call(d->loops[0], test_disk_open, d);
	for (unsigned j = 0; j < 2; j++)
		loop_call(d->loops[j], test_disk_open_port, d);
	for (unsigned j = 0; j < 2; j++) {
		callers[j] = (struct caller){ d->loops[j], { d, rounds, 2 * seed + j } };
		pthread_create(&threads[j], NULL, call_workers, &callers[j]);
	}
	for (unsigned j = 0; j < 2; j++)
		pthread_join(threads[j], NULL);
	assert_int_equal(loop_call(d->loops[1], test_disk_flush, d), 0);
	for (unsigned j = 0; j < 2; j++)
		loop_call(d->loops[j], test_disk_close_port, d);
	loop_call(d->loops[0], test_disk_close, d);
	loop_call(d->loops[0], test_disk_verify, d);
	test_disk_free(d);
}
