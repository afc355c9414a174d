/* SPDX-License-Identifier: MIT */
/* bench/two-loops.c - how one image scales with loops: each reads the whole image on its own
 * thread, through one port, as two queues of a guest would.
 *
 *	two-loops [--loops N] [--depth N] [--count N] [--size BYTES] [--cache MODE]
 *		  [--random] FILE
 *
 * --count and --depth are of each loop; --random reads random places. FILE may be vhost-user:SOCK,
 * which has to have a queue for each loop. Prints a JSON line. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/port.h"
#include "ctl/graph.h"
#include "fmt/qcow2/qcow2.h"
#include "job/bench.h"
#include "loop/loop_thread.h"
#include "loop/work.h"

struct disk {
	struct graph_opts opts;
	struct graph graph;
	struct port *port;
	struct bench_opts bench;
	struct err err;
};

/* One of the loops, and the thread that waits for it. */
struct reader {
	struct disk *disk;
	struct loop_thread loop;
	pthread_t waiter;
	uint64_t ns;
	int res;
};

static void die(const char *what, int rc)
{
	fprintf(stderr, "two-loops: %s: %s\n", what, strerror(-rc));
	exit(1);
}

static double cpu_seconds(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
	       (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

static int open_wait(void *arg)
{
	struct disk *d = arg;
	int rc = graph_open_wait(&d->opts, loop_current(), &d->graph, &d->err);

	return rc ? rc : port_new(d->graph.top, true, &d->port, &d->err);
}

static int open_port_wait(void *arg)
{
	struct disk *d = arg;

	return port_open_wait(d->port, &d->err);
}

static int close_port_wait(void *arg)
{
	struct disk *d = arg;

	port_close_wait(d->port);
	return 0;
}

static int close_wait(void *arg)
{
	struct disk *d = arg;

	port_free(d->port);
	return graph_close_wait(&d->graph, NULL);
}

static int read_wait(void *arg)
{
	struct reader *r = arg;

	return bench_run_wait(port_here(r->disk->port), &r->disk->bench, &r->ns);
}

static void *wait_for_reader(void *arg)
{
	struct reader *r = arg;

	r->res = loop_call(r->loop.loop, read_wait, r);
	return NULL;
}

static void start_loops(struct reader *readers, unsigned n, struct workers *workers,
			struct disk *d)
{
	for (unsigned i = 0; i < n; i++) {
		struct loop_opts lo = { .backend = LOOP_AUTO, .workers = workers };
		struct loop *l;
		int rc = loop_new(&lo, &l, &d->err);

		if (!rc)
			rc = loop_thread_start(&readers[i].loop, l, "reader", &d->err);
		readers[i].disk = d;
		if (!rc && !i)
			rc = loop_call(l, open_wait, d);
		if (!rc)
			rc = loop_call(l, open_port_wait, d);
		if (rc)
			die(d->err.text, rc);
	}
}

/* All at once; the time of the slowest. */
static uint64_t read_all(struct reader *readers, unsigned n)
{
	uint64_t ns = 0;

	for (unsigned i = 0; i < n; i++)
		if (pthread_create(&readers[i].waiter, NULL, wait_for_reader, &readers[i]))
			die("cannot start a thread", -EAGAIN);
	for (unsigned i = 0; i < n; i++) {
		pthread_join(readers[i].waiter, NULL);
		if (readers[i].res)
			die("read", readers[i].res);
		ns = MAX(ns, readers[i].ns);
	}
	return ns;
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (!n || *end)
		die(text, -EINVAL);
	return n;
}

static unsigned parse(int argc, char **argv, struct disk *d)
{
	uint64_t loops = 2;

	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--random")) {
			d->bench.random = true;
			continue;
		}
		if (argv[i][0] != '-')
			d->opts.path = argv[i];
		else if (!strcmp(argv[i], "--loops"))
			loops = number(value);
		else if (!strcmp(argv[i], "--depth"))
			d->bench.depth = number(value);
		else if (!strcmp(argv[i], "--count"))
			d->bench.count = number(value);
		else if (!strcmp(argv[i], "--size"))
			d->bench.len = d->bench.step = number(value);
		else if (strcmp(argv[i], "--cache") ||
			 file_cache_parse(value, &d->opts.cache, NULL))
			die(argv[i], -EINVAL);
		i += argv[i][0] == '-';
	}
	if (!d->opts.path || loops >= LOOPS_MAX)
		die("usage", -EINVAL);
	return (unsigned)loops;
}

int main(int argc, char **argv)
{
	struct disk d = {
		.opts = { .read_only = true, .cache_bytes = QCOW2_CACHE_BUDGET_DEFAULT },
		.bench = { .count = 500000, .depth = 32, .len = 4096, .step = 4096, .drain = true },
	};
	struct reader readers[LOOPS_MAX] = { 0 };
	unsigned n = parse(argc, argv, &d);
	struct workers *workers;
	uint64_t ns, ops = n * d.bench.count;
	double cpu;

	if (workers_new(0, &workers, &d.err))
		die(d.err.text, -ENOMEM);
	start_loops(readers, n, workers, &d);
	cpu = cpu_seconds();
	ns = read_all(readers, n);
	cpu = cpu_seconds() - cpu;
	for (unsigned i = 0; i < n; i++)
		loop_call(readers[i].loop.loop, close_port_wait, &d);
	loop_call(readers[0].loop.loop, close_wait, &d);
	for (unsigned i = 0; i < n; i++)
		loop_thread_stop(&readers[i].loop);
	workers_free(workers);
	printf("{\"loops\": %u, \"ops\": %llu, \"seconds\": %.4f, \"cpu\": %.4f, "
	       "\"ops_per_s\": %.0f, \"ops_per_cpu\": %.0f}\n", n, (unsigned long long)ops,
	       (double)ns / NS_PER_SEC, cpu, (double)ops * NS_PER_SEC / (double)ns,
	       (double)ops / cpu);
	return 0;
}
