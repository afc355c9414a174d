/* SPDX-License-Identifier: MIT */
/* fuzz/session.c - an image as a file node whose requests are answered in a seeded order, on a
 * simulated loop that all inputs share.
 *
 * The node takes nothing that lies outside what drivers may ask for (B1), and says of each byte
 * what the image has there, zeros behind its end. */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/log.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/raw/raw.h"
#include "fuzz/image.h"

enum { BACKING_BYTES = 96 << 10, BACKING_CUT = 777, CACHE_BYTES = 256 << 10 };

/* ---- the file ---- */

struct mem {
	struct node node;
	const struct image *im;         /* NULL: the backing file, a pattern */
	struct prng order;
};

static void map(const struct mem *m, struct req *req)
{
	uint64_t off = req->off, end = off + req->len;
	bool is_data = !m->im;

	for (unsigned i = 0; m->im && i < m->im->n; i++) {
		const struct image_piece *pc = &m->im->pieces[i];

		if (off >= pc->off && off < pc->off + pc->len) {
			is_data = true;
			end = MIN(end, pc->off + pc->len);
		} else if (off < pc->off) {
			end = MIN(end, pc->off);
		}
	}
	if (off >= atomic_load(&m->node.size))
		is_data = false;
	req->map = (struct map_run){
		.len = end - off, .host_off = off, .file = &m->node,
		.flags = MAP_HOST | MAP_PRESENT | (is_data ? MAP_DATA : MAP_ZERO),
	};
}

static void read_backing(uint64_t off, uint8_t *bytes, uint64_t len)
{
	static uint8_t pattern[BACKING_BYTES];
	uint64_t n = off < BACKING_BYTES - BACKING_CUT ? BACKING_BYTES - BACKING_CUT - off : 0;

	for (size_t i = sizeof(pattern); !pattern[0] && i--;)
		pattern[i] = (uint8_t)(mix64(i) | 1);
	n = MIN(n, len);
	if (n)
		memcpy(bytes, pattern + off, n);
	memset(bytes + n, 0, len - n);
}

static void answer(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct mem *m = container_of(req->ch->node, struct mem, node);

	if (prng_below(&m->order, 3) == 0) {            /* later */
		loop_defer(req->ch->loop, t);
		return;
	}
	if (req->kind == REQ_MAP) {
		map(m, req);
	} else {
		uint8_t *bytes = malloc(MAX(req->len, 1ULL));

		FUZZ_CHECK(bytes, "no memory for a read of %llu bytes",
			   (unsigned long long)req->len);
		if (m->im)
			image_read(m->im, req->off, bytes, req->len);
		else
			read_backing(req->off, bytes, req->len);
		req_copy_to(req, 0, bytes, req->len);
		free(bytes);
	}
	req_complete(req, 0);
}

static void submit(struct chan *ch, struct req *req)
{
	FUZZ_CHECK(range_within(req->off, req->len, INT64_MAX), "asks for %#llx, %#llx bytes",
		   (unsigned long long)req->off, (unsigned long long)req->len);
	FUZZ_CHECK(req->kind == REQ_READ || req->kind == REQ_MAP, "kind %u", req->kind);
	req->ch = ch;
	req->task.fn = answer;
	loop_defer(ch->loop, &req->task);
}

static int allocated_wait(struct node *n, uint64_t *ret)
{
	const struct mem *m = container_of(n, struct mem, node);

	*ret = 0;
	for (unsigned i = 0; m->im && i < m->im->n; i++)
		*ret += m->im->pieces[i].len;
	return 0;
}

static void mem_free(struct node *n)
{
	free(container_of(n, struct mem, node));
}

static const struct node_ops mem_ops = {
	.name = "file", .chan_size = sizeof(struct chan), .submit = submit, .free = mem_free,
	.allocated_wait = allocated_wait,
};

static struct node *mem_new(struct session *s, const struct image *im, uint64_t order)
{
	struct mem *m = calloc(1, sizeof(*m));

	FUZZ_CHECK(m, "no memory");
	FUZZ_CHECK(!node_init(&m->node, &mem_ops, "fuzz.img", s->loop), "no memory");
	m->im = im;
	m->order.state = order;
	atomic_store(&m->node.size, im ? im->size : BACKING_BYTES - BACKING_CUT);
	FUZZ_CHECK(!node_open_home_wait(&m->node, NULL), "the file does not open");
	return &m->node;
}

/* ---- sessions ---- */

void session_note(struct session *s, const void *data, size_t n)
{
	s->hash = fuzz_hash(s->hash, data, n);
}

void session_note_result(struct session *s, int rc, const struct err *err)
{
	session_note(s, &rc, sizeof(rc));
	if (!err)
		return;
	FUZZ_CHECK(!rc || err->text[0], "error %d without a word", rc);
	FUZZ_CHECK(!rc || err->code == -rc, "error %d is said to be %d", rc, err->code);
	session_note(s, err->text, strlen(err->text));
}

static void attach(struct session *s, enum node_child which, const struct image *im)
{
	struct raw_opts raw = { 0 };
	struct node *file = mem_new(s, im, s->im->seed), *n;

	FUZZ_CHECK(!raw_open_wait(file, &raw, &n, NULL), "raw");
	FUZZ_CHECK(!node_attach_wait(s->top, which, n, NULL), "attach");
}

int session_open_wait(struct session *s, const struct qcow2_opts *opts)
{
	struct qcow2_opts o = *opts;
	struct err err = { 0 };
	int rc;

	o.cache = s->cache;
	rc = qcow2_open_wait(s->file, &o, &s->top, &err);
	session_note_result(s, rc, &err);
	if (rc)
		return rc;
	if (qcow2_needs_data_file(s->top))
		attach(s, CHILD_DATA, s->im);
	if (qcow2_backing_name(s->top))
		attach(s, CHILD_BACKING, NULL);
	return 0;
}

struct call {
	struct session *s;
	void (*fn)(struct session *s);
	uint64_t order;
};

static int run_wait(void *arg)
{
	struct call *c = arg;
	struct session *s = c->s;

	s->cache = qcow2_cache_new(CACHE_BYTES, s->loop);
	FUZZ_CHECK(s->cache, "no memory");
	s->file = mem_new(s, s->im, c->order);
	c->fn(s);
	node_put_wait(s->top ? s->top : s->file);
	qcow2_cache_free(s->cache);
	return 0;
}

static void be_silent(enum log_level level, const char *line)
{
}

static uint64_t run_once(const struct image *im, uint64_t order, void (*fn)(struct session *s))
{
	static struct loop *loop;
	struct loop_opts lo = { .backend = LOOP_SIM, .sim_seed = 1 };
	struct session s = { .im = im, .prng = { im->seed }, .hash = 0xcbf29ce484222325ULL };
	struct call c = { &s, fn, order };

	log_set_sink(be_silent);
	if (!loop)
		FUZZ_CHECK(!loop_new(&lo, &loop, NULL), "no loop");
	s.loop = loop;
	loop_call(loop, run_wait, &c);
	return s.hash;
}

void session_run(const uint8_t *data, size_t size, void (*fn)(struct session *s))
{
	struct image *im = image_unpack(data, size);
	uint64_t hash;

	if (!im)
		return;
	hash = run_once(im, 1, fn);
	if (hash % 4 == 0)
		FUZZ_CHECK(run_once(im, hash, fn) == hash, "another answer in another order");
	image_free(im);
}
