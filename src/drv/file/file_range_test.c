/* SPDX-License-Identifier: MIT */
/* The range lock, over two loops in threads and over a simulated one. Each test also runs with the
 * lock left out, and must then find damage. */
#include <pthread.h>

#include "drv/file/file_test_util.h"
#include "loop/loop_thread.h"

enum { BLOCKS = 32, DISK = 64 << 10, WRITERS = 4, CHUNKS = 64 };

/* ---- loops that run in threads of their own ---- */

static void runner_start(struct loop_thread *r, enum loop_backend backend)
{
	assert_int_equal(loop_thread_start(r, new_loop(backend, 0), "test", NULL), 0);
}

/* One file, opened on every loop; loops[0] is its home. */
struct bed {
	struct loop *loops[2];
	unsigned nloops;
	struct file_opts opts;
	struct node *node;
	struct chan *ch[2];             /* by loop */
	bool leave_lock_out;
	uint64_t block;
};

static int bed_open(void *arg)
{
	struct bed *b = arg;
	struct err err = { 0 };
	int rc = file_open_wait(&b->opts, b->loops[0], &b->node, &err);

	if (rc) {
		fprintf(stderr, "%s\n", err.text);
		return rc;
	}
	as_file(b->node)->leave_lock_out = b->leave_lock_out;
	b->block = as_file(b->node)->block;
	return chan_get_wait(b->node, &b->ch[0], &err);
}

static int bed_open_second(void *arg)
{
	struct bed *b = arg;

	return chan_get_wait(b->node, &b->ch[1], NULL);
}

static int bed_close_second(void *arg)
{
	struct bed *b = arg;

	chan_put_wait(b->ch[1]);
	return 0;
}

static int bed_close(void *arg)
{
	struct bed *b = arg;

	chan_put_wait(b->ch[0]);
	node_put_wait(b->node);
	return 0;
}

/* ---- calls on several loops at once ---- */

struct call {
	struct loop *loop;
	int (*fn)(void *arg);
	void *arg;
	int res;
	pthread_t thread;
};

static void *call_thread(void *arg)
{
	struct call *c = arg;

	c->res = loop_call(c->loop, c->fn, c->arg);
	return NULL;
}

/* Runs all and returns the first that is not 0. */
static int call_all(struct call *calls, unsigned n)
{
	int res = 0;

	for (unsigned i = 0; i < n; i++)
		assert_int_equal(pthread_create(&calls[i].thread, NULL, call_thread, &calls[i]), 0);
	for (unsigned i = 0; i < n; i++) {
		pthread_join(calls[i].thread, NULL);
		res = res ? res : calls[i].res;
	}
	return res;
}

/* ---- overlapping: parts of blocks beside whole blocks ---- */

struct batch;

struct batch_req {
	struct req req;
	struct iovec iov;
	struct batch *batch;
};

struct batch {
	struct chan *ch;
	struct bed *bed;
	unsigned round, left;
	bool is_second;
	struct fiber *fiber;
	struct batch_req reqs[BLOCKS];
	char *data;
	int res;
};

static void batch_done(struct req *req, int res)
{
	struct batch *b = container_of(req, struct batch_req, req)->batch;

	if (res)
		b->res = res;
	if (!--b->left)
		fiber_wake(b->fiber);
}

/* The first writes bytes [0, 100) of every block. The second writes [100, 200) of even blocks and
 * all of odd ones. All at once. */
static int batch_run(void *arg)
{
	struct batch *b = arg;
	uint64_t block = b->bed->block;

	b->left = BLOCKS;
	b->fiber = fiber_self();
	b->res = 0;
	memset(b->data, (int)(b->round * 2 + b->is_second), block);
	for (unsigned i = 0; i < BLOCKS; i++) {
		struct batch_req *br = &b->reqs[i];
		bool is_whole = b->is_second && i % 2;

		br->batch = b;
		br->iov = (struct iovec){ b->data, is_whole ? block : 100 };
		br->req = (struct req){ .done = batch_done, .kind = REQ_WRITE, .iov = &br->iov,
					.iovcnt = 1, .len = br->iov.iov_len,
					.off = i * block + (b->is_second && !is_whole ? 100 : 0) };
		chan_submit(b->ch, &br->req);
	}
	while (b->left)
		fiber_park();
	return b->res;
}

