/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/test_mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/prng.h"

struct test_mem_chan {
	struct chan ch;
	struct prng prng;
};

static bool fails(struct test_mem *m, const struct req *req)
{
	if (m->fail_kinds && !(m->fail_kinds >> req->kind & 1))
		return false;
	if (m->fail_after < 0 || m->fail_after-- > 0)
		return false;
	m->fail_after = m->fails_on ? 0 : -1;
	return true;
}

/* Two loops may grow it at a time: the size only rises. */
static void grow(struct test_mem *m, uint64_t end)
{
	uint64_t size = atomic_load(&m->node.size);

	while (end > size && !atomic_compare_exchange_weak(&m->node.size, &size, end))
		continue;
}

static void fill_read(struct test_mem *m, struct req *req)
{
	uint64_t in = req->off < m->room ? MIN(req->len, m->room - req->off) : 0;

	req_copy_to(req, 0, m->bytes + req->off, in);
	req_zero_part(req, in, req->len - in);
}

/* The first @len bytes of a COPY. */
static void copy(struct test_mem *m, const struct req *req, uint64_t len)
{
	const struct test_mem *from = (const struct test_mem *)(const void *)req->from;

	memcpy(m->bytes + req->off, from->bytes + req->from_off, len);
	grow(m, req->off + len);
}

static int effect(struct test_mem *m, struct req *req)
{
	if (req->kind == REQ_READ) {
		fill_read(m, req);
		return 0;
	}
	if (req->kind == REQ_FLUSH)
		return 0;
	if (req->kind == REQ_MAP) {
		req->map = (struct map_run){ .len = req->len, .host_off = req->off,
			.flags = MAP_DATA | MAP_PRESENT | MAP_HOST, .file = &m->node };
		return 0;
	}
	if (!range_within(req->off, req->len, m->room))
		return req->kind == REQ_DISCARD ? 0 : -ENOSPC;
	if (req->kind == REQ_WRITE)
		req_copy_from(req, 0, m->bytes + req->off, req->len);
	else if (req->kind == REQ_COPY)
		copy(m, req, req->len);
	else
		memset(m->bytes + req->off, 0, req->len);
	if (req->kind != REQ_DISCARD)
		grow(m, req->off + req->len);
	return 0;
}

static int take_effect(struct test_mem *m, struct req *req)
{
	m->ops[req->kind]++;
	if (fails(m, req)) {
		if (req->kind == REQ_COPY && range_within(req->off, req->len, m->room))
			copy(m, req, req->len / 2);
		return m->fail_with ? m->fail_with : -EIO;
	}
	if (m->watch)
		m->watch(m->watch_arg, req);
	return effect(m, req);
}

/* It takes effect at some time and is answered at some later time. */
static void step(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct test_mem *m = container_of(req->ch->node, struct test_mem, node);
	struct test_mem_chan *mc = container_of(req->ch, struct test_mem_chan, ch);

	if (prng_below(&mc->prng, 3) == 0) {
		if (req->priv[0]) {
			req_complete(req, (int)req->priv[1]);
			return;
		}
		req->priv[0] = true;
		req->priv[1] = (uint64_t)take_effect(m, req);
	}
	loop_defer(req->ch->loop, t);
}

static void submit(struct chan *ch, struct req *req)
{
	req->ch = ch;
	req->priv[0] = false;
	req->task.fn = step;
	loop_defer(ch->loop, &req->task);
}

static void mem_free(struct node *n)
{
	struct test_mem *m = container_of(n, struct test_mem, node);

	munmap(m->bytes, m->room);
	free(m);
}

static int grow_wait(struct node *n, uint64_t size, bool is_dense)
{
	struct test_mem *m = container_of(n, struct test_mem, node);

	if (!m->can_grow)
		return -ENOTSUP;
	grow(m, size);
	return 0;
}

static const struct node_ops test_mem_ops = {
	.name = "mem", .chan_size = sizeof(struct test_mem_chan), .submit = submit,
	.free = mem_free, .grow_wait = grow_wait,
};

struct test_mem *test_mem_new(struct loop *home, uint64_t room)
{
	struct test_mem *m = calloc(1, sizeof(*m));

	/* What is not touched costs nothing, whatever malloc() is told to do. */
	m->bytes = mmap(NULL, room, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	m->room = room;
	m->fail_after = -1;
	m->node.can_discard = true;
	if (m->bytes == MAP_FAILED || node_init(&m->node, &test_mem_ops, "mem.img", home))
		abort();
	return m;
}
