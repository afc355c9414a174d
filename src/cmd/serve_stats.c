/* SPDX-License-Identifier: MIT */
#include "cmd/serve_stats.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bits.h"
#include "cmd/serve.h"
#include "export/nbd/nbd.h"
#include "export/vub/vub.h"

enum { LINE_MAX_BYTES = 512, COLUMNS_DEFAULT = 80 };

int serve_stats_init(struct serve_stats *st, const struct serve *s, uint64_t now_ns)
{
	*st = (struct serve_stats) { .before_ns = now_ns, .is_tty = isatty(STDOUT_FILENO) };
	st->before = calloc(s->opts->nimages, sizeof(*st->before));
	if (!st->before)
		return -ENOMEM;
	for (unsigned i = 0; i < s->opts->nimages; i++)
		port_get_stats(s->disks[i].port, &st->before[i]);
	return 0;
}

void serve_stats_fini(struct serve_stats *st)
{
	free(st->before);
	st->before = NULL;
}

static double per_second(uint64_t before, uint64_t now, uint64_t interval_ns)
{
	return interval_ns ? (double)(now - before) * NS_PER_SEC / (double)interval_ns : 0;
}

/* What all requests of the interval took, on average. */
static double mean_latency_us(const struct port_stats *before, const struct port_stats *now)
{
	uint64_t ops = 0;

	for (unsigned k = 0; k < REQ_KINDS; k++)
		ops += now->ops[k] - before->ops[k];
	return ops ? (double)(now->latency_ns - before->latency_ns) / (double)ops / 1e3 : 0;
}

char *serve_stats_line(const char *name, const struct port_stats *before,
		       const struct port_stats *now, uint64_t interval_ns, char *buf, size_t n)
{
	const uint64_t *ops = now->ops, *ops0 = before->ops;
	const uint64_t *bytes = now->bytes, *bytes0 = before->bytes;

	snprintf(buf, n,
		 "%-16s read %7.0f/s %7.1f MB/s  write %7.0f/s %7.1f MB/s  "
		 "%7.0f us  %4llu in flight%s", name,
		 per_second(ops0[REQ_READ], ops[REQ_READ], interval_ns),
		 per_second(bytes0[REQ_READ], bytes[REQ_READ], interval_ns) / 1e6,
		 per_second(ops0[REQ_WRITE], ops[REQ_WRITE], interval_ns),
		 per_second(bytes0[REQ_WRITE], bytes[REQ_WRITE], interval_ns) / 1e6,
		 mean_latency_us(before, now), (unsigned long long)now->in_flight,
		 now->errors != before->errors ? "  ERRORS" : "");
	return buf;
}

/* A line that wrapped could not be drawn over. */
static unsigned columns(void)
{
	struct winsize ws;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) < 0 || !ws.ws_col)
		return COLUMNS_DEFAULT;
	return ws.ws_col;
}

static void put_line(struct serve_stats *st, const char *line)
{
	if (st->is_tty)
		printf("\r\033[K%.*s\n", (int)columns() - 1, line);
	else
		puts(line);
	st->drawn++;
}

/* How many virtual machines there are, where there may be any. */
static void show_machines(struct serve_stats *st, const struct serve *s)
{
	uint64_t now = 0, total = 0, logged = 0;
	char line[LINE_MAX_BYTES];
	bool is_any = false;

	for (unsigned i = 0; i < s->opts->nimages; i++) {
		struct vub_stats vs;

		if (!s->disks[i].vub)
			continue;
		vub_get_stats(s->disks[i].vub, &vs);
		is_any = true;
		now += vs.sessions;
		total += vs.sessions_total;
		logged += vs.logged;
	}
	if (!is_any)
		return;
	snprintf(line, sizeof(line), "%-16s %llu now, %llu since the start, %llu pages logged",
		 "machines", (unsigned long long)now, (unsigned long long)total,
		 (unsigned long long)logged);
	put_line(st, line);
}

void serve_stats_show(struct serve_stats *st, const struct serve *s, uint64_t now_ns)
{
	struct nbd_server_stats server;
	char line[LINE_MAX_BYTES];

	if (st->is_tty && st->drawn)
		printf("\033[%uA", st->drawn);
	st->drawn = 0;
	for (unsigned i = 0; i < s->opts->nimages; i++) {
		struct port_stats now;

		port_get_stats(s->disks[i].port, &now);
		put_line(st, serve_stats_line(s->disks[i].image->name, &st->before[i], &now,
					      now_ns - st->before_ns, line, sizeof(line)));
		st->before[i] = now;
	}
	st->before_ns = now_ns;
	show_machines(st, s);
	if (!s->server) {
		fflush(stdout);
		return;
	}
	nbd_server_get_stats(s->server, &server);
	snprintf(line, sizeof(line), "%-16s %llu now, %llu since the start", "connections",
		 (unsigned long long)server.connections,
		 (unsigned long long)server.connections_total);
	put_line(st, line);
	fflush(stdout);
}
