/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>

#include "base/bits.h"
#include "job/test_disk.h"

static struct mem *mem_of(const struct chan *ch)
{
	return container_of(ch->node, struct mem, node);
}

/* From another disk. */
static int copy(struct mem *m, const struct req *req)
{
	const struct mem *from = (const struct mem *)(const void *)req->from;
	bool shares = req->flags & REQ_SHARE;
	int res = shares ? m->share_res : m->copy_res;

	assert_false(shares && ((req->off | req->from_off | req->len) & (m->share_align - 1)));
	assert_true(req->from_off + req->len <= atomic_load(&req->from->size));
	memcpy(m->bytes + req->off, from->bytes + req->from_off, res ? req->len / 2 : req->len);
	m->nshared += shares;
	m->ncopied += !shares;
	return res;
}

static void answer(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct mem *m = mem_of(req->ch);
	uint64_t first = req->off / GRANULE, last = (req->off + req->len - 1) / GRANULE;

	if (prng_below(m->prng, 4)) {
		loop_defer(req->ch->loop, t);
		return;
	}
	m->reading -= req->kind == REQ_READ ? req->len : 0;
	m->nwriting -= req->kind != REQ_READ;
	m->nread += req->kind == REQ_READ ? req->len : 0;
	if (m->fails_at >= 0 && first <= (unsigned)m->fails_at && last >= (unsigned)m->fails_at) {
		req_complete(req, m->fails_with ? m->fails_with : -EIO);
		return;
	}
	if (req->kind == REQ_COPY) {
		req_complete(req, copy(m, req));
		return;
	}
	if (req->kind == REQ_READ)
		req_copy_to(req, 0, m->bytes + req->off, req->len);
	else if (req->kind == REQ_WRITE)
		req_copy_from(req, 0, m->bytes + req->off, req->len);
	else
		memset(m->bytes + req->off, 0, req->len);
	m->nwrites += req->kind != REQ_READ;
	req_complete(req, 0);
}

static void answer_map(struct chan *ch, struct req *req)
{
	static const unsigned flags[] = { MAP_ZERO, MAP_ZERO | MAP_PRESENT,
					  MAP_DATA | MAP_PRESENT | MAP_HOST };
	struct mem *m = mem_of(ch);
	unsigned granule = (unsigned)(req->off / GRANULE);
	uint64_t len = GRANULE - req->off % GRANULE;

	if ((int)granule == m->map_fails_at) {
		req_finish(ch, req, -EIO);
		return;
	}
	/* Anything from a byte on is right. */
	if (prng_below(m->prng, 3) == 0)
		len = 1 + prng_below(m->prng, len);
	req->map = (struct map_run){ .len = MIN(len, req->len), .host_off = req->off,
		.flags = flags[m->state[granule]], .file = &m->node };
	req_finish(ch, req, 0);
}

static void mem_submit(struct chan *ch, struct req *req)
{
	if (req->kind == REQ_MAP) {
		answer_map(ch, req);
		return;
	}
	if (req->kind == REQ_READ) {
		mem_of(ch)->reading += req->len;
		mem_of(ch)->reading_max = MAX(mem_of(ch)->reading_max, mem_of(ch)->reading);
	}
	mem_of(ch)->nwriting += req->kind != REQ_READ;
	if (req->flags & REQ_IN_ORDER) {
		assert_true(req->off >= mem_of(ch)->order);
		mem_of(ch)->order = req->off;
	}
	req->ch = ch;
	req->task.fn = answer;
	loop_defer(ch->loop, &req->task);
}

static void mem_free(struct node *n)
{
	/* Its test's. */
}

static uint32_t mem_share_align_wait(struct node *n, const struct node *from)
{
	struct mem *m = container_of(n, struct mem, node);

	m->nprobes++;
	return m->share_align;
}

static const struct node_ops mem_ops = {
	.name = "mem", .chan_size = sizeof(struct chan), .submit = mem_submit, .free = mem_free,
	.share_align_wait = mem_share_align_wait,
};

struct mem *mem_new(struct prng *prng, unsigned granules)
{
	struct mem *m = calloc(1, sizeof(*m));

	m->prng = prng;
	m->fails_at = m->map_fails_at = -1;
	for (unsigned i = 0; i < granules; i++) {
		m->state[i] = (uint8_t)prng_below(prng, 3);
		if (prng_below(prng, 2) && i)
			m->state[i] = m->state[i - 1];
		if (m->state[i] == 2 && prng_below(prng, 3))
			memset(m->bytes + (size_t)i * GRANULE, (int)i + 1, GRANULE);
	}
	assert_int_equal(node_init(&m->node, &mem_ops, "mem", loop_current()), 0);
	atomic_store(&m->node.size, (uint64_t)granules * GRANULE);
	assert_int_equal(node_open_home_wait(&m->node, NULL), 0);
	return m;
}

static struct port *open_port(struct mem *m, bool read_only)
{
	struct port *port;

	assert_int_equal(port_new(&m->node, read_only, &port, NULL), 0);
	assert_int_equal(port_open_wait(port, NULL), 0);
	return port;
}

struct port *port_on(struct mem *m)
{
	return open_port(m, true);
}

struct port *port_to_write_on(struct mem *m)
{
	return open_port(m, false);
}

void mem_free_wait(struct mem *m, struct port *port)
{
	port_close_wait(port);
	port_free(port);
	node_put_wait(&m->node);
	free(m);
}

void run(uint64_t seed, int (*fn)(void *arg))
{
	struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = seed };
	struct prng prng = { seed };
	struct loop *l;

	assert_int_equal(loop_new(&o, &l, NULL), 0);
	loop_call(l, fn, &prng);
	loop_free(l);
}
