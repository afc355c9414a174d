/* SPDX-License-Identifier: MIT */
/* cmd/cmd_bench.c - `byre bench`: requests of one size through an image, and how long they took. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/port.h"
#include "cmd/tool.h"
#include "ctl/image_name.h"
#include "job/bench.h"
#include "job/latency.h"

enum {
	OPT_COUNT = OPT_OWN, OPT_DEPTH, OPT_AIO, OPT_NATIVE, OPT_OFFSET, OPT_SIZE, OPT_STEP,
	OPT_WRITE, OPT_PATTERN, OPT_FLUSH_INTERVAL, OPT_NO_DRAIN, OPT_RANDOM,
	OPT_LATENCY,
};

static const struct opt opts[] = {
	TOOL_OPT_HELP,
	TOOL_OPT_QUIET,
	TOOL_OPT_FORMAT,
	TOOL_OPT_IMAGE_OPTS,
	{ 't', "cache", "CACHE", "cache mode of the image; writeback by default", OPT_CACHE },
	{ 'c', "count", "COUNT", "how many requests; 75000 by default", OPT_COUNT },
	{ 's', "buffer-size", "SIZE", "bytes of each; 4k by default", OPT_SIZE },
	{ 'd', "depth", "DEPTH", "how many are under way at a time; 64 by default", OPT_DEPTH },
	{ 'o', "offset", "OFFSET", "where the first one starts; 0 by default", OPT_OFFSET },
	{ 'S', "step-size", "STEP", "how far each starts behind the one before;\nSIZE by default",
	  OPT_STEP },
	{ 'i', "aio", "AIO", "threads, native or io_uring (native means io_uring);\n"
	  "by default io_uring where the system has it", OPT_AIO },
	{ 'n', "native", NULL, "the same as --aio native", OPT_NATIVE },
	{ 'w', "write", NULL, "write instead of reading: destroys what is there", OPT_WRITE },
	{ 0, "pattern", "BYTE", "what is written; 0 by default", OPT_PATTERN },
	{ 0, "flush-interval", "N", "flush whenever N writes are done", OPT_FLUSH_INTERVAL },
	{ 0, "no-drain", NULL, "go on writing while a flush is under way", OPT_NO_DRAIN },
	{ 0, "random", "SEED", "at random places, the same for the same SEED", OPT_RANDOM },
	{ 0, "latency", NULL, "also say how long a single request takes", OPT_LATENCY },
	TOOL_OPT_FORCE_SHARE,
	TOOL_OPT_UNTRUSTED,
};

static const struct tool_grammar bench_tool = {
	.command = "bench",
	.usage = "[OPTION]... FILENAME",
	.summary = "Sends requests of one size through an image, and says how long they took.",
	.opts = opts,
	.nopts = ARRAY_SIZE(opts),
};

struct bench_args {
	struct bench_opts o;
	struct img_opts img;
	const char *name;
	enum loop_backend backend;
	bool is_native;
	bool wants_latency;
};

/* A whole number, as QEMU reads it. */
static int number(const char *text, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 0);
	if (end == text || *end)
		return -EINVAL;
	return errno ? -ERANGE : 0;
}

static int option_number(const char *what, const char *text, uint64_t min, uint64_t max,
			 int (*parse)(const char *text, uint64_t *ret), uint64_t *ret)
{
	uint64_t n = 0;
	int rc = parse(text, &n);

	if (rc == -EINVAL)
		return tool_error("Invalid %s specified: '%s'.", what, text);
	if (rc || n < min || n > max)
		return tool_error("Invalid %s specified. Must be between %llu and %llu.", what,
				  (unsigned long long)min, (unsigned long long)max);
	*ret = n;
	return 0;
}

static int option_aio(const char *text, struct bench_args *a)
{
	if (strcmp(text, "threads") && strcmp(text, "native") && strcmp(text, "io_uring"))
		return tool_error("Invalid aio option: %s", text);
	a->is_native |= !strcmp(text, "native");
	a->backend = !strcmp(text, "threads") ? LOOP_POSIX : LOOP_URING;
	return 0;
}

