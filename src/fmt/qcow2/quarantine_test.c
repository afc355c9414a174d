/* SPDX-License-Identifier: MIT */
/* What is freed rests: until the commit, until requests have ended, one reference at a time; and
 * what a failed commit or damage does to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>

#include "base/log.h"
#include "blk/port.h"
#include "fmt/qcow2/test_image.h"

enum { BITS = 9, CLUSTER = 1 << BITS, ROOM = 16 << 20 };

static void open_wait(struct test_image *im, struct loop *l, uint64_t broken)
{
	test_image_make(im, l, BITS, 4, ROOM);
	im->broken = broken;
	assert_int_equal(test_image_open_wait(im), 0);
}

static void close_wait(struct test_image *im)
{
	assert_int_equal(test_image_close_wait(im), 0);
	test_image_free_wait(im);
}

/* Other tasks and fibers run, and I/O ends. */
static void let_run(void)
{
	fiber_sleep_wait(NS_PER_MS);
	for (int i = 0; i < 100; i++)
		fiber_yield_wait();
}

/* A node that keeps what it is sent. */
struct slow {
	struct node node;
	struct req *req;
};

static void slow_submit(struct chan *ch, struct req *req)
{
	container_of(ch->node, struct slow, node)->req = req;
}

static void slow_free(struct node *n)
{
}

static const struct node_ops slow_ops = {
	.name = "slow", .chan_size = sizeof(struct chan), .submit = slow_submit, .free = slow_free,
};

static void request_done(struct req *req, int res)
{
}

/* A request that is in flight until request_end_wait(). */
struct request {
	struct slow slow;
	struct port *port;
	struct req req;
};

static void request_begin_wait(struct request *r, struct loop *l)
{
	*r = (struct request){ .req = { .kind = REQ_FLUSH, .done = request_done } };
	assert_int_equal(node_init(&r->slow.node, &slow_ops, "slow", l), 0);
	assert_int_equal(port_new(&r->slow.node, false, &r->port, NULL), 0);
	assert_int_equal(port_open_wait(r->port, NULL), 0);
	port_submit(port_here(r->port), &r->req);
}

static void request_end_wait(struct request *r)
{
	req_finish(port_here(r->port)->ch, &r->req, 0);
	port_close_wait(r->port);
	port_free(r->port);
	node_put_wait(&r->slow.node);
}

enum stage { FREED, COMMITTED, REQUESTS_OVER, STAGES };

/* Frees a cluster that a request in flight may use; at which stage is it free, or handed out?  */
static enum stage stage_of_reuse_wait(struct loop *l, uint64_t broken, bool *ret_in_reserve)
{
	bool no_commit = broken & (BREAK_Q1_EARLY_REF_MINUS | BREAK_Q4_NO_COMMIT);
	enum stage stage, ends = no_commit ? FREED : REQUESTS_OVER;
	struct request r;
	struct test_image im;
	uint64_t c;

	open_wait(&im, l, broken);
	c = test_take_wait(&im, 1).first;
	assert_int_equal(commit_wait(&im.w->commit), 0);
	request_begin_wait(&r, l);
	alloc_free(&im.w->alloc, c, 1);
	for (stage = FREED; stage < STAGES; stage++) {
		if (stage == COMMITTED)
			assert_int_equal(commit_wait(&im.w->commit), 0);
		if (r.port && stage >= ends) {
			request_end_wait(&r);
			r.port = NULL;
		}
		let_run();
		*ret_in_reserve = im.w->alloc.runs[0].first == c;
		if (*ret_in_reserve || !test_count_wait(&im, c))
			break;
	}
	if (r.port)
		request_end_wait(&r);
	close_wait(&im);
	return stage;
}

