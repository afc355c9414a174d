/* SPDX-License-Identifier: MIT */
/* cmd/tool.h - what the image tools share (info, map, check, compare, measure, bench, create):
 * their grammar, their errors, a loop on the main thread, an open image.
 *
 * They read as qemu-img does: options, output, messages and exit codes; called by that name byre is
 * it. A message is "NAME: text" on standard error, NAME being what the program was called by;
 * behind it the text is qemu-img's. What byre alone has to say beyond that (struct err's hint)
 * is shown only on a terminal, and not under the name of qemu-img.
 *
 * A tool looks like this:
 *
 *	int cmd_map(int argc, char **argv)
 *	{
 *		struct img_opts io = { 0 };
 *		...
 *		tool_opts_start(&map_tool, argc, argv);
 *		while ((id = tool_opts_next(&map_tool, &value)) != OPTS_END)
 *			switch (id) {
 *			case OPTS_OPERAND: ...
 *			case OPTS_ERROR: return EXIT_ERROR;          (the message was printed)
 *			case OPT_HELP: return tool_help(&map_tool);
 *			case OPT_FORMAT: io.format = value; break;
 *			case OPT_OBJECT: if (tool_object(value)) return EXIT_ERROR; break;
 *			...
 *			}
 *		if (noperands != 1)
 *			return tool_fail_usage(&map_tool, "Expecting one image file name");
 *		if (tool_start(&t, LOOP_AUTO))
 *			return EXIT_ERROR;
 *		if (!img_open(&t, name, &io, &img)) {
 *			rc = tool_run(&t, map_wait, &args);      (a fiber of t.loop)
 *			img_close(&img);
 *		}
 *		tool_stop(&t);
 *	}
 *
 * Main thread only. */
#ifndef CMD_TOOL_H
#define CMD_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cmd/cmd.h"
#include "cmd/opts.h"
#include "ctl/graph.h"
#include "loop/loop.h"

struct err;
struct node;
struct port;
struct port_chan;
struct workers;

/* ---- names and messages ---- */

/* main() says once what argv[0] is. */
void tool_set_program(const char *argv0);
bool tool_is_qemu_img(void);

/* Prints "NAME: text" (what a terminal might obey is replaced). Returns EXIT_ERROR. */
int tool_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same with "warning: " before the text. */
void tool_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* As tool_error() with err->text, and its hint where the head says. */
int tool_fail(const struct err *err);

/* ---- the command line ---- */

/* A tool's grammar. The options are `struct opt` as everywhere; --help prints them. */
struct tool_grammar {
	const char *command;            /* "map" */
	const char *usage;              /* "[-f FMT | --image-opts] [-U] FILENAME" */
	const char *summary;            /* a sentence for --help */
	const struct opt *opts;
	unsigned nopts;
};

/* The options that most tools have, with qemu-img's names, for use in their tables.
 * Own ids start at OPT_OWN. */
enum {
	OPT_HELP = 1, OPT_FORMAT, OPT_IMAGE_OPTS, OPT_FORCE_SHARE, OPT_OBJECT, OPT_OUTPUT,
	OPT_CACHE, OPT_QUIET, OPT_PROGRESS, OPT_UNTRUSTED,
	OPT_OWN = 100,
};
#define TOOL_OPT_HELP { 'h', "help", NULL, "show this", OPT_HELP }
#define TOOL_OPT_FORMAT \
	{ 'f', "format", "FMT", "the image's format; without it, it is found out", OPT_FORMAT }
#define TOOL_OPT_IMAGE_OPTS \
	{ 0, "image-opts", NULL, "FILENAME is driver=FMT,file.filename=...", OPT_IMAGE_OPTS }
#define TOOL_OPT_FORCE_SHARE \
	{ 'U', "force-share", NULL, "read also what others have open for writing", OPT_FORCE_SHARE }
#define TOOL_OPT_OBJECT \
	{ 0, "object", "OBJDEF", "define an object, such as a secret", OPT_OBJECT }
#define TOOL_OPT_OUTPUT \
	{ 0, "output", "FORMAT", "human (the default) or json", OPT_OUTPUT }
#define TOOL_OPT_CACHE(letter) \
	{ letter, "cache", "MODE", "how the image is read; writeback by default", OPT_CACHE }
#define TOOL_OPT_QUIET { 'q', "quiet", NULL, "print errors only", OPT_QUIET }
#define TOOL_OPT_PROGRESS { 'p', "progress", NULL, "show how far it is", OPT_PROGRESS }
#define TOOL_OPT_UNTRUSTED \
	{ 0, "untrusted", NULL, "open nothing outside the image's folder", OPT_UNTRUSTED }

/* Begins a walk through argv[1..]; one at a time. */
void tool_opts_start(const struct tool_grammar *g, int argc, char **argv);
/* The next option's id, OPTS_OPERAND, OPTS_END; or OPTS_ERROR, with the message printed. */
int tool_opts_next(const struct tool_grammar *g, const char **ret_value);
/* The walk of a tool that is about one image: hands each option and its value to @take, which
 * returns 0, or -errno with the message printed. Fills the operand into @ret_name. Returns -1:
 * go on; else what the program is to exit with, everything printed. */
