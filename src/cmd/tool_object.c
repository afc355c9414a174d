/* SPDX-License-Identifier: MIT */
/* cmd/tool_object.c - --object: what scripts pass to qemu-img is checked as qemu-img checks it.
 * Secrets are all that an image tool can be given; they open encrypted images, which byre does not
 * read, so what is in them is looked at and forgotten. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "cmd/tool.h"
#include "ctl/option_list.h"

enum { IDS_MAX = 64 };

static char *ids[IDS_MAX];              /* of the objects so far */
static unsigned nids;

static bool is_id_known(const char *id)
{
	for (unsigned i = 0; i < nids; i++)
		if (!strcmp(ids[i], id))
			return true;
	return false;
}

static int note_id(const char *id, struct err *err)
{
	if (is_id_known(id))
		return err_set(err, EEXIST, "attempt to add duplicate property '%s' to object "
			       "(type 'container')", id);
	if (nids == IDS_MAX)
		return err_set(err, E2BIG, "more than %d objects", IDS_MAX);
	ids[nids] = strdup(id);
	if (!ids[nids])
		return err_set_errno(err, ENOMEM, "object '%s'", id);
	nids++;
	return 0;
}

static int check_file(const char *path, struct err *err)
{
	FILE *f = fopen(path, "re");

	if (!f)
		return err_set(err, errno, "Unable to read %s: Failed to open file “%s”: %s", path,
			       path, strerror(errno));
	fclose(f);
	return 0;
}

static int check_text(const struct option_item *o, struct err *err)
{
	if (!o || o->kind == OPTION_TEXT)
		return 0;
	return err_set(err, EINVAL, "Invalid parameter type for '%s', expected: string", o->key);
}

static int check_secret(struct option_list *l, struct err *err)
{
	const struct option_item *data = option_list_take(l, "", "data");
	const struct option_item *file = option_list_take(l, "", "file");
	const struct option_item *format = option_list_take(l, "", "format");
	const struct option_item *keyid = option_list_take(l, "", "keyid"), *unused;
	int rc = check_text(data, err);

	option_list_take(l, "", "iv");
	if (!rc)
		rc = check_text(file, err);
	if (rc)
		return rc;
	if (format && strcmp(format->value, "raw") && strcmp(format->value, "base64"))
		return err_set(err, EINVAL, "Parameter 'format' does not accept value '%s'",
			       format->value);
	unused = option_list_unused(l, "");
	if (unused)
		return err_set(err, EINVAL, "Parameter '%s' is unexpected", unused->key);
	if (data && file)
		return err_set(err, EINVAL, "'file' and 'data' are mutually exclusive");
	if (!data && !file)
		return err_set(err, EINVAL, "Either 'file' or 'data' must be provided");
	rc = file ? check_file(file->value, err) : 0;
	if (!rc && keyid && !is_id_known(keyid->value))
		rc = err_set(err, ENOENT, "No secret with id '%s'", keyid->value);
	return rc;
}

static int check_object(struct option_list *l, struct err *err)
{
	const struct option_item *type = option_list_take(l, "", "qom-type");
	const struct option_item *id = option_list_take(l, "", "id");
	int rc = check_text(type, err);

	if (rc)
		return rc;
	if (!type || !type->value[0])
		return err_set(err, EINVAL, "Parameter 'qom-type' is missing");
	if (strcmp(type->value, "secret"))
		return err_set(err, EINVAL, "Parameter 'qom-type' does not accept value '%s'",
			       type->value);
	if (!id)
		return err_set(err, EINVAL, "Parameter 'id' is missing");
	if (!option_is_identifier(id->value))
		return err_set(err, EINVAL, "Parameter 'id' expects an identifier\n"
			       "Identifiers consist of letters, digits, '-', '.', '_', starting "
			       "with a letter.");
	rc = check_secret(l, err);
	return rc ? rc : note_id(id->value, err);
}

int tool_object(const char *def)
{
	struct option_list l = { 0 };
	struct err err = { 0 };
	int rc = def[0] == '{' ? option_list_parse_json(def, &l, &err) :
				 option_list_parse(def, "qom-type", &l, &err);

	if (!rc)
		rc = check_object(&l, &err);
	option_list_fini(&l);
	if (rc)
		tool_fail(&err);
	return rc;
}