static int q4_body(void *arg)
{
	bool in_reserve;

	assert_int_equal(stage_of_reuse_wait(arg, 0, &in_reserve), REQUESTS_OVER);
	assert_false(in_reserve);
	assert_int_equal(stage_of_reuse_wait(arg, BREAK_Q4_NO_EPOCH, &in_reserve), COMMITTED);
	assert_int_equal(stage_of_reuse_wait(arg, BREAK_Q4_NO_COMMIT, &in_reserve), FREED);
	assert_true(in_reserve);
	assert_int_equal(stage_of_reuse_wait(arg, BREAK_Q1_EARLY_REF_MINUS, &in_reserve), FREED);
	assert_false(in_reserve);
	return 0;
}

/* A commit that failed makes nothing durable: what was freed rests on. */
static int q9_body(void *arg)
{
	struct test_image im;
	struct alloc_run run;

	open_wait(&im, arg, 0);
	run = test_take_wait(&im, 3);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_free(&im.w->alloc, run.first, 3);
	im.mem->fail_kinds = 1 << REQ_FLUSH;
	im.mem->fail_after = 0;
	im.mem->fails_on = true;
	assert_int_equal(commit_wait(&im.w->commit), -EIO);
	let_run();
	assert_int_equal(test_count_wait(&im, run.first), 1);
	assert_int_equal(im.w->alloc.quarantine.clusters, 3);
	im.mem->fail_after = -1;
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	assert_int_equal(test_count_wait(&im, run.first), 0);
	assert_int_equal(im.w->alloc.quarantine.clusters, 0);
	close_wait(&im);
	return 0;
}

/* One reference at a time; the same cluster may be freed twice in one commit. */
static int shared_body(void *arg)
{
	struct test_image im;
	struct alloc_run run;

	open_wait(&im, arg, 0);
	run = test_take_wait(&im, 6);
	assert_int_equal(refs_add_wait(&im.w->refs, run.first + 2, 2, 1), 0);
	alloc_free(&im.w->alloc, run.first, 6);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	for (uint64_t i = 0; i < 6; i++)
		assert_int_equal(test_count_wait(&im, run.first + i), i == 2 || i == 3);
	assert_int_equal(refs_add_wait(&im.w->refs, run.first + 2, 2, 1), 0);
	alloc_free(&im.w->alloc, run.first + 3, 1);
	alloc_free(&im.w->alloc, run.first + 2, 2);
	alloc_free(&im.w->alloc, run.first + 2, 1);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	assert_int_equal(test_count_wait(&im, run.first + 2), 0);
	assert_int_equal(test_count_wait(&im, run.first + 3), 0);
	/* One more is damage: it is said, and nothing else happens. */
	alloc_free(&im.w->alloc, run.first + 3, 1);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	assert_true(im.w->alloc.quarantine.is_leak_logged);
	assert_int_equal(im.w->dead, 0);
	close_wait(&im);
	return 0;
}

/* Where writes are in order no commit says when something is free. */
static int held_body(void *arg)
{
	struct test_image im;
	uint64_t c;

	open_wait(&im, arg, 0);
	quarantine_hold(&im.w->alloc.quarantine);
	c = test_take_wait(&im, 1).first;
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_free(&im.w->alloc, c, 1);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	let_run();
	assert_int_equal(test_count_wait(&im, c), 1);
	assert_true(im.w->alloc.reserved > 0);
	assert_int_equal(alloc_reuse_wait(&im.w->alloc), 0);
	assert_int_equal(test_count_wait(&im, c), 0);
	assert_int_equal(im.w->alloc.reserved, 0);
	assert_int_equal(test_take_wait(&im, 1).first, c);
	/* Let go, it is not held again. */
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_free(&im.w->alloc, c, 1);
	quarantine_let_go(&im.w->alloc.quarantine);
	quarantine_hold(&im.w->alloc.quarantine);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	let_run();
	assert_int_equal(test_count_wait(&im, c), 0);
	close_wait(&im);
	return 0;
}

/* ---- space is given back ---- */

