/* SPDX-License-Identifier: MIT */
#include "cmd/serve_opts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/size.h"
#include "cmd/opts.h"

enum {
	OPT_FORMAT = 1,
	OPT_NAME,
	OPT_READ_ONLY,
	OPT_CACHE,
	OPT_DISCARD,
	OPT_DETECT_ZEROES,
	OPT_COMPRESS,
	OPT_SNAPSHOT,
	OPT_FORCE_SHARE,
	OPT_NBD,                        /* from here on: for all */
	OPT_LOOPS,
	OPT_ALLOW,
	OPT_CACHE_SIZE,
	OPT_STATS,
	OPT_BACKEND,
	OPT_PID_FILE,
	OPT_HELP,
};

static const struct opt image_opts[] = {
	{ 'f', "format", "FORMAT", "qcow2 or raw; found out where not given", OPT_FORMAT },
	{ 0, "name", "NAME", "the export's name (default: the file's name);\n"
			     "the first export is also the one named \"\"", OPT_NAME },
	{ 'r', "read-only", NULL, "refuse writes", OPT_READ_ONLY },
	{ 0, "cache", "MODE", "writeback (default), none, writethrough, directsync\n"
			      "or unsafe, as QEMU names them", OPT_CACHE },
	{ 0, "discard", "MODE", "unmap (default): discards free space; or ignore", OPT_DISCARD },
	{ 0, "detect-zeroes", "MODE", "writes of zeros are off (default): written; on: zeroed;\n"
				      "unmap: zeroed, and their space given back",
	  OPT_DETECT_ZEROES },
	{ 0, "compress", NULL, "write new clusters of a qcow2 image compressed", OPT_COMPRESS },
	{ 0, "snapshot", "NAME", "serve an internal snapshot (name or id), read-only",
	  OPT_SNAPSHOT },
	{ 'U', "force-share", NULL, "neither take nor check image locks; read-only",
	  OPT_FORCE_SHARE },
};

static const struct opt common_opts[] = {
	{ 0, "nbd", "ADDRESS", "serve NBD on unix:PATH or tcp:HOST:PORT; may be repeated",
	  OPT_NBD },
	{ 0, "loops", "N", "threads that serve connections (default 1)", OPT_LOOPS },
	{ 0, "allow", "DIR", "let images name backing and data files below DIR;\n"
			     "may be repeated", OPT_ALLOW },
	{ 0, "cache-size", "SIZE", "memory for the mapping of one disk (default 32M)",
	  OPT_CACHE_SIZE },
	{ 0, "stats", NULL, "show what each disk does, once a second", OPT_STATS },
	{ 0, "backend", "NAME", "uring or posix; found out where not given", OPT_BACKEND },
	{ 0, "pid-file", "FILE", "write the process id there when ready", OPT_PID_FILE },
	{ 'h', "help", NULL, "show this", OPT_HELP },
};

enum { NOPTS = ARRAY_SIZE(image_opts) + ARRAY_SIZE(common_opts) };

static void all_opts(struct opt table[NOPTS])
{
	memcpy(table, image_opts, sizeof(image_opts));
	memcpy(table + ARRAY_SIZE(image_opts), common_opts, sizeof(common_opts));
}

void serve_opts_print(void)
{
	puts("Options before an image, which belong to that image alone:");
	opts_print(stdout, image_opts, ARRAY_SIZE(image_opts));
	puts("\nOptions for all, anywhere:");
	opts_print(stdout, common_opts, ARRAY_SIZE(common_opts));
}

static int bad_choice(const char *option, const char *value, const char *choices, struct err *err)
{
	err_set(err, EINVAL, "--%s: unknown value '%s'", option, value);
	err_hint(err, "it is one of %s", choices);
	return -EINVAL;
}

static int parse_discard(const char *value, bool *ret_ignore, struct err *err)
{
	if (!strcmp(value, "unmap") || !strcmp(value, "on"))
		*ret_ignore = false;
	else if (!strcmp(value, "ignore") || !strcmp(value, "off"))
		*ret_ignore = true;
	else
		return bad_choice("discard", value, "unmap, ignore", err);
	return 0;
}

static int parse_zeroes(const char *value, enum graph_zeroes *ret, struct err *err)
{
	if (!strcmp(value, "off"))
		*ret = GRAPH_ZEROES_OFF;
	else if (!strcmp(value, "on"))
		*ret = GRAPH_ZEROES_ON;
	else if (!strcmp(value, "unmap"))
		*ret = GRAPH_ZEROES_UNMAP;
	else
		return bad_choice("detect-zeroes", value, "on, unmap, off", err);
	return 0;
}

static int parse_backend(const char *value, enum loop_backend *ret, struct err *err)
{
	if (!strcmp(value, "uring"))
		*ret = LOOP_URING;
	else if (!strcmp(value, "posix"))
		*ret = LOOP_POSIX;
	else
		return bad_choice("backend", value, "uring, posix", err);
	return 0;
}

/* Applies an option of the image to come. */
static int image_option(struct serve_image *next, int id, const char *value, struct err *err)
{
	switch (id) {
	case OPT_FORMAT:
		if (strcmp(value, "qcow2") && strcmp(value, "raw"))
			return bad_choice("format", value, "qcow2, raw", err);
		next->format = value;
		return 0;
	case OPT_NAME:
		if (strlen(value) > SERVE_NAME_MAX)
			return err_set(err, EINVAL, "--name: longer than %d bytes", SERVE_NAME_MAX);
		next->name = value;
		next->has_name = true;
		return 0;
	case OPT_READ_ONLY:
		next->read_only = true;
		return 0;
	case OPT_CACHE:
		return file_cache_parse(value, &next->cache, err);
	case OPT_DISCARD:
		return parse_discard(value, &next->ignore_discard, err);
	case OPT_DETECT_ZEROES:
		return parse_zeroes(value, &next->detect_zeroes, err);
	case OPT_COMPRESS:
		next->compress = true;
		return 0;
	case OPT_SNAPSHOT:
		next->snapshot = value;
		return 0;
	default:
		next->force_share = true;
		next->read_only = true;
		return 0;
	}
}

