/* SPDX-License-Identifier: MIT */
/* drv/zeroes/zeroes.c - a write whose data is zero from end to end goes on as a REQ_ZERO of the
 * same range and flags; all else passes. It is the same request, so nothing happens on its way up.
 *
 * Invariants:
 *	Z4  a write goes on as REQ_ZERO if and only if each of its bytes is zero. */
#include "drv/zeroes/zeroes.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/zero.h"
#include "blk/blk.h"

struct zeroes_node {
	struct node node;
	uint8_t flags;                  /* const; added to the REQ_ZERO */
};

static bool is_zero(const struct req *req)
{
	uint64_t skip = req->iov_skip, left = req->len;

	for (uint32_t i = 0; left && i < req->iovcnt; i++) {
		const struct iovec *v = &req->iov[i];
		uint64_t n;

		if (skip >= v->iov_len) {
			skip -= v->iov_len;
			continue;
		}
		n = MIN(left, v->iov_len - skip);
		if (!bytes_are_zero((const char *)v->iov_base + skip, n))
			return false;
		left -= n;
		skip = 0;
	}
	return true;
}

static void zeroes_submit(struct chan *ch, struct req *req)
{
	if (req->kind == REQ_WRITE && req->len && is_zero(req)) {
		req->kind = REQ_ZERO;
		req->flags |= container_of(ch->node, struct zeroes_node, node)->flags;
	}
	chan_submit(ch->child[CHILD_FILE], req);
}

static int zeroes_resize_wait(struct node *n, struct err *err)
{
	struct node *child = n->child[CHILD_FILE];
	int rc = child->ops->resize_wait ? child->ops->resize_wait(child, err) : 0;

	if (!rc)
		atomic_store(&n->size, atomic_load(&child->size));
	return rc;
}

static void zeroes_free(struct node *n)
{
	free(container_of(n, struct zeroes_node, node));
}

static const struct node_ops zeroes_ops = {
	.name = "detect-zeroes",
	.chan_size = sizeof(struct chan),
	.submit = zeroes_submit,
	.free = zeroes_free,
	.resize_wait = zeroes_resize_wait,
};

int zeroes_open_wait(struct node *child, bool unmap, struct node **ret, struct err *err)
{
	struct zeroes_node *zn = calloc(1, sizeof(*zn));
	int rc;

	if (!zn || node_init(&zn->node, &zeroes_ops, child->name, child->home) < 0) {
		free(zn);
		return err_set_errno(err, ENOMEM, "'%s'", child->name);
	}
	zn->flags = unmap ? REQ_MAY_UNMAP : 0;
	zn->node.align = child->align;
	zn->node.read_only = child->read_only;
	zn->node.can_discard = child->can_discard;
	zn->node.zero_is_fast = child->zero_is_fast;
	zn->node.holes_read_zero = child->holes_read_zero;
	atomic_store(&zn->node.size, atomic_load(&child->size));
	zn->node.child[CHILD_FILE] = node_get(child);
	rc = node_open_home_wait(&zn->node, err);
	if (rc) {
		node_put_wait(&zn->node);
		return rc;
	}
	node_put_wait(child);           /* the caller's reference; ours stays */
	*ret = &zn->node;
	return 0;
}
