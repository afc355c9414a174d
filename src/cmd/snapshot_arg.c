/* SPDX-License-Identifier: MIT */
#include "cmd/snapshot_arg.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "cmd/tool.h"
#include "ctl/option_list.h"
#include "fmt/qcow2/info.h"

static int keep_text(char **field, const struct option_item *o)
{
	free(*field);
	*field = o ? strdup(o->value) : NULL;
	return o && !*field ? -ENOMEM : 0;
}

int snapshot_arg_parse(const char *text, struct snapshot_arg *ret)
{
	struct option_list l = { 0 };
	struct err err = { 0 };
	const struct option_item *unknown;
	int rc;

	ret->text = text;
	ret->is_either = strncmp(text, "snapshot.", 9);
	if (ret->is_either)
		return 0;
	rc = option_list_parse(text, NULL, &l, &err);
	if (!rc)
		rc = keep_text(&ret->id, option_list_take(&l, "snapshot.", "id"));
	if (!rc)
		rc = keep_text(&ret->name, option_list_take(&l, "snapshot.", "name"));
	unknown = rc ? NULL : option_list_unused(&l, "");
	if (unknown)
		rc = err_set(&err, EINVAL, "Invalid parameter '%s'", unknown->key);
	option_list_fini(&l);
	if (!rc)
		return 0;
	if (err.code)
		tool_fail(&err);
	tool_error("Failed in parsing snapshot param '%s'", text);
	return rc;
}

void snapshot_arg_fini(struct snapshot_arg *a)
{
	free(a->id);
	free(a->name);
}

static bool is_wanted(const struct snapshot_arg *a, const struct qcow2_snapshot_info *s)
{
	return (!a->id || !strcmp(a->id, s->id)) && (!a->name || !strcmp(a->name, s->name));
}

/* The id of the snapshot that is asked for, or NULL. */
static const char *find(const struct snapshot_arg *a, const struct qcow2_info *info)
{
	for (size_t i = 0; a->is_either && i < info->nsnapshots; i++)
		if (!strcmp(a->text, info->snapshots[i].id))
			return a->text;
	for (size_t i = 0; i < info->nsnapshots; i++) {
		const struct qcow2_snapshot_info *s = &info->snapshots[i];

		if (a->is_either ? !strcmp(a->text, s->name) : is_wanted(a, s))
			return s->id;
	}
	return NULL;
}

struct info_call {
	struct img *img;
	struct qcow2_info info;
};

static int info_wait(void *arg)
{
	struct info_call *c = arg;

	return qcow2_info_wait(c->img->graph.top, &c->info, NULL);
}

int snapshot_arg_open(const struct snapshot_arg *a, const char *name, const struct img_opts *how,
		      struct img *img)
{
	struct info_call c = { .img = img };
	struct img_opts opts = *how;
	struct tool *t = img->tool;
	int rc;

	if (strcmp(img_format(img), "qcow2")) {
		tool_error("Failed to load snapshot: Block format '%s' used by device '' "
			   "does not support temporarily loading internal snapshots",
			   img_format(img));
		return -ENOTSUP;
	}
	rc = tool_run(t, info_wait, &c);
	if (rc) {
		tool_error("Could not open '%s'", name);
		return rc;
	}
	opts.snapshot = find(a, &c.info);
	if (opts.snapshot) {
		img_close(img);
		rc = img_open(t, name, &opts, img);
	} else {
		tool_error("Failed to load snapshot: Can't find snapshot");
		rc = -ENOENT;
	}
	qcow2_info_fini(&c.info);
	return rc;
}
