/* SPDX-License-Identifier: MIT */
/* fmt/raw/raw.c - a disk that is its file, or a part of it, byte for byte.
 *
 * Requests are forwarded with the offset added. A file whose length is no multiple of 512 makes a
 * disk that is a little longer: the file reads as zeros behind its end.
 *
 * Invariants:
 *	R1  no request leaves [offset, offset + size) of the file, but for that tail (the port
 *	    checks B1 against our size);
 *	R2  a disk that was opened as raw because it looked like nothing else never comes to look
 *	    like something else: the guest could name any file of the host as the backing file of
 *	    its new header. Writes to the first 512 bytes are looked at, in a copy: the guest may
 *	    still change its own memory while the kernel reads it. */
#include "fmt/raw/raw.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "blk/blk.h"
#include "fmt/raw/probe.h"

enum { SECTOR = 512, HEAD_MAX = 4096 };

struct raw_node {
	struct node node;
	struct raw_opts opts;           /* const after open */
	atomic_bool has_refused;        /* it was logged */
	struct fiber_gate gate;         /* home's; of one: the owner of @head */
	void *head;                     /* HEAD_MAX bytes; where opts.probed */
};

struct raw_chan {
	struct chan chan;
	uint64_t offset;
	bool guards_head;               /* R2 */
};

static struct raw_node *raw_node(struct node *n)
{
	return container_of(n, struct raw_node, node);
}

static struct raw_chan *raw_chan(struct chan *ch)
{
	return container_of(ch, struct raw_chan, chan);
}

static struct chan *file_of(const struct chan *ch)
{
	return ch->child[CHILD_FILE];
}

static void forward(struct chan *ch, struct req *req)
{
	req->off += raw_chan(ch)->offset;
	chan_submit(file_of(ch), req);
}

/* ---- R2: the first 512 bytes of a probed disk ----
 *
 * Whatever changes them does it on the home loop, one after the other: two writes that are harmless
 * each may not be so together. */

/* Would the disk's first sector look like a format after [@off, @off + @len) of it became @data
 * (NULL: zeros)? 0 or -EPERM, or the error of reading the rest of it. */
static int judge_wait(struct raw_node *rn, uint64_t off, const char *data, uint64_t len)
{
	uint64_t end = MIN(off + len, (uint64_t)SECTOR);
	char sector[SECTOR];
	const char *format;
	int res;

	if (off || end < SECTOR) {
		res = chan_read_wait(file_of(rn->node.home_chan), rn->opts.offset, sector, SECTOR);
		if (res)
			return res;
	}
	if (data)
		memcpy(sector + off, data, end - off);
	else
		memset(sector + off, 0, end - off);
	format = probe_format(sector, SECTOR);
	if (!strcmp(format, "raw"))
		return 0;
	if (!atomic_exchange(&rn->has_refused, true))
		log_warn("'%s': a write that would make this raw disk look like %s was refused; "
			 "give its format (-f raw) to permit it", rn->node.name, format);
	return -EPERM;
}

/* Does the first @len bytes of @req. A DISCARD counts as zeros: that is what it leaves, or else
 * what the disk has held before. */
static int head_wait(struct raw_node *rn, const struct req *req, uint64_t len)
{
	struct iovec iov = { rn->head, len };
	struct req part = { .kind = req->kind, .flags = req->flags, .len = len, .iov = &iov,
			    .iovcnt = 1, .off = rn->opts.offset + req->off };
	int res;

	if (req->kind == REQ_WRITE)
		req_copy_from(req, 0, rn->head, len);
	res = judge_wait(rn, req->off, req->kind == REQ_WRITE ? rn->head : NULL, len);
	return res ? res : chan_submit_wait(file_of(rn->node.home_chan), &part);
}

/* On the request's own loop again. */
static void head_done(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	uint64_t len = req->priv[0];

	if (req->res || len == req->len) {
		req_complete(req, req->res);
		return;
	}
	req->off += len;
	req->iov_skip += len;
	req->len -= len;
	forward(req->ch, req);
}

/* In a fiber of the home loop. */
static void head_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct raw_node *rn = raw_node(req->ch->node);

	req->priv[0] = MIN(req->len, HEAD_MAX - req->off);
	req->res = head_wait(rn, req, req->priv[0]);
	req->task.fn = head_done;
	loop_post(req->ch->loop, &req->task);
	fiber_gate_leave(rn->node.home, &rn->gate);
}

static void head_at_home(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct raw_node *rn = raw_node(req->ch->node);

	req->task.fn = head_task;
	fiber_gate_start(rn->node.home, &rn->gate, &req->task);
}