static int add_to_list(const char **list, unsigned *n, unsigned max, const char *option,
		       const char *value, struct err *err)
{
	if (*n == max)
		return err_set(err, EINVAL, "--%s: given more than %u times", option, max);
	list[(*n)++] = value;
	return 0;
}

static int common_option(struct serve_opts *o, int id, const char *value, struct err *err)
{
	uint64_t number;
	int rc = 0;

	switch (id) {
	case OPT_NBD:
		return add_to_list(o->listen, &o->nlisten, SERVE_LISTEN_MAX, "nbd", value, err);
	case OPT_ALLOW:
		return add_to_list(o->allow, &o->nallow, SERVE_ALLOW_MAX, "allow", value, err);
	case OPT_LOOPS:
		rc = number_parse(value, "--loops", 1, LOOPS_MAX, &number, err);
		if (!rc)
			o->loops = (unsigned)number;
		return rc;
	case OPT_CACHE_SIZE:
		return size_parse(value, "--cache-size", &o->cache_bytes, err);
	case OPT_STATS:
		o->stats = true;
		return 0;
	case OPT_BACKEND:
		return parse_backend(value, &o->backend, err);
	case OPT_PID_FILE:
		o->pid_file = value;
		return 0;
	default:
		o->help = true;
		return 0;
	}
}

static int add_image(struct serve_opts *o, struct serve_image *next, const char *path,
		     struct err *err)
{
	const char *slash = strrchr(path, '/');
	struct serve_image *grown;

	if (!path[0] || (slash && !slash[1]))
		return err_set(err, EINVAL, "'%s' is not the name of an image", path);
	if (o->nimages == SERVE_IMAGES_MAX)
		return err_set(err, EINVAL, "more than %d images", SERVE_IMAGES_MAX);
	grown = realloc(o->images, (o->nimages + 1) * sizeof(*grown));
	if (!grown)
		return err_set_errno(err, ENOMEM, "image '%s'", path);
	next->path = path;
	if (!next->has_name)
		next->name = slash ? slash + 1 : path;
	o->images = grown;
	o->images[o->nimages++] = *next;
	*next = (struct serve_image) { .cache = FILE_CACHE_WRITEBACK };
	return 0;
}

static int check_names(const struct serve_opts *o, struct err *err)
{
	for (unsigned i = 0; i < o->nimages; i++) {
		for (unsigned j = 0; j < i; j++) {
			if (strcmp(o->images[i].name, o->images[j].name))
				continue;
			err_set(err, EINVAL, "'%s' and '%s' would both be served as '%s'",
				o->images[j].path, o->images[i].path, o->images[i].name);
			err_hint(err, "give one of them another name: --name NAME before it");
			return -EINVAL;
		}
		if (strlen(o->images[i].name) > SERVE_NAME_MAX) {
			err_set(err, EINVAL, "the name of '%s' is longer than %d bytes",
				o->images[i].path, SERVE_NAME_MAX);
			err_hint(err, "give it a shorter one: --name NAME before it");
			return -EINVAL;
		}
	}
	return 0;
}

static int check_image_opts(const struct serve_opts *o, struct err *err)
{
	for (unsigned i = 0; i < o->nimages; i++) {
		const struct serve_image *im = &o->images[i];

		if (im->snapshot && im->format && strcmp(im->format, "qcow2"))
			return err_set(err, EINVAL, "'%s': only qcow2 images have snapshots",
				       im->path);
	}
	return 0;
}

static int parse_all(int argc, char **argv, struct serve_opts *o, struct err *err)
{
	struct serve_image next = { .cache = FILE_CACHE_WRITEBACK };
	const char *pending = NULL, *value = NULL;
	struct opt table[NOPTS];
	int id, rc = 0;

	all_opts(table);
	opts_start();
	while (!rc && (id = opts_next(table, NOPTS, argc, argv, &value, err)) != OPTS_END) {
		if (id == OPTS_ERROR)
			return -EINVAL;
		if (id == OPTS_OPERAND) {
			rc = add_image(o, &next, value, err);
			pending = NULL;
		} else if (id < OPT_NBD) {
			rc = image_option(&next, id, value, err);
			pending = table[id - OPT_FORMAT].name;
		} else {
			rc = common_option(o, id, value, err);
		}
	}
	if (rc || o->help)
		return rc;
	if (pending) {
		err_set(err, EINVAL, "option '--%s' has no image after it", pending);
		err_hint(err, "an image's options stand before the image");
		return -EINVAL;
	}
	if (!o->nimages)
		return err_set(err, EINVAL, "no image given");
	rc = check_names(o, err);
	return rc ? rc : check_image_opts(o, err);
}

int serve_opts_parse(int argc, char **argv, struct serve_opts *ret, struct err *err)
{
	struct serve_opts o = { .loops = 1, .cache_bytes = 32 * MiB, .backend = LOOP_AUTO };
	int rc = parse_all(argc, argv, &o, err);

	if (rc) {
		serve_opts_fini(&o);
		return rc;
	}
	*ret = o;
	return 0;
}

void serve_opts_fini(struct serve_opts *o)
{
	free(o->images);
	o->images = NULL;
	o->nimages = 0;
}
