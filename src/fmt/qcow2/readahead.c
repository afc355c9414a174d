/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/readahead.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

int readahead_init(struct readahead *ra, struct chan *ch, uint64_t end, size_t bytes)
{
	*ra = (struct readahead) { .ch = ch, .end = end, .bytes = bytes };
	ra->depth = (unsigned)MIN(MAX(READAHEAD_BYTES / bytes, (size_t)2), (size_t)READAHEAD_MAX);
	ra->slots = calloc(ra->depth + 1, sizeof(*ra->slots));
	ra->bufs = aligned_alloc(4096, align_up((ra->depth + 1) * bytes, 4096));
	if (!ra->slots || !ra->bufs) {
		free(ra->slots);
		free(ra->bufs);
		*ra = (struct readahead) { 0 };
		return -ENOMEM;
	}
	for (unsigned i = 0; i <= ra->depth; i++) {
		ra->slots[i].ra = ra;
		ra->slots[i].iov = (struct iovec) { ra->bufs + i * bytes, bytes };
	}
	return 0;
}

static void read_done(struct req *req, int res)
{
	struct readahead_slot *s = container_of(req, struct readahead_slot, req);

	s->res = res;
	s->is_done = true;
	if (s->ra->waiter)
		fiber_wake(s->ra->waiter);
}

void readahead_push(struct readahead *ra, uint64_t off)
{
	struct readahead_slot *s = &ra->slots[(ra->first + ra->count) % (ra->depth + 1)];

	assert(readahead_has_room(ra) && range_within(off, ra->bytes, INT64_MAX));
	ra->count++;
	s->res = 0;
	s->is_done = off >= ra->end;
	s->iov.iov_len = s->is_done ? 0 : ra->bytes;
	if (s->is_done)
		return;
	memset(&s->req, 0, sizeof(s->req));
	s->req.done = read_done;
	s->req.kind = REQ_READ;
	s->req.off = off;
	s->req.len = ra->bytes;
	s->req.iov = &s->iov;
	s->req.iovcnt = 1;
	chan_submit(ra->ch, &s->req);
}

int readahead_pop_wait(struct readahead *ra, const uint8_t **ret)
{
	struct readahead_slot *s = &ra->slots[ra->first];

	assert(ra->count);
	ra->waiter = fiber_self();
	while (!s->is_done)
		fiber_park();
	ra->waiter = NULL;
	ra->first = (ra->first + 1) % (ra->depth + 1);
	ra->count--;
	if (!s->res)
		*ret = s->iov.iov_len ? s->iov.iov_base : NULL;
	return s->res;
}

void readahead_fini_wait(struct readahead *ra)
{
	const uint8_t *ignored;

	while (ra->count)
		readahead_pop_wait(ra, &ignored);
	free(ra->slots);
	free(ra->bufs);
	*ra = (struct readahead) { 0 };
}