static void raw_submit(struct chan *ch, struct req *req)
{
	bool is_head = raw_chan(ch)->guards_head && req->off < SECTOR && req->len;

	if (is_head && req->kind == REQ_COPY) {
		req_finish(ch, req, -ENOTSUP);  /* what it would become is not seen here */
		return;
	}
	if (is_head && (req->kind == REQ_WRITE || req->kind == REQ_ZERO ||
			req->kind == REQ_DISCARD)) {
		req->ch = ch;
		req->task.fn = head_at_home;
		loop_post(ch->node->home, &req->task);
		return;
	}
	forward(ch, req);
}

/* ---- opening ---- */

static int raw_chan_open_wait(struct chan *ch, struct err *err)
{
	struct raw_chan *rc = raw_chan(ch);
	const struct raw_node *rn = raw_node(ch->node);

	rc->offset = rn->opts.offset;
	rc->guards_head = rn->opts.probed && !rn->node.read_only;
	return 0;
}

static uint64_t file_size(const struct node *file)
{
	return atomic_load_explicit(&file->size, memory_order_relaxed);
}

/* The size of the disk in a file of @file_size bytes. */
static int disk_size(const struct raw_opts *o, uint64_t file_size, uint64_t *ret)
{
	if (o->offset > file_size || (o->has_size && o->size > file_size - o->offset))
		return -EINVAL;
	*ret = o->has_size ? o->size : align_up(file_size - o->offset, SECTOR);
	return 0;
}

static int raw_resize_wait(struct node *n, struct err *err)
{
	struct raw_node *rn = raw_node(n);
	struct node *file = n->child[CHILD_FILE];
	uint64_t size;
	int res = file->ops->resize_wait ? file->ops->resize_wait(file, err) : 0;

	if (res)
		return res;
	if (disk_size(&rn->opts, file_size(file), &size))
		return err_set(err, EINVAL, "'%s' is now shorter than its offset and size ask for",
			       n->name);
	atomic_store(&n->size, size);
	return 0;
}

static uint32_t raw_share_align_wait(struct node *n, const struct node *from)
{
	uint32_t align = node_share_align_wait(n->child[CHILD_FILE], from);

	return align && is_aligned(raw_chan(n->home_chan)->offset, align) ? align : 0;
}

static void raw_free(struct node *n)
{
	free(raw_node(n)->head);
	free(raw_node(n));
}

static const struct node_ops raw_ops = {
	.name = "raw",
	.chan_size = sizeof(struct raw_chan),
	.chan_open_wait = raw_chan_open_wait,
	.submit = raw_submit,
	.free = raw_free,
	.resize_wait = raw_resize_wait,
	.share_align_wait = raw_share_align_wait,
};

static int check_opts(const struct node *file, const struct raw_opts *o, uint64_t *ret_size,
		      struct err *err)
{
	if (o->offset > file_size(file))
		return err_set(err, EINVAL, "Offset (%" PRIu64 ") cannot be greater than size of "
			       "the containing file (%" PRIu64 ")", o->offset, file_size(file));
	if (disk_size(o, file_size(file), ret_size))
		return err_set(err, EINVAL, "The sum of offset (%" PRIu64 ") and size (%" PRIu64
			       ") has to be smaller or equal to the  actual size of the "
			       "containing file (%" PRIu64 ")", o->offset, o->size,
			       file_size(file));
	if (o->size % SECTOR)
		return err_set(err, EINVAL, "Specified size is not multiple of %d", SECTOR);
	if (o->writable && file->read_only)
		return err_set(err, EROFS, "'%s' is read-only", file->name);
	return 0;
}

int raw_open_wait(struct node *file, const struct raw_opts *opts, struct node **ret,
		  struct err *err)
{
	struct raw_node *rn;
	uint64_t size;
	int res = check_opts(file, opts, &size, err);

	if (res)
		return res;
	rn = calloc(1, sizeof(*rn));
	if (!rn || node_init(&rn->node, &raw_ops, opts->name ? opts->name : file->name,
				       file->home) < 0) {
		free(rn);
		return err_set_errno(err, ENOMEM, "'%s'", file->name);
	}
	rn->opts = *opts;
	rn->opts.name = NULL;           /* the caller's */
	fiber_gate_init(&rn->gate, 1);
	rn->node.align = file->align;
	rn->node.read_only = !opts->writable;
	rn->node.can_discard = opts->writable && file->can_discard;
	rn->node.zero_is_fast = opts->writable && file->zero_is_fast;
	rn->node.holes_read_zero = file->holes_read_zero;
	atomic_store(&rn->node.size, size);
	rn->node.child[CHILD_FILE] = node_get(file);
	if (opts->probed) {
		rn->head = aligned_alloc(HEAD_MAX, HEAD_MAX);
		if (!rn->head) {
			res = err_set_errno(err, ENOMEM, "'%s'", file->name);
			goto fail;
		}
	}
	res = node_open_home_wait(&rn->node, err);
	if (res)
		goto fail;
	node_put_wait(file);            /* the caller's, which is now ours beside our own */
	*ret = &rn->node;
	return 0;
fail:
	node_put_wait(&rn->node);
	return res;
}
