/* SPDX-License-Identifier: MIT */
/* cmd/cmd_measure.c - `byre measure`: how large a new image would be. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/json_out.h"
#include "cmd/measure_target.h"
#include "cmd/snapshot_arg.h"
#include "cmd/tool.h"
#include "fmt/qcow2/info.h"

enum { OPT_TARGET_FORMAT = OPT_OWN, OPT_OPTIONS, OPT_SIZE, OPT_SNAPSHOT };

static const struct opt opts[] = {
	TOOL_OPT_HELP,
	{ 'O', "target-format", "FMT", "of the new image: raw (the default) or qcow2",
	  OPT_TARGET_FORMAT },
	{ 'o', "options", "OPTIONS", "of the new image: cluster_size=64k,...", OPT_OPTIONS },
	TOOL_OPT_FORMAT,
	TOOL_OPT_IMAGE_OPTS,
	{ 'l', "snapshot", "WHICH", "measure this internal snapshot of FILENAME: its id or "
	  "name,\nor snapshot.id=ID,snapshot.name=NAME", OPT_SNAPSHOT },
	TOOL_OPT_OBJECT,
	TOOL_OPT_OUTPUT,
	{ 0, "size", "SIZE", "the new image is empty, of that size", OPT_SIZE },
	TOOL_OPT_FORCE_SHARE,
	TOOL_OPT_UNTRUSTED,
};

static const struct tool_grammar grammar = {
	.command = "measure",
	.usage = "[OPTION]... [FILENAME]",
	.summary = "Works out how large a new image would be: an empty one, or a copy of FILENAME.",
	.opts = opts,
	.nopts = ARRAY_SIZE(opts),
};

struct measure_args {
	const char *name;               /* NULL: none */
	unsigned noperands;
	struct img_opts image;
	struct snapshot_arg snapshot;
	const char *format;
	char *options;                  /* owned; all of -o */
	bool has_size, is_json;
	uint64_t size;
};

struct measurement {
	struct img *img;
	const struct measure_args *args;
	struct measure_target target;
	struct qcow2_info info;         /* of the source */
	bool is_qcow2;                  /* the source */
	uint64_t size;                  /* guest bytes */
	uint64_t required, full;
	bool has_bitmaps;
	uint64_t bitmaps;
};

/* ---- the source ---- */

static int info_wait(void *arg)
{
	struct measurement *m = arg;

	return qcow2_info_wait(m->img->graph.top, &m->info, NULL);
}

static int look_at_source(struct measurement *m)
{
	m->is_qcow2 = !strcmp(img_format(m->img), "qcow2");
	m->size = img_size(m->img);
	if (m->is_qcow2 && tool_run(m->img->tool, info_wait, m))
		return tool_error("Could not open '%s'", m->args->name);
	if (!m->args->snapshot.text)
		return EXIT_OK;
	return snapshot_arg_open(&m->args->snapshot, m->args->name, &m->args->image, m->img) ?
		       EXIT_ERROR : EXIT_OK;
}

/* ---- working it out ---- */

static int data_wait(void *arg)
{
	struct measurement *m = arg;
	uint64_t data;
	int rc = measure_data_wait(m->img->pc, MIN(m->size, img_size(m->img)),
				   m->target.layout.cluster, &data);

	if (!rc)
		m->required += data;
	return rc;
}

static void measure_bitmaps(struct measurement *m)
{
	const struct measure_layout *l = &m->target.layout;
	uint64_t directory = 0, entry;

	m->has_bitmaps = m->is_qcow2 && m->info.version >= 3 && !m->target.is_old;
	for (size_t i = 0; i < m->info.nbitmaps; i++) {
		const struct qcow2_bitmap_info *b = &m->info.bitmaps[i];

		m->bitmaps += measure_bitmap(l, m->size, b->granularity, strlen(b->name), &entry);
		directory += entry;
	}
	m->bitmaps += align_up(directory, l->cluster);
}

static int measure_qcow2(struct measurement *m)
{
	uint64_t data = align_up(m->size, m->target.layout.cluster), metadata;
	bool is_full = m->target.is_full || (m->img && m->target.has_backing);
	int rc;

	if (measure_metadata(&m->target.layout, m->size, &metadata))
		return tool_error("The image size is too large (try using a larger cluster size)");
	m->full = metadata + data;
	m->required = is_full ? m->full : metadata;
	if (!m->img)
		return EXIT_OK;
	rc = is_full ? 0 : tool_run(m->img->tool, data_wait, m);
	if (rc)
		return tool_error("Unable to get block status: %s",
				  strerror(rc == -EUCLEAN ? EIO : -rc));
	measure_bitmaps(m);
	return EXIT_OK;
}

