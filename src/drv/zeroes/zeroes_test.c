/* SPDX-License-Identifier: MIT */
#include "drv/zeroes/zeroes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"
#include "blk/blk.h"
#include "loop/loop_thread.h"

enum { BUFFER = 8192, PIECES = 5, ROUNDS = 4000 };

/* Below the filter: a node that notes what comes. */
struct peer {
	struct node node;
	uint8_t kind, flags;
	uint64_t off, len;
};

static void peer_submit(struct chan *ch, struct req *req)
{
	struct peer *p = container_of(ch->node, struct peer, node);

	p->kind = req->kind;
	p->flags = req->flags;
	p->off = req->off;
	p->len = req->len;
	req_finish(ch, req, 0);
}

static void peer_free(struct node *n)
{
	free(container_of(n, struct peer, node));
}

static const struct node_ops peer_ops = {
	.name = "peer", .chan_size = sizeof(struct chan), .submit = peer_submit, .free = peer_free,
};

struct ctx {
	struct loop *loop;
	bool unmap;
	struct peer *peer;
	struct chan *ch;
	struct prng prng;
	unsigned zeroed, written;
};

/* A write of random pieces of @buf, one byte of which may be set, within the data or beside it. */
static void try_write(struct ctx *c, unsigned char *buf)
{
	struct iovec iov[PIECES];
	uint64_t at = prng_below(&c->prng, 64), start, len;
	unsigned n = 1 + (unsigned)prng_below(&c->prng, PIECES);
	struct req req = { .kind = REQ_WRITE, .flags = prng_below(&c->prng, 2) ? REQ_FUA : 0,
			   .off = prng_below(&c->prng, 1 << 20), .iov = iov, .iovcnt = n };
	uint8_t flags = req.flags;
	uint64_t off = req.off, total = 0, mark = prng_below(&c->prng, BUFFER);
	bool is_marked = prng_below(&c->prng, 2), is_zero;

	start = at;
	for (unsigned i = 0; i < n; i++) {
		iov[i] = (struct iovec){ buf + at, prng_below(&c->prng, 1500) };
		at += iov[i].iov_len;
		total += iov[i].iov_len;
	}
	req.iov_skip = prng_below(&c->prng, total + 1);
	req.len = len = prng_below(&c->prng, total - req.iov_skip + 1);
	start += req.iov_skip;
	buf[mark] = is_marked;
	is_zero = len && (!is_marked || mark < start || mark >= start + len);
	assert_int_equal(chan_submit_wait(c->ch, &req), 0);
	buf[mark] = 0;
	assert_int_equal(c->peer->kind, is_zero ? REQ_ZERO : REQ_WRITE);
	assert_int_equal(c->peer->flags, flags | (is_zero && c->unmap ? REQ_MAY_UNMAP : 0));
	assert_true(c->peer->off == off && c->peer->len == len);
	c->zeroed += is_zero;
	c->written += !is_zero;
}

static void others_pass(struct ctx *c, unsigned char *buf)
{
	struct iovec iov = { buf, 512 };

	for (unsigned kind = 0; kind < REQ_KINDS; kind++) {
		struct req req = { .kind = (uint8_t)kind, .len = 512, .iov = &iov, .iovcnt = 1 };

		if (kind == REQ_WRITE)
			continue;
		assert_int_equal(chan_submit_wait(c->ch, &req), 0);
		assert_int_equal(c->peer->kind, kind);
		assert_int_equal(c->peer->flags, 0);
	}
}

static int body_wait(void *arg)
{
	struct ctx *c = arg;
	unsigned char *buf = calloc(1, BUFFER);
	struct node *node;

	c->peer = calloc(1, sizeof(*c->peer));
	assert_int_equal(node_init(&c->peer->node, &peer_ops, "peer", c->loop), 0);
	c->peer->node.can_discard = true;
	c->peer->node.align = 512;
	atomic_store(&c->peer->node.size, 1 << 30);
	assert_int_equal(node_open_home_wait(&c->peer->node, NULL), 0);
	assert_int_equal(zeroes_open_wait(&c->peer->node, c->unmap, &node, NULL), 0);
	assert_true(node->can_discard && !node->zero_is_fast && node->align == 512);
	assert_int_equal(atomic_load(&node->size), 1 << 30);
	assert_int_equal(chan_get_wait(node, &c->ch, NULL), 0);
	for (unsigned i = 0; i < ROUNDS; i++)
		try_write(c, buf);
	others_pass(c, buf);
	chan_put_wait(c->ch);
	node_put_wait(node);
	free(buf);
	return 0;
}

static void run(bool unmap)
{
	struct loop_opts lo = { .backend = LOOP_SIM };
	struct ctx c = { .unmap = unmap, .prng = { 3 } };

	assert_int_equal(loop_new(&lo, &c.loop, NULL), 0);
	assert_int_equal(loop_call(c.loop, body_wait, &c), 0);
	loop_free(c.loop);
	assert_in_range(c.zeroed, ROUNDS / 4, ROUNDS);
	assert_in_range(c.written, 100, ROUNDS);
}

static void z4_only_writes_of_zeros_become_zeroes(void **state)
{
	run(false);
	run(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(z4_only_writes_of_zeros_become_zeroes),
	};

	return cmocka_run_group_tests_name("zeroes", tests, NULL, NULL);
}