int tool_opts_one(const struct tool_grammar *g, int argc, char **argv,
		  int (*take)(void *args, int id, const char *value), void *args,
		  const char **ret_name);
/* Prints the help. Returns EXIT_OK. */
int tool_help(const struct tool_grammar *g);
/* Prints "NAME: text" and where help is to be found. Returns EXIT_ERROR (as qemu-img, not
 * EXIT_USAGE). */
int tool_fail_usage(const struct tool_grammar *g, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* --output: "human" or "json". 0 or -EINVAL with the message printed. */
int tool_output(const struct tool_grammar *g, const char *text, bool *ret_is_json);
/* --object: checks OBJDEF (key=value,... or JSON) and its id against the earlier ones. Secrets are
 * understood and kept for nobody: byre reads no encrypted images. 0 or -EINVAL, printed. */
int tool_object(const char *def);
/* -o, which may be given several times: puts @text behind what *@all, owned, has so far. 0 or
 * -errno, printed. */
int tool_options_add(char **all, const char *text);
/* Does @text say something, without commas around it that belong to nothing? */
bool tool_options_valid(const char *text);
/* A size as qemu-img takes it: "10k", "1.5G"; below 2^63. 0, -EINVAL (not a size), -ERANGE;
 * silent. */
int tool_size(const char *text, uint64_t *ret);

/* ---- the loop ---- */

struct tool {
	struct loop *loop;              /* turned by tool_run() on this thread */
	struct workers *workers;        /* its threads start when first needed */
};

/* 0 or -errno, printed. */
int tool_start(struct tool *t, enum loop_backend backend);
/* Nothing is open any more. A zeroed @t is fine. */
void tool_stop(struct tool *t);
/* Runs fn(arg) in a fiber of the loop and turns it until fn has returned what this returns. */
int tool_run(struct tool *t, int (*fn)(void *arg), void *arg);

/* ---- images ---- */

/* How to open an image; zeroed: for reading, format found out, any backing file. */
struct img_opts {
	const char *format;             /* -f; NULL: found out */
	const char *cache;              /* -T or -t, as written; NULL: writeback */
	const char *cache_what;         /* in its error; NULL: "source cache" */
	const char *snapshot;           /* -l; NULL: the active state */
	bool image_opts;                /* --image-opts: the name is a list of options */
	bool force_share;               /* -U */
	bool untrusted;                 /* --untrusted */
	bool no_backing;                /* leave the backing chain alone */
	bool metadata_only;             /* nobody reads the content: encrypted images open, too */
	bool for_check;                 /* it may be damaged: its tables are not looked at */
	bool is_unfinished;             /* it was created so, a moment ago */
	bool writable;
	bool discard;                   /* what is written as zeros may lose its space */
	bool drop_pages;                /* what it brings into the page cache does not stay */
	bool no_writers;                /* others do not write meanwhile, unless it is shared by
					 * force */
	size_t cache_bytes;             /* of mapping cache; 0: the default */
	int compression_level;          /* of what is written compressed; 0: the default */
	bool deflate_small_window;
};

/* An open image. */
struct img {
	struct tool *tool;              /* borrowed */
	char *name;                     /* owned; what was asked for, as messages show it */
	const char *filename;           /* graph.top's name: the file, as listings show it */
	struct graph graph;             /* graph.top: the node; its child[CHILD_FILE] the file */
	struct port *port;              /* owned; open on tool->loop */
	struct port_chan *pc;           /* the port there: what requests are submitted to */
	bool has_port;
};

/* Opens @name: a file name, json:{...}, or with opts->image_opts key=value,... Fills zeroed @ret.
 * 0, or -errno with qemu-img's message printed. */
int img_open(struct tool *t, const char *name, const struct img_opts *opts, struct img *ret);
/* The same, without printing: @err has the text. */
int img_open_quiet(struct tool *t, const char *name, const struct img_opts *opts, struct img *ret,
		   struct err *err);
/* Not from a fiber. The first error of writing back. A zeroed @img is fine. */
int img_close(struct img *img);
/* The same, without printing. */
int img_close_quiet(struct img *img, struct err *err);

/* The options that say how to open an image, and --object, which belongs to none: takes option @id
 * with @value into @opts. 0; -EINVAL with the message printed, also for an id that is none of
 * these. */
int img_take_option(struct img_opts *opts, int id, const char *value);

/* "qcow2", "raw": what messages call the format. */
const char *img_format(const struct img *img);
uint64_t img_size(const struct img *img);       /* bytes */

/* ---- progress (-p) ---- */

struct progress {
	bool is_shown;
	bool is_bar;                    /* a bar with a rate, on a terminal */
	double shown;                   /* percent, at the last show */
	double step;                    /* percent between two shows */
	uint64_t total;                 /* as it was last said */
	uint64_t start_ns, shown_ns;
};

/* @is_shown: -p was given. Shows 0 %. @step: 1 for most; 2 for compare. */
void progress_start(struct progress *p, bool is_shown, double step);
/* @done of @total (any unit; bytes for the rate). May be called as often as one likes. */
void progress_set(struct progress *p, uint64_t done, uint64_t total);
/* Shows 100 % where @is_complete, and ends the line. */
void progress_end(struct progress *p, bool is_complete);

#endif
