/* SPDX-License-Identifier: MIT */
/* tests/vub/writer.c - writes to a disk over vhost-user for a while and knows what must be in it,
 * while somebody kills the back end.
 *
 *	writer NAME SEED SECONDS DUMP
 *
 * NAME is what stands behind "vhost-user:", with reconnect=. Jobs write, read and compare, each in
 * a part of the disk that is its own, several under way at once. At the end all is read and
 * compared once more, and what the disk must hold is in the file DUMP. Prints the number of
 * requests. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/prng.h"
#include "blk/blk.h"
#include "drv/vub/vfe.h"
#include "loop/work.h"

enum { JOBS = 32, SECTOR = 512, LEN_MAX = 64 << 10 };

struct world {
	struct vfe_opts opts;
	struct node *node;
	struct chan *ch;
	uint64_t seed, end_ns, requests;
	uint64_t part;                  /* bytes of each job */
	uint8_t *model;
	unsigned running;
	struct fiber *waiter;
};

struct job {
	struct task task;
	struct world *w;
	struct prng prng;
	uint64_t start;
	uint8_t *buf;
};

static void die(const char *what, int rc)
{
	fprintf(stderr, "writer: %s: %s\n", what, strerror(-rc));
	exit(1);
}

static void differ(const struct job *j, uint64_t off, uint64_t len)
{
	const uint8_t *want = j->w->model + off;

	for (uint64_t i = 0; i < len; i++) {
		if (j->buf[i] == want[i])
			continue;
		fprintf(stderr, "writer: at %llu is %02x and should be %02x (a request of %llu at "
			"%llu)\n", (unsigned long long)(off + i), j->buf[i], want[i],
			(unsigned long long)len, (unsigned long long)off);
		exit(1);
	}
}

static void send_wait(struct job *j, enum req_kind kind, uint64_t off, uint64_t len)
{
	struct iovec iov = { j->buf, len };
	struct req req = { .kind = (uint8_t)kind, .off = off, .len = len, .iov = &iov,
			   .iovcnt = 1 };
	int rc = chan_submit_wait(j->w->ch, &req);

	if (rc)
		die("a request", rc);
	j->w->requests++;
}

static void step_wait(struct job *j)
{
	uint64_t sectors = 1 + prng_below(&j->prng, LEN_MAX / SECTOR), len = sectors * SECTOR;
	uint64_t room = (j->w->part - len) / SECTOR + 1;
	uint64_t off = j->start + prng_below(&j->prng, room) * SECTOR;

	switch (prng_below(&j->prng, 8)) {
	case 0:
		send_wait(j, REQ_FLUSH, 0, 0);
		break;
	case 1:
	case 2:
	case 3:
		send_wait(j, REQ_READ, off, len);
		differ(j, off, len);
		break;
	default:
		for (uint64_t i = 0; i < len; i += sizeof(uint64_t))
			memcpy(j->buf + i, &(uint64_t){ prng_next(&j->prng) }, sizeof(uint64_t));
		memcpy(j->w->model + off, j->buf, len);
		send_wait(j, REQ_WRITE, off, len);
	}
}

static void run(struct task *t)
{
	struct job *j = container_of(t, struct job, task);
	struct world *w = j->w;

	while (loop_now(w->ch->loop) < w->end_ns)
		step_wait(j);
	for (uint64_t off = 0; off < w->part; off += LEN_MAX) {
		uint64_t len = MIN(w->part - off, (uint64_t)LEN_MAX);

		send_wait(j, REQ_READ, j->start + off, len);
		differ(j, j->start + off, len);
	}
	if (!--w->running)
		fiber_wake(w->waiter);
}

static int work(void *arg)
{
	struct world *w = arg;
	struct err err = { 0 };
	static struct job jobs[JOBS];
	uint64_t size;
	int rc = vfe_open_wait(&w->opts, false, loop_current(), &w->node, &err);

	if (!rc)
		rc = chan_get_wait(w->node, &w->ch, &err);
	if (rc)
		die(err.text, rc);
	size = atomic_load(&w->node->size);
	w->part = align_down(size / JOBS, SECTOR);
	w->model = malloc(size);
	if (!w->model || w->part < LEN_MAX)
		die("the disk is too small, or too large", -EINVAL);
	rc = chan_read_wait(w->ch, 0, w->model, size);
	if (rc)
		die("what the disk has", rc);
	w->end_ns += loop_now(w->ch->loop);
	w->waiter = fiber_self();
	w->running = JOBS;
	for (unsigned i = 0; i < JOBS; i++) {
		jobs[i] = (struct job){
			.task.fn = run, .w = w, .prng = { w->seed * JOBS + i },
			.start = i * w->part, .buf = chan_memory_get(w->ch, LEN_MAX),
		};
		fiber_start(w->ch->loop, &jobs[i].task);
	}
	while (w->running)
		fiber_park();
	chan_put_wait(w->ch);
	node_put_wait(w->node);
	return (int)MIN(size >> 20, (uint64_t)INT32_MAX);
}

static void dump(const struct world *w, const char *path, size_t size)
{
	FILE *f = fopen(path, "w");

	if (!f || fwrite(w->model, size, 1, f) != 1 || fclose(f))
		die(path, -errno);
}

int main(int argc, char **argv)
{
	struct world w = { 0 };
	struct loop_opts lo = { .backend = LOOP_AUTO };
	struct workers *workers = NULL;
	struct err err = { 0 };
	struct loop *l;
	int mib;

	if (argc != 5) {
		fprintf(stderr, "usage: writer NAME SEED SECONDS DUMP\n");
		return 2;
	}
	if (vfe_opts_parse(argv[1], &w.opts, &err) || workers_new(2, &workers, &err))
		die(err.text, -err.code);
	lo.workers = workers;
	w.seed = strtoull(argv[2], NULL, 10);
	w.end_ns = strtoull(argv[3], NULL, 10) * NS_PER_SEC;
	if (loop_new(&lo, &l, &err))
		die(err.text, -err.code);
	mib = loop_call(l, work, &w);
	dump(&w, argv[4], (size_t)mib << 20);
	printf("%llu requests\n", (unsigned long long)w.requests);
	loop_free(l);
	workers_free(workers);
	vfe_opts_fini(&w.opts);
	free(w.model);
	return 0;
}
