/* SPDX-License-Identifier: MIT */
/* bench/convert/compress.c - compressed writing by itself: copies a raw file into a qcow2 image
 * that is there already, cluster by cluster, compressed; zeros are left out.
 *
 *	compress [--threads N] [--depth N] [--cache MODE] [--level N] [--small-window]
 *		 [--cluster BYTES] RAW IMAGE
 *
 * Prints a JSON line: seconds, with the flush and the close, and processor seconds. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/zero.h"
#include "blk/port.h"
#include "ctl/graph.h"
#include "fmt/qcow2/qcow2.h"
#include "loop/work.h"

enum { DEPTH_MAX = 256 };

struct copy;

struct stream {
	struct task task;
	struct copy *copy;
	uint8_t *buf;
	struct req req;
	struct fiber *fiber;
	bool is_done;
	int res;
};

struct copy {
	struct loop *loop;
	struct graph_opts from_opts, to_opts;
	struct graph from, to;
	struct port *in, *out;
	uint64_t size, cluster;
	uint64_t next;                  /* the offset that is read next, */
	uint64_t turn;                  /* and the one that is written next: in order */
	struct fiber_queue turned;
	struct stream streams[DEPTH_MAX];
	unsigned depth, running;
	struct fiber *waiter;
	struct err err;
	int res;
};

static void die(const char *what, int rc)
{
	fprintf(stderr, "compress: %s: %s\n", what, strerror(-rc));
	exit(1);
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu_seconds(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
	       (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

static void answered(struct req *req, int res)
{
	struct stream *s = container_of(req, struct stream, req);

	s->res = res;
	s->is_done = true;
	fiber_wake(s->fiber);
}

static void submit(struct stream *s, struct port *port, enum req_kind kind, uint64_t off,
		   const struct iovec *iov)
{
	s->is_done = false;
	s->fiber = fiber_self();
	s->req = (struct req){ .done = answered, .kind = (uint8_t)kind, .off = off, .iov = iov,
			       .flags = kind == REQ_WRITE ? REQ_COMPRESSED : 0,
			       .len = iov ? iov->iov_len : 0, .iovcnt = !!iov };
	port_submit(port_here(port), &s->req);
}

static int answer_wait(const struct stream *s)
{
	while (!s->is_done)
		fiber_park();
	return s->res;
}

static int copy_one_wait(struct stream *s, uint64_t off)
{
	struct copy *c = s->copy;
	struct iovec iov = { s->buf, MIN(c->cluster, c->size - off) };
	bool is_zero;
	int rc;

	submit(s, c->in, REQ_READ, off, &iov);
	rc = answer_wait(s);
	if (rc)
		return rc;
	is_zero = bytes_are_zero(s->buf, iov.iov_len);
	while (c->turn != off)
		fiber_queue_wait(&c->turned);
	if (!is_zero)
		submit(s, c->out, REQ_WRITE, off, &iov);
	c->turn += iov.iov_len;
	fiber_queue_wake(&c->turned);
	return is_zero ? 0 : answer_wait(s);
}

static void stream_fiber(struct task *t)
{
	struct stream *s = container_of(t, struct stream, task);
	struct copy *c = s->copy;

	while (c->next < c->size && !c->res) {
		uint64_t off = c->next;
		int rc;

		c->next += MIN(c->cluster, c->size - off);
		rc = copy_one_wait(s, off);
		if (rc)
			die("copy", rc);
	}
	if (!--c->running)
		fiber_wake(c->waiter);
}

static int open_wait(void *arg)
{
	struct copy *c = arg;
	int rc = graph_open_wait(&c->from_opts, c->loop, &c->from, &c->err);

	if (!rc)
		rc = graph_open_wait(&c->to_opts, c->loop, &c->to, &c->err);
	if (!rc)
		rc = port_new(c->from.top, true, &c->in, &c->err);
	if (!rc)
		rc = port_new(c->to.top, false, &c->out, &c->err);
	if (!rc)
		rc = port_open_wait(c->in, &c->err);
	if (!rc)
		rc = port_open_wait(c->out, &c->err);
	c->size = rc ? 0 : atomic_load(&c->from.top->size);
	return rc;
}

static int copy_wait(void *arg)
{
	struct copy *c = arg;
	struct stream *s = &c->streams[0];
	int rc;

	c->waiter = fiber_self();
	c->running = c->depth;
	for (unsigned i = 0; i < c->depth; i++) {
		c->streams[i].copy = c;
		c->streams[i].task.fn = stream_fiber;
		c->streams[i].buf = aligned_alloc(4096, c->cluster);
		if (!c->streams[i].buf)
			die("buffers", -ENOMEM);
		fiber_start(c->loop, &c->streams[i].task);
	}
	while (c->running)
		fiber_park();
	submit(s, c->out, REQ_FLUSH, 0, NULL);
	rc = answer_wait(s);
	for (unsigned i = 0; i < c->depth; i++)
		free(c->streams[i].buf);
	return rc;
}

static int close_wait(void *arg)
{
	struct copy *c = arg;
	int rc;

	port_close_wait(c->in);
	port_close_wait(c->out);
	port_free(c->in);
	port_free(c->out);
	rc = graph_close_wait(&c->to, &c->err);
	graph_close_wait(&c->from, NULL);
	return rc;
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (!n || *end)
		die(text, -EINVAL);
	return n;
}

static unsigned parse(int argc, char **argv, struct copy *c)
{
	uint64_t threads = 0;
	int i = 1;

	for (; i < argc && argv[i][0] == '-'; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--small-window")) {
			c->to_opts.deflate_small_window = true;
			continue;
		}
		if (!strcmp(argv[i], "--threads"))
			threads = number(value);
		else if (!strcmp(argv[i], "--depth"))
			c->depth = (unsigned)MIN(number(value), (uint64_t)DEPTH_MAX);
		else if (!strcmp(argv[i], "--level"))
			c->to_opts.compression_level = (int)number(value);
		else if (!strcmp(argv[i], "--cluster"))
			c->cluster = number(value);
		else if (strcmp(argv[i], "--cache") ||
			 file_cache_parse(value, &c->to_opts.cache, NULL))
			die(argv[i], -EINVAL);
		i++;
	}
	if (i + 2 != argc)
		die("usage", -EINVAL);
	c->from_opts.path = argv[i];
	c->to_opts.path = argv[i + 1];
	return (unsigned)threads;
}

int main(int argc, char **argv)
{
	static struct copy c = {
		.from_opts = { .format = "raw", .read_only = true },
		.to_opts = { .format = "qcow2", .cache_bytes = QCOW2_CACHE_BUDGET_DEFAULT },
		.depth = 32, .cluster = 64 << 10,
	};
	unsigned threads = parse(argc, argv, &c);
	struct loop_opts lo = { .backend = LOOP_AUTO };
	struct workers *workers;
	double start;
	int rc;

	if (workers_new(threads, &workers, &c.err))
		die(c.err.text, -ENOMEM);
	lo.workers = workers;
	rc = loop_new(&lo, &c.loop, &c.err);
	start = seconds();
	if (!rc)
		rc = loop_call(c.loop, open_wait, &c);
	if (rc)
		die(c.err.text, rc);
	rc = loop_call(c.loop, copy_wait, &c);
	if (rc)
		die("flush", rc);
	rc = loop_call(c.loop, close_wait, &c);
	if (rc)
		die(c.err.text, rc);
	loop_free(c.loop);
	workers_free(workers);
	printf("{\"seconds\": %.3f, \"cpu\": %.3f}\n", seconds() - start, cpu_seconds());
	return 0;
}