struct punches {
	struct test_image *im;
	uint64_t clusters;
	unsigned calls;
	unsigned too_late;              /* free already when it was punched */
};

static void punch_watch(void *arg, const struct req *req)
{
	struct punches *p = arg;

	if (req->kind != REQ_DISCARD)
		return;
	p->calls++;
	p->clusters += req->len / CLUSTER;
	p->too_late += p->im->w->alloc.quarantine.clusters == 0;
	for (uint64_t c = req->off / CLUSTER; c < (req->off + req->len) / CLUSTER; c++) {
		struct meta *m = &p->im->w->meta;
		uint64_t at = p->im->w->refs.table[0] + c * 2;
		struct meta_page *page = meta_try_get(m, at);

		p->too_late += !page || !meta_value(m, page, at, 2);
		if (page)
			meta_put(m, page);
	}
}

static int discard_body(void *arg)
{
	struct test_image im;
	struct punches p = { .im = &im };
	struct alloc_run run;

	test_image_make(&im, arg, BITS, 4, ROOM);
	im.discard = true;
	assert_int_equal(test_image_open_wait(&im), 0);
	im.mem->watch = punch_watch;
	im.mem->watch_arg = &p;
	run = test_take_wait(&im, 10);
	assert_int_equal(run.n, 10);
	assert_int_equal(refs_add_wait(&im.w->refs, run.first + 4, 1, 1), 0);
	alloc_free(&im.w->alloc, run.first, 10);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	assert_int_equal(p.clusters, 9);        /* the shared one is somebody's */
	assert_int_equal(p.too_late, 0);
	assert_int_equal(test_count_wait(&im, run.first + 4), 1);
	/* As compressed clusters lie: all go at once, but for the one that is still in use. */
	run = test_take_wait(&im, 8);
	assert_int_equal(run.n, 8);
	assert_int_equal(refs_add_wait(&im.w->refs, run.first + 1, 6, 1), 0);
	assert_int_equal(refs_add_wait(&im.w->refs, run.first + 3, 1, 1), 0);
	assert_int_equal(refs_add_wait(&im.w->refs, run.first + 7, 1, 1), 0);
	for (uint64_t i = 0; i < 7; i++)
		alloc_free(&im.w->alloc, run.first + i, 2);
	alloc_free(&im.w->alloc, run.first + 3, 1);
	p.clusters = p.calls = 0;
	assert_int_equal(commit_wait(&im.w->commit), 0);
	alloc_settle_wait(&im.w->alloc);
	assert_int_equal(p.clusters, 7);
	assert_int_equal(p.calls, 1);
	assert_int_equal(p.too_late, 0);
	for (uint64_t i = 0; i < 8; i++)
		assert_int_equal(test_count_wait(&im, run.first + i), i == 7);
	im.mem->watch = NULL;
	close_wait(&im);
	return 0;
}

/* ---- */

static void q4_clusters_rest_until_commit_and_requests_are_over(void **state)
{
	test_image_run(q4_body);
}

static void q9_a_failed_commit_frees_nothing(void **state)
{
	test_image_run(q9_body);
}

static void shared_clusters_lose_one_reference(void **state)
{
	test_image_run(shared_body);
}

static void x5_what_is_held_is_free_when_it_is_said(void **state)
{
	test_image_run(held_body);
}

static void q4_space_is_given_back_before_it_is_free(void **state)
{
	test_image_run(discard_body);
}

static void drop(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(q4_clusters_rest_until_commit_and_requests_are_over),
		cmocka_unit_test(q9_a_failed_commit_frees_nothing),
		cmocka_unit_test(shared_clusters_lose_one_reference),
		cmocka_unit_test(x5_what_is_held_is_free_when_it_is_said),
		cmocka_unit_test(q4_space_is_given_back_before_it_is_free),
	};

	log_set_sink(drop);
	return cmocka_run_group_tests_name("quarantine", tests, NULL, NULL);
}