static int measure(struct measurement *m)
{
	if (measure_target_parse(m->args->format, m->args->options, &m->target))
		return EXIT_ERROR;
	if (m->target.format == MEASURE_QCOW2)
		return measure_qcow2(m);
	m->required = m->full = align_up(m->size, 512);
	return EXIT_OK;
}

static void print_plain(const struct measurement *m)
{
	printf("required size: %" PRIu64 "\n", m->required);
	printf("fully allocated size: %" PRIu64 "\n", m->full);
	if (m->has_bitmaps)
		printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
}

static void print_json(const struct measurement *m)
{
	struct json_out j = { .out = stdout };

	json_object(&j, NULL);
	if (m->has_bitmaps)
		json_number(&j, "bitmaps", (int64_t)m->bitmaps);
	json_number(&j, "required", (int64_t)m->required);
	json_number(&j, "fully-allocated", (int64_t)m->full);
	json_end_object(&j);
}

static int run(const struct measure_args *a)
{
	struct measurement m = { .args = a, .size = a->size };
	struct tool t = { 0 };
	struct img img = { 0 };
	int rc = EXIT_OK;

	if (a->name) {
		m.img = &img;
		if (tool_start(&t, LOOP_AUTO) || img_open(&t, a->name, &a->image, &img))
			rc = EXIT_ERROR;
		if (!rc)
			rc = look_at_source(&m);
	}
	if (!rc)
		rc = measure(&m);
	if (!rc && a->is_json)
		print_json(&m);
	else if (!rc)
		print_plain(&m);
	qcow2_info_fini(&m.info);
	img_close(&img);
	tool_stop(&t);
	return rc;
}

/* ---- the command line ---- */

static int take_size(struct measure_args *a, const char *text)
{
	int rc = tool_size(text, &a->size);

	if (rc == -ERANGE)
		tool_error("Invalid image size specified. Must be between 0 and %lld.",
			   (long long)INT64_MAX);
	else if (rc)
		tool_error("Invalid image size specified: '%s'.", text);
	a->has_size = true;
	return rc;
}

/* One option. 0, or -errno with the message printed. */
static int take_option(struct measure_args *a, int id, const char *value)
{
	switch (id) {
	case OPT_TARGET_FORMAT:
		a->format = value;
		return 0;
	case OPT_OPTIONS:
		return tool_options_add(&a->options, value);
	case OPT_SIZE:
		return take_size(a, value);
	case OPT_SNAPSHOT:
		return snapshot_arg_parse(value, &a->snapshot);
	case OPT_OUTPUT:
		return tool_output(&grammar, value, &a->is_json);
	}
	return img_take_option(&a->image, id, value);
}

static int check_args(const struct measure_args *a)
{
	if (a->noperands > 1)
		return tool_error("At most one filename argument is allowed.");
	if (!a->name && (a->image.image_opts || a->image.format || a->snapshot.text))
		return tool_error("--image-opts, -f, and -l require a filename argument.");
	if (!a->name && !a->has_size)
		return tool_error("Either --size N or one filename must be specified.");
	if (a->name && a->has_size)
		return tool_error("--size N cannot be used together with a filename.");
	return EXIT_OK;
}

/* Fills @a. A negative value: go on; else the exit code. */
static int parse(struct measure_args *a, int argc, char **argv)
{
	const char *value;
	int id;

	tool_opts_start(&grammar, argc, argv);
	while ((id = tool_opts_next(&grammar, &value)) != OPTS_END) {
		if (id == OPT_HELP)
			return tool_help(&grammar);
		if (id == OPTS_OPERAND) {
			a->name = value;
			a->noperands++;
		} else if (id == OPTS_ERROR || take_option(a, id, value)) {
			return EXIT_ERROR;
		}
	}
	return check_args(a) ? EXIT_ERROR : -1;
}

int cmd_measure(int argc, char **argv)
{
	struct measure_args a = { .format = "raw" };
	int rc = parse(&a, argc, argv);

	if (rc < 0)
		rc = run(&a);
	free(a.options);
	snapshot_arg_fini(&a.snapshot);
	return rc;
}
