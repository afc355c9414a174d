/* SPDX-License-Identifier: MIT */
/* blk/req.c - answering requests, and looking at parts of their data. */
#include <string.h>

#include "base/bits.h"
#include "blk/blk.h"
#include "blk/port.h"

static void finish_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);

	req_complete(req, req->res);
}

void req_complete(struct req *req, int res)
{
	assert(res <= 0);
	if (req->pc)
		port_req_end(req, res);
	req->done(req, res);
}

void req_finish(struct chan *ch, struct req *req, int res)
{
	req->res = res;
	req->task.fn = finish_task;
	loop_defer(ch->loop, &req->task);
}

void req_post_finish(struct chan *ch, struct req *req, int res)
{
	req->res = res;
	req->task.fn = finish_task;
	loop_post(ch->loop, &req->task);
}

void req_part(const struct req *req, uint64_t rel, uint64_t len, struct req *child)
{
	assert(range_within(rel, len, req->len));
	child->done = NULL;
	child->kind = req->kind;
	child->flags = req->flags;
	child->off = req->off + rel;
	child->len = len;
	child->iov = req->iov;
	child->iovcnt = req->iovcnt;
	child->iov_skip = req->iov_skip + rel;
	child->pc = NULL;
}

/* Goes to the iovec that holds byte @at of @req's vector; *@ret_in is the offset in it. */
static uint32_t iov_seek(const struct req *req, uint64_t at, uint64_t *ret_in)
{
	uint32_t i = 0;

	while (i < req->iovcnt && at >= req->iov[i].iov_len)
		at -= req->iov[i++].iov_len;
	*ret_in = at;
	return i;
}

unsigned req_iov_cut(const struct req *req, uint64_t rel, uint64_t len, struct iovec *out,
		     unsigned max, uint64_t *ret_len)
{
	unsigned n = 0;
	uint64_t in, got = 0;

	for (uint32_t i = iov_seek(req, req->iov_skip + rel, &in);
	     got < len && n < max && i < req->iovcnt; i++, in = 0) {
		uint64_t part = MIN(req->iov[i].iov_len - in, len - got);

		if (!part)
			continue;
		out[n].iov_base = (char *)req->iov[i].iov_base + in;
		out[n++].iov_len = part;
		got += part;
	}
	*ret_len = got;
	return n;
}

enum copy_how { COPY_TO, COPY_FROM, COPY_ZERO };

static void copy(const struct req *req, uint64_t rel, char *buf, uint64_t len, enum copy_how how)
{
	uint64_t in;

	for (uint32_t i = iov_seek(req, req->iov_skip + rel, &in); len; i++, in = 0) {
		assert(i < req->iovcnt);

		char *at = (char *)req->iov[i].iov_base + in;
		uint64_t part = MIN(req->iov[i].iov_len - in, len);

		if (!part)
			continue;
		switch (how) {
		case COPY_TO:
			memcpy(at, buf, part);
			break;
		case COPY_FROM:
			memcpy(buf, at, part);
			break;
		case COPY_ZERO:
			memset(at, 0, part);
			break;
		}
		if (buf)
			buf += part;
		len -= part;
	}
}

void req_zero_part(const struct req *req, uint64_t rel, uint64_t len)
{
	copy(req, rel, NULL, len, COPY_ZERO);
}

void req_copy_to(const struct req *req, uint64_t rel, const void *buf, uint64_t len)
{
	/* The cast drops a const that COPY_TO honours. */
	copy(req, rel, (char *)(uintptr_t)buf, len, COPY_TO);
}

void req_copy_from(const struct req *req, uint64_t rel, void *buf, uint64_t len)
{
	copy(req, rel, buf, len, COPY_FROM);
}

void *req_flat(const struct req *req)
{
	uint64_t in;
	uint32_t i = iov_seek(req, req->iov_skip, &in);

	if (i == req->iovcnt || req->iov[i].iov_len - in < req->len)
		return NULL;
	return (char *)req->iov[i].iov_base + in;
}
