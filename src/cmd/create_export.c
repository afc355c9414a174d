/* SPDX-License-Identifier: MIT */
/* cmd/create_export.c - new images in exports of NBD servers.
 *
 * Nothing can be created there, and no size changed: an export that is there already, and large
 * enough, is taken. What was in it is lost only where the new image lies: a raw one has its first
 * sector zeroed, so that it looks like no other format; a qcow2 one all that its metadata needs. */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/blk.h"
#include "cmd/create.h"
#include "ctl/image_name.h"
#include "ctl/nbd_name.h"
#include "drv/nbd/nbdc.h"

static int cannot_open(struct err *err, int rc)
{
	return err_wrap(err, rc, "Protocol driver 'nbd' does not support creating new images, so "
			"an existing image must be selected as the target; however, opening the "
			"given target as an existing image failed");
}

/* A description cannot be a target. */
static int check_not_json(const char *filename, struct err *err)
{
	return strncmp(filename, "json:", 5) ? 0 : err_set(err, EINVAL, "Unknown protocol 'json'");
}

int create_check_protocol(const char *filename, struct err *err)
{
	struct image_name name = { 0 };
	int rc = check_not_json(filename, err);

	if (rc || !filename[0] || nbd_name_is(filename))
		return rc;
	rc = image_name_parse(filename, &name, err);
	image_name_fini(&name);
	return rc;
}

int create_parse_name(const char *filename, struct image_name *ret, struct err *err)
{
	int rc = check_not_json(filename, err);

	if (rc)
		return rc;
	rc = image_name_parse(filename, ret, err);
	return rc && nbd_name_is(filename) ? cannot_open(err, rc) : rc;
}

int create_open_export_wait(const struct image_name *name, struct loop *l, struct node **ret,
			    struct err *err)
{
	struct nbdc_opts o = {
		.name = name->path,
		.server = name->nbd,
		.writable = true,
		.discard = true,
	};
	int rc = nbdc_open_wait(&o, l, ret, err);

	return rc ? cannot_open(err, rc) : 0;
}

int create_zero_export_wait(struct node *n, uint64_t size, uint64_t zeros, struct err *err)
{
	uint64_t has = atomic_load(&n->size);
	struct req req = {
		.kind = REQ_ZERO,
		.flags = REQ_MAY_UNMAP,
		.len = MIN(zeros, has),
	};
	int rc;

	if (size > has)
		return err_set(err, ENOSPC, "Cannot grow NBD nodes");
	rc = chan_submit_wait(n->home_chan, &req);
	return rc ? err_set_errno(err, -rc, "Failed to clear the new image's first sector") : 0;
}