struct check {
	struct bed *bed;
	unsigned round;
	unsigned bad;                   /* blocks */
};

static bool all_are(const uint8_t *p, uint64_t n, unsigned value)
{
	for (uint64_t i = 0; i < n; i++)
		if (p[i] != (uint8_t)value)
			return false;
	return true;
}

static int check_run(void *arg)
{
	struct check *c = arg;
	uint64_t block = c->bed->block;
	unsigned first = c->round * 2, second = c->round * 2 + 1;
	uint8_t *buf = malloc(BLOCKS * block);
	int rc = chan_read_wait(c->bed->ch[0], 0, buf, BLOCKS * block);

	for (unsigned i = 0; i < BLOCKS; i++) {
		const uint8_t *p = buf + i * block;
		bool ok = i % 2 ? (all_are(p, 100, first) || all_are(p, 100, second)) &&
				  all_are(p + 100, block - 100, second) :
				  all_are(p, 100, first) && all_are(p + 100, 100, second) &&
				  all_are(p + 200, block - 200, 0);

		c->bad += !ok;
	}
	free(buf);
	return rc;
}

/* Returns the number of damaged blocks. */
static unsigned overlap(struct bed *b, unsigned rounds)
{
	struct batch *batches = calloc(2, sizeof(*batches));
	struct check check = { .bed = b };

	for (unsigned i = 0; i < 2; i++) {
		batches[i].bed = b;
		batches[i].ch = b->ch[i];
		batches[i].is_second = i;
		batches[i].data = aligned_alloc(4096, 4096);
	}
	for (unsigned r = 0; r < rounds; r++) {
		struct call calls[2];

		for (unsigned i = 0; i < 2; i++) {
			batches[i].round = r;
			calls[i] = (struct call){ .loop = b->loops[i], .fn = batch_run,
						  .arg = &batches[i] };
		}
		assert_int_equal(call_all(calls, 2), 0);
		check.round = r;
		assert_int_equal(loop_call(b->loops[0], check_run, &check), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		free(batches[i].data);
	free(batches);
	return check.bad;
}

static unsigned threads_overlap(enum loop_backend backend, bool leave_lock_out, unsigned rounds)
{
	struct loop_thread r[2];
	char path[32];
	struct bed b = { .nloops = 2, .leave_lock_out = leave_lock_out,
			 .opts = { .path = path, .fd = -1, .cache = FILE_CACHE_NONE,
				   .writable = true, .discard = true } };
	unsigned bad;

	close(temp_file(DISK * 4, path));
	for (unsigned i = 0; i < 2; i++) {
		runner_start(&r[i], backend);
		b.loops[i] = r[i].loop;
	}
	assert_int_equal(loop_call(b.loops[0], bed_open, &b), 0);
	assert_int_equal(loop_call(b.loops[1], bed_open_second, &b), 0);
	bad = overlap(&b, rounds);
	assert_int_equal(loop_call(b.loops[1], bed_close_second, &b), 0);
	assert_int_equal(loop_call(b.loops[0], bed_close, &b), 0);
	for (unsigned i = 0; i < 2; i++)
		loop_thread_stop(&r[i]);
	unlink(path);
	return bad;
}

static void k1_no_write_of_any_loop_is_lost(void **state)
{
	if (has_backend(LOOP_URING))
		assert_int_equal(threads_overlap(LOOP_URING, false, 30), 0);
	assert_int_equal(threads_overlap(LOOP_POSIX, false, 30), 0);
}

static void k1_without_the_lock_writes_are_lost(void **state)
{
	assert_true(threads_overlap(LOOP_POSIX, true, 30) > 0);
}

/* ---- owned: writers that share blocks, but no bytes ---- */

struct writer {
	struct task task;
	struct chan *ch;
	struct prng prng;
	unsigned id, ops;
	unsigned *left;
	struct fiber *waiter;
	const uint32_t *bounds;         /* CHUNKS + 1; chunk i belongs to writer i % WRITERS */
	uint8_t *model;                 /* the whole disk; only our chunks are touched */
	int res;
};

/* Writes or zeroes a random part of a chunk of ours. */
static int writer_op(struct writer *w)
{
	unsigned c = (unsigned)prng_below(&w->prng, CHUNKS / WRITERS) * WRITERS + w->id;
	uint64_t room = w->bounds[c + 1] - w->bounds[c];
	uint64_t off = prng_below(&w->prng, room);
	uint64_t len = 1 + prng_below(&w->prng, room - off);
	uint8_t *data = w->model + w->bounds[c] + off;
	unsigned what = (unsigned)prng_below(&w->prng, 8);

	off += w->bounds[c];
	if (what == 0) {
		memset(data, 0, len);
		return submit_wait(w->ch, REQ_ZERO, off, len, REQ_MAY_UNMAP);
	}
	if (what == 1) {
		memset(data, 0, len);
		return submit_wait(w->ch, REQ_ZERO, off, len, 0);
	}
	fill(&w->prng, data, len);
	return chan_write_wait(w->ch, off, data, len);
}

static void writer_task(struct task *t)
{
	struct writer *w = container_of(t, struct writer, task);

	for (unsigned i = 0; i < w->ops && !w->res; i++)
		w->res = writer_op(w);
	if (!--*w->left)
		fiber_wake(w->waiter);
}

struct owned {
	struct bed *bed;
	unsigned loop;                  /* index */
	unsigned first, end;            /* of writers */
	struct writer *writers;
};

/* In a fiber: runs some of the writers, each in a fiber, and waits for them. */
static int owned_run(void *arg)
{
	struct owned *o = arg;
	unsigned left = o->end - o->first;
	int res = 0;

	for (unsigned i = o->first; i < o->end; i++) {
		struct writer *w = &o->writers[i];

		w->ch = o->bed->ch[o->loop];
		w->left = &left;
		w->waiter = fiber_self();
		w->task.fn = writer_task;
		fiber_start(o->bed->loops[o->loop], &w->task);
	}
	while (left)
		fiber_park();
	for (unsigned i = o->first; i < o->end; i++)
		res = res ? res : o->writers[i].res;
	return res;
}

struct owned_test {
	struct writer writers[WRITERS];
	uint32_t bounds[CHUNKS + 1];
	uint8_t model[DISK], disk[DISK];
};

static struct owned_test *owned_new(uint64_t seed, unsigned ops)
{
	struct owned_test *t = calloc(1, sizeof(*t));
	struct prng p = { seed };

	for (unsigned i = 1; i < CHUNKS; i++)
		t->bounds[i] = t->bounds[i - 1] + 1 +
			       (uint32_t)prng_below(&p, i % 4 ? 700 : 2 * DISK / CHUNKS);
	t->bounds[CHUNKS] = DISK;
	assert_true(t->bounds[CHUNKS - 1] < DISK);
	for (unsigned i = 0; i < WRITERS; i++)
		t->writers[i] = (struct writer){ .id = i, .prng.state = seed * WRITERS + i,
						 .bounds = t->bounds, .model = t->model,
						 .ops = ops };
	return t;
}

struct compare {
	struct bed *bed;
	struct owned_test *t;
};

static int compare_run(void *arg)
{
	struct compare *c = arg;
	int rc = chan_read_wait(c->bed->ch[0], 0, c->t->disk, DISK);

	return rc ? rc : memcmp(c->t->disk, c->t->model, DISK) != 0;
}

/* Opens and closes a chan of a third loop all the time. */
struct visitor {
	struct bed *bed;
	unsigned visits;
};

static int visitor_run(void *arg)
{
	struct visitor *v = arg;

	for (unsigned i = 0; i < v->visits; i++) {
		struct chan *ch;
		char buf[512];
		int rc = chan_get_wait(v->bed->node, &ch, NULL);

		if (!rc)
			rc = chan_read_wait(ch, 0, buf, sizeof(buf));
		if (rc)
			return rc;
		chan_put_wait(ch);
	}
	return 0;
}

static void threads_owned(enum loop_backend backend)
{
	struct loop_thread r[3];
	char path[32];
	struct bed b = { .nloops = 2,
			 .opts = { .path = path, .fd = -1, .cache = FILE_CACHE_NONE,
				   .writable = true, .discard = true } };
	struct owned_test *t = owned_new(1, 60);
	struct owned o[2] = { { &b, 0, 0, 2, t->writers }, { &b, 1, 2, WRITERS, t->writers } };
	struct visitor v = { &b, 30 };
	struct compare c = { &b, t };

	close(temp_file(DISK - 300, path));
	for (unsigned i = 0; i < 3; i++)
		runner_start(&r[i], backend);
	b.loops[0] = r[0].loop;
	b.loops[1] = r[1].loop;
	assert_int_equal(loop_call(b.loops[0], bed_open, &b), 0);
	assert_int_equal(loop_call(b.loops[1], bed_open_second, &b), 0);

	struct call calls[3] = { { .loop = r[0].loop, .fn = owned_run, .arg = &o[0] },
				 { .loop = r[1].loop, .fn = owned_run, .arg = &o[1] },
				 { .loop = r[2].loop, .fn = visitor_run, .arg = &v } };

	assert_int_equal(call_all(calls, 3), 0);
	assert_int_equal(loop_call(b.loops[0], compare_run, &c), 0);
	assert_int_equal(loop_call(b.loops[1], bed_close_second, &b), 0);
	assert_int_equal(loop_call(b.loops[0], bed_close, &b), 0);
	for (unsigned i = 0; i < 3; i++)
		loop_thread_stop(&r[i]);
	unlink(path);
	free(t);
}

static void k3_chans_come_and_go_beside_locks(void **state)
{
	if (has_backend(LOOP_URING))
		threads_owned(LOOP_URING);
	threads_owned(LOOP_POSIX);
}

/* ---- simulated ---- */

struct sim_run {
	struct bed bed;
	struct owned owned;
	struct compare compare;
	size_t hog;                     /* bytes of the loop's buffers that are taken away */
};

static int sim_body(void *arg)
{
	struct sim_run *s = arg;
	struct iobufs *pool = loop_iobufs(s->bed.loops[0]);
	void *hog = NULL;
	int rc = bed_open(&s->bed);

	if (rc)
		return -1;
	if (s->hog)
		hog = iobuf_get(pool, s->hog);
	rc = owned_run(&s->owned);
	if (hog)
		iobuf_put(pool, hog, s->hog);
	rc = rc ? rc : compare_run(&s->compare);
	bed_close(&s->bed);
	return rc;
}

static int no_allocate(void *arg, const struct io *io)
{
	return io->op == IO_ALLOCATE ? -EOPNOTSUPP : 0;
}

/* True if the disk is as the writers left it. */
static bool sim_owned(uint64_t seed, bool leave_lock_out, bool is_poor)
{
	struct loop_opts lo = { .backend = LOOP_SIM, .sim_seed = seed,
				.iobuf_budget = is_poor ? 1 << 20 : 0 };
	struct owned_test *t = owned_new(seed, 100);
	struct sim_run s = { .hog = is_poor ? 1 << 20 : 0 };
	struct loop *l;
	int fd, rc;

	assert_int_equal(loop_new(&lo, &l, NULL), 0);
	fd = sim_file_new(l, 0);
	if (is_poor)
		sim_set_fault(l, no_allocate, NULL);
	s.bed = (struct bed){ .loops = { l }, .nloops = 1, .leave_lock_out = leave_lock_out,
			      .opts = { .path = "sim", .fd = fd, .cache = FILE_CACHE_NONE,
					.writable = true, .discard = true, .sim = true } };
	s.owned = (struct owned){ &s.bed, 0, 0, WRITERS, t->writers };
	s.compare = (struct compare){ &s.bed, t };
	rc = loop_call(l, sim_body, &s);
	assert_true(rc >= 0);
	sim_file_free(l, fd);
	loop_free(l);
	free(t);
	return rc == 0;
}

static void k1_simulated_writers_that_share_blocks(void **state)
{
	for (uint64_t seed = 1; seed <= 60; seed++)
		if (!sim_owned(seed, false, false))
			fail_msg("seed %llu", (unsigned long long)seed);
}

static void k1_simulated_without_the_lock_finds_damage(void **state)
{
	unsigned bad = 0;

	for (uint64_t seed = 1; seed <= 10; seed++)
		bad += !sim_owned(seed, true, false);
	assert_true(bad > 0);
}

/* Neither buffers of the loop nor fallocate: all goes through the reserve, and still ends. */
static void k2_without_buffers_all_requests_finish(void **state)
{
	for (uint64_t seed = 1; seed <= 20; seed++)
		if (!sim_owned(seed, false, true))
			fail_msg("seed %llu", (unsigned long long)seed);
}

/* ---- order ---- */

enum { LOCKERS = 24 };

struct locker {
	struct task task;
	struct file_node *fn;
	uint64_t off, end;
	unsigned *granted, rank;        /* how many were granted before it */
	unsigned *inside, *left;
	struct fiber *waiter;
};

static void locker_task(struct task *t)
{
	struct locker *k = container_of(t, struct locker, task);
	struct range_lock lk;

	file_range_lock_wait(k->fn, &lk, k->off, k->end);
	k->rank = (*k->granted)++;
	++*k->inside;
	assert_true(*k->inside <= RANGE_LOCKS_MAX);
	fiber_sleep_wait(1000);
	--*k->inside;
	file_range_unlock_wait(k->fn, &lk);
	if (!--*k->left)
		fiber_wake(k->waiter);
}

static int order_body(void *arg)
{
	struct bed *b = arg;
	struct locker ks[LOCKERS];
	unsigned granted = 0, inside = 0, left = LOCKERS;
	struct prng p = { 3 };

	assert_int_equal(bed_open(b), 0);
	for (unsigned i = 0; i < LOCKERS; i++) {
		uint64_t off = prng_below(&p, 64) * 512;

		ks[i] = (struct locker){ .task.fn = locker_task, .fn = as_file(b->node),
					 .off = off, .end = off + (i % 8 ? 512 : 8192),
					 .granted = &granted, .inside = &inside, .left = &left,
					 .waiter = fiber_self() };
		fiber_start(b->loops[0], &ks[i].task);
	}
	while (left)
		fiber_park();
	for (unsigned i = 0; i < LOCKERS; i++)
		for (unsigned k = i + 1; k < LOCKERS; k++)
			if (ks[i].off < ks[k].end && ks[k].off < ks[i].end)
				assert_true(ks[i].rank < ks[k].rank);
	bed_close(b);
	return 0;
}

static void k4_overlapping_locks_are_granted_in_order(void **state)
{
	struct loop *l = new_loop(LOOP_SIM, 1);
	int fd = sim_file_new(l, DISK);
	struct bed b = { .loops = { l }, .nloops = 1,
			 .opts = { .path = "sim", .fd = fd, .cache = FILE_CACHE_NONE,
				   .writable = true, .sim = true } };

	assert_int_equal(loop_call(l, order_body, &b), 0);
	sim_file_free(l, fd);
	loop_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(k1_simulated_writers_that_share_blocks),
		cmocka_unit_test(k1_simulated_without_the_lock_finds_damage),
		cmocka_unit_test(k2_without_buffers_all_requests_finish),
		cmocka_unit_test(k4_overlapping_locks_are_granted_in_order),
		cmocka_unit_test(k1_no_write_of_any_loop_is_lost),
		cmocka_unit_test(k1_without_the_lock_writes_are_lost),
		cmocka_unit_test(k3_chans_come_and_go_beside_locks),
	};

	return cmocka_run_group_tests(tests, setup_workers, teardown_workers);
}