static int option_cache(const char *text, struct bench_args *a)
{
	enum file_cache ignored;

	if (file_cache_parse(text, &ignored, NULL))
		return tool_error("Invalid cache mode");
	a->img.cache = text;
	return 0;
}

/* One option; what is wrong with it was printed where this is not 0. */
static int option(int id, const char *value, struct bench_args *a)
{
	struct bench_opts *o = &a->o;
	uint64_t n = 0;
	int rc = 0;

	switch (id) {
	case OPT_CACHE:
		return option_cache(value, a);
	case OPT_COUNT:
		return option_number("request count", value, 1, INT_MAX, number, &o->count);
	case OPT_DEPTH:
		return option_number("queue depth", value, 1, INT_MAX, number, &o->depth);
	case OPT_SIZE:
		return option_number("buffer size", value, 1, INT_MAX, tool_size, &o->len);
	case OPT_STEP:
		return option_number("step size", value, 0, INT_MAX, tool_size, &o->step);
	case OPT_OFFSET:
		return option_number("offset", value, 0, INT64_MAX, tool_size, &o->off);
	case OPT_AIO:
		return option_aio(value, a);
	case OPT_NATIVE:
		return option_aio("native", a);
	case OPT_WRITE:
		a->img.writable = o->writes = true;
		break;
	case OPT_PATTERN:
		rc = option_number("pattern byte", value, 0, UINT8_MAX, number, &n);
		o->pattern = (uint8_t)n;
		break;
	case OPT_FLUSH_INTERVAL:
		return option_number("flush interval", value, 0, INT_MAX, number,
				     &o->flush_interval);
	case OPT_NO_DRAIN:
		o->drain = false;
		break;
	case OPT_RANDOM:
		o->random = true;
		return option_number("seed", value, 0, UINT64_MAX, number, &o->seed);
	case OPT_LATENCY:
		a->wants_latency = true;
		break;
	case OPT_QUIET:                 /* nothing that is said can be left out */
		break;
	default:
		return img_take_option(&a->img, id, value);
	}
	return rc;
}

/* What can be wrong with all of them together; the message was printed. */
static int check_args(const struct bench_args *a, unsigned noperands)
{
	if (noperands != 1)
		return tool_fail_usage(&bench_tool, "Expecting one image file name");
	if (!a->o.writes && a->o.flush_interval)
		return tool_error("--flush-interval is only available in write tests");
	if (a->o.flush_interval && a->o.flush_interval < a->o.depth)
		return tool_error("Flush interval can't be smaller than depth");
	if (a->o.writes && a->img.force_share)
		return tool_error("Could not open '%s': force-share=on can only be used with "
				  "read-only images", a->name);
	return 0;
}

/* EXIT_OK: go on; -1: --help was given and answered. */
static int parse(int argc, char **argv, struct bench_args *a)
{
	unsigned noperands = 0;
	const char *value;
	int id;

	tool_opts_start(&bench_tool, argc, argv);
	while ((id = tool_opts_next(&bench_tool, &value)) != OPTS_END) {
		if (id == OPT_HELP) {
			tool_help(&bench_tool);
			return -1;
		}
		if (id == OPTS_ERROR || (id != OPTS_OPERAND && option(id, value, a)))
			return EXIT_ERROR;
		if (id == OPTS_OPERAND) {
			a->name = value;
			noperands++;
		}
	}
	if (!a->o.step)
		a->o.step = a->o.len;
	return check_args(a, noperands) ? EXIT_ERROR : EXIT_OK;
}

static bool is_direct(const struct img_opts *o)
{
	enum file_cache cache = FILE_CACHE_WRITEBACK;

	if (o->cache)
		file_cache_parse(o->cache, &cache, NULL);
	return cache == FILE_CACHE_NONE || cache == FILE_CACHE_DIRECTSYNC;
}

/* QEMU's native AIO wants O_DIRECT. Ours does not, but scripts find out what is refused. */
static int check_image(const struct bench_args *a, const struct img *img)
{
	if (a->is_native && !is_direct(&a->img))
		return tool_error("Could not open '%s': aio=native was specified, but it requires "
				  "cache.direct=on, which was not specified.", a->name);
	if (a->o.writes && !strcmp(img_format(img), "raw") && !a->img.format &&
	    !a->img.image_opts && strncmp(a->name, "json:", 5) &&
	    !image_name_is_vhost_user(a->name))
		fprintf(stderr, "WARNING: Image format was not specified for '%s' and probing "
			"guessed raw.\n         Automatically detecting the format is dangerous "
			"for raw images, write operations on block 0 will be restricted.\n"
			"         Specify the 'raw' format explicitly to remove the "
			"restrictions.\n", a->name);
	return 0;
}

struct run_call {
	const struct bench_args *args;
	struct port_chan *pc;
	uint64_t ns;
};

static int run_wait(void *arg)
{
	struct run_call *c = arg;

	return bench_run_wait(c->pc, &c->args->o, &c->ns);
}

static void print_start(const struct bench_opts *o)
{
	printf("Sending %llu %s requests, %llu bytes each, %llu in parallel ",
	       (unsigned long long)o->count, o->writes ? "write" : "read",
	       (unsigned long long)o->len, (unsigned long long)o->depth);
	if (o->random)
		printf("(at random places, seed %llu)\n", (unsigned long long)o->seed);
	else
		printf("(starting at offset %llu, step size %llu)\n", (unsigned long long)o->off,
		       (unsigned long long)o->step);
	if (o->flush_interval)
		printf("Sending flush every %llu requests\n",
		       (unsigned long long)o->flush_interval);
}

static void print_latency(const struct latency *l)
{
	printf("Latency: p50 %.1f us, p99 %.1f us, p99.9 %.1f us, at most %.1f us.\n",
	       (double)latency_at(l, 500) / NS_PER_US, (double)latency_at(l, 990) / NS_PER_US,
	       (double)latency_at(l, 999) / NS_PER_US, (double)l->most_ns / NS_PER_US);
}

static int run(struct tool *t, struct bench_args *a, const struct img *img)
{
	static struct latency latency;
	struct bench_opts *o = &a->o;
	struct run_call c = { .args = a, .pc = img->pc };
	int rc;

	if (a->wants_latency)
		o->latency = &latency;
	print_start(o);
	rc = tool_run(t, run_wait, &c);
	if (rc == -ENOMEM)
		return tool_error("Cannot allocate memory for %llu requests of %llu bytes",
				  (unsigned long long)MIN(o->depth, o->count),
				  (unsigned long long)o->len);
	if (rc)
		return tool_error("Failed request: %s", strerror(-rc));
	printf("Run completed in %.3f seconds.\n", (double)c.ns / NS_PER_SEC);
	if (o->latency)
		print_latency(o->latency);
	return EXIT_OK;
}

int cmd_bench(int argc, char **argv)
{
	struct bench_args a = {
		.o = { .count = 75000, .depth = 64, .len = 4096, .drain = true },
		.backend = LOOP_AUTO,
	};
	struct img img = { 0 };
	struct tool t;
	int rc = parse(argc, argv, &a);

	if (rc)
		return rc < 0 ? EXIT_OK : rc;
	if (tool_start(&t, a.backend))
		return EXIT_ERROR;
	rc = EXIT_ERROR;
	if (!img_open(&t, a.name, &a.img, &img)) {
		if (!check_image(&a, &img))
			rc = run(&t, &a, &img);
		if (img_close(&img))
			rc = EXIT_ERROR;
	}
	tool_stop(&t);
	return rc;
}
